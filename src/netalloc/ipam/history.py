"""Leases that have ended: remembered, up to a number and an age, and looked up again."""

from __future__ import annotations

from datetime import datetime, timezone

from netalloc.errors import InvalidValueError, OutOfRangeError
from netalloc.ipam.clock import SECOND
from netalloc.light import NamedTuple
from netalloc.store.records import EndedLease, Lease, new_ended
from netalloc.values import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from netalloc.store.protocol import Transaction

HISTORY = 10_000  # ended leases that are remembered, in all networks of a store
HISTORY_AGE = 30 * 86400 * SECOND


class PastLease(NamedTuple):
    """What held an address, from when until when (UTC); `end` None: it still does."""

    owner: str | None
    key: str | None
    start: datetime
    end: datetime | None


def as_moment(value: object, what: str) -> datetime:
    """A moment in UTC; a datetime without a zone is by the host's."""
    if not isinstance(value, datetime):
        raise InvalidValueError(f"{what} {shown(value)} is not a datetime")
    try:
        return value.astimezone(timezone.utc)
    except Exception as error:  # a zone is the caller's code
        raise OutOfRangeError(f"{what} {shown(value)} is no moment in UTC: {error!r}") from error


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

    def is_over(record: EndedLease) -> bool:
        return record.number < first or record.end_ns < since

    # One is looked at, as a rule; two for one go, so that a limit that was lowered is reached too.
    if any(map(is_over, past.oldest(1))):
        past.remove(filter(is_over, past.oldest(2 * n)))


def history(
    tx: Transaction, number: int, ordinal: int, at: datetime | None = None
) -> list[PastLease]:
    """What held an address, oldest first, or what did at one moment in UTC: by the wall clock."""
    past = tx.table(EndedLease).where("network", "ordinal", equal=(number, ordinal))
    found = [
        PastLease(one.owner, one.key, _when(one.start_ns), _when(one.end_ns))
        for one in sorted(past)
    ]
    lease = tx.table(Lease).get(number, ordinal)
    if lease is not None:
        found.append(PastLease(lease.owner, lease.key, _when(lease.since_ns), None))
    if at is None:
        return found
    return [one for one in found if one.start <= at and (one.end is None or at < one.end)]


def _when(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / SECOND, timezone.utc)
