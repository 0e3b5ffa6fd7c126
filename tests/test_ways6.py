"""The one way to all IPv6 containers of a routed network: shared, mended, given up, missing."""

import errno
import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import time

import pytest

from lab import Lab
from netalloc import NetworkManager, Networks
from netalloc.host import network_way, way_tables
from netalloc.host.way_elements import WayElements
from test_one_table import in_child
from test_routed import STORE, WEB, every_backend, lab, routed, serve, state

__all__ = ["lab"]
pytestmark = pytest.mark.root

DEVICE, OTHER = "way6-1", "way6-2"
REFUSED = (errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.EPERM)


def own_routes(lab):
    """The routes that containers have for themselves."""
    return re.findall(r"(?m)^fd00:\S+ dev \S+", lab.run("ip", "-6", "route").replace("dev lo", ""))


def elements(lab):
    """How many containers the way leads to, by each of its sets."""
    shown = [
        lab.run("nft", "list", kind, family, way_tables.TABLE, name)
        for kind, family, name in (
            ("map", "netdev", way_tables.MACS),
            ("map", "netdev", way_tables.ENDS),
            ("set", "inet", way_tables.THERE),
        )
    ]
    return [len(set(re.findall(r"fd00:[0-9a-f:]+", text))) for text in shown]


def refusal(lab, place, protocol, ip):
    """How long it takes until it is known that nobody is there, in seconds."""
    start = time.monotonic()
    with lab.socket(place, protocol, ip) as asking:
        asking.settimeout(5)
        try:
            asking.connect((ip, 80))
            asking.send(b"who")
            asking.recv(9)
        except OSError as error:
            assert error.errno in REFUSED
    return time.monotonic() - start


def six(interface):
    return str(interface.addresses[1].ip)


@every_backend
def test_no_container_has_a_route(lab):
    manager = routed(lab)
    web, other = manager.allocate("web", ports=WEB), manager.allocate("other")
    manager.attach_many([(web, "c0"), (other, "c1")])
    serve(lab, *lab.containers[:2], lab.outside)
    c0, c1 = lab.containers[:2]
    assert own_routes(lab) == []
    assert elements(lab) == [2, 2, 2]
    for protocol in ("tcp", "udp"):
        assert lab.ask(lab.host, protocol, (c0.ip6, 80)) == ("c0", lab.gateway6)
        assert lab.ask(c1, protocol, (c0.ip6, 80)) == ("c0", c1.ip6)
        assert lab.ask(lab.outside, protocol, (lab.address6, 8080))[0] == "c0"
        assert lab.ask(c0, protocol, (lab.address6, 8080))[0] == "c0"
    assert "fd00" not in lab.run("ip", "-6", "neigh", "show", "dev", DEVICE, "nud", "all")
    other.detach()
    assert elements(lab) == [1, 1, 1]
    assert lab.reaches(lab.host, "tcp", (c1.ip6, 80)) is None


SECOND_PROCESS = """
from netalloc import NetworkManager
with NetworkManager(None, network=("10.201.0.1/16", "fd00:c9::1/64"), name="jobs", mode="routed",
                    isolation="open", backend="{backend}", store="/run/host.db") as manager:
    manager.allocate("job").attach(netns="c1")
"""


@every_backend
def test_two_networks_and_two_processes(lab):
    """Each has a device, both have the tables, and neither takes the other's along."""
    before = state(lab)
    first = routed(lab)
    web = first.allocate("web", ports=WEB)
    web.attach(netns="c0")
    code = SECOND_PROCESS.format(backend=lab.backend)
    subprocess.run([sys.executable, "-c", code], check=True)
    c0, c1 = lab.containers[:2]
    serve(lab, c0, c1)
    with NetworkManager.open("jobs", STORE) as second:
        (job,) = second.find()
        assert own_routes(lab) == []
        assert elements(lab) == [2, 2, 2]
        assert lab.ask(c0, "tcp", (six(job), 80)) == ("c1", c0.ip6)
        assert lab.ask(c1, "udp", (c0.ip6, 80)) == ("c0", six(job))
        job.release()
    with Networks(STORE) as networks:
        networks.remove("jobs")
    assert OTHER not in lab.run("ip", "link")
    assert elements(lab) == [1, 1, 1]
    assert lab.ask(lab.outside, "tcp", (lab.address6, 8080))[0] == "c0"
    web.release()
    first.close()
    with Networks(STORE) as networks:
        networks.remove("pod")
    assert "way6" not in lab.run("ip", "link")
    assert way_tables.TABLE not in lab.run("nft", "list", "tables")
    assert [*state(lab)[:5]] == [*before[:5]]


DAMAGES = {
    f"ip link del {DEVICE}": "had no device",
    f"ip link set {DEVICE} down": "had no device",
    f"ip link set {DEVICE} group 7": "had no device",
    f"ip link set {DEVICE} down; ip link set {DEVICE} name other": "had no device",
    f"ip -6 route del {Lab.network6} dev {DEVICE}": "had no way",
    f"nft delete table netdev {way_tables.TABLE}": "were not whole",
    f"nft delete table inet {way_tables.TABLE}": "were not whole",
    f"nft flush chain netdev {way_tables.TABLE} {DEVICE}": "were not whole",
    f"nft add rule inet {way_tables.TABLE} forward drop": "were not whole",
    f"nft add table netdev {way_tables.TABLE} '{{ flags dormant; }}'": "were not whole",
    f"nft flush map netdev {way_tables.TABLE} {way_tables.ENDS}": None,
    f"nft flush set inet {way_tables.TABLE} {way_tables.THERE}": None,
}


@pytest.mark.parametrize("lab", ["nftables", "iptables-nft"], indirect=True)
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_another_program_breaks_is_mended(lab, damage):
    manager = routed(lab)
    manager.attach_many([(manager.allocate(), "c0"), (manager.allocate(), "c1")])
    c0, c1 = lab.containers[:2]
    serve(lab, c0, c1)
    before, rules = state(lab), lab.run("nft", "list", "table", "netdev", way_tables.TABLE)
    lab.run("sh", "-c", damage)
    found, said = manager.reconcile().structure, DAMAGES[damage]
    assert said is None or any(said in what for what in found)
    if "iptables" not in lab.backend:
        assert sorted(state(lab)[0]) == sorted(before[0])
        assert state(lab)[2:5] == before[2:5]
    assert lab.run("nft", "list", "table", "netdev", way_tables.TABLE) == rules
    assert lab.ask(c0, "tcp", (c1.ip6, 80)) == ("c1", c0.ip6)
    assert lab.ask(lab.host, "udp", (c0.ip6, 80)) == ("c0", lab.gateway6)
    assert own_routes(lab) == []
    assert not manager.reconcile() and manager.check() == []


@pytest.mark.parametrize("lab", ["nftables", "iptables-nft"], indirect=True)
@pytest.mark.parametrize("damage", [*DAMAGES][:2] + [*DAMAGES][5:8])
def test_a_watch_mends_it_at_once(lab, damage):
    manager = routed(lab)
    manager.allocate().attach(netns="c0")
    c0 = lab.containers[0]
    serve(lab, c0)
    repairs = queue.SimpleQueue()
    with manager.watch(repairs.put):
        for _ in range(2):
            lab.run("sh", "-c", damage)
            while not any(DAMAGES[damage] in what for what in repairs.get(timeout=5).structure):
                pass
            assert lab.ask(lab.host, "udp", (c0.ip6, 80)) == ("c0", lab.gateway6)


@every_backend
def test_what_no_container_has_is_refused_at_once(lab):
    """From the host and from a container; and nobody is asked who that is."""
    manager = routed(lab)
    manager.allocate().attach(netns="c0")
    gone = manager.allocate()
    gone.attach(netns="c1")
    gone.detach()
    before = lab.run("ip", "-6", "neigh", "show", "dev", DEVICE)
    for ip in ("fd00:c8::77", six(gone)):
        for protocol in ("tcp", "udp"):
            assert refusal(lab, lab.host, protocol, ip) < 0.3
        # A connect() that sends learns of an ICMP message when it sends again, after a second.
        assert refusal(lab, lab.containers[0], "tcp", ip) < 2
    assert lab.run("ip", "-6", "neigh", "show", "dev", DEVICE) == before


def test_an_address_of_another_now_does_not_come_to_the_last_one(lab):
    """Not even while its interface is still there, with its address in it."""
    manager = routed(lab)
    old = manager.allocate()
    old.attach(netns="c0")
    c0, c1 = lab.containers[:2]
    serve(lab, c0, c1)
    service = manager._leases.attaching
    service._remove = lambda *_: None  # as when the process is slow, or killed
    address = old.ips
    old.release()
    assert lab.reaches(lab.host, "udp", (str(address[1]), 80)) is None
    new = manager.allocate(ip=address[0])
    assert new.ips == address
    new.attach(netns="c1")
    for place in (lab.host, lab.outside):
        if place is lab.host:
            assert lab.ask(place, "udp", (six(new), 80))[0] == "c1"
    del service._remove
    assert manager.reconcile()
    assert lab.ask(lab.host, "udp", (six(new), 80))[0] == "c1"
    assert elements(lab) == [1, 1, 1]


@every_backend
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_between_interface_and_elements(lab, when):
    """Before them, and when they are there but not known to be: nothing of either is left."""
    manager = routed(lab)
    manager.allocate().attach(netns="c1")

    def child():
        victim = NetworkManager.open("pod", STORE)
        enter = WayElements.enter

        def killed(*arguments):
            if when == "after":
                enter(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        WayElements.enter = killed
        victim.allocate("victim").attach(netns="c0")

    assert in_child(child) == -signal.SIGKILL
    assert elements(lab) == [2, 2, 2] if when == "after" else [1, 1, 1]
    (half,) = manager.find(owner="victim")
    assert len(manager.check()) == 1
    assert manager.reconcile()
    assert elements(lab) == [1, 1, 1]
    assert manager.check() == [] and not manager.reconcile()
    half.attach(netns="c0")
    serve(lab, lab.containers[0])
    assert lab.ask(lab.host, "udp", (six(half), 80))[0] == "c0"


@pytest.mark.parametrize("changed", [1400, 9000])
def test_a_container_with_an_mtu_of_its_own_has_a_route(lab, changed):
    manager = routed(lab)
    small, usual = manager.allocate(), manager.allocate()
    small.attach(netns="c0", mtu=changed)
    usual.attach(netns="c1")
    c0, c1 = lab.containers[:2]
    serve(lab, c0, c1)
    assert [route.split()[0] for route in own_routes(lab)] == [c0.ip6]
    assert elements(lab) == [1, 1, 1]
    assert lab.ask(c1, "tcp", (c0.ip6, 80)) == ("c0", c1.ip6)
    assert lab.ask(c0, "tcp", (c1.ip6, 80)) == ("c1", c0.ip6)
    for _ in range(2):
        assert not manager.reconcile()
        assert len(own_routes(lab)) == 1
    small.detach()
    assert own_routes(lab) == []
    assert lab.reaches(lab.host, "udp", (c0.ip6, 80)) is None


@every_backend
def test_where_the_kernel_has_no_such_hook_each_has_a_route(lab, monkeypatch):
    """And one that has a way later puts those behind it that come then."""
    with monkeypatch.context() as patched:
        patched.setattr(network_way, "mend", lambda *_, **__: None)
        manager = routed(lab)
        manager.allocate("web", ports=WEB).attach(netns="c0")
        c0, c1 = lab.containers[:2]
        serve(lab, c0, c1)
        assert len(own_routes(lab)) == 1
        assert not manager.reconcile() and manager.check() == []
        assert lab.ask(lab.host, "tcp", (c0.ip6, 80)) == ("c0", lab.gateway6)
    assert "way6" not in lab.run("ip", "link")
    later = lab.keep(NetworkManager.open("pod", STORE))
    later.allocate().attach(netns="c1")
    assert len(own_routes(lab)) == 1
    assert elements(lab) == [1, 1, 1]
    assert lab.ask(c0, "tcp", (c1.ip6, 80)) == ("c1", c0.ip6)
    assert lab.ask(c1, "tcp", (c0.ip6, 80)) == ("c0", c1.ip6)
    later.release("web")
    assert own_routes(lab) == []


def test_an_interface_of_that_number_that_is_another_s(lab):
    """Then there is no way, and each has a route."""
    index = str(network_way.index_of(lab.group))
    lab.run("ip", "link", "add", "stranger", "index", index, "type", "veth", "peer", "name", "s1")
    manager = routed(lab)
    manager.allocate().attach(netns="c0")
    c0 = lab.containers[0]
    serve(lab, c0)
    assert len(own_routes(lab)) == 1
    assert lab.ask(lab.host, "tcp", (c0.ip6, 80)) == ("c0", lab.gateway6)
    assert "stranger" in lab.run("ip", "link")


def test_a_route_of_another_program_s_goes_first(lab):
    """The host's own, as by an interface in the same network: then each has a route."""
    manager = routed(lab)
    lab.run("ip", "-6", "route", "add", "fd00:c8::/120", "dev", "lo")
    manager.allocate().attach(netns="c0")
    c0 = lab.containers[0]
    serve(lab, c0)
    assert len(own_routes(lab)) == 1
    assert lab.ask(lab.host, "tcp", (c0.ip6, 80)) == ("c0", lab.gateway6)


FILTERS = {
    "firewalld": (
        "nft 'add table inet firewalld; add chain inet firewalld filter_PREROUTING"
        " { type filter hook prerouting priority 10; }; add rule inet firewalld filter_PREROUTING"
        " meta nfproto ipv6 fib saddr . mark . iif oif missing drop'"
    ),
    "ip6tables": "ip6tables -t raw -A PREROUTING -m rpfilter --invert -j DROP",
}


@pytest.mark.parametrize("lab", ["iptables-nft"], indirect=True)
@pytest.mark.parametrize("program", FILTERS)
def test_a_rule_that_asks_for_the_way_back_is_seen(lab, program):
    """As firewalld has it: each container has a route then, and is not cut off."""
    lab.run("sh", "-c", FILTERS[program])
    manager = routed(lab)
    manager.attach_many([(manager.allocate(), "c0"), (manager.allocate(), "c1")])
    c0, c1 = lab.containers[:2]
    serve(lab, c0)
    assert len(own_routes(lab)) == 2
    assert lab.ask(c1, "tcp", (c0.ip6, 80)) == ("c0", c1.ip6)
    assert not manager.reconcile()


def test_a_tap_behind_it(lab):
    """What is for its address comes out of it, for its MAC address."""
    from test_attach_traffic import _open_tap

    manager = routed(lab)
    one = manager.allocate()
    one.attach(tap="vm0", mac="02:00:00:00:00:77")
    assert own_routes(lab) == []
    assert elements(lab) == [1, 1, 1]
    tap = _open_tap("vm0")
    end, found = time.monotonic() + 5, b""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        # The kernel begins to use a tap some time after it is opened.
        while b"hello" not in found and time.monotonic() < end:
            sender.sendto(b"hello", (six(one), 9))
            if select.select([tap], [], [], 0.1)[0]:
                found = os.read(tap, 2000)
    os.close(tap)
    assert b"hello" in found
    assert found.index(bytes.fromhex("020000000077")) in (0, 10, 12)
