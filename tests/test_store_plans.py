"""What a look-up in the store's file costs: an index for each, and nothing read twice."""

import re
import sqlite3
import sys
from contextlib import closing

import pytest

from netalloc.manager.manager import NetworkManager
from netalloc.model import PortRequest
from netalloc.store.records import TABLES, Label, Lease
from netalloc.store.sqlite.bitmaps import HEADS, SqliteBitmaps
from netalloc.store.sqlite.connection import Connection
from netalloc.store.sqlite.session import STAMP, STATE
from netalloc.store.sqlite.store import SqliteStore
from netalloc.store.sqlite.table import SqliteTable

LOOKUPS = [
    (kind, shape[: i + 1])
    for kind, spec in TABLES.items()
    for shape in (spec.key, *spec.indexes)
    for i in range(len(shape))
]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A store with its tables and nothing else in it: no statistics, as in every store."""
    path = tmp_path_factory.mktemp("plans") / "store.db"
    SqliteStore(path).close()
    return path


def look_up(path, kind, fields):
    """The query for those fields."""
    asked = []

    class Noted(Connection):
        def rows(self, sql, values=()):
            asked.append(sql)
            return []

    with closing(Noted(path)) as noted:
        SqliteTable(kind, noted).where(*fields, equal=(1,) * len(fields))
    return asked[0]


def plan_of(path, sql):
    """The steps that SQLite would take; a sort would be one."""
    with closing(sqlite3.connect(path)) as connection:
        values = (1,) * sql.count("?")
        return [row[-1] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]


def is_straight(steps, fields):
    """Whether it is one search, by all of the fields."""
    return len(steps) == 1 and steps[0].startswith("SEARCH") and steps[0].count("=?") == len(fields)


@pytest.mark.parametrize(("kind", "fields"), LOOKUPS, ids=str)
def test_every_look_up_is_a_search_by_all_of_its_fields(empty, kind, fields):
    steps = plan_of(empty, look_up(empty, kind, fields))
    assert is_straight(steps, fields), steps


def test_without_the_hint_a_known_key_and_a_label_pass_all_of_a_network_by(empty):
    """So what the test above says is said of the hints."""
    for kind, fields in (
        (Lease, ("network", "owner", "key")),
        (Label, ("network", "name", "value")),
    ):
        sql, hints = re.subn(r" INDEXED BY \w+", "", look_up(empty, kind, fields))
        assert hints == 1 and not is_straight(plan_of(empty, sql), fields), sql


# Read whole: one row; all networks of a host; and what is looked for in vain, as damage is.
WHOLE = {STAMP, STATE, HEADS, "SELECT * FROM network"}


def noted(method, said):
    """A method of a connection that notes what it was told."""

    def call(self, sql, *values):
        said.add(sql)
        return method(self, sql, *values)

    return call


def test_every_statement_of_every_operation_is_a_search(tmp_path, monkeypatch):
    """Whatever a manager is asked for, but for check(), which reads all."""
    said = set()
    for name in ("rows", "execute", "many"):
        monkeypatch.setattr(Connection, name, noted(getattr(Connection, name), said))
    path = tmp_path / "store.db"
    options = {"network": "10.0.0.1/16", "backend": "null", "store": path, "sticky": 60}
    with NetworkManager("br0", cooldown=0.001, **options) as manager:
        for i in range(70):  # journals are written, too
            manager.allocate(f"web-{i}", key="eth0", labels={"app": "shop"}, ports=[80])
        assert manager.allocate("web-3", key="eth0") == manager.find("web-3")[0]
        manager.reserve("10.0.90.2", "kept")
        one = manager.allocate("kept")
        one.publish([PortRequest(53, "udp", host_ip="10.9.9.9", host_port=53)], check_host=False)
        one.release_port(53, "udp")
        manager.find(label="app=shop")[5].release()
        manager.release("web-7")
        manager.unreserve("10.0.90.2")
        manager.gc(["web-1"], grace=0)
        manager.gc(["web-1"], grace=0)
        manager.history("10.0.0.2")
        manager.allocate_many(9000, owner="many")
        manager.release("many")
    with NetworkManager.open("br0", path) as manager:
        manager.allocate("web-5", ports=[80])
    monkeypatch.undo()
    asked = {sql for sql in said if sql.split()[0] in ("SELECT", "DELETE", "UPDATE")}
    asked = {sql for sql in asked if "sqlite_schema" not in sql}
    assert len(asked) > 20
    for sql in asked - WHOLE:
        steps = plan_of(path, sql)
        limited = "LIMIT ?" in sql and "WHERE" not in sql  # the first ones by key
        assert all(s.startswith("SEARCH") or limited for s in steps) and steps, (sql, steps)
        assert not any("TEMP B-TREE" in step for step in steps), (sql, steps)


def test_what_one_allocation_costs(tmp_path, monkeypatch):
    """Statements, pages written and calls of functions: numbers that no other load changes."""
    said, calls = [], []
    with NetworkManager(
        "br0", network="10.0.0.1/16", backend="null", store=tmp_path / "store.db"
    ) as manager:
        for _ in range(300):
            manager.allocate("web")
        log = tmp_path / "store.db-wal"
        before = log.stat().st_size
        for _ in range(50):
            manager.allocate("web")
        assert (log.stat().st_size - before) / 4120 / 50 <= 3.3
        connection = manager._leases.committer.store._file.writer()
        connection._raw.set_trace_callback(said.append)
        manager.allocate("web")
        connection._raw.set_trace_callback(None)
        sys.setprofile(lambda frame, event, arg: calls.append(event))
        manager.allocate("web")
        sys.setprofile(None)
    assert [sql.split()[0] for sql in said] == ["BEGIN", "SELECT", "INSERT", "UPDATE", "COMMIT"]
    assert calls.count("call") <= 75 and calls.count("c_call") <= 80


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
