"""What can be done with leases and the ports they publish: each step in one change."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from netalloc._alloc import IPAllocator
from netalloc.changes import Change, Changes
from netalloc.errors import NotAllocatedError, StaleLeaseError
from netalloc.holding import Holds
from netalloc.kernel import OwnKernel, attempt
from netalloc.model import Mapping as PortMapping
from netalloc.publishing import Publish, Publisher
from netalloc.store.addresses import Addresses
from netalloc.store.protocol import Transaction
from netalloc.store.records import Label, Lease, Publication

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

log = logging.getLogger(__name__)
T = TypeVar("T")


class Leasing:
    """The leases of one network, over the parts that a manager composes."""

    def __init__(
        self,
        bridge: str,
        addresses: Addresses,
        publisher: Publisher,
        kernel: OwnKernel,
        changes: Changes,
    ) -> None:
        self.bridge = bridge
        self.holds = Holds()
        self.kernel = kernel
        self.addresses = addresses
        self.publisher = publisher
        self.changes = changes
        self.plan: IPAllocator = addresses.plan
        self.stale_releases = 0
        self.closed = False

    def make(self, operation: str, change: Callable[[Change], T], durable: bool = False) -> T:
        """Make a change. Raises NotAllocatedError when the manager is closed."""
        self._check_open()
        return self.changes.make(operation, change, durable=durable)

    def look(self, view: Callable[[Transaction], T]) -> T:
        """Read, without waiting for anybody's change."""
        self._check_open()
        return self.changes.look(view)

    def allocate(
        self,
        owner: str | None,
        key: str | None,
        ip: IPv4Address | IPv6Address | str | None,
        labels: Mapping[str, str] | None,
        wishes: Sequence[Publish],
        early: bool,
    ) -> Lease:
        """A lease with its ports published; the one there is where the key is known."""

        def change(made: Change) -> Lease:
            lease, new = self.addresses.lease(made.tx, owner, key, ip, labels, early, len(wishes))
            if new and wishes:
                self.publisher.publish(made, [(lease, wish) for wish in wishes])
            return lease

        return self.make("allocate", change)

    def allocate_many(
        self,
        n: int,
        owner: str | None,
        labels: Mapping[str, str] | None,
        wishes: Sequence[Publish],
    ) -> list[Lease]:
        """n leases, each with its ports published, or none of them."""

        def change(made: Change) -> list[Lease]:
            leases = self.addresses.lease_many(made.tx, n, owner, labels, len(wishes))
            if wishes:
                all_wishes = [(lease, wish) for lease in leases for wish in wishes]
                self.publisher.publish(made, all_wishes)
            return leases

        return self.make("allocate_many", change)

    def publish(
        self, lease: Lease, wishes: Sequence[int | Publish], hold: bool = False
    ) -> list[PortMapping]:
        """Publish ports of a lease. Raises StaleLeaseError when it is no longer in force."""
        checked = [Publish.of(wish) for wish in wishes]

        def change(made: Change) -> list[PortMapping]:
            self._check_current(made.tx, lease)
            mappings = self.publisher.publish(made, [(lease, wish) for wish in checked])
            self.publisher.count(made, lease, len(checked))
            if hold:
                self.holds.take(mappings)
                made.undo.append(partial(self.holds.drop, mappings))
            return mappings

        return self.make("publish", change)

    def withdraw(
        self, lease: Lease, choose: Callable[[Sequence[Publication]], Publication]
    ) -> None:
        """Take back the one that `choose` finds among the publications of a lease."""

        def change(made: Change) -> None:
            self._check_current(made.tx, lease)
            self._withdraw_one(lease, choose(self.publisher.of(made.tx, lease)), made)

        self.make("release_port", change)

    def release(self, lease: Lease, strict: bool = False) -> None:
        """End a lease and take its ports back, all that can be; a stale one changes nothing."""

        def change(made: Change) -> bool:
            if not self.addresses.current(made.tx, lease):
                return False
            self.end(made, (lease,))
            return True

        try:
            current = self.make("release", change)
        except Exception as error:
            self._release_piecemeal(lease, error)
            return
        if not current:
            self.stale_releases += 1
            log.warning("late release of %s changed nothing", self.name(lease))
            if strict:
                raise self._stale(lease)

    def release_all(self, leases: Sequence[Lease]) -> None:
        """End leases in one change, or else one by one; all failures in one group."""

        def change(made: Change) -> int:
            current = [lease for lease in leases if self.addresses.current(made.tx, lease)]
            self.end(made, current)
            return len(leases) - len(current)

        try:
            self.stale_releases += self.make("release", change)
        except Exception as error:
            log.warning("released one by one, for together it failed: %s", error)
            steps = [partial(self.release, lease) for lease in leases]
            failures = [failure for step in steps if (failure := attempt(step))]
            if failures:
                raise ExceptionGroup("not everything was released", failures) from None

    def end(self, made: Change, leases: Sequence[Lease]) -> None:
        """End leases that are in force, and their publications, as part of a change."""
        rows = [row for lease in leases for row in self.publisher.of(made.tx, lease)]
        self._withdraw(rows, made)
        self.addresses.end(made.tx, leases)
        ips = [self.plan.address(lease.ordinal) for lease in leases]
        made.after.append(partial(self.kernel.forget_neighbours, self.bridge, ips))

    def ports(self, lease: Lease) -> tuple[PortMapping, ...]:
        """What a lease publishes."""
        rows = self.look(lambda tx: self.publisher.of(tx, lease))
        return tuple(self.publisher.mapping(row, lease.owner) for row in rows)

    def labels(self, lease: Lease) -> dict[str, str]:
        """The labels of a lease."""
        where = (lease.network, lease.ordinal)
        rows = self.look(lambda tx: tx.table(Label).where("network", "ordinal", equal=where))
        return {row.name: row.value for row in rows}

    def find(self, owner: str | None, label: tuple[str, str] | None) -> list[Lease]:
        """The leases of an owner, those with a label, or all: by address."""
        number = self.addresses.number

        def view(tx: Transaction) -> list[Lease]:
            leases = tx.table(Lease)
            if label is not None:
                rows = tx.table(Label).where("network", "name", "value", equal=(number, *label))
                found = [leases.get(number, row.ordinal) for row in rows]
                return [lease for lease in found if lease and owner in (None, lease.owner)]
            if owner is not None:
                return leases.where("network", "owner", equal=(number, owner))
            return leases.where("network", equal=(number,))

        return sorted(self.look(view))

    def name(self, lease: Lease) -> str:
        """The address of a lease, as text."""
        return str(self.plan.address(lease.ordinal))

    def _release_piecemeal(self, lease: Lease, first: Exception) -> None:
        """Free one by one what cannot be freed at once; all failures in one group."""
        steps = [
            partial(self.make, "release", partial(self._withdraw_one, lease, row))
            for row in self.look(lambda tx: self.publisher.of(tx, lease))
        ]
        failures = [failure for step in steps if (failure := attempt(step))]
        if failures:
            # A mapping that could not be removed leads to this address: nobody else may
            # have it yet.
            raise ExceptionGroup(f"{self.name(lease)} was not released", failures)
        self.make("release", lambda made: self.end(made, (lease,)))
        log.warning("%s was released step by step after: %s", self.name(lease), first)

    def _withdraw_one(self, lease: Lease, row: Publication, made: Change) -> None:
        self._withdraw((row,), made)
        self.publisher.count(made, lease, -1)

    def _withdraw(self, rows: Sequence[Publication], made: Change) -> None:
        if rows:
            gone = self.publisher.withdraw(made, rows)
            made.after.append(partial(self.holds.drop, gone))

    def close(self) -> None:
        """No change is made from now on, and no port held."""
        self.closed = True
        self.holds.close()

    def _check_open(self) -> None:
        if self.closed:
            raise NotAllocatedError(f"the manager of {self.plan.network} is closed")

    def _check_current(self, tx: Transaction, lease: Lease) -> None:
        if not self.addresses.current(tx, lease):
            raise self._stale(lease)

    def _stale(self, lease: Lease) -> StaleLeaseError:
        who = f" of {lease.owner}" if lease.owner else ""
        return StaleLeaseError(
            f"lease {lease.generation}{who} of {self.name(lease)} is no longer in force"
        )
