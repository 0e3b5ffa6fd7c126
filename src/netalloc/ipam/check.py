"""What is wrong with the records and bitmaps of a store, and making the bitmaps anew."""

from __future__ import annotations

from collections import Counter

from netalloc.ipam import allowances
from netalloc.ipam.addresses import Addresses
from netalloc.ipam.networks import networks
from netalloc.ipam.places import in_order, place_of
from netalloc.logs import Log
from netalloc.port_bitmaps import MemoryBitmaps, Ordinals, bitmap_size
from netalloc.ports import PortAllocator
from netalloc.store.records import (
    Allowance,
    Attachment,
    Cooldown,
    GcCandidate,
    Label,
    LastHolder,
    Lease,
    Publication,
    Reservation,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from netalloc.store.protocol import Transaction

log = Log(__name__)

_PORTS = "ports/"


def check(tx: Transaction) -> Iterator[str]:
    """Every invariant of the records and bitmaps that does not hold, in words. O(held)."""
    known = {network.number for network in networks(tx)}
    kind: type[Any]
    for kind in (Lease, Reservation, Cooldown, LastHolder):
        for number in {record.network for record in tx.table(kind).all()} - known:
            yield f"there is a {kind.__name__} of network {number}, which there is not"
    for addresses in all_addresses(tx):
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
    for candidate in tx.table(GcCandidate).all():
        noted = held.get((candidate.network, candidate.ordinal))
        if noted is None or noted.generation < candidate.generation:
            yield f"a candidate for collection is no lease: {candidate}"
    for attached in tx.table(Attachment).all():
        lease_of = held.get((attached.network, attached.ordinal))
        if lease_of is None or lease_of.generation != attached.generation:
            yield f"an attachment is of no lease: {attached}"
    for allowed in tx.table(Allowance).all():
        if not all(one in held for one in allowances.ends(allowed)):
            yield f"an allowance is of no two leases: {allowed}"
    yield from _twice(held.values())
    yield from _ports(tx)


def all_addresses(tx: Transaction) -> list[Addresses]:
    """The addresses of every network in the store."""
    return [Addresses.of(network) for network in networks(tx)]


def rebuild(tx: Transaction) -> None:
    """Make every bitmap anew from the records. O(held)."""
    for addresses in all_addresses(tx):
        addresses.rebuild(tx)
    rebuild_ports(tx)


def rebuild_ports(tx: Transaction) -> None:
    """Make the bitmaps of the host ports anew from the publications. O(published).

    Where two publications claim one port, as the first edition let it come to, the older lease
    keeps it: the other one's publication goes, and a warning says so.
    """
    _drop_conflicts(tx)
    wanted = expected_ports(tx)
    for name in list(tx.names(_PORTS)):
        tx.drop(name)
    for name in wanted.names(_PORTS):
        size = bitmap_size(name)
        bitmap = tx.bitmap(name, size)
        for port in set_bits(wanted.bitmap(name, size)):
            bitmap.reserve(port)


def _drop_conflicts(tx: Transaction) -> None:
    leases, publications = tx.table(Lease), tx.table(Publication)
    ports = PortAllocator(bitmaps=MemoryBitmaps())
    found = [(leases.get(row.network, row.ordinal), row) for row in publications.all()]
    for lease, row in sorted(
        found, key=lambda pair: ((pair[0] and pair[0].generation) or 0, in_order(pair[1]))
    ):
        place = place_of(row.host_ip)
        block = range(row.host_port, row.host_port + row.port_count)
        if not any(ports.held(port, row.protocol, place) for port in block):
            for port in block:
                ports.reserve(port, row.protocol, place)
            continue
        log.warning("published twice, so this one is not any more: %s of %s", row, lease)
        publications.remove((row,))
        current = leases.get(row.network, row.ordinal)
        if current is not None:
            leases.remove((current,))
            leases.add((current._replace(publications=current.publications - 1),))


def expected_ports(tx: Transaction, twice: list[str] | None = None) -> MemoryBitmaps:
    """The bitmaps of host ports as the publications want them; `twice` is told of conflicts."""
    made = MemoryBitmaps()
    ports = PortAllocator(bitmaps=made)
    for row in tx.table(Publication).all():
        place = place_of(row.host_ip)
        for port in range(row.host_port, row.host_port + row.port_count):
            if not ports.held(port, row.protocol, place):
                ports.reserve(port, row.protocol, place)
            elif twice is not None:
                twice.append(f"port {port}/{row.protocol} is published twice, by {row} too")
    return made


def set_bits(bitmap: Ordinals) -> Iterator[int]:
    """The ordinals that are set."""
    start = bitmap.next_set(0)
    while start is not None:
        yield start
        start = bitmap.next_set(start + 1)


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
    subnets, where = addresses.subnets, (addresses.number,)
    never = subnets.excluded()
    wanted: set[int] = set()
    who = {}
    kind: type[Any]
    for kind in (Lease, Reservation, Cooldown):
        for record in tx.table(kind).where("network", equal=where):
            wanted.add(record.ordinal)
            who[record.ordinal] = record
    for ordinal in sorted(wanted):
        if ordinal >= subnets.size:
            yield f"ordinal {ordinal} is not of {subnets.networks}: {who[ordinal]}"
        elif not subnets.gives(ordinal):
            yield f"{subnets.address(ordinal)} is never given, but: {who[ordinal]}"
    bitmap = addresses.bitmap(tx)
    for ordinal in sorted(wanted):
        if ordinal < subnets.size and ordinal not in bitmap:
            yield f"{subnets.address(ordinal)} is not marked as taken, but: {who[ordinal]}"
    for start, stop in never:
        free = bitmap.next_free(start)
        if free is not None and free < stop:
            yield f"{subnets.address(free)} is never given, but is marked as free"
    for ordinal in outside(bitmap, never):
        if ordinal not in wanted:
            yield f"{subnets.address(ordinal)} is marked as taken, but no record says by whom"


def outside(bitmap: Ordinals, runs: tuple[tuple[int, int], ...]) -> Iterator[int]:
    """The ordinals that are set outside of these runs, which may be huge."""
    start = 0
    for first, stop in (*runs, (1 << 64, 1 << 64)):
        found = bitmap.next_set(start) if start < first else None
        while found is not None and found < first:
            yield found
            found = bitmap.next_set(found + 1)
        start = stop


def _ports(tx: Transaction) -> Iterator[str]:
    twice: list[str] = []
    wanted = expected_ports(tx, twice)
    yield from twice
    names = set(wanted.names(_PORTS)) | set(tx.names(_PORTS))
    for name in sorted(names):
        size = bitmap_size(name)
        should, does = wanted.bitmap(name, size), tx.bitmap(name, size)
        off = sorted(set(set_bits(should)) ^ set(set_bits(does)))
        if off:
            yield f"bitmap {name} differs from the publications at {len(off)} ports: {off[:9]}"
