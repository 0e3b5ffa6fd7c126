"""What a look-up in the store's file costs: an index for each, and nothing read twice."""

import sqlite3
from contextlib import closing

import pytest

from netalloc.manager.manager import NetworkManager
from netalloc.store.records import TABLES
from netalloc.store.sqlite.bitmaps import SqliteBitmaps
from netalloc.store.sqlite.connection import Connection
from netalloc.store.sqlite.store import SqliteStore
from netalloc.store.sqlite.table import SqliteTable

LOOKUPS = [
    (kind, shape[: i + 1])
    for kind, spec in TABLES.items()
    for shape in (spec.key, *spec.indexes)
    for i in range(len(shape))
]


@pytest.mark.parametrize(("kind", "fields"), LOOKUPS, ids=str)
def test_every_look_up_is_a_search_by_all_of_its_fields(tmp_path, kind, fields):
    SqliteStore(tmp_path / "store.db").close()
    asked = []

    class Noted(Connection):
        def rows(self, sql, values=()):
            asked.append(sql)
            return []

    with closing(Noted(tmp_path / "store.db")) as noted:
        SqliteTable(kind, noted).where(*fields, equal=(1,) * len(fields))
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {asked[0]}", (1,) * (len(fields) + 1))
        (step,) = [row[-1] for row in plan]  # a sort would be a second one
    assert step.startswith("SEARCH"), step
    assert step.count("=?") == len(fields), step


def test_bitmaps_are_read_once_while_no_other_process_writes(tmp_path, monkeypatch):
    read = []
    original = SqliteBitmaps._read
    monkeypatch.setattr(
        SqliteBitmaps, "_read", lambda self, name: (read.append(name), original(self, name))[1]
    )
    with NetworkManager(
        "br0", network="10.0.0.1/16", backend="null", store=tmp_path / "store.db"
    ) as manager:
        manager.allocate("first", ports=[80])
        read.clear()
        for i in range(5):
            manager.allocate(f"web-{i}", ports=[80])
        manager.release("web-3")
        assert read == []
