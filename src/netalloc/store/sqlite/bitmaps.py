"""The bitmaps of a store file: a head row each, and a row for every mixed leaf."""

from netalloc._alloc import Bitmap
from netalloc.errors import NetallocError, StoreError
from netalloc.store.sqlite.connection import REPAIR, Connection
from netalloc.store.sqlite.leaf_bitmap import LeafBitmap
from netalloc.store.sqlite.schema import checksum

# They show what a search in the index of names may miss; counting takes 6 ns a bitmap.
_COUNT = "SELECT count(*) FROM bitmap"
_ANY_LEAF = "SELECT 1 FROM leaf WHERE name = ? LIMIT 1"


class SqliteBitmaps:
    """The bitmaps of a file, kept in memory until another process writes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bitmaps: dict[str, LeafBitmap] = {}
        self._asked: dict[str, LeafBitmap] = {}  # of them, since the last change was written
        self._dropped: set[str] = set()
        self._passed = 0  # changes that were written, and those of bitmaps that were dropped
        self._new: set[str] = set()
        self.expected: int | None = None  # how many there are in the file, where that is known

    def forget(self) -> None:
        """Read everything anew from now on."""
        self._bitmaps.clear()
        self._asked.clear()
        self._dropped.clear()
        self._new.clear()

    def begin(self) -> None:
        """What was read stands in the file as it is: nothing of it has been asked for yet."""
        self._asked.clear()

    @property
    def changed(self) -> bool:
        """Whether there is something to write."""
        return bool(self._dropped) or any(bitmap.changed for bitmap in self._asked.values())

    @property
    def changes(self) -> int:
        """A number that grows with every change. O(bitmaps asked for in this one)."""
        return self._passed + sum([one.changes - one.written for one in self._asked.values()])

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
                found = LeafBitmap(size, lambda number: self._leaf(name, number))
            self._bitmaps[name] = found
        self._asked[name] = found
        return found

    def names(self, prefix: str) -> list[str]:
        """The names that begin with the prefix."""
        # A range of the primary key; U+10FFFF is behind every character there is.
        rows = self._connection.rows(
            "SELECT name FROM bitmap WHERE name >= ? AND name < ?", (prefix, prefix + "\U0010ffff")
        )
        stored = {name for (name,) in rows} - self._dropped
        return sorted(stored | {name for name in self._bitmaps if name.startswith(prefix)})

    def known(self, name: str) -> bool:
        """Whether there is a bitmap of that name."""
        if name in self._bitmaps:
            return True
        if name in self._dropped:
            return False
        return bool(self._connection.rows("SELECT 1 FROM bitmap WHERE name = ?", (name,)))

    def drop(self, name: str) -> None:
        """Forget the bitmap of that name."""
        gone = self._bitmaps.pop(name, None)
        self._asked.pop(name, None)
        self._new.discard(name)
        self._passed += 1 + (gone.changes - gone.written if gone is not None else 0)
        self._dropped.add(name)

    def flush(self) -> int:
        """Write what has changed; how many bitmaps the file has more than before."""
        execute = self._connection.execute
        more = 0
        row: tuple[str | int | bytes, ...]
        for name in self._dropped:
            execute("DELETE FROM leaf WHERE name = ?", (name,))
            before = self._connection.changes
            execute("DELETE FROM bitmap WHERE name = ?", (name,))
            more -= self._connection.changes - before
        self._dropped.clear()
        for name, bitmap in self._asked.items():
            if not bitmap.changed:
                continue
            for number in bitmap.dirty:
                if number in bitmap.mixed:
                    leaf = (name, number, bitmap.leaf(number).to_bytes())
                    row = (*leaf, checksum("leaf", leaf))
                    execute("REPLACE INTO leaf VALUES (?, ?, ?, ?)", row)
                else:
                    execute("DELETE FROM leaf WHERE name = ? AND number = ?", (name, number))
            bitmap.dirty.clear()
            head = (
                name,
                str(bitmap.size),
                str(bitmap.cursor),
                str(bitmap.count),
                bitmap.full.to_bytes(),
                bitmap.mixed.to_bytes(),
            )
            execute(
                "REPLACE INTO bitmap VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*head, checksum("bitmap", head)),
            )
            self._passed += bitmap.changes - bitmap.written
            bitmap.written = bitmap.changes
            more += name in self._new
            self._new.discard(name)
        self._asked.clear()
        return more

    def _check_complete(self, name: str) -> None:
        """Raise StoreError where a bitmap that is not found ought to be there.

        Damage within SQLite's own pages can hide a row: an empty bitmap in its place would
        give everything again. So other rows are asked too: two of them must be wrong.
        """
        if self.expected is None or name in self._dropped:
            return
        leaf, ((count,),) = self._connection.rows(_ANY_LEAF, (name,)), self._connection.rows(_COUNT)
        if leaf or count != self.expected:
            raise StoreError(
                f"bitmap {name} is not found; {count} of {self.expected} are there; {REPAIR}"
            )

    def _read(self, name: str) -> LeafBitmap | None:
        if name in self._dropped:
            return None
        rows = self._connection.rows("SELECT * FROM bitmap WHERE name = ?", (name,))
        if not rows:
            return None
        row = rows[0]
        if checksum("bitmap", row[:-1]) != row[-1]:
            raise StoreError(f"bitmap {name} is damaged; {REPAIR}")
        bitmap = LeafBitmap(int(row[1]), lambda number: self._leaf(name, number))
        bitmap.full = _decoded(row[4], name)
        bitmap.mixed = _decoded(row[5], name)
        bitmap.count = int(row[3])
        bitmap.cursor = int(row[2])
        bitmap.written = bitmap.changes
        return bitmap

    def _leaf(self, name: str, number: int) -> Bitmap:
        rows = self._connection.rows(
            "SELECT * FROM leaf WHERE name = ? AND number = ?", (name, number)
        )
        if not rows or checksum("leaf", rows[0][:-1]) != rows[0][-1]:
            what = "damaged" if rows else "missing"
            raise StoreError(f"leaf {number} of bitmap {name} is {what}; {REPAIR}")
        return _decoded(rows[0][2], f"{name}, leaf {number}")


def _decoded(data: bytes, name: str) -> Bitmap:
    try:
        return Bitmap.from_bytes(data)
    except NetallocError as error:
        raise StoreError(f"bitmap {name}: {error}; {REPAIR}") from error
