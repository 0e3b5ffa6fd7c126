"""A hostile container in each mode: what every attack gets it, guarded and open."""

import os
import queue
import socket
import subprocess
import time
from contextlib import closing
from ipaddress import ip_address
from itertools import product
from pathlib import Path

import pytest

import frames as f
from guard_lab import FAMILIES, GATEWAYS, KINDS, OPEN, OUTSIDE, SECRET, UPLINK, GuardLab, run
from lab import require_kernel
from netalloc import (
    InvalidValueError,
    NetworkManager,
    Networks,
    NotAllocatedError,
    PortRequest,
    StaleLeaseError,
)
from netalloc.host import namespaces
from netalloc.host.bridge_count import port_indexes
from netalloc.ipam.attachments import name_of

pytestmark = pytest.mark.root

GUARDED, OPENED = "guarded", "open"
MODES = ("bridge", "routed")
FRAMES = (("bridge", 0), ("bridge", 1), ("routed", 1))  # a routed network has no bridged ones
BY_IPTABLES = (
    ("bridge", GUARDED, "iptables-nft"),
    ("routed", GUARDED, "iptables-nft"),
    ("routed", GUARDED, "iptables-legacy"),
)
WAYS = [*product(MODES, (GUARDED, OPENED)), *BY_IPTABLES]
STRANGER = ("10.88.77.77", "fd00:88::7777")  # addresses of nobody


@pytest.fixture(autouse=True)
def kernel():
    require_kernel()


@pytest.fixture(params=WAYS, ids=["-".join(way) for way in WAYS])
def lab(request):
    with GuardLab(*request.param) as lab:
        lab.isolation = request.param[1]
        lab.serve_everywhere()
        yield lab


@pytest.fixture(params=[*product(MODES), *BY_IPTABLES], ids="-".join)
def guarded(request):
    with GuardLab(*request.param) as lab:
        lab.serve_everywhere()
        yield lab


def only_when(lab, mode, isolation=OPENED):
    """Whether an attack works: in that mode, in an open network."""
    return (lab.mode, lab.isolation) == (mode, isolation)


def to_gateway(lab, packet):
    kind = f.IPV4 if packet[0] >> 4 == 4 else f.IPV6
    return f.ethernet(lab.gateway_mac, lab.mac["evil"], kind, packet)


# ---- sources


def test_what_is_sent_as_another_gets_nowhere(lab):
    for at in (0, 1):
        _is_sent_as_another(lab, at)


def _is_sent_as_another(lab, at):
    own, sibling = lab.evil.ips[at], lab.victim.ips[at]
    sent = {
        name: to_gateway(lab, f.udp(source, OUTSIDE[at], b"sent as " + name))
        for name, source in {
            b"itself": own,
            b"a sibling": sibling,
            b"a stranger": STRANGER[at],
            b"the gateway": GATEWAYS[at],
            b"the outside": OUTSIDE[at],
        }.items()
    }
    found = lab.seen("outside", sent.values(), b"sent as ")
    seen = {name for name in sent if any(b"sent as " + name in frame for frame in found)}
    assert b"itself" in seen
    if lab.isolation == GUARDED:
        assert seen == {b"itself"}
    elif lab.mode == "bridge" or at:  # of IPv4 rp_filter knows better where it is routed
        assert b"a sibling" in seen


def test_a_link_local_address_says_nothing(guarded):
    if guarded.mode == "routed":  # as where the host's ends get addresses of their own
        device = name_of(guarded.evil.generation)
        run("ip", "addr", "add", "fe80::99/64", "dev", device, "nodad")
    packet = f.udp("fe80::1234", GATEWAYS[1], b"from a link")
    before = received()
    guarded.inject(*[to_gateway(guarded, packet)] * 50)
    guarded.settle()
    assert received() - before < 50


def received():
    """How many IPv6 packets came to an end on this host."""
    return int(dict(counters("snmp6"))["Ip6InDelivers"])


def counters(name):
    """The rows of a file of counters."""
    return [row.split() for row in Path("/proc/self/net", name).read_text().splitlines()]


# ---- ARP and neighbour discovery


def test_nobody_takes_a_siblings_address_by_arp(lab):
    evil, victim = lab.mac["evil"], lab.victim.ips[0]
    claims = [
        f.ethernet(f.ALL, evil, f.ARP, f.arp(operation, evil, victim, target, victim))
        for operation, target in ((1, bytes(6)), (2, f.ALL), (2, evil))
    ]
    found = lab.seen("friend", claims)
    assert bool(found) == only_when(lab, "bridge")
    assert lab.asked(None, victim) == "victim"
    assert lab.asked("outside", UPLINK[0]) == "host"


def test_three_thousand_forged_arps_leave_no_entry(lab):
    evil, gateway = lab.mac["evil"], GATEWAYS[0]
    forged = [ip_address(int(ip_address("10.88.16.0")) + i) for i in range(3000)]
    lab.inject(
        *[f.ethernet(f.ALL, evil, f.ARP, f.arp(1, evil, one, bytes(6), gateway)) for one in forged]
    )
    lab.settle()
    shown = run("ip", "-4", "neigh", "show", "nud", "all").splitlines()
    entries = {line.split()[0] for line in shown} & set(map(str, forged))
    assert (len(entries) > 500) if only_when(lab, "bridge") else not entries


def test_nobody_takes_a_siblings_address_by_neighbour_discovery(lab):
    evil, own = lab.mac["evil"], lab.evil.ips[1]
    victim, gateway = lab.victim.ips[1], GATEWAYS[1]
    friend, mac = lab.friend.ips[1], lab.mac["friend"]
    told = []
    for source, target in product((own, victim, gateway), (victim, gateway)):
        told.append((mac, f.advertisement(source, friend, target, evil)))
        told.append((f.group_mac(f.ALL_NODES), f.advertisement(source, f.ALL_NODES, target, evil)))
    group, asks = f.solicitation(victim, friend, evil)
    told.append((f.group_mac(group), asks))
    told.append((mac, f.redirect(gateway, friend, own, OUTSIDE[1])))
    sent = [f.ethernet(to, evil, f.IPV6, packet) for to, packet in told]
    found = lab.seen("friend", sent)
    assert bool(found) == only_when(lab, "bridge")
    lab.inject(*[to_gateway(lab, f.advertisement(own, gateway, victim, evil))] * 10)
    lab.settle()
    assert lab.asked(None, victim) == "victim"


def test_no_router_but_the_host(lab):
    evil = lab.mac["evil"]
    sent = [
        f.ethernet(f.group_mac(f.ALL_NODES), evil, f.IPV6, f.router(source, evil))
        for source in ("fe80::42", lab.evil.ips[1])
    ]
    assert bool(lab.seen("victim", sent)) == only_when(lab, "bridge")
    assert "via fe80::42" not in run("ip", "-6", "route")


# ---- MAC addresses


@pytest.mark.parametrize("times", [1, 50])
def test_a_siblings_mac_address_takes_nothing(lab, times):
    mac = lab.mac["victim"]
    assert lab.asked(None, lab.victim.ips[0]) == "victim"
    packet = f.udp(lab.evil.ips[0], OUTSIDE[0], b"with another's address")
    lab.inject(*[f.ethernet(lab.gateway_mac, mac, f.IPV4, packet)] * times)
    lab.settle()
    answer = lab.asked(None, lab.victim.ips[0], timeout=0.3)
    assert answer == (None if only_when(lab, "bridge") else "victim")


def test_twenty_thousand_mac_addresses_are_not_learned(lab):
    packet = f.udp(lab.evil.ips[0], OUTSIDE[0], b"from many")
    lab.inject(
        *[
            f.ethernet(lab.gateway_mac, b"\x02\x99" + i.to_bytes(4, "big"), f.IPV4, packet)
            for i in range(20_000)
        ]
    )
    lab.settle()
    learned = run("bridge", "fdb", "show").count("02:99:")
    assert (learned > 10_000) if only_when(lab, "bridge") else learned == 0


# ---- who is reached


def test_siblings_reach_each_other_in_an_open_network_alone(lab):
    expected = None if lab.isolation == GUARDED else "victim"
    for at, kind in product((0, 1), KINDS):
        to = lab.victim.ips[at]
        assert lab.asked("evil", to, kind, timeout=0.3) == expected, (to, kind)
        # Who has a route, as the outside of IPv6.
        assert lab.asked("outside", to, kind) == "victim", (to, kind)
        assert lab.asked(None, to, kind) == "victim", (to, kind)
        assert lab.asked("evil", OUTSIDE[at], kind) == "outside", (to, kind)


def test_the_hosts_services_are_reached_by_no_address_of_it(lab):
    for at in (0, 1):
        _services_are_reached(lab, at)


def _services_are_reached(lab, at):
    tcp = socket.SOCK_STREAM
    for to in (GATEWAYS[at], UPLINK[at]):
        assert lab.asked("evil", to, tcp, OPEN) == "host"
        expected = None if lab.isolation == GUARDED else "host"
        assert lab.asked("evil", to, tcp, SECRET, timeout=0.3) == expected
    if lab.isolation == GUARDED:
        for to in (GATEWAYS[at], UPLINK[at]):
            for port, expected in ((OPEN, 10), (SECRET, 0)):
                packet = f.udp(lab.evil.ips[at], to, b"secret", port=port)
                assert delivered(lab, to_gateway(lab, packet), expected) == expected
    assert pings("evil", GATEWAYS[at])


def pings(name, to):
    """Whether there is an answer."""
    family, protocol, kinds = (
        (socket.AF_INET, socket.IPPROTO_ICMP, (8, 0))
        if to.version == 4
        else (socket.AF_INET6, socket.IPPROTO_ICMPV6, (128, 129))
    )
    with namespaces.inside(name):
        raw = socket.socket(family, socket.SOCK_RAW, protocol)
    with raw:
        raw.settimeout(2)
        head = bytes((kinds[0], 0, 0, 0, 0, 7, 0, 1))
        head = head[:2] + f.checksum(head).to_bytes(2, "big") + head[4:]
        raw.sendto(head, (str(to), 0))
        while True:
            data = raw.recv(1000)
            if data[20 if to.version == 4 else 0] == kinds[1]:
                return True


def delivered(lab, frame, expected):
    """How many of ten get to a socket of the host: it counts them as they are read."""
    is_v6 = frame[12:14] == b"\x86\xdd"

    def count():
        if is_v6:
            found = dict(counters("snmp6"))
            return int(found["Udp6InDatagrams"]) + int(found["Udp6NoPorts"])
        _, row = [row for row in counters("snmp") if row[0] == "Udp:"]
        return int(row[1]) + int(row[2])

    before = count()
    lab.inject(*[frame] * 10)
    lab.settle()
    settling = 0 if is_v6 else 2  # what settles are two themselves
    until = time.monotonic() + 5
    while count() - before - settling < expected and time.monotonic() < until:
        time.sleep(0.005)
    return count() - before - settling


def test_a_broadcast_reaches_nobody(lab):
    own = lab.evil.ips[0]
    packets = [f.udp(own, to, b"to all") for to in ("255.255.255.255", "10.88.255.255")]
    sent = [f.ethernet(f.ALL, lab.mac["evil"], f.IPV4, packet) for packet in packets]
    group, asks = f.solicitation(lab.evil.ips[1], "fd00:88::9999", lab.mac["evil"])
    sent.append(f.ethernet(f.group_mac(group), lab.mac["evil"], f.IPV6, asks))
    own_arp = f.arp(1, lab.mac["evil"], own, bytes(6), "10.88.99.99")
    sent.append(f.ethernet(f.ALL, lab.mac["evil"], f.ARP, own_arp))
    sent.append(f.ethernet(f.ALL, lab.mac["evil"], 0x88B5, b"of no protocol".ljust(46)))
    found = lab.seen("victim", sent)
    assert len(found) == (len(sent) if only_when(lab, "bridge") else 0)


def test_who_asks_for_the_gateway_is_answered_and_heard_by_nobody_else():
    """A microVM has no permanent neighbours, and asks."""
    with GuardLab("bridge") as lab:
        lab.serve_everywhere()
        evil = lab.mac["evil"]
        group, asks = f.solicitation(lab.evil.ips[1], GATEWAYS[1], evil)
        sent = [
            f.ethernet(f.ALL, evil, f.ARP, f.arp(1, evil, lab.evil.ips[0], bytes(6), GATEWAYS[0])),
            f.ethernet(f.group_mac(group), evil, f.IPV6, asks),
        ]
        assert lab.seen("victim", sent) == []
        run("ip", "netns", "exec", "evil", "ip", "neigh", "flush", "all", "nud", "permanent")
        for to in GATEWAYS:
            assert lab.asked("evil", to) == "host"


# ---- what is allowed


@pytest.mark.parametrize(("mode", "bridge_nf"), FRAMES)
def test_an_allowance_opens_that_pair_and_no_other(mode, bridge_nf):
    with GuardLab(mode, bridge_nf=bridge_nf) as lab:
        lab.serve_everywhere()
        manager, evil, victim, friend = lab.manager, lab.evil, lab.victim, lab.friend
        manager.allow(victim, friend.ips[1])
        manager.allow(str(friend.ip), victim)  # the same
        assert manager.allowed() == [(victim.ip, friend.ip)]
        for kind, at in product(KINDS, (0, 1)):
            assert lab.asked("victim", friend.ips[at], kind) == "friend"
            assert lab.asked("friend", victim.ips[at], kind) == "victim"
        for one, to in (("evil", victim), ("evil", friend), ("victim", evil), ("friend", evil)):
            for at in (0, 1):
                assert lab.asked(one, to.ips[at], timeout=0.2) is None
        assert manager.check() == [] and not manager.reconcile()
        manager.disallow(friend, victim)
        manager.disallow(friend, victim)
        assert manager.allowed() == []
        for at in (0, 1):
            assert lab.asked("victim", friend.ips[at], timeout=0.2) is None
        assert manager.check() == []


def test_who_is_allowed_may_not_say_it_is_another():
    """On the bridge, where a pair sees each other's neighbour advertisements."""
    with GuardLab("bridge") as lab:
        lab.serve_everywhere()
        lab.manager.allow(lab.evil, lab.friend)
        evil, own, friend = lab.mac["evil"], lab.evil.ips[1], lab.friend.ips[1]

        def told(packet):
            frame = f.ethernet(lab.mac["friend"], evil, f.IPV6, packet)
            return len(lab.seen("friend", [frame]))

        assert told(f.advertisement(own, friend, own, evil)) == 1
        for target in (lab.victim.ips[1], GATEWAYS[1], friend):
            assert told(f.advertisement(own, friend, target, evil)) == 0
        assert told(f.redirect(own, friend, own, OUTSIDE[1])) == 0
        assert told(f.icmpv6(own, friend, f.RA, f.router(own, evil)[44:])) == 0


def test_what_is_open_ends_with_the_allowance(guarded):
    for at in (0, 1):
        _is_open_ends(guarded, at)


def _is_open_ends(lab, at):
    lab.manager.allow(lab.victim, lab.friend)
    with namespaces.inside("victim"):
        client = socket.socket(FAMILIES[at], socket.SOCK_DGRAM)
    with closing(client):
        client.settimeout(0.3)
        client.connect((str(lab.friend.ips[at]), OPEN))
        client.send(b"?")
        assert client.recv(100).startswith(b"friend")
        lab.manager.disallow(lab.victim, lab.friend)
        with pytest.raises(TimeoutError):
            client.send(b"?")
            client.recv(100)


def test_it_ends_with_a_lease_and_is_not_the_next_ones(guarded):
    lab, manager = guarded, guarded.manager
    manager.allow(lab.victim, lab.friend)
    ip = lab.friend.ip
    lab.friend.release()
    assert manager.allowed() == []
    with manager.allocate("next", ip) as following:
        lab.namespace("next")
        following.attach(netns="next")
        lab.serve("next", socket.SOCK_DGRAM, socket.AF_INET)
        assert lab.asked(None, ip) == "next"
        assert lab.asked("victim", ip, timeout=0.2) is None
        assert manager.check() == []


def test_pairs_that_make_no_sense(guarded):
    lab, manager = guarded, guarded.manager
    with pytest.raises(NotAllocatedError, match="10.88.9.9 is not leased"):
        manager.allow(lab.victim, "10.88.9.9")
    with pytest.raises(InvalidValueError, match="is one, and not two"):
        manager.allow(lab.victim, lab.victim.ips[1])
    with pytest.raises(InvalidValueError, match="is not of"):
        manager.allow(lab.victim, "192.0.2.1")
    (gone,) = manager.find("friend")
    lab.friend.release()
    for call in (manager.allow, manager.disallow):
        with pytest.raises(StaleLeaseError):
            call(gone, lab.victim)
    assert manager.allowed() == [] and manager.check() == []


def test_an_open_network_needs_no_allowance():
    with (
        NetworkManager("br9", network="10.9.0.1/24", backend="null") as manager,
        NetworkManager("br8", network="10.8.0.1/24", backend="null") as other,
    ):
        one, two = manager.allocate_many(2)
        with pytest.raises(InvalidValueError, match="network br9 is open"):
            manager.allow(one, two)
        with pytest.raises(InvalidValueError, match="of another manager"):
            manager.allow(one, other.allocate())


# ---- ports


@pytest.mark.parametrize(("mode", "bridge_nf"), FRAMES)
@pytest.mark.parametrize("backend", ["nftables", "iptables-nft", "iptables-legacy"])
def test_published_ports_work_by_every_path(mode, backend, bridge_nf):
    """a outside, b host, c loopback, d itself, e a sibling; over both families."""
    with GuardLab(mode, GUARDED, backend, bridge_nf=bridge_nf) as lab:
        lab.serve_everywhere()
        for kind, protocol in zip(KINDS, ("udp", "tcp"), strict=True):
            request = PortRequest(80, protocol, check := 20500 + (kind == socket.SOCK_STREAM))
            lab.victim.publish([request])
            for at in (0, 1):
                for who, to in (
                    ("outside", UPLINK[at]),
                    (None, UPLINK[at]),
                    (None, GATEWAYS[at]),
                    ("victim", GATEWAYS[at]),
                    ("friend", GATEWAYS[at]),
                    ("evil", UPLINK[at]),
                ):
                    assert lab.asked(who, to, kind, check) == "victim", (who, to, kind)
            assert lab.asked(None, "127.0.0.1", kind, check) == "victim"
        assert lab.asked("evil", lab.victim.ip, timeout=0.2) is None


# ---- two networks, and others


@pytest.mark.parametrize("others", ["nftables", "iptables"])
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_an_open_network_beside_it_is_not_reached_either(tmp_path, backend, others):
    """Whichever of them comes first."""
    for first in (True, False):
        path = tmp_path / f"host-{first}.db"
        with GuardLab("bridge", GUARDED, backend, store=path) as lab:
            run("ip", "link", "add", "br1", "type", "bridge")
            run("ip", "addr", "add", "10.77.0.1/24", "dev", "br1")
            run("ip", "link", "set", "br1", "up")
            lab.serve_everywhere()
            name = f"beside-{first}"
            with NetworkManager(
                "br1", network="10.77.0.1/24", name=name, store=path, backend=others
            ) as beside:
                if first:
                    lab.manager.close()
                    lab.manager = lab.enter_context(lab.open())
                one = beside.allocate("one")
                lab.namespace("one")
                one.attach(netns="one")
                lab.serve("one", socket.SOCK_DGRAM, socket.AF_INET)
                assert lab.asked(None, one.ip) == "one"
                assert lab.asked("evil", one.ip, timeout=0.2) is None
                assert lab.asked("one", lab.victim.ip, timeout=0.2) is None
                one.release()
            for interface in lab.manager.interfaces():
                interface.release()


def test_an_open_network_of_ipv6_alone_beside_it_is_not_reached_either(tmp_path):
    """Of iptables, where bridged frames pass it: nothing is switched on for it on the host."""
    with GuardLab("bridge", GUARDED, store=tmp_path / "host.db", bridge_nf=1) as lab:
        run("ip", "link", "add", "br1", "type", "bridge")
        Path("/proc/sys/net/ipv6/conf/br1/accept_dad").write_text("0")
        run("ip", "addr", "add", "fd00:77::1/64", "dev", "br1")
        run("ip", "link", "set", "br1", "up")
        lab.serve_everywhere()
        with NetworkManager(
            "br1", network="fd00:77::1/64", store=tmp_path / "host.db", backend="iptables"
        ) as beside:
            lab.manager.close()
            lab.manager = lab.enter_context(lab.open())  # after it
            one = beside.allocate("one")
            lab.namespace("one")
            one.attach(netns="one")
            lab.serve("one", socket.SOCK_DGRAM, socket.AF_INET6)
            assert lab.asked(None, one.ip) == "one"
            assert lab.asked("evil", one.ip, timeout=0.2) is None
            one.release()
        for interface in lab.manager.interfaces():
            interface.release()


@pytest.mark.parametrize("bridge_nf", [0, 1])
def test_a_port_that_is_not_ours_reaches_no_container_by_the_bridge(bridge_nf):
    with GuardLab("bridge", bridge_nf=bridge_nf) as lab:
        lab.serve_everywhere()
        lab.namespace("other")
        run("ip", "link", "add", "vx", "type", "veth", "peer", "name", "eth0", "netns", "other")
        run("ip", "link", "set", "vx", "master", "br0", "up")
        assert len(port_indexes("br0")) == 4
        for command in (
            ("addr", "add", "10.88.50.50/16", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            run("ip", "-n", "other", *command)
        for one, other, to in (("other", "victim", lab.victim.ip), ("evil", "other", STRANGER[0])):
            raw = lab.packets(one)
            packet = f.udp(lab.evil.ip, to, b"straight")
            frame = f.ethernet(lab.mac_in(other), lab.mac_in(one), f.IPV4, packet)
            assert lab.seen(other, [frame], sender=raw) == []
        assert lab.asked("other", lab.victim.ip, timeout=0.3) is None
        assert lab.asked("other", GATEWAYS[0], socket.SOCK_STREAM, SECRET, timeout=0.3) is None


# ---- upkeep


def test_an_interface_that_went_away_with_its_namespace_comes_back_as_another(guarded):
    lab = guarded
    run("ip", "-n", "friend", "link", "del", "eth0")
    lab.friend.attach(netns="friend", mac="02:00:00:00:00:07")
    for at in (0, 1):
        assert lab.asked("friend", OUTSIDE[at]) == "outside"
    assert lab.manager.check() == [] and not lab.manager.reconcile()
    run("ip", "-n", "friend", "link", "del", "eth0")
    assert lab.manager.check() and lab.manager.reconcile()
    assert lab.manager.check() == []
    lab.friend.attach(netns="friend")
    assert lab.asked("friend", OUTSIDE[0]) == "outside" and lab.manager.check() == []


def test_what_another_program_takes_away_comes_back(guarded):
    lab, manager = guarded, guarded.manager
    manager.allow(lab.victim, lab.friend)
    for command in (
        "flush set inet netalloc-guard allow",
        "flush ruleset",
        "flush chain inet netalloc-guard forward",
        "delete table bridge netalloc-guard",
        "flush chain bridge netalloc-guard from_port",
    ):
        subprocess.run(["nft", *command.split()], check=True)
        if not command.startswith("flush chain"):
            assert manager.check(), command
        assert manager.reconcile(), command
        assert manager.check() == [] and not manager.reconcile()
        assert lab.asked("victim", lab.friend.ip) == "friend"
        assert lab.asked("evil", lab.victim.ip, timeout=0.2) is None


@pytest.mark.parametrize("backend", ["nftables", "iptables-nft"])
@pytest.mark.parametrize("persistent", [False, True], ids=["memory", "file"])
def test_a_watch_puts_it_back(tmp_path, persistent, backend):
    store = tmp_path / "host.db" if persistent else None
    with GuardLab("bridge", GUARDED, backend, store=store) as lab:
        lab.manager.allow(lab.victim, lab.friend)
        done = queue.Queue()
        with lab.manager.watch(done.put):
            for command in (
                "flush set bridge netalloc-guard sources",
                "flush set inet netalloc-guard allow6",
                "flush chain bridge netalloc-guard between",
                "delete table inet netalloc-guard",
            ):
                while not done.empty():
                    done.get()
                subprocess.run(["nft", *command.split()], check=True)
                assert done.get(timeout=10), command
                assert lab.manager.check() == [], command
            if persistent:  # what another process does is no reason to repair
                with NetworkManager.open("br0", store) as other:
                    other.disallow(lab.victim.ip, lab.friend.ip)
                    other.allow(lab.victim.ip, lab.evil.ip)
        for interface in lab.manager.interfaces():
            interface.release()


def test_what_another_program_puts_in_goes():
    with GuardLab("bridge") as lab:
        lab.serve_everywhere()
        pair = f"{lab.evil.ip} . {lab.victim.ip}"
        for family in ("inet", "bridge"):
            element = f'{{ {pair} comment "netalloc-br0" }}'
            subprocess.run(
                ["nft", "add", "element", family, "netalloc-guard", "allow", element], check=True
            )
        assert any("besides" in line for line in lab.manager.check())
        assert lab.manager.reconcile() and lab.manager.check() == []


def test_nothing_is_left(guarded):
    lab = guarded
    lab.manager.allow(lab.victim, lab.friend)
    tables = run("nft", "list", "tables")
    assert "table inet netalloc-guard" in tables and "table bridge netalloc-guard" in tables
    for one in (lab.evil, lab.victim):
        one.release()
    lab.friend.detach()
    rules = run("nft", "list", "ruleset")
    for interface in (lab.evil, lab.victim, lab.friend):
        assert str(interface.ip) not in rules
    lab.manager.close()
    assert "netalloc" not in run("nft", "list", "tables")


def test_two_guarded_networks_on_one_host(tmp_path):
    """A bridge and a routed one: apart from each other, and either goes alone."""
    path = tmp_path / "host.db"
    with GuardLab("bridge", store=path) as lab:
        lab.serve_everywhere()
        with Networks(path) as host:
            far = host.create(
                "far", "10.66.0.1/24", mode="routed", backend="nftables", services=["81/udp"]
            )
            one, two = far.allocate("one"), far.allocate("two")
            for interface in (one, two):
                lab.namespace(interface.owner)
                interface.attach(netns=interface.owner)
                lab.serve(interface.owner, socket.SOCK_DGRAM, socket.AF_INET)
            for who, to in (("one", two.ip), ("one", lab.victim.ip), ("evil", one.ip)):
                assert lab.asked(who, to, timeout=0.2) is None
            assert lab.asked("one", "10.66.0.1", port=SECRET) == "host"
            assert lab.asked("one", "10.66.0.1", port=OPEN, timeout=0.2) is None
            assert lab.asked("evil", GATEWAYS[0], port=SECRET, timeout=0.2) is None
            far.allow(one, two)
            assert lab.asked("one", two.ip) == "two"
            lab.manager.allow(lab.victim, lab.friend)
            for interface in (one, two):
                interface.release()
            host.remove("far")
            rules = run("nft", "list", "ruleset")
            assert "netalloc-far" not in rules and "10.66.0" not in rules
            assert lab.manager.check() == []
            assert lab.asked("victim", lab.friend.ip) == "friend"
            assert lab.asked("evil", lab.victim.ip, timeout=0.2) is None
            for interface in lab.manager.interfaces():
                interface.release()
            lab.manager.close()
            host.remove("br0")
        assert "netalloc" not in run("nft", "list", "tables")


class Later(GuardLab):
    """The guarded network comes to a host that has a network on br1 and no guard as yet."""

    def __init__(self, first, backend="nftables", **options):
        super().__init__("bridge", GUARDED, backend, **options)
        self.first = first
        self.beside = None

    def open(self):
        if self.beside is None:
            run("ip", "link", "add", "br1", "type", "bridge")
            Path("/proc/sys/net/ipv6/conf/br1/accept_dad").write_text("0")
            for gateway in self.first["network"]:
                run("ip", "addr", "add", gateway, "dev", "br1")
            run("ip", "link", "set", "br1", "up")
            self.prepare()
            options = {"ports": range(21000, 22000), "store": self._options["store"]}
            self.beside = self.enter_context(NetworkManager("br1", **options | self.first))
            guarded = self.first.get("isolation") == GUARDED
            assert ("netalloc-guard" in run("nft", "list", "tables")) == guarded
        return super().open()

    def prepare(self):
        """What is to be done before there is any network."""

    def check(self):
        """Neither of them reaches the other, and the host both."""
        self.serve_everywhere()
        with self.beside.allocate("one") as one:
            self.namespace("one")
            one.attach(netns="one")
            for ip in one.ips:
                at = ip.version == 6
                self.serve("one", socket.SOCK_DGRAM, FAMILIES[at])
                assert self.asked(None, ip) == "one"
                assert self.asked("evil", ip, timeout=0.2) is None
                assert self.asked("one", self.victim.ips[at], timeout=0.2) is None
        for interface in self.manager.interfaces():
            interface.release()


BESIDE = ("10.77.0.1/24", "fd00:77::1/64")


@pytest.mark.parametrize("bridge_nf", [0, 1])
@pytest.mark.parametrize("others", ["nftables", "iptables"])
@pytest.mark.parametrize("family", ["v4", "v6"])
def test_an_open_network_that_was_there_before_any_guard_is_not_reached(
    tmp_path, family, others, bridge_nf
):
    """Of iptables nothing need be switched on for it on the host."""
    first = {"network": [BESIDE[family == "v6"]], "backend": others}
    with Later(first, store=tmp_path / "host.db", bridge_nf=bridge_nf) as lab:
        lab.check()


class OpenAlready(Later):
    """Another program has route_localnet on, and a place for filters at the bridge."""

    def prepare(self):
        Path("/proc/sys/net/ipv4/conf/br1/route_localnet").write_text("1")
        run("tc", "qdisc", "add", "dev", "br1", "clsact")


def test_nor_is_one_for_which_nothing_had_to_be_switched_on(tmp_path):
    first = {"network": BESIDE[:1], "backend": "iptables"}
    with OpenAlready(first, store=tmp_path / "host.db") as lab:
        lab.check()


@pytest.mark.parametrize(("one", "other"), [("nftables", "iptables"), ("iptables", "nftables")])
def test_guarded_networks_of_two_backends_do_not_reach_each_other(tmp_path, one, other):
    first = {"network": BESIDE, "backend": one, "isolation": GUARDED}
    with Later(first, other, store=tmp_path / "host.db") as lab:
        lab.check()


@pytest.mark.parametrize("mode", MODES)
def test_an_open_routed_network_reaches_published_ports_alone(tmp_path, mode):
    with GuardLab(mode, store=tmp_path / "host.db") as lab:
        lab.serve_everywhere()
        with Networks(tmp_path / "host.db") as host:
            options = {"mode": "routed", "isolation": "open", "backend": "nftables"}
            near = host.create("near", "10.66.0.1/24", **options).allocate("near")
            lab.namespace("near")
            near.attach(netns="near")
            lab.serve("near", socket.SOCK_DGRAM, socket.AF_INET)
            port = lab.victim.allocate_port(80, "udp")
            own = near.allocate_port(80, "udp")
            assert lab.asked("near", UPLINK[0], port=port) == "victim"
            assert lab.asked("evil", UPLINK[0], port=own) == "near"
            assert lab.asked("near", lab.victim.ip, timeout=0.2) is None
            assert lab.asked("evil", near.ip, timeout=0.2) is None
            near.release()
            host.remove("near")
        for interface in lab.manager.interfaces():
            interface.release()


@pytest.mark.parametrize("after", [OPENED, GUARDED])
def test_what_a_lost_store_said_goes(tmp_path, after):
    """The network of the name is registered anew, in another store: nothing stays of the first."""
    with GuardLab("bridge", store=tmp_path / "first.db") as lab:
        lab.serve_everywhere()
        lab.manager.allow(lab.victim, lab.friend)
        lab.manager.close()
        (tmp_path / "first.db").rename(tmp_path / "lost.db")
        (tmp_path / "first.db.lock").unlink()
        run("ip", "link", "add", "br1", "type", "bridge")
        run("ip", "addr", "add", "10.55.0.1/24", "dev", "br1")
        store = tmp_path / "first.db"
        others = {"services": ["80/udp"]} if after == GUARDED else {}
        with NetworkManager(
            "br1", name="br0", store=store, backend="nftables", isolation=after, **others
        ) as manager:
            rules = run("nft", "list", "ruleset")
            assert str(lab.victim.ip) not in rules and "02:42:0a:58" not in rules
            assert manager.check() == []
            index = socket.if_nametoindex("br0")
            shown = run("nft", "-n", "list", "set", "inet", "netalloc-guard", "guarded_bridges")
            assert ('"br1"' in shown) == (after == GUARDED) and '"br0"' not in shown, index


def test_kills_at_any_moment_are_mended(tmp_path):
    """A process that attaches, allows, disallows, detaches and releases, killed 20 times."""
    path = tmp_path / "host.db"
    with GuardLab("bridge", store=path) as lab:
        lab.namespace("busy")
        lab.namespace("idle")
        for i in range(20):
            kill(path, after=0.02 + 0.01 * (i * 7 % 20))
            lab.manager.allocate("next").release()
            lab.manager.reconcile()
            assert lab.manager.check() == []
        for _ in range(2):
            lab.manager.gc(["evil", "victim", "friend"], grace=0)
        assert len(lab.manager.interfaces()) == 3 and lab.manager.allowed() == []
        assert lab.manager.check() == [] and not lab.manager.reconcile()
        lab.serve_everywhere()
        assert lab.asked("evil", lab.victim.ip, timeout=0.2) is None
        for interface in lab.manager.interfaces():
            interface.release()


def kill(path, after):
    """Have a child work, and kill it after so many seconds of that."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with NetworkManager.open("br0", path) as manager:
                os.write(told, b"+")
                while True:
                    one, two = manager.allocate("busy"), manager.allocate("busy")
                    one.attach(netns="busy", ifname="eth7")
                    two.attach(netns="idle", ifname="eth7")
                    manager.allow(one, two)
                    manager.disallow(two, one)
                    manager.allow(two, one)
                    two.detach()
                    manager.release("busy")
        finally:
            os._exit(1)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    time.sleep(after)
    os.kill(child, 9)
    os.waitpid(child, 0)


def test_a_second_manager_and_a_killed_one(tmp_path):
    """What is allowed by one holds for the other; what a kill left is mended."""
    path = tmp_path / "host.db"
    with GuardLab("bridge", store=path) as lab:
        lab.serve_everywhere()
        with NetworkManager.open("br0", path) as second:
            second.allow(lab.victim.ip, lab.friend.ip)
            assert lab.manager.allowed() == [(lab.victim.ip, lab.friend.ip)]
            assert lab.asked("victim", lab.friend.ip) == "friend"
            store = lab.manager._leases.committer.store
            # As after a kill between kernel and commit.
            store.run("cut off", lambda tx: tx.mark_dirty(lab.manager._leases.network.number))
            subprocess.run(["nft", "flush", "set", "bridge", "netalloc-guard", "allow"], check=True)
            store.run("cut off", _stay_dirty)
            second.allocate("next").release()
            assert lab.manager.check() == []
            second.disallow(lab.victim.ip, lab.friend.ip)
        assert lab.asked("victim", lab.friend.ip, timeout=0.2) is None
        for interface in lab.manager.interfaces():
            interface.release()


def _stay_dirty(tx):
    for number in (1,):
        tx.mark_dirty(number)
    tx.rollback()


def test_a_refused_change_changes_nothing(guarded, monkeypatch):
    lab, manager = guarded, guarded.manager
    guard = manager._leases.guarding._guard
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    with pytest.raises(Exception, match="netalloc-guard"):
        manager.allow(lab.victim, lab.friend)
    assert manager.allowed() == []
    manager.reconcile()
    real = type(guard).allow
    monkeypatch.setattr(type(guard), "allow", lambda self, pairs: (real(self, pairs), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        manager.allow(lab.victim, lab.friend)
    monkeypatch.undo()
    assert manager.allowed() == []
    manager.allocate().release()  # the next change repairs
    assert manager.check() == []
    assert lab.asked("victim", lab.friend.ip, timeout=0.2) is None


@pytest.mark.parametrize("way", [("bridge",), *BY_IPTABLES[::2]], ids="-".join)
def test_an_element_costs_the_same_however_many_there_are(way):
    with GuardLab(*way) as lab:
        _costs_the_same(lab, lab.manager)


def _costs_the_same(lab, manager):
    many = manager.allocate_many(300)

    def best():
        times = []
        for _ in range(7):
            start = time.perf_counter()
            manager.allow(lab.victim, lab.friend)
            times.append(time.perf_counter() - start)
            manager.disallow(lab.victim, lab.friend)
        return min(times)

    few = best()
    for one, other in zip(many[::2], many[1::2], strict=True):
        manager.allow(one, other)
    assert best() < 2 * few + 0.001
    assert len(manager.allowed()) == 150
    manager.release("nobody")
    for one in many:
        one.release()
    assert manager.allowed() == [] and manager.check() == []
