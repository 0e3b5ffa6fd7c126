"""What the bitmaps of a damaged store file say is taken, whatever can still be read of them."""

from __future__ import annotations

from typing import Any

from netalloc._alloc import Bitmap
from netalloc.errors import NetallocError, StoreError
from netalloc.store.sqlite.connection import Connection
from netalloc.store.sqlite.refusals import raise_refusal
from netalloc.store.sqlite.schema import checksum
from netalloc.store.sqlite.spans import LEAF, leaves_of

_TABLES = "SELECT name FROM sqlite_schema WHERE type = 'table'"
Marked = dict[str, set[int]]


def read_marks(connection: Connection, marked: Marked, lost: list[str], journals: str) -> None:
    """Enter what is marked as taken, by the name of its bitmap, and what is lost, in words.

    Of a leaf that cannot be read all is taken, unless no record is lost.
    """
    complete = not lost
    try:
        names = {row[0] for row in connection.rows_until_damage(_TABLES)}
        heads = connection.rows("SELECT * FROM bitmap")
    except StoreError as error:
        raise_refusal(error, connection.path)
        lost.append(f"the bitmaps: {error}")
        return
    rows = _rows(connection, "span" if "span" in names else "leaf")
    for head in heads:
        name = str(head[0])
        taken = marked.setdefault(name, set())
        if checksum("bitmap", head[:-1]) != head[-1]:
            lost.append(f"bitmap {name}: its head is damaged")
        own = {row[1]: row for row in rows if row[0] == head[0] and type(row[1]) is int}
        read = _read_spans if "span" in names else _read_leaves
        for leaf in read(name, head, own, taken, lost):
            if not complete:
                taken.update(range(leaf * LEAF, (leaf + 1) * LEAF))
        _follow(taken, name, journals)


def _rows(connection: Connection, table: str) -> list[tuple[Any, ...]]:
    """From both ends up to a page that cannot be read."""
    found = [
        row
        for direction in ("ASC", "DESC")
        for row in connection.rows_until_damage(
            f"SELECT * FROM {table} ORDER BY 1 {direction}, 2 {direction}"
        )
    ]
    return list(dict.fromkeys(found))


def _read_spans(
    name: str,
    head: tuple[Any, ...],
    rows: dict[int, tuple[Any, ...]],
    taken: set[int],
    lost: list[str],
) -> list[int]:
    """The leaves that cannot be read."""
    unread, named = [], [head[4]]
    for first, row in rows.items():
        _, _, stop, following, bits, crc = row
        if checksum("span", row[:-1]) != crc:
            lost.append(f"leaf {first} of bitmap {name} is damaged")
            unread.append(first)
            continue
        named.append(following)
        if bits is None:
            taken.update(range(first * LEAF, min(stop * LEAF, int(head[1]))))
        elif not _take(first, bits, taken):
            unread.append(first)
    for first in named:
        if type(first) is int and first not in rows and first < _leaves(head[1]):
            lost.append(f"leaf {first} of bitmap {name} is missing")
            unread.append(first)
    return unread


def _read_leaves(
    name: str,
    head: tuple[Any, ...],
    rows: dict[int, tuple[Any, ...]],
    taken: set[int],
    lost: list[str],
) -> list[int]:
    """The same in a file of version 3 or before."""
    unread = []
    try:
        full, mixed = (list(Bitmap.from_bytes(data).runs()) for data in head[4:6])
    except (NetallocError, TypeError) as error:
        lost.append(f"bitmap {name}: {error}")
        return list(rows)
    for start, stop in full:
        taken.update(range(start * LEAF, min(stop * LEAF, int(head[1]))))
    for number in [number for start, stop in mixed for number in range(start, stop)]:
        row = rows.get(number)
        sound = row is not None and checksum("leaf", row[:-1]) == row[-1]
        if row is None or not sound or not _take(number, row[2], taken):
            lost.append(f"leaf {number} of bitmap {name} is {'damaged' if row else 'missing'}")
            unread.append(number)
    return unread


def _take(number: int, bits: bytes, taken: set[int]) -> bool:
    try:
        runs = list(Bitmap.from_bytes(bits).runs())
    except NetallocError:
        return False
    for start, stop in runs:
        taken.update(range(number * LEAF + start, number * LEAF + stop))
    return True


def _leaves(size: object) -> int:
    return leaves_of(int(size)) if isinstance(size, str) and size.isdecimal() else 0


def _follow(taken: set[int], name: str, journals: str) -> None:
    for one in journals.split(";"):
        found, _, journal = one.partition(" ")
        if found == name:
            for text in journal.split()[1:]:
                first, _, last = text[1:].partition(":")
                change = taken.update if text[0] == "+" else taken.difference_update
                change(range(int(first), int(last or first) + 1))
