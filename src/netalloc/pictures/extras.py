"""What drawing needs besides: NumPy and Pillow, which come with an extra of this package."""

from importlib import import_module
from typing import Any

from netalloc.errors import InvalidValueError


def load(name: str, what: str) -> Any:
    """The module of that name. Raises InvalidValueError that says how to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise InvalidValueError(
            f"pictures need {what}, which is not there ({error}): pip install 'netalloc[plot]'"
        ) from error
