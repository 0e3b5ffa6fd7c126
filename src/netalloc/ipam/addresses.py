"""Which address comes next, and what becomes of a released one: over any store.

The bitmap of a network has a bit set for every address that must not be given now: leased,
reserved, cooling down, or never given at all. The tables say which of these it is; an address
may be two of them, as one that is reserved and cools down is.
"""

from __future__ import annotations

import time

from netalloc._alloc import Subnet
from netalloc.errors import (
    InUseError,
    NotAllocatedError,
    OutOfRangeError,
)
from netalloc.ipam.clock import SECOND, boot_clock
from netalloc.ipam.networks import subnet_of
from netalloc.ipam.refusals import exhausted, explain, for_owner
from netalloc.model import AllocationRequest
from netalloc.store.records import (
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
from netalloc.values import IP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from netalloc.store.protocol import StoredBitmap, Transaction

_EXPIRED_AT_ONCE = 8  # cooled-down addresses taken back at an allocation: so it keeps up


class Addresses:
    """The addresses of one network, `number` in the store, laid out by `subnet`.

    A released address is not given again for `cooldown_ns`, and its last owner gets it again
    when it asks within `sticky_ns` and the address is free.
    """

    def __init__(
        self,
        number: int,
        subnet: Subnet,
        *,
        cooldown_ns: int = 0,
        sticky_ns: int = 0,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.number = number
        self.subnet = subnet
        self.clock = boot_clock if clock is None else clock
        self._cooldown = cooldown_ns
        self._sticky = sticky_ns
        self._name = f"addresses/{number}"
        self._excluded = subnet.excluded()

    @classmethod
    def of(cls, network: Network) -> Addresses:
        """The addresses of a network as its record configures them."""
        return cls(
            network.number,
            subnet_of(network),
            cooldown_ns=network.cooldown_ns,
            sticky_ns=network.sticky_ns,
        )

    def bitmap(self, tx: Transaction) -> StoredBitmap:
        """The network's bitmap; one that is not there yet is made from the tables."""
        bitmap = tx.bitmap(self._name, self.subnet.size)
        return bitmap if not self._excluded or len(bitmap) else self.rebuild(tx)

    def rebuild(self, tx: Transaction) -> StoredBitmap:
        """Make the bitmap anew from the tables; the cursor stays where it can. O(held)."""
        cursor = tx.bitmap(self._name, self.subnet.size).cursor
        tx.drop(self._name)
        bitmap = tx.bitmap(self._name, self.subnet.size)
        for start, stop in self._excluded:
            bitmap.cursor = start  # run by run: a /9 may be excluded
            bitmap.acquire_ranges(stop - start)
        number = (self.number,)
        taken = {lease.ordinal for lease in tx.table(Lease).where("network", equal=number)}
        taken.update(r.ordinal for r in tx.table(Reservation).where("network", equal=number))
        taken.update(r.ordinal for r in tx.table(Cooldown).where("network", equal=number))
        for ordinal in sorted(taken):
            if ordinal < self.subnet.size and ordinal not in bitmap:
                bitmap.reserve(ordinal)
        bitmap.cursor = cursor if cursor < self.subnet.size else 0
        return bitmap

    def known(self, tx: Transaction, request: AllocationRequest) -> Lease | None:
        """The lease that the same owner and key hold already.

        Raises InUseError where they ask for another address than they hold.
        """
        owner, key = request.owner, request.key
        if key is None:
            return None
        held = tx.table(Lease).where(
            "network", "owner", "key", equal=(self.number, owner, key), limit=1
        )
        if not held:
            return None
        lease = held[0]
        if request.ip is not None and self.subnet.ordinal(request.ip) != lease.ordinal:
            raise InUseError(
                f"{owner} holds {self.subnet.address(lease.ordinal)} as {key}, "
                f"so it cannot have {request.ip} too",
                owner,
            )
        self._clear_candidate(tx, lease)
        return lease

    def lease(self, tx: Transaction, request: AllocationRequest) -> Lease:
        """A new lease, entered with as many publications as ports are requested.

        Without `ip`: the address reserved for the owner, the one it had last, or the next
        free one, in this order. `allow_cooling` takes, when nothing else is left, the address
        that has cooled longest. Raises ExhaustedError, InUseError, OutOfRangeError.
        """
        owner = request.owner
        ordinal = None if request.ip is None else self.subnet.ordinal(request.ip)
        bitmap = self.bitmap(tx)
        if self._cooldown:
            self._expire_cooldowns(tx, bitmap, _EXPIRED_AT_ONCE)
        if ordinal is not None:
            self._take(tx, bitmap, ordinal, owner, request.allow_cooling)
        else:
            if owner is not None:
                ordinal = self._waiting(tx, bitmap, owner, request.key, request.allow_cooling)
            if ordinal is None:
                ordinal = self._next(tx, bitmap, request.allow_cooling)
        generation = tx.next("generation")
        now, ports = time.time_ns(), len(request.ports)
        lease = new_lease((self.number, ordinal, generation, ports, owner, request.key, now))
        if self._sticky:
            self._forget_last_holder(tx, ordinal)
        tx.table(Lease).add((lease,))
        if request.labels:
            self._label(tx, ordinal, request.labels)
        return lease

    def lease_many(self, tx: Transaction, n: int, request: AllocationRequest) -> list[Lease]:
        """The next n free addresses, or none of them: ExhaustedError."""
        bitmap = self.bitmap(tx)
        if self._cooldown:
            self._expire_cooldowns(tx, bitmap, n + _EXPIRED_AT_ONCE)
        if n > bitmap.size - len(bitmap):
            self._expire_cooldowns(tx, bitmap, -1)
            if n > bitmap.size - len(bitmap):
                raise exhausted(self, tx, f"{n} addresses", bitmap)
        generation = tx.next("generation", n) if n else 0
        now, ports, owner = time.time_ns(), len(request.ports), request.owner
        ordinals = [o for start, stop in bitmap.acquire_ranges(n) for o in range(start, stop)]
        leases = [
            new_lease((self.number, ordinal, generation + i, ports, owner, None, now))
            for i, ordinal in enumerate(ordinals)
        ]
        if self._sticky:
            for lease in leases:
                self._forget_last_holder(tx, lease.ordinal)
        tx.table(Lease).add(leases)
        if request.labels:
            for lease in leases:
                self._label(tx, lease.ordinal, request.labels)
        return leases

    def in_force(self, tx: Transaction, lease: Lease) -> Lease | None:
        """That very lease as it is now; None where it has ended, whatever holds the address."""
        held = tx.table(Lease).get(self.number, lease.ordinal)
        if held is None and lease.ordinal in self.bitmap(tx):
            explain(self, tx, lease.ordinal)
        return held if held is not None and held.generation == lease.generation else None

    def end(self, tx: Transaction, leases: Sequence[Lease]) -> None:
        """End leases, as they were read in this change: the addresses cool down, or are free."""
        bitmap, held = self.bitmap(tx), tx.table(Lease)
        held.remove(leases)
        now, wall = self.clock(), time.time_ns()
        labels, reservations, cooling = tx.table(Label), tx.table(Reservation), []
        for lease in leases:
            ordinal = lease.ordinal
            labels.remove(labels.where("network", "ordinal", equal=(self.number, ordinal)))
            self._clear_candidate(tx, lease)
            if self._cooldown:
                # A reserved one too: it may be unreserved before its time has come.
                cooling.append(Cooldown(self.number, ordinal, now + self._cooldown))
            elif reservations.get(self.number, ordinal) is None:
                bitmap.release(ordinal)
            if self._sticky and lease.owner is not None:
                until = now + self._sticky
                self._forget_last_holder(tx, ordinal)
                had = LastHolder(self.number, ordinal, lease.owner, lease.key, until)
                tx.table(LastHolder).add((had,))
        tx.table(Cooldown).add(cooling)
        if self._sticky:
            table = tx.table(LastHolder)
            oldest = table.where("network", equal=(self.number,), limit=len(leases) + 1)
            table.remove([had for had in oldest if had.until_ns < now])
        from netalloc.ipam.history import remember

        remember(tx, leases, wall)

    def reserve(self, tx: Transaction, ip: IP, owner: str | None) -> Reservation:
        """Keep an address for an owner (None: from everyone) until it is unreserved.

        One that is reserved for it, or leased by it, already is no error. Raises InUseError.
        """
        ordinal = self.subnet.ordinal(ip)
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
        ordinal = self.subnet.ordinal(ip)
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

    def _next(self, tx: Transaction, bitmap: StoredBitmap, allow_cooling: bool) -> int:
        if len(bitmap) == bitmap.size:
            self._expire_cooldowns(tx, bitmap, -1)
            if len(bitmap) == bitmap.size:
                longest = self._longest_cooling(tx) if allow_cooling else None
                if longest is None:
                    raise exhausted(self, tx, "free address", bitmap)
                tx.table(Cooldown).remove((longest,))
                return longest.ordinal
        return bitmap.acquire()

    def _longest_cooling(self, tx: Transaction) -> Cooldown | None:
        reservations = tx.table(Reservation)
        for cooling in tx.table(Cooldown).where("network", equal=(self.number,)):
            if reservations.get(self.number, cooling.ordinal) is None:
                return cooling
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
        ip = self.subnet.address(ordinal)
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
        raise OutOfRangeError(f"{ip} is an address of {self.subnet.network} that is never given")

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
                ip = self.subnet.address(ordinal)
                raise InUseError(f"{ip} is cooling down for another {left:.1f} s")
        tx.table(Cooldown).remove((cooling,))
        return True

    def _expire_cooldowns(self, tx: Transaction, bitmap: StoredBitmap, limit: int) -> None:
        """Take back addresses that have cooled down."""
        cooling, reservations = tx.table(Cooldown), tx.table(Reservation)
        oldest = cooling.where("network", equal=(self.number,), limit=limit)
        now = self.clock()
        ready = [record for record in oldest if record.ready_ns <= now]
        cooling.remove(ready)
        for record in ready:
            if reservations.get(self.number, record.ordinal) is None:
                bitmap.release(record.ordinal)

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
