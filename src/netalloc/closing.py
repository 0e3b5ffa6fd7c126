"""What is closed at the end of its `with` block."""

from __future__ import annotations

from netalloc.light import Protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import TypeVar

    S = TypeVar("S", bound="_Closable")


class _Closable(Protocol):
    def close(self) -> None: ...


class Closing:
    """A context manager over the `close` of what derives from it."""

    __slots__ = ()

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self: _Closable,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
