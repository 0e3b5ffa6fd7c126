"""Which publications hold a host port: looked up, whatever else is published around it."""

import random
from ipaddress import IPv4Address

import pytest

from netalloc import (
    InUseError,
    InvalidValueError,
    NetallocError,
    NetworkManager,
    NetworkView,
    NotAllocatedError,
    PortRequest,
    StoreError,
)
from netalloc.ipam import publications
from netalloc.store.memory import MemoryStore
from netalloc.store.records import Publication
from netalloc.store.sqlite.store import SqliteStore

IPS = [f"192.0.2.{i}" for i in range(1, 9)]


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "host.db")
    yield made
    made.close()


@pytest.fixture
def manager(store):
    with NetworkManager(
        "br0", network="10.0.0.1/16", backend="null", store=store, ports=range(8000, 8100)
    ) as made:
        yield made


def publish(manager, port, count=1, ip=None, owner=None):
    request = PortRequest(None, host_port=port, count=count, host_ip=ip)
    return manager.allocate(owner, ports=[request], check_host=False)


def rows_read(monkeypatch):
    """How many publications the looks downward read, one number a look."""
    read = []
    original = publications.holding

    def counting(tx, port, protocol, limit=-1):
        class Counting:
            def __getattr__(self, name):
                return getattr(tx, name)

            def table(self, kind):
                table = tx.table(kind)
                if kind is not Publication:
                    return table

                class Counted:
                    def up_to(self, *fields, equal, limit):
                        found = table.up_to(*fields, equal=equal, limit=limit)
                        read.append(len(found))
                        return found

                return Counted()

        return original(Counting(), port, protocol, limit)

    monkeypatch.setattr("netalloc.ipam.reasons.holding", counting)
    return read


@pytest.mark.parametrize("seed", range(3))
def test_holders_are_those_that_a_walk_over_all_finds(manager, store, seed):
    """Blocks and single ports, on all addresses and on some, in every way they may lie."""
    chance, view = random.Random(seed), NetworkView(store)
    for _ in range(120):
        port, count = chance.randrange(8000, 8060), chance.choice((1, 1, 2, 7, 20))
        try:
            publish(manager, port, count, chance.choice((None, *IPS, *IPS)))
        except InUseError:
            continue
    for one in chance.sample(manager.interfaces(), 15):
        one.release()
    everything = [(one.ip, mapping) for one in view.find() for mapping in one.ports]
    several = 0
    for port in range(7995, 8085):
        found = [(m.host_port, ip) for ip, m in everything if port in m.ports]
        wanted = [ip for _, ip in sorted(found, key=lambda pair: (-pair[0], pair[1]))]
        assert [one.ip for one in view.who(f"tcp/{port}")] == wanted
        assert view.why(f"tcp/{port}").count(" is published by ") == len(wanted)
        several += len(wanted) > 2
        if wanted:
            with pytest.raises(InUseError, match=r"by the holder of 10\.0\."):
                publish(manager, port)
    assert several > 5


def test_a_look_reads_what_it_finds_and_little_more(manager, store, monkeypatch):
    view = NetworkView(store)
    publish(manager, 9000, 1000, owner="block")
    publish(manager, 10000, 1000, IPS[0], owner="block on one")
    for i in range(200):  # side by side, each on another address
        publish(manager, 20000 + i, ip=IPv4Address("198.18.0.1") + i, owner=f"{i}")
    for ip in IPS:
        publish(manager, 30000, ip=ip, owner=ip)
    read = rows_read(monkeypatch)

    def looks(port):
        read.clear()
        return [one.owner for one in view.who(f"tcp/{port}")], sum(read)

    assert looks(9999) == (["block"], 1)
    assert looks(10999) == (["block on one"], 1)
    assert looks(20150) == (["150"], 1)
    assert looks(8999) == looks(11000) == ([], 0)
    owners, rows = looks(30000)
    assert (sorted(owners), rows) == (IPS, 9)


def test_where_publications_are_missing_the_look_ends_at_a_port_that_is_not_used(
    manager, store, monkeypatch
):
    """Of a file that is damaged, say: the bitmaps tell of more than the records do."""
    view = NetworkView(store)
    for i in range(100):
        publish(manager, 8000 + i, ip=IPS[0])
    for i in range(10):
        publish(manager, 9000 + i, ip=IPS[0])
    gone = publish(manager, 9010, ip=IPS[0])
    where = gone._lease[:2]

    def hide(tx):
        table = tx.table(Publication)
        table.remove(table.where("network", "ordinal", equal=where))

    store.run("damage", hide)
    read = rows_read(monkeypatch)
    assert view.who("tcp/9010") == []
    assert sum(read) < 40


def test_release_port_finds_its_own_publication_alone(manager):
    one, other = manager.allocate("one"), manager.allocate("other")
    for ip in IPS:
        one.publish([PortRequest(80, host_port=9000, host_ip=ip)], check_host=False)
    other.publish([PortRequest(80, host_port=9000, host_ip="192.0.2.99")], check_host=False)
    with pytest.raises(InvalidValueError, match="is published on 192.0.2.1, .*name the host add"):
        one.release_port(9000)
    for ip in ("192.0.2.99", "192.0.2.77"):
        with pytest.raises(NotAllocatedError, match="10.0.0.2 does not publish port 9000/tcp"):
            one.release_port(9000, host_ip=ip)
    for ip in IPS[1:]:
        one.release_port(9000, host_ip=ip)
    one.release_port(9000)
    assert one.ports() == ()
    other.release_port(9000)
    block = one.allocate_ports(5)
    for port in block[1:]:
        with pytest.raises(NotAllocatedError):
            one.release_port(port)
    one.release_port(block[0])
    assert manager.check() == []


def test_release_port_says_what_cannot_be_read(manager, store):
    one = manager.allocate("one", ports=[PortRequest(80, host_port=9000), 81])
    where = one._lease[:2]

    def hide(tx):
        table = tx.table(Publication)
        row = next(
            row for row in table.where("network", "ordinal", equal=where) if row.host_port == 9000
        )
        table.remove([row])

    store.run("damage", hide)
    with pytest.raises(StoreError, match=r"10\.0\.0\.2 publishes 2 times, but 1 can be read"):
        one.release_port(9000)
    with pytest.raises(NetallocError):
        one.release_port(9001)


def test_a_refusal_names_what_is_in_the_way_and_not_just_any_holder(manager):
    first, second = publish(manager, 9000, ip=IPS[0], owner="a"), IPS[1]
    publish(manager, 9000, ip=second, owner="b")
    for ip, owner in ((IPS[0], "a"), (second, "b")):
        with pytest.raises(InUseError, match=rf"9000/tcp is held on {ip}, by {owner}$") as refused:
            publish(manager, 9000, ip=ip)
        assert refused.value.holder == owner
    first.release()
    with pytest.raises(InUseError, match="by b$"):
        publish(manager, 9000)
