"""One thread at a time, and no lock that an interrupt leaves behind.

CPython runs signal handlers, and with them whatever they raise, at few places: where a call
has come back, where a function begins or a generator goes on, and at a jump backward; Python
3.10 also where an exception reaches its `except`, `finally` or the end of its `with`, unless
a `try` comes first there. Not between two stores, nor between a comparison and the branch on
it, nor within a function in C, except where it waits or writes an int out in digits. (That is
ceval.c of 3.10 to 3.13, and what tests/interrupts.py counts by.) From this follow the rules
that the transactions of this package keep:

1.  What must come in pairs, as acquire and release, stands in one function: the first as the
    first call of the `try`, so that none can come between, the other as the first call of a
    `try` that is the first statement of the `finally`. A `with` is not enough: in 3.10 one
    interrupt during an error's way out leaves a C lock locked.
2.  What has to outlive an interrupt is done by one function in C, or by stores alone.
3.  A change is noted before it is made, so that undoing knows of it in any case, and undoing
    what was not done is no error.
4.  Undoing may be interrupted as well: whatever it leaves, the next change finishes first.
"""

from collections.abc import Callable
from threading import RLock, get_ident
from typing import Any, TypeVar

from netalloc.errors import StoreError

T = TypeVar("T")


def in_the_middle(operation: str, what: str = "a change of this store") -> StoreError:
    """What a call from a signal handler, a probe or a `__del__` gets within another."""
    return StoreError(f"{operation}: this thread is in the middle of {what}")


class Turn:
    """Lets one thread at a time in, and none a second time while it is in.

    `lock` may be taken from outside as well, as a fork does, to wait until none is in.
    """

    __slots__ = ("lock", "owner", "what")

    def __init__(self, what: str) -> None:
        self.lock = RLock()
        self.owner = 0  # the thread that is in
        self.what = what

    def run(self, operation: str, timeout: float, work: Callable[[], T]) -> T:
        """What `work` returns; StoreError when the turn does not come in time, or within itself."""
        lock, me = self.lock, get_ident()
        mine = False
        try:
            if not lock.acquire(True, timeout):
                raise self._late(operation, timeout)
            if self.owner:
                raise in_the_middle(operation, self.what)
            self.owner = me
            mine = True
            return work()
        finally:
            try:
                if mine:
                    self.owner = 0
                lock.release()
            except RuntimeError:
                pass  # it did not come in time

    @property
    def is_mine(self) -> bool:
        """Whether it is this thread that is in."""
        return self.owner == get_ident()

    def enter(self, operation: str, timeout: float) -> None:
        """The same in two steps, between which an interrupt may keep it: see Store.begin."""
        if not self.lock.acquire(True, timeout):
            raise self._late(operation, timeout)
        if self.owner:
            self.lock.release()
            raise in_the_middle(operation, self.what)
        self.owner = get_ident()

    def leave(self) -> None:
        """The second step."""
        self.owner = 0
        self.lock.release()

    def _late(self, operation: str, timeout: float) -> StoreError:
        return StoreError(
            f"{operation}: waited {timeout:g} s for {self.what} by another thread of this process"
        )


def holding(lock: Any, work: Callable[[], T]) -> T:
    """What `work` returns, with a lock held that no interrupt leaves behind."""
    try:
        lock.acquire()
        return work()
    finally:
        try:
            lock.release()
        except RuntimeError:
            pass  # the interrupt came while waiting
