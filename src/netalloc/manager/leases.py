"""What can be done with leases and the ports they publish: each step in one change."""

from __future__ import annotations

import sys
from functools import cached_property, partial
from operator import attrgetter

from netalloc.errors import (
    InvalidValueError,
    NetallocError,
    NotAllocatedError,
    StaleLeaseError,
)
from netalloc.ipam.addresses import Addresses
from netalloc.ipam.change import Change
from netalloc.ipam.lookup import check_labels, labels_of, leases_of
from netalloc.ipam.networks import CONFIGURED, find
from netalloc.logs import Log
from netalloc.manager.commit import Committer
from netalloc.manager.host_ports import PortHolds
from netalloc.manager.mappings import ExclusiveMappings
from netalloc.store.records import Allowance, Attachment, Lease, Network, Publication

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from netalloc.address_values import IP
    from netalloc.ipam.publications import Publications
    from netalloc.ipam.subnets import Subnets
    from netalloc.manager.attaching import AttachService
    from netalloc.manager.guarding import GuardService
    from netalloc.manager.stale_flows import StaleFlows
    from netalloc.model import PortMapping, PortRequest
    from netalloc.store.protocol import Transaction

    T = TypeVar("T")

log = Log(__name__)
_ORDINAL = attrgetter("ordinal")
FAILURES = (NetallocError, ExceptionGroup)  # no others: a signal handler's own go their way


class LeaseService:
    """The leases of one network, over the parts that a manager composes.

    `calls_back`: a caller's own object is among them, or reachable from them, which may lead
    back to an interface, so that the collector has to know of those.
    """

    calls_back = True

    def __init__(
        self,
        network: Network,
        addresses: Addresses,
        publications: Callable[[], Publications],
        mappings: ExclusiveMappings,
        committer: Committer,
        flows: StaleFlows | None = None,
    ) -> None:
        self.network = network
        self.holds = PortHolds()
        self.mappings = mappings
        self.addresses = addresses
        self._publications = publications
        self.committer = committer
        self.flows = flows  # with a backend that touches the kernel
        self.subnets: Subnets = addresses.subnets
        self.address = self.subnets.address  # of an ordinal: asked for by each call that names one
        self.stale_releases = 0
        self._has_neighbours = mappings.is_real and network.bridge is not None
        self._configured = -1  # the state of the store's networks in which ours was seen

    @property
    def publications(self) -> Publications:
        """The ports that the leases publish; made when they are first asked for."""
        return self._publications()

    @cached_property
    def attaching(self) -> AttachService:
        """The leases' interfaces on the machine. InvalidValueError: a backend without a kernel."""
        if not self.mappings.is_real:
            where = f"network {self.network.name} has backend null, which touches no kernel"
            raise InvalidValueError(f"{where}: nothing can be attached to it")
        from netalloc.manager.attaching import AttachService

        return AttachService(self)

    @cached_property
    def guarding(self) -> GuardService:
        """Who of the leases reaches whom; loaded when it is first asked for."""
        from netalloc.manager.guarding import GuardService

        return GuardService(self)

    @property
    def place(self) -> object:
        """Where the leases are kept: the same for two stores over one file."""
        return getattr(self.committer.store, "path", self.committer.store)

    def run(self, operation: str, change: Callable[[Change], T], durable: bool = False) -> T:
        """Make a change. Raises ClosedError when the manager is closed."""

        def checked(made: Change) -> T:
            if made.tx.last(CONFIGURED) != self._configured:
                self._check_registered(made.tx)
            return change(made)

        return self.committer.run(operation, checked, durable=durable)

    def read(self, view: Callable[[Transaction], T]) -> T:
        """Read, without waiting for any change. Raises as run() does."""
        return self.committer.read(view)

    def survey(self, view: Callable[[Transaction], T]) -> T:
        """Read all there is, in as long as it takes: no other call waits meanwhile."""
        return self.committer.survey(view)

    def allocate(
        self,
        owner: str | None = None,
        key: str | None = None,
        ip: IP | None = None,
        labels: dict[str, str] | None = None,
        ports: Sequence[PortRequest] = (),
        allow_cooling: bool = False,
        check_host: bool = True,
    ) -> Lease:
        """A lease with its ports published; the one there is where the key is known."""
        if ports:
            self._publications()  # loaded before the store is locked
        change = partial(self._allocate, owner, key, ip, labels, ports, allow_cooling, check_host)
        return self.committer.run("allocate", change)

    def _allocate(
        self,
        owner: str | None,
        key: str | None,
        ip: IP | None,
        labels: dict[str, str] | None,
        ports: Sequence[PortRequest],
        allow_cooling: bool,
        check_host: bool,
        made: Change,
    ) -> Lease:
        tx, addresses = made.tx, self.addresses
        if tx.last(CONFIGURED) != self._configured:
            self._check_registered(tx)
        if key is not None:
            known = addresses.known(tx, owner, key, ip)
            if known is not None:
                self._check_same(tx, known, labels, ports)
                return known
        lease = addresses.lease(tx, owner, key, ip, labels, len(ports), allow_cooling)
        if ports:
            pairs = [(lease, port) for port in ports]
            self.publications.publish(made, pairs, check_host=check_host)
        if self.flows is not None:
            self.flows.got(made, self.subnets.addresses(lease.ordinal), made.add)
        return lease

    def allocate_many(
        self,
        n: int,
        owner: str | None,
        labels: dict[str, str],
        ports: Sequence[PortRequest],
        check_host: bool,
    ) -> list[Lease]:
        """n leases, each with its ports published, or none of them."""
        if ports:
            self._publications()

        def change(made: Change) -> list[Lease]:
            leases = self.addresses.lease_many(made.tx, n, owner, labels, len(ports))
            if ports:
                pairs = [(lease, port) for lease in leases for port in ports]
                self.publications.publish(made, pairs, check_host=check_host)
            if self.flows is not None:
                self.flows.got(made, self._ips(leases), made.add)
            return leases

        return self.run("allocate_many", change)

    def publish(
        self,
        lease: Lease,
        requests: Sequence[PortRequest],
        *,
        hold: bool = False,
        check_host: bool = True,
    ) -> tuple[list[PortMapping], Lease]:
        """Publish ports of a lease; the mappings, and the lease as it is with them.

        Raises StaleLeaseError when it is no longer in force.
        """
        self._publications()

        def change(made: Change) -> tuple[list[PortMapping], Lease]:
            if made.tx.last(CONFIGURED) != self._configured:
                self._check_registered(made.tx)
            pairs = [(lease, request) for request in requests]
            try:
                mappings = self.publications.publish(made, pairs, check_host=check_host)
            except NetallocError:
                self.current(made.tx, lease)  # one that has ended is refused for that
                raise
            counted = self._count(made, lease, len(requests))
            if hold:
                made.undo.append(partial(self.holds.drop, mappings))
                self.holds.take(mappings)
            if self.flows is not None:
                self.flows.got(made, (), mappings)
            return mappings, counted

        return self.committer.run("publish", change)

    def unpublish(self, lease: Lease, host_port: int, protocol: str, host_ip: IP | None) -> Lease:
        """Take back the publication of a lease that begins with that port, see find_own(); the
        lease as it is then.
        """

        def change(made: Change) -> Lease:
            held = self.current(made.tx, lease)
            row = self.publications.find_own(made.tx, held, host_port, protocol, host_ip)
            return self._unpublish_one(held, row, made)

        return self.run("release_port", change)

    def release(self, lease: Lease, strict: bool = False) -> None:
        """End a lease and take its ports back, all that can be; a stale one changes nothing."""
        try:
            current = self.committer.run("release", partial(self._release, lease))
        except FAILURES as error:
            from netalloc.manager.piecemeal import release_in_steps

            release_in_steps(self, lease, error)
            return
        if not current:
            self.stale_releases += 1
            log.warning("late release of %s changed nothing", self.name(lease))
            if strict:
                raise self._stale(lease)

    def _release(self, lease: Lease, made: Change) -> bool:
        tx = made.tx
        if tx.last(CONFIGURED) != self._configured:
            self._check_registered(tx)
        leases = tx.table(Lease)
        if leases.discard(lease):  # as it was when it was read last: then it need not be read
            self._expired(made, (lease,))
            return True
        current = self.addresses.in_force(tx, lease)
        if current is not None:
            self.expire(made, (current,))
        return current is not None

    def release_owner(self, owner: str) -> int:
        """End an owner's leases in one change, or else one by one; how many they were."""

        def change(made: Change) -> int:
            equal = self.addresses.number, owner
            leases = made.tx.table(Lease).where("network", "owner", equal=equal)
            self.expire(made, sorted(leases, key=_ORDINAL))
            return len(leases)

        try:
            return self.run("release", change)
        except FAILURES as error:
            leases = self.find(owner, None)
            if not leases:
                raise
            log.warning("released one by one, for together it failed: %s", error)
            from netalloc.manager.piecemeal import release_each

            release_each(self, leases)
            return len(leases)

    def expire(self, made: Change, leases: Sequence[Lease]) -> None:
        """End leases and their publications, as part of the change in which they were read."""
        made.tx.table(Lease).remove(leases)
        self._expired(made, leases)

    def _expired(self, made: Change, leases: Sequence[Lease]) -> None:
        """What else ends with leases that were taken out."""
        tx = made.tx
        if tx.table(Publication):
            of = self.publications.of_current
            self._unpublish([row for lease in leases for row in of(tx, lease)], made, ended=True)
        elsewhere = leases
        if tx.table(Attachment) and self.mappings.is_real:
            elsewhere = self.attaching.part_from(made, leases)  # before another has the address
        if tx.table(Allowance):
            self.guarding.part(made, leases)
        self.addresses.end(tx, leases)
        if self._has_neighbours and elsewhere:
            ips = self._ips(elsewhere)
            made.after.append(partial(self.mappings.forget_neighbours, self.network.bridge, ips))

    def ports(self, lease: Lease) -> tuple[PortMapping, ...]:
        """What a lease publishes; nothing once it has ended, whatever the address is by then."""

        def view(tx: Transaction) -> list[Publication]:
            if self.addresses.in_force(tx, lease) is None:
                return []
            return self.publications.of(tx, lease)

        rows = self.read(view)
        of = self.publications.mappings
        return tuple([mapping for row in rows for mapping in of(row, lease.owner)])

    def labels(self, lease: Lease) -> dict[str, str]:
        """The labels of a lease; none once it has ended."""

        def view(tx: Transaction) -> dict[str, str]:
            return {} if self.addresses.in_force(tx, lease) is None else labels_of(tx, lease)

        return self.read(view)

    def find(self, owner: str | None, label: tuple[str, str] | None) -> list[Lease]:
        """The leases of an owner, those with a label, or all: by address."""
        return self.read(lambda tx: leases_of(tx, self.addresses.number, owner, label))

    def name(self, lease: Lease) -> str:
        """The address of a lease, as text."""
        return str(self.address(lease.ordinal))

    def _check_registered(self, tx: Transaction) -> None:
        """Raise NotAllocatedError where the network was removed, or configured anew, meanwhile."""
        if find(tx, self.network.name) != self.network:
            raise NotAllocatedError(
                f"network {self.network.name} was removed from the store, or registered anew, "
                "after this manager was opened: open it again"
            )
        self._configured = tx.last(CONFIGURED)

    def _check_same(
        self,
        tx: Transaction,
        lease: Lease,
        labels: dict[str, str] | None,
        ports: Sequence[PortRequest],
    ) -> None:
        """Raise where a lease that is asked for again is asked for with something else."""
        if ports:
            self.publications.check_same(tx, lease, ports)
        if labels:
            check_labels(tx, lease, labels, self.name(lease))

    def end(self, lease: Lease) -> bool:
        """End a lease that publishes nothing any more; whether it was in force."""
        return self.run("release", partial(self._release, lease))

    def unpublish_row(self, lease: Lease, row: Publication) -> Lease:
        """Take back one publication of a lease; the lease as it is then."""
        return self.run("release", partial(self._unpublish_one, lease, row))

    def _unpublish_one(self, lease: Lease, row: Publication, made: Change) -> Lease:
        self._unpublish((row,), made)
        return self._count(made, lease, -1)

    def _count(self, made: Change, lease: Lease, more: int) -> Lease:
        """Enter in a lease that it has so many publications more; the lease as it is then."""
        counted = self.publications.count(made, lease, more)
        if counted is None:  # it is not as it was when it was read last
            current = self.current(made.tx, lease)
            counted = self.publications.count(made, current, more)
            assert counted is not None
        return counted

    def _unpublish(self, rows: Sequence[Publication], made: Change, *, ended: bool = False) -> None:
        if rows:
            gone = self.publications.unpublish(made, rows)
            made.after.append(partial(self.holds.drop, gone))
            if self.flows is not None:
                self.flows.gone(made, gone, ended=ended)

    def _ips(self, leases: Sequence[Lease]) -> list[IP]:
        return [ip for lease in leases for ip in self.subnets.addresses(lease.ordinal)]

    def current(self, tx: Transaction, lease: Lease) -> Lease:
        """That very lease as it is now. Raises StaleLeaseError where it has ended."""
        current = self.addresses.in_force(tx, lease)
        if current is None:
            raise self._stale(lease)
        return current

    def _stale(self, lease: Lease) -> StaleLeaseError:
        of = f" of {lease.owner}" if lease.owner is not None else ""
        what = f"lease {lease.generation}{of} of {self.name(lease)}"
        return StaleLeaseError(f"{what} is no longer in force")
