"""What held an address, and when: the leases that have ended, looked up."""

from __future__ import annotations

from datetime import datetime, timezone

from netalloc.errors import InvalidValueError, OutOfRangeError
from netalloc.ipam.clock import SECOND
from netalloc.light import NamedTuple
from netalloc.store.records import EndedLease, Lease
from netalloc.values import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.store.protocol import Transaction


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


def history(
    tx: Transaction, number: int, ordinal: int, at: datetime | None = None
) -> list[PastLease]:
    """What held an address, oldest first, or what did at one moment in UTC: by the wall clock."""
    past = tx.table(EndedLease).where("network", "ordinal", equal=(number, ordinal))
    found = [
        PastLease(one.owner, one.key, moment(one.start_ns), moment(one.end_ns))
        for one in sorted(past)
    ]
    lease = tx.table(Lease).get(number, ordinal)
    if lease is not None:
        found.append(PastLease(lease.owner, lease.key, moment(lease.since_ns), None))
    if at is None:
        return found
    return [one for one in found if one.start <= at and (one.end is None or at < one.end)]


def moment(ns: int) -> datetime:
    """A moment in UTC, of nanoseconds of the wall clock."""
    return datetime.fromtimestamp(ns / SECOND, timezone.utc)
