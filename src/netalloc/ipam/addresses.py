"""Which address comes next, and what becomes of a released one: over any store.

The bitmap of a network has a bit set for every address that must not be given now: leased,
reserved, cooling down, or never given at all. The tables say which of these it is; an address
may be two of them, as one that is reserved and cools down is.
"""

from __future__ import annotations

import time

from netalloc.errors import (
    ExhaustedError,
    InUseError,
    NotAllocatedError,
    OutOfRangeError,
)
from netalloc.ipam import allowances
from netalloc.ipam.clock import SECOND, boot_clock
from netalloc.ipam.cooling import expire_cooldowns, longest_cooling
from netalloc.ipam.ended import remember
from netalloc.ipam.networks import subnets_of
from netalloc.ipam.refusals import exhausted, explain, for_owner
from netalloc.store.records import (
    Allowance,
    Attachment,
    Cooldown,
    EndedLease,
    GcCandidate,
    Label,
    LastHolder,
    Lease,
    Network,
    Reservation,
    new_lease,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from netalloc.address_values import IP
    from netalloc.ipam.subnets import Subnets
    from netalloc.store.protocol import StoredBitmap, Transaction


class Addresses:
    """The addresses of one network, `number` in the store, laid out by `subnets`.

    A released address is not given again for `cooldown_ns`, and its last owner gets it again
    when it asks within `sticky_ns` and the address is free.
    """

    def __init__(
        self,
        number: int,
        subnets: Subnets,
        *,
        cooldown_ns: int = 0,
        sticky_ns: int = 0,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.number = number
        self.subnets = subnets
        self.clock = boot_clock if clock is None else clock
        self._cooldown = cooldown_ns
        self._sticky = sticky_ns
        self._name = f"addresses/{number}"
        self._size = subnets.size
        self._excluded = subnets.excluded()

    @classmethod
    def of(cls, network: Network) -> Addresses:
        """The addresses of a network as its record configures them."""
        return cls(
            network.number,
            subnets_of(network),
            cooldown_ns=network.cooldown_ns,
            sticky_ns=network.sticky_ns,
        )

    def bitmap(self, tx: Transaction) -> StoredBitmap:
        """The network's bitmap; one that is not there yet is made from the tables."""
        bitmap = tx.bitmap(self._name, self._size)
        return bitmap if len(bitmap) or not self._excluded else self.rebuild(tx)

    def rebuild(self, tx: Transaction) -> StoredBitmap:
        """Make the bitmap anew from the tables; the cursor stays where it can. O(held)."""
        cursor = tx.bitmap(self._name, self.subnets.size).cursor
        tx.drop(self._name)
        bitmap = tx.bitmap(self._name, self.subnets.size)
        for start, stop in self._excluded:
            bitmap.cursor = start  # run by run: a /9 may be excluded
            bitmap.acquire_ranges(stop - start)
        number = (self.number,)
        taken = {lease.ordinal for lease in tx.table(Lease).where("network", equal=number)}
        taken.update(r.ordinal for r in tx.table(Reservation).where("network", equal=number))
        taken.update(r.ordinal for r in tx.table(Cooldown).where("network", equal=number))
        for ordinal in sorted(taken):
            if ordinal < self.subnets.size and ordinal not in bitmap:
                bitmap.reserve(ordinal)
        bitmap.cursor = cursor if cursor < self.subnets.size else 0
        return bitmap

    def known(
        self, tx: Transaction, owner: str | None, key: str | None, ip: IP | None = None
    ) -> Lease | None:
        """The lease that the same owner and key hold already.

        Raises InUseError where they ask for another address than they hold.
        """
        if key is None:
            return None
        held = tx.table(Lease).where(
            "network", "owner", "key", equal=(self.number, owner, key), limit=1
        )
        if not held:
            return None
        lease = held[0]
        if ip is not None and self.subnets.ordinal(ip) != lease.ordinal:
            raise InUseError(
                f"{owner} holds {self.subnets.address(lease.ordinal)} as {key}, "
                f"so it cannot have {ip} too",
                owner,
            )
        self._clear_candidate(tx, lease)
        return lease

    def lease(
        self,
        tx: Transaction,
        owner: str | None,
        key: str | None = None,
        ip: IP | None = None,
        labels: dict[str, str] | None = None,
        publications: int = 0,
        allow_cooling: bool = False,
    ) -> Lease:
        """A new lease, entered with as many publications as there will be.

        Without `ip`: the address reserved for the owner, the one it had last, or the next
        free one, in this order. `allow_cooling` takes, when nothing else is left, the address
        that has cooled longest. Raises ExhaustedError, InUseError, OutOfRangeError.
        """
        ordinal = None if ip is None else self.subnets.ordinal(ip)
        bitmap = tx.bitmap(self._name, self._size)
        if not len(bitmap):  # it is new
            bitmap = self.bitmap(tx)
        if self._cooldown:
            expire_cooldowns(tx, self.number, self.clock(), bitmap)
        if ordinal is not None:
            self._take(tx, bitmap, ordinal, owner, allow_cooling)
        elif owner is not None and (self._sticky or tx.table(Reservation)):
            ordinal = self._waiting(tx, bitmap, owner, key, allow_cooling)
        if ordinal is None:
            try:
                ordinal = bitmap.acquire()
            except ExhaustedError:
                ordinal = longest_cooling(tx, self.number) if allow_cooling else None
                if ordinal is None:
                    raise exhausted(self, tx, "free address", bitmap) from None
        generation = tx.next("generation")
        lease = new_lease(
            (self.number, ordinal, generation, publications, owner, key, time.time_ns())
        )
        if self._sticky:
            self._forget_last_holder(tx, ordinal)
        tx.table(Lease).add((lease,))
        if labels:
            self._label(tx, ordinal, labels)
        return lease

    def lease_many(
        self,
        tx: Transaction,
        n: int,
        owner: str | None = None,
        labels: dict[str, str] | None = None,
        publications: int = 0,
    ) -> list[Lease]:
        """The next n free addresses, or none of them: ExhaustedError."""
        bitmap = self.bitmap(tx)
        if self._cooldown and n <= self.subnets.capacity:
            expire_cooldowns(tx, self.number, self.clock(), bitmap, n)
        if n > bitmap.size - len(bitmap):
            raise exhausted(self, tx, f"{n} addresses", bitmap)
        generation = tx.next("generation", n) if n else 0
        now = time.time_ns()
        ordinals = [o for start, stop in bitmap.acquire_ranges(n) for o in range(start, stop)]
        leases = [
            new_lease((self.number, ordinal, generation + i, publications, owner, None, now))
            for i, ordinal in enumerate(ordinals)
        ]
        if self._sticky:
            for lease in leases:
                self._forget_last_holder(tx, lease.ordinal)
        tx.table(Lease).add(leases)
        if labels:
            for lease in leases:
                self._label(tx, lease.ordinal, labels)
        return leases

    def in_force(self, tx: Transaction, lease: Lease) -> Lease | None:
        """That very lease as it is now; None where it has ended, whatever holds the address."""
        held = tx.table(Lease).get(self.number, lease.ordinal)
        if held is None and lease.ordinal in self.bitmap(tx):
            explain(self, tx, lease.ordinal)
        return held if held is not None and held.generation == lease.generation else None

    def end(self, tx: Transaction, leases: Sequence[Lease]) -> None:
        """What becomes of leases that were taken out: they cool down, or are free at once."""
        bitmap, number, table = self.bitmap(tx), self.number, tx.table
        labels, candidates, reservations = table(Label), table(GcCandidate), table(Reservation)
        attachments, allowed = table(Attachment), table(Allowance)
        cooldown, sticky = self._cooldown, self._sticky
        now = self.clock() if cooldown or sticky else 0
        cooling = []
        for lease in leases:
            ordinal = lease.ordinal
            if labels:
                labels.remove(labels.where("network", "ordinal", equal=(number, ordinal)))
            if candidates:
                self._clear_candidate(tx, lease)
            if attachments and (attached := attachments.get(number, ordinal)) is not None:
                attachments.remove((attached,))
            if allowed and (pairs := allowances.of(tx, number, ordinal)):
                allowed.remove(pairs)
            if cooldown:
                # A reserved one too: it may be unreserved before its time has come.
                cooling.append(Cooldown(number, ordinal, now + cooldown))
            elif not reservations or reservations.get(number, ordinal) is None:
                bitmap.release(ordinal)
            if sticky and lease.owner is not None:
                self._forget_last_holder(tx, ordinal)
                had = LastHolder(number, ordinal, lease.owner, lease.key, now + sticky)
                table(LastHolder).add((had,))
        if cooling:
            tx.table(Cooldown).add(cooling)
        if sticky:
            holders = table(LastHolder)
            oldest = holders.where("network", equal=(number,), limit=len(leases) + 1)
            holders.remove([had for had in oldest if had.until_ns < now])
        remember(tx, leases, time.time_ns())

    def reserve(self, tx: Transaction, ip: IP, owner: str | None) -> Reservation:
        """Keep an address for an owner (None: from everyone) until it is unreserved.

        One that is reserved for it, or leased by it, already is no error. Raises InUseError.
        """
        ordinal = self.subnets.ordinal(ip)
        bitmap = self.bitmap(tx)
        kept = tx.table(Reservation).get(self.number, ordinal)
        if kept is not None:
            if kept.owner != owner:
                raise InUseError(f"{ip} is reserved{for_owner(kept.owner)}", kept.owner)
            return kept
        held = tx.table(Lease).get(self.number, ordinal)
        if held is None:
            # Kept from others while it cools down as well, and as long as that takes.
            if tx.table(Cooldown).get(self.number, ordinal) is None:
                self._take(tx, bitmap, ordinal, owner, allow_cooling=False)
        elif owner is None or held.owner != owner:
            raise InUseError(
                f"{ip} is held by {held.owner or 'a lease without an owner'}", held.owner
            )
        self._forget_last_holder(tx, ordinal)
        reservation = Reservation(self.number, ordinal, owner, time.time_ns())
        tx.table(Reservation).add((reservation,))
        return reservation

    def unreserve(self, tx: Transaction, ip: IP) -> None:
        """Keep an address no longer; a lease of it goes on, and so does its cool-down."""
        ordinal = self.subnets.ordinal(ip)
        reservation = tx.table(Reservation).get(self.number, ordinal)
        if reservation is None:
            raise NotAllocatedError(f"{ip} is not reserved")
        tx.table(Reservation).remove((reservation,))
        if tx.table(Lease).get(self.number, ordinal) is not None:
            return
        cooling = tx.table(Cooldown).get(self.number, ordinal)
        if cooling is not None:
            if cooling.ready_ns > self.clock():
                return
            tx.table(Cooldown).remove((cooling,))
        self.bitmap(tx).release(ordinal)

    def cooling_for(self, tx: Transaction, ordinal: int) -> float:
        """The seconds that an address still cools down; 0 where it does not."""
        cooling = tx.table(Cooldown).get(self.number, ordinal)
        return 0.0 if cooling is None else max(0.0, (cooling.ready_ns - self.clock()) / SECOND)

    def _waiting(
        self,
        tx: Transaction,
        bitmap: StoredBitmap,
        owner: str,
        key: str | None,
        allow_cooling: bool,
    ) -> int | None:
        """An address that waits for this owner, taken; None where there is none."""
        leases = tx.table(Lease)
        refused: InUseError | None = None
        kept_for = tx.table(Reservation).where("network", "owner", equal=(self.number, owner))
        for kept in sorted(kept_for) if kept_for else ():
            if leases.get(self.number, kept.ordinal) is None:
                try:
                    self._end_cooldown(tx, kept.ordinal, owner, allow_cooling)
                except InUseError as error:
                    refused = refused or error  # another one may be ready
                    continue
                return kept.ordinal
        if refused is not None:
            raise refused
        if not self._sticky:
            return None
        last = (self.number, owner, key)
        held_last = tx.table(LastHolder).where("network", "owner", "key", equal=last)
        for had in sorted(held_last, key=lambda one: (-one.until_ns, one.ordinal)):
            if had.until_ns < self.clock():
                break
            if tx.table(Reservation).get(self.number, had.ordinal) is not None:
                continue
            if self._end_cooldown(tx, had.ordinal, owner, allow_cooling=True):
                return had.ordinal
            if had.ordinal not in bitmap:
                bitmap.reserve(had.ordinal)
                return had.ordinal
        return None

    def _take(
        self,
        tx: Transaction,
        bitmap: StoredBitmap,
        ordinal: int,
        owner: str | None,
        allow_cooling: bool,
    ) -> None:
        """Take that very address, or say who or what is in the way."""
        if ordinal not in bitmap:
            bitmap.reserve(ordinal)
            return
        ip = self.subnets.address(ordinal)
        lease = tx.table(Lease).get(self.number, ordinal)
        if lease is not None:
            raise InUseError(
                f"{ip} is held by {lease.owner or 'a lease without an owner'}", lease.owner
            )
        kept = tx.table(Reservation).get(self.number, ordinal)
        if kept is not None:
            if kept.owner is None or kept.owner != owner:
                raise InUseError(f"{ip} is reserved{for_owner(kept.owner)}", kept.owner)
            self._end_cooldown(tx, ordinal, owner, allow_cooling)
            return
        if self._end_cooldown(tx, ordinal, owner, allow_cooling):
            return
        explain(self, tx, ordinal)
        raise OutOfRangeError(f"{ip} is an address of {self.subnets.networks} that is never given")

    def _end_cooldown(
        self, tx: Transaction, ordinal: int, owner: str | None, allow_cooling: bool
    ) -> bool:
        """End a cool-down, its bit stays set; whether there was one.

        Before its time only for the last holder itself, or where that is allowed: InUseError.
        """
        cooling = tx.table(Cooldown).get(self.number, ordinal)
        if cooling is None:
            return False
        left = self.cooling_for(tx, ordinal)
        if left > 0 and not allow_cooling:
            past = tx.table(EndedLease).where("network", "ordinal", equal=(self.number, ordinal))
            if owner is None or not past or max(past).owner != owner:
                ip = self.subnets.address(ordinal)
                raise InUseError(f"{ip} is cooling down for another {left:.1f} s")
        tx.table(Cooldown).remove((cooling,))
        return True

    def _label(self, tx: Transaction, ordinal: int, labels: dict[str, str]) -> None:
        tx.table(Label).add(
            Label(self.number, ordinal, name, value) for name, value in labels.items()
        )

    def _forget_last_holder(self, tx: Transaction, ordinal: int) -> None:
        had = tx.table(LastHolder).get(self.number, ordinal)
        if had is not None:
            tx.table(LastHolder).remove((had,))

    def _clear_candidate(self, tx: Transaction, lease: Lease) -> None:
        candidate = tx.table(GcCandidate).get(self.number, lease.ordinal)
        if candidate is not None:
            tx.table(GcCandidate).remove((candidate,))
