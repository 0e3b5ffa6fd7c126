"""Routed networks on a private host: published ports, the way out, others beside them, no trace."""

import os
import queue
import select
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path

import pytest

from hostile import PORT as HOSTILE_PORT
from hostile import frames
from lab import Lab, Place
from netalloc import NetallocError, NetworkManager, Networks, PortRequest
from netalloc.family import FAMILIES, NetworkPair
from netalloc.host import namespaces, opened, sysctl
from netalloc.host.links import Links
from netalloc.host.loopback_way import ANSWERS
from netalloc.host.macs import HOST_END
from netalloc.model import PortMapping
from netalloc.portmap.choice import make_backend
from netalloc.portmap.link import Link
from netalloc.portmap.nftables import ruleset
from netalloc.portmap.nftables.backend import HOST_TABLE, Nftables
from test_attach_traffic import _open_tap as open_tap
from test_one_table import die_at, in_child

pytestmark = pytest.mark.root

STORE = "/run/host.db"
NETWORK = (f"{Lab.gateway}/16", f"{Lab.gateway6}/64")
SECOND = ("10.201.0.1/16", "fd00:c9::1/64")
ON_BRIDGE = ("10.202.0.1/16", "fd00:ca::1/64")
PROTOCOLS = ("tcp", "udp")
WEB = [PortRequest(80, protocol, 8080) for protocol in PROTOCOLS]
BOTH = NetworkPair(IPv4Network(Lab.network), IPv6Network(Lab.network6))
GATEWAYS = (ip_address(Lab.gateway), ip_address(Lab.gateway6))


@pytest.fixture
def lab(request):
    backend, _, variant = getattr(request, "param", "nftables").partition("-")
    with Lab(variant or "nft", ipv6=True, routed=True, containers=4) as lab:
        lab.backend = backend
        yield lab


every_backend = pytest.mark.parametrize(
    "lab", ["nftables", "iptables-legacy", "iptables-nft"], indirect=True
)


def routed(lab, name="pod", network=NETWORK, **options):
    stated = {"mode": "routed", "isolation": "open", "backend": lab.backend, "store": STORE}
    stated |= options
    manager = NetworkManager(stated.pop("bridge", None), network=network, name=name, **stated)
    return lab.keep(manager)


def serve(lab, *places):
    for protocol in PROTOCOLS:
        for place in places:
            lab.serve(place, protocol, 80)


def place_of(name, interface):
    v4, v6 = (str(one.ip) for one in interface.addresses)
    return Place(name, name, v4, v6)


def state(lab):
    """All that a network leaves or not: addresses, routes, interfaces, rules, settings, notes."""
    links = [line.split()[1] for line in lab.run("ip", "-o", "link").splitlines()]
    routes = [lab.run("ip", f"-{n}", "route").replace(" linkdown", "") for n in (4, 6)]
    forwarding = [sysctl.read(*family.forwarding) for family in FAMILIES]
    with opened.opened() as record:
        noted = sorted(record)
    addresses = lab.run("ip", "-o", "addr", "show", "dev", "lo")
    return links, routes, forwarding, noted, addresses, all_rules(lab)


def all_rules(lab):
    """All rules of the backend's kind."""
    if lab.backend == "nftables":
        return lab.run("nft", "list", "ruleset")
    # Tables, chains and policies that a mere look makes are left out; tables have no order.
    dumps = [lab.run(f"{family.iptables}-save").splitlines() for family in FAMILIES]
    return [sorted(line for line in lines if line[:1] == "-") for lines in dumps]


@every_backend
@pytest.mark.parametrize("drops", [False, True], ids=["", "FORWARD drops"])
def test_all_that_a_manager_s_containers_do(lab, drops):
    if drops:
        for command in ("iptables", "ip6tables"):
            lab.run(command, "-P", "FORWARD", "DROP")
    before, rules = state(lab)[:-1], lab.rules()
    manager = routed(lab, forward=drops)
    web, other = manager.allocate("web", ports=WEB), manager.allocate("other")
    manager.attach_many([(web, "c0"), (other, "c1")])
    c0, c1 = lab.containers[:2]
    serve(lab, c0, lab.outside)
    for protocol in PROTOCOLS:
        for address, gateway, of in (
            (lab.address, lab.gateway, lambda place: place.ip),
            (lab.address6, lab.gateway6, lambda place: place.ip6),
        ):
            to = (address, 8080)
            assert lab.ask(lab.outside, protocol, to) == ("c0", of(lab.outside))
            assert lab.ask(lab.host, protocol, to) == ("c0", address)
            for place in (c0, c1):
                for host in (address, gateway):
                    assert lab.ask(place, protocol, (host, 8080)) == ("c0", gateway)
            # The way out, from the host, and a sibling's own address: nothing is hidden there.
            assert lab.ask(c1, protocol, (of(lab.outside), 80)) == ("outside", address)
            assert lab.ask(lab.host, protocol, (of(c0), 80)) == ("c0", gateway)
            assert lab.ask(c1, protocol, (of(c0), 80)) == ("c0", of(c1))
        assert lab.ask(lab.host, protocol, ("127.0.0.1", 8080)) == ("c0", lab.gateway)
        assert lab.ask(lab.host, protocol, ("::1", 8080)) == ("c0", str(ANSWERS))
    assert manager.check() == [] and not manager.reconcile()
    for owner in ("web", "other"):
        manager.release(owner)
    manager.close()
    with Networks(STORE) as networks:
        networks.remove("pod")
    assert state(lab)[:-1] == before
    assert lab.rules() == rules and HOST_TABLE not in lab.run("nft", "list", "ruleset")


@every_backend
def test_a_manager_in_memory_takes_all_of_it_along(lab):
    before = state(lab)
    with routed(lab, store=None) as manager:
        manager.allocate("web", ports=WEB).attach(netns="c0")
        serve(lab, lab.containers[0])
        assert lab.ask(lab.outside, "udp", (lab.address6, 8080))[0] == "c0"
        assert lab.ask(lab.host, "tcp", ("127.0.0.1", 8080)) == ("c0", lab.gateway)
        assert manager.check() == [] and not manager.reconcile()
    assert state(lab) == before


@every_backend
def test_two_routed_networks_and_a_bridged_one(lab):
    """Each reaches each other by published ports; they share a table and go one by one.

    With iptables each has chains of its own, which know nothing of the others: what comes out of
    a bridged one has some address of the host's, and out of a routed one its own.
    """
    with Links() as links:
        links.create_bridge("br0", *ON_BRIDGE)
    before = state(lab)
    kinds = {"pod": (NETWORK, {}), "jobs": (SECOND, {}),
             "br0": (ON_BRIDGE, {"mode": "bridge", "bridge": "br0"})}  # fmt: skip
    places, managers = {}, {}
    for number, (name, (network, options)) in enumerate(kinds.items()):
        managers[name] = manager = routed(lab, name, network, **options)
        ports = [PortRequest(80, protocol, 8080 + number) for protocol in PROTOCOLS]
        interface = manager.allocate("web", ports=ports)
        interface.attach(netns=f"c{number}")
        places[name] = place_of(f"c{number}", interface)
    serve(lab, *places.values(), lab.outside)
    for protocol in PROTOCOLS:
        for number, (name, place) in enumerate(places.items()):
            gateways = [text.partition("/")[0] for text in kinds[name][0]]
            for address, gateway in zip((lab.address, lab.address6), gateways, strict=True):
                for one in (lab.host, lab.outside):
                    assert lab.ask(one, protocol, (address, 8080 + number))[0] == place.name
                for other, one in places.items():
                    who, seen = lab.ask(one, protocol, (address, 8080 + number))
                    assert who == place.name
                    if lab.backend == "nftables" or name in (other, "br0"):
                        assert seen == gateway
                    elif other != "br0":
                        assert seen == (one.ip6 if ":" in address else one.ip)
            for text, of in zip(gateways, ("ip", "ip6"), strict=True):
                for other, one in places.items():
                    who, seen = lab.ask(one, protocol, (getattr(place, of), 80))
                    # To a bridge another network's containers come as its gateway.
                    hidden = name == "br0" and other != "br0"
                    assert who == place.name
                    if lab.backend == "nftables" or other != "br0" or name == "br0":
                        assert seen == (text if hidden else getattr(one, of))
                assert lab.ask(place, protocol, (getattr(lab.outside, of), 80))[0] == "outside"
    for name, manager in managers.items():
        manager.release("web")
        manager.close()
        with Networks(STORE) as networks:
            networks.remove(name)
        del places[name]
        for number, left in enumerate(kinds):
            if left in places:
                for address in (lab.address, lab.address6):
                    found = lab.ask(lab.outside, "tcp", (address, 8080 + number))
                    assert found[0] == places[left].name
    # (the bridge's own address has its routes only while it has a port)
    assert [*state(lab)[2:-1]] == [*before[2:-1]]
    assert "netalloc" not in lab.run("nft", "list", "ruleset") + lab.rules()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("nft flush ruleset", f"table inet {HOST_TABLE} was missing"),
        (f"nft flush set inet {HOST_TABLE} routed", "set routed lacked"),
        (f"nft flush map inet {HOST_TABLE} gateways", "set gateways lacked"),
        (
            f"nft flush map inet {HOST_TABLE} gateways6",
            "set gateways6 lacked",
        ),
        (f"ip addr del {Lab.gateway}/32 dev lo", f"no interface had gateway address {Lab.gateway}"),
        (
            f"ip addr del {Lab.gateway6}/128 dev lo",
            f"no interface had gateway address {Lab.gateway6}",
        ),
        (f"ip route del unreachable {Lab.network}", f"network {Lab.network} had no end"),
        (
            f"ip -6 route del unreachable {Lab.network6} metric {2**32 - 1}",
            f"network {Lab.network6} had no end",
        ),
        ("sysctl -qw net.ipv4.ip_forward=0", "net.ipv4.ip_forward was 0"),
        ("sysctl -qw net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.all.forwarding was 0"),
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
    # The fingerprint is of what the kernel has, and so is the same.
    assert state(lab) == before
    assert not manager.reconcile()
    for address in (lab.address, lab.address6, "127.0.0.1"):
        assert lab.ask(lab.host, "tcp", (address, 8080))[0] == "c0"
    for address, gateway in ((lab.address, lab.gateway), (lab.address6, lab.gateway6)):
        assert lab.ask(lab.containers[1], "udp", (address, 8080)) == ("c0", gateway)


OPENS = """
from netalloc import NetworkManager
with NetworkManager.open("pod", "/run/host.db") as manager:
    one = manager.allocate("second", ports=[80])
    one.attach(netns="c1")
    print(*one.ports()[:1], sep="")
"""


@pytest.mark.parametrize("lab", ["nftables", "iptables-nft"], indirect=True)
@pytest.mark.parametrize("address", [f"{Lab.gateway}/32", f"{Lab.gateway6}/128"])
def test_a_watch_puts_a_gateway_back_at_once(lab, address):
    manager = routed(lab)
    manager.allocate("web", ports=WEB).attach(netns="c0")
    serve(lab, lab.containers[0])
    before, repairs = state(lab), queue.SimpleQueue()
    with manager.watch(repairs.put):
        for _ in range(2):
            lab.run("ip", "addr", "del", address, "dev", "lo")
            found = f"no interface had gateway address {address.partition('/')[0]}"
            while found not in repairs.get(timeout=5).structure:
                pass
            assert state(lab) == before
    assert lab.ask(lab.host, "tcp", ("127.0.0.1", 8080)) == ("c0", lab.gateway)


def test_a_map_that_leads_to_another_gateway_is_mended(lab):
    manager = routed(lab)
    manager.allocate("web", ports=WEB).attach(netns="c0")
    serve(lab, lab.containers[0])
    before = state(lab)
    where = ("element", "inet", HOST_TABLE, "gateways6")
    lab.run("nft", "delete", *where, f"{{ {lab.group} }}")
    lab.run("nft", "add", *where, f"{{ {lab.group} : fd00:c8::9 }}")
    (said,) = manager.reconcile().structure
    assert said.startswith("set gateways6 lacked 10.200.0.0/16 of netalloc-pod on group:6e000001")
    assert state(lab) == before
    assert lab.ask(lab.containers[0], "udp", (lab.address6, 8080)) == ("c0", lab.gateway6)


@every_backend
def test_a_second_process_and_a_second_manager(lab):
    first = routed(lab)
    first.allocate("web", ports=WEB).attach(netns="c0")
    serve(lab, *lab.containers)
    done = subprocess.run([sys.executable, "-c", OPENS], capture_output=True, check=True)
    assert b"10.200.0.3" in done.stdout
    second = lab.keep(NetworkManager.open("pod", STORE))
    third = second.allocate("third", ports=[PortRequest(80, host_port=8082)])
    third.attach(netns="c2")
    (number,) = {port.host_port for port in first.find(owner="second")[0].ports()}
    for address in (lab.address, lab.address6):
        for port, name in ((8080, "c0"), (number, "c1"), (8082, "c2")):
            assert lab.ask(lab.outside, "tcp", (address, port))[0] == name
    second.close()
    first.close()  # all stays, as in a file
    assert lab.ask(lab.outside, "tcp", (lab.address6, 8082))[0] == "c2"
    assert lab.ask(lab.host, "tcp", ("127.0.0.1", 8080)) == ("c0", lab.gateway)


@every_backend
def test_what_is_for_nobody_does_not_leave_the_host(lab):
    """Not even by a default route, nor what a container was cut off from."""
    for family, gateway in (("-4", lab.outside.ip), ("-6", lab.outside.ip6)):
        lab.run("ip", family, "route", "add", "default", "via", gateway)
    manager = routed(lab)
    manager.allocate("web", ports=WEB).attach(netns="c0")
    gone = manager.allocate("gone")
    gone.attach(netns="c1")
    gone.detach()
    c0, c1 = lab.containers[:2]
    with Links("outside") as outside:  # it would answer for anyone
        for ip in (f"{c1.ip}/32", f"{c1.ip6}/128"):
            outside.add_address("lo", ip)
    serve(lab, lab.outside)
    for protocol in PROTOCOLS:
        for ip, other in ((c1.ip, lab.outside.ip), (c1.ip6, lab.outside.ip6)):
            for place in (lab.host, c0):
                assert lab.reaches(place, protocol, (ip, 80)) is None
                assert lab.ask(place, protocol, (other, 80))[0] == "outside"


@every_backend
def test_a_network_without_gateways(lab):
    """What comes through a host port comes from some address of the host's then."""
    manager = routed(lab, network=(Lab.network, Lab.network6))
    web, other = manager.allocate("web", ports=WEB), manager.allocate("other")
    manager.attach_many([(web, "c0"), (other, "c1")])
    serve(lab, lab.containers[0])
    for protocol in PROTOCOLS:
        for place in (lab.outside, lab.host, *lab.containers[:2]):
            for address in (lab.address, lab.address6):
                assert lab.ask(place, protocol, (address, 8080))[0] == "c0"
        assert lab.ask(lab.host, protocol, ("127.0.0.1", 8080))[0] == "c0"
    assert manager.check() == [] and not manager.reconcile()


def test_a_manager_killed_anywhere(lab):
    """A child takes an address, attaches it and gives it back, and dies at a message of it."""
    manager = routed(lab)
    before, died = state(lab), 0
    for moment in range(1, 200, 2):

        def child(moment=moment):
            victim = NetworkManager.open("pod", STORE)
            die_at(moment)
            victim.allocate("victim", ports=WEB).attach(netns="c0")
            victim.release("victim")

        status = in_child(child)
        assert status in (0, -signal.SIGKILL)
        died += status != 0
        manager.reconcile()
        manager.gc([], grace=0)
        manager.gc([], grace=0)
        assert manager.check() == []
        assert state(lab) == before
        if not status:
            break
    assert not status and died > 4
    again = manager.allocate("web", ports=WEB)
    again.attach(netns="c0")
    serve(lab, lab.containers[0])
    assert lab.ask(lab.outside, "tcp", (lab.address6, 8080))[0] == "c0"


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("when", ["setup", "apply", "reconcile", "cleanup"])
def test_killed_anywhere(lab, when, step):
    """A child dies at its n-th message to the kernel, for every n; the next one goes on."""
    both = [PortMapping(8080, (ip, 80)) for ip in ("10.200.0.2", "fd00:c8::2")]
    link = Link(None, lab.group, GATEWAYS)
    before, deaths = state(lab), 0
    for moment in range(1, 160, step):

        def child(moment=moment):
            victim = Nftables(link=link, networks=BOTH)
            if when != "setup":
                victim.setup()
            if when == "reconcile":
                victim.apply(both[:1])
            die_at(moment)
            {"setup": victim.setup, "cleanup": victim.cleanup,
             "apply": lambda: victim.apply(both),
             "reconcile": lambda: victim.reconcile(both)}[when]()  # fmt: skip

        status = in_child(child)
        assert status in (0, -signal.SIGKILL)
        deaths += status != 0
        successor = Nftables(link=link, networks=BOTH)
        successor.setup()
        successor.reconcile(both)
        assert set(successor.mappings()) == set(both)
        assert not successor.reconcile(both)
        addresses = lab.run("ip", "-o", "addr", "show", "dev", "lo")
        assert f"{lab.gateway}/32" in addresses and f"{lab.gateway6}/128" in addresses
        successor.cleanup()
        successor.close()
        assert state(lab) == before
        if not status:
            break
    assert not status
    assert deaths >= (1 if when == "apply" else 4 / step)


@every_backend
def test_an_address_that_the_host_has_stays(lab):
    """Also for two users, of which the first to come goes first."""
    lab.run("ip", "addr", "add", f"{lab.gateway}/32", "dev", "other0")
    before = state(lab)
    link = Link(None, lab.group, GATEWAYS)
    one, two = (lab.keep(make_backend(lab.backend, name, link, BOTH)) for name in ("one", "two"))
    one.setup()
    assert lab.gateway not in lab.run("ip", "addr", "show", "dev", "lo")
    assert lab.gateway6 in lab.run("ip", "addr", "show", "dev", "lo")
    two.setup()
    one.cleanup()
    assert lab.gateway6 in lab.run("ip", "addr", "show", "dev", "lo")
    two.cleanup()
    assert state(lab) == before


@every_backend
def test_a_network_that_cannot_be_set_up_is_not_registered(lab):
    """Its number is given only within the change that is then taken back."""
    before = state(lab)
    lab.run("mount", "--bind", "/proc/sys", "/proc/sys")
    lab.run("mount", "-o", "remount,bind,ro", "/proc/sys")
    with pytest.raises(NetallocError, match=r"cannot set net\.ipv4\.ip_forward"):
        routed(lab)
    with Networks(STORE) as networks:
        assert list(networks) == []
    assert state(lab) == before
    lab.run("umount", "/proc/sys")
    assert routed(lab).check() == []


@every_backend
def test_a_machine_behind_a_tap(lab):
    """What comes for its published port is on its tap, from the gateway where it has to be."""
    manager = routed(lab)
    interface = manager.allocate("vm", ports=WEB)
    interface.attach(tap="tap0")
    assert f"group {lab.group}" in lab.run("ip", "link", "show", "tap0")
    tap = open_tap("tap0")
    try:
        for place, address, seen in (
            (lab.outside, lab.address, lab.outside.ip),
            (lab.host, "127.0.0.1", lab.gateway),
            (lab.outside, lab.address6, lab.outside.ip6),
        ):
            with lab.socket(place, "udp", address) as client:
                client.settimeout(5)
                client.connect((address, 8080))
                v6 = ":" in address
                wanted = socket.inet_pton(socket.AF_INET6 if v6 else socket.AF_INET, seen)
                start = 14 + (8 if v6 else 12)
                frame = b""
                for _ in range(200):
                    client.send(b"?")
                    frame = os.read(tap, 2000)[10:] if wait(tap) else b""
                    if frame[start : start + len(wanted)] == wanted and frame[-1:] == b"?":
                        break
                else:
                    pytest.fail(f"nothing came from {seen}: {frame.hex()}")
                to = start + len(wanted)
                mine = ip_address(interface.addresses[v6].ip).packed
                assert frame[to : to + len(mine)] == mine
    finally:
        os.close(tap)
    interface.release()
    assert "tap0" not in lab.run("ip", "link")


def wait(fd):
    return select.select([fd], [], [], 0.05)[0]


@every_backend
def test_the_hosts_loopback_is_closed_to_containers(lab):
    """route_localnet of their interfaces is on: the rules keep them out, whatever they send."""
    manager = routed(lab)
    manager.allocate("web", ports=WEB).attach(netns="c0")
    (localnet,) = Path("/proc/sys/net/ipv4/conf").glob("na*/route_localnet")
    assert localnet.read_text() == "1\n"
    with ExitStack() as stack:
        server = stack.enter_context(lab.socket(lab.host, "udp"))
        server.bind(("0.0.0.0", HOSTILE_PORT))
        server.settimeout(5)
        with namespaces.inside("c0"):
            raw = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
            raw.bind(("eth0", 0))
        mine, c0 = raw.getsockname()[4], lab.containers[0]

        def attack():
            for frame in frames(mine, HOST_END, c0.ip):
                raw.send(frame)

        def arrived():
            with lab.socket(c0, "udp") as honest:  # comes after them, and shows that they came in
                honest.sendto(b"honest", (lab.gateway, HOSTILE_PORT))
            found = []
            while not found or found[-1] != b"honest":
                found.append(server.recv(100))
            return found[:-1]

        attack()
        assert arrived() == []
        if lab.backend == "nftables":
            lab.run("nft", "flush", "chain", "inet", HOST_TABLE, "guard")
        else:
            lab.run("iptables", "-t", "raw", "-F")
        attack()
        assert arrived() != []  # that is what keeps them out
        manager.reconcile()
        attack()
        assert arrived() == []


def test_a_table_that_an_earlier_version_loaded_is_brought_up_to_date(lab):
    """It knew nothing of groups; what is mapped in it stays."""
    text = ruleset.script(HOST_TABLE)
    earlier = [
        line for line in text.splitlines()
        if not any(word in line for word in ("routed", "gateways"))
    ]  # fmt: skip
    lab.run("nft", "-f", "-", input="\n".join(earlier))
    element = "{ tcp . 8081 : 10.202.0.9 . 80 }"
    lab.run("nft", "add", "element", "inet", HOST_TABLE, "dnat_any", element)
    manager = routed(lab)
    manager.allocate("web", ports=WEB).attach(netns="c0")
    serve(lab, lab.containers[0])
    assert lab.ask(lab.host, "tcp", ("127.0.0.1", 8080)) == ("c0", lab.gateway)
    assert "10.202.0.9" in lab.run("nft", "list", "map", "inet", HOST_TABLE, "dnat_any")


def test_a_packet_passes_as_many_rules_with_many_networks(lab):
    def rules():
        listing = lab.run("nft", "-t", "list", "table", "inet", HOST_TABLE)
        return listing.partition("chain ")[2]

    made = [routed(lab)]
    alone = rules()
    with Networks(STORE) as networks:
        for number in range(20):
            subnets = (f"10.{number}.0.1/24", f"fd00:{number + 1}::1/64")
            networks.create(
                f"n{number}", subnets, mode="routed", backend="nftables", isolation="open"
            )
        assert rules() == alone
        for number in range(20):
            networks.remove(f"n{number}")
    assert rules() == alone
    assert made[0].check() == []
