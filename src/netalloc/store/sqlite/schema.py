"""The tables of the store file, its versions, and the checksum that every row carries."""

import zlib
from collections.abc import Callable
from typing import Any, Protocol

from netalloc.errors import StoreError
from netalloc.store.records import TABLES, GcCandidate, LastHolder

APPLICATION = 0x6E616C63  # "nalc", in the file's header: see the pragma application_id
VERSION = 2

# One row: how many changes were committed, the boot that the dynamic part belongs to, and
# the counters. Sizes and cursors are text: an IPv6 /64 is more than SQLite's integers hold.
_FIXED = {
    "state": "id INTEGER PRIMARY KEY, sequence INTEGER, boot TEXT, counters TEXT, crc INTEGER",
    "bitmap": "name TEXT PRIMARY KEY, size TEXT, cursor TEXT, count TEXT, full BLOB, mixed BLOB, "
    "crc INTEGER",
    "leaf": "name TEXT, number INTEGER, data BLOB, crc INTEGER, PRIMARY KEY (name, number)",
}


class Connection(Protocol):
    """Runs SQL; what goes wrong is a StoreError."""

    def execute(self, sql: str, values: tuple[Any, ...] = (), /) -> None: ...
    def rows(self, sql: str, values: tuple[Any, ...] = (), /) -> list[tuple[Any, ...]]: ...


def checksum(what: str, values: tuple[Any, ...]) -> int:
    """Over the values of a row and what it is a row of, so that none passes for another."""
    return zlib.crc32(repr(values).encode(), zlib.crc32(what.encode()))


def table_name(kind: type[Any]) -> str:
    """The table of a kind of records."""
    return kind.__name__.lower()


def statements(version: int = VERSION) -> list[str]:
    """What makes the tables of a version out of an empty file."""
    later = {1: (LastHolder, GcCandidate)}.get(version, ())
    made = [f"CREATE TABLE {name} ({columns})" for name, columns in _FIXED.items()]
    for kind in TABLES:
        if kind not in later:
            made += _table(kind)
    return made


def _table(kind: type[Any]) -> list[str]:
    shape, name = TABLES[kind], table_name(kind)
    columns = ", ".join(f'"{field}"' for field in (*kind._fields, "crc"))
    key = ", ".join(f'"{field}"' for field in shape.key)
    made = [f"CREATE TABLE {name} ({columns}, PRIMARY KEY ({key})) WITHOUT ROWID"]
    for i, index in enumerate(shape.indexes):
        fields = ", ".join(f'"{field}"' for field in index)
        made.append(f"CREATE INDEX {name}_{i} ON {name} ({fields})")
    return made


def _from_1(connection: Connection) -> None:
    """Version 2 remembers former holders, for stickiness, and suspects, for gc."""
    for kind in (LastHolder, GcCandidate):
        for statement in _table(kind):
            connection.execute(statement)


_MIGRATIONS: dict[int, Callable[[Connection], None]] = {1: _from_1}


def create(connection: Connection, boot: str) -> None:
    """Make the tables of an empty file; inside a transaction."""
    for statement in statements():
        connection.execute(statement)
    state = (0, 1, boot, "")
    connection.execute(
        "INSERT INTO state VALUES (?, ?, ?, ?, ?)", (*state, checksum("state", state))
    )
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def version_of(connection: Connection) -> int:
    """The schema's version, 0 for an empty file. Raises StoreError for one not ours."""
    ((version,),) = connection.rows("PRAGMA user_version")
    ((application,),) = connection.rows("PRAGMA application_id")
    found = [sql for (sql,) in connection.rows("SELECT sql FROM sqlite_schema WHERE sql > ''")]
    if not found and not version and not application:
        return 0
    if application != APPLICATION:
        raise StoreError(f"this is no netalloc store: its application id is {application:#x}")
    if version > VERSION:
        raise StoreError(f"schema {version} is newer than {VERSION}, the newest known here")
    if version < 1 or sorted(found) != sorted(statements(version)):
        raise StoreError(f"the tables are not those of schema {version}")
    return int(version)


def migrate(connection: Connection) -> None:
    """Bring an older file up to date, step by step; inside a transaction."""
    for version in range(version_of(connection), VERSION):
        _MIGRATIONS[version](connection)
        connection.execute(f"PRAGMA user_version = {version + 1}")
