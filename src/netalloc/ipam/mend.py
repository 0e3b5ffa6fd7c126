"""Making records and bitmaps agree, difference by difference, while others go on with the store.

To find what differs is to read all there is, so it is done over a snapshot, which holds nothing
up. Each difference is then a step: it looks at its own place again, in a change, and mends what
still differs there. So a change of a hundred steps takes some milliseconds, whatever is held.
"""

from __future__ import annotations

import time
from collections import Counter
from functools import partial

from netalloc.ipam import allowances
from netalloc.ipam.addresses import Addresses
from netalloc.ipam.check import all_addresses, expected_ports, outside, rebuild_ports, set_bits
from netalloc.ipam.networks import networks
from netalloc.ipam.places import in_order, place_of
from netalloc.ipam.publications import holding
from netalloc.port_bitmaps import SIZE, MemoryBitmaps, bitmap_size
from netalloc.ports import PortAllocator
from netalloc.store.records import (
    TABLES,
    Allowance,
    Attachment,
    Cooldown,
    GcCandidate,
    Label,
    LastHolder,
    Lease,
    Network,
    Publication,
    Reservation,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    from netalloc.store.protocol import Transaction

    Step: TypeAlias = Callable[[Transaction], str | None]

QUARANTINE = "quarantine: the lease was lost"
TAKING = (Lease, Reservation, Cooldown)  # records that an address is taken for
_OF_A_LEASE = (Label, Publication, GcCandidate, Attachment, Allowance)
_OF_A_NETWORK = (*TAKING, LastHolder, *_OF_A_LEASE)


def look(tx: Transaction) -> list[Step]:
    """What differs, as steps that mend it and say what they did, in the order to take them in.

    A step finds, in the change it is taken in, nothing to mend where the difference is gone:
    then it returns None. O(held).
    """
    leases = {(lease.network, lease.ordinal): lease for lease in tx.table(Lease).all()}
    steps = [*_strays(tx, leases), *_counts(tx, leases), *_twins(leases)]
    for addresses in all_addresses(tx):
        steps += _addresses(tx, addresses)
    return steps + list(_ports(tx))


def take(steps: list[Step], tx: Transaction) -> list[str]:
    """Take them, in one change; what was mended."""
    return [said for step in steps if (said := step(tx)) is not None]


def changes_mappings(steps: list[Step]) -> bool:
    """Whether one of them may change which mappings the kernel should have."""
    return any(getattr(step, "func", step) in (_drop, _count, _rebuild_ports) for step in steps)


# ---- records


def _strays(tx: Transaction, leases: dict[tuple[int, int], Lease]) -> Iterator[Step]:
    known = {network.number for network in networks(tx)}
    kind: type[Any]
    for kind in _OF_A_NETWORK:
        for record in tx.table(kind).all():
            if record.network not in known or not _has_lease(record, leases.get):
                yield partial(_drop, record)


def _has_lease(record: Any, get: Callable[[tuple[int, int]], Lease | None]) -> bool:
    if type(record) is Allowance:
        return all(get(one) is not None for one in allowances.ends(record))
    lease = get((record.network, record.ordinal))
    if type(record) is GcCandidate:
        return lease is not None and lease.generation >= record.generation
    if type(record) is Attachment:
        return lease is not None and lease.generation == record.generation
    return lease is not None or not isinstance(record, _OF_A_LEASE)


def _drop(record: Any, tx: Transaction) -> str | None:
    kind = type(record)
    table = tx.table(kind)
    if table.get(*[getattr(record, name) for name in TABLES[kind].key]) != record:
        return None
    leases = tx.table(Lease)
    if tx.table(Network).get(record.network) is not None and _has_lease(
        record, lambda where: leases.get(*where)
    ):
        return None
    table.remove((record,))
    return f"dropped, as it belongs nowhere: {record}"


def _counts(tx: Transaction, leases: dict[tuple[int, int], Lease]) -> Iterator[Step]:
    published = Counter((row.network, row.ordinal) for row in tx.table(Publication).all())
    for where, lease in leases.items():
        if published[where] != lease.publications:
            yield partial(_count, *where)


def _count(network: int, ordinal: int, tx: Transaction) -> str | None:
    where = network, ordinal
    lease = tx.table(Lease).get(*where)
    found = len(tx.table(Publication).where("network", "ordinal", equal=where))
    if lease is None or lease.publications == found:
        return None
    return _put(tx, lease, lease._replace(publications=found))


def _twins(leases: dict[tuple[int, int], Lease]) -> Iterator[Step]:
    first: dict[tuple[int, str | None, str], Lease] = {}
    for lease in sorted(leases.values(), key=lambda lease: lease.generation):
        if lease.key is not None:
            name = lease.network, lease.owner, lease.key
            if first.setdefault(name, lease) is not lease:
                yield partial(_take_key, lease)


def _take_key(lease: Lease, tx: Transaction) -> str | None:
    """Of two leases of one owner and key the first alone keeps the key."""
    name = lease.network, lease.owner, lease.key
    same = tx.table(Lease).where("network", "owner", "key", equal=name)
    if lease not in same or min(one.generation for one in same) == lease.generation:
        return None
    return _put(tx, lease, lease._replace(key=None))


def _put(tx: Transaction, lease: Lease, fresh: Lease) -> str:
    table = tx.table(Lease)
    table.remove((lease,))
    table.add((fresh,))
    return f"{lease} is now {fresh}"


# ---- addresses


def _addresses(tx: Transaction, addresses: Addresses) -> Iterator[Step]:
    subnets, number = addresses.subnets, addresses.number
    bitmap = addresses.bitmap(tx)
    wanted: set[int] = set()
    kind: type[Any]
    for kind in TAKING:
        rows = tx.table(kind).where("network", equal=(number,))
        wanted.update(row.ordinal for row in rows if row.ordinal < subnets.size)
    for start, stop in subnets.excluded():
        free = bitmap.next_free(start)
        if free is not None and free < stop:
            yield partial(_bar, number, start, stop)
    for ordinal in sorted(wanted):
        if ordinal not in bitmap:
            yield partial(_mark, number, ordinal)
    for ordinal in outside(bitmap, subnets.excluded()):
        if ordinal not in wanted:
            yield partial(_mark, number, ordinal)


def _mark(number: int, ordinal: int, tx: Transaction) -> str | None:
    """Mark an address as taken of which a record says so, and keep one that none says so of."""
    network = tx.table(Network).get(number)
    if network is None:
        return None
    addresses = Addresses.of(network)
    subnets, bitmap = addresses.subnets, addresses.bitmap(tx)
    kinds: tuple[type[Any], ...] = TAKING
    recorded = any(tx.table(kind).get(number, ordinal) is not None for kind in kinds)
    if recorded == (ordinal in bitmap) or not subnets.gives(ordinal):
        return None
    if recorded:
        bitmap.reserve(ordinal)
        return f"{subnets.address(ordinal)} is marked as taken"
    tx.table(Reservation).add((Reservation(number, ordinal, QUARANTINE, time.time_ns()),))
    return f"{subnets.address(ordinal)} is reserved: {QUARANTINE}"


def _bar(number: int, start: int, stop: int, tx: Transaction) -> str | None:
    """Have addresses that are never given marked as taken: by runs, for a /9 may be excluded."""
    network = tx.table(Network).get(number)
    if network is None or (start, stop) not in Addresses.of(network).subnets.excluded():
        return None
    addresses = Addresses.of(network)
    bitmap, n = addresses.bitmap(tx), 0
    cursor, free = bitmap.cursor, bitmap.next_free(start)
    while free is not None and free < stop:
        taken = bitmap.next_set(free)
        end = stop if taken is None else min(taken, stop)
        bitmap.cursor = free
        bitmap.acquire_ranges(end - free)
        n += end - free
        free = bitmap.next_free(end) if end < stop else None
    bitmap.cursor = cursor
    return f"{n} addresses of {network.name} are never given again" if n else None


# ---- ports


def _ports(tx: Transaction) -> Iterator[Step]:
    twice: list[str] = []
    wanted = expected_ports(tx, twice)
    if twice:  # as the first edition let it come to: which one goes, all of them together say
        yield _rebuild_ports
        return
    off: dict[tuple[str, int], set[str]] = {}
    for name in {*wanted.names("ports/"), *tx.names("ports/")}:
        size = bitmap_size(name)
        differing = set(set_bits(wanted.bitmap(name, size))) ^ set(set_bits(tx.bitmap(name, size)))
        for bit in differing:
            at = name.split("/")[1], bit // (size // SIZE)
            off.setdefault(at, set()).add(name)
    if not off:
        return
    rows: dict[tuple[str, int], list[Publication]] = {}
    for row in tx.table(Publication).all():
        for port in range(row.host_port, row.host_port + row.port_count):
            if (row.protocol, port) in off:
                rows.setdefault((row.protocol, port), []).append(row)
    for (protocol, port), names in sorted(off.items()):
        yield partial(_port, protocol, port, rows.get((protocol, port), []), names)


def _rebuild_ports(tx: Transaction) -> str:
    rebuild_ports(tx)
    return "the bitmaps of the host ports were made anew"


def _port(
    protocol: str, port: int, before: list[Publication], names: set[str], tx: Transaction
) -> str | None:
    """Have what the bitmaps say of a port be what its publications say.

    These are those that were there at the look, and what has come since: of the latter the
    bitmaps do say that the port is held, so that a walk by them finds all.
    """
    table = tx.table(Publication)
    key = TABLES[Publication].key
    rows = {row for row in before if table.get(*[getattr(row, name) for name in key]) == row}
    rows.update(holding(tx, port, protocol))
    wanted = MemoryBitmaps()
    ports = PortAllocator(bitmaps=wanted)
    for row in sorted(rows, key=in_order):
        place = place_of(row.host_ip)
        if not ports.held(port, protocol, place):
            ports.reserve(port, protocol, place)
    mended = False
    for name in sorted({*names, *wanted.names("ports/")}):
        size = bitmap_size(name)
        should, does = wanted.bitmap(name, size), tx.bitmap(name, size)
        width = size // SIZE
        for bit in range(port * width, (port + 1) * width):
            if (bit in should) != (bit in does):
                change = does.reserve if bit in should else does.release
                change(bit)
                mended = True
        if not len(does) and not name.endswith(("/every", "/used", "/more")):
            tx.drop(name)
    return f"what is said of port {port}/{protocol} was mended" if mended else None
