"""What a store file begins with, how its version is told, and the checksum of every row."""

from __future__ import annotations

import zlib

from netalloc._alloc import row_checksum
from netalloc.errors import StoreError
from netalloc.light import Protocol
from netalloc.store.sqlite.versions import VERSION, statements

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

APPLICATION = 0x6E616C63  # "nalc", in the file's header: see the pragma application_id

_WRITE_STATE = "REPLACE INTO state VALUES (?, ?, ?, ?, ?, ?)"


class Connection(Protocol):
    """Runs SQL; what goes wrong is a StoreError."""

    def execute(self, sql: str, values: tuple[Any, ...] = (), /) -> None: ...
    def rows(self, sql: str, values: tuple[Any, ...] = (), /) -> list[tuple[Any, ...]]: ...


def checksum(what: str, values: tuple[Any, ...]) -> int:
    """Over the values of a row and what it is a row of, so that none passes for another.

    ascii() of exact int, str, bytes and None says the same in every Python; repr() does not:
    what it escapes follows the Unicode tables that the Python came with.
    """
    return row_checksum(values, zlib.crc32(what.encode()))


def table_name(kind: type[Any]) -> str:
    """The table of a kind of records: its name in snake case."""
    return "".join([f"_{c.lower()}" if c.isupper() else c for c in kind.__name__]).lstrip("_")


def create(connection: Connection, boot: str, store: int) -> None:
    """Make the tables of an empty file; inside a transaction.

    `store` is a number by which this store is told from every other one.
    """
    for statement in statements():
        connection.execute(statement)
    write_state(connection, 1, boot, f"store={store}", "")
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def write_state(
    connection: Connection, sequence: int, boot: str, counters: str, journals: str
) -> int:
    """Write the one row of the table `state`; its checksum.

    It has the number of changes that were committed, the boot that the dynamic part belongs
    to, the counters as "name=value name=value", and what has changed in the bitmaps since
    their own rows were written, as "name cursor +ordinal -first:last ;".
    """
    state = (0, sequence, boot, counters, journals)
    crc = checksum("state", state)
    connection.execute(_WRITE_STATE, (*state, crc))
    return crc


def counters_of(text: str) -> dict[str, int]:
    """The counters of a state row."""
    pairs = (item.split("=") for item in text.split())
    return {name: int(value) for name, value in pairs}


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
