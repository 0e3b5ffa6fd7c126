"""What is closed at the end of its `with` block."""

from types import TracebackType
from typing import Protocol, TypeVar


class _Closable(Protocol):
    def close(self) -> None: ...


S = TypeVar("S", bound=_Closable)


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
