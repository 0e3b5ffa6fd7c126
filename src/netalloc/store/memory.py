"""A store for one process that ends with it: dicts, and a journal of how they were.

The journal is physical, and written first: before a record, a bit or a bitmap changes, what
was there is noted, so that undoing asks nothing of how far the change came. It brings each
noted thing back to what it was, from the last to the first, and takes a note away only when
that is done. So it may be cut off anywhere and begun again: the next change does that.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from operator import itemgetter
from threading import RLock
from typing import Any, Generic, TypeVar

from netalloc._alloc import Bitmap
from netalloc.errors import ClosedError, NetallocError, StoreError
from netalloc.store import fork
from netalloc.store.protocol import R, Table
from netalloc.store.records import TABLES, Value
from netalloc.store.turn import in_the_middle

T = TypeVar("T")
Note = tuple[Any, ...]  # what has the method `restore`, and how it was


class MemoryStore:
    """Everything in memory; a write costs a microsecond or two more than the change.

    It belongs to the process that made it: in a forked child every call is a ClosedError, for
    parent and child would give the same addresses.
    """

    persistent = False

    def __init__(self) -> None:
        self._turn = RLock()
        self._taken = False
        self._closed = False
        self.process = fork.process
        self._transaction = MemoryTransaction(self)
        fork.guard(self)

    def fork_locks(self) -> tuple[Any]:
        """A child gets a state between two changes."""
        return (self._turn,)

    def after_fork(self) -> None:
        """Nothing: the process's number says it."""

    def run(
        self, operation: str, work: "Callable[[MemoryTransaction], T]", *, durable: bool = False
    ) -> T:
        """Make a change as soon as no other thread is in the middle of one; see Store."""
        turn, tx = self._turn, self._transaction
        mine = False
        try:
            turn.acquire()
            if self._taken or self._closed or self.process != fork.process:
                raise self._refusal(operation)
            self._taken = mine = True
            tx.begin()
            result = work(tx)
            tx.commit()
            return result
        except BaseException:
            if mine:
                tx.rollback()
            raise
        finally:
            try:
                if mine:
                    self._taken = False
                turn.release()
            except RuntimeError:
                pass  # the interrupt came while waiting

    def view(self, work: "Callable[[MemoryTransaction], T]") -> T:
        """A turn as any other: in memory it is over at once."""

        def viewed(tx: MemoryTransaction) -> T:
            result = work(tx)
            tx.rollback()
            return result

        return self.run("view", viewed)

    def begin(self, operation: str, *, durable: bool = False) -> "MemoryTransaction":
        """A change step by step; see Store."""
        self._turn.acquire()
        if self._taken or self._closed or self.process != fork.process:
            self._turn.release()
            raise self._refusal(operation)
        self._taken = True
        self._transaction.begin()
        self._transaction.ends_turn = True
        return self._transaction

    def read(self) -> "MemoryTransaction":
        """A view step by step."""
        return self.begin("read")

    def end_turn(self) -> None:
        """What begin() took is given back."""
        self._taken = self._transaction.ends_turn = False
        self._turn.release()

    def refuse_reentry(self, operation: str) -> None:
        """run() finds that out by itself."""

    def needs_recovery(self, network: int) -> bool:
        """Whether a change of the kernel was cut off by an interrupt."""
        return self._transaction.is_dirty(network)

    def check(self) -> list[str]:
        """Nothing: there is no file that could be damaged."""
        return []

    def close(self) -> None:
        """Refuse every later call; those under way end first."""
        if not self._closed and self.process == fork.process:
            self.run("close", lambda tx: setattr(self, "_closed", True))

    def _refusal(self, operation: str) -> NetallocError:
        if self.process != fork.process:
            return ClosedError(
                f"{operation}: this manager in memory belongs to process {self.process}, and a "
                "fork has no part in it: open another one, or give both a store in a file"
            )
        if self._closed:
            return ClosedError(f"{operation}: the store in memory is closed")
        return in_the_middle(operation)


class MemoryTransaction:
    """The state itself, and how it was when the turn began."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.ends_turn = False
        self.dirty: frozenset[int] = frozenset()
        self._touched: frozenset[int] = frozenset()
        self._committing = False
        self._journal: list[Note] = []
        self._bitmaps: dict[str, JournaledBitmap] = {}
        self._counters: dict[str, int] = {}
        self._tables: dict[type[Any], MemoryTable[Any]] = {
            kind: MemoryTable(kind, self._journal) for kind in TABLES
        }

    @property
    def version(self) -> int:
        return len(self._journal)

    @property
    def committed(self) -> bool:
        return self._committing and not self._journal

    def begin(self) -> None:
        """Finish what an interrupt left of the last change."""
        if self._journal or self._touched:
            self.rollback()
        self._committing = False

    def is_dirty(self, network: int) -> bool:
        """Whether the kernel's part of a network has to be looked at before the next change."""
        return network in self.dirty or network in self._touched

    def bitmap(self, name: str, size: int) -> "JournaledBitmap":
        found = self._bitmaps.get(name)
        if found is None:
            found = JournaledBitmap(size, self._journal)
            self._journal.append((self, name, None))
            self._bitmaps[name] = found
        return found

    def names(self, prefix: str) -> list[str]:
        return [name for name in self._bitmaps if name.startswith(prefix)]

    def drop(self, name: str) -> None:
        self._journal.append((self, name, self._bitmaps[name]))
        del self._bitmaps[name]

    def restore(self, note: Note) -> None:
        """Bring back, or take away, a bitmap."""
        _, name, bitmap = note
        if bitmap is None:
            self._bitmaps.pop(name, None)
        else:
            self._bitmaps[name] = bitmap

    def table(self, kind: type[R]) -> Table[R]:
        return self._tables[kind]

    def next(self, counter: str, n: int = 1) -> int:
        # Not undone: a number that is left out harms nobody, one that was seen and is given
        # again does.
        first = self._counters.get(counter, 1)
        self._counters[counter] = first + n
        return first

    def last(self, counter: str) -> int:
        return self._counters.get(counter, 1) - 1

    def mark_dirty(self, network: int) -> None:
        if self._store.process != fork.process:
            raise StoreError("this process was forked in the middle of a change of its parent's")
        self._touched |= {network}

    def mark_clean(self, network: int) -> None:
        self._touched -= {network}
        self.dirty -= {network}

    def commit(self) -> None:
        self._committing = True
        self._journal.clear()
        self._touched = _NONE
        if self.ends_turn:
            self._store.end_turn()

    def rollback(self) -> None:
        journal = self._journal
        if journal:
            self._committing = False
        while journal:
            note = journal[-1]
            note[0].restore(note)
            del journal[-1]
        self.dirty |= self._touched
        self._touched = _NONE
        if self.ends_turn:
            self._store.end_turn()


_NONE: frozenset[int] = frozenset()


class JournaledBitmap:
    """A Bitmap that notes in the journal what it is about to change.

    A note: the ordinals, as runs, whether they were set, and the cursor.
    """

    __slots__ = ("_bitmap", "_journal", "next_free", "next_set", "size")

    def __init__(self, size: int, journal: list[Note]) -> None:
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
        self._journal.append((self, (), False, self._bitmap.cursor))
        self._bitmap.cursor = ordinal

    def acquire(self) -> int:
        bitmap = self._bitmap
        cursor = bitmap.cursor
        # The same that acquire() will find: its answer may be lost on the way back.
        ordinal = self.next_free(cursor)
        if ordinal is None:
            ordinal = self.next_free(0)
        if ordinal is not None:
            self._journal.append((self, ((ordinal, ordinal + 1),), False, cursor))
        return bitmap.acquire()

    def acquire_ranges(self, n: int) -> list[tuple[int, int]]:
        if n <= self.size - len(self._bitmap):
            cursor = self._bitmap.cursor
            self._journal.append((self, self._free_runs(cursor, n), False, cursor))
        return self._bitmap.acquire_ranges(n)

    def _free_runs(self, start: int, n: int) -> list[tuple[int, int]]:
        """The first n free ordinals from there on, and round."""
        runs = []
        while n > 0:
            first = self.next_free(start)
            if first is None:
                first = self.next_free(0)
                assert first is not None
            end = self.next_set(first)
            end = min(first + n, self.size if end is None else end)
            runs.append((first, end))
            n -= end - first
            start = end if end < self.size else 0
        return runs

    def reserve(self, ordinal: int) -> None:
        bitmap = self._bitmap
        if ordinal not in bitmap:
            self._journal.append((self, ((ordinal, ordinal + 1),), False, bitmap.cursor))
        bitmap.reserve(ordinal)

    def release(self, ordinal: int) -> None:
        bitmap = self._bitmap
        if ordinal in bitmap:
            self._journal.append((self, ((ordinal, ordinal + 1),), True, bitmap.cursor))
        bitmap.release(ordinal)

    def restore(self, note: Note) -> None:
        """Bring the ordinals, and the cursor, back to what they were."""
        _, runs, held, cursor = note
        bitmap = self._bitmap
        for start, stop in runs:
            for ordinal in range(start, stop):
                if not held:
                    bitmap.discard(ordinal)
                elif ordinal not in bitmap:
                    bitmap.reserve(ordinal)
        bitmap.cursor = cursor

    def __contains__(self, ordinal: int) -> bool:
        return ordinal in self._bitmap

    def __len__(self) -> int:
        return len(self._bitmap)


class MemoryTable(Generic[R]):
    """Records by key in one dict, and for every index the first fields of it in one more."""

    def __init__(self, kind: type[R], journal: list[Note]) -> None:
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
        """Put new records in: what is no key of a dict, a list say, is refused beforehand."""
        present, journal = self._records, self._journal
        for record in records:
            key = self._key_of(record)
            if key in present:
                raise StoreError(f"there is a {type(record).__name__} {key} already")
            hash(record)
            journal.append((self, key, None))
            self._enter(key, record)

    def remove(self, records: Iterable[R]) -> None:
        for record in records:
            key = self._key_of(record)
            if self._records.get(key) != record:
                raise StoreError(f"there is no {record}")
            self._journal.append((self, key, record))
            self._leave(key, record)

    def restore(self, note: Note) -> None:
        """Bring the record of a key back to what it was."""
        _, key, before = note
        present = self._records.get(key)
        if present is not None:
            self._leave(key, present)
        if before is not None:
            self._disordered = True
            # As it may have been left half-way, it is taken out wherever it still is.
            self._leave(key, before)
            self._enter(key, before)

    def _enter(self, key: Any, record: R) -> None:
        self._records[key] = record
        for value_of, index in self._indexes:
            value = value_of(record)
            same = index.get(value)
            if same is None:
                index[value] = {key: record}
            else:
                same[key] = record

    def _leave(self, key: Any, record: R) -> None:
        """The record out of every index, and then out of the table: until then it is known."""
        for value_of, index in self._indexes:
            value = value_of(record)
            same = index.get(value)
            if same is not None:
                same.pop(key, None)
                if not same:
                    index.pop(value, None)
        self._records.pop(key, None)

    def _put_in_order(self) -> None:
        # Records are put in as time goes on and dicts keep that order, but for those that
        # came back when a change was undone. The new dicts take the place of the old ones
        # when all of them are there.
        in_order = sorted(self._records.values(), key=self._order_of)
        records = {self._key_of(one): one for one in in_order}
        names = list(self._by)
        by: dict[tuple[str, ...], dict[Any, dict[Any, R]]] = {name: {} for name in names}
        indexes = [
            (value_of, by[name]) for name, (value_of, _) in zip(names, self._indexes, strict=True)
        ]
        for value_of, index in indexes:
            for key, record in records.items():
                index.setdefault(value_of(record), {})[key] = record
        self._records = records
        self._by = by
        self._indexes = indexes
        self._disordered = False
