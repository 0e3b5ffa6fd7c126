"""A connection with the tables and bitmaps that were read over it."""

from pathlib import Path
from typing import Any

from netalloc.store.protocol import R
from netalloc.store.sqlite.bitmaps import SqliteBitmaps
from netalloc.store.sqlite.connection import Connection
from netalloc.store.sqlite.table import SqliteTable


class Session(Connection):
    """A connection with the tables and bitmaps that were read over it."""

    def __init__(self, path: Path, uri: str | None = None) -> None:
        super().__init__(path, uri)
        self.sequence = -1  # of the change that `bitmaps` is as of, while none is under way
        self.bitmaps = SqliteBitmaps(self)
        self._tables: dict[type[Any], SqliteTable[Any]] = {}

    def table(self, kind: type[R]) -> SqliteTable[R]:
        """The records of a kind."""
        found = self._tables.get(kind)
        if found is None:
            found = self._tables[kind] = SqliteTable(kind, self)
        return found

    @property
    def version(self) -> int:
        """A number that grows with every change that is made here."""
        return self.changes + self.bitmaps.changes

    def at(self, sequence: int) -> None:
        """Keep what was read before only if there was no change since."""
        if sequence != self.sequence:
            self.bitmaps.forget()
            self.sequence = sequence
        self.bitmaps.begin()

    def rollback(self) -> None:
        """Undo what is not committed; nothing to undo is no error."""
        if self.in_transaction:
            self.sequence = -1  # the bitmaps in memory may be ahead of the file
            super().rollback()

    def end_unchanged(self) -> None:
        """End a transaction in which nothing was changed."""
        super().rollback()
