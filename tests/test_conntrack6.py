"""Stale flows over IPv6: what goes and what stays, each way they are found, and real traffic."""

import os
import signal
import socket
from contextlib import ExitStack, closing
from ipaddress import IPv6Address

import pytest

from flows6 import enter, entry
from lab import Private
from netalloc.host import conntrack, flow_messages, neighbours, netns
from netalloc.host.links import Links
from netalloc.host.netlink import NETLINK_NETFILTER, NetlinkSocket
from netalloc.host.owed_flows import ADDED, ENDED, REMOVED, OwedFlows, OwedFlush
from netalloc.host.shown_flows import shown_flows
from netalloc.model import PortMapping
from test_conntrack import Flow

pytestmark = pytest.mark.root

HOST, SECOND, C0, C1 = "2001:db8::1", "2001:db8::11", "fd00:88::2", "fd00:88::3"
TRACKED = """
add table inet t
add chain inet t seen { type filter hook output priority 0; ct state new; }
add chain inet t to { type nat hook prerouting priority -100; }
"""


def run(*command, text=None):
    import subprocess

    subprocess.run(command, input=text, text=True, check=True)


@pytest.fixture
def host():
    with Private(), Links() as links:
        links.set_up("lo")
        for ip in (HOST, SECOND):
            run("ip", "-6", "address", "add", f"{ip}/128", "dev", "lo", "nodad")
        run("nft", "-f", "-", text=TRACKED)
        yield


@pytest.fixture(params=["shown", "listed"])
def way(request, monkeypatch):
    if request.param == "listed":
        monkeypatch.setattr(conntrack, "_SHOWN", -1)


def listed():
    """(protocol, to, port, who answers) of each flow over IPv6."""
    with closing(NetlinkSocket(NETLINK_NETFILTER)) as netlink:
        bodies = netlink.dump(flow_messages.GET, flow_messages.IPV6)[0]
    flows = [flow_messages.parse(body) for body in bodies]
    names = {number: name for name, number in flow_messages.NUMBERS.items()}
    return sorted(
        (names[one.number], str(IPv6Address(one.ip)), one.port, str(IPv6Address(one.server[0])))
        for one in filter(None, flows)
    )


def client(i):
    return f"2001:db8:c::{i:x}", 2000 + i


def made(*flows):
    """Enter flows: (protocol, to, port, server or None, its port); what is listed of them then."""
    enter([
        entry(*client(i), (to, port), server and (server, to_port),
              flow_messages.NUMBERS[protocol])
        for i, (protocol, to, port, server, to_port) in enumerate(flows)
    ])  # fmt: skip
    return [(protocol, to, port, server or to) for protocol, to, port, server, _ in flows]


def test_what_went_through_a_mapping_goes_with_it_and_nothing_else(host, way):
    gone = made(("tcp", HOST, 8080, C0, 80), ("tcp", SECOND, 8080, C0, 80))
    stay = made(
        ("udp", HOST, 8080, C0, 80),  # another protocol
        ("tcp", HOST, 8081, C0, 80),  # another port
        ("tcp", HOST, 8080, C1, 80),  # another container
        ("tcp", HOST, 8080, C0, 81),  # another port of it
        ("tcp", "2001:db8:f::1", 8080, None, 0),  # the way out to that port
        ("tcp", C0, 80, None, 0),  # the container itself
    )  # fmt: skip
    with conntrack.Flows() as flows:
        assert listed() == sorted(gone + stay)
        flows.flush([PortMapping(8080, (C0, 80))], added=False)
        assert listed() == sorted(stay)
        for block in (range(1), range(20)):  # each port by itself, and all that was translated
            flows.flush([PortMapping(9000 + i, (C0, 80)) for i in block], added=False)
            flows.flush([PortMapping(8080, ("10.0.0.2", 80)), *(
                PortMapping(9000 + i, (C1, 80)) for i in block)], added=False)  # fmt: skip
        assert listed() == sorted(stay)


def test_a_host_address_is_respected(host, way):
    both = made(("tcp", HOST, 8080, C0, 80), ("tcp", SECOND, 8080, C0, 80))
    with conntrack.Flows() as flows:
        flows.flush([PortMapping(8080, (C0, 80), host_ip=SECOND)], added=False)
    assert listed() == both[:1]


def test_a_block_and_many_ports(host, way):
    gone = [("udp", HOST, 7000 + i, C0, 9000 + i) for i in range(30)]
    made(*gone, ("tcp", HOST, 6000, C1, 80))
    stay = made(("udp", HOST, 7099, C0, 9000))  # not where the block leads
    with conntrack.Flows() as flows:
        flows.forget([PortMapping(7000, (C0, 9000), "udp", count=100), PortMapping(6000, (C1, 80))])
    assert listed() == stay


def test_udp_that_passes_by_a_new_mapping_goes(host, way):
    gone = made(
        ("udp", HOST, 8080, None, 0), ("udp", "::1", 8080, None, 0), ("udp", SECOND, 8080, C1, 80)
    )
    stay = made(
        ("udp", "2001:db8:f::1", 8080, None, 0),  # not to this host
        ("udp", HOST, 8081, None, 0),
        ("udp", HOST, 8080, C0, 80),  # it goes where it should
        ("tcp", HOST, 8080, None, 0),
    )
    with conntrack.Flows() as flows:
        assert listed() == sorted(gone + stay)
        flows.flush([PortMapping(8080, (C0, 80), "tcp")], added=True)
        flows.flush([PortMapping(8080, (C0, 80), "udp", "2001:db8::99")], added=True)
        assert listed() == sorted(gone + stay)
        flows.flush([PortMapping(8080, (C0, 80), "udp", "::1")], added=True)
        assert len(listed()) == len(gone + stay) - 1
        flows.flush([PortMapping(8080, (C0, 80), "udp")], added=True)
        assert listed() == sorted(stay)


def test_thousands_go_at_once(host, way):
    enter([entry(*client(i), (HOST, 8080), (C0, 80)) for i in range(3000)])
    with conntrack.Flows() as flows:
        flows.flush([PortMapping(8080, (C0, 80))], added=False)
        assert flows.count() == 0


def test_what_proc_shows_is_what_is_listed(host):
    made(("tcp", HOST, 8080, C0, 80), ("udp", HOST, 53, None, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.sendto(b"?", ("127.0.0.1", 9))
    names = {number: name for name, number in flow_messages.NUMBERS.items()}
    home = netns.current()
    shown = shown_flows(home, conntrack.V6)
    assert sorted(
        (names[one.number], str(IPv6Address(one.ip)), one.port, str(IPv6Address(one.server)))
        for one in shown
    ) == listed()  # fmt: skip
    assert [one.port for one in shown_flows(home)] == [9]
    assert shown_flows(home._replace(inode=1), conntrack.V6) is None


def test_mappings_of_ipv4_ask_nothing_more(host, monkeypatch):
    made(("tcp", HOST, 8080, C0, 80))
    monkeypatch.setattr(conntrack.Flows, "_flush_ipv6", None)
    with conntrack.Flows() as flows:
        for added in (True, False):
            flows.flush([PortMapping(8080, ("10.0.0.2", 80), "udp")], added=added)
        flows.forget([PortMapping(8080, ("10.0.0.2", 80))])


# ---- what is owed


@pytest.fixture
def owed(host):
    with OwedFlows() as owed:
        yield owed


BOTH = [PortMapping(8080, (C0, 80), host_ip=SECOND), PortMapping(8080, ("10.0.0.2", 80), "udp"),
        PortMapping(7000, (C0, 7100), "sctp", count=50), PortMapping(1, ("10.0.0.2", 2), "tcp",
        "192.0.2.1")]  # fmt: skip


def test_what_is_owed_is_read_as_it_was_written(owed):
    note = OwedFlush(owed, ENDED, BOTH)
    note.note()
    fd, slot = owed._file(), note.slot
    assert owed._items(fd, slot) == note.items
    whole = os.fstat(fd).st_size
    for cut, left in ((1, 3), (16, 3), (17, 2), (64, 2), (65, 1), (80, 1), (81, 0)):
        os.ftruncate(fd, whole - cut)  # as a crash in the middle of the writing leaves it
        assert owed._items(fd, slot) == note.items[:left]
    note.cancel()


@pytest.mark.parametrize(
    ("addresses", "mapping", "concerned"),
    [
        ([C0], None, True),
        ([C1], None, False),
        ([], PortMapping(8080, (C1, 1), "tcp"), True),
        ([], PortMapping(8080, (C1, 1), "tcp", HOST), False),
        ([], PortMapping(8080, ("10.0.0.9", 1), "tcp"), False),
        ([], PortMapping(8080, ("10.0.0.9", 1), "udp"), True),
        ([], PortMapping(7049, (C1, 1), "sctp", HOST), True),
    ],
)
def test_whom_a_flush_concerns(owed, monkeypatch, addresses, mapping, concerned):
    monkeypatch.setattr("netalloc.host.owed_flows._PATIENCE", 0.0)
    flushed = []
    monkeypatch.setattr(
        "netalloc.host.owed_flows._flushed", lambda flows, items: flushed.append(items)
    )
    note = OwedFlush(owed, ENDED, BOTH)
    note.note()
    owed.wait([int(IPv6Address(ip)) for ip in addresses], [mapping] if mapping else [])
    assert bool(flushed) is concerned
    note.cancel()


@pytest.mark.parametrize("kind", [ENDED, REMOVED])
def test_death_before_the_flush_is_mended_by_the_next_process(owed, kind):
    stay = made(("tcp", HOST, 8080, C0, 80))
    made(("tcp", SECOND, 8080, C0, 80))
    child = os.fork()
    if not child:
        try:
            with OwedFlows() as own:
                OwedFlush(own, kind, BOTH).note()
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    assert len(listed()) == 2
    owed.wait([int(IPv6Address(C0))])
    assert listed() == stay


def test_a_fork_flushes_what_it_owes_by_itself(owed):
    made(("udp", HOST, 8080, None, 0))
    child = os.fork()
    if not child:
        code = 1
        try:
            note = OwedFlush(owed, ADDED, [PortMapping(8080, (C0, 80), "udp")])
            note.note()
            note.settle()
            code = not note.over
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert listed() == []


# ---- real traffic


class Flow6(Flow):
    def __init__(self, place, to):
        self.socket = socket6(place)
        self.socket.connect(to)


def socket6(place):
    from netalloc.host import namespaces

    if place.namespace is None:
        return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with namespaces.inside(place.namespace):
        return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)


@pytest.fixture
def lab6(nft_lab):
    lab = nft_lab
    lab.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    for where, device, ip in (
        ((), "br0", "fd00:88::1/64"), ((), "uplink", f"{HOST}/64"), ((), "uplink", f"{SECOND}/64"),
        (("-n", "outside"), "eth0", "2001:db8::2/64"),
        (("-n", "c0"), "eth0", f"{C0}/64"), (("-n", "c1"), "eth0", f"{C1}/64"),
    ):  # fmt: skip
        lab.run("ip", *where, "-6", "address", "add", ip, "dev", device, "nodad")
    for name in ("c0", "c1"):
        lab.run("ip", "-n", name, "-6", "route", "add", "default", "via", "fd00:88::1")
    for place in lab.containers:
        lab._servers.add(socket6(place), place.name, ("::", 80))
    lab.run(
        "nft",
        "-f",
        "-",
        input="""
        add table inet t
        add map inet t to { type inet_service : ipv6_addr . inet_service; }
        add chain inet t pre { type nat hook prerouting priority -100; }
        add rule inet t pre fib daddr type local dnat ip6 to udp dport map @to
    """,
    )
    return lab


def lead(lab, port, ip=None):
    lab.run("nft", "flush", "map", "inet", "t", "to")
    if ip is not None:
        lab.run("nft", f"add element inet t to {{ {port} : {ip} . 80 }}")


def test_udp_flows_follow_map_remap_and_unmap(lab6, way):
    with ExitStack() as stack:
        flows = stack.enter_context(conntrack.Flows())
        ours, other = (Flow6(lab6.outside, (ip, 8080)) for ip in (HOST, SECOND))
        for one in (ours, other):
            stack.callback(one.socket.close)
        assert ours.silent() and other.silent()  # the flows begin, and nobody is there
        lead(lab6, 8080, C0)
        assert ours.silent()  # as they are not translated
        flows.flush([PortMapping(8080, (C0, 80), "udp", HOST)], added=True)
        assert ours.ask() == "c0" and other.silent()
        flows.flush([PortMapping(8080, (C0, 80), "udp")], added=True)
        assert ours.ask() == other.ask() == "c0"
        lead(lab6, 8080, C1)
        assert ours.ask() == "c0"  # the next holder of the port would not get it
        flows.flush([PortMapping(8080, (C0, 80), "udp", HOST)], added=False)
        assert ours.ask() == "c1" and other.ask() == "c0"
        lead(lab6, 8080)
        flows.forget([PortMapping(8080, (ip, 80), "udp") for ip in (C0, C1)])
        assert ours.silent() and other.silent()


def test_the_next_holder_of_an_address_is_not_spoken_to_by_the_last_ones_mac(lab6):
    one = Flow6(lab6.host, (C0, 80))
    with closing(one.socket):
        assert one.ask() == "c0"
        # c1 takes over the address of c0, and says nothing about it.
        lab6.run("ip", "-n", "c0", "-6", "address", "del", f"{C0}/64", "dev", "eth0")
        lab6.run("ip", "-n", "c1", "-6", "address", "add", f"{C0}/64", "dev", "eth0", "nodad")
        assert one.silent()
        gone = [IPv6Address(C0), IPv6Address("fd00:88::99")]
        assert neighbours.forget(lab6.bridge, gone) == 1
        assert one.ask() == "c1"
