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


class Teardown:
    """What is to be given back, in reverse order, by steps that may each be taken twice.

    Closing goes on past a step that fails or is interrupted. Such a step, and what an interrupt
    between two of them has left, is taken by the next close.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], Any]] = []

    def push(self, step: Callable[[], Any]) -> None:
        """A step, to be taken before those that are there."""
        self._steps.append(step)

    def forget(self) -> None:
        """There is nothing to give back after all."""
        self._steps.clear()

    def close(self) -> None:
        """Take the steps. Raises what failed, several failures as an ExceptionGroup."""
        failures: list[Exception] = []
        interrupt: BaseException | None = None
        for step in tuple(reversed(self._steps)):
            error = _outcome(step)
            if error is None:
                self._steps.remove(step)
            elif isinstance(error, Exception):
                failures.append(error)
            else:
                interrupt = error
        if interrupt is not None:
            raise interrupt
        raise_all("not all was given back", failures)


def _outcome(step: Callable[[], Any]) -> BaseException | None:
    try:
        step()
    except BaseException as error:
        return error
    return None


def raise_all(message: str, failures: Sequence[Exception]) -> None:
    """Raise the only failure, or all of them as an ExceptionGroup; nothing where there is none."""
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise ExceptionGroup(message, failures)
