"""IPv6 mappings of the nftables backend: elements, transactions, repair, and who else is there."""

import queue
import random
import signal
from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import Lab
from netalloc.errors import InUseError, InvalidValueError, NotAllocatedError, OutOfRangeError
from netalloc.family import NetworkPair
from netalloc.host import opened, sysctl
from netalloc.host.links import Links
from netalloc.model import PortMapping, ReconcileResult
from netalloc.portmap.choice import make_backend, networks_of, remove_others
from netalloc.portmap.link import Link
from netalloc.portmap.mapper import PortMapper
from netalloc.portmap.nftables import elements, maps, ruleset
from netalloc.portmap.nftables.backend import HOST_TABLE, Nftables
from test_one_table import die_at, in_child

root = pytest.mark.root

FIRST, SECOND = "fd00:c8::2", "fd00:c8::3"
FIRST4 = "10.200.0.2"
BOTH = NetworkPair(IPv4Network(Lab.network), IPv6Network(Lab.network6))
ALONE = NetworkPair(None, BOTH.v6)

# By hand from linux/netfilter/nf_tables.h; a test below has nft add the same elements.
GOLDEN = {
    PortMapping(8080, (FIRST, 80)): (
        "dnat_any6",
        (
            "10000100 0c000100 06000000 1f900000 1c000200 18000100 fd0000c8 00000000 00000000 "
            "00000002 00500000"
        ),
        "tcp . 8080 : fd00:c8::2 . 80",
    ),
    PortMapping(53, (FIRST, 5353), "udp", "2001:db8::1"): (
        "dnat_ip6",
        (
            "20000100 1c000100 20010db8 00000000 00000000 00000001 11000000 00350000 1c000200 "
            "18000100 fd0000c8 00000000 00000000 00000002 14e90000"
        ),
        "2001:db8::1 . udp . 53 : fd00:c8::2 . 5353",
    ),
    PortMapping(9000, (SECOND, 9000), count=300): (
        "block_any6",
        (
            "10000100 0c000100 06000000 23280000 10000a00 0c000100 06000000 24530000 18000200 "
            "14000100 fd0000c8 00000000 00000000 00000003"
        ),
        "tcp . 9000-9299 : fd00:c8::3",
    ),
    PortMapping(9000, (SECOND, 9000), "sctp", "2001:db8::1", 300): (
        "block_ip6",
        (
            "20000100 1c000100 20010db8 00000000 00000000 00000001 84000000 23280000 20000a00 "
            "1c000100 20010db8 00000000 00000000 00000001 84000000 24530000 18000200 14000100 "
            "fd0000c8 00000000 00000000 00000003"
        ),
        "2001:db8::1 . sctp . 9000-9299 : fd00:c8::3",
    ),
}
WEB = PortMapping(8080, (FIRST, 80), owner="web")
WEB4 = PortMapping(8080, (FIRST4, 80), owner="web")


@pytest.fixture
def lab():
    with Lab("nft", bridge_nf=0, ipv6=True) as lab:
        yield lab


@pytest.fixture
def make(lab):
    """Makes backends, as several processes would have them, and closes them at the end."""
    with ExitStack() as stack:

        def make(name="netalloc", *, bridge=lab.bridge, networks=BOTH, **options):
            backend = Nftables(name, link=Link(bridge), networks=networks, **options)
            stack.callback(backend.close)
            return backend

        yield make


@pytest.fixture
def nft(make):
    backend = make()
    backend.setup()
    return backend


def rules(lab):
    return lab.run("nft", "list", "ruleset")


@pytest.mark.parametrize("mapping", GOLDEN, ids=lambda mapping: GOLDEN[mapping][0])
def test_golden(mapping):
    name, expected, _ = GOLDEN[mapping]
    assert maps.map_type_of(mapping).name == name
    assert elements.entry(mapping).hex(" ", 4) == expected


v6 = st.integers(2**64, 2**127).map(IPv6Address)
v4 = st.integers(1, 2**32 - 1).map(lambda number: str(IPv4Network(number)[0]))
ports = st.integers(1, 60000)
mappings = (v6 | v4).flatmap(
    lambda dest: st.builds(
        PortMapping,
        ports,
        st.tuples(st.just(dest), ports),
        st.sampled_from(["tcp", "udp", "sctp"]),
        st.none() | (v4 if isinstance(dest, str) else v6),
        st.sampled_from([1, 1, 1, 2, 300]),
        st.none() | st.just("web"),
    )
)


@settings(deadline=None)
@given(st.lists(mappings, max_size=20, unique_by=lambda m: (m.key[:2], m.host_port // 400)))
def test_what_is_encoded_is_decoded(batch):
    found = []
    for name, held in elements.entries(batch).items():
        map_ = maps.MAP_TYPES[name]
        listed = {}
        for piece in elements.split(elements.encode(held, map_)):
            elements.listed(elements.body("t", name, piece), map_, listed)
        assert listed.keys() == held.keys()
        assert elements.decode_all(listed, map_, found) == []
    assert sorted(map(repr, found)) == sorted(map(repr, batch))


@root
def test_nft_writes_the_same_elements(nft, lab):
    for name, _, element in GOLDEN.values():
        lab.run("nft", "add", "element", "inet", "netalloc", name, f"{{ {element} }}")
    assert set(nft.mappings()) == set(GOLDEN)
    assert nft.reconcile(list(GOLDEN)) == ReconcileResult()
    nft.apply((), list(GOLDEN))
    assert nft.mappings() == []
    nft.apply(list(GOLDEN))
    shown = " ".join(rules(lab).split())
    assert all(element in shown for _, _, element in GOLDEN.values())


@root
def test_a_batch_over_both_families_is_one_transaction(nft):
    """A port that is taken in one family undoes the other, whichever is refused."""
    held = [PortMapping(9001, (SECOND, 80), owner="six"),
            PortMapping(9002, ("10.200.0.3", 80), owner="four")]  # fmt: skip
    nft.apply(held)
    for port, holder in ((9001, "six"), (9002, "four")):
        pair = [PortMapping(port, (ip, 80)) for ip in (FIRST4, FIRST)]
        for batch in (pair, pair[::-1], [*pair, WEB, WEB4]):
            with pytest.raises(InUseError, match=holder):
                nft.apply(batch)
            assert set(nft.mappings()) == set(held)
    nft.apply([WEB, WEB4])
    # ... and so does a removal that comes too late.
    nft.apply([PortMapping(1, (FIRST, 1))], [WEB])
    for gone in ([WEB4, WEB], [WEB, WEB4]):
        with pytest.raises(NotAllocatedError):
            nft.apply((), gone)
        assert WEB4 in nft.mappings()


@root
def test_a_stale_owner_removes_nothing(nft, monkeypatch):
    for mapping in GOLDEN:
        nft.apply([mapping])
        late = mapping.replace(dest=(f"{FIRST[:-1]}9", mapping.dest[1]))
        with pytest.raises(NotAllocatedError, match="leads to"):
            nft.apply((), [late])
        nft.apply((), [mapping])
        nft.apply([late])
        with pytest.raises(NotAllocatedError):
            nft.apply((), [mapping])
        assert nft.mappings() == [late]
        nft.apply((), [late])
    # The kernel refuses it even where our look was too early.
    monkeypatch.setattr("netalloc.portmap.nftables.changes.Changes._check_present", lambda *_: 0)
    two = [PortMapping(port, (FIRST, 80)) for port in (1, 2)]
    nft.apply([one.replace(dest=(SECOND, 80)) for one in two])
    with pytest.raises(NotAllocatedError):
        nft.apply((), two)
    assert len(nft.mappings()) == 2


@root
def test_what_leads_into_no_subnet_is_refused_before_anything_has_changed(make):
    both, four = make(), make(networks=NetworkPair(IPv4Network("10.201.0.0/16")), bridge=None)
    both.setup()
    four.setup()
    for backend, mapping, said in (
        (both, PortMapping(80, ("fd00:99::2", 80)), "10.200.0.0/16 or fd00:c8::/64"),
        (four, PortMapping(80, (FIRST, 80)), "10.201.0.0/16"),
    ):
        for batch in ([mapping], [mapping, mapping.replace(host_port=81)]):
            with pytest.raises(OutOfRangeError, match=f"{mapping.dest[0]}, not into {said}"):
                backend.apply(batch)
            with pytest.raises(OutOfRangeError, match="not into"):
                backend.reconcile(batch)
            with pytest.raises(NotAllocatedError):
                backend.apply((), batch)
    assert both.mappings() == four.mappings() == []


def test_unmap_takes_both_families_unless_one_is_named():
    with PortMapper("null") as mapper:
        four, six = (mapper.map(80, (ip, 80)) for ip in (FIRST4, FIRST))
        at = mapper.map(81, (FIRST, 80), host_ip="2001:db8::1")
        mapper.unmap(80, host_ip="::")
        assert mapper.mappings == [four, at]
        with pytest.raises(NotAllocatedError, match=r"\[::\]:80/tcp is not mapped"):
            mapper.unmap(80, host_ip="::")
        mapper.map_many([six])
        mapper.unmap(80, host_ip="0.0.0.0")
        assert set(mapper.mappings) == {six, at}
        mapper.map_many([four])
        mapper.unmap(80)
        assert mapper.mappings == [at]
        with pytest.raises(NotAllocatedError):
            mapper.unmap(81)
        mapper.unmap(81, host_ip="2001:db8::1")
        assert mapper.mappings == []


def test_the_families_exclude_nothing_of_each_other():
    with PortMapper("null") as mapper:
        mapper.map(80, (FIRST4, 80), host_ip="192.0.2.1")
        mapper.map(80, (FIRST, 80))
        for clash in ("2001:db8::1", None):
            with pytest.raises(InUseError, match=r"is held by \[::\]:80/tcp -> \[fd00:c8::2\]:80"):
                mapper.map(80, (SECOND, 80), host_ip=clash)
        mapper.map(80, (FIRST4, 80), host_ip="192.0.2.2")


@root
def test_a_long_life_agrees_with_the_oracle(lab):
    """Random batches of both families to the kernel and to the null backend."""
    dice = random.Random(6)
    vandals = (
        "flush ruleset\n",
        "flush map inet netalloc dnat_any6\nflush map inet netalloc block_ip6\n",
        "flush set inet netalloc loopback6\nflush set inet netalloc networks6\n",
        "delete chain inet netalloc refused\n",
        "add element inet netalloc dnat_ip6 { 2001:db8::1 . tcp . 7 : fd00:c8::6 . 80 }\n",
        "add element inet netalloc block_any6 { sctp . 1-60000 : fd00:c8::6 }\n",
        "add element inet netalloc dnat_any6 { sctp . 8 : ::1 . 80 }\n",  # no mapping, nobody's
    )

    def chosen():
        six = dice.random() < 0.6
        ip, host = (FIRST, "2001:db8::1") if six else (FIRST4, "192.0.2.1")
        port, protocol = dice.randrange(1000, 3000), dice.choice(["tcp", "udp"])
        count = dice.choice([1, 1, 1, 1, 20, 300])
        to = port if count == 300 else dice.randrange(1, 60000)
        return PortMapping(port, (ip, to), protocol, dice.choice([None, None, host]), count, "x")

    def outcome(mapper, work, *arguments):
        try:
            getattr(mapper, work)(*arguments)
        except (InUseError, NotAllocatedError) as error:
            return type(error)

    ours = PortMapper("nftables", bridge=lab.bridge, network=lab.networks)
    with ours, PortMapper("null") as oracle:
        for step in range(200):
            present = oracle.mappings
            if dice.random() < 0.55:
                call = "map_many", [chosen() for _ in range(dice.choice([1, 1, 2, 5]))]
            else:
                known = dice.sample(present, min(len(present), dice.choice([1, 1, 3, 9])))
                call = "unmap_many", [*known, *([chosen()] * (dice.random() < 0.2))]
            assert outcome(ours, *call) == outcome(oracle, *call), call
            if step % 20 == 0:
                lab.run("nft", "-f", "-", input=dice.choice(vandals))
                ours.reconcile()
            if step % 10 == 0:
                found = ours.backend.mappings()
                assert len(found) == len(set(found))
                assert set(found) == set(ours.mappings) == set(oracle.mappings)
        for vandal in vandals[:-1]:
            lab.run("nft", "-f", "-", input=vandal)
            assert ours.reconcile(), vandal
            assert not ours.reconcile(), vandal
            assert set(ours.backend.mappings()) == set(oracle.mappings)


@root
def test_reconcile_touches_the_difference_only(nft, lab):
    stale = PortMapping(1, (FIRST, 1), owner="stale")
    wrong = WEB.replace(dest=(SECOND, 80))
    nft.apply([stale, wrong, WEB4])
    found = nft.reconcile([WEB, WEB4])
    assert set(found.removed) == {stale, wrong} and found.added == (WEB,)
    assert not nft.reconcile([WEB, WEB4])
    lab.serve(lab.containers[0], "tcp", 80)
    assert lab.ask(lab.outside, "tcp", (lab.address6, 8080))[0] == "c0"


@root
def test_a_watch_mends_at_once(lab):
    with PortMapper("nftables", bridge=lab.bridge, network=lab.networks) as mapper:
        lab.serve(lab.containers[0], "tcp", 80)
        mapper.map(8080, (FIRST, 80))
        found = queue.Queue()
        with mapper.watch(found.put):
            lab.run("nft", "flush", "map", "inet", "netalloc", "dnat_any6")
            assert found.get(timeout=30).added == (PortMapping(8080, (FIRST, 80)),)
            assert lab.ask(lab.outside, "tcp", (lab.address6, 8080))[0] == "c0"
            lab.run("nft", "flush", "chain", "inet", "netalloc", "postrouting")
            assert found.get(timeout=30).structure
            assert lab.ask(lab.containers[1], "tcp", (lab.address6, 8080))[0] == "c0"


@root
def test_a_table_of_the_last_version_is_brought_up_to_date_in_place(make, lab):
    """One that knows of IPv4 alone, with elements in it: they stay, and traffic flows."""
    six = {name for name in (*maps.MAP_TYPES, *ruleset.DECLARATIONS) if name.endswith("6")}
    chains = {"refused", "leaving6"}

    def earlier(line):
        words = line.split()
        if words[:1] in (["map"], ["set"], ["chain"]):
            return words[1] not in six | chains
        return "6" not in line.replace("6e65746c", "").replace("inet", "") or "fib" in line

    script = [line for line in ruleset.script("netalloc").splitlines() if earlier(line)]
    script = [line for line in script if not any(f" {chain}" in line for chain in chains)]
    lab.run("nft", "-f", "-", input="\n".join(script) + "\n")
    lab.run("nft", "add", "element", "inet", "netalloc", "networks", '{ "br0" . 10.200.0.0/16 }')
    lab.run("nft", "add", "element", "inet", "netalloc", "dnat_any",
            '{ tcp . 8080 comment "web" : 10.200.0.2 . 80 }')  # fmt: skip
    assert "6_" not in rules(lab) and "any6" not in rules(lab) and "ip6" not in rules(lab)
    new = make()
    new.setup()
    assert new.mappings() == [WEB4]
    new.apply([WEB])
    lab.serve(lab.containers[0], "tcp", 80)
    for place in (lab.outside, lab.containers[1]):
        for address in (lab.address, lab.address6):
            assert lab.ask(place, "tcp", (address, 8080))[0] == "c0"
    assert not new.reconcile([WEB, WEB4])


@root
@pytest.mark.parametrize("networks", [BOTH, ALONE], ids=["both", "v6 alone"])
def test_the_last_one_takes_the_table_away(make, lab, networks):
    """Also where the networks that are in it are of different families."""
    one = make(networks=networks)
    two = make(bridge="br1", networks=NetworkPair(IPv4Network("10.201.0.0/16")))
    with Links() as links:
        links.create_bridge("br1", "10.201.0.1/16")
    for first, second in ((one, two), (two, one)):
        for backend in (one, two):
            backend.setup()
        one.apply([WEB])
        two.apply([PortMapping(8081, ("10.201.0.2", 80))])
        first.cleanup()
        assert len(second.mappings()) == 1
        assert not second.reconcile(second.mappings())
        shown = rules(lab)
        assert ("fd00:c8::" in shown) == (second is one)
        second.cleanup()
        assert rules(lab) == ""
        assert all(sysctl.read("net", *name) == "0" for name in (
            ("ipv4", "ip_forward"), ("ipv6", "conf", "all", "forwarding")))  # fmt: skip
        with opened.opened() as record:
            assert record == set()


@root
def test_networks_that_overlap_in_one_family_are_refused(make, lab):
    with Links() as links:
        links.create_bridge("br1")
    make().setup()
    before = rules(lab)
    for networks in (
        NetworkPair(IPv4Network("10.201.0.0/16"), IPv6Network("fd00:c8::/80")),
        NetworkPair(None, IPv6Network("fd00::/16")),
        NetworkPair(IPv4Network("10.200.4.0/24"), IPv6Network("fd00:c9::/64")),
    ):
        with pytest.raises(InUseError, match="overlaps"):
            make(bridge="br1", networks=networks).setup()
        assert rules(lab) == before


@root
def test_a_network_of_another_store_makes_room_in_both_families(make, lab):
    with Links() as links:
        links.create_bridge("br1")
    old = make(HOST_TABLE, owner="old")
    old.setup()
    old.apply([WEB, WEB4])
    new = make(HOST_TABLE, bridge="br1", networks=ALONE, owner="new")
    new.setup()
    # Its containers are the new one's now, of which a reconciliation knows more.
    assert new.mappings() == [WEB]
    assert new.reconcile([]).removed == (WEB,)
    # The same owner with one family less leaves nothing of the other behind.
    both = make(HOST_TABLE, bridge="br1", owner="new")
    both.setup()
    assert both.mappings() == [WEB4]  # what was left of the old one
    both.apply([WEB])
    four = make(HOST_TABLE, bridge="br1", networks=NetworkPair(BOTH.v4), owner="new")
    four.setup()
    assert four.mappings() == [WEB4]
    assert "fd00:c8::" not in rules(lab)


@root
def test_each_sees_and_touches_its_own_alone(make, lab):
    with Links() as links:
        links.create_bridge("br1", "fd00:c9::1/64")
    one = make()
    two = make(bridge="br1", networks=NetworkPair(None, IPv6Network("fd00:c9::/64")))
    any_ = make(bridge=None, networks=NetworkPair())
    for backend in (one, two, any_):
        backend.setup()
    other, stranger = PortMapping(8081, ("fd00:c9::2", 80)), PortMapping(8082, ("fd00:77::2", 80))
    one.apply([WEB, WEB4])
    two.apply([other])
    any_.apply([stranger])
    assert set(one.mappings()) == {WEB, WEB4}
    assert two.mappings() == [other] and any_.mappings() == [stranger]
    for backend, desired in ((one, [WEB, WEB4]), (two, [other]), (any_, [stranger])):
        assert not backend.reconcile(desired)
    with pytest.raises(InUseError, match="in the way"):
        two.reconcile([other.replace(host_port=8080)])
    assert one.reconcile([]).removed and two.mappings() == [other]
    one.cleanup()
    assert two.mappings() == [other] and any_.mappings() == [stranger]


@root
@pytest.mark.parametrize("way", ["renamed", "fresh"])
def test_a_bridge_that_is_renamed_or_made_anew(make, lab, way):
    one = make()
    one.setup()
    one.apply([WEB])
    table = ("ip", "-6", "route", "show", "table", "local", "::1")
    if way == "renamed":
        lab.run("ip", "link", "set", "br0", "down")
        lab.run("ip", "link", "set", "br0", "name", "brx", "up")
        lab.run("ip", "addr", "add", "fd00:c8::1/64", "dev", "brx", "nodad")
        two = make(bridge="brx")
        two.setup()
        assert "dev brx" in lab.run(*table)
        assert two.mappings() == [WEB]
        assert not two.reconcile([WEB])
        two.cleanup()
        assert "brx" not in lab.run(*table)
    else:
        with Links() as links:
            links.delete("br0")
            links.create_bridge("br0", "fd00:c8::1/64")
        assert "br0" not in lab.run(*table)
        assert one.reconcile([WEB])
        assert "dev br0" in lab.run(*table)
        assert not one.reconcile([WEB])
        one.cleanup()
        assert "br0" not in lab.run(*table)
    with opened.opened() as record:
        assert {entry for entry in record if entry.what == "loopback6"} == set()


@root
def test_the_route_of_loopback_goes_with_its_last_user(make, lab):
    table = ("ip", "-6", "route", "show", "table", "local", "::1")
    one, two = make("one"), make("two")
    one.setup()
    two.setup()
    one.cleanup()
    assert "dev br0" in lab.run(*table)
    assert not two.reconcile([])
    two.cleanup()
    assert "br0" not in lab.run(*table)


@root
def test_a_renamed_bridge_is_closed_by_the_next_to_come(make, lab):
    """One that uses another bridge: nobody may be left who knows the first one."""
    table = ("ip", "-6", "route", "show", "table", "local", "::1")
    make().setup()
    lab.run("ip", "link", "set", "br0", "down")
    lab.run("ip", "link", "set", "br0", "name", "brx", "up")
    lab.run("ip", "-6", "route", "add", "local", "::1", "dev", "brx", "table", "local",
            "metric", "4096", "proto", "110")  # fmt: skip
    with Links() as links:
        links.create_bridge("br1", "fd00:c9::1/64")
    make(bridge="br1", networks=NetworkPair(None, IPv6Network("fd00:c9::/64"))).setup()
    assert "dev br1" in lab.run(*table) and "brx" not in lab.run(*table)
    with opened.opened() as record:
        assert {entry.interface for entry in record if entry.what == "loopback6"} == {"br1"}


@root
def test_equal_numbers_of_the_two_families_are_different_addresses(make, lab):
    """::ac8:2 is the number of 10.200.0.2."""
    with Links() as links:
        links.create_bridge("br1", "::ac8:1/112")
    four = make(networks=NetworkPair(BOTH.v4))
    six = make(bridge="br1", networks=NetworkPair(None, IPv6Network("::ac8:0/112")))
    four.setup()
    six.setup()
    other = PortMapping(8080, ("::ac8:2", 80), owner="six")
    four.apply([WEB4])
    six.apply([other])
    assert four.mappings() == [WEB4] and six.mappings() == [other]
    assert not four.reconcile([WEB4]) and not six.reconcile([other])
    # What leads into no network makes room, though its number is within one of IPv4.
    lab.run("nft", "add", "element", "inet", "netalloc", "dnat_any6",
            "{ tcp . 81 : ::ac9:2 . 80 }")  # fmt: skip
    wide = make("netalloc", bridge=None, networks=NetworkPair(IPv4Network("10.201.0.0/16")))
    wide.setup()
    fresh = PortMapping(81, ("::ac8:2", 80))
    assert six.reconcile([other, fresh]).added == (fresh,)
    four.cleanup()
    assert set(six.mappings()) == {other, fresh}


@root
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("when", ["setup", "apply", "reconcile", "cleanup"])
def test_killed_anywhere(make, lab, when, step):
    """A child dies at its n-th message to the kernel, for every n; the next one goes on."""
    both = [WEB, WEB4]
    deaths = 0
    for moment in range(1, 80, step):

        def child(moment=moment):
            victim = Nftables(link=Link("br0"), networks=BOTH)
            if when != "setup":
                victim.setup()
            if when == "reconcile":
                victim.apply([WEB.replace(dest=(SECOND, 80)), WEB4])
            die_at(moment)
            {"setup": victim.setup, "cleanup": victim.cleanup,
             "apply": lambda: victim.apply(both),
             "reconcile": lambda: victim.reconcile(both)}[when]()  # fmt: skip

        status = in_child(child)
        assert status in (0, -signal.SIGKILL)
        deaths += status != 0
        successor = make()
        if when == "apply":
            assert set(successor.mappings()) in (set(), set(both))
        successor.setup()
        successor.reconcile(both)
        assert set(successor.mappings()) == set(both)
        assert not successor.reconcile(both)
        successor.cleanup()
        successor.close()
        assert rules(lab) == ""
        assert "br0" not in lab.run("ip", "-6", "route", "show", "table", "local", "::1")
        assert sysctl.read("net", "ipv6", "conf", "all", "forwarding") == "0"
        if not status:
            break
    assert not status
    assert deaths >= (1 if when == "apply" else 4 / step)


@pytest.mark.parametrize(
    ("network", "right"),
    [
        ("fd00:c8::1/64", ALONE),
        (BOTH.v6, ALONE),
        (("fd00:c8::/64", "10.200.0.1/16"), BOTH),
        ([BOTH.v4, "fd00:c8::7/64"], BOTH),
        (BOTH, BOTH),
        (["10.200.0.0/16"], NetworkPair(BOTH.v4)),
    ],
)
def test_a_network_is_of_either_family_or_one_of_each(network, right):
    assert networks_of(network, None) == right
    PortMapper("null", network=network).close()


@pytest.mark.parametrize(
    "network",
    [(), ["10.0.0.0/8", "10.1.0.0/16"], ["fd00::/64"] * 2, [*BOTH, "fd01::/64"], 6, [None],
     "fd00::/129", "fe80::1%eth0/64x", ["10.0.0.0/8", 7]],
)  # fmt: skip
def test_what_is_no_network_is_refused(network):
    with pytest.raises(InvalidValueError, match="network"):
        PortMapper("null", network=network)


@root
def test_what_nftables_has_left_goes_with_another_backend(lab):
    made = make_backend("nftables", "netalloc-br0", Link(lab.bridge), BOTH, shared=True)
    made.setup()
    made.apply([WEB, WEB4])
    made.close()
    (found,) = remove_others("netalloc-br0", "iptables", Link(lab.bridge), BOTH)
    assert "2 mappings" in found and rules(lab) == ""
    assert "br0" not in lab.run("ip", "-6", "route", "show", "table", "local", "::1")
    assert sysctl.read("net", "ipv6", "conf", "all", "forwarding") == "0"
