"""The places of the growth gate: what is held in each, all made through the public API."""

from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from growth import KEPT, PAST, Place
from netalloc import NetworkManager, Networks, PortRequest

NETWORK = "10.0.0.1/8"
PORTS = range(1024, 65536)
HOUR = 3600.0  # longer than the gate takes: nothing cools down meanwhile
FIRST_HOST_IP = IPv4Address("198.18.0.1")


def place(path: Path | None, *, network: str = NETWORK, **options: Any) -> Place:
    """A place where nothing is held; in memory without a path."""
    options = {"ports": PORTS, "backend": "null", **options}
    opened = ExitStack()
    manager = opened.enter_context(NetworkManager("br0", network=network, store=path, **options))
    return Place(manager, path, calls=10 if path is None else 4, opened=opened)


def crowd(at: Place, held: int, owners: int = 50) -> None:
    """So many more held: by many owners, labelled, and with a port each up to 50,000."""
    for i in range(owners):
        n = held // owners
        with_ports = (i + 1) * n <= 50_000
        owner = f"crowd-{i}" if owners > 1 else at.owner
        at.manager.allocate_many(n, (80,) * with_ports, owner, labels={"app": owner})


def one_owner(at: Place) -> None:
    """All that is held belongs to the owner that the operations allocate for."""
    crowd(at, 50_000, owners=1)


def ended(n: int) -> Callable[[Place], None]:
    """So many leases of 50 owners have ended: they cool down, stick, or are history."""

    def fill(at: Place) -> None:
        for i in range(50):
            at.manager.allocate_many(n // 50, owner=f"gone-{i}")
            at.manager.release(f"gone-{i}")

    return fill


def reservations(at: Place) -> None:
    first = IPv4Address("10.128.0.1")
    for i in range(10_000):
        at.manager.reserve(first + i, f"kept-{i}")


def host_addresses(at: Place) -> None:
    """1,000 addresses of the host on which ports are published, the same one and others."""
    for i in range(1_000):
        ip = FIRST_HOST_IP + i
        ports = [PortRequest(80, "tcp", 600, ip), PortRequest(81, host_ip=ip)]
        at.manager.allocate("hosts", ports=ports)
    at.taken_port = 600


def blocks(at: Place) -> None:
    """3,000 blocks of 10 ports; a port in the middle of the last one is what is taken.

    That one is of a lease of its own, as who() names all that a lease publishes.
    """
    one = at.manager.allocate("blocks")
    for _ in range(2_999):
        one.allocate_ports(10)
    at.taken_port = at.manager.allocate("blocks").allocate_ports(10)[5]


def networks(at: Place) -> None:
    """99 more networks in the same file, something held in each."""
    assert at.path is not None
    with Networks(at.path) as host:
        for i in range(1, 100):
            other = host.create(f"net-{i}", f"11.{i}.0.1/16", bridge=f"br{i}", backend="null")
            other.allocate_many(10, (80,), "found", labels={"app": "found"})


def nothing(at: Place) -> None:
    """The emptier side."""


# ---- networks that are full


def full_network(prefix: int, **options: Any) -> Callable[[Path | None], Place]:
    """A network of which every address is held."""

    def make(path: Path | None) -> Place:
        at = place(path, network=f"10.0.0.1/{prefix}", **options)
        at.found = at.manager.allocate_many(at.manager.subnet.capacity, owner="all")
        return at

    return make


def cooling_network(prefix: int) -> Callable[[Path | None], Place]:
    """A network of which every address cools down."""

    def make(path: Path | None) -> Place:
        at = full_network(prefix, cooldown=HOUR)(path)
        at.manager.release("all")
        return at

    return make


def full_ports(ports: range) -> Callable[[Path | None], Place]:
    """Every port of the range is published."""

    def make(path: Path | None) -> Place:
        at = place(path, ports=ports)
        at.found = at.manager.allocate_many(1, (80,) * len(ports), "all")
        return at

    return make


def fragmented_ports(ports: range) -> Callable[[Path | None], Place]:
    """Every second port is published, and at the end there is one gap of 12."""

    def make(path: Path | None) -> Place:
        at = place(path, ports=ports)
        at.manager.allocate(ports=[PortRequest(80, host_port=p) for p in ports[:-12:2]])
        return at

    return make


# ---- files that nothing has open


def at_rest(fill: Callable[[Place], None]) -> Callable[[Path | None], Place]:
    """A file that is filled and closed again."""

    def make(path: Path | None) -> Place:
        at = standing(fill)(path)
        at.close()
        return at

    return make


# ---- the sides of a comparison


def standing(fill: Callable[[Place], None], **options: Any) -> Callable[[Path | None], Place]:
    """A place with what the operations look for, among what `fill` puts there."""

    def make(path: Path | None) -> Place:
        at = place(path, **options)
        fill(at)
        # Behind all that is held: a scan that ends with what it looks for must not end early.
        manager = at.manager
        manager.allocate("db", key="eth0", labels={"app": "db"}, ports=[PortRequest(80, "udp")])
        at.found = manager.allocate_many(3, (80,), "found", labels={"app": "found"})
        at.taken_port = at.taken_port or at.found[-1].ports()[0].host_port
        manager.reserve(KEPT, "dns")
        for _ in range(3):
            manager.allocate("past", PAST, allow_cooling=True).release()
        return at

    return make
