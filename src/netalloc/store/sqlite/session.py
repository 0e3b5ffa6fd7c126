"""A connection with what was read over it: the state row, tables and bitmaps."""

from __future__ import annotations

import zlib

from netalloc._alloc import counters_text, row_checksum
from netalloc.errors import StoreError
from netalloc.store.sqlite.bitmaps import SqliteBitmaps
from netalloc.store.sqlite.connection import REPAIR, Connection
from netalloc.store.sqlite.schema import checksum, counters_of
from netalloc.store.sqlite.table import SqliteTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from netalloc.store.protocol import R
    from netalloc.store.sqlite.place import StrPath

STAMP = "SELECT sequence, crc FROM state"
STATE = "SELECT * FROM state"
_WRITE = "UPDATE state SET sequence = ?, boot = ?, counters = ?, journals = ?, crc = ? WHERE id = 0"
_SEED = zlib.crc32(b"state")
_UNKNOWN = (-1, -1)
_WRITTEN = "written"  # the counter of the changes that wrote rows of bitmaps


class _Tables(dict):  # type: ignore[type-arg]  # its types are for the checker alone
    """The tables over a session, by kind; each is made when it is first asked for."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __missing__(self, kind: type[R]) -> SqliteTable[R]:
        session = self._session
        made = self[kind] = SqliteTable(kind, session, session.counters)
        return made


class Session(Connection):
    """A connection with what was read over it.

    All of it stays while no other process writes, which the state row's sequence number and
    checksum tell. Where one has written, the bitmaps follow their journals, unless rows of
    bitmaps were written as well: then they are read anew. `counters` are as they are within
    the change that is under way.
    """

    def __init__(self, path: StrPath, uri: str | None = None) -> None:
        super().__init__(path, uri)
        self.boot = ""
        self.counters: dict[str, int] = {}
        self.kept: dict[str, Any] = {}  # see Transaction
        self.bitmaps = SqliteBitmaps(self)
        self._stamp = _UNKNOWN  # of the state row that all this is as of; none during a change
        self._seen = _UNKNOWN  # the same, as it was when the change or the view began
        self._kept = _UNKNOWN  # the same, of the bitmaps alone
        # The records of a kind, as a function in C where it was asked for before.
        self._tables = _Tables(self)
        self.table: Callable[[type[R]], SqliteTable[R]] = self._tables.__getitem__

    @property
    def version(self) -> int:
        """A number that grows with every change that is made here."""
        return int(self._raw.total_changes) + self.bitmaps.changes

    def begin(self) -> int:
        """Keep what was read before only if there was no change since; the sequence number.

        Until settle() or write() what is read counts for nothing afterwards: whatever raises
        in between, an interrupt too, may leave it half done.
        """
        known, self._stamp = self._stamp, _UNKNOWN
        kept, self._kept = self._kept, _UNKNOWN
        stamps = self.rows(STAMP)
        if len(stamps) != 1 or stamps[0] != known:
            self._read_state(kept if known is _UNKNOWN else known)
        else:
            self.bitmaps.begin()
        self._seen = stamps[0]
        return int(self._seen[0])

    def end_unchanged(self) -> None:
        """End a transaction in which nothing was changed."""
        super().rollback()
        self.settle()

    def settle(self) -> None:
        """What was read is as it is in the file: nothing was changed."""
        self._stamp = self._seen

    def refused(self, changed: bool) -> None:
        """What was read is as it is in the file, but for what was changed: that was undone."""
        if not changed:
            self.settle()
        elif self.bitmaps.take_back():
            self._kept = self._seen

    def _read_state(self, kept: tuple[int, int]) -> None:
        """Read the state row. The bitmaps in memory are as they were at the stamp `kept`."""
        rows = self.rows(STATE)
        if len(rows) != 1 or checksum("state", rows[0][:-1]) != rows[0][-1]:
            raise StoreError(f"the state row is damaged; {REPAIR}")
        _, sequence, self.boot, counters, journals, crc = rows[0]
        for table in self._tables.values():
            table.forget()
        written = self.counters.get(_WRITTEN, 0)
        self.counters.clear()
        self.counters.update(counters_of(counters))
        goes_on = sequence > kept[0] and kept is not _UNKNOWN
        same_rows = self.counters.get(_WRITTEN, 0) == written
        if (sequence, crc) == kept:
            self.bitmaps.begin()
        elif not (goes_on and same_rows and self.bitmaps.catch_up(journals)):
            self.bitmaps.forget(journals)
        self.bitmaps.expected = self.counters.get("bitmaps", 0)

    def write(self, sequence: int, boot: str, done: list[Any]) -> None:
        """Write all that has changed, and commit: then there is something in `done`."""
        counters, bitmaps = self.counters, self.bitmaps
        written = bitmaps.rows_written
        counters["bitmaps"] = bitmaps.expected = counters.get("bitmaps", 0) + bitmaps.flush()
        journals = bitmaps.journals
        if bitmaps.rows_written != written:
            counters[_WRITTEN] = counters.get(_WRITTEN, 0) + 1
        state = (0, sequence, boot, counters_text(counters), journals)
        crc = row_checksum(state, _SEED)
        self.execute(_WRITE, (*state[1:], crc))
        self.commit(done)
        self.boot = boot
        self._stamp = sequence, crc

    def rollback(self) -> None:
        """Undo what is not committed; nothing to undo is no error."""
        if self.in_transaction:
            self._stamp = _UNKNOWN  # what is in memory may be ahead of the file
            super().rollback()
