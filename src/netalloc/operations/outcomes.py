"""What an error is called outside of Python: its kind, the exit status, the HTTP status.

The numbers are documented and stay. 0 is success, 1 a refusal without a number of its own, or a
check that found something, and 2 bad usage, as everywhere.
"""

from __future__ import annotations

import sys

from netalloc import errors
from netalloc.light import NamedTuple

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

USAGE = 2


class Outcome(NamedTuple):
    """How one kind of error is told: a name for programs, and two numbers."""

    kind: str
    exit_status: int
    http_status: int


# By class, the more particular first.
OUTCOMES: dict[type[BaseException], Outcome] = {
    errors.OutOfRangeError: Outcome("out-of-range", 10, 400),
    errors.InvalidValueError: Outcome("invalid-value", USAGE, 400),
    errors.ExhaustedError: Outcome("exhausted", 3, 409),
    errors.InUseError: Outcome("in-use", 4, 409),
    errors.NotAllocatedError: Outcome("not-allocated", 5, 404),
    errors.StaleLeaseError: Outcome("stale-lease", 6, 409),
    errors.QuotaError: Outcome("quota", 7, 409),
    errors.CommandError: Outcome("command", 8, 500),
    errors.InterfaceError: Outcome("interface", 9, 409),
    errors.StoreError: Outcome("store", 11, 503),
    errors.ClosedError: Outcome("closed", 12, 503),
    PermissionError: Outcome("not-permitted", 13, 403),
    errors.NetallocError: Outcome("refused", 1, 500),
    OSError: Outcome("system", 1, 500),
}


def outcome(error: BaseException) -> Outcome:
    """How an error is told; that of its first part where several were raised together.

    >>> from netalloc.errors import ExhaustedError
    >>> outcome(ExhaustedError("all 5 addresses are taken"))
    Outcome(kind='exhausted', exit_status=3, http_status=409)
    """
    if isinstance(error, ExceptionGroup):
        return outcome(error.exceptions[0])
    for kind, found in OUTCOMES.items():
        if isinstance(error, kind):
            return found
    return Outcome("internal", 1, 500)


def message(error: BaseException) -> str:
    """What an error says, on one line; of several, each."""
    if isinstance(error, ExceptionGroup):
        return "; ".join([message(one) for one in error.exceptions])
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    text = " ".join(str(error).split())
    return text or type(error).__name__


def is_expected(error: BaseException) -> bool:
    """Whether it is told in a line; another one is a defect, whose traceback is wanted."""
    if isinstance(error, ExceptionGroup):
        return all(is_expected(one) for one in error.exceptions)
    return isinstance(error, errors.NetallocError | OSError)
