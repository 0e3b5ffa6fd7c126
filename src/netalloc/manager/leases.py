"""What can be done with leases and the ports they publish: each step in one change."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from netalloc._alloc import IPAllocator
from netalloc.errors import ClosedError, NetallocError, StaleLeaseError
from netalloc.ipam.addresses import Addresses
from netalloc.ipam.change import Change
from netalloc.ipam.check import check
from netalloc.ipam.gc import expired
from netalloc.ipam.publications import Publications
from netalloc.manager.commit import Committer
from netalloc.manager.host_ports import PortHolds
from netalloc.manager.mappings import ExclusiveMappings
from netalloc.manager.undo import attempt
from netalloc.model import PortMapping, PortRequest
from netalloc.store.protocol import Transaction
from netalloc.store.records import Label, Lease, Publication

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

log = logging.getLogger(__name__)
T = TypeVar("T")


class LeaseService:
    """The leases of one network, over the parts that a manager composes."""

    def __init__(
        self,
        bridge: str,
        addresses: Addresses,
        publications: Publications,
        kernel: ExclusiveMappings,
        committer: Committer,
    ) -> None:
        self.bridge = bridge
        self.holds = PortHolds()
        self.kernel = kernel
        self.addresses = addresses
        self.publications = publications
        self.committer = committer
        self.plan: IPAllocator = addresses.plan
        self.stale_releases = 0
        self.closed = False

    def run(self, operation: str, change: Callable[[Change], T], durable: bool = False) -> T:
        """Make a change. Raises ClosedError when the manager is closed."""
        self._check_open()
        return self.committer.run(operation, change, durable=durable)

    def read(self, view: Callable[[Transaction], T]) -> T:
        """Read, without waiting for anybody's change."""
        self._check_open()
        return self.committer.read(view)

    def allocate(
        self,
        owner: str | None,
        key: str | None,
        ip: IPv4Address | IPv6Address | str | None,
        labels: Mapping[str, str] | None,
        requests: Sequence[PortRequest],
        allow_cooling: bool,
    ) -> Lease:
        """A lease with its ports published; the one there is where the key is known."""

        def change(made: Change) -> Lease:
            lease, new = self.addresses.lease(
                made.tx, owner, key, ip, labels, allow_cooling, len(requests)
            )
            if new and requests:
                self.publications.publish(made, [(lease, request) for request in requests])
            return lease

        return self.run("allocate", change)

    def allocate_many(
        self,
        n: int,
        owner: str | None,
        labels: Mapping[str, str] | None,
        requests: Sequence[PortRequest],
    ) -> list[Lease]:
        """n leases, each with its ports published, or none of them."""

        def change(made: Change) -> list[Lease]:
            leases = self.addresses.lease_many(made.tx, n, owner, labels, len(requests))
            if requests:
                all_requests = [(lease, request) for lease in leases for request in requests]
                self.publications.publish(made, all_requests)
            return leases

        return self.run("allocate_many", change)

    def publish(
        self, lease: Lease, requests: Sequence[int | PortRequest], hold: bool = False
    ) -> list[PortMapping]:
        """Publish ports of a lease. Raises StaleLeaseError when it is no longer in force."""
        checked = [PortRequest.of(request) for request in requests]

        def change(made: Change) -> list[PortMapping]:
            self._check_current(made.tx, lease)
            mappings = self.publications.publish(made, [(lease, request) for request in checked])
            self.publications.count(made, lease, len(checked))
            if hold:
                self.holds.take(mappings)
                made.undo.append(partial(self.holds.drop, mappings))
            return mappings

        return self.run("publish", change)

    def unpublish(
        self, lease: Lease, choose: Callable[[Sequence[Publication]], Publication]
    ) -> None:
        """Take back the one that `choose` finds among the publications of a lease."""

        def change(made: Change) -> None:
            self._check_current(made.tx, lease)
            self._unpublish_one(lease, choose(self.publications.of(made.tx, lease)), made)

        self.run("release_port", change)

    def release(self, lease: Lease, strict: bool = False) -> None:
        """End a lease and take its ports back, all that can be; a stale one changes nothing."""

        def change(made: Change) -> bool:
            if not self.addresses.current(made.tx, lease):
                return False
            self.expire(made, (lease,))
            return True

        try:
            current = self.run("release", change)
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
            self.expire(made, current)
            return len(leases) - len(current)

        try:
            self.stale_releases += self.run("release", change)
        except Exception as error:
            log.warning("released one by one, for together it failed: %s", error)
            steps = [partial(self.release, lease) for lease in leases]
            failures = [failure for step in steps if (failure := attempt(step))]
            if failures:
                raise ExceptionGroup("not everything was released", failures) from None

    def expire(self, made: Change, leases: Sequence[Lease]) -> None:
        """End leases that are in force, and their publications, as part of a change."""
        rows = [row for lease in leases for row in self.publications.of(made.tx, lease)]
        self._unpublish(rows, made)
        self.addresses.end(made.tx, leases)
        ips = [self.plan.address(lease.ordinal) for lease in leases]
        made.after.append(partial(self.kernel.forget_neighbours, self.bridge, ips))

    def collect(self, living: frozenset[str], grace: int) -> list[Lease]:
        """End the leases whose owners were dead at two looks, `grace` nanoseconds or more apart.

        The first look only notes them. A lease that was made, or asked for again, since then is
        another one, or is noted no longer. Leases without an owner are nobody's to judge.
        Returns those that were ended. O(leases).
        """

        def change(made: Change) -> list[Lease]:
            dead = expired(self.addresses, made.tx, living, grace)
            self.expire(made, dead)
            return dead

        try:
            return self.run("gc", change)
        except NetallocError:
            # Some mapping cannot be removed: end what can be ended, one by one.
            dead = self.run("gc", lambda made: expired(self.addresses, made.tx, living, grace))
            self.release_all(dead)
            return dead

    def ports(self, lease: Lease) -> tuple[PortMapping, ...]:
        """What a lease publishes."""
        rows = self.read(lambda tx: self.publications.of(tx, lease))
        return tuple(self.publications.mapping(row, lease.owner) for row in rows)

    def labels(self, lease: Lease) -> dict[str, str]:
        """The labels of a lease."""
        where = (lease.network, lease.ordinal)
        rows = self.read(lambda tx: tx.table(Label).where("network", "ordinal", equal=where))
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

        return sorted(self.read(view))

    def check(self) -> list[str]:
        """Every invariant that does not hold, in words; empty when all is well. O(held)."""
        damage = self.committer.store.check()
        # Of a damaged file nothing further can be said with certainty.
        return damage or self.read(lambda tx: [*check(tx), *self._check_kernel(tx)])

    def _check_kernel(self, tx: Transaction) -> Iterator[str]:
        desired, present = set(self.publications.desired(tx)), set(self.kernel.present())
        for mapping in sorted(desired - present, key=repr):
            yield f"the kernel lacks {mapping}"
        for mapping in sorted(present - desired, key=repr):
            yield f"the kernel has what is not desired: {mapping}"

    def name(self, lease: Lease) -> str:
        """The address of a lease, as text."""
        return str(self.plan.address(lease.ordinal))

    def _release_piecemeal(self, lease: Lease, first: Exception) -> None:
        """Free one by one what cannot be freed at once; all failures in one group."""
        steps = [
            partial(self.run, "release", partial(self._unpublish_one, lease, row))
            for row in self.read(lambda tx: self.publications.of(tx, lease))
        ]
        failures = [failure for step in steps if (failure := attempt(step))]
        if failures:
            # A mapping that could not be removed leads to this address: nobody else may
            # have it yet.
            raise ExceptionGroup(f"{self.name(lease)} was not released", failures)
        self.run("release", lambda made: self.expire(made, (lease,)))
        log.warning("%s was released step by step after: %s", self.name(lease), first)

    def _unpublish_one(self, lease: Lease, row: Publication, made: Change) -> None:
        self._unpublish((row,), made)
        self.publications.count(made, lease, -1)

    def _unpublish(self, rows: Sequence[Publication], made: Change) -> None:
        if rows:
            gone = self.publications.unpublish(made, rows)
            made.after.append(partial(self.holds.drop, gone))

    def close(self) -> None:
        """No change is made from now on, and no port held."""
        self.closed = True
        self.holds.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(f"the manager of {self.plan.network} is closed")

    def _check_current(self, tx: Transaction, lease: Lease) -> None:
        if not self.addresses.current(tx, lease):
            raise self._stale(lease)

    def _stale(self, lease: Lease) -> StaleLeaseError:
        who = f" of {lease.owner}" if lease.owner else ""
        return StaleLeaseError(
            f"lease {lease.generation}{who} of {self.name(lease)} is no longer in force"
        )
