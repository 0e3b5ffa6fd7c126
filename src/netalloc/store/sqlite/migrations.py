"""From an older version of the store file to the next: rows are read, verified, written anew.

A step runs within one transaction with all the others, so a crash leaves the old version. It
reads what an old edition wrote in that edition's own form, its checksums included: nothing
that is damaged passes for sound by being brought over.
"""

from __future__ import annotations

import zlib

from netalloc._alloc import Bitmap, counters_text
from netalloc.errors import NetallocError, StoreError
from netalloc.light import NamedTuple
from netalloc.store.records import (
    Allowance,
    Attachment,
    Cooldown,
    EndedLease,
    GcCandidate,
    Label,
    LastHolder,
    Lease,
    Network,
    Publication,
    Reservation,
)
from netalloc.store.sqlite.bitmaps import SqliteBitmaps
from netalloc.store.sqlite.connection import REPAIR, Connection
from netalloc.store.sqlite.schema import (
    checksum,
    counters_of,
    table_name,
    version_of,
    write_state,
)
from netalloc.store.sqlite.spans import LEAF
from netalloc.store.sqlite.table import COUNTED, SqliteTable, counter_of
from netalloc.store.sqlite.versions import VERSION, added_by_2, made_by_4, made_by_5, statements

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_TOP = 1 << 63


class OldTable(NamedTuple):
    """A table of versions 1 and 2, and what a row of it is today."""

    name: str
    convert: Callable[[tuple[Any, ...]], Any]
    ordinal: int | None = 1  # its column: one from 2**63 on is stored less 2**64

    def parse(self, row: tuple[Any, ...]) -> Any:
        """The record of a row, None for one that is damaged."""
        values, i = row[:-1], self.ordinal
        if i is not None and isinstance(values[i], int) and values[i] < 0:
            values = (*values[:i], values[i] + 2 * _TOP, *values[i + 1 :])
        if zlib.crc32(repr(values).encode(), zlib.crc32(self.name.encode())) != row[-1]:
            return None
        return self.convert(values)


def _network(values: tuple[Any, ...]) -> Network:
    from ipaddress import ip_interface

    number, bridge, spec = values
    four = ip_interface(spec).version == 4
    subnet, subnet6 = (spec, None) if four else (None, spec)
    return Network(
        number, bridge, bridge, "bridge", subnet, subnet6, "", "", "", 0, 0, 0, "open", ""
    )


def parse_network(row: tuple[Any, ...]) -> Network | None:
    """The record of a row of versions 3 and 4, or of today; None for one that is damaged."""
    values = row[:-1]
    if checksum("network", values) != row[-1]:
        return None
    return Network._make(values if len(values) == len(Network._fields) else (*values, "open", ""))


_ONE: dict[type[Any], OldTable] = {
    Network: OldTable("network", _network, None),
    Lease: OldTable("lease", Lease._make),
    Label: OldTable("label", Label._make),
    Publication: OldTable("publication", Publication._make),
    Reservation: OldTable("reservation", Reservation._make),
    Cooldown: OldTable("cooling", Cooldown._make),
    EndedLease: OldTable("past", EndedLease._make, 2),
}
OLD_TABLES = {
    1: _ONE,
    2: _ONE
    | {
        LastHolder: OldTable("former", LastHolder._make),
        GcCandidate: OldTable("suspect", GcCandidate._make),
    },
}


def migrate(connection: Connection) -> None:
    """Bring an older file up to date, step by step; inside a transaction.

    Raises StoreError for a damaged row. The bitmaps of host ports are left out from version
    2 to 3 and from 3 to 4, where their layout changed: the publications say what they have to
    be.
    """
    for version in range(version_of(connection), VERSION):
        _STEPS[version](connection)
        connection.execute(f"PRAGMA user_version = {version + 1}")


def _from_1(connection: Connection) -> None:
    """Version 2 remembers former holders, for stickiness, and suspects, for gc."""
    for statement in added_by_2():
        connection.execute(statement)


def _from_2(connection: Connection) -> None:
    """Version 3 has all of a network's configuration, and other names."""
    records = {}
    for kind, old in OLD_TABLES[2].items():
        records[kind] = _read(connection, old)
        connection.execute(f"DROP TABLE {old.name}")
    for statement in statements(3):
        if statement.split()[2] not in ("state", "bitmap", "leaf"):
            connection.execute(statement)
    for network in records.pop(Network):
        values = network[:-2]  # isolation and services came with version 5
        marks = ", ".join("?" * (len(values) + 1))
        row = (*values, checksum("network", values))
        connection.execute(f"INSERT INTO network VALUES ({marks})", row)
    for kind, found in records.items():
        SqliteTable(kind, connection).add(found)
    connection.execute("DELETE FROM leaf WHERE name >= 'ports' AND name < 'portt'")
    before = connection.changes
    connection.execute("DELETE FROM bitmap WHERE name >= 'ports' AND name < 'portt'")
    _count_bitmaps(connection, before - connection.changes)


def _read(connection: Connection, old: OldTable) -> list[Any]:
    found = []
    for row in connection.rows(f"SELECT * FROM {old.name}"):
        record = old.parse(row)
        if record is None:
            raise StoreError(f"a row of {old.name} is damaged: {row!r}; {REPAIR}")
        found.append(record)
    return found


def _from_3(connection: Connection) -> None:
    """Version 4 has bitmaps by spans, and one row of what changes every time."""
    for name in ("state", "bitmap", "leaf"):
        for row in connection.rows(f"SELECT * FROM {name}"):
            if checksum(name, row[:-1]) != row[-1]:
                raise StoreError(f"a row of {name} is damaged: {row[:2]!r}; {REPAIR}")
    heads = connection.rows(
        "SELECT name, size, cursor, count, full, mixed FROM bitmap"
        " WHERE NOT (name >= 'ports' AND name < 'portt')"
    )
    leaves = {
        (name, number): data
        for name, number, data in connection.rows("SELECT name, number, data FROM leaf")
    }
    _, sequence, boot, counters = _state(connection)
    for name in ("state", "bitmap", "leaf"):
        connection.execute(f"DROP TABLE {name}")
    for statement in made_by_4():
        connection.execute(statement)
    for kind in COUNTED:
        if kind in (Attachment, Allowance):  # came with version 5
            continue
        ((n,),) = connection.rows(f"SELECT count(*) FROM {table_name(kind)}")
        counters[counter_of(kind)] = n
    counters["bitmaps"] = len(heads)
    write_state(connection, sequence, boot, counters_text(counters), "")
    bitmaps = SqliteBitmaps(connection)
    for head in heads:
        _bring_over(bitmaps, head, leaves)
    bitmaps.flush()


def _from_4(connection: Connection) -> None:
    """Version 5 says of a network how its containers are kept apart, and has attachments."""
    networks = []
    for row in connection.rows("SELECT * FROM network"):
        network = parse_network(row)
        if network is None:
            raise StoreError(f"a row of network is damaged: {row!r}; {REPAIR}")
        networks.append(network)
    connection.execute("DROP TABLE network")
    for statement in made_by_5():
        connection.execute(statement)
    SqliteTable(Network, connection).add(networks)


def _bring_over(
    bitmaps: SqliteBitmaps, head: tuple[Any, ...], leaves: dict[tuple[str, int], bytes]
) -> None:
    name, size, cursor, count, full, mixed = head
    try:
        new = bitmaps.bitmap(name, int(size))
        for start, stop in Bitmap.from_bytes(full).runs():
            new.cursor = start * LEAF
            new.acquire_ranges(min(stop * LEAF, new.size) - start * LEAF)
        for first, last in Bitmap.from_bytes(mixed).runs():
            for number in range(first, last):
                for start, stop in Bitmap.from_bytes(leaves[name, number]).runs():
                    new.cursor = number * LEAF + start
                    new.acquire_ranges(stop - start)
    except (KeyError, NetallocError) as error:
        raise StoreError(f"bitmap {name} is damaged: {error}; {REPAIR}") from error
    if len(new) != int(count):
        raise StoreError(f"bitmap {name} counts {count} but has {len(new)}; {REPAIR}")
    new.cursor = int(cursor)
    new.changes += 1  # an empty one has a row as well


def _count_bitmaps(connection: Connection, more: int) -> None:
    """Enter how many bitmaps there are by now, in the state row of version 3."""
    _, sequence, boot, counters = _state(connection)
    counters["bitmaps"] = counters.get("bitmaps", 0) + more
    state = (0, sequence, boot, counters_text(counters))
    connection.execute(
        "REPLACE INTO state VALUES (?, ?, ?, ?, ?)", (*state, checksum("state", state))
    )


def _state(connection: Connection) -> tuple[int, int, str, dict[str, int]]:
    """What the state row of version 3 says."""
    rows = connection.rows("SELECT * FROM state")
    if len(rows) != 1 or checksum("state", rows[0][:-1]) != rows[0][-1]:
        raise StoreError(f"the state row is damaged; {REPAIR}")
    number, sequence, boot, text, _ = rows[0]
    return number, sequence, boot, counters_of(text)


_STEPS: dict[int, Callable[[Connection], None]] = {
    1: _from_1,
    2: _from_2,
    3: _from_3,
    4: _from_4,
}
