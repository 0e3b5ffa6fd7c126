"""What is wrong with a store: against itself, against the core's bitmaps, and the kernel."""

from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from typing import Any

from netalloc._alloc import IPAllocator
from netalloc.ipam.addresses import Addresses
from netalloc.ipam.networks import written
from netalloc.ports import MemoryBitmaps, Ordinals, PortAllocator
from netalloc.store.protocol import Transaction
from netalloc.store.records import (
    Cooldown,
    GcCandidate,
    Label,
    LastHolder,
    Lease,
    Network,
    Publication,
    Reservation,
)


def plans(tx: Transaction) -> list[Addresses]:
    """The addresses of every network in the store."""
    networks = sorted(tx.table(Network).all())
    return [Addresses(one.number, IPAllocator(written(one))) for one in networks]


def expected_ports(tx: Transaction, prefix: str) -> tuple[MemoryBitmaps, int]:
    """The bitmaps of host ports as the publications want them, in one layout; their size."""
    made = MemoryBitmaps()
    step = int(prefix.partition(",")[2] or 1)
    every = range(1, 65536, step) if step > 0 else range(65535, 0, step)
    ports = PortAllocator(every, bitmaps=made)
    for row in tx.table(Publication).all():
        host_ip = IPv4Address(row.host_ip) if row.host_ip else None
        for port in range(row.host_port, row.host_port + row.port_count):
            ports.reserve(port, row.protocol, host_ip)
    return made, ports.size


def layouts(tx: Transaction) -> list[str]:
    """The layouts of host ports that are in use: one a step of the ranges."""
    return sorted({name.split("/")[0] for name in tx.names("ports")})


def members(bitmap: Ordinals) -> Iterator[int]:
    """The ordinals that are set."""
    start = bitmap.next_set(0)
    while start is not None:
        yield start
        start = bitmap.next_set(start + 1)


def check(tx: Transaction) -> Iterator[str]:
    """Every invariant of the records and bitmaps that does not hold, in words. O(held)."""
    known = {one.number for one in plans(tx)}
    kind: type[Any]
    for kind in (Lease, Reservation, Cooldown, LastHolder):
        for number in {record.network for record in tx.table(kind).all()} - known:
            yield f"there is a {kind.__name__.lower()} of network {number}, which there is not"
    for addresses in plans(tx):
        yield from _addresses(tx, addresses)
    held = {(lease.network, lease.ordinal): lease for lease in tx.table(Lease).all()}
    for label in tx.table(Label).all():
        if (label.network, label.ordinal) not in held:
            yield f"label {label.name} is of no lease: {label}"
    published = Counter((row.network, row.ordinal) for row in tx.table(Publication).all())
    for where, lease in held.items():
        if published[where] != lease.publications:
            yield f"{lease} has {published[where]} publications"
    for row in tx.table(Publication).all():
        if (row.network, row.ordinal) not in held:
            port = f"{row.host_port}/{row.protocol}"
            yield f"port {port} leads to an address without a lease: {row}"
    for suspect in tx.table(GcCandidate).all():
        noted = held.get((suspect.network, suspect.ordinal))
        if noted is None or noted.generation < suspect.generation:
            yield f"a suspect is no lease: {suspect}"
    yield from _twice(held.values())
    for prefix in layouts(tx) or ["ports"]:
        yield from _ports(tx, prefix)


def _twice(leases: Iterable[Lease]) -> Iterator[str]:
    generations: dict[int, Lease] = {}
    keys: dict[tuple[int, str | None, str], Lease] = {}
    for lease in leases:
        other = generations.setdefault(lease.generation, lease)
        if other is not lease:
            yield f"two leases have one generation: {lease} and {other}"
        if lease.key is not None:
            other = keys.setdefault((lease.network, lease.owner, lease.key), lease)
            if other is not lease:
                yield f"two leases have one owner and key: {lease} and {other}"


def _addresses(tx: Transaction, addresses: Addresses) -> Iterator[str]:
    plan, where = addresses.plan, (addresses.number,)
    wanted = {i for start, stop in plan.excluded() for i in range(start, stop)}
    who = {}
    kind: type[Any]
    for kind in (Lease, Reservation, Cooldown):
        for record in tx.table(kind).where("network", equal=where):
            wanted.add(record.ordinal)
            who[record.ordinal] = record
    for ordinal in wanted:
        if ordinal >= plan.size:
            yield f"ordinal {ordinal} is not of {plan.network}: {who.get(ordinal)}"
    marked = set(members(addresses.bitmap(tx)))
    for ordinal in sorted(wanted - marked):
        if ordinal < plan.size:
            yield f"{plan.address(ordinal)} is not marked as taken, but: {who.get(ordinal)}"
    for ordinal in sorted(marked - wanted):
        yield f"{plan.address(ordinal)} is marked as taken, but no record says by whom"


def _ports(tx: Transaction, prefix: str) -> Iterator[str]:
    wanted, size = expected_ports(tx, prefix)
    names = set(wanted.names(f"{prefix}/")) | set(tx.names(f"{prefix}/"))
    for name in sorted(names):
        should, does = wanted.bitmap(name, size), tx.bitmap(name, size)
        off = sorted(set(members(should)) ^ set(members(does)))
        if off:
            yield f"bitmap {name} differs from the publications at {len(off)} ordinals: {off[:9]}"
