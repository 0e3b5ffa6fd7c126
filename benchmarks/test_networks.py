"""What a hundred networks on a host cost: a packet, a set-up, a block, as ratios to few of them.

Each host is a thread with network namespaces of its own, so that all are there at once and are
asked in turn.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

import pytest

from gate import Sides, Timed
from test_nftables import check

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from connects import CONNECTS, connecting
from lab import Lab, require_kernel
from netalloc.host.links import Links
from netalloc.model import PortMapping
from netalloc.portmap.mapper import PortMapper
from netalloc.portmap.nftables import batch, elements, maps
from netalloc.portmap.nftables.backend import Nftables

pytestmark = pytest.mark.root

MANY = 100
THROUGH, PAST = 8080, 22  # a mapped port, and one on which the host itself listens
# What has the kernel track connections, as on every host with a container engine.
ONE_RULE = """table ip other {
  chain a { type nat hook prerouting priority dstnat; }
  chain b { type nat hook postrouting priority srcnat; ip saddr 172.17.0.0/16 masquerade; }
}
"""


class Host:
    """A lab in a thread of its own, with so many networks."""

    def __init__(self, stack: ExitStack, networks: int, rules: str = "") -> None:
        self.mappers: list[PortMapper] = []
        self._thread = stack.enter_context(ThreadPoolExecutor(1))
        self._stack = ExitStack()
        stack.callback(self.do, self._stack.close)
        self.do(lambda: self._build(networks, rules))

    def do(self, work: Callable[[], float | None]) -> float:
        """What it returns, done on that host."""
        return self._thread.submit(work).result() or 0.0

    def _build(self, networks: int, rules: str) -> None:
        self.lab = lab = self._stack.enter_context(Lab())
        if rules:
            lab.run("nft", "-f", "-", input=rules)
        self.servers = {}
        for place, port in ((lab.containers[0], THROUGH), (lab.host, PAST)):
            # Nobody accepts: the kernel alone answers, and no thread of ours is in the way.
            server = self._stack.enter_context(lab.socket(place, "tcp"))
            server.bind((place.ip, 80) if port == THROUGH else (lab.address, PAST))
            server.listen(CONNECTS)
            server.setblocking(False)
            self.servers[port] = server
        with Links() as links:
            for i in range(networks - 1):
                links.create_bridge(f"x{i}", f"10.{i}.0.1/16")
        for i in range(networks - 1):
            self.add(f"x{i}", f"10.{i}.0.0/16").setup()
        if networks:
            self.add(lab.bridge, lab.network).setup()
            self.mappers[-1].map(THROUGH, (lab.containers[0].ip, 80))

    def add(self, bridge: str, network: str) -> PortMapper:
        mapper = PortMapper("nftables", bridge=bridge, network=network)
        self._stack.callback(mapper.close)
        self.mappers.append(mapper)
        return mapper

    def connects(self, port: int) -> Timed:
        """A turn of new connections from outside."""
        return lambda: self.do(lambda: connecting(self.lab, self.servers[port], port))

    def comes_again(self, number: int) -> Timed:
        """The set-up of a network that is not there among all the others."""

        def turn() -> float:
            mapper = self.mappers[number]
            mapper.cleanup()
            start = perf_counter()
            mapper.setup()
            return perf_counter() - start

        return lambda: self.do(turn)


@pytest.fixture
def hosts() -> Iterator[Callable[..., Host]]:
    require_kernel()
    with ExitStack() as stack:
        yield lambda *arguments: Host(stack, *arguments)


def test_a_packet_costs_the_same_with_a_hundred_networks(hosts: Callable[..., Host]) -> None:
    none, one, many = hosts(0, ONE_RULE), hosts(1), hosts(MANY)
    sides: Sides = many.connects(THROUGH), one.connects(THROUGH)
    check(f"connect, {MANY} networks to one", 1.1, sides, 40)
    sides = many.connects(PAST), none.connects(PAST)
    check(f"connect past us, {MANY} networks to none", 1.15, sides, 40)


def test_the_hundredth_network_is_set_up_as_the_second(hosts: Callable[..., Host]) -> None:
    few, many = hosts(2), hosts(MANY)
    check("set-up of the 100th to the 2nd", 1.5, (many.comes_again(0), few.comes_again(0)), 30)


def test_a_block_among_many(hosts: Callable[..., Host], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the bare transaction of one interval among as many, which the kernel copies."""
    one, other = hosts(1), hosts(1)
    ours, bare = one.mappers[0], other.mappers[0]
    block = PortMapping(9000, ("10.200.0.2", 9000), count=10)
    one.do(lambda: ours.map_many(blocks(3000)))
    backend = bare.backend
    assert isinstance(backend, Nftables)
    with monkeypatch.context() as undivided:
        undivided.setattr(maps, "SMALL", 1)
        other.do(lambda: bare.map_many(blocks(3000)))
        held = elements.entries([block])
        assert "block_any" in held
        adding = batch.additions(backend.table, held)
        removing = batch.deletions(backend.table, held)

    def timed(host: Host, add: Callable[[], object], remove: Callable[[], object]) -> Timed:
        def turn() -> float:
            start = perf_counter()
            add()
            seconds = perf_counter() - start
            remove()
            return seconds

        return lambda: host.do(turn)

    def send(steps: list[batch.Step]) -> Callable[[], None]:
        return lambda: batch.send(backend._table.netlink, steps)

    sides: Sides = (
        timed(one, lambda: ours.map(9000, block.dest, count=10), lambda: ours.unmap(9000)),
        timed(other, send(adding), send(removing)),
    )
    check("a block of 10 among 3,000", 4, sides, 100)


def blocks(count: int) -> list[PortMapping]:
    return [
        PortMapping(first, ("10.200.0.2", first), count=10)
        for first in range(10_000, 10_000 + 16 * count, 16)
    ]
