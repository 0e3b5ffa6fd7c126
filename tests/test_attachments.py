"""The record of what a lease is on the machine: it ends with the lease, wherever that ends."""

import sqlite3

import pytest

from netalloc import NetworkManager, Networks
from netalloc.ipam.networks import find, purge
from netalloc.ipam.reboot import AfterReboot, end_of_boot
from netalloc.manager.repair import make_anew, repair
from netalloc.store.memory import MemoryStore
from netalloc.store.records import Attachment, Lease
from netalloc.store.sqlite.store import SqliteStore


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "host.db")
    yield made
    made.close()


@pytest.fixture
def manager(store):
    network = ("10.88.0.1/24", "fd00:88::1/64")
    with NetworkManager("br0", network=network, backend="null", store=store) as made:
        yield made


def attached(interface, **fields):
    lease = interface._lease
    record = Attachment(
        lease.network, lease.ordinal, lease.generation, "veth", f"ve{lease.ordinal}",
        100 + lease.ordinal, "4:4026531840", "eth0", "02:00:0a:58:00:02", 1500,
    )  # fmt: skip
    return record._replace(**fields)


def enter(store, *records):
    store.run("attach", lambda tx: tx.table(Attachment).add(records))


def all_of(store):
    return sorted(store.view(lambda tx: tx.table(Attachment).all()))


def test_it_is_found_by_its_lease_and_by_its_index(store, manager):
    one, two = manager.allocate_many(2)
    tap = attached(two, kind="tap", namespace=None, peer=None)
    enter(store, attached(one), tap)

    def look(tx):
        table = tx.table(Attachment)
        assert table.get(1, one._lease.ordinal) == attached(one)
        assert table.where("index", equal=(tap.index,)) == [tap]
        assert table.where("network", equal=(1,)) == [attached(one), tap]

    store.view(look)
    assert manager.check() == []


@pytest.mark.parametrize("way", ["release", "owner", "gc", "context"])
def test_it_ends_with_its_lease(store, manager, way):
    kept, one = manager.allocate("kept"), manager.allocate("gone")
    enter(store, attached(kept), attached(one))
    if way == "release":
        one.release()
    elif way == "owner":
        manager.release("gone")
    elif way == "context":
        with one:
            pass
    else:
        assert manager.gc(["kept"], grace=0) == []
        assert manager.gc(["kept"], grace=0) == [one.ip]
    assert all_of(store) == [attached(kept)]
    assert manager.check() == []
    again = manager.allocate("gone", one.ip)
    enter(store, attached(again))
    assert len(all_of(store)) == 2


def test_a_change_that_fails_brings_it_back(store, manager):
    one = manager.allocate("gone")
    enter(store, attached(one))

    def change(tx):
        tx.table(Lease).remove((one._lease,))
        manager._leases.addresses.end(tx, (one._lease,))
        assert tx.table(Attachment).all() == []
        raise KeyError

    with pytest.raises(KeyError):
        store.run("release", change)
    assert all_of(store) == [attached(one)]
    assert manager.check() == []


def test_it_goes_with_its_network(store, manager):
    enter(store, attached(manager.allocate()))
    store.run("purge", lambda tx: purge(tx, find(tx, "br0")))
    assert all_of(store) == []


def test_removing_a_network_takes_strays_along(tmp_path):
    path = tmp_path / "host.db"
    with Networks(path) as host, SqliteStore(path) as store:
        one = host.create("web", "10.88.0.1/24", backend="null").allocate()
        one.release()
        enter(store, attached(one))
        host.remove("web")
        assert all_of(store) == []


def test_a_boot_ends_all(store, manager):
    enter(store, *[attached(one) for one in manager.allocate_many(3)])
    assert store.view(lambda tx: AfterReboot(tx).table(Attachment).all()) == []
    store.run("reboot", end_of_boot)
    assert all_of(store) == []
    assert manager.check() == []


def test_one_without_its_lease_is_named_and_taken_away(store, manager):
    one, two = manager.allocate_many(2)
    strays = attached(one, ordinal=99), attached(two, generation=1000), attached(two, network=9)
    enter(store, attached(one), *strays)
    found = manager.check()
    assert len(found) == 3
    for stray in strays:
        assert f"an attachment is of no lease: {stray}" in found
    done = manager.repair()
    assert sum("Attachment" in line for line in done) == 3
    assert all_of(store) == [attached(one)]
    assert manager.check() == []


def test_a_file_made_anew_keeps_those_of_a_lease(tmp_path):
    path = tmp_path / "host.db"
    with (
        SqliteStore(path) as store,
        NetworkManager("br0", network="10.88.0.1/24", backend="null", store=store) as manager,
    ):
        one, two, three = manager.allocate_many(3)
        enter(store, attached(one), attached(two), attached(three, generation=1000))
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute("UPDATE attachment SET mtu = 9000 WHERE ordinal = 1")
    raw.close()
    with SqliteStore(path) as store:
        assert any("attachment is damaged" in line for line in store.check())
    done = repair(path)
    assert any("dropped 1 of Attachment" in line for line in done)
    assert any("lost: a row of attachment" in line for line in done)
    with NetworkManager.open("br0", path) as manager, SqliteStore(path) as store:
        assert all_of(store) == [attached(one)]
        assert manager.check() == []
        assert make_anew(path, 10.0) == []
        assert all_of(store) == [attached(one)]


def test_where_there_is_none_no_call_asks_for_it(tmp_path):
    """Of the table in a file, that is: an empty one is known by its counter."""
    asked = []
    with (
        SqliteStore(tmp_path / "host.db") as store,
        NetworkManager("br0", network="10.88.0.1/24", backend="null", store=store) as manager,
    ):
        manager.allocate().release()
        store._file.writer()._raw.set_trace_callback(asked.append)
        manager.allocate().release()
    assert asked
    assert not [sql for sql in asked if "attachment" in sql]
