"""Routed networks with iptables: the rules as it prints them, each mended, made anew, refused."""

import os
import signal
from ipaddress import IPv4Network, IPv6Network
from itertools import product

import pytest

from lab import Lab
from netalloc import NetworkManager, Networks
from netalloc.family import V4, V6, NetworkPair
from netalloc.host import opened
from netalloc.host.links import Links
from netalloc.host.loopback_way import ANSWERS
from netalloc.host.netlink import NetlinkSocket
from netalloc.model import PortMapping
from netalloc.portmap.choice import make_backend, remove_others
from netalloc.portmap.iptables import commands, rules
from netalloc.portmap.iptables.backend import Iptables
from netalloc.portmap.link import Link
from test_one_table import in_child
from test_routed import BOTH, GATEWAYS, NETWORK, STORE, WEB, routed, serve, state

GROUP = f"{Lab.group:#x}"
INTO = f"-m devgroup --dst-group {GROUP} -m conntrack --ctstate DNAT -j"
OUT = "-m devgroup ! --dst-group 0x6e000000/0xff800000 -j MASQUERADE"
GLOBAL = IPv6Network("2001:db8:c8::/64")
BACKENDS = ("nftables", "iptables-legacy", "iptables-nft")


@pytest.fixture
def lab(variant):
    with Lab(variant, ipv6=True, routed=True, containers=4) as lab:
        lab.backend = "iptables"
        yield lab


def sources(link, network, family):
    return rules.fixed_rules("n", link, network, family)["nat"]["n/nat"]


def test_the_rules():
    link, bare = Link(None, Lab.group, GATEWAYS), Link(None, Lab.group)
    assert sources(link, BOTH.v4, V4) == [
        f"-s 127.0.0.0/8 {INTO} SNAT --to-source 10.200.0.1",
        f"-s 10.200.0.0/16 {INTO} SNAT --to-source 10.200.0.1",
        f"-s 10.200.0.0/16 {OUT}",
    ]
    from_loopback = f"-s ::1/128 {INTO} SNAT --to-source {ANSWERS}"
    assert sources(link, BOTH.v6, V6) == [
        from_loopback,
        f"-s fd00:c8::/64 {INTO} SNAT --to-source fd00:c8::1",
        f"-s fd00:c8::/64 {OUT}",
    ]
    # No gateway; no private addresses; the whole of them; no network.
    assert sources(bare, BOTH.v6, V6) == [
        from_loopback,
        f"-s fd00:c8::/64 {INTO} MASQUERADE",
        f"-s fd00:c8::/64 {OUT}",
    ]
    assert sources(link, GLOBAL, V6) == [
        from_loopback,
        f"-s {GLOBAL} {INTO} SNAT --to-source fd00:c8::1",
    ]
    assert sources(bare, IPv6Network("::/0"), V6) == [
        from_loopback,
        f"{INTO} MASQUERADE",
        f"-s fc00::/7 {OUT}",
    ]
    assert sources(bare, None, V4) == [f"-s 127.0.0.0/8 {INTO} MASQUERADE"]
    assert sources(bare, None, V6) == [from_loopback]
    # A group that is no network's of a manager stands for itself alone.
    (*_, out) = sources(Link(None, 7), IPv4Network("0.0.0.0/0"), V4)
    assert out == "-m devgroup ! --dst-group 0x7 -j MASQUERADE"
    assert rules.fixed_rules("n", link, BOTH.v4, V4)["raw"] == {
        "PREROUTING": ["-j n"],
        "n": [f"-{end} 127.0.0.0/8 -m devgroup --src-group {GROUP} -j DROP" for end in "ds"],
    }
    assert [*rules.fixed_rules("n", link, BOTH.v6, V6)] == ["nat"]


@pytest.mark.root
@pytest.mark.parametrize(
    "networks",
    [
        BOTH,
        NetworkPair(BOTH.v4),
        NetworkPair(None, GLOBAL),
        NetworkPair(IPv4Network("0.0.0.0/0"), IPv6Network("::/0")),
    ],
    ids=str,
)
def test_the_kernel_says_them_as_we_do(lab, networks):
    before = state(lab)
    for group, gateways in product(
        (Lab.group, 7, 0x6E7FFFFF, 0xFFFFFFFF), (GATEWAYS, (None, None))
    ):
        backend = Iptables(link=Link(None, group, gateways), networks=networks)
        backend.setup()
        assert backend.agrees([]) and not backend.reconcile([]), (group, gateways)
        backend.cleanup()
        assert state(lab) == before, (group, gateways)


@pytest.mark.root
def test_each_rule_is_mended(lab):
    manager = routed(lab)
    manager.allocate("web", ports=WEB).attach(netns="c0")
    manager.allocate("other").attach(netns="c1")
    serve(lab, lab.containers[0])
    before, number = state(lab), 0
    for family, table in ((V4, "raw"), (V4, "nat"), (V6, "nat")):
        found = commands.read(table, family=family)[table]
        for chain in found:
            for rule in list(found[chain]):
                if " --dport " in rule:
                    continue
                number += 1
                lines = {table: [f"-D {chain} {rule}\n"]}
                commands.restore(lines, family=family)
                assert state(lab) != before
                (said,) = manager.reconcile().structure
                assert said.startswith(f"chain {chain} of table ") and said.endswith(f"{rule!r}")
                assert state(lab) == before
    assert number == 3 + 3 + 3 + 3 + 3
    assert manager.check() == [] and not manager.reconcile()
    for address in (lab.address, lab.address6):
        for place in (lab.outside, lab.host, *lab.containers[:2]):
            assert lab.ask(place, "udp", (address, 8080))[0] == "c0"


@pytest.mark.root
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("iptables -t raw -F; iptables -t raw -X", "of table raw was missing"),
        ("ip6tables -t nat -F; ip6tables -t nat -X", "of table ip6 nat was missing"),
        (f"ip addr del {Lab.gateway}/32 dev lo", f"no interface had gateway address {Lab.gateway}"),
        (
            f"ip -6 route del unreachable {Lab.network6} metric {2**32 - 1}",
            f"network {Lab.network6} had no end",
        ),
        ("sysctl -qw net.ipv4.ip_forward=0", "net.ipv4.ip_forward was 0"),
    ],
)
def test_what_another_program_broke_is_mended_and_said(lab, damage, said):
    manager = routed(lab)
    manager.allocate("web", ports=WEB).attach(netns="c0")
    manager.allocate("other").attach(netns="c1")
    serve(lab, lab.containers[0])
    before = state(lab)
    lab.run("sh", "-c", damage)
    assert any(said in what for what in manager.reconcile().structure)
    assert state(lab) == before
    assert not manager.reconcile()
    for address in (lab.address, lab.address6, "127.0.0.1"):
        assert lab.ask(lab.host, "tcp", (address, 8080))[0] == "c0"
    for address, gateway in ((lab.address, lab.gateway), (lab.address6, lab.gateway6)):
        assert lab.ask(lab.containers[1], "udp", (address, 8080)) == ("c0", gateway)


@pytest.mark.root
@pytest.mark.parametrize("isolation", [None, "guarded"])
def test_a_guarded_one_keeps_containers_apart_and_leaves_nothing(lab, isolation):
    before = state(lab)
    manager = routed(lab, isolation=isolation)
    one, two = manager.allocate("web", ports=WEB), manager.allocate("other")
    manager.attach_many([(one, "c0"), (two, "c1")])
    for place in lab.containers[:2]:
        serve(lab, place)
    assert manager.check() == [] and not manager.reconcile()
    first, second = lab.containers[:2]
    for ip in map(str, two.ips):
        with pytest.raises(OSError):
            lab.ask(first, "udp", (ip, 80), timeout=0.2)
    for address in (lab.address, lab.address6):
        assert lab.ask(second, "udp", (address, 8080))[0] == "c0"
    manager.allow(one, two)
    for ip in map(str, two.ips):
        assert lab.ask(first, "udp", (ip, 80))[0] == "c1"
    manager.release_many([one, two])
    manager.close()
    with Networks(STORE) as networks:
        networks.remove(manager.name)
    assert state(lab) == before


def noted():
    with opened.opened() as record:
        return {entry.user for entry in record}


@pytest.mark.root
@pytest.mark.parametrize("before", BACKENDS)
@pytest.mark.parametrize("after", BACKENDS)
def test_what_the_last_backend_left_goes(before, after):
    """As where the store is gone: of all that it had, what is needed stays."""
    with Lab("nft", ipv6=True, routed=True) as lab:

        def made(backend):
            kind, _, variant = backend.partition("-")
            lab.use(variant or "nft")
            return lab.keep(make_backend(kind, "netalloc-pod", lab.link(), BOTH, shared=True))

        c0, c1 = lab.containers
        serve(lab, c0, c1)
        left = made(before)
        left.setup()
        lab.attach()
        left.apply([PortMapping(port, (ip, 80)) for port in (80, 81) for ip in (c0.ip, c0.ip6)])
        assert lab.ask(lab.outside, "tcp", (lab.address6, 80))[0] == "c0"
        new = made(after)
        new.setup()
        found = remove_others("netalloc-pod", new.name, lab.link(), BOTH)
        assert len(found) == (before != after), found
        assert remove_others("netalloc-pod", new.name, lab.link(), BOTH) == []
        mappings = [PortMapping(80, (ip, 80)) for ip in (c1.ip, c1.ip6)]
        new.reconcile(mappings)
        assert noted() == {f"{new.name} netalloc-pod"}
        for address, gateway in ((lab.address, lab.gateway), (lab.address6, lab.gateway6)):
            assert lab.ask(lab.outside, "tcp", (address, 80))[0] == "c1"
            assert lab.ask(c1, "tcp", (address, 80)) == ("c1", gateway)
            assert lab.reaches(lab.outside, "tcp", (address, 81)) is None
        assert lab.ask(lab.host, "tcp", ("127.0.0.1", 80)) == ("c1", lab.gateway)
        assert not new.reconcile(mappings)
        new.cleanup()
        assert noted() == set()
        assert lab.gateway not in lab.run("ip", "addr", "show", "dev", "lo")
        assert lab.run("ip", "route", "show", "type", "unreachable") == ""


@pytest.mark.root
@pytest.mark.parametrize("backends", [(a, b) for a in BACKENDS for b in BACKENDS], ids="-".join)
@pytest.mark.parametrize("modes", [("routed", "bridge"), ("bridge", "routed")], ids="-".join)
def test_a_network_made_anew_in_the_other_mode(modes, backends):
    """Its store is gone, and with it what the host has of it."""
    with Lab("nft", ipv6=True, routed=True) as lab:
        with Links() as links:
            links.create_bridge("br0", *NETWORK)
        serve(lab, *lab.containers)
        last = dict(zip(modes, ("c0", "c1"), strict=True))
        for number, (mode, backend) in enumerate(zip(modes, backends, strict=True)):
            kind, _, variant = backend.partition("-")
            lab.use(variant or "nft")
            bridge = "br0" if mode == "bridge" else None
            options = {"mode": mode, "isolation": "open", "backend": kind}
            manager = lab.keep(
                NetworkManager(
                    bridge, network=NETWORK, name="pod", store=f"/run/{number}.db", **options
                )
            )
            manager.allocate("web", ports=WEB).attach(netns=last[mode])
            assert not manager.reconcile() and manager.check() == []
            for place in (lab.outside, lab.host):
                for address in (lab.address, lab.address6, "127.0.0.1"):
                    if place is lab.host or address != "127.0.0.1":
                        assert lab.ask(place, "tcp", (address, 8080))[0] == last[mode]
            manager.close()
        assert noted() == {f"{kind} netalloc-pod", ""} - ({""} if mode == "routed" else set())
        is_routed = mode == "routed"
        assert ("unreachable" in lab.run("ip", "route", "show", "table", "all")) == is_routed
        filters = lab.run("tc", "filter", "show", "dev", "br0", "ingress")
        assert bool(filters) != is_routed
        # The address is on the bridge, and so never was on `lo`.
        assert lab.gateway not in lab.run("ip", "addr", "show", "dev", "lo")
        with Networks("/run/1.db") as networks:
            networks.release("web")
            networks.remove("pod")
        assert noted() == set()


def die_at(moment):
    """Have this process killed before its n-th netlink message or command from now."""
    left = [moment]

    def counting(real):
        def counted(*arguments, **options):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return counted

    NetlinkSocket._send = counting(NetlinkSocket._send)
    commands.run = counting(commands.run)


@pytest.mark.root
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("when", ["setup", "apply", "reconcile", "cleanup"])
def test_killed_anywhere(lab, when, step):
    """A child dies at its n-th step, for every n; the next one goes on."""
    both = [PortMapping(8080, (ip, 80)) for ip in ("10.200.0.2", "fd00:c8::2")]
    link = Link(None, lab.group, GATEWAYS)
    before, deaths = state(lab), 0
    for moment in range(1, 80, step):

        def child(moment=moment):
            victim = Iptables(link=link, networks=BOTH)
            if when != "setup":
                victim.setup()
            if when in ("reconcile", "cleanup"):
                victim.apply(both[:1])
            die_at(moment)
            {"setup": victim.setup, "cleanup": victim.cleanup,
             "apply": lambda: victim.apply(both),
             "reconcile": lambda: victim.reconcile(both)}[when]()  # fmt: skip

        status = in_child(child)
        assert status in (0, -signal.SIGKILL)
        deaths += status != 0
        successor = Iptables(link=link, networks=BOTH)
        successor.setup()
        successor.reconcile(both)
        assert set(successor.mappings()) == set(both)
        assert not successor.reconcile(both)
        addresses = lab.run("ip", "-o", "addr", "show", "dev", "lo")
        assert f"{lab.gateway}/32" in addresses and f"{lab.gateway6}/128" in addresses
        successor.cleanup()
        assert state(lab) == before
        if not status:
            break
    assert not status
    assert deaths >= (1 if when == "apply" else 4 / step)


@pytest.mark.root
def test_networks_of_both_backends_beside_each_other(lab):
    """What comes out of the one of iptables is not hidden, whosever the other routed one is."""
    pod = routed(lab)
    jobs = routed(lab, "jobs", ("10.201.0.1/16", "fd00:c9::1/64"), backend="nftables")
    pod.allocate("web", ports=WEB).attach(netns="c0")
    other = jobs.allocate("other")
    other.attach(netns="c1")
    c0, c1 = lab.containers[:2]
    serve(lab, c0, c1)
    for address, ip, own in zip(
        (lab.address, lab.address6), (c0.ip, c0.ip6), other.addresses, strict=True
    ):
        assert lab.ask(c1, "tcp", (address, 8080))[0] == "c0"
        assert lab.ask(c1, "tcp", (ip, 80))[0] == "c0"
        assert lab.ask(c0, "tcp", (str(own.ip), 80)) == ("c1", ip)
