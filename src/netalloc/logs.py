"""Warnings by the standard logging, which is loaded with the first of them.

Loading it takes a process that allocates one address and ends a sixth of its time.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Logger


class Log:
    """What a module says to the logger of its name.

    That is looked up once, where logging is there already when the module is loaded: an interrupt
    within getLogger leaves logging's own lock taken.
    """

    __slots__ = ("_logger", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger: Logger | None = None
        if "logging" in sys.modules:
            self._found()

    def warning(self, text: str, *values: object) -> None:
        """What went wrong, and was put up with."""
        (self._logger or self._found()).warning(text, *values, stacklevel=2)

    def error(self, text: str, *values: object) -> None:
        """What went wrong, and has still to be put right."""
        (self._logger or self._found()).error(text, *values, stacklevel=2)

    def info(self, text: str, *values: object) -> None:
        """What is worth knowing."""
        (self._logger or self._found()).info(text, *values, stacklevel=2)

    def exception(self, text: str, *values: object) -> None:
        """What went wrong, with the exception that is being handled."""
        (self._logger or self._found()).exception(text, *values, stacklevel=2)

    def _found(self) -> Logger:
        from logging import getLogger

        logger = self._logger = getLogger(self._name)
        return logger
