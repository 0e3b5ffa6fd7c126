"""Mending what differs, place by place, while others go on with the store."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from netalloc import NetworkManager, PortRequest
from netalloc.errors import InUseError, StoreError
from netalloc.ipam import mend
from netalloc.manager import repair as repairs
from netalloc.manager.repair import QUARANTINE, repair
from netalloc.store.records import (
    Cooldown,
    GcCandidate,
    Label,
    Lease,
    Publication,
    Reservation,
)
from netalloc.store.sqlite.store import SqliteStore

PATIENCE = 30
USED, EVERY, MORE = (f"ports/tcp/{kind}" for kind in ("used", "every", "more"))


@pytest.fixture(params=["memory", "file"])
def manager(request, tmp_path):
    store = None if request.param == "memory" else tmp_path / "store.db"
    with NetworkManager(
        "br0", network="10.0.0.5/24", exclude=["10.0.0.128/25"], backend="null", store=store
    ) as manager:
        manager.allocate("web", key="a", labels={"app": "shop"}, ports=(80, PortRequest(53)))
        manager.allocate("api", ports=[PortRequest(80, host_port=81, host_ip="192.0.2.1")])
        manager.allocate("api", ports=[PortRequest(80, host_port=81, host_ip="192.0.2.2")])
        manager.allocate("block").allocate_ports(10)
        yield manager


def change(manager, work):
    return manager._leases.committer.store.run("sabotage", work)


def lease_of(manager, owner):
    return manager._leases.find(owner, None)[0]


def bits(tx, name):
    return tx.bitmap(name, 65536 * (32 if name == MORE else 1))


def lose_the_lease(tx):
    (lease,) = tx.table(Lease).where("network", "owner", equal=(1, "block"))
    tx.table(Lease).remove([lease])


def lose_a_publication(tx):
    tx.table(Publication).remove(tx.table(Publication).where("network", "ordinal", equal=(1, 0)))


def of_no_network(tx):
    tx.table(Lease).add([Lease(9, 1, 77, 0, "x", None, 1)])
    tx.table(Reservation).add([Reservation(9, 2, "x", 1)])


def twins(tx):
    tx.table(Lease).add([Lease(1, 60, 999, 0, "web", "a", 1)])


# What is done to a store, and what is said of it when it was mended.
DAMAGE = {
    "a mark is lost": (lambda tx: tx.bitmap("addresses/1", 252).release(0), "marked as taken"),
    "a mark is too much": (lambda tx: tx.bitmap("addresses/1", 252).reserve(99), QUARANTINE),
    "a lease is lost": (lose_the_lease, QUARANTINE),
    "what is excluded is free": (
        lambda tx: [tx.bitmap("addresses/1", 252).release(i) for i in (3, 130, 131, 200)],
        "never given again",
    ),
    "a cool-down without a mark": (
        lambda tx: tx.table(Cooldown).add([Cooldown(1, 70, 1 << 60)]),
        "marked as taken",
    ),
    "a publication is lost": (lose_a_publication, "is now Lease("),
    "records of no network": (of_no_network, "dropped"),
    "a label of no lease": (lambda tx: tx.table(Label).add([Label(1, 90, "a", "b")]), "dropped"),
    "a candidate of no lease": (
        lambda tx: tx.table(GcCandidate).add([GcCandidate(1, 0, 99, 1)]),
        "dropped",
    ),
    "two of one key": (twins, "key=None"),
    "a port is not marked": (lambda tx: bits(tx, USED).release(81), "port 81/tcp was mended"),
    "a port is marked": (lambda tx: bits(tx, EVERY).reserve(5000), "port 5000/tcp was mended"),
    "addresses of a port are counted wrong": (
        lambda tx: bits(tx, MORE).reserve(81 * 32 + 3),
        "port 81/tcp was mended",
    ),
    "a port on one address is marked": (
        lambda tx: bits(tx, "ports/tcp/on/192.0.2.9").reserve(5000),
        "port 5000/tcp was mended",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_differs_is_mended_in_its_place(manager, what):
    sabotage, said = DAMAGE[what]
    assert manager.check() == []
    store = manager._leases.committer.store
    change(manager, sabotage)
    assert manager.check() != []
    path = Path(store.path) if hasattr(store, "path") else None
    file = path and path.stat().st_ino
    done = "\n".join(manager.repair())
    assert said in done
    assert manager.check() == []
    if path:
        assert path.stat().st_ino == file  # the very same, and nothing is left beside it
        names = {one.name for one in path.parent.iterdir()}
        assert names >= {"store.db", "store.db.damaged-1"}
        assert not [name for name in names if "salvage" in name or name.endswith("-journal")]
    again = manager.repair()
    assert [line for line in again if "a copy" not in line and "kernel: " not in line] == []
    change(manager, lambda tx: None)
    manager.allocate("next", ports=(80,)).release()
    assert manager.check() == []


def test_a_whole_store_is_left_as_it_is(manager):
    before = manager._leases.survey(lambda tx: [*tx.table(Lease).all()])
    done = manager.repair()
    assert done[-1].startswith("kernel: ")
    assert manager._leases.survey(lambda tx: [*tx.table(Lease).all()]) == before
    store = manager._leases.committer.store
    assert not store.needs_recovery(1)


@pytest.mark.parametrize("what", [one for one in DAMAGE if "excluded" not in one])
def test_a_step_leaves_alone_what_agrees_again(manager, what):
    """The steps of a look at what was right by the time that they are taken."""
    sabotage, _ = DAMAGE[what]
    change(manager, sabotage)
    steps = manager._leases.survey(mend.look)
    assert steps
    change(manager, lambda tx: mend.take(steps, tx))
    manager.repair()
    assert change(manager, lambda tx: mend.take(steps, tx)) == []
    assert manager.check() == []


def test_a_port_that_was_given_since_the_look_is_not_taken_away(manager):
    """It was marked by mistake and is not any more, and a block of ports reaches over it."""
    change(manager, lambda tx: [bits(tx, name).reserve(5005) for name in (USED, EVERY)])
    steps = manager._leases.survey(mend.look)
    change(manager, lambda tx: mend.take(steps, tx))
    manager.allocate("later").publish([PortRequest(5000, host_port=5000, count=10)])
    assert change(manager, lambda tx: mend.take(steps, tx)) == []
    assert manager.check() == []
    with pytest.raises(InUseError, match="later"):
        manager.allocate(ports=[PortRequest(1, host_port=5005)])


def test_an_address_that_changed_hands_since_the_look_stays_as_it_is(manager):
    change(manager, lambda tx: tx.bitmap("addresses/1", 252).reserve(99))
    steps = manager._leases.survey(mend.look)
    change(manager, lambda tx: tx.bitmap("addresses/1", 252).release(99))
    manager.allocate("later", manager.subnet.address(99))
    assert change(manager, lambda tx: mend.take(steps, tx)) == []
    assert manager.check() == []


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "store.db"
    with NetworkManager("br0", network="10.0.0.1/16", backend="null", store=path) as manager:
        manager.allocate_many(300, owner="x")
    return path


def mark_too_much(tx):
    for i in range(900, 1150):
        tx.bitmap("addresses/1", 65533).reserve(i)


def test_nothing_waits_for_a_look_and_a_change_of_a_repair_is_a_part_of_it(path, monkeypatch):
    looked, changes = [], []
    find = mend.look

    def look(tx):
        found = find(tx)
        with NetworkManager.open("br0", path) as manager:  # in the middle of the look
            thread = threading.Thread(target=manager.allocate, args=("meanwhile",))
            thread.start()
            thread.join(PATIENCE)
            assert not thread.is_alive()
        looked.append(len(found))
        return found

    run = SqliteStore.run

    def noted(self, operation, work, **options):
        changes.append(operation)
        return run(self, operation, work, **options)

    with SqliteStore(path) as store:
        store.run(
            "sabotage",
            lambda tx: [tx.bitmap("addresses/1", 65533).reserve(i) for i in range(900, 1150)],
        )
    monkeypatch.setattr(repairs, "look", look)
    monkeypatch.setattr(SqliteStore, "run", noted)
    done = repair(path)
    assert looked == [250, 0]
    assert changes.count("repair") == 4  # a hundred steps each, and the last one tidies up
    assert len(done) == 251
    monkeypatch.undo()
    with NetworkManager.open("br0", path) as manager:
        assert manager.check() == []
        assert len(manager.find("meanwhile")) == 2


def test_the_kernel_is_looked_at_after_a_mend(path):
    with SqliteStore(path) as store:
        store.run("sabotage", lambda tx: tx.bitmap("addresses/1", 65533).reserve(900))
        assert not store.needs_recovery(1)
        repair(path)
        assert store.needs_recovery(1)


def test_the_copy_is_the_store_as_it_was(path):
    with SqliteStore(path) as store:
        store.run("sabotage", lambda tx: tx.bitmap("addresses/1", 65533).reserve(900))
        before = store.view(lambda tx: tx.sequence)
        (line, *_) = repair(path)
    copy = line.partition(": ")[2]
    assert Path(copy).stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(copy)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert raw.execute("SELECT sequence FROM state").fetchall() == [(before,)]
        assert raw.execute("SELECT count(*) FROM reservation").fetchall() == [(0,)]


def test_a_file_that_is_damaged_is_made_anew(path):
    file = path.stat().st_ino
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("UPDATE lease SET owner = 'thief' WHERE ordinal = 7")
    assert f"10.0.0.9 is reserved: {QUARANTINE}" in repair(path)
    assert path.stat().st_ino != file
    with NetworkManager.open("br0", path) as manager:
        assert manager.check() == []


def test_a_writer_that_does_not_give_way_is_named(path):
    with SqliteStore(path) as store:
        store.run("sabotage", lambda tx: tx.bitmap("addresses/1", 65533).reserve(900))
        begun, go = threading.Event(), threading.Event()

        def hold(tx):
            begun.set()
            assert go.wait(PATIENCE)

        thread = threading.Thread(target=store.run, args=("allocate", hold))
        thread.start()
        assert begun.wait(PATIENCE)
        try:
            with pytest.raises(StoreError, match="waited"):
                repair(path, timeout=0.05)
        finally:
            go.set()
            thread.join(PATIENCE)
        assert any(QUARANTINE in line for line in repair(path))
