"""Which address comes next, and what becomes of a released one: over any store.

The bitmap of a network has a bit set for every address that must not be given now: leased,
reserved, cooling, or never given at all. The tables say which of these it is.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address

from netalloc._alloc import IPAllocator
from netalloc.errors import (
    ExhaustedError,
    InUseError,
    NotAllocatedError,
    OutOfRangeError,
    StoreError,
)
from netalloc.ipam.clock import SECOND, boot_clock
from netalloc.ipam.history import remember
from netalloc.store.protocol import StoredBitmap, Transaction
from netalloc.store.records import (
    Cooldown,
    GcCandidate,
    Label,
    LastHolder,
    Lease,
    Reservation,
)

_DRAIN = 8  # cooled-down addresses taken back at each step: more than one, so that it keeps up


class Addresses:
    """The addresses of one network, `number` in the store, laid out by `plan`.

    A released address is not given again for `cooldown` seconds, and its owner gets it
    again if he asks within `sticky` seconds and it is free.
    """

    def __init__(
        self,
        number: int,
        plan: IPAllocator,
        *,
        cooldown: float = 0.0,
        sticky: float = 0.0,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.number = number
        self.plan = plan
        self.clock = boot_clock if clock is None else clock
        self._cooldown = int(cooldown * SECOND)
        self._sticky = int(sticky * SECOND)
        self._name = f"addresses/{number}"
        self._excluded = plan.excluded()

    def bitmap(self, tx: Transaction) -> StoredBitmap:
        """The network's bitmap; one that is not there yet is made from the tables."""
        bitmap = tx.bitmap(self._name, self.plan.size)
        return bitmap if not self._excluded or len(bitmap) else self.rebuild(tx)

    def rebuild(self, tx: Transaction) -> StoredBitmap:
        """Make the bitmap anew from the tables; the cursor stays where it can."""
        cursor = tx.bitmap(self._name, self.plan.size).cursor
        tx.drop(self._name)
        bitmap = tx.bitmap(self._name, self.plan.size)
        for start, stop in self._excluded:
            for ordinal in range(start, stop):
                bitmap.reserve(ordinal)
        number = (self.number,)
        taken = {lease.ordinal for lease in tx.table(Lease).where("network", equal=number)}
        taken.update(r.ordinal for r in tx.table(Reservation).where("network", equal=number))
        taken.update(r.ordinal for r in tx.table(Cooldown).where("network", equal=number))
        for ordinal in sorted(taken):
            bitmap.reserve(ordinal)
        bitmap.cursor = cursor if cursor < self.plan.size else 0
        return bitmap

    def lease(
        self,
        tx: Transaction,
        owner: str | None = None,
        key: str | None = None,
        ip: IPv4Address | IPv6Address | str | None = None,
        labels: Mapping[str, str] | None = None,
        allow_cooling: bool = False,
        publications: int = 0,
    ) -> tuple[Lease, bool]:
        """A lease, and whether it is a new one: the same owner and key get the same again.

        A new one is entered with that many publications, which are for the caller to make.

        Without `ip`: the address reserved for the owner, the one he had last, or the next
        free one, in this order. `allow_cooling` takes, when nothing else is left, the address that
        has cooled longest. Raises ExhaustedError, InUseError, OutOfRangeError.
        """
        ordinal = None if ip is None else self.plan.ordinal(ip)
        if key is not None:
            held = tx.table(Lease).where(
                "network", "owner", "key", equal=(self.number, owner, key), limit=1
            )
            if held:
                if ordinal is not None and ordinal != held[0].ordinal:
                    raise InUseError(
                        f"{owner} holds {self.plan.address(held[0].ordinal)} as {key}, "
                        f"so it cannot have {ip} too",
                        owner,
                    )
                self._clear_suspicion(tx, held[0])
                return held[0], False
        bitmap = self.bitmap(tx)
        if self._cooldown:
            self._drain(tx, bitmap, _DRAIN)
        if ordinal is not None:
            self._take(tx, bitmap, ordinal, owner, allow_cooling)
        else:
            ordinal = self._own(tx, bitmap, owner, key) if owner is not None else None
            if ordinal is None:
                ordinal = self._next(tx, bitmap, allow_cooling)
        generation = tx.next("generation")
        now = time.time_ns()
        lease = Lease(self.number, ordinal, generation, publications, owner, key, now)
        if self._sticky:
            self._forget_former(tx, ordinal)
        tx.table(Lease).add((lease,))
        if labels:
            self._label(tx, ordinal, labels)
        return lease, True

    def lease_many(
        self,
        tx: Transaction,
        n: int,
        owner: str | None = None,
        labels: Mapping[str, str] | None = None,
        publications: int = 0,
    ) -> list[Lease]:
        """The next n free addresses, or none of them: ExhaustedError."""
        bitmap = self.bitmap(tx)
        if self._cooldown:
            self._drain(tx, bitmap, n + _DRAIN)
        if n > bitmap.size - len(bitmap):
            self._drain(tx, bitmap, -1)
            if n > bitmap.size - len(bitmap):
                raise self._exhausted(tx, f"{n} addresses", bitmap)
        generation = tx.next("generation", n)
        now = time.time_ns()
        leases = [
            Lease(self.number, ordinal, generation + i, publications, owner, None, now)
            for i, ordinal in enumerate(
                [o for start, stop in bitmap.acquire_ranges(n) for o in range(start, stop)]
            )
        ]
        if self._sticky:
            for lease in leases:
                self._forget_former(tx, lease.ordinal)
        tx.table(Lease).add(leases)
        if labels:
            for lease in leases:
                self._label(tx, lease.ordinal, labels)
        return leases

    def current(self, tx: Transaction, lease: Lease) -> bool:
        """Whether that very lease, and not a later one of the same address, is in force."""
        held = tx.table(Lease).get(self.number, lease.ordinal)
        if held is None and lease.ordinal in self.bitmap(tx):
            self._explain(tx, lease.ordinal)
        return held is not None and held.generation == lease.generation

    def end(self, tx: Transaction, leases: Iterable[Lease]) -> None:
        """End leases that are in force: the addresses cool down, or are free at once."""
        bitmap = self.bitmap(tx)
        table = tx.table(Lease)
        # As they are now: their publications have changed.
        leases = [table.get(lease.network, lease.ordinal) or lease for lease in leases]
        table.remove(leases)
        now, wall = self.clock(), time.time_ns()
        labels, reservations = tx.table(Label), tx.table(Reservation)
        former = tx.table(LastHolder)
        cooling = []
        for lease in leases:
            ordinal = lease.ordinal
            labels.remove(labels.where("network", "ordinal", equal=(self.number, ordinal)))
            self._clear_suspicion(tx, lease)
            if reservations.get(self.number, ordinal) is not None:
                continue
            if self._cooldown:
                cooling.append(Cooldown(self.number, ordinal, now + self._cooldown))
            else:
                bitmap.release(ordinal)
            if self._sticky and lease.owner is not None:
                until = now + self._sticky
                self._forget_former(tx, ordinal)
                former.add((LastHolder(self.number, ordinal, lease.owner, lease.key, until),))
        tx.table(Cooldown).add(cooling)
        if self._sticky:
            self._forget_expired(tx, now, len(leases) + 1)
        remember(tx, leases, wall)

    def reserve(
        self, tx: Transaction, ip: IPv4Address | IPv6Address | str, owner: str | None
    ) -> Reservation:
        """Keep an address for an owner (None: from everybody) until it is unreserved.

        One that the owner holds already may be reserved for him. Raises InUseError.
        """
        ordinal = self.plan.ordinal(ip)
        bitmap = self.bitmap(tx)
        held = tx.table(Lease).get(self.number, ordinal)
        if held is None or held.owner != owner or owner is None:
            self._take(tx, bitmap, ordinal, owner, allow_cooling=True, reserving=True)
        elif tx.table(Reservation).get(self.number, ordinal) is not None:
            raise InUseError(f"{ip} is reserved for {owner} already", owner)
        self._forget_former(tx, ordinal)
        reservation = Reservation(self.number, ordinal, owner, time.time_ns())
        tx.table(Reservation).add((reservation,))
        return reservation

    def unreserve(self, tx: Transaction, ip: IPv4Address | IPv6Address | str) -> None:
        """Keep an address no longer; whoever holds it goes on holding it."""
        ordinal = self.plan.ordinal(ip)
        reservation = tx.table(Reservation).get(self.number, ordinal)
        if reservation is None:
            raise NotAllocatedError(f"{ip} is not reserved")
        tx.table(Reservation).remove((reservation,))
        if tx.table(Lease).get(self.number, ordinal) is None:
            self.bitmap(tx).release(ordinal)

    def _own(
        self, tx: Transaction, bitmap: StoredBitmap, owner: str, key: str | None
    ) -> int | None:
        """An address that waits for this owner, taken; None where there is none."""
        leases = tx.table(Lease)
        for kept in tx.table(Reservation).where("network", "owner", equal=(self.number, owner)):
            if leases.get(self.number, kept.ordinal) is None:
                return kept.ordinal
        if not self._sticky:
            return None
        last = (self.number, owner, key)
        for had in tx.table(LastHolder).where("network", "owner", "key", equal=last):
            if had.until_ns < self.clock():
                continue
            cooling = tx.table(Cooldown).get(self.number, had.ordinal)
            if cooling is not None:
                tx.table(Cooldown).remove((cooling,))
                return had.ordinal
            if had.ordinal not in bitmap:
                bitmap.reserve(had.ordinal)
                return had.ordinal
        return None

    def _next(self, tx: Transaction, bitmap: StoredBitmap, allow_cooling: bool) -> int:
        if len(bitmap) == bitmap.size:
            self._drain(tx, bitmap, -1)
            if len(bitmap) == bitmap.size:
                longest = tx.table(Cooldown).where("network", equal=(self.number,), limit=1)
                if not allow_cooling or not longest:
                    raise self._exhausted(tx, "free address", bitmap)
                tx.table(Cooldown).remove(longest)
                return longest[0].ordinal
        return bitmap.acquire()

    def _take(
        self,
        tx: Transaction,
        bitmap: StoredBitmap,
        ordinal: int,
        owner: str | None,
        allow_cooling: bool,
        reserving: bool = False,
    ) -> None:
        """Take that very address, or say who or what is in the way."""
        if ordinal not in bitmap:
            bitmap.reserve(ordinal)
            return
        ip = self.plan.address(ordinal)
        lease = tx.table(Lease).get(self.number, ordinal)
        if lease is not None:
            raise InUseError(f"{ip} is held by {lease.owner or 'somebody'}", lease.owner)
        kept = tx.table(Reservation).get(self.number, ordinal)
        if kept is not None:
            if reserving or kept.owner is None or kept.owner != owner:
                raise InUseError(f"{ip} is reserved for {kept.owner or 'nobody'}", kept.owner)
            return
        cooling = tx.table(Cooldown).get(self.number, ordinal)
        if cooling is not None:
            left = cooling.ready_ns - self.clock()
            had = tx.table(LastHolder).get(self.number, ordinal)
            own = had is not None and owner is not None and had.owner == owner
            if left > 0 and not allow_cooling and not own:
                raise InUseError(f"{ip} is cooling down for another {left / SECOND:.1f} s")
            tx.table(Cooldown).remove((cooling,))
            return
        self._explain(tx, ordinal)
        raise OutOfRangeError(f"{ip} is an address of {self.plan.network} that is never given")

    def _explain(self, tx: Transaction, ordinal: int) -> None:
        """Raise StoreError for a bit that is set without anybody or anything behind it."""
        if any(start <= ordinal < stop for start, stop in self._excluded):
            return
        kept = tx.table(Reservation).get(self.number, ordinal)
        if kept is not None or tx.table(Cooldown).get(self.number, ordinal) is not None:
            return
        raise StoreError(
            f"{self.plan.address(ordinal)} is marked as taken, but no record says by whom: "
            "check() says what else is wrong, repair() mends it"
        )

    def _drain(self, tx: Transaction, bitmap: StoredBitmap, limit: int) -> None:
        """Take back addresses that have cooled down."""
        cooling = tx.table(Cooldown)
        oldest = cooling.where("network", equal=(self.number,), limit=limit)
        now = self.clock()
        ready = [record for record in oldest if record.ready_ns <= now]
        cooling.remove(ready)
        for record in ready:
            bitmap.release(record.ordinal)

    def _exhausted(self, tx: Transaction, what: str, bitmap: StoredBitmap) -> ExhaustedError:
        cooling = tx.table(Cooldown).where("network", equal=(self.number,))
        free = bitmap.size - len(bitmap)
        text = f"no {what} left in {self.plan.network}: {free} of {self.plan.capacity} are free"
        if cooling:
            left = (min(record.ready_ns for record in cooling) - self.clock()) / SECOND
            text += f", {len(cooling)} are cooling down, the first is ready in {left:.1f} s"
        return ExhaustedError(text)

    def _label(self, tx: Transaction, ordinal: int, labels: Mapping[str, str]) -> None:
        tx.table(Label).add(
            Label(self.number, ordinal, name, value) for name, value in labels.items()
        )

    def _forget_former(self, tx: Transaction, ordinal: int) -> None:
        had = tx.table(LastHolder).get(self.number, ordinal)
        if had is not None:
            tx.table(LastHolder).remove((had,))

    def _forget_expired(self, tx: Transaction, now: int, limit: int) -> None:
        former = tx.table(LastHolder)
        oldest = former.where("network", equal=(self.number,), limit=limit)
        former.remove([had for had in oldest if had.until_ns < now])

    def _clear_suspicion(self, tx: Transaction, lease: Lease) -> None:
        suspect = tx.table(GcCandidate).get(self.number, lease.ordinal)
        if suspect is not None:
            tx.table(GcCandidate).remove((suspect,))
