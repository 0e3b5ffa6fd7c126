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
from typing import Any, TypeVar

from netalloc.errors import StoreError

T = TypeVar("T")


def in_the_middle(operation: str, what: str = "a change of this store") -> StoreError:
    """What a call from a signal handler, a probe or a `__del__` gets within another."""
    return StoreError(f"{operation}: this thread is in the middle of {what}")


def holding(lock: Any, timeout: float, late: str, work: Callable[[], T]) -> T:
    """What `work` returns, with a lock held meanwhile; StoreError(late) where it does not come.

    A timeout of -1 is none.
    """
    try:
        if not lock.acquire(True, timeout):
            raise StoreError(late)
        return work()
    finally:
        try:
            lock.release()
        except RuntimeError:
            pass  # it did not come
