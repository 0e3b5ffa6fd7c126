"""What a statement costs in the store's file: an index for each, and nothing read twice."""

import re
import sqlite3
import sys
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from netalloc import InUseError, NetallocError, Networks, NetworkView, PortRequest
from netalloc.ipam import allowances
from netalloc.manager.manager import NetworkManager
from netalloc.store.records import TABLES, Attachment
from netalloc.store.sqlite.bitmaps import SqliteBitmaps
from netalloc.store.sqlite.connection import Connection
from netalloc.store.sqlite.schema import table_name
from netalloc.store.sqlite.store import SqliteStore
from netalloc.store.sqlite.table import SqliteTable

LOOKUPS = [
    (kind, shape[: i + 1])
    for kind, spec in TABLES.items()
    for shape in (spec.key, *spec.indexes)
    for i in range(len(shape))
]

# May be read from one end to the other: one row; as many as there are networks; and, where a
# bitmap is not found, as many as there are bitmaps, for none of them may be hidden by damage.
WHOLE = {"state", "network", "bitmap"}

HINT = re.compile(r" INDEXED BY \w+")
VALUE = re.compile(r"[xX]?'(?:[^']|'')*'|\bNULL\b|(?<![\w\"?])-?\d+(?!\w)")
# Compared with the one row that the whole key has found, and with no other.
COMPARED = re.compile(r"\+\"(\w+)\"")
KEYS = {table_name(kind): set(spec.key) for kind, spec in TABLES.items()}
CONDITION = re.compile(r"\"?(\w+)\"? *(?:IS|IN|BETWEEN|[=<>]=?)")


def without_values(sql: str) -> str:
    """A statement as it was prepared: sqlite3 shows it so up to Python 3.10, later with values."""
    return VALUE.sub("?", sql)


def plan(connection: sqlite3.Connection, sql: str) -> list[str]:
    """The steps in which SQLite goes about a statement."""
    rows = connection.execute(f"EXPLAIN QUERY PLAN {sql}", (1,) * sql.count("?"))
    return [row[-1] for row in rows]


def complaint(connection: sqlite3.Connection, sql: str) -> str | None:
    """What is wrong with how SQLite finds the rows of a statement."""
    steps = plan(connection, sql)
    where = re.split(r" ORDER BY | LIMIT | RETURNING ", sql.partition(" WHERE ")[2])[0]
    compared = set(COMPARED.findall(where))
    wanted = set(CONDITION.findall(where)) - {"crc"}  # to be sure of the row that the key found
    if compared:
        table = re.split(r"DELETE FROM |UPDATE ", sql)[1].split()[0]
        wanted = (wanted - compared) | KEYS[table]
    for step in steps:
        if step.startswith("SCAN"):
            first_ones = " LIMIT ?" in sql and len(steps) == 1
            if not where and (first_ones or step.split()[1] in WHOLE):
                continue
            return f"{sql}: {step}: every row is read"
        if not step.startswith("SEARCH"):
            return f"{sql}: {step}: what is found is sorted or copied"
        used = set(re.findall(r"(\w+)[=<>]", step.replace("rowid=", "id=")))
        if not wanted <= used:
            return f"{sql}: {step}: rows are passed by that differ in {wanted - used}"
        index = re.search(r" INDEX (?!sqlite_autoindex)(\w+)", step)
        if index is not None and f" INDEXED BY {index[1]} " not in sql:
            return f"{sql}: {step}: another SQLite may take another index than {index[1]}"
    return None


def everything(store: Path) -> None:
    """Each call of the public API, but those that go through all by nature.

    These are check(), repair(), and what ends all leases after a reboot.
    """
    with Networks(store) as host:
        manager = host.create(
            "web", "10.0.0.1/24", bridge="br0", backend="null", cooldown=0.0, sticky=3600
        )
        cooling = host.create("cool", "10.0.1.1/29", bridge="br1", backend="null", cooldown=3600)
        host.create("gone", "10.0.2.1/24", bridge="br2", backend="null")
        host.remove("gone")
        one = manager.allocate("web", key="a", labels={"app": "shop"}, ports=(80, 443))
        manager.allocate("web", key="a", labels={"app": "shop"}, ports=(80, 443))
        one.publish([53, PortRequest(53, "udp", 5353), PortRequest(80, host_ip="192.0.2.1")])
        one.publish([PortRequest(54, "udp", 5454)])
        block = one.allocate_ports(10)
        one.release_port(block[0])
        one.release_port(5353, "udp")
        lease = one._lease
        attached = Attachment(
            *lease[:3], "veth", "ve1", 5, "4:4026531840", "eth0", "02:00:0a:00:00:02", 1500
        )
        host._store.run("attach", lambda tx: tx.table(Attachment).add((attached,)))
        host._store.view(lambda tx: tx.table(Attachment).where("index", equal=(5,)))
        pair = allowances.pair(*attached[:2], 77)
        host._store.run("allow", lambda tx: allowances.enter(tx, pair))
        host._store.view(lambda tx: [allowances.of(tx, 1, 77), allowances.of_network(tx, 1)])
        host._store.run("disallow", lambda tx: allowances.drop(tx, pair))
        manager.reserve("10.0.0.99", "kept")
        manager.allocate("kept").release()
        manager.unreserve("10.0.0.99")
        manager.allocate_many(20, (80,), "many", labels={"app": "shop"})
        for refused in (
            lambda: manager.allocate("other", one.ip),
            lambda: manager.allocate("web", "10.0.0.77", key="a"),
            lambda: manager.allocate("web", key="a", ports=(1,)),
            lambda: manager.allocate(ports=[PortRequest(53, "udp", 5454)]),
            lambda: manager.allocate_many(1000),
            lambda: manager.reserve(one.ip, "other"),
            lambda: cooling.allocate_many(6),
        ):
            with suppress(NetallocError):
                refused()
        manager.find("many"), manager.find(label="app=shop"), manager.interfaces()
        manager.history(one.ip), one.ports(), manager.find("web")[0].labels
        manager.release("many")
        manager.gc(["web"], 0)
        manager.allocate("dead")
        manager.gc(["web"], 0), manager.gc(["web"], 0)
        manager.reconcile()
        one.release()
        manager.allocate("web", key="a").release()
        cooling.allocate_many(5, owner="cool")
        cooling.release("cool")
        cooling.allocate("cool", allow_cooling=True).release()
        assert len(host) == 2 and "web" in host and host["web"]
        host.release("web")
        host.gc(["web"])
    with NetworkView(store) as view:
        view.networks(), view.usage(), view.find(), view.find("web"), view.find(label="app=shop")
        view.who(one.ip), view.who("udp/5454"), view.why(one.ip), view.history(one.ip)
    NetworkManager.open("web", store).close()


@pytest.fixture(scope="module")
def stated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store after everything(), and the statements that this took, without their values."""
    store, traced = tmp_path_factory.mktemp("plans") / "store.db", list[str]()

    class Traced(sqlite3.Connection):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            self.set_trace_callback(traced.append)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Traced))
        patch.setattr("netalloc.ipam.ended.HISTORY", 10)  # so that it drops some
        everything(store)
    return store, sorted(set(map(without_values, traced)))


def planned(statements: list[str]) -> list[str]:
    """Those for which SQLite makes a plan."""
    verbs = ("SELECT", "INSERT", "REPLACE", "UPDATE", "DELETE", "WITH")
    return [sql for sql in statements if sql.startswith(verbs) and "sqlite_schema" not in sql]


def test_every_statement_finds_its_rows_by_an_index_that_it_names(stated):
    store, statements = stated
    with closing(sqlite3.connect(store)) as connection:
        found = [complaint(connection, sql) for sql in planned(statements)]
    assert [said for said in found if said] == []


def test_every_table_was_read_from_and_every_kind_of_record_written(stated):
    store, statements = stated
    seen = {
        (sql.split()[0], name)
        for sql in planned(statements)
        for name in re.findall(r"(?:FROM|INTO|UPDATE) (\w+)", sql)
    }
    with closing(sqlite3.connect(store)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        assert {name for verb, name in seen if verb == "SELECT"} >= {name for (name,) in tables}
    for kind in map(table_name, TABLES):
        assert ("INSERT", kind) in seen
        assert ("DELETE", kind) in seen


def test_no_index_hint_can_be_taken_away(stated):
    """Each of them is missed; and without one the planner does take the wrong index."""
    store, statements = stated
    hinted = [sql for sql in planned(statements) if HINT.search(sql)]
    assert hinted
    with closing(sqlite3.connect(store)) as connection:
        said = [complaint(connection, HINT.sub("", sql)) for sql in hinted]
    assert None not in said
    assert [one for one in said if one and "are passed by" in one]


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT * FROM lease", "every row is read"),
        ("SELECT * FROM lease WHERE owner IS ?", "every row is read"),
        ("SELECT * FROM lease WHERE network IS ? AND since_ns > ?", "differ in {'since_ns'}"),
        ("SELECT * FROM lease WHERE network IS ? ORDER BY since_ns", "sorted"),
        ('DELETE FROM lease WHERE network IS ? AND +"owner" IS ?', "differ in {'ordinal'}"),
    ],
)
def test_the_assertion_sees_what_is_wrong(stated, sql, reason):
    with closing(sqlite3.connect(stated[0])) as connection:
        said = complaint(connection, sql)
    assert said is not None and reason in said


def asked(tmp_path, kind, ask):
    """The one statement by which a table of an empty store is asked something."""
    SqliteStore(tmp_path / "store.db").close()
    said = []

    class Noted(Connection):
        def rows(self, sql, values=()):
            said.append(sql)
            return []

    with closing(Noted(tmp_path / "store.db")) as noted:
        ask(SqliteTable(kind, noted))
    (sql,) = said
    return sql


@pytest.mark.parametrize(("kind", "fields"), LOOKUPS, ids=str)
def test_every_look_up_is_a_search_by_all_of_its_fields(tmp_path, kind, fields):
    sql = asked(tmp_path, kind, lambda table: table.where(*fields, equal=(1,) * len(fields)))
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        assert complaint(connection, sql) is None
        (step,) = plan(connection, sql)
    assert step.startswith("SEARCH"), step
    assert step.count("=?") == len(fields), step


@pytest.mark.parametrize(
    ("kind", "fields"),
    [(kind, shape) for kind, spec in TABLES.items() for shape in spec.descending],
    ids=str,
)
def test_a_look_downward_is_a_search_in_that_order(tmp_path, kind, fields):
    sql = asked(tmp_path, kind, lambda table: table.up_to(*fields, equal=(1, 2), limit=1))
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        assert complaint(connection, sql) is None
        (step,) = plan(connection, sql)
    first, last = fields
    assert step.endswith(f"({first}=? AND {last}<?)"), step


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


def test_a_refusal_leaves_what_it_only_read(tmp_path, monkeypatch):
    """What it changed is read anew, and after an interrupt all of it is."""
    read, original = [], SqliteBitmaps._read
    monkeypatch.setattr(
        SqliteBitmaps, "_read", lambda self, name: (read.append(name), original(self, name))[1]
    )
    with NetworkManager(
        "br0", network="10.0.0.1/16", backend="null", store=tmp_path / "store.db"
    ) as manager:
        one = manager.allocate("first", ports=[PortRequest(80, host_port=5000)])
        manager.allocate("second")

        def interrupted(protocol, port, ip):
            raise KeyboardInterrupt

        def again():
            with pytest.raises(InUseError):
                one.allocate_port(80, host_port=5000)

        again()
        read.clear()
        again()
        again()
        assert read == []
        with pytest.raises(InUseError):
            manager.allocate("third", ports=[PortRequest(80, host_port=5000)])
        again()
        assert str(manager.allocate("third").ip) == "10.0.0.4"
        assert read == ["addresses/1"]
        read.clear()
        probe, manager._leases.publications.ports.probe = (
            manager._leases.publications.ports.probe,
            interrupted,
        )
        with pytest.raises(KeyboardInterrupt):
            manager.allocate("fourth", ports=[80])
        manager._leases.publications.ports.probe = probe
        assert str(manager.allocate("fourth", ports=[80]).ip) == "10.0.0.5"
        assert set(read) == {"addresses/1", "ports/tcp/used", "ports/tcp/every"}
        assert manager.check() == []
