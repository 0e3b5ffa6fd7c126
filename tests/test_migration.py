"""Files of older versions: brought up to date in one step, or left as they are."""

import base64
import sqlite3
import zlib
from enum import IntEnum
from ipaddress import ip_address
from pathlib import Path

import pytest

from faults import DieAt, in_child
from netalloc._alloc import Bitmap
from netalloc.errors import InvalidValueError, StoreError
from netalloc.ipam.check import check, rebuild_ports
from netalloc.manager.manager import NetworkManager
from netalloc.manager.repair import repair
from netalloc.store.records import (
    TABLES,
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
from netalloc.store.sqlite.connection import Connection
from netalloc.store.sqlite.schema import table_name
from netalloc.store.sqlite.spans import LEAF
from netalloc.store.sqlite.store import SqliteStore
from netalloc.store.sqlite.table import COUNTED
from netalloc.store.sqlite.versions import VERSION, statements
from netalloc.store.sqlite.write_lock import WriteLock

BOOT = "a boot of 2026"


@pytest.fixture
def path(tmp_path):
    """A store that the first edition made."""
    return made_by(2, tmp_path)


def made_by(version, tmp_path):
    """A store of that version."""
    name = f"store_version_{version}.txt"
    *_, lock, data = Path(__file__).with_name(name).read_text().split("\n", 4)
    path = tmp_path / "store.db"
    path.write_bytes(zlib.decompress(base64.b64decode(data)))
    (tmp_path / "store.db.lock").write_text(lock.ljust(511) + "\n")
    return path


def make_version_1(path):
    """The first edition's version 2 added two tables and changed nothing else."""
    with sqlite3.connect(path, isolation_level=None) as old:
        for table in ("former", "suspect"):
            old.execute(f"DROP TABLE {table}")
        old.execute("PRAGMA user_version = 1")
        old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    old.close()


def contents(path):
    """All that a file says, in the form of its version."""
    raw = sqlite3.connect(path)
    try:
        tables = raw.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        ((version,),) = raw.execute("PRAGMA user_version").fetchall()
        return version, {
            name: raw.execute(f"SELECT * FROM {name}").fetchall() for (name,) in tables
        }
    finally:
        raw.close()


def open_store(path, called=None):
    return SqliteStore(path, boot=BOOT, migrated=[].append if called is None else called.append)


def test_the_tables_are_those_of_the_records():
    """A change of the records needs a version of its own: then this one's text stays."""
    made = []
    for kind, shape in TABLES.items():
        quoted = [f'"{field}"' for field in (*kind._fields, "crc")]
        key = ", ".join(f'"{field}"' for field in shape.key)
        name = table_name(kind)
        made.append(f"CREATE TABLE {name} ({', '.join(quoted)}, PRIMARY KEY ({key})) WITHOUT ROWID")
        for i, index in enumerate(shape.indexes):
            fields = ", ".join(f'"{field}"' for field in index)
            made.append(f"CREATE INDEX {name}_{i} ON {name} ({fields})")
        assert kind._fields[: len(shape.key)] == shape.key
    assert made == [text for text in statements(VERSION) if text.split()[2] not in FIXED]


FIXED = ("state", "bitmap", "span")


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_the_first_edition_is_brought_up_to_date(path, version):
    if version == 1:
        make_version_1(path)
    _, old = contents(path)
    rows = {name: [row[:-1] for row in found] for name, found in old.items()}
    called = []
    with open_store(path, called) as store:
        assert [tx.dirty for tx in called] == [{1, 2, 3, 4}]
        assert all(store.needs_recovery(number) for number in (1, 2, 3, 4))
        assert store.check() == []
        tx = store.read()
        assert tx.table(Network).where("name", equal=("br6",)) == [
            Network(
                4, "br6", "br6", "bridge", None, "2001:db8::1/64", "", "", "", 0, 0, 0, "open", ""
            )
        ]
        assert [
            (one.name, one.bridge, one.subnet, one.subnet6)
            for one in sorted(tx.table(Network).all())
        ][:2] == [("br0", "br0", "10.88.0.1/24", None), ("br1", "br1", "10.89.0.1/24", None)]
        for kind, name in (
            (Label, "label"),
            (Publication, "publication"),
            (Cooldown, "cooling"),
            (EndedLease, "past"),
            (LastHolder, "former"),
            (GcCandidate, "suspect"),
        ):
            expected = sorted(rows.get(name, []), key=repr)
            assert sorted(tx.table(kind).all(), key=repr) == expected
        base = int(ip_address("2001:db8::1")) + 1
        leases = {(one.network, one.ordinal): one.owner for one in tx.table(Lease).all()}
        assert len(leases) == 49 and leases[1, 0] == "web" and "块 \u200b owner" in leases.values()
        assert leases[4, int(ip_address("2001:db8::ffff:ffff:ffff:fffe")) - base] == "top"
        half = int(ip_address("2001:db8::8000:0:0:1")) - base
        assert tx.table(Reservation).get(4, half).owner == "half"
        assert (
            tx.table(Lease).get(1, 0)
            == tx.table(Lease).where("network", "owner", "key", equal=(1, "web", "eth0"))[0]
        )
        assert list(tx.names("ports")) == []
        assert sorted(tx.names("")) == [f"addresses/{number}" for number in (1, 2, 3, 4)]
        assert len(tx.bitmap("addresses/2", 253)) == len([one for one in leases if one[0] == 2])
        tx.rollback()
        tx = store.begin("next")
        assert tx.next("generation") == 54
        tx.rollback()
    with open_store(path, called):
        assert len(called) == 1


def test_the_bitmaps_of_version_3_are_brought_over_as_they_are(tmp_path):
    """A run of leaves that is taken, scattered ones, none, and of a /64 both ends.

    Not those of host ports, which are made anew.
    """
    path = made_by(3, tmp_path)
    _, old = contents(path)
    taken = {
        name: [(start * LEAF, stop * LEAF) for start, stop in Bitmap.from_bytes(full).runs()]
        for name, _, _, _, full, _, _ in old["bitmap"]
    }
    for name, number, data, _ in old["leaf"]:
        runs = Bitmap.from_bytes(data).runs()
        taken[name] += [(number * LEAF + start, number * LEAF + stop) for start, stop in runs]
    with SqliteStore(path, boot=BOOT, migrated=rebuild_ports) as store:
        assert store.check() == []
        tx = store.read()
        brought = [row for row in old["bitmap"] if not row[0].startswith("ports")]
        stored = [name for name in tx.names("") if not name.startswith("ports")]
        assert sorted(stored) == sorted(name for name, *_ in brought)
        for name, size, cursor, count, *_ in brought:
            bitmap, found = tx.bitmap(name, int(size)), []
            start = bitmap.next_set(0)
            while start is not None:
                stop = bitmap.next_free(start)
                stop = int(size) if stop is None else stop
                found.append((start, stop))
                start = bitmap.next_set(stop)
            assert found == joined(taken[name]), name
            assert (len(bitmap), bitmap.cursor) == (int(count), int(cursor))
        assert len(tx.table(Lease).all()) == len(old["lease"]) > 100
        for kind in COUNTED:
            assert bool(tx.table(kind)) == bool(tx.table(kind).all())  # check() has counted
        assert list(check(tx)) == []
        tx.rollback()
    with NetworkManager.open("br0", SqliteStore(path, boot=BOOT)) as manager:
        held = {one.ip for one in manager.interfaces()}
        assert manager.allocate().ip not in held and manager.check() == []


def test_the_networks_of_version_4_are_open_and_all_else_is_as_it_was(tmp_path):
    path = made_by(4, tmp_path)
    _, old = contents(path)
    called = []
    with open_store(path, called) as store:
        assert [tx.dirty for tx in called] == [{1, 2, 3}]
        assert store.check() == [] and store.view(lambda tx: list(check(tx))) == []
        tx = store.read()
        assert [tuple(one) for one in sorted(tx.table(Network).all())] == [
            (*row[:-1], "open", "") for row in old["network"]
        ]
        assert tx.table(Network).where("name", equal=("web",))[0].exclude
        assert tx.table(Attachment).all() == [] and not tx.table(Attachment)
        for kind in COUNTED:
            assert bool(tx.table(kind)) == bool(tx.table(kind).all())
        tx.rollback()
    version, new = contents(path)
    assert version == VERSION
    assert set(new) - set(old) == {"attachment", "allowance"} and not set(old) - set(new)
    for name in set(old) - {"network", "state"}:
        assert new[name] == old[name], name
    with NetworkManager.open("web", SqliteStore(path, boot=BOOT)) as manager:
        (shop,) = manager.find("shop")
        assert [port.host_port for port in shop.ports()] == [5353, 8097, 8098]
        assert shop.labels == {"app": "ci"}
        assert manager.allocate().generation == 165
        assert manager.check() == []


@pytest.mark.parametrize("version", [3, 4])
def test_a_damaged_network_is_not_brought_over(tmp_path, version):
    path = made_by(version, tmp_path)
    with sqlite3.connect(path, isolation_level=None) as raw:
        raw.execute("UPDATE network SET mode = 'routed' WHERE number = 1")
    raw.close()
    before = contents(path)
    with pytest.raises(StoreError, match="a row of network is damaged"):
        open_store(path)
    assert contents(path) == before


def test_what_is_damaged_in_version_4_costs_that_alone(tmp_path):
    path = made_by(4, tmp_path)
    with sqlite3.connect(path, isolation_level=None) as raw:
        raw.execute("UPDATE lease SET owner = 'thief' WHERE owner = 'shop'")
        ((leases,),) = raw.execute("SELECT count(*) FROM lease")
    raw.close()
    done = "\n".join(repair(path))
    assert "thief" in done and "attachment" not in done
    with open_store(path) as store:
        assert store.check() == [] and store.view(lambda tx: list(check(tx))) == []
        found = store.view(lambda tx: tx.table(Network).all())
        assert {one.isolation for one in found} == {"open"} and len(found) == 3
        assert len(store.view(lambda tx: tx.table(Lease).all())) == leases - 1


def joined(runs):
    """Runs in order, those that touch as one."""
    found = []
    for start, stop in sorted(runs):
        touches = bool(found) and found[-1][1] == start
        found.append((found.pop()[0] if touches else start, stop))
    return found


@pytest.mark.parametrize("table", ["state", "bitmap", "leaf"])
def test_a_damaged_row_of_the_bitmaps_of_version_3_is_not_brought_over(tmp_path, table):
    path = made_by(3, tmp_path)
    with sqlite3.connect(path, isolation_level=None) as raw:
        raw.execute(f"UPDATE {table} SET crc = crc + 1")
    raw.close()
    before = contents(path)
    with pytest.raises(StoreError, match="is damaged"):
        open_store(path)
    assert contents(path) == before
    assert any("lost: " in line for line in repair(path))
    with open_store(path) as store:
        assert store.check() == [] and store.view(lambda tx: list(check(tx))) == []
        assert len(store.view(lambda tx: tx.table(Lease).all())) == len(before[1]["lease"])


def test_what_is_made_while_it_is_brought_over_is_committed_with_it(path):
    def rebuild(tx):
        tx.bitmap("ports/tcp/used", 65536).reserve(80)
        raise_once.pop()

    raise_once = []
    before = contents(path)
    with pytest.raises(IndexError):
        SqliteStore(path, boot=BOOT, migrated=rebuild)
    assert contents(path) == before
    raise_once.append(1)
    with SqliteStore(path, boot=BOOT, migrated=rebuild) as store:
        tx = store.read()
        assert 80 in tx.bitmap("ports/tcp/used", 65536) and len(list(tx.names(""))) == 5
        tx.rollback()
        assert store.check() == []


def test_a_boot_that_ended_meanwhile_ends_with_it(path):
    ended = []
    with SqliteStore(path, boot="the next one", end_of_boot=ended.append) as store:
        assert len(ended) == 1
        store.read().rollback()
        assert len(ended) == 1


def test_death_at_any_step_leaves_the_old_version_or_the_new(path, tmp_path):
    data, lock = path.read_bytes(), (tmp_path / "store.db.lock").read_bytes()
    step, status, versions = 0, None, []
    while status != 0:
        folder = tmp_path / str(step)
        folder.mkdir()
        copy = folder / "store.db"
        copy.write_bytes(data)
        (folder / "store.db.lock").write_bytes(lock)

        def work(copy=copy, step=step):
            die = DieAt(step)
            die.watch(Connection, "execute", "many", "rows")
            die.watch(WriteLock, "enter", "write", "leave")
            open_store(copy).close()

        status = in_child(work)
        versions.append(contents(copy)[0])
        with open_store(copy) as store:
            assert store.check() == []
            tx = store.read()
            assert len(tx.table(Lease).all()) == 49
            tx.rollback()
        step += 9 if 20 < step < 120 else 1
    assert versions[0] == 2 and versions[-1] == VERSION and versions == sorted(versions)


def test_a_damaged_row_is_not_brought_over_but_repair_takes_the_rest(path):
    with sqlite3.connect(path, isolation_level=None) as raw:
        raw.execute("UPDATE lease SET owner = 'thief' WHERE owner = 'web'")
    raw.close()
    before = contents(path)
    with pytest.raises(StoreError, match=r"a row of lease is damaged: .*'thief'"):
        open_store(path)
    assert contents(path) == before
    done = "\n".join(repair(path))
    assert "thief" in done and "10.88.0.2 is reserved: quarantine" in done
    with open_store(path) as store:
        tx = store.read()
        assert len(tx.table(Lease).all()) == 48 and len(tx.table(Label).all()) == 0
        tx.rollback()
        assert store.check() == []


class Colour(IntEnum):
    RED = 1


class Name(str):
    pass


@pytest.mark.parametrize(
    "owner", [True, Colour.RED, Name("web"), 1.0, b"web", ("web",), "\ud800", 1 << 63, -(1 << 70)]
)
def test_what_is_not_plain_is_never_written(tmp_path, owner):
    """A row of such a value would be read as another one, and so as damaged, for good."""
    with SqliteStore(tmp_path / "store.db", boot=BOOT) as store:
        tx = store.begin("add")
        good = Lease(1, 1, 1, 0, "web", None, 1)
        with pytest.raises(InvalidValueError, match=r"Lease\.owner"):
            tx.table(Lease).add((good, good._replace(ordinal=2, owner=owner)))
        with pytest.raises(InvalidValueError, match=r"Lease\.owner"):
            tx.table(Lease).remove((good._replace(owner=owner),))
        assert tx.table(Lease).all() == []
        tx.table(Lease).add((good._replace(ordinal=(1 << 64) - 1),))
        with pytest.raises(InvalidValueError, match=r"Lease\.ordinal"):
            tx.table(Lease).add((good._replace(ordinal=1 << 64),))
        tx.commit()
        assert store.check() == []
