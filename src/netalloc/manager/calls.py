"""The calls in progress of one manager: closing waits for them, and lets no more in."""

from __future__ import annotations

from _thread import allocate_lock as Lock
from _thread import get_ident

from netalloc.errors import ClosedError
from netalloc.store.turn import in_the_middle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, TypeVar

    T = TypeVar("T")

_POLL = 0.05  # seconds: only where an interrupt kept the last call from saying that it is over


class Calls:
    """Who is in, by call: any object for a key, and the thread's number. 0.2 microseconds a call.

    A call puts itself in, looks whether the gate is closed, and takes itself out, by steps that
    no interrupt divides (see locks.py); closing does it the other way round. So one of
    the two always sees the other.
    """

    __slots__ = ("_left", "closed", "inside", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self.inside: dict[Any, int] = {}
        self.closed = False
        self._left = Lock()

    def run(self, call: Any, work: Callable[[], T]) -> T:
        """Run a call that is not made twice at a time. Raises ClosedError."""
        inside = self.inside
        try:
            inside[call] = get_ident()
            if self.closed:
                self.refuse()
            return work()
        finally:
            try:
                inside.pop(call, None)
            finally:
                if self.closed:
                    self.report()

    def refuse(self) -> NoReturn:
        """Raise what a call gets that comes too late."""
        raise ClosedError(f"{self.what} is closed")

    def report(self) -> None:
        """Tell the one that closes that a call is over."""
        try:
            self._left.release()
        except RuntimeError:
            pass  # it knows already

    def after_fork(self) -> None:
        """In a forked child no other thread is in."""
        for call, thread in self.inside.copy().items():
            if thread != get_ident():
                self.inside.pop(call, None)

    def close(self) -> None:
        """Let no call in from now on, and wait for those that are in; may be called again.

        Raises StoreError within a call of the same thread, which could never end.
        """
        if get_ident() in self.inside.copy().values():
            raise in_the_middle("close", "a call of this manager")
        self.closed = True
        while self.inside:
            self._left.acquire(True, _POLL)
