"""One at a time at an interface: who makes it, takes it away, or judges whether it is needed.

The record of an interface and the interface itself are not made in one step. So that no other
process takes what lies between the two for what a killed one has left, each interface has a byte,
its index, in a file of the network namespace, and a lock on it (OFD, fcntl(2)) while it is worked
at. The kernel takes the locks from the dead. 30 µs, and 2 more for each run of indexes.
"""

import fcntl
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from netalloc.errors import InUseError
from netalloc.host import netns, runtime_dir
from netalloc.host.namespace_lock import ATTACH, file_name
from netalloc.host.ofd_lock import NONE, WRITE, packed, set_lock

T = TypeVar("T")
_PATIENCE = 30.0  # seconds: 10,000 interfaces in one call take ten
_PAUSE = 0.0005
_ALL_OF_IT = packed(NONE, 0, 0)
_nothing = partial(int)


class AttachTurns:
    """The turns at some interfaces of the caller's network namespace, given up by close()."""

    def __init__(self, indexes: Iterable[int]) -> None:
        self._indexes = sorted(set(indexes))
        self._fd: int | None = None
        # A call in C: first in a `finally`, no interrupt comes between.
        self.give_up: Callable[[], object] = _nothing

    def wait(self) -> None:
        """Have all of them, when others are done. Raises InUseError after half a minute."""
        fd = self._opened()
        deadline = time.monotonic() + _PATIENCE
        for first, count in _runs(self._indexes):  # upward, so that no two wait for each other
            while not set_lock(fd, WRITE, first, count):
                if time.monotonic() > deadline:
                    raise InUseError(
                        f"another call has been attaching or detaching one of the interfaces "
                        f"{first} to {first + count - 1} for {_PATIENCE:g} s"
                    )
                time.sleep(_PAUSE)

    def take(self, indexes: Iterable[int] | None = None) -> set[int]:
        """Those that can be had without waiting, of these where they are named only now."""
        if indexes is not None:
            self._indexes = sorted(set(indexes))
        fd = self._opened()
        had: set[int] = set()
        for first, count in _runs(self._indexes):
            run = range(first, first + count)
            if set_lock(fd, WRITE, first, count):
                had.update(run)
            elif count > 1:
                had.update(index for index in run if set_lock(fd, WRITE, index))
        return had

    def held(self, work: Callable[[], T]) -> T:
        """What `work` returns, with all of them had meanwhile, when others are done."""
        try:
            self.wait()
            return work()
        finally:
            try:
                self.give_up()
            finally:
                self.close()

    def close(self) -> None:
        """Give them up, and the file back; a second time is no error."""
        self.give_up()
        self.give_up, fd, self._fd = _nothing, self._fd, None
        if fd is not None:
            runtime_dir.close_file(fd)

    def _opened(self) -> int:
        # Kept before anything is locked: what an interrupt drops is closed with it.
        if self._fd is None:
            name = file_name(*netns.current()) + ATTACH
            with runtime_dir.opened() as directory:
                self._fd = runtime_dir.open_file(directory, name)
            self.give_up = partial(fcntl.fcntl, self._fd, fcntl.F_OFD_SETLK, _ALL_OF_IT)
        return self._fd


def _runs(indexes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and count of each run of adjacent ones, of a sorted list."""
    first = count = 0
    for index in indexes:
        if count and index == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = index, 1
    if count:
        yield first, count
