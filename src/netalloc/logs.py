"""Warnings by the standard logging, which is loaded with the first of them.

Loading it takes a process that allocates one address and ends a sixth of its time.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Handler, Logger


class Log:
    """What a module says to the logger of its name.

    That is looked up once, where logging is there already when the module is loaded: an interrupt
    within getLogger leaves logging's own lock taken. One within a handler leaves that handler's,
    which its `handle` takes before its `try`: so what an interrupted message has left taken is
    given back here, or each later message of another thread, and what it holds meanwhile, would
    wait for ever.
    """

    __slots__ = ("_logger", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger: Logger | None = None
        if "logging" in sys.modules:
            self._found()

    def warning(self, text: str, *values: object) -> None:
        """What went wrong, and was put up with."""
        self._say("warning", text, values)

    def error(self, text: str, *values: object) -> None:
        """What went wrong, and has still to be put right."""
        self._say("error", text, values)

    def info(self, text: str, *values: object) -> None:
        """What is worth knowing."""
        self._say("info", text, values)

    def exception(self, text: str, *values: object) -> None:
        """What went wrong, with the exception that is being handled."""
        self._say("exception", text, values)

    def _say(self, how: str, text: str, values: tuple[object, ...]) -> None:
        logger = self._logger or self._found()
        try:
            getattr(logger, how)(text, *values, stacklevel=3)
        except BaseException:
            try:
                _give_back(logger)
            finally:
                _give_back(logger)  # another interrupt may have come within the first
            raise

    def _found(self) -> Logger:
        from logging import getLogger

        logger = self._logger = getLogger(self._name)
        return logger


def _give_back(logger: Logger | None) -> None:
    """Release the locks of the handlers of a logger that this thread has."""
    while logger is not None:
        for handler in logger.handlers:
            _let_go(handler)
        logger = logger.parent


def _let_go(handler: Handler) -> None:
    try:
        while handler.lock is not None:
            handler.release()
    except RuntimeError:
        pass  # this thread has it no more
