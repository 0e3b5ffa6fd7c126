"""What the lock file says: who writes and why, and what was under way when a writer died."""

from __future__ import annotations

import zlib

from netalloc._alloc import RecordMaker, checked_line
from netalloc.light import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# A record is at least that long, so that a shorter one covers the one before. Up to a page it
# is written in one step. A longer one may be cut off between two pages by a kill: then its
# checksum is wrong, and everything counts as dirty.
LENGTH = 512


class WriterRecord(NamedTuple):
    """What the lock file says. `pid` 0: no process is writing. `sequence`: changes committed.

    `dirty` are the networks whose kernel part was being changed, `store` tells one store
    from another. `known` is False for a record that cannot be read: then anything may have
    been under way.
    """

    pid: int = 0
    operation: str = ""
    boot: str = ""
    sequence: int = 0
    dirty: frozenset[int] = frozenset()
    store: int = 0
    known: bool = True

    def line(self) -> bytes:
        """The record as it is written."""
        dirty = ",".join(_spans(self.dirty)) if self.dirty else ""
        text = f"{self.pid}|{self.operation}|{self.boot}|{self.sequence}|{dirty}|{self.store}"
        return checked_line(text, LENGTH)

    @classmethod
    def parse(cls, data: bytes) -> WriterRecord | None:
        """The record in what was read; None for a new file."""
        if not data:
            return None
        text, _, crc = data.partition(b"\n")[0].rstrip().rpartition(b"|")
        if b"%08x" % zlib.crc32(text) != crc:
            return cls(known=False)
        pid, operation, boot, sequence, dirty, *more = text.decode().split("|")
        numbers = frozenset(_numbers(dirty)) if dirty else frozenset()
        # The first edition told no store from another.
        return cls(int(pid), operation, boot, int(sequence), numbers, int(more[0] if more else 0))


# Of a tuple of its fields, in a fifth of the time of the class's own constructor.
new_record = RecordMaker(WriterRecord).make


def is_record(data: bytes) -> bool:
    """Whether that may be the beginning of a lock file, and not another file."""
    fields = data.split(b"|", 4)
    return not data.strip(b"\0") or (
        len(fields) == 5 and fields[0].isdigit() and fields[3].isdigit()
    )


def _spans(numbers: Iterable[int]) -> list[str]:
    """Numbers as "1-3" and "7"."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in spans]


def _numbers(text: str) -> Iterable[int]:
    for span in filter(None, text.split(",")):
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1)
