"""What is done with leases from time to time: collecting the dead, looking back."""

from collections.abc import Collection
from datetime import datetime, timezone
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from netalloc.changes import Change
from netalloc.errors import NetallocError, OutOfRangeError
from netalloc.leasing import Leasing
from netalloc.store.addresses import SECOND
from netalloc.store.protocol import Transaction
from netalloc.store.records import Lease, Past, Suspect


class Holding(NamedTuple):
    """Who held an address, from when until when (UTC); `end` None: he still does."""

    owner: str | None
    key: str | None
    start: datetime
    end: datetime | None


def collect(leasing: Leasing, alive: Collection[str], grace: float) -> list[Lease]:
    """End the leases whose owners were dead at two looks, `grace` seconds or more apart.

    The first look only notes them. A lease that was made, or asked for again, since then is
    another one, or is noted no longer. Leases without an owner are nobody's to judge.
    Returns those that were ended. O(leases).
    """
    if not 0 <= grace < float("inf"):
        raise OutOfRangeError(f"a grace period of {grace} seconds is not 0 or more")
    living = frozenset(alive)

    def change(made: Change) -> list[Lease]:
        dead = _look(leasing, made.tx, living, int(grace * SECOND))
        leasing.end(made, dead)
        return dead

    try:
        return leasing.make("gc", change)
    except NetallocError:
        # Some mapping cannot be removed: end what can be ended, one by one.
        limit = int(grace * SECOND)
        dead = leasing.make("gc", lambda made: _look(leasing, made.tx, living, limit))
        leasing.release_all(dead)
        return dead


def _look(leasing: Leasing, tx: Transaction, living: frozenset[str], grace: int) -> list[Lease]:
    number, now = leasing.addresses.number, leasing.addresses.clock()
    noted = {
        suspect.ordinal: suspect for suspect in tx.table(Suspect).where("network", equal=(number,))
    }
    dead, fresh, cleared = [], [], []
    for lease in tx.table(Lease).where("network", equal=(number,)):
        suspect = noted.get(lease.ordinal)
        if lease.owner is None or lease.owner in living:
            if suspect is not None:
                cleared.append(suspect)
        elif suspect is None:
            fresh.append(Suspect(number, lease.ordinal, lease.generation, now))
        elif suspect.generation != lease.generation:
            cleared.append(suspect)
            fresh.append(Suspect(number, lease.ordinal, lease.generation, now))
        elif now - suspect.seen_ns >= grace:
            dead.append(lease)
    dead.sort()
    tx.table(Suspect).remove(cleared)
    tx.table(Suspect).add(fresh)
    return dead


def history(
    leasing: Leasing, ip: IPv4Address | IPv6Address | str, at: datetime | None
) -> list[Holding]:
    """Who held an address, oldest first, or who did at one moment: by the wall clock."""
    ordinal, number = leasing.plan.ordinal(ip), leasing.addresses.number

    def view(tx: Transaction) -> list[Holding]:
        past = tx.table(Past).where("network", "ordinal", equal=(number, ordinal))
        found = [
            Holding(one.owner, one.key, _when(one.start_ns), _when(one.end_ns))
            for one in sorted(past)
        ]
        lease = tx.table(Lease).get(number, ordinal)
        if lease is not None:
            found.append(Holding(lease.owner, lease.key, _when(lease.since_ns), None))
        return found

    found = leasing.look(view)
    if at is None:
        return found
    at = at.astimezone(timezone.utc)
    return [one for one in found if one.start <= at and (one.end is None or at < one.end)]


def _when(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / SECOND, timezone.utc)
