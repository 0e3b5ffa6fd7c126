"""Addresses that cool down: taken back in time, a bounded number at each allocation."""

from __future__ import annotations

from netalloc.store.records import Cooldown, Reservation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.store.protocol import StoredBitmap, Transaction

_AT_ONCE = 8  # taken back at an allocation besides what it needs: so it keeps up


def expire_cooldowns(
    tx: Transaction, number: int, now: int, bitmap: StoredBitmap, needed: int = 1
) -> None:
    """Take back addresses that have cooled down: some, and more until as many are free.

    A bounded number of steps for each that is needed, but for reserved ones: these cool down
    and stay taken. Where the oldest one is not ready yet, none is, however many are needed.
    """
    cooling, reservations = tx.table(Cooldown), tx.table(Reservation)
    wanted, seen, limit = needed - 1 + _AT_ONCE, 0, _AT_ONCE
    while seen < wanted or bitmap.size - len(bitmap) < needed:
        oldest = cooling.where("network", equal=(number,), limit=limit)
        ready = [record for record in oldest if record.ready_ns <= now]
        cooling.remove(ready)
        for record in ready:
            if reservations.get(number, record.ordinal) is None:
                bitmap.release(record.ordinal)
        if len(ready) < limit:
            return
        seen, limit = seen + limit, 2 * limit


def longest_cooling(tx: Transaction, number: int) -> int | None:
    """The address that has cooled longest and is not reserved, cooling no more; or None.

    O(reserved ones that have cooled as long).
    """
    cooling, reservations = tx.table(Cooldown), tx.table(Reservation)
    seen, limit = 0, _AT_ONCE
    while True:
        oldest = cooling.where("network", equal=(number,), limit=limit)
        for record in oldest[seen:]:
            if reservations.get(number, record.ordinal) is None:
                cooling.remove((record,))
                return record.ordinal
        if len(oldest) < limit:
            return None
        seen, limit = limit, 2 * limit
