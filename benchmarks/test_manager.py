"""The manager's speed: what it adds to the core, to the kernel and to what is held already."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from netalloc import IPAllocator, NetworkManager, PortMapping
from netalloc.portmap.nftables.backend import Nftables
from promised import check, ratio, timed

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from lab import Lab

EVERY_PORT = range(1024, 65536)


class Bare:
    """The least that an interface can be."""

    __slots__ = ("generation", "ip", "owner")

    def __init__(self, ip: IPv4Address, owner: str, generation: int) -> None:
        self.ip = ip
        self.owner = owner
        self.generation = generation


def test_in_memory_an_interface_costs_little_more_than_its_address() -> None:
    """Beside an allocator, an object, and three dicts to find it by."""
    manager = NetworkManager("br0", network="10.0.0.1/8", backend="null")
    allocator = IPAllocator("10.0.0.1/8")
    by_ip: dict[IPv4Address, Bare] = {}
    by_owner: dict[str, dict[IPv4Address, Bare]] = {}
    by_generation: dict[int, Bare] = {}

    def base() -> None:
        for i in range(1000):
            ip = allocator.acquire()
            one = Bare(ip, "web", len(by_generation))
            by_ip[ip] = by_generation[i] = one
            by_owner.setdefault(one.owner, {})[ip] = one

    def ours() -> None:
        for _ in range(1000):
            manager.allocate("web")

    check("allocate in memory : allocator, object, three dicts", lambda: ratio(ours, base), 8)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A private host."""
    if os.geteuid():
        assert os.environ.get("CI") != "true", "in CI nothing is skipped: root is needed"
        pytest.skip("needs root")
    with Lab("nft") as lab:
        yield lab


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_1000_interfaces_with_two_ports(lab: Lab, tmp_path: Path, kind: str) -> None:
    """In one transaction, beside the bare kernel batch of the 2,000 mappings."""
    mappings = [
        PortMapping(20000 + i, (IPv4Address("10.200.9.9"), 80), owner="crowd") for i in range(2000)
    ]
    with ExitStack() as stack:
        bare = Nftables("bare")
        bare.setup()
        stack.callback(bare.close)
        stack.callback(bare.cleanup)
        manager = stack.enter_context(
            NetworkManager(
                lab.bridge,
                network=lab.network,
                ports=EVERY_PORT,
                backend="nftables",
                store=None if kind == "memory" else tmp_path / "store.db",
            )
        )

        def measure() -> float:
            ours, base = [], []
            for _ in range(5):
                base.append(timed(lambda: bare.apply(mappings)))
                bare.apply((), mappings)
                ours.append(timed(lambda: manager.allocate_many(1000, (80, 443), owner="x")))
                manager.release("x")
            return min(ours) / min(base)

        check(f"1,000 interfaces, 2 ports each, {kind} : bare batch", measure, 10)


def test_a_cold_process_pays_the_same_at_50_000_held(tmp_path: Path) -> None:
    """Open, allocate, publish nothing, close."""
    paths = {held: tmp_path / f"{held}.db" for held in (0, 50_000)}
    for held, path in paths.items():
        with NetworkManager("br0", network="10.0.0.1/8", backend="null", store=path) as manager:
            manager.allocate_many(held, owner="crowd")

    def cold(held: int) -> None:
        store = paths[held]
        with NetworkManager("br0", network="10.0.0.1/8", backend="null", store=store) as manager:
            manager.allocate("cold")

    check(
        "cold open, allocate, close : at 50,000 held to none",
        lambda: ratio(lambda: cold(50_000), lambda: cold(0), 25),
        1.5,
    )
