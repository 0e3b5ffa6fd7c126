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
from threading import RLock
from typing import TypeVar

from netalloc.errors import StoreError

T = TypeVar("T")


def in_the_middle(operation: str, what: str = "a change of this store") -> StoreError:
    """What a call from a signal handler, a probe or a `__del__` gets within another."""
    return StoreError(f"{operation}: this thread is in the middle of {what}")


class Turn:
    """Lets one thread at a time in, and none a second time while it is in.

    `lock` may be taken from outside as well, as a fork does, to wait until nobody is in.
    """

    __slots__ = ("lock", "taken", "timeout", "what")

    def __init__(self, what: str, timeout: float) -> None:
        self.lock = RLock()
        self.taken = False
        self.timeout = timeout
        self.what = what

    def run(self, operation: str, work: Callable[[], T]) -> T:
        """What `work` returns; StoreError when the turn does not come in time, or within itself."""
        lock = self.lock
        mine = False
        try:
            if not lock.acquire(True, self.timeout):
                raise StoreError(
                    f"{operation}: waited {self.timeout:g} s for another thread of this process"
                )
            if self.taken:
                raise in_the_middle(operation, self.what)
            self.taken = mine = True
            return work()
        finally:
            try:
                if mine:
                    self.taken = False
                lock.release()
            except RuntimeError:
                pass  # it did not come in time

    def __enter__(self) -> None:
        """For a change made step by step: see Store.begin."""
        if not self.lock.acquire(True, self.timeout):
            raise StoreError(f"waited {self.timeout:g} s for another thread of this process")
        if self.taken:
            self.lock.release()
            raise in_the_middle("begin", self.what)
        self.taken = True

    def __exit__(self, *_: object) -> None:
        self.taken = False
        self.lock.release()
