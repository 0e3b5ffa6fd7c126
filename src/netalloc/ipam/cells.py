"""How much of each part of a network is in use: counted, never listed address by address.

What is held is counted off the bitmap, which has it in bits: 2**24 addresses take a millisecond
in memory, and 40 in a file. Only what else a bit may stand for, cool-downs and reservations, is
looked up by its record.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from netalloc._alloc import Bitmap
from netalloc.errors import InvalidValueError, OutOfRangeError
from netalloc.ipam.addresses import Addresses
from netalloc.ipam.networks import subnets_of
from netalloc.store.records import Cooldown, Lease, Reservation
from netalloc.values import as_int, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.ipam.subnets import Subnets
    from netalloc.store.protocol import Transaction
    from netalloc.store.records import Network

_LISTED = 1 << 24  # an IPv6 network of more addresses is shown as far as it is used
_LEAST = 1 << 8  # of such a one, at least so many
_MOST = 1 << 24  # cells, what the core counts at once


class Cells(NamedTuple):
    """A part of a network in `n` cells of `cell` addresses each, from address `first` on.

    An address is a number: how many come before it in the network, whether they may be given or
    not. `taken`, `excluded` and `outside` are n native 64-bit words: how many of a cell's
    addresses have their bit set, are excluded, or have none at all, as the network's own has
    none. `taken` counts the excluded ones too, and is None where nothing is leased.

    `cooling`, `reserved` and `idle` are addresses of the part that are not leased: what cools
    down, what is only reserved, and what has cooled and may be given in spite of its bit.
    `whole` says that nothing in use lies outside of the part.
    """

    subnets: Subnets
    size: int
    first: int
    count: int  # type: ignore[assignment]  # in the place of tuple.count, which none of us calls
    n: int
    whole: bool
    taken: bytes | None
    excluded: bytes
    outside: bytes
    cooling: list[int]
    reserved: list[int]
    idle: list[int]

    @property
    def cell(self) -> int:
        """How many addresses a cell has."""
        return self.count // self.n


def cells(tx: Transaction, network: Network, first: int, count: int | None, most: int) -> Cells:
    """Count a network, or the `count` addresses from `first` on, in a power of four of cells.

    `most` is how many cells there may be; `count` a power of two, and `first` a multiple of it.
    Without a count it is all of the network, or, of an IPv6 one of more than 2**24 addresses,
    the smallest such part of a power of four that has all that is in use. Raises
    InvalidValueError, OutOfRangeError. O(cells, leaves of 4096, reserved and cooling ones).
    """
    subnets = subnets_of(network)
    size, before = _extent(subnets)
    first, most = as_int(first, "first", 0, size - 1), as_int(most, "cells", 1, _MOST)
    addresses = Addresses.of(network)
    where, now = (network.number,), addresses.clock()
    cooling: set[int] = set()
    idle: set[int] = set()
    for one in tx.table(Cooldown).where("network", equal=where):
        (cooling if one.ready_ns > now else idle).add(before + one.ordinal)
    reserved = {before + one.ordinal for one in tx.table(Reservation).where("network", equal=where)}
    # Where no lease is, the bitmap may still have what ended with an earlier boot.
    leased = bool(tx.table(Lease).where("network", equal=where, limit=1))
    whole = count in (None, size)
    if count is not None:
        count = _aligned(first, count, size)
    elif first:
        raise InvalidValueError(f"first {first} needs a count: how many addresses from there on")
    elif subnets.first.version == 4 or size <= _LISTED:
        count = size
    else:
        ends = [*_ends(tx, addresses, before)] if leased else []
        first, count = _around([*ends, *cooling, *reserved], size)
    n = 1
    while n * 4 <= min(most, count):
        n *= 4
    lease = tx.table(Lease)

    def of_part(found: set[int]) -> list[int]:
        inside = [one for one in found if first <= one < first + count]
        return [one for one in inside if lease.get(network.number, one - before) is None]

    begin = first - before
    asked = begin, count // n, n
    return Cells(
        subnets,
        size,
        first,
        count,
        n,
        whole,
        addresses.bitmap(tx).counts(*asked) if leased else None,
        _of_runs(subnets.excluded(), subnets.size).counts(*asked),
        _of_runs(_outside(before, subnets.size, size), size).counts(first, *asked[1:]),
        of_part(cooling),
        of_part(reserved - cooling),
        of_part(idle - reserved - cooling),
    )


def _extent(subnets: Subnets) -> tuple[int, int]:
    """How many addresses there are, given or not, and how many before the first ordinal's."""
    one = subnets.first
    lowest = one.network.network_address
    bits = min(lowest.max_prefixlen - one.prefixlen, 64)
    return 1 << bits, int(one.address(0)) - int(lowest)


def _aligned(first: int, count: int, size: int) -> int:
    count = as_int(count, "count", 1, size)
    if count & (count - 1):
        raise InvalidValueError(f"count {shown(count)} is not a power of two")
    if first % count:
        raise InvalidValueError(f"first {shown(first)} is not a multiple of the count {count}")
    if first + count > size:
        raise OutOfRangeError(f"{count} addresses from {first} on are more than the {size} there")
    return count


def _ends(tx: Transaction, addresses: Addresses, before: int) -> tuple[int, ...]:
    """The first and the last address that is taken, but for those that are excluded."""
    bitmap, runs = addresses.bitmap(tx), addresses.subnets.excluded()
    starts = [start for start, _ in runs]

    def run(ordinal: int) -> tuple[int, int] | None:
        at = bisect_right(starts, ordinal) - 1
        return runs[at] if at >= 0 and ordinal < runs[at][1] else None

    low, high = bitmap.next_set(0), bitmap.previous_set(bitmap.size - 1)
    while low is not None and (around := run(low)) is not None:
        low = bitmap.next_set(around[1])
    while high is not None and (around := run(high)) is not None:
        high = bitmap.previous_set(around[0] - 1) if around[0] else None
    return () if low is None or high is None else (before + low, before + high)


def _around(used: list[int], size: int) -> tuple[int, int]:
    """The smallest aligned part of a power of four that has all of these: first and count."""
    low, high = (min(used), max(used)) if used else (0, 0)
    count = _LEAST
    while low // count != high // count:
        count *= 4
    count = min(count, size)
    return low // count * count, count


def _outside(before: int, ordinals: int, size: int) -> tuple[tuple[int, int], ...]:
    """The addresses that have no ordinal, as runs."""
    return tuple([run for run in ((0, before), (before + ordinals, size)) if run[0] < run[1]])


def _of_runs(runs: tuple[tuple[int, int], ...], size: int) -> Bitmap:
    found = Bitmap(size)
    for start, stop in runs:
        found.cursor = start
        found.acquire_ranges(stop - start)
    return found
