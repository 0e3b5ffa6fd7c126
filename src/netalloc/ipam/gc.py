"""Which leases belong to owners that are gone: two looks, with some time in between.

To look is to read all leases, so it is done in a view, which holds nothing up; what it finds is
then entered, or ended, in changes of a bounded size, each of which looks at its own part again.
"""

from __future__ import annotations

from netalloc.ipam.addresses import Addresses
from netalloc.light import NamedTuple
from netalloc.store.records import GcCandidate, Lease

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from netalloc.store.protocol import Transaction


class Look(NamedTuple):
    """What a look found: of whom to note that it was dead, to note it no longer, and to end."""

    fresh: list[GcCandidate]
    cleared: list[GcCandidate]
    dead: list[GcCandidate]


def look(addresses: Addresses, tx: Transaction, living: frozenset[str], grace: int) -> Look:
    """Judge every lease with an owner. O(leases)."""
    number, now = addresses.number, addresses.clock()
    noted = {
        suspect.ordinal: suspect
        for suspect in tx.table(GcCandidate).where("network", equal=(number,))
    }
    found = Look([], [], [])
    for lease in tx.table(Lease).where("network", equal=(number,)):
        suspect = noted.get(lease.ordinal)
        if lease.owner is None or lease.owner in living:
            if suspect is not None:
                found.cleared.append(suspect)
        elif suspect is None or suspect.generation != lease.generation:
            if suspect is not None:
                found.cleared.append(suspect)
            found.fresh.append(GcCandidate(number, lease.ordinal, lease.generation, now))
        elif now - suspect.seen_ns >= grace:
            found.dead.append(suspect)
    found.dead.sort()
    return found


def clear(tx: Transaction, cleared: Iterable[GcCandidate]) -> None:
    """Note them no longer, those that are still noted so."""
    table = tx.table(GcCandidate)
    table.remove([one for one in cleared if table.get(one.network, one.ordinal) == one])


def note(tx: Transaction, fresh: Iterable[GcCandidate]) -> None:
    """Note those that are still in force and not noted by another."""
    table = tx.table(GcCandidate)
    table.add(
        [
            one
            for one in fresh
            if table.get(one.network, one.ordinal) is None and _lease(tx, one) is not None
        ]
    )


def dead(tx: Transaction, suspects: Iterable[GcCandidate]) -> list[Lease]:
    """The leases of those that were neither released nor asked for again since the look."""
    table = tx.table(GcCandidate)
    found = [_lease(tx, one) for one in suspects if table.get(one.network, one.ordinal) == one]
    return [lease for lease in found if lease is not None]


def parts(records: list[GcCandidate], size: int) -> Iterator[list[GcCandidate]]:
    """The records, so many at a time."""
    return (records[i : i + size] for i in range(0, len(records), size))


def _lease(tx: Transaction, one: GcCandidate) -> Lease | None:
    lease = tx.table(Lease).get(one.network, one.ordinal)
    return lease if lease is not None and lease.generation == one.generation else None
