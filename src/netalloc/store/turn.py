"""What a call gets that comes in the middle of another one of its own thread."""

from __future__ import annotations

from netalloc.errors import StoreError


def in_the_middle(operation: str, what: str = "a change of this store") -> StoreError:
    """What a call from a signal handler, a probe or a `__del__` gets within another."""
    return StoreError(f"{operation}: this thread is in the middle of {what}")
