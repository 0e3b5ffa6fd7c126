"""Undoing what was done, and going on past what fails: every failure is reported, together."""

from __future__ import annotations

import sys

from netalloc.logs import Log

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

log = Log(__name__)


def attempt(step: Callable[[], Any]) -> Exception | None:
    """What went wrong, for those who go on and report all of it at the end."""
    try:
        step()
    except Exception as failure:
        return failure
    return None


def undo(steps: Sequence[Callable[[], Any]], error: BaseException) -> bool:
    """Take every step; whether all succeeded. Failures are raised together with `error`."""
    failures = [failure for step in steps if (failure := attempt(step))]
    if failures and isinstance(error, Exception):
        raise ExceptionGroup("failed, and so did undoing it", [error, *failures]) from None
    if failures:
        log.error("undoing what %r had cut off failed: %s", error, failures)
    return not failures
