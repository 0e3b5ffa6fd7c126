"""Records in memory whose changes are noted before they are made."""

from collections.abc import Callable, Iterable
from itertools import islice
from operator import itemgetter
from typing import Any, Generic

from netalloc.errors import StoreError
from netalloc.store.memory_bitmap import Note
from netalloc.store.protocol import R
from netalloc.store.records import TABLES, Value


class MemoryTable(Generic[R]):
    """Records by key in one dict, and for every index the first fields of it in one more.

    An index has the record itself where there is one of that value, as nearly always, and a dict
    by key where there are more: a dict each would be half of what a lease weighs.
    """

    def __init__(self, kind: type[R], journal: list[Note]) -> None:
        self._kind = kind
        self._journal = journal
        self._disordered = False
        shape = TABLES[kind]
        timed = [index[-1] for index in shape.indexes if index[-1].endswith("_ns")]
        order = (*timed, *shape.key)  # as in a file: what is of one moment goes by its key
        self._order_of: Callable[[R], Any] = itemgetter(*map(kind._fields.index, order))
        self._records: dict[Any, R] = {}
        # itemgetter makes the keys in C: a tuple of several fields, or one field bare.
        self._key_of: Callable[[R], Any] = itemgetter(*map(kind._fields.index, shape.key))
        self._by: dict[tuple[str, ...], dict[Any, Any]] = {}
        self._indexes: list[tuple[Callable[[R], Any], dict[Any, Any]]] = []
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
        found = self._by[fields].get(value)
        if found is None:
            return []
        if type(found) is not dict:
            return [found] if limit else []
        return list(found.values() if limit < 0 else islice(found.values(), limit))

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
        present, journal = self._records, self._journal
        for record in records:
            key = self._key_of(record)
            if present.get(key) != record:
                raise StoreError(f"there is no {record}")
            journal.append((self, key, record))
            for value_of, index in self._indexes:
                value = value_of(record)
                same = index[value]
                if type(same) is dict and len(same) > 1:
                    del same[key]
                else:
                    del index[value]
            del present[key]

    def clear(self) -> None:
        self.remove(self.all())

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
                index[value] = record
            elif type(same) is dict:
                same[key] = record
            else:
                index[value] = {self._key_of(same): same, key: record}

    def _leave(self, key: Any, record: R) -> None:
        """The record out of every index, and then out of the table: until then it is known."""
        for value_of, index in self._indexes:
            value = value_of(record)
            same = index.get(value)
            if type(same) is dict:
                same.pop(key, None)
                if not same:
                    index.pop(value, None)
            elif same is not None and self._key_of(same) == key:
                index.pop(value, None)
        self._records.pop(key, None)

    def _put_in_order(self) -> None:
        # Records are put in as time goes on and dicts keep that order, but for those that
        # came back when a change was undone. The new dicts take the place of the old ones
        # when all of them are there.
        fresh = MemoryTable(self._kind, self._journal)
        for record in sorted(self._records.values(), key=self._order_of):
            fresh._enter(self._key_of(record), record)
        self._records = fresh._records
        self._by = fresh._by
        self._indexes = fresh._indexes
        self._disordered = False
