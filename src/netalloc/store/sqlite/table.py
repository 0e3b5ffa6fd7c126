"""Records as rows of the store file, each read with its checksum."""

from __future__ import annotations

import zlib

from netalloc._alloc import RowMaker, row_checksum
from netalloc.errors import StoreError
from netalloc.light import Generic
from netalloc.store.records import (
    TABLES,
    Allowance,
    Attachment,
    Cooldown,
    EndedLease,
    GcCandidate,
    Label,
    LastHolder,
    Publication,
    Reservation,
    Value,
    check_plain,
)
from netalloc.store.sqlite.connection import REPAIR, Connection
from netalloc.store.sqlite.schema import table_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from netalloc.store.protocol import R
else:
    R = None

_new = tuple.__new__  # a third of the time of the class's own constructor
_TOP = 1 << 63  # SQLite's integers are signed: an ordinal from here on is stored less 2**64


# Kinds of which there often is none, or which are asked for at every release: how many there are
# stands in the state row, so that an empty table is not asked (3 microseconds each).
COUNTED = (
    Label, Publication, Reservation, Cooldown, LastHolder, GcCandidate, EndedLease, Attachment,
    Allowance,
)  # fmt: skip


def counter_of(kind: type[Any]) -> str:
    """The counter that says how many records of a kind there are."""
    return f"#{table_name(kind)}"


class SqliteTable(Generic[R]):
    """All records of one kind, over one connection.

    `counters` are those of the state row as it is now: with them a table that is empty is not
    asked, and what is put in and taken out is counted.
    """

    def __init__(
        self, kind: type[R], connection: Connection, counters: dict[str, int] | None = None
    ) -> None:
        self._kind = kind
        self._connection = connection
        self._shape = TABLES[kind]
        self._name = name = table_name(kind)
        self._counter = counter_of(kind)
        self._counters = counters if counters is not None and kind in COUNTED else None
        fields = kind._fields
        self._ordinal = fields.index("ordinal") if "ordinal" in fields else None
        self._width = len(self._shape.key)  # the key's fields are the first ones
        self._seed = zlib.crc32(name.encode())
        self._maker = RowMaker(kind, self._seed)
        marks = ", ".join("?" * (len(fields) + 1))
        order = ", ".join(f'"{field}"' for field in self._shape.key)
        self._insert = f"INSERT INTO {name} VALUES ({marks})"
        self._delete = f"DELETE FROM {name} WHERE {_equal(self._shape.key)} AND crc = ?"
        # Of a row that is wholly known: only the key may find it, so no other field may (+) have
        # an index looked up.
        others = [f'+"{field}" IS ?' for field in fields[self._width :]]
        self._exactly = " AND ".join([_equal(self._shape.key), *others, "crc = ?"])
        self._get = f"SELECT * FROM {name} WHERE {_equal(self._shape.key)}"
        self._oldest = f"SELECT * FROM {name} ORDER BY {order} LIMIT ?"
        self._queries: dict[tuple[str, ...], str] = {}
        self._updates: dict[tuple[int, ...], str] = {}
        self._first: list[R] = []  # the first ones by key, as far as they are known

    def __bool__(self) -> bool:
        """Whether there is a record, as far as that is known without a look."""
        return self._counters is None or self._counters.get(self._counter, 0) > 0

    def get(self, *key: Value) -> R | None:
        """The record of that key."""
        if self._counters is not None and not self._counters.get(self._counter):
            return None
        rows = self._connection.rows(self._get, _signed(key))
        return self._record(rows[0]) if rows else None

    def where(self, *fields: str, equal: tuple[Value, ...], limit: int = -1) -> list[R]:
        """Those of which the fields have the values given, in the order of their index."""
        if self._counters is not None and not self._counters.get(self._counter):
            return []
        query = self._queries.get(fields)
        if query is None:
            query = self._queries[fields] = self._query(fields)
        rows = self._connection.rows(query, (*_signed(equal), limit))
        return [self._record(row) for row in rows]

    def up_to(self, *fields: str, equal: tuple[Value, ...], limit: int) -> list[R]:
        """Those with the first value given, and the second or a smaller one; the greatest first."""
        if self._counters is not None and not self._counters.get(self._counter):
            return []
        assert fields in self._shape.descending
        (first, last), by = fields, self._shape.indexes.index(fields)
        query = (
            f"SELECT * FROM {self._name} INDEXED BY {self._name}_{by} "
            f'WHERE "{first}" IS ? AND "{last}" <= ? ORDER BY "{last}" DESC LIMIT ?'
        )
        rows = self._connection.rows(query, (*_signed(equal), limit))
        return [self._record(row) for row in rows]

    def oldest(self, limit: int) -> list[R]:
        """The first ones by key; what was read of them is kept until something is taken out."""
        if len(self._first) < limit:
            rows = self._connection.rows(self._oldest, (limit,))
            self._first = list(map(self._record, rows))
        return self._first[:limit]

    def forget(self) -> None:
        """The file has changed: what was read of it counts no more."""
        self._first = []

    def all(self) -> list[R]:
        """Every record."""
        return [self._record(row) for row in self._connection.rows(f"SELECT * FROM {self._name}")]

    def parse(self, row: tuple[Any, ...]) -> R | None:
        """The record of a row, None for one that is damaged."""
        plain = self._maker.record(row)
        if plain is not None:
            return plain
        values, i = row[:-1], self._ordinal
        if row_checksum(values, self._seed) != row[-1]:
            return None
        if i is not None and values[i] < 0:
            values = (*values[:i], values[i] + 2 * _TOP, *values[i + 1 :])
        return _new(self._kind, values)

    def add(self, records: Iterable[R]) -> None:
        """Put new records in.

        Raises InvalidValueError, with nothing written, for a value that is not exactly int,
        str or None, and StoreError where a record of that key is there.
        """
        rows = self._rows(list(records))
        if self._first and any(row[: self._width] < self._first[-1] for row in rows):
            self._first = []
        if len(rows) == 1:
            self._connection.execute(self._insert, rows[0])
        elif rows:
            self._connection.many(self._insert, rows)
        if self._counters is not None:
            self._counters[self._counter] = self._counters.get(self._counter, 0) + len(rows)

    def remove(self, records: Iterable[R]) -> None:
        """Take records out."""
        rows = self._rows(list(records))
        if not rows:
            return
        self._first = []
        width = self._width
        keys = [(*row[:width], row[-1]) for row in rows]
        gone = self._connection.many(self._delete, keys)
        if gone != len(rows):
            raise StoreError(f"{len(rows) - gone} rows of {self._name} are not there; {REPAIR}")
        if self._counters is not None:
            self._counters[self._counter] = self._counters.get(self._counter, 0) - len(rows)

    def discard(self, record: R) -> bool:
        """Take a record out that is there as given; whether it was."""
        self._first = []
        query = f"DELETE FROM {self._name} WHERE {self._exactly}"
        if not self._connection.change(query, self._row(record)):
            return False
        if self._counters is not None:
            self._counters[self._counter] = self._counters.get(self._counter, 0) - 1
        return True

    def replace(self, old: R, new: R) -> bool:
        """Put another record in the place of one that is there as given; whether it was."""
        self._first = []
        places, values = self._maker.change(old, new) or self._change(old, new)
        query = self._updates.get(places)
        if query is None:
            query = self._updates[places] = self._update(places)
        return self._connection.change(query, values) > 0

    def clear(self) -> None:
        """Take all records out: pages at a time, a tenth of the time."""
        self._first = []
        self._connection.execute(f"DELETE FROM {self._name}")
        if self._counters is not None:
            self._counters[self._counter] = 0

    def _query(self, fields: tuple[str, ...]) -> str:
        shapes = (self._shape.key, *self._shape.indexes)
        fitting = [i for i, shape in enumerate(shapes) if shape[: len(fields)] == fields]
        # Of those that begin like this, the one that goes on with a time.
        best = max(fitting, key=lambda i: shapes[i][-1].endswith("_ns"))
        order = ", ".join(f'"{field}"' for field in shapes[best][len(fields) :] or shapes[best])
        # Left to itself SQLite may take the key's first field and pass all of a network by.
        by = f" INDEXED BY {self._name}_{best - 1}" if best else ""
        where = _equal(fields)
        return f"SELECT * FROM {self._name}{by} WHERE {where} ORDER BY {order} LIMIT ?"

    def _change(self, old: R, new: R) -> tuple[tuple[int, ...], tuple[Any, ...]]:
        """What RowMaker.change says of records that are plain."""
        before, after = self._row(old), self._row(new)
        places = tuple([i for i in range(len(before)) if before[i] != after[i]]) or (-1,)
        return places, (*[after[i] for i in places], *before)

    def _update(self, places: tuple[int, ...]) -> str:
        """What changes these columns alone: to write one of an index is to write that, too."""
        columns = (*self._kind._fields, "crc")
        changed = ", ".join([f'"{columns[i]}" = ?' for i in places])
        return f"UPDATE {self._name} SET {changed} WHERE {self._exactly}"

    def _rows(self, records: list[R]) -> list[tuple[Any, ...]]:
        rows = self._maker.rows(records)
        return list(map(self._row, records)) if rows is None else rows

    def _row(self, record: R) -> tuple[Any, ...]:
        plain = self._maker.row(record)
        if plain is not None:
            return plain
        check_plain(record)
        values: tuple[Any, ...] = tuple(record)
        if self._ordinal is not None and values[self._ordinal] >= _TOP:
            values = _signed(values)
        return (*values, row_checksum(values, self._seed))

    def _record(self, row: tuple[Any, ...]) -> R:
        record = self.parse(row)
        if record is None:
            raise StoreError(f"a row of {self._name} is damaged: {row!r}; {REPAIR}")
        return record


def _equal(fields: tuple[str, ...]) -> str:
    return " AND ".join(f'"{field}" IS ?' for field in fields)


def _signed(values: tuple[Value, ...]) -> tuple[Value, ...]:
    for value in values:
        if type(value) is int and value >= _TOP:
            return tuple([v - 2 * _TOP if type(v) is int and v >= _TOP else v for v in values])
    return values
