"""Warnings by the standard logging, which is loaded with the first of them.

Loading it takes a process that allocates one address and ends a sixth of its time.
"""

from __future__ import annotations


class Log:
    """What a module says to the logger of its name."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def warning(self, text: str, *values: object) -> None:
        """What went wrong, and was put up with."""
        import logging

        logging.getLogger(self._name).warning(text, *values, stacklevel=2)

    def error(self, text: str, *values: object) -> None:
        """What went wrong, and has still to be put right."""
        import logging

        logging.getLogger(self._name).error(text, *values, stacklevel=2)

    def info(self, text: str, *values: object) -> None:
        """What is worth knowing."""
        import logging

        logging.getLogger(self._name).info(text, *values, stacklevel=2)

    def exception(self, text: str, *values: object) -> None:
        """What went wrong, with the exception that is being handled."""
        import logging

        logging.getLogger(self._name).exception(text, *values, stacklevel=2)
