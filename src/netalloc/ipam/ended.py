"""Leases that have ended are remembered, up to a number and an age."""

from __future__ import annotations

from netalloc.ipam.clock import SECOND
from netalloc.store.records import EndedLease, Lease, new_ended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from netalloc.store.protocol import Transaction

HISTORY = 10_000  # ended leases that are remembered, in all networks of a store
HISTORY_AGE = 30 * 86400 * SECOND


def remember(tx: Transaction, leases: Sequence[Lease], wall: int) -> None:
    """Enter ended leases in the history, and drop what is too old or too much of it."""
    past, n = tx.table(EndedLease), len(leases)
    number, ended = tx.next("past", n), []
    first, since = number + n - HISTORY, wall - HISTORY_AGE
    if n >= HISTORY:  # only the last of them are written, 10 us each in a file
        past.clear()
        number, leases = first, leases[-HISTORY:]
    for network, ordinal, generation, _, owner, key, since_ns in leases:
        ended.append(new_ended((number, network, ordinal, generation, owner, key, since_ns, wall)))
        number += 1
    past.add(ended)

    # One is looked at, as a rule; two for one go, so that a limit that was lowered is reached too.
    for one in past.oldest(1):
        if one.number < first or one.end_ns < since:
            oldest = past.oldest(2 * n)
            past.remove([one for one in oldest if one.number < first or one.end_ns < since])
