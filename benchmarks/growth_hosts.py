"""Private hosts for the growth gate, two at a time: a thread in namespaces of its own each."""

import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from gate import Timed
from growth import Place, release_all, turn
from growth_operations import CHANGES, HOST_IP, REFUSALS, Operation
from growth_places import FIRST_HOST_IP, PORTS
from lab import Lab
from netalloc import NetworkInterface, NetworkManager, PortMapper, PortRequest
from netalloc.host.links import Links
from netalloc.host.netlink import NETLINK_NETFILTER, NetlinkSocket
from netalloc.host.netlink_messages import ACK, CREATE, EXCLUSIVE, attribute, message

T = TypeVar("T")

_NEW, _DELETE = 1 << 8, 1 << 8 | 2  # of the subsystem ctnetlink (nfnetlink_conntrack.h)
_IPV4 = b"\x02\0\0\0"
_NESTED = 0x8000
_UDP = 17


class Host(AbstractContextManager["Host"]):
    """A private host with a manager on it; `do` runs something there."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._worker = ThreadPoolExecutor(1)
        self._opened = ExitStack()

    def __enter__(self) -> "Host":
        try:
            self.place = self.do(self._open)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.do(self._opened.close)
        self._worker.shutdown()

    def do(self, work: Callable[..., T], *arguments: Any) -> T:
        """What `work` returns, called on this host."""
        return self._worker.submit(work, *arguments).result()

    def timed(self, operation: Operation) -> Timed:
        """An operation's turns, each taken on this host."""
        one = self.do(operation, self.place)
        return lambda: self.do(one)

    def _open(self) -> Place:
        self.lab = self._opened.enter_context(Lab(containers=0))
        # As many on every host, beside the few of its own multicast: with none nothing is flushed.
        flows = FlowTable(200)
        self._opened.callback(flows.close)
        flows.fill()
        with Links() as links:
            links.add_address("uplink", f"{HOST_IP}/24")
        manager = self._opened.enter_context(
            NetworkManager(
                self.lab.bridge,
                network=f"{self.lab.gateway}/16",
                ports=PORTS,
                backend="nftables",
                store=self._path,
            )
        )
        return Place(manager, self._path, calls=4, opened=self._opened)


# ---- what there is much of


def mapped(held: int) -> Callable[[Host], None]:
    """So many interfaces with a port each."""

    def fill(host: Host) -> None:
        some = host.place.manager.allocate_many(held, (80,), "crowd")
        host.place.taken_port = some[-1].ports()[0].host_port

    return fill


def blocks(host: Host) -> None:
    one = host.place.manager.allocate("blocks")
    one.publish([PortRequest(None, count=10)] * 3_000)
    host.place.taken_port = max(mapping.host_port for mapping in one.ports()) + 5


def host_addresses(host: Host) -> None:
    """1,000 addresses that the host has, a port published on each."""
    with Links() as links:
        for i in range(1_000):
            links.add_address("uplink", f"{FIRST_HOST_IP + i}/32")
    ports = [PortRequest(80, host_ip=FIRST_HOST_IP + i) for i in range(1_000)]
    one = host.place.manager.allocate("hosts", ports=ports)
    host.place.taken_port = one.ports()[0].host_port


def networks(host: Host) -> None:
    """99 more networks, each with a bridge, and something published."""
    for i in range(1, 100):
        with Links() as links:
            links.create_bridge(f"more{i}", f"10.{i}.0.1/16")
        more = NetworkManager(f"more{i}", backend="nftables", store=host.place.path)
        host.place.opened.enter_context(more).allocate(ports=(80, 81))


def taken(host: Host) -> None:
    """What every place has: a port that is refused."""
    if not host.place.taken_port:
        one = host.place.manager.allocate("found", ports=(80,))
        host.place.taken_port = one.ports()[0].host_port


# ---- flows


def _tuple(kind: int, source: IPv4Address, to: IPv4Address, port: int, to_port: int) -> bytes:
    ip = attribute(1, source.packed) + attribute(2, to.packed)
    ports = attribute(2, struct.pack(">H", port)) + attribute(3, struct.pack(">H", to_port))
    proto = attribute(1, bytes((_UDP,))) + ports
    return attribute(kind | _NESTED, attribute(1 | _NESTED, ip) + attribute(2 | _NESTED, proto))


def _flows(count: int) -> list[bytes]:
    """Batches that enter so many udp flows between others."""
    outside = IPv4Address("192.0.2.2")
    batches = []
    for first in range(0, count, 500):
        batch = b""
        last = min(first + 500, count) - 1
        for i in range(first, last + 1):
            client, port = IPv4Address("203.0.113.0") + i // 1_000, 20_000 + i % 1_000
            body = _tuple(1, client, outside, port, 9) + _tuple(2, outside, client, 9, port)
            body += attribute(7, struct.pack(">I", 3_600))  # seconds to live
            flags = CREATE | EXCLUSIVE | (ACK if i == last else 0)
            batch += message(_NEW, flags, i + 1, _IPV4 + body)
        batches.append(batch)
    return batches


class FlowTable:
    """The flows of a host, entered and forgotten at will."""

    def __init__(self, count: int) -> None:
        self._batches = _flows(count)
        self._socket = NetlinkSocket(NETLINK_NETFILTER)
        self._size = count // len(self._batches)

    def fill(self) -> None:
        for i, batch in enumerate(self._batches):
            self._socket.transact(batch, i * self._size + 1, (i + 1) * self._size)

    def empty(self) -> None:
        self._socket.call(_DELETE, _IPV4)

    def close(self) -> None:
        self._socket.close()


# ---- operations


def mapping(protocol: str) -> Operation:
    """PortMapper.map, in a table beside the manager's."""

    def operation(at: Place) -> Timed:
        mapper = at.opened.enter_context(
            PortMapper("nftables", bridge="br0", network="10.200.0.0/16", name="beside")
        )
        mapper.setup()

        def after(ports: list[int]) -> None:
            for port in ports:
                mapper.unmap(port, protocol)

        def work(i: int) -> int:
            mapper.map(600 + i, ("10.200.9.9", 80), protocol)
            return 600 + i

        return turn(at.calls, work, after=after)

    return operation


def one_more_network(at: Place) -> Timed:
    """Set up and taken away again."""

    def work(_: int) -> None:
        with PortMapper("nftables", bridge="br0", network="10.99.0.0/16", name="extra") as mapper:
            mapper.setup()
            mapper.cleanup()

    return turn(1, work)


_WANTED = (
    "allocate",
    "allocate with a port",
    "allocate with 4 ports",
    "allocate with a host port",
    "allocate_many(100) with a port each",
    "release",
    "release with a port",
    "release with 4 ports",
    "release of an owner",
    "allocate_port",
    "allocate_port udp",
    "allocate_port, a host port",
    "allocate_port on one address",
    "allocate_ports(10)",
    "publish 4",
    "release_port",
    "release_port on one address",
    "release_port of 10",
    "refused: a taken host port",
)
OPERATIONS: dict[str, Operation] = {
    **{name: {**CHANGES, **REFUSALS}[name] for name in _WANTED},
    "map": mapping("tcp"),
    "set up and clean up one more network": one_more_network,
}

# ---- what walks no flows; the others do by nature: the kernel finds flows by looking at each


def among_flows(host: Host, name: str, prepare: Callable[[], None], flows: FlowTable) -> Timed:
    """An operation's turns, in which `prepare` sees to the flows; undone without any.

    The quickest call of a turn counts: entering 50,000 flows leaves the first ones a cold cache.
    """
    work, before, undo = host.do(FLOWLESS[name], host.place)

    def timed() -> float:
        items = list(before(20))
        prepare()
        results, times = [], []
        for item in items:
            start = perf_counter()
            results.append(work(item))
            times.append(perf_counter() - start)
        flows.empty()
        undo(results)
        return min(times)

    return lambda: host.do(timed)


def _allocating(**arguments: Any) -> Callable[[Place], Any]:
    def operation(at: Place) -> Any:
        def work(_: object) -> NetworkInterface:
            return at.manager.allocate(**arguments)

        return work, range, release_all

    return operation


def _releasing(at: Place) -> Any:
    def before(n: int) -> list[NetworkInterface]:
        return [at.manager.allocate() for _ in range(n)]

    return NetworkInterface.release, before, len


def _publishing(request: PortRequest) -> Callable[[Place], Any]:
    def operation(at: Place) -> Any:
        one = at.manager.allocate()

        def undo(published: list[Any]) -> None:
            for (mapping,) in published:
                one.release_port(mapping.host_port)

        return lambda _: one.publish([request]), range, undo

    return operation


FLOWLESS: dict[str, Callable[[Place], Any]] = {
    "allocate": _allocating(),
    "allocate with a port": _allocating(ports=(80,)),
    "allocate with 4 ports": _allocating(ports=(80, 81, 82, 83)),
    "release": _releasing,
    "allocate_port": _publishing(PortRequest(80)),
    "allocate_ports(10)": _publishing(PortRequest(None, count=10)),
}
