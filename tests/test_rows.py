"""Rows of a file made in the core: the checksum and the values that the slow, plain way gives."""

import random
import zlib
from contextlib import closing

import pytest

from netalloc._alloc import FilePlace, RowMaker, row_checksum
from netalloc.store.records import EndedLease, Label, Lease, Network
from netalloc.store.sqlite.connection import Connection
from netalloc.store.sqlite.table import SqliteTable

NUMBERS = [0, 1, -1, 9, 10, 99, 100, 2**31, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, -(2**70)]
TEXTS = ["", "web", "'", '"', "a'b\"", "\\", "\n", "\x7f", " ~", "ä", "\U0001f600", "x" * 600]
VALUES = [*NUMBERS, *TEXTS, "x" * 480, None, b"\0'", True]


def plain(values, seed):
    return zlib.crc32(ascii(values).encode(), seed)


@pytest.mark.parametrize("value", VALUES, ids=ascii)
def test_the_checksum_of_a_single_value(value):
    assert row_checksum((value,), 5) == plain((value,), 5)
    assert row_checksum((value, value), 0) == plain((value, value), 0)


def test_the_checksum_of_any_values():
    chance = random.Random(1)
    for _ in range(5000):
        values = tuple(chance.choices(VALUES, k=chance.randrange(12)))
        assert row_checksum(values, 77) == plain(values, 77), values
    for n in range(480, 530):  # to the end of what has room
        assert row_checksum(("x" * n, 2**62, None), 1) == plain(("x" * n, 2**62, None), 1)


@pytest.mark.parametrize("kind", [Lease, Label, Network, EndedLease])
def test_a_row_and_back(kind):
    """With and without the core's help: the same row, the same record, or the same refusal."""
    chance, seed = random.Random(kind.__name__), 9
    maker = RowMaker(kind, seed)
    plain_ones = 0
    for _ in range(12_000):
        record = kind(*chance.choices([*VALUES[:20], None, 7], k=len(kind._fields)))
        row = maker.row(record)
        if row is None:
            continue
        plain_ones += 1
        assert row == (*record, plain(tuple(record), seed))
        again = maker.record(row)
        if again is None:
            assert getattr(record, "ordinal", 0) < 0
            continue
        assert again == record and type(again) is kind
        for i in range(len(row)):
            damaged = (*row[:i], row[i] + 1 if type(row[i]) is int else "?", *row[i + 1 :])
            assert maker.record(damaged) is None
        assert maker.record(row[:-1]) is None
    assert plain_ones > 20


def test_what_is_no_exact_int_or_text_is_left_to_the_long_way():
    class Text(str):
        __slots__ = ()

    maker = RowMaker(Label, 0)
    for value in (True, 1.5, Text("web"), b"web", ()):
        assert maker.row(Label(1, 2, "app", value)) is None


def test_the_long_way_gives_the_same(tmp_path):
    with closing(Connection(tmp_path / "none.db")) as connection:
        table = SqliteTable(Lease, connection)
        for owner in ("web", "wäb", "o'neill", None):
            for ordinal in (5, 2**64 - 1):
                record = Lease(1, ordinal, 3, 0, owner, None, 50)
                row = table._row(record)
                assert row[-1] == plain(row[:-1], zlib.crc32(b"lease"))
                assert table.parse(row) == record


def test_a_place_is_the_file_and_not_its_name(tmp_path):
    path = tmp_path / "store.db"
    path.write_text("one")
    found = path.stat()
    place = FilePlace(bytes(path), found.st_dev, found.st_ino)
    assert place.is_there()
    path.rename(tmp_path / "kept")
    assert not place.is_there()
    path.write_text("another")
    assert not place.is_there()
    with pytest.raises(NotADirectoryError, match=r"store\.db/no"):
        FilePlace(bytes(path / "no"), 1, 1).is_there()
