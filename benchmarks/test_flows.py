"""Stale flows: what a change costs where there are 50,000 flows, and what others notice of it."""

import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from netalloc import NetworkManager, PortRequest
from netalloc.host import conntrack, flow_messages
from netalloc.host.netlink import NETLINK_NETFILTER, NetlinkSocket
from netalloc.host.netlink_messages import attribute, message
from netalloc.model import PortMapping
from netalloc.portmap.mapper import PortMapper

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from flows6 import enter, entry
from lab import Lab, require_kernel
from promised import check

pytestmark = pytest.mark.root

FLOWS = 50_000
ROUNDS = 12
_NEW, _CREATE, _ACK = 1 << 8, 0x400, 0x4
_STATUS, _PROTOCOL_STATE, _TIMEOUT = 3, 4, 7
_CONFIRMED_AND_ASSURED = struct.pack(">I", 0x8 | 0x4 | 0x2)
_ESTABLISHED = attribute(_PROTOCOL_STATE | 0x8000, attribute(1 | 0x8000, attribute(1, bytes((3,)))))
NOWHERE = IPv4Address("10.200.9.9")
# No filter says "to any address of the host": a listing, which takes a lock for each bucket
# besides (28 ms where a deletion takes 17; measured 1.54 to 1.80).
LIMITS = {"map udp": 1.9}


@pytest.fixture
def lab() -> Iterator[Lab]:
    require_kernel()
    with Lab("nft") as lab:
        yield lab


@pytest.fixture
def crowded(lab: Lab) -> Lab:
    """The same host with 50,000 flows, none of which concerns us."""
    most = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    assert most >= FLOWS, f"net.netfilter.nf_conntrack_max is {most}"
    make_flows(FLOWS)
    with conntrack.Flows() as flows:
        assert flows.count() >= FLOWS
    return lab


def make_flows(count: int) -> None:
    """Established tcp connections of other machines through this one, 200 in a message."""
    netlink = NetlinkSocket(NETLINK_NETFILTER)
    server = socket.inet_aton("10.1.0.1")
    for first in range(0, count, 200):
        number = netlink.sequence(200)
        batch = b""
        for i in range(200):
            client = socket.inet_aton("10.77.0.0")[:2] + (first + i & 0xFFFF).to_bytes(2, "big")
            port = 1024 + (first + i >> 16)
            body = (
                flow_messages.IPV4
                + way(1, client, server, port, 443)
                + way(2, server, client, 443, port)
                + attribute(_STATUS, _CONFIRMED_AND_ASSURED)
                + attribute(_TIMEOUT, struct.pack(">I", 3600))
                + _ESTABLISHED
            )
            flags = _CREATE | (_ACK if i == 199 else 0)
            batch += message(_NEW, flags, number + i, body)
        netlink.transact(batch, number, number + 199)
    netlink.close()


def way(kind: int, source: bytes, destination: bytes, source_port: int, port: int) -> bytes:
    """One direction of a flow."""
    ip = attribute(1, source) + attribute(2, destination)
    proto = (
        attribute(1, bytes((6,)))
        + flow_messages.port_attribute(2, source_port)
        + flow_messages.port_attribute(3, port)
    )
    return attribute(kind | 0x8000, attribute(1 | 0x8000, ip) + attribute(2 | 0x8000, proto))


def timed(step: Callable[[], object]) -> float:
    """Seconds of one step."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def manager_of(lab: Lab, store: Path) -> NetworkManager:
    return NetworkManager(
        lab.bridge,
        network="10.200.0.1/16",
        ports=range(1024, 65536),
        backend="nftables",
        store=store,
        probe=lambda *_: True,
    )


def make_flows_of_ipv6(count: int) -> None:
    """The same over IPv6, through ports of this host to containers, each port its own."""
    enter(
        [
            entry(f"2001:db8:c::{i:x}", 2000, ("2001:db8::1", 10_000 + i), (f"fd00:77::{i:x}", 80))
            for i in range(count)
        ]
    )


class Floor:
    """One deletion by filter, over a socket that is kept."""

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        self._body = flow_messages.answered(NOWHERE.packed)

    def __call__(self) -> None:
        self._netlink.call(flow_messages.DELETE, self._body)

    def close(self) -> None:
        self._netlink.close()


def test_a_change_looks_at_all_flows_once(crowded: Lab, tmp_path: Path) -> None:
    with ExitStack() as stack:
        manager = stack.enter_context(manager_of(crowded, tmp_path / "store.db"))
        mapper = stack.enter_context(PortMapper("nftables", name="by-hand"))
        floor = Floor()
        stack.callback(floor.close)

        def release(ports: int) -> float:
            lease = manager.allocate("x", ports=[PortRequest(1 + i) for i in range(ports)])
            return timed(lease.release)

        def release_port() -> float:
            lease = manager.allocate("x", ports=[80, 81])
            seconds = timed(lambda: lease.release_port(lease.ports()[0].host_port))
            lease.release()
            return seconds

        def map_udp() -> float:
            seconds = timed(lambda: mapper.map(1000, (NOWHERE, 53), "udp"))
            mapper.unmap(1000, "udp")
            return seconds

        operations: dict[str, Callable[[], float]] = {
            "release of 1 port": lambda: release(1),
            "release of 4 ports": lambda: release(4),
            "release of 64 ports": lambda: release(64),
            "release_port": release_port,
            "map udp": map_udp,
        }
        for name, step in operations.items():

            def measure(step: Callable[[], float] = step) -> float:
                pairs = [(step(), timed(floor)) for _ in range(ROUNDS)]
                return min(one for one, _ in pairs) / min(two for _, two in pairs)

            check(f"{name} : one deletion by filter, 50,000 flows", measure, LIMITS.get(name, 1.5))


def test_over_ipv6_a_change_lists_what_was_sent_to_its_ports(lab: Lab) -> None:
    """For the kernel cannot be had to delete by an address of IPv6."""
    lab.run("nft", "add table inet t; add chain inet t c { type nat hook prerouting priority 0; }")
    make_flows_of_ipv6(FLOWS)
    with conntrack.Flows() as flows, ExitStack() as stack:
        assert flows.count() >= FLOWS
        floor = Floor()
        stack.callback(floor.close)
        gone = [PortMapping(1000 + i, ("fd00:77::1", 80), "udp") for i in range(20)]
        cases = (("1 port", gone[:1], 6.0), ("4 ports", gone[:4], 20.0), ("20 ports", gone, 80.0))
        for name, mappings, limit in cases:

            def measure(mappings: list[PortMapping] = mappings) -> float:
                step = lambda: flows.flush(mappings, added=False)  # noqa: E731
                pairs = [(timed(step), timed(floor)) for _ in range(ROUNDS)]
                return min(one for one, _ in pairs) / min(two for _, two in pairs)

            check(f"{name} of IPv6 : one deletion by filter, 50,000 flows", measure, limit)
        assert flows.count() >= FLOWS


def releasing(lab: Lab, store: Path) -> int:
    """A process that publishes and releases for ever."""
    said, say = os.pipe()
    child = os.fork()
    if not child:
        try:
            with manager_of(lab, store) as manager:
                os.write(say, b"!")
                while True:
                    manager.allocate("other", ports=[80, 81, 82, 83]).release()
        finally:
            os._exit(1)
    os.close(say)
    assert os.read(said, 1) == b"!"
    os.close(said)
    return child


def test_another_process_does_not_notice_a_release(crowded: Lab, tmp_path: Path) -> None:
    """Nine of ten allocations take less than a part of what the other one's flush takes."""
    store = tmp_path / "store.db"
    with ExitStack() as stack:
        manager = stack.enter_context(manager_of(crowded, store))
        floor = Floor()
        stack.callback(floor.close)

        def p90() -> float:
            child = releasing(crowded, store)
            try:
                taken = []
                for _ in range(400):
                    taken.append(timed(lambda: manager.allocate("x")))
                    manager.release("x")
                    time.sleep(0.002)
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                manager.release("other")
            return sorted(taken)[len(taken) * 9 // 10] / min(timed(floor) for _ in range(5))

        check("p90 of allocate beside releases : one deletion by filter", p90, 0.5)


def test_where_there_are_no_flows_a_listing_is_not_made(lab: Lab) -> None:
    """A udp mapping, at each of the host's addresses, beside a tcp mapping and such deletions."""
    with ExitStack() as stack:
        mapper = stack.enter_context(PortMapper("nftables", name="by-hand"))
        listing = NetlinkSocket(NETLINK_NETFILTER)
        stack.callback(listing.close)

        def measure() -> float:
            ours, base = [], []
            for _ in range(ROUNDS):
                ours.append(timed(lambda: mapper.map(1000, (NOWHERE, 53), "udp")))
                mapper.unmap(1000, "udp")
                base.append(timed(lambda: listing.dump(flow_messages.GET, flow_messages.IPV4)))
            return min(ours) / min(base)

        check("map udp : one listing, no flows", measure, 0.3)
