"""Records changed in place, or taken out, without a look at them first: over both stores."""

import sqlite3
from contextlib import closing

import pytest

from netalloc.errors import StaleLeaseError, StoreError
from netalloc.manager.manager import NetworkManager
from netalloc.store.memory import MemoryStore
from netalloc.store.records import EndedLease, Label, Lease
from netalloc.store.sqlite.store import SqliteStore

LEASE = Lease(1, 2, 3, 0, "web", None, 50)
HUGE = Lease(1, (1 << 64) - 1, 4, 0, None, "a", 50)


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    with closing(
        MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "store.db")
    ) as made:
        made.run("fill", lambda tx: tx.table(Lease).add((LEASE, HUGE)))
        yield made


def leases(store):
    return sorted(store.view(lambda tx: tx.table(Lease).all()))


@pytest.mark.parametrize("lease", [LEASE, HUGE])
def test_a_record_is_replaced_and_found_by_its_new_values(store, lease):
    counted = lease._replace(publications=7, owner="db")
    assert store.run("count", lambda tx: tx.table(Lease).replace(lease, counted))
    assert counted in leases(store) and lease not in leases(store)
    index = "network", "owner", "key"
    found = store.view(lambda tx: tx.table(Lease).where(*index, equal=(1, "db", lease.key)))
    assert found == [counted]
    assert store.run("the same", lambda tx: tx.table(Lease).replace(counted, counted))


@pytest.mark.parametrize("field", Lease._fields)
def test_what_is_there_otherwise_stays(store, field):
    """Whatever field differs; and nothing counts as changed."""
    other = LEASE._replace(**{field: "x" if field in ("owner", "key") else 77})

    def change(tx):
        before = tx.version
        table = tx.table(Lease)
        assert not table.discard(other)
        assert not table.replace(other, LEASE._replace(publications=9))
        assert tx.version == before

    store.run("miss", change)
    assert leases(store) == [LEASE, HUGE]


def test_what_is_undone_was_never_changed(store):
    def change(tx):
        table = tx.table(Lease)
        assert table.discard(HUGE)
        assert table.replace(LEASE, LEASE._replace(publications=1))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.run("undo", change)
    assert leases(store) == [LEASE, HUGE]


def test_a_table_that_is_empty_again_is_known_to_be(store):
    label = Label(1, 2, "app", "shop")
    store.run("add", lambda tx: tx.table(Label).add((label,)))
    assert store.run("take", lambda tx: tx.table(Label).discard(label))
    assert not store.view(lambda tx: bool(tx.table(Label)))


def test_the_oldest_are_the_oldest_whatever_came_and_went(store):
    past = [EndedLease(n, 1, n, n, None, None, 1, 2) for n in range(1, 9)]

    def oldest(n):
        return store.run("look", lambda tx: tx.table(EndedLease).oldest(n))

    def change(method, *records):
        store.run(method, lambda tx: getattr(tx.table(EndedLease), method)(records))

    change("add", *past[3:6])
    assert oldest(2) == past[3:5]
    change("add", past[6])
    assert oldest(5) == past[3:7]
    change("add", past[1])
    assert oldest(1) == past[1:2]
    change("remove", past[1])
    assert oldest(1) == past[3:4]

    def undone(tx):
        tx.table(EndedLease).remove(past[3:5])
        assert tx.table(EndedLease).oldest(1) == past[5:6]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.run("undo", undone)
    assert oldest(1) == past[3:4]


@pytest.mark.parametrize("call", ["release", "allocate_port"])
def test_a_damaged_lease_is_noticed_by_what_does_not_read_it(tmp_path, call):
    path = tmp_path / "store.db"
    with NetworkManager("br0", network="10.0.0.1/24", backend="null", store=path) as manager:
        web = manager.allocate("web")
        with closing(sqlite3.connect(path)) as raw:
            raw.execute("UPDATE lease SET since_ns = since_ns + 1")
            raw.commit()
        with pytest.raises(StoreError, match="a row of lease is damaged"):
            web.release() if call == "release" else web.allocate_port(80)
        with closing(sqlite3.connect(path)) as raw:
            assert raw.execute("SELECT count(*) FROM lease").fetchone() == (1,)
            assert raw.execute("SELECT count(*) FROM publication").fetchone() == (0,)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_an_interface_that_knows_an_older_state_of_its_lease(tmp_path, kind):
    """What another one publishes is counted, in whatever order they come."""
    place = MemoryStore() if kind == "memory" else tmp_path / "store.db"
    with NetworkManager("br0", network="10.0.0.1/24", backend="null", store=place) as manager:
        one = manager.allocate("web")
        (other,) = manager.find("web")
        one.allocate_port(80)
        other.allocate_port(81)
        one.allocate_port(82)
        other.release_port(other.ports()[0].host_port)
        assert [mapping.dest[1] for mapping in one.ports()] == [81, 82]
        assert manager.check() == []
        one.release()
        assert manager.interfaces() == [] and manager.check() == []


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_lease_that_has_ended_is_refused_for_that(tmp_path, kind):
    """Whatever else is wrong with what it asks for; and nothing of it is left."""
    place = MemoryStore() if kind == "memory" else tmp_path / "store.db"
    with NetworkManager(
        "br0", network="10.0.0.1/24", ports=range(8000, 8002), backend="null", store=place
    ) as manager:
        web = manager.allocate("web")
        (same,) = manager.find("web")
        same.release()
        other = manager.allocate("other", web.ip)
        for step in (
            lambda: web.allocate_port(80),
            lambda: web.allocate_port(80, host_port=8001),
            lambda: web.allocate_ports(3),
            lambda: web.release_port(8000),
        ):
            with pytest.raises(StaleLeaseError):
                step()
            assert other.ports() == () and manager.check() == []
        other.allocate_ports(2, host_port=8000)
        with pytest.raises(StaleLeaseError):
            web.allocate_port(80, host_port=8000)
        with pytest.raises(StaleLeaseError):
            web.allocate_port(80)
        web.release()
        assert manager.stale_releases == 1 and len(other.ports()) == 1
