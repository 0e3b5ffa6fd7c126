"""The bitmaps of a store file: a head row each, a row for every span, and a journal of the rest."""

from __future__ import annotations

from netalloc._alloc import Bitmap, Span, journals_text
from netalloc.errors import NetallocError, StoreError
from netalloc.store.sqlite.connection import REPAIR, Connection
from netalloc.store.sqlite.leaf_bitmap import LeafBitmap
from netalloc.store.sqlite.schema import checksum

_LONG = 2048  # characters of all journals: they share a page with the rest of the state row

HEAD = "SELECT * FROM bitmap WHERE name = ?"
HEADS = "SELECT * FROM bitmap"
SPAN = "SELECT * FROM span WHERE name = ? AND first <= ? ORDER BY first DESC LIMIT 1"
_NAMES = "SELECT name FROM bitmap WHERE name >= ? AND name < ?"
_WRITE_HEAD = "REPLACE INTO bitmap VALUES (?, ?, ?, ?, ?, ?)"
_WRITE_SPAN = "REPLACE INTO span VALUES (?, ?, ?, ?, ?, ?)"
_REMOVE_HEAD = "DELETE FROM bitmap WHERE name = ?"
_REMOVE_SPAN = "DELETE FROM span WHERE name = ? AND first = ?"
_REMOVE_SPANS = "DELETE FROM span WHERE name = ?"


class SqliteBitmaps:
    """The bitmaps of a file, kept in memory until another process writes rows of them.

    `rows_written` grows whenever rows are written here.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bitmaps: dict[str, LeafBitmap] = {}
        self._asked: dict[str, LeafBitmap] = {}  # of them, since the last change was written
        self._journals: dict[str, str] = {}  # by name: cursor and journal
        self._dropped: set[str] = set()
        self.rows_written = 0
        self._passed = 0  # changes that were written, and those of bitmaps that were dropped
        self._new: set[str] = set()
        self.expected: int | None = None  # how many there are in the file, where that is known
        self._whole: set[str] | None = None  # the names in the file, once all have been read

    def forget(self, journals: str = "") -> None:
        """Read everything anew from now on; `journals` is what the state row has of them."""
        self._bitmaps.clear()
        self._asked.clear()
        self._dropped.clear()
        self._new.clear()
        self._whole = None
        self._journals = _by_name(journals)

    def catch_up(self, journals: str) -> bool:
        """Follow what other processes have changed since; false where it has to be read anew.

        No row of a bitmap may have been written in between. O(what was added).
        """
        self._asked.clear()
        self._journals = found = _by_name(journals)
        bitmaps = self._bitmaps.items()
        return not self._dropped and all(one.catch_up(found.get(name, "")) for name, one in bitmaps)

    def begin(self) -> None:
        """What was read stands in the file as it is: nothing of it has been asked for yet."""
        self._asked.clear()

    def take_back(self) -> bool:
        """Forget those changed since begin() and not written; False where some were dropped."""
        if self._dropped:
            return False
        for name, bitmap in self._asked.items():
            if bitmap.changes != bitmap.written:
                del self._bitmaps[name]
                self._new.discard(name)
        self._asked.clear()
        return True

    @property
    def changes(self) -> int:
        """A number that grows with every change. O(bitmaps asked for in this one)."""
        found = self._passed
        for one in self._asked.values():
            found += one.changes - one.written
        return found

    def bitmap(self, name: str, size: int) -> LeafBitmap:
        """The bitmap of that name, made empty when there is none of that size."""
        found = self._asked.get(name)
        if found is not None:
            return found
        found = self._bitmaps.get(name)
        if found is None:
            found = self._read(name)
            if found is not None and found.size != size:
                self.drop(name)
                found = None
            if found is None:
                self._check_complete(name)
                self._new.add(name)
                found = LeafBitmap(size, lambda number: self._span(name, number), name=name)
            self._bitmaps[name] = found
        self._asked[name] = found
        return found

    def names(self, prefix: str) -> list[str]:
        """The names that begin with the prefix."""
        # A range of the primary key; U+10FFFF is behind every character there is.
        rows = self._connection.rows(_NAMES, (prefix, prefix + "\U0010ffff"))
        stored = {name for (name,) in rows} - self._dropped
        return sorted(stored | {name for name in self._bitmaps if name.startswith(prefix)})

    def known(self, name: str) -> bool:
        """Whether there is a bitmap of that name."""
        if name in self._bitmaps:
            return True
        if name in self._dropped:
            return False
        return bool(self._connection.rows(HEAD, (name,)))

    def drop(self, name: str) -> None:
        """Forget the bitmap of that name."""
        gone = self._bitmaps.pop(name, None)
        self._asked.pop(name, None)
        self._new.discard(name)
        self._passed += 1 + (gone.changes - gone.written if gone is not None else 0)
        self._dropped.add(name)
        self._journals.pop(name, None)

    def flush(self) -> int:
        """Write what has changed, or note it in `journals`; how many bitmaps there are more."""
        more = 0
        if self._dropped:
            more -= self._remove_dropped()
        for name, bitmap in self._asked.items():
            if bitmap.changes != bitmap.written:
                new = name in self._new
                entry = "" if new else bitmap.entry
                if entry:
                    self._journals[name] = entry
                else:
                    self._write(name, bitmap)
                    if new:
                        more += 1
                        self._new.discard(name)
                        if self._whole is not None:
                            self._whole.add(name)
                self._passed += bitmap.changes - bitmap.written
                bitmap.written = bitmap.changes
        return more

    @property
    def journals(self) -> str:
        """The journals of all bitmaps, as the state row has them; a long one is written."""
        text = journals_text(self._journals)
        if len(text) <= _LONG:
            return text
        for name in tuple(self._journals):
            bitmap = self._bitmaps.get(name)
            if bitmap is None:
                bitmap = self._read(name)
            if bitmap is None:
                raise StoreError(f"bitmap {name} is not found; {REPAIR}")
            self._write(name, bitmap)
        return ""

    def _write(self, name: str, bitmap: LeafBitmap) -> None:
        execute = self._connection.execute
        for first in bitmap.dirty:
            span = bitmap.span(first)
            if span is None:
                execute(_REMOVE_SPAN, (name, first))
            elif first >= 0:
                bits = None if span.bits is None else span.bits.to_bytes()
                row = (name, first, span.stop, span.following, bits)
                execute(_WRITE_SPAN, (*row, checksum("span", row)))
        head = (name, str(bitmap.size), str(bitmap.cursor), str(bitmap.count), bitmap.first)
        execute(_WRITE_HEAD, (*head, checksum("bitmap", head)))
        self.rows_written += 1
        bitmap.stored()
        self._journals.pop(name, None)

    def _remove_dropped(self) -> int:
        connection, before = self._connection, 0
        for name in self._dropped:
            connection.execute(_REMOVE_SPANS, (name,))
            before -= connection.changes
            connection.execute(_REMOVE_HEAD, (name,))
            before += connection.changes
        self.rows_written += 1
        if self._whole is not None:
            self._whole -= self._dropped
        self._dropped.clear()
        return before

    def _check_complete(self, name: str) -> None:
        """Raise StoreError where a bitmap that is not found ought to be there.

        Damage within SQLite's own pages can hide a row: an empty bitmap in its place would
        give everything again. So all are read, once until another process writes: 2 µs each.
        """
        if self.expected is None or name in self._dropped:
            return
        if self._whole is None:
            heads = self._connection.rows(HEADS)
            whole = {head[0] for head in heads if checksum("bitmap", head[:-1]) == head[-1]}
            if len(whole) == self.expected:
                self._whole = whole
        if self._whole is None or name in self._whole:
            raise StoreError(
                f"bitmap {name} is not found, or others are not of the {self.expected} that were "
                f"written; {REPAIR}"
            )

    def _read(self, name: str) -> LeafBitmap | None:
        if name in self._dropped:
            return None
        rows = self._connection.rows(HEAD, (name,))
        if not rows:
            return None
        row = rows[0]
        if checksum("bitmap", row[:-1]) != row[-1]:
            raise StoreError(f"bitmap {name} is damaged; {REPAIR}")
        bitmap = LeafBitmap(
            int(row[1]),
            lambda number: self._span(name, number),
            name=name,
            first=row[4],
            count=int(row[3]),
            cursor=int(row[2]),
        )
        journal = self._journals.get(name)
        if journal is not None:
            cursor, _, changes = journal.partition(" ")
            bitmap.follow(int(cursor), changes)
        return bitmap

    def _span(self, name: str, number: int) -> Span | None:
        rows = self._connection.rows(SPAN, (name, number))
        if not rows:
            return None
        row = rows[0]
        if checksum("span", row[:-1]) != row[-1]:
            raise StoreError(f"leaf {row[1]} of bitmap {name} is damaged; {REPAIR}")
        _, first, stop, following, bits, _ = row
        return Span(first, stop, following, None if bits is None else _decoded(bits, name, first))


def _by_name(journals: str) -> dict[str, str]:
    """What the state row has of each bitmap: cursor and journal."""
    pairs = (one.partition(" ")[::2] for one in journals.split(";"))
    return {name: rest for name, rest in pairs if name}


def _decoded(data: bytes, name: str, number: int) -> Bitmap:
    try:
        return Bitmap.from_bytes(data)
    except NetallocError as error:
        raise StoreError(f"bitmap {name}, leaf {number}: {error}; {REPAIR}") from error
