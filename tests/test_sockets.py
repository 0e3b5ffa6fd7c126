"""Ports that the host's own sockets have, and ports kept from them."""

import logging
import os
import resource
import socket
import subprocess
from contextlib import ExitStack, closing
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from lab import Private
from netalloc.errors import ExhaustedError, InUseError, NetallocError
from netalloc.family import V6
from netalloc.host import sockets
from netalloc.host.links import Links
from netalloc.host.local_addresses import addresses, is_host_address, local_addresses
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkSocket
from netalloc.host.sockets import can_bind, hold, parse_ports, reserved_ports, warn_of_overlap
from netalloc.manager.host_checks import HostCheck, HostProbe
from netalloc.manager.host_ports import PortHolds
from netalloc.model import PortMapping

pytestmark = pytest.mark.root

LOOPBACK, OTHER, FOREIGN = map(IPv4Address, ("127.0.0.1", "127.0.0.2", "192.0.2.77"))
ANY6, LOOPBACK6, OTHER6, FOREIGN6 = map(IPv6Address, ("::", "::1", "fd00::2", "2001:db8::77"))


@pytest.fixture(autouse=True)
def host():
    with Private(), Links() as links:
        links.set_up("lo")
        yield


def listener(protocol, ip, port, family=socket.AF_INET):
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with ExitStack() as stack:
        made = stack.enter_context(socket.socket(family, kind))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((ip, port))
        if protocol == "tcp":
            made.listen()
        stack.pop_all()
    return made


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_listener_is_in_the_way_of_what_it_covers(protocol):
    other = {"tcp": "udp", "udp": "tcp"}[protocol]
    assert can_bind(8080, protocol)
    with listener(protocol, "0.0.0.0", 8080):
        for ip in (None, LOOPBACK, OTHER, FOREIGN):
            assert not can_bind(8080, protocol, ip)
        assert can_bind(8081, protocol)
        assert can_bind(8080, other)
    with listener(protocol, "127.0.0.1", 8080):
        assert not can_bind(8080, protocol)
        assert not can_bind(8080, protocol, LOOPBACK)
        assert can_bind(8080, protocol, OTHER)
        assert can_bind(8080, protocol, FOREIGN)  # which this host does not even have
    with listener(protocol, "::", 8080, socket.AF_INET6):  # for IPv4, too
        assert not can_bind(8080, protocol)
        assert not can_bind(8080, protocol, LOOPBACK)
    assert can_bind(8080, protocol)
    assert can_bind(80, protocol)
    assert can_bind(80, "sctp")


def test_ended_connections_are_not_in_the_way():
    with listener("tcp", "127.0.0.1", 8080) as server:
        client = socket.create_connection(("127.0.0.1", 8080))
        served, _ = server.accept()
        served.close()  # who closes first waits: TIME_WAIT is on port 8080
        assert client.recv(1) == b""
        client.close()
    assert "0100007F:1F90" in Path("/proc/net/tcp").read_text()
    assert can_bind(8080)
    with pytest.raises(InUseError, match="8080/tcp is held"):
        hold(8080)  # holding is stricter: what could not be held is not handed out


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("ip", [None, LOOPBACK, FOREIGN], ids=["all", "one", "foreign"])
def test_a_held_port_cannot_be_taken_by_anybody(protocol, ip):
    with closing(hold(8080, protocol, ip)):
        assert not can_bind(8080, protocol, ip)
        assert not can_bind(8080, protocol)
        assert can_bind(8080, protocol, OTHER) == (ip is not None)
        with pytest.raises(InUseError, match="8080"):
            hold(8080, protocol, ip)
        if ip != FOREIGN:
            with pytest.raises(OSError, match="in use"):
                listener(protocol, "127.0.0.1", 8080)
    assert can_bind(8080, protocol, ip)


def test_a_held_port_accepts_nothing():
    held = hold(8080)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 8080))
    held.close()
    held.close()


def test_sctp_without_kernel_support_can_be_held_by_nobody():
    with closing(hold(8080, "sctp")):
        assert can_bind(8080, "sctp") in (True, False)


def test_running_out_of_file_descriptors_is_named():
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir()) + 1
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 4, hard))
    try:
        with pytest.raises(ExhaustedError, match=f"the limit is {used + 4}"):
            held.extend(hold(port, "udp") for port in range(9000, 9000 + used + 5))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for one in held:
            one.close()


def test_a_missing_privilege_is_named(monkeypatch):
    class Refusing(socket.socket):
        def bind(self, address):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sockets.socket, "socket", Refusing)
    for take in (can_bind, hold):
        with pytest.raises(NetallocError, match="CAP_NET_BIND_SERVICE"):
            take(80)


def test_reserved_ports_are_those_of_this_namespace():
    assert reserved_ports() == frozenset()
    Path("/proc/sys/net/ipv4/ip_local_reserved_ports").write_text("8080,50000-50002")
    assert reserved_ports() == {8080, 50000, 50001, 50002}
    assert parse_ports("") == parse_ports("\n") == frozenset()


def test_an_overlap_is_one_warning(caplog, monkeypatch):
    monkeypatch.setattr(sockets, "_warned", set())
    setting = Path("/proc/sys/net/ipv4/ip_local_port_range")
    setting.write_text("32768 60999")
    with caplog.at_level(logging.WARNING):
        warn_of_overlap(range(61000, 65536))
        warn_of_overlap(range(1024, 32768))
        assert not caplog.records
        for _ in range(3):
            warn_of_overlap(range(49153, 65536))
    (record,) = caplog.records
    assert "49153-65535 overlap net.ipv4.ip_local_port_range 32768-60999" in record.message
    assert "may occupy 49153-60999" in record.message
    setting.write_text("60000 60999")
    warn_of_overlap(range(60500, 60600))
    assert "may occupy 60500-60599" in caplog.text


def test_who_has_a_port_is_said_in_words():
    me = f"pid {os.getpid()})"
    with listener("tcp", "0.0.0.0", 22):
        for ip in (None, LOOPBACK, FOREIGN):
            found = sockets.listener(22, "tcp", ip)
            assert me in found and found.endswith("listens on 0.0.0.0:22")
    with listener("udp", "127.0.0.1", 53):
        assert sockets.listener(53, "udp", LOOPBACK).endswith("is bound to 127.0.0.1:53")
        assert sockets.listener(53, "udp", OTHER) is None
        assert sockets.listener(53, "udp") is not None
        assert sockets.listener(53, "tcp") is None
    with listener("tcp", "::", 80, socket.AF_INET6):
        assert sockets.listener(80).endswith("listens on [::]:80")
    with socket.socket(socket.AF_INET6) as only:
        only.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        only.bind(("::", 81))
        only.listen()
        assert sockets.listener(81) is None
        assert can_bind(81)
    assert sockets.listener(22) is None
    assert sockets.listener(22, "sctp") is None


def test_all_bound_ports_at_once():
    with ExitStack() as stack:
        for protocol, ip, port in (("tcp", "0.0.0.0", 22), ("tcp", "127.0.0.1", 5432),
                                   ("udp", "0.0.0.0", 53)):  # fmt: skip
            stack.enter_context(listener(protocol, ip, port))
        stack.enter_context(listener("tcp", "::1", 6000, socket.AF_INET6))
        assert sockets.bound_ports() == {22, 5432, 6000}
        assert sockets.bound_ports("udp") == {53}
        assert not can_bind(5400, count=100)
        assert not can_bind(5432, count=1)
        assert can_bind(5400, "tcp", OTHER, count=100)
        assert can_bind(5433, count=100)
        assert can_bind(5400, "udp", count=100)
        mapped = stack.enter_context(listener("tcp", "::ffff:127.0.0.2", 7000, socket.AF_INET6))
        stack.enter_context(listener("tcp", "::", 8000, socket.AF_INET6))
        only = stack.enter_context(socket.socket(socket.AF_INET6))
        only.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        only.bind(("::", 9000))
        only.listen()
        for ip in (None, LOOPBACK, OTHER, FOREIGN):
            refused = {port for port in range(1, 9001) if not can_bind(port, "tcp", ip)}
            assert sockets.ports_in_the_way("tcp", ip) == refused
        assert sockets.ports_in_the_way("udp", LOOPBACK) == {53}
        assert mapped.getsockname()[1] in sockets.ports_in_the_way("tcp", OTHER)
    assert sockets.bound_ports() == sockets.bound_ports("udp") == frozenset()


def test_a_pick_among_foreign_ports_tries_its_candidate_alone(monkeypatch):
    tried = []
    bind = sockets._bind
    monkeypatch.setattr(sockets, "_bind", lambda *a, **o: tried.append(a) or bind(*a, **o))
    with ExitStack() as stack:
        for port in range(50000, 50300):
            stack.enter_context(listener("udp", "0.0.0.0", port))
        bound = sockets.bound_ports("udp")
        free = next(port for port in range(50000, 50400) if port not in bound)
        assert can_bind(free, "udp") and free == 50300
        assert not can_bind(50290, "udp", count=100)
    assert len(tried) == 1


def test_the_hosts_own_addresses():
    with Links() as links:
        links.create_bridge("br0", "10.9.0.1/24")
        links.add_address("br0", "10.9.0.7/24")
    own = IPv4Address("10.9.0.1")
    assert is_host_address(own) and is_host_address(IPv4Address("10.9.0.7"))
    assert is_host_address(LOOPBACK) and is_host_address(OTHER)
    for ip in (FOREIGN, IPv4Address("10.9.0.2"), IPv4Address("10.9.0.255"), IPv4Address(2**32 - 1)):
        assert not is_host_address(ip)
    assert local_addresses() == {LOOPBACK, own, IPv4Address("10.9.0.7")}


def add_ipv6(interface, address):
    command = ("ip", "-6", "address", "add", address, "dev", interface, "nodad")
    subprocess.run(command, check=True)


@pytest.fixture
def host6():
    add_ipv6("lo", "fd00::2/128")


def only_ipv6(protocol, ip, port):
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with ExitStack() as stack:
        made = stack.enter_context(socket.socket(socket.AF_INET6, kind))
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((ip, port))
        if protocol == "tcp":
            made.listen()
        stack.pop_all()
    return made


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_over_ipv6_a_listener_is_in_the_way_of_what_it_covers(protocol, host6):
    every = (ANY6, LOOPBACK6, OTHER6, FOREIGN6)
    assert all(can_bind(8080, protocol, ip) for ip in every)
    for one in (
        lambda: only_ipv6(protocol, "::", 8080),
        lambda: listener(protocol, "::", 8080, socket.AF_INET6),
    ):
        with one():
            assert not any(can_bind(8080, protocol, ip) for ip in every)
            assert can_bind(8081, protocol, ANY6)
    with only_ipv6(protocol, "::1", 8080):
        assert [can_bind(8080, protocol, ip) for ip in every] == [False, False, True, True]
        assert can_bind(8080, protocol)
    for ip, family in (("0.0.0.0", socket.AF_INET), ("::ffff:127.0.0.1", socket.AF_INET6)):
        with listener(protocol, ip, 8080, family):
            assert all(can_bind(8080, protocol, ip) for ip in every)
    assert can_bind(8080, protocol, IPv6Address("fe80::1"))  # one of each link: not to be tried


def test_over_ipv6_what_is_in_the_way_is_found_at_once_and_named(host6):
    me = f"pid {os.getpid()})"
    with ExitStack() as stack:
        for ip, port in (("::", 22), ("::1", 80), ("fd00::2", 81)):
            stack.enter_context(only_ipv6("tcp", ip, port))
        stack.enter_context(listener("tcp", "::", 82, socket.AF_INET6))
        stack.enter_context(listener("tcp", "::ffff:127.0.0.2", 83, socket.AF_INET6))
        stack.enter_context(listener("tcp", "0.0.0.0", 84))
        for ip in (ANY6, LOOPBACK6, OTHER6, FOREIGN6, None, LOOPBACK, OTHER):
            refused = {port for port in range(1, 100) if not can_bind(port, "tcp", ip)}
            assert sockets.ports_in_the_way("tcp", ip) == refused
            named = {port for port in range(1, 100) if sockets.listener(port, "tcp", ip)}
            assert named == refused
        assert sockets.listener(80, "tcp", ANY6).endswith("listens on [::1]:80")
        assert me in sockets.listener(22, "tcp", FOREIGN6)
        assert not can_bind(20, "tcp", OTHER6, count=70)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("ip", [ANY6, OTHER6, FOREIGN6], ids=["all", "one", "foreign"])
def test_over_ipv6_a_held_port_cannot_be_taken_by_anybody(protocol, ip, host6):
    with closing(hold(8080, protocol, ip)):
        assert not can_bind(8080, protocol, ip)
        assert not can_bind(8080, protocol, ANY6)
        assert can_bind(8080, protocol, LOOPBACK6) == (ip != ANY6)
        assert can_bind(8080, protocol)  # of IPv4
        with pytest.raises(InUseError, match=rf"\[{ip}\]:8080/{protocol} is held"):
            hold(8080, protocol, ip)
        with pytest.raises(OSError, match="in use"):
            only_ipv6(protocol, "::", 8080)
    assert can_bind(8080, protocol, ip)


def test_ports_are_held_in_the_families_that_they_are_mapped_in(host6):
    holds = PortHolds()
    both = [PortMapping(8080, (ip, 80), "udp", count=2) for ip in ("10.0.0.2", "fd00::9")]
    holds.take(both)
    for port in (8080, 8081):
        for ip in (None, ANY6):
            assert not can_bind(port, "udp", ip)
    holds.drop(both[1:])
    assert can_bind(8081, "udp", ANY6) and not can_bind(8081, "udp")
    with pytest.raises(InUseError):  # all or nothing
        holds.take([both[1], PortMapping(8080, ("10.0.0.2", 80), "udp", "127.0.0.1")])
    assert can_bind(8080, "udp", ANY6)
    holds.close()
    assert can_bind(8080, "udp")


def test_both_families_are_asked_about_where_no_address_is_named(host6):
    both, of_ipv4 = HostProbe(frozenset(), (4, 6)), HostProbe(frozenset())
    with only_ipv6("tcp", "::1", 8080), listener("tcp", "127.0.0.1", 8081):
        assert of_ipv4(8080, "tcp", None) and not of_ipv4(8081, "tcp", None)
        assert not both(8080, "tcp", None) and not both(8081, "tcp", None)
        assert both.refused("tcp", None) == {8080, 8081}
        assert both.refused("tcp", ANY6) == {8080}
        assert of_ipv4.refused("tcp", None) == {8081}
        assert both(8080, "tcp", LOOPBACK) and not both(8080, "tcp", LOOPBACK6)
        check = HostCheck((4, 6))
        assert "listens on [::1]:8080" in check(8080, "tcp", None)
        assert "listens on 127.0.0.1:8081" in check(8081, "tcp", None)
        assert check(8082, "tcp", None) is check(0, "tcp", LOOPBACK6) is None
        assert check(8080, "tcp", OTHER6) is check(8081, "tcp", ANY6) is None
        assert check(0, "tcp", FOREIGN6) == "2001:db8::77 is not an address of this host"
        assert "link-local" in check(8080, "tcp", IPv6Address("fe80::1"))
        assert HostCheck()(8080, "tcp", None) is None


def test_the_hosts_own_addresses_of_ipv6(host6):
    with Links() as links:
        links.create_bridge("br0")
    for address in ("fd00:9::1/64", "fd00:9::7/64"):
        add_ipv6("br0", address)
    own = {IPv6Address("fd00:9::1"), IPv6Address("fd00:9::7"), LOOPBACK6, OTHER6}
    assert all(map(is_host_address, own))
    for ip in (FOREIGN6, IPv6Address("fd00:9::2"), IPv6Address("ff02::1")):
        assert not is_host_address(ip)
    with closing(NetlinkSocket(NETLINK_ROUTE)) as netlink:
        found = set(map(IPv6Address, addresses(netlink, V6)))
    assert {ip for ip in found if not ip.is_link_local} == own
