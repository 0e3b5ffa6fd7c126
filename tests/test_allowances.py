"""The record that two leases reach each other: it ends with either, wherever that ends."""

import pytest

from netalloc import InUseError, InvalidValueError, NetworkManager, Networks
from netalloc.ipam import allowances
from netalloc.ipam.networks import find, purge
from netalloc.ipam.reboot import end_of_boot
from netalloc.manager.repair import make_anew
from netalloc.store.memory import MemoryStore
from netalloc.store.records import Allowance
from netalloc.store.sqlite.store import SqliteStore

HIGHEST = (1 << 64) - 1


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "host.db")
    yield made
    made.close()


@pytest.fixture
def manager(store):
    network = ("10.88.0.1/24", "fd00:88::1/64")
    with NetworkManager(
        "br0", network=network, backend="null", store=store, isolation="guarded"
    ) as made:
        yield made


def of(one, other):
    return allowances.pair(1, one._lease.ordinal, other._lease.ordinal)


def enter(store, *pairs):
    def change(tx):
        for pair in pairs:
            allowances.enter(tx, pair)

    store.run("allow", change)


def all_of(store):
    return sorted(store.view(lambda tx: tx.table(Allowance).all()))


@pytest.mark.parametrize(("one", "other"), [(3, 9), (9, 3), (3, HIGHEST), (HIGHEST - 1, HIGHEST)])
def test_a_pair_is_one_record_whoever_is_named_first(store, one, other):
    def change(tx):
        pair = allowances.pair(1, one, other)
        assert pair == allowances.pair(1, other, one)
        assert allowances.ordinals(pair) == (min(one, other), max(one, other))
        assert allowances.enter(tx, pair) and not allowances.enter(tx, pair)
        for ordinal in (one, other):
            assert allowances.of(tx, 1, ordinal) == [pair]
        assert allowances.of_ordinals(tx, 1, (one, other, 77)) == [pair]
        assert allowances.of(tx, 2, one) == allowances.of(tx, 1, 77) == []
        assert allowances.of_network(tx, 1) == [pair]
        assert allowances.drop(tx, pair) and not allowances.drop(tx, pair)

    store.run("allow", change)


@pytest.mark.parametrize("way", ["release", "owner", "gc"])
@pytest.mark.parametrize("which", [0, 1])
def test_it_ends_with_either_lease(store, manager, way, which):
    pair = [manager.allocate("one"), manager.allocate("two")]
    third = manager.allocate("third")
    enter(store, of(*pair), of(pair[1 - which], third), of(pair[which], third))
    gone, stays = pair[which], pair[1 - which]
    if way == "release":
        gone.release()
    elif way == "owner":
        manager.release(gone.owner)
    else:
        for _ in range(2):
            manager.gc([stays.owner, "third"], grace=0)
    assert all_of(store) == [of(stays, third)]
    assert manager.check() == []
    manager.allocate("next", gone.ip)
    assert all_of(store) == [of(stays, third)]


def test_it_goes_with_its_network_and_with_the_boot(store, manager):
    one, two = manager.allocate_many(2)
    enter(store, of(one, two))
    store.run("reboot", end_of_boot)
    assert all_of(store) == []
    enter(store, of(one, two))
    store.run("purge", lambda tx: purge(tx, find(tx, "br0")))
    assert all_of(store) == []


def test_one_without_its_leases_is_named_and_taken_away(store, manager):
    one, two = manager.allocate_many(2)
    strays = [
        allowances.pair(1, one._lease.ordinal, 99),
        allowances.pair(1, 98, 99),
        allowances.pair(9, 1, 2),
    ]
    enter(store, of(one, two), *strays)
    found = manager.check()
    assert len(found) == 3
    for stray in strays:
        assert f"an allowance is of no two leases: {stray}" in found
    assert sum("Allowance" in line for line in manager.repair()) == 3
    assert all_of(store) == [of(one, two)]
    assert manager.check() == []


def test_a_file_made_anew_keeps_those_of_two_leases(tmp_path):
    path = tmp_path / "host.db"
    with (
        SqliteStore(path) as store,
        NetworkManager("br0", network="10.88.0.1/24", backend="null", store=store) as manager,
    ):
        one, two = manager.allocate_many(2)
        enter(store, of(one, two), allowances.pair(1, one._lease.ordinal, 99))
    done = make_anew(path, 10.0)
    assert any("dropped 1 of Allowance" in line for line in done)
    with NetworkManager.open("br0", path) as manager, SqliteStore(path) as store:
        assert all_of(store) == [of(one, two)]
        assert manager.check() == []


def test_where_there_is_none_no_call_asks_for_it(tmp_path):
    asked = []
    with (
        SqliteStore(tmp_path / "host.db") as store,
        NetworkManager("br0", network="10.88.0.1/24", backend="null", store=store) as manager,
    ):
        manager.allocate().release()
        store._file.writer()._raw.set_trace_callback(asked.append)
        manager.allocate().release()
    assert asked and not [sql for sql in asked if "allowance" in sql]


# ---- services


def test_services_are_in_the_record_and_must_be_agreed_upon(tmp_path):
    path = tmp_path / "host.db"
    with Networks(path) as host:
        made = ("443/tcp", "53/udp", "443/tcp")
        host.create("web", "10.88.0.1/24", backend="null", isolation="guarded", services=made)
        host.create("lab", "10.89.0.1/24", backend="null", isolation="guarded")
        assert host["web"].services == ("53/udp", "443/tcp")
        assert host["lab"].services == ()
    NetworkManager("web", store=path, services=["53/udp", "443/tcp"]).close()
    with pytest.raises(InUseError, match="services 53/udp,443/tcp, not 53/udp: leave"):
        NetworkManager("web", store=path, services=["53/udp"])
    with pytest.raises(InUseError, match="services 53/udp,443/tcp, not none: leave"):
        NetworkManager("web", store=path, services=())


@pytest.mark.parametrize(
    ("services", "message"),
    [
        ("53/udp", "services '53/udp' is text"),
        (["53"], "service '53' is no port"),
        ([53], "service 53 is not text"),
        (["0/udp"], "service '0/udp' is no port"),
        (["65536/tcp"], "service '65536/tcp' is no port"),
        (["-1/tcp"], "service '-1/tcp' is no port"),
        (["٣/tcp"], "is no port"),
        (["53/icmp"], "service '53/icmp' is no port"),
        (["53/udp/"], "is no port"),
        (7, "services 7 cannot be read"),
    ],
)
def test_services_that_are_none(services, message):
    with pytest.raises(InvalidValueError, match=message):
        NetworkManager(
            "br0", network="10.88.0.1/24", backend="null", isolation="guarded", services=services
        )


def test_an_open_network_has_no_services():
    with pytest.raises(InvalidValueError, match=r"services 53/udp: network br0 is open"):
        NetworkManager("br0", network="10.88.0.1/24", backend="null", services=["53/udp"])
