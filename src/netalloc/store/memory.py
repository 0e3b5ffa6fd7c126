"""A store for one process that ends with it: dicts, and a journal of how to undo."""

from collections.abc import Callable, Iterable
from itertools import islice
from operator import itemgetter
from threading import RLock
from typing import Any, Generic

from netalloc._alloc import Bitmap
from netalloc.errors import StoreError
from netalloc.store.fork import guard
from netalloc.store.protocol import R, Table
from netalloc.store.records import TABLES, Value

Undo = tuple[Callable[..., Any], Any]


class MemoryStore:
    """PortHolds everything in memory; a write costs a microsecond or two more than the change."""

    persistent = False

    def __init__(self) -> None:
        self._turn = RLock()
        self._transaction = MemoryTransaction(self._turn)
        guard(self)

    def fork_locks(self) -> tuple[RLock]:
        """A child gets a state between two changes."""
        return (self._turn,)

    def after_fork(self) -> None:
        """Nothing: the child has a copy of its own."""

    def begin(self, operation: str, *, durable: bool = False) -> "MemoryTransaction":
        """Start a change as soon as no other thread is in the middle of one."""
        self._turn.acquire()
        return self._transaction

    def read(self) -> "MemoryTransaction":
        """The same as begin: in memory a reader's turn is over at once."""
        return self.begin("read")

    def needs_recovery(self, network: int) -> bool:
        """Never: who dies in the middle takes the store with him."""
        return False

    def check(self) -> list[str]:
        """Nothing: there is no file that could be damaged."""
        return []

    def close(self) -> None:
        """Nothing to give back."""


class MemoryTransaction:
    """The state itself, and what undoes the changes since the turn began."""

    dirty: frozenset[int] = frozenset()

    def __init__(self, turn: RLock) -> None:
        self._turn: Any = turn
        self._journal: list[Undo] = []
        self._bitmaps: dict[str, JournaledBitmap] = {}
        self._counters: dict[str, int] = {}
        self._tables: dict[type[Any], MemoryTable[Any]] = {
            kind: MemoryTable(kind, self._journal) for kind in TABLES
        }

    @property
    def version(self) -> int:
        return len(self._journal)

    def bitmap(self, name: str, size: int) -> "JournaledBitmap":
        found = self._bitmaps.get(name)
        if found is None:
            found = self._bitmaps[name] = JournaledBitmap(size, self._journal)
            self._journal.append((self._bitmaps.pop, name))
        return found

    def names(self, prefix: str) -> list[str]:
        return [name for name in self._bitmaps if name.startswith(prefix)]

    def drop(self, name: str) -> None:
        gone = self._bitmaps.pop(name)
        self._journal.append((self._restore_bitmap, (name, gone)))

    def _restore_bitmap(self, item: "tuple[str, JournaledBitmap]") -> None:
        self._bitmaps[item[0]] = item[1]

    def table(self, kind: type[R]) -> Table[R]:
        return self._tables[kind]

    def next(self, counter: str, n: int = 1) -> int:
        # Not undone: a number that is left out harms nobody.
        first = self._counters.get(counter, 1)
        self._counters[counter] = first + n
        return first

    def last(self, counter: str) -> int:
        return self._counters.get(counter, 1) - 1

    def mark_dirty(self, network: int) -> None:
        pass  # this process does not outlive itself

    def mark_clean(self, network: int) -> None:
        pass

    def commit(self) -> None:
        self._journal.clear()
        self._turn.release()

    def rollback(self) -> None:
        journal = self._journal
        try:
            while journal:
                # Undoing writes to the journal as well: that part is cut off again.
                length = len(journal) - 1
                undo, argument = journal[length]
                undo(argument)
                del journal[length:]
        finally:
            self._turn.release()


class JournaledBitmap:
    """A Bitmap that notes in the journal how each change is undone."""

    __slots__ = ("_bitmap", "_journal", "next_free", "next_set", "size")

    def __init__(self, size: int, journal: list[Undo]) -> None:
        self._bitmap = Bitmap(size)
        self._journal = journal
        self.size = size
        self.next_free = self._bitmap.next_free
        self.next_set = self._bitmap.next_set

    @property
    def cursor(self) -> int:
        return self._bitmap.cursor

    @cursor.setter
    def cursor(self, ordinal: int) -> None:
        self._journal.append((self._set_cursor, self._bitmap.cursor))
        self._bitmap.cursor = ordinal

    def _set_cursor(self, ordinal: int) -> None:
        self._bitmap.cursor = ordinal

    def acquire(self) -> int:
        cursor = self._bitmap.cursor
        ordinal = self._bitmap.acquire()
        self._journal += ((self._set_cursor, cursor), (self._bitmap.release, ordinal))
        return ordinal

    def acquire_ranges(self, n: int) -> list[tuple[int, int]]:
        cursor = self._bitmap.cursor
        runs = self._bitmap.acquire_ranges(n)
        self._journal += ((self._set_cursor, cursor), (self._release_runs, runs))
        return runs

    def _release_runs(self, runs: list[tuple[int, int]]) -> None:
        for start, stop in runs:
            for ordinal in range(start, stop):
                self._bitmap.release(ordinal)

    def reserve(self, ordinal: int) -> None:
        self._bitmap.reserve(ordinal)
        self._journal.append((self._bitmap.release, ordinal))

    def release(self, ordinal: int) -> None:
        cursor = self._bitmap.cursor
        self._bitmap.release(ordinal)
        self._journal += ((self._set_cursor, cursor), (self._bitmap.reserve, ordinal))

    def __contains__(self, ordinal: int) -> bool:
        return ordinal in self._bitmap

    def __len__(self) -> int:
        return len(self._bitmap)


class MemoryTable(Generic[R]):
    """Records by key in one dict, and for every index the first fields of it in one more."""

    def __init__(self, kind: type[R], journal: list[Undo]) -> None:
        self._journal = journal
        self._disordered = False
        shape = TABLES[kind]
        timed = [index[-1] for index in shape.indexes if index[-1].endswith("_ns")]
        order = tuple(timed) or shape.key
        self._order_of: Callable[[R], Any] = itemgetter(*map(kind._fields.index, order))
        self._records: dict[Any, R] = {}
        # itemgetter makes the keys in C: a tuple of several fields, or one field bare.
        self._key_of: Callable[[R], Any] = itemgetter(*map(kind._fields.index, shape.key))
        self._by: dict[tuple[str, ...], dict[Any, dict[Any, R]]] = {}
        self._indexes: list[tuple[Callable[[R], Any], dict[Any, dict[Any, R]]]] = []
        for index in (shape.key[:2] if len(shape.key) > 2 else shape.key[:1], *shape.indexes):
            for width in range(1, len(index) + 1):
                names = index[:width]
                if names not in self._by and not names[-1].endswith("_ns"):
                    self._by[names] = {}
                    value_of = itemgetter(*map(kind._fields.index, names))
                    self._indexes.append((value_of, self._by[names]))

    def get(self, *key: Value) -> R | None:
        return self._records.get(key if len(key) > 1 else key[0])

    def where(self, *fields: str, equal: tuple[Value, ...], limit: int = -1) -> list[R]:
        if self._disordered and limit >= 0:
            self._put_in_order()
        value = equal if len(equal) > 1 else equal[0]
        found = self._by[fields].get(value, {}).values()
        return list(found) if limit < 0 else list(islice(found, limit))

    def oldest(self, limit: int) -> list[R]:
        if self._disordered:
            self._put_in_order()
        return list(islice(self._records.values(), limit))

    def all(self) -> list[R]:
        return list(self._records.values())

    def add(self, records: Iterable[R]) -> None:
        for record in records:
            key = self._key_of(record)
            if key in self._records:
                raise StoreError(f"there is a {type(record).__name__} {key} already")
            self._add(record)

    def _add(self, record: R) -> None:
        key = self._key_of(record)
        self._records[key] = record
        for value_of, index in self._indexes:
            value = value_of(record)
            same = index.get(value)
            if same is None:
                index[value] = {key: record}
            else:
                same[key] = record
        self._journal.append((self._remove, record))

    def remove(self, records: Iterable[R]) -> None:
        for record in records:
            if self._records.get(self._key_of(record)) != record:
                raise StoreError(f"there is no {record}")
            self._remove(record)

    def _remove(self, record: R) -> None:
        key = self._key_of(record)
        del self._records[key]
        for value_of, index in self._indexes:
            value = value_of(record)
            same = index[value]
            del same[key]
            if not same:
                del index[value]
        self._journal.append((self._restore, record))

    def _restore(self, record: R) -> None:
        self._add(record)
        self._disordered = True

    def _put_in_order(self) -> None:
        # Records are put in as time goes on and dicts keep that order, but for those that
        # came back when a change was undone.
        records = sorted(self._records.values(), key=self._order_of)
        length = len(self._journal)
        for record in records:
            self._remove(record)
            self._add(record)
        del self._journal[length:]
        self._disordered = False
