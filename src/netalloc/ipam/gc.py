"""Which leases belong to owners that are gone: two looks, with some time in between."""

from __future__ import annotations

from netalloc.ipam.addresses import Addresses
from netalloc.store.records import GcCandidate, Lease

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.store.protocol import Transaction


def expired(
    addresses: Addresses, tx: Transaction, living: frozenset[str], grace: int
) -> list[Lease]:
    number, now = addresses.number, addresses.clock()
    noted = {
        suspect.ordinal: suspect
        for suspect in tx.table(GcCandidate).where("network", equal=(number,))
    }
    dead, fresh, cleared = [], [], []
    for lease in tx.table(Lease).where("network", equal=(number,)):
        suspect = noted.get(lease.ordinal)
        if lease.owner is None or lease.owner in living:
            if suspect is not None:
                cleared.append(suspect)
        elif suspect is None:
            fresh.append(GcCandidate(number, lease.ordinal, lease.generation, now))
        elif suspect.generation != lease.generation:
            cleared.append(suspect)
            fresh.append(GcCandidate(number, lease.ordinal, lease.generation, now))
        elif now - suspect.seen_ns >= grace:
            dead.append(lease)
    dead.sort()
    tx.table(GcCandidate).remove(cleared)
    tx.table(GcCandidate).add(fresh)
    return dead
