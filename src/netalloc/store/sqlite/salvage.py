"""Reading what can still be read of a damaged store file: of a copy, never of the file itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netalloc.errors import StoreError
from netalloc.store.records import TABLES, Allowance, Attachment, Lease, Network
from netalloc.store.sqlite import place
from netalloc.store.sqlite.bitmaps import SqliteBitmaps
from netalloc.store.sqlite.connection import Connection
from netalloc.store.sqlite.migrations import OLD_TABLES, parse_network
from netalloc.store.sqlite.refusals import raise_refusal
from netalloc.store.sqlite.salvage_bitmaps import read_marks
from netalloc.store.sqlite.schema import APPLICATION, checksum, counters_of, table_name
from netalloc.store.sqlite.table import COUNTED, SqliteTable, counter_of

# The fields of a database header (sqlite.org/fileformat2.html, 1.3) that are the same in
# every file that was made here: damage to them is undone before reading.
_HEADER = {
    0: b"SQLite format 3\0" + (4096).to_bytes(2, "big") + b"\2\2\0\x40\x20\x20",
    44: (4).to_bytes(4, "big"),
    56: (1).to_bytes(4, "big"),
    68: APPLICATION.to_bytes(4, "big"),
}

_TABLE_NAMES = "SELECT name FROM sqlite_schema WHERE type = 'table'"

Parse = Callable[[tuple[Any, ...]], Any]


@dataclass
class Salvage:
    """What was read. `marked` are ordinals by the name of their bitmap; `lost` is in words."""

    records: dict[type[Any], list[Any]]
    marked: dict[str, set[int]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    boot: str = ""
    sequence: int = 0
    counters: dict[str, int] = field(default_factory=dict)


def copy(path: Path, to: Path) -> None:
    """Copy a store's file and its log. This process has neither open (see StoreFile.alone)."""
    place.create(to)
    shutil.copyfile(path, to)
    log = Path(f"{path}-wal")
    if log.exists():
        place.create(Path(f"{to}-wal"))
        shutil.copyfile(log, f"{to}-wal")


def salvage(path: Path) -> Salvage:
    """Read every record whose checksum is right, and what the bitmaps say, of a copy.

    The copy is changed: what damage did to its header is undone before reading.
    """
    found = Salvage({kind: [] for kind in TABLES})
    with path.open("r+b") as file:
        for offset, value in _HEADER.items():
            file.seek(offset)
            file.write(value)
    connection = Connection(path)
    try:
        found.lost += [f"the file: {problem}" for problem in damage(connection)]
        for kind, name, parse in _tables(connection):
            _read_records(connection, kind, name, parse, found)
        journals = _read_state(connection, found)
        read_marks(connection, found.marked, found.lost, journals)
    finally:
        connection.close()
    return found


def damage(connection: Connection) -> list[str]:
    """What SQLite itself finds wrong with its file."""
    try:
        rows = [str(row[0]) for row in connection.rows("PRAGMA integrity_check")]
    except StoreError as error:
        raise_refusal(error, connection.path)
        return [str(error)]
    return [] if rows == ["ok"] else rows


def damaged_rows(connection: Connection) -> list[str]:
    """The rows whose checksum is wrong, in words."""
    found = []
    for _, name, parse in _tables(connection):
        bad = _split(connection, name, parse)[1]
        found += [f"a row of {name} is damaged: {row!r}" for row in bad]
    for table in ("state", "bitmap", "span"):
        rows = connection.rows(f"SELECT * FROM {table}")
        bad = [row for row in rows if checksum(table, row[:-1]) != row[-1]]
        found += [f"a row of {table} is damaged: {row[:2]!r}" for row in bad]
    if found:
        return found
    bitmaps = SqliteBitmaps(connection)
    names = connection.rows("SELECT name, size FROM bitmap")
    ((text, journals),) = connection.rows("SELECT counters, journals FROM state")
    bitmaps.forget(journals)
    counters = counters_of(text)
    expected = counters.get("bitmaps", 0)
    if expected != len(names):
        found.append(f"{len(names)} bitmaps are there of {expected}")
    for name, size in names:
        found += _miscounted(connection, bitmaps, name, size)
    for kind in COUNTED:
        ((n,),) = connection.rows(f"SELECT count(*) FROM {table_name(kind)}")
        if n != counters.get(counter_of(kind), 0):
            found.append(
                f"{n} rows of {table_name(kind)} are there of {counters.get(counter_of(kind), 0)}"
            )
    return found


def _miscounted(connection: Connection, bitmaps: SqliteBitmaps, name: str, size: str) -> list[str]:
    try:
        bitmap = bitmaps.bitmap(name, int(size))
        held = sum([bitmap.taken_by(span) for span in bitmap.spans()])
    except (StoreError, ValueError, TypeError) as error:
        raise_refusal(error, connection.path)
        return [f"bitmap {name}: {error}"]
    return [] if held == len(bitmap) else [f"bitmap {name} counts {len(bitmap)} but has {held}"]


def _tables(connection: Connection) -> list[tuple[type[Any], str, Parse]]:
    """The kinds of records, the table of each, and how its rows are read."""
    names = {str(row[0]) for row in connection.rows_until_damage(_TABLE_NAMES)}
    # Its header may be damaged, so the tables say which version it is.
    if "ended_lease" not in names and "past" in names:
        old = OLD_TABLES[2 if "former" in names else 1]
        return [(kind, table.name, table.parse) for kind, table in old.items()]
    later = (Attachment, Allowance)  # they came with version 5
    kinds = [kind for kind in TABLES if kind not in later or table_name(kind) in names]
    parse: dict[type[Any], Parse] = {kind: SqliteTable(kind, connection).parse for kind in kinds}
    parse[Network] = parse_network  # versions 3 and 4 differ in it alone
    return [(kind, table_name(kind), parse[kind]) for kind in kinds]


def _split(
    connection: Connection, name: str, parse: Parse
) -> tuple[list[Any], list[tuple[Any, ...]]]:
    """The records whose checksum is right, and the rows for which it is not."""
    good, bad = [], []
    for row in connection.rows(f"SELECT * FROM {name}"):
        record = parse(row)
        if record is None:
            bad.append(row)
        else:
            good.append(record)
    return good, bad


def _until_damage(
    connection: Connection, kind: type[Any], name: str, parse: Parse, direction: str
) -> list[Any]:
    """The good records from one end up to where the file cannot be read."""
    width = len(TABLES[kind].key)  # the key's columns are the first ones
    order = ", ".join(f"{i} {direction}" for i in range(1, width + 1))
    rows = connection.rows_until_damage(f"SELECT * FROM {name} ORDER BY {order}")
    return [record for record in map(parse, rows) if record is not None]


def _read_records(
    connection: Connection, kind: type[Any], name: str, parse: Parse, found: Salvage
) -> None:
    try:
        good, bad = _split(connection, name, parse)
    except StoreError as error:
        raise_refusal(error, connection.path)
        # From both ends up to the page that cannot be read.
        found.lost.append(f"{name}: {error}")
        ends = [
            _until_damage(connection, kind, name, parse, direction) for direction in ("ASC", "DESC")
        ]
        good, bad = list(dict.fromkeys(ends[0] + ends[1])), []
    found.records[kind] = good
    found.lost += [f"a row of {name}: {row!r}" for row in bad]


def _read_state(connection: Connection, found: Salvage) -> str:
    """Enter what the state row says; the journals of the bitmaps that it has."""
    try:
        for row in connection.rows("SELECT * FROM state"):
            if checksum("state", row[:-1]) == row[-1]:
                found.sequence, found.boot = row[1:3]
                found.counters = counters_of(row[3])
                return str(row[4]) if len(row) > 5 else ""
        found.lost.append("the state row")
    except StoreError as error:
        raise_refusal(error, connection.path)
        found.lost.append(f"the state row: {error}")
    return ""


def lost_generations(found: Salvage) -> int:
    """A generation that no lease ever had, so far as can be known."""
    highest = max((lease.generation for lease in found.records[Lease]), default=0)
    # More than one boot of one machine can have used up since the state row was written.
    return found.counters.get("generation", highest + (1 << 32))
