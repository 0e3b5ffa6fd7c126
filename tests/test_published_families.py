"""What is published of networks with IPv4, IPv6 and both: rows, mappings, ports, words."""

import os
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from netalloc import (
    InUseError,
    InvalidValueError,
    NetworkManager,
    NotAllocatedError,
    PortMapping,
    PortRequest,
)
from netalloc._alloc import Subnet
from netalloc.ipam.change import Change
from netalloc.ipam.check import check, expected_ports, rebuild_ports, set_bits
from netalloc.ipam.mend import look, take
from netalloc.ipam.networks import find
from netalloc.ipam.publications import Publications, holding
from netalloc.ipam.subnets import Subnets
from netalloc.port_bitmaps import bitmap_size
from netalloc.store.memory import MemoryStore
from netalloc.store.records import Lease, Publication
from netalloc.store.sqlite.store import SqliteStore

V4, V6 = IPv4Address("10.88.0.2"), IPv6Address("fd00:88::2")
NETWORKS = {4: ("10.88.0.1/16",), 6: ("fd00:88::1/64",), 0: ("10.88.0.1/16", "fd00:88::1/64")}


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "host.db")
    yield made
    made.close()


class Network:
    """The publications of one lease of a network, and of others where they are asked for."""

    def __init__(self, store, which, **given):
        self.store = store
        subnets = Subnets(map(Subnet, NETWORKS[which]))
        name = f"br{which}"
        NetworkManager(name, network=NETWORKS[which][0], backend="null", store=store).close()
        number = store.view(lambda tx: find(tx, name).number)
        self.publications = Publications(number, subnets, range(8000, 8100), **given)
        ordinal = subnets.ordinal(V6 if which == 6 else V4)
        self.lease = Lease(number, ordinal, number, 0, "web", None, 1)

        def begin(tx):
            tx.table(Lease).add((self.lease,))
            tx.commit()

        store.run("begin", begin)

    def run(self, call):
        def change(tx):
            made = Change(tx)
            result = call(made)
            lease = tx.table(Lease).get(*self.lease[:2])
            rows = len(tx.table(Publication).where("network", "ordinal", equal=lease[:2]))
            if rows != lease.publications:
                tx.table(Lease).replace(lease, lease._replace(publications=rows))
            tx.commit()
            return result

        return self.store.run("change", change)

    def publish(self, *requests):
        pairs = [(self.lease, request) for request in requests]
        return self.run(lambda made: self.publications.publish(made, pairs))

    def unpublish(self, port, ip=None, protocol="tcp"):
        def call(made):
            place = None if ip is None else ip_address(ip)
            row = self.publications.find_own(made.tx, self.lease, port, protocol, place)
            return self.publications.unpublish(made, [row])

        return self.run(call)

    def rows(self):
        return self.store.view(lambda tx: self.publications.of(tx, self.lease))


def port_complaints(store):
    return [line for line in store.view(lambda tx: list(check(tx))) if "port" in line]


def test_one_number_in_both_families(store):
    both = Network(store, 0)
    made = both.publish(PortRequest(80), PortRequest(53, "udp", 5353), PortRequest(None, count=3))
    assert made == [
        PortMapping(8003, (V4, 80)), PortMapping(8003, (V6, 80)),
        PortMapping(5353, (V4, 53), "udp"), PortMapping(5353, (V6, 53), "udp"),
        PortMapping(8000, (V4, 8000), count=3), PortMapping(8000, (V6, 8000), count=3),
    ]  # fmt: skip
    assert all(one.owner == "web" and one.host_ip is None for one in made)
    assert [row.host_ip for row in both.rows()] == [0, 0, 0]
    for owners in (True, False):
        of = store.view(lambda tx, o=owners: both.publications.desired(tx, owners=o))
        assert set(of) == set(made) and len(of) == len(made)
        assert {one.owner for one in of} == {"web" if owners else None}
    assert both.unpublish(8003) == made[:2]
    assert [row.host_port for row in both.rows()] == [5353, 8000]
    assert port_complaints(store) == []


@pytest.mark.parametrize(
    ("host_ip", "entry", "family", "at"),
    [
        ("0.0.0.0", "0.0.0.0", V4, None),
        ("::", "::", V6, None),
        ("192.0.2.1", 0xC0000201, V4, "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1", V6, "2001:db8::1"),
    ],
)
def test_a_host_address_is_of_one_family(store, host_ip, entry, family, at):
    both = Network(store, 0)
    (made,) = both.publish(PortRequest(80, host_port=8080, host_ip=host_ip))
    assert made == PortMapping(8080, (family, 80), host_ip=at)
    assert [row.host_ip for row in both.rows()] == [entry]
    both.publish(PortRequest(81, host_ip=host_ip), PortRequest(82, host_ip=host_ip, count=2))
    assert port_complaints(store) == []
    with pytest.raises(InUseError, match="8080/tcp.* by web"):
        both.publish(PortRequest(80, host_port=8080))
    assert both.unpublish(8080, host_ip) == [made]
    both.publish(PortRequest(80, host_port=8080))
    assert port_complaints(store) == []


def test_where_there_is_one_family_its_wildcard_is_every_address(store):
    for which, wildcard, ip in ((4, "0.0.0.0", V4), (6, "::", V6)):
        one = Network(store, which)
        (made,) = one.publish(PortRequest(80, host_port=8000 + which, host_ip=wildcard))
        assert made == PortMapping(8000 + which, (ip, 80))
        assert [row.host_ip for row in one.rows()] == [0]
        assert one.unpublish(8000 + which, wildcard) == [made]
        assert one.unpublish(*[one.publish(PortRequest(80))[0].host_port]) != []
    assert port_complaints(store) == []


@pytest.mark.parametrize(("which", "foreign"), [(4, "2001:db8::1"), (4, "::"), (6, "0.0.0.0")])
def test_a_family_that_the_network_has_not_is_refused(store, which, foreign):
    one = Network(store, which)
    with pytest.raises(InvalidValueError, match=rf"{foreign} is of IPv\d, and .* of IPv{which} "):
        one.publish(PortRequest(80), PortRequest(80, host_ip=foreign))
    with pytest.raises(InvalidValueError, match=foreign):
        one.unpublish(80, foreign)
    assert one.rows() == []
    assert one.publish(PortRequest(80))[0].host_port == 8000


def test_families_share_a_number_and_are_released_by_name(store):
    both = Network(store, 0)
    places = ["0.0.0.0", "2001:db8::2", "2001:db8::1"]
    for i, place in enumerate(places):
        both.publish(PortRequest(80 + i, host_port=8080, host_ip=place))
    both.publish(PortRequest(90, "udp", 8080, "192.0.2.1"), PortRequest(91, "udp", 8080, "::"))
    assert [row.container_port for row in both.rows()] == [80, 82, 81, 90, 91]
    found = store.view(lambda tx: holding(tx, 8080, "tcp"))
    assert sorted(row.container_port for row in found) == [80, 81, 82]
    for taken in (None, "192.0.2.1", "::", "2001:db8::1"):
        with pytest.raises(InUseError, match="8080/tcp is held on .*by web"):
            both.publish(PortRequest(80, host_port=8080, host_ip=taken))
    with pytest.raises(InvalidValueError, match="2001:db8::2.*name the host address"):
        both.unpublish(8080)
    with pytest.raises(NotAllocatedError):
        both.unpublish(8080, "2001:db8::3")
    for place in places:
        both.unpublish(8080, place)
    assert [row.protocol for row in both.rows()] == ["udp", "udp"]
    assert port_complaints(store) == []


def test_the_same_is_asked_for_again(store):
    both = Network(store, 0)
    places = (None, "::", "0.0.0.0", "192.0.2.1", "2001:db8::1")
    asked = [PortRequest(80, host_ip=place) for place in places]
    both.publish(*asked)
    same = both.publications.check_same
    store.view(lambda tx: same(tx, both.lease, asked[::-1]))
    other = [*asked[:4], PortRequest(80, host_ip="2001:db8::2")]
    with pytest.raises(InUseError, match="web holds 10.88.0.2"):
        store.view(lambda tx: same(tx, both.lease, other))


def test_an_automatic_pick_asks_the_host_about_what_it_is_for(store):
    asked = []

    def probe(port, protocol, host_ip):
        asked.append((port, host_ip))
        return port != 8000

    def host_check(port, protocol, host_ip):
        asked.append((port, host_ip))

    both = Network(store, 0, probe=probe, host_check=host_check)
    both.publish(PortRequest(80))
    both.publish(PortRequest(80, host_port=90, host_ip="::"), PortRequest(81, host_ip="::1"))
    every6, one = IPv6Address(0), IPv6Address(1)
    assert asked == [(8000, None), (8001, None), (90, every6), (0, one), (8002, one)]


def damage(tx):
    """Set what should be clear, and clear what should be set, in each bitmap of ports."""
    for name in list(tx.names("ports/")):
        bitmap = tx.bitmap(name, bitmap_size(name))
        first = bitmap.next_set(0)
        if first is not None:
            bitmap.release(first)
        if 77 not in bitmap:
            bitmap.reserve(77)
    tx.commit()


@pytest.mark.parametrize("way", ["mend", "rebuild"])
def test_bitmaps_of_both_families_are_checked_and_mended(store, way):
    both = Network(store, 0)
    for place in ("::", "0.0.0.0", None):
        both.publish(PortRequest(80, host_ip=place), PortRequest(80, count=3, host_ip=place))
    for place in ("2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1", "192.0.2.2"):
        both.publish(PortRequest(80, host_port=9000, host_ip=place))
    both.publish(PortRequest(80, host_port=9001, host_ip="2001:db8::1"))
    both.publish(PortRequest(80, host_port=9001, host_ip="2001:db8::2"))
    assert port_complaints(store) == []
    store.run("damage", damage)
    said = " ".join(port_complaints(store))
    for kind in ("used", "used6", "more6", "only6", "on/::", "on/2001:db8::1", "more"):
        assert f"ports/tcp/{kind} differs" in said

    def mend(tx):
        if way == "mend":
            take(look(tx), tx)
        else:
            rebuild_ports(tx)
        tx.commit()

    store.run("mend", mend)
    assert port_complaints(store) == []

    def same(tx):
        wanted = expected_ports(tx)
        for name in wanted.names("ports/"):
            size = bitmap_size(name)
            assert [*set_bits(wanted.bitmap(name, size))] == [*set_bits(tx.bitmap(name, size))]

    store.view(same)
    for place in ("2001:db8::1", "2001:db8::2", "2001:db8::3"):
        both.unpublish(9000, place)
    both.publish(PortRequest(80, host_port=9000, host_ip="::"))
    assert port_complaints(store) == []


def test_another_process_reads_what_one_has_published(tmp_path):
    path = tmp_path / "host.db"
    places = (None, "::", "0.0.0.0", "2001:db8::1", "192.0.2.1")
    child = os.fork()
    if not child:
        code = 1
        try:
            with SqliteStore(path) as store:
                Network(store, 0).publish(
                    *[PortRequest(80 + i, host_ip=place) for i, place in enumerate(places)]
                )
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with SqliteStore(path) as store:
        (lease,) = store.view(lambda tx: tx.table(Lease).all())
        subnets = Subnets(map(Subnet, NETWORKS[0]))
        publications = Publications(lease.network, subnets, range(8000, 8100))
        rows = store.view(lambda tx: publications.of(tx, lease))
        assert {row.host_ip for row in rows} == {
            0, "::", "0.0.0.0", "2001:db8::1", int(IPv4Address("192.0.2.1"))
        }  # fmt: skip
        assert port_complaints(store) == []

        def end(tx):
            gone = publications.unpublish(Change(tx), rows)
            assert len(gone) == 6
            assert not any("6" in name for name in tx.names("ports/"))
            tx.commit()

        store.run("end", end)
