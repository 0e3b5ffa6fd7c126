"""What one operation changes: records, and the kernel's part."""

from __future__ import annotations

from netalloc.model import PortMapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from netalloc.store.protocol import Transaction


class Change:
    """What one operation does: records in `tx`, the kernel's part in `add` and `remove`.

    `undo` is called when the change is not made after all, `after` when it is.
    """

    __slots__ = ("add", "after", "remove", "tx", "undo")

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx
        self.add: list[PortMapping] = []
        self.remove: list[PortMapping] = []
        self.undo: list[Callable[[], Any]] = []
        self.after: list[Callable[[], Any]] = []
