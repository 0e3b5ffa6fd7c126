"""Who of a guarded network reaches whom: the record first, then the kernel, then the commit.

What the guard has in the kernel belongs to the network as its mappings do: a change that is cut
off between kernel and commit leaves the network marked, and the next one makes both agree.
"""

from __future__ import annotations

from functools import partial

from netalloc.errors import InvalidValueError, NetallocError, NotAllocatedError
from netalloc.ipam import allowances, attachments
from netalloc.logs import Log
from netalloc.manager.undo import attempt
from netalloc.store.records import Lease

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    from netalloc.address_values import IP
    from netalloc.ipam.change import Change
    from netalloc.manager.leases import LeaseService
    from netalloc.portmap.nftables.guard import GuardedPort, Pair
    from netalloc.store.protocol import Transaction
    from netalloc.store.records import Allowance, Attachment

    # A lease, or the address of one.
    End: TypeAlias = Lease | IP

log = Log(__name__)


class GuardService:
    """The allowances of one network's leases, and the guard's elements."""

    def __init__(self, leases: LeaseService) -> None:
        self._leases = leases
        self._network = leases.network
        self._guard = leases.mappings.guard

    # ---- who reaches whom

    def allow(self, one: End, other: End) -> None:
        """Let two reach each other. Raises as `_pair` does; again it is no error."""
        self._leases.run("allow", partial(self._allow, one, other))

    def disallow(self, one: End, other: End) -> None:
        """Let two reach each other no longer; what they have open ends."""
        self._leases.run("disallow", partial(self._disallow, one, other))

    def allowed(self) -> list[tuple[IP, IP]]:
        """The pairs that reach each other, by address."""
        address, number = self._leases.subnets.address, self._network.number
        found = self._leases.read(lambda tx: allowances.of_network(tx, number))
        pairs = sorted(allowances.ordinals(one) for one in found)
        return [(address(one), address(other)) for one, other in pairs]

    def part(self, made: Change, leases: Sequence[Lease]) -> None:
        """End what leases are allowed, as part of the change that ends them."""
        ordinals = [lease.ordinal for lease in leases]
        self._end(made, allowances.of_ordinals(made.tx, self._network.number, ordinals))

    # ---- interfaces

    def enter(self, made: Change, records: Sequence[Attachment]) -> None:
        """Let interfaces send as what they are, as part of the change that enters them."""
        if self._guard is not None and self._guard.is_guarded and records:
            ports = self._ports(records)
            self._change(made, partial(self._guard.enter, ports), partial(self._guard.leave, ports))

    def leave(self, made: Change, records: Sequence[Attachment]) -> None:
        """Let interfaces send nothing more, as part of the change that drops them."""
        if self._guard is not None and self._guard.is_guarded and records:
            ports = self._ports(records)
            self._change(made, partial(self._guard.leave, ports), partial(self._guard.enter, ports))

    def renew(self, records: Sequence[Attachment]) -> None:
        """Let interfaces that are there already send as what they are."""
        if self._guard is not None and self._guard.is_guarded and records:
            self._guard.enter(self._ports(records))

    # ---- upkeep

    def reconcile(self, tx: Transaction) -> tuple[str, ...]:
        """Make the guard agree with the records; what was wrong. O(all guarded)."""
        if self._guard is None:
            return ()
        return self._guard.reconcile(*self._desired(tx))

    def differences(self, tx: Transaction) -> list[str]:
        """What the guard has otherwise than the records."""
        return [] if self._guard is None else self._guard.differences(*self._desired(tx))

    def _desired(self, tx: Transaction) -> tuple[list[GuardedPort], list[Pair]]:
        if self._network.isolation != "guarded":
            return [], []
        number = self._network.number
        pairs = self._pairs(allowances.of_network(tx, number))
        return self._ports(attachments.of_network(tx, number)), pairs

    # ---- the parts of a change

    def _allow(self, one: End, other: End, made: Change) -> None:
        pair = self._pair(one, other, made.tx)
        if allowances.enter(made.tx, pair) and self._guard is not None:
            pairs = self._pairs([pair])
            self._change(
                made, partial(self._guard.allow, pairs), partial(self._guard.disallow, pairs)
            )

    def _disallow(self, one: End, other: End, made: Change) -> None:
        pair = self._pair(one, other, made.tx)
        if allowances.drop(made.tx, pair):
            self._end(made, [pair])

    def _end(self, made: Change, ending: Sequence[Allowance]) -> None:
        if self._guard is None or not ending:
            return
        pairs = self._pairs(ending)
        self._change(made, partial(self._guard.disallow, pairs), partial(self._guard.allow, pairs))
        made.after.append(partial(_forget_flows, pairs))

    def _change(self, made: Change, do: Callable[[], None], undo: Callable[[], None]) -> None:
        """Change the kernel; it is taken back where the change is not made."""
        tx, number = made.tx, self._network.number
        tx.mark_dirty(number)

        def back() -> None:
            undo()
            tx.mark_clean(number)

        made.undo.append(back)  # first: an interrupt may come when it is done
        try:
            do()
        except NetallocError:
            made.undo.remove(back)
            tx.mark_clean(number)  # a refused transaction has changed nothing
            raise

    def _pair(self, one: End, other: End, tx: Transaction) -> Allowance:
        """The record of two. Raises StaleLeaseError, NotAllocatedError, InvalidValueError."""
        if self._network.isolation != "guarded":
            raise InvalidValueError(
                f"network {self._network.name} is open, where all reach each other"
            )
        first, second = self._ordinal(one, tx), self._ordinal(other, tx)
        if first == second:
            raise InvalidValueError(f"{self._leases.subnets.address(first)} is one, and not two")
        return allowances.pair(self._network.number, first, second)

    def _ordinal(self, end: End, tx: Transaction) -> int:
        if isinstance(end, Lease):
            return self._leases.current(tx, end).ordinal
        ordinal = self._leases.subnets.ordinal(end)
        if tx.table(Lease).get(self._network.number, ordinal) is None:
            raise NotAllocatedError(f"{end} is not leased")
        return ordinal

    # ---- what the guard is told

    def _pairs(self, some: Iterable[Allowance]) -> list[Pair]:
        of = self._leases.subnets.addresses
        return [(of(one), of(other)) for one, other in map(allowances.ordinals, some)]

    def _ports(self, records: Iterable[Attachment]) -> list[GuardedPort]:
        from netalloc.portmap.nftables.guard import GuardedPort

        of = self._leases.subnets.addresses
        return [
            GuardedPort(one.index, bytes.fromhex(one.mac.replace(":", "")), of(one.ordinal))
            for one in records
        ]


def _forget_flows(pairs: Sequence[Pair]) -> None:
    """So that none goes on that may not begin any more."""
    from netalloc.host.pair_flows import forget_between

    plain = [(one.packed, other.packed) for two in pairs for one, other in zip(*two, strict=True)]
    failure = attempt(partial(forget_between, plain))
    if failure is not None:
        log.error("flows between %s stay: %s", pairs, failure)
