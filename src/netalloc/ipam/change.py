"""What one operation changes: records, and the kernel's part."""

from netalloc._alloc import ChangeState


class Change(ChangeState):
    """What one operation does: records in `tx`, the kernel's part in `add` and `remove`.

    `undo` is called when the change is not made after all, `after` when it is.
    """

    __slots__ = ()
