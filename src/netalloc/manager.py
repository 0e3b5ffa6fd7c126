"""Interfaces for the containers behind one bridge: order, undo, recovery."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Any

from netalloc._alloc import IPAllocator
from netalloc.changes import Change, Changes, Mapper, attempt
from netalloc.errors import (
    NotAllocatedError,
    OutOfRangeError,
    StaleLeaseError,
)
from netalloc.interface import NetworkInterface
from netalloc.model import Mapping
from netalloc.ports import PORTS, PortAllocator, Probe
from netalloc.publishing import Publish, Publisher
from netalloc.store.addresses import Addresses
from netalloc.store.memory import MemoryStore
from netalloc.store.networks import register
from netalloc.store.protocol import Store, Transaction
from netalloc.store.records import Label, Lease, Publication

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

log = logging.getLogger(__name__)


class NetworkManager:
    """Gives out the addresses of a bridge's network, and host ports that lead to them.

    `network` is written as the gateway would ("10.88.0.1/16"); without it the bridge's own
    address is taken. `ports` bounds the automatic picks of host ports. `backend` is
    "nftables", "iptables", "null" or "auto". `store` is the path of a file that outlives
    the process and may be shared by many; without it everything is in memory and ends with
    the manager. Each of these may be the part itself: an IPAllocator, a PortAllocator, a
    PortMapper or Backend, a Store.

    A released address is kept out for `cooldown` seconds; an owner who comes back within
    `sticky` seconds gets his address again if it is free. `probe(port, protocol, host_ip)`
    says of each automatic pick whether the host has it free.

    Thread-safe. An allocation takes constant time, however many addresses are held.

    >>> with NetworkManager("br0", network="10.88.0.1/16", backend="null") as manager:
    ...     web = manager.allocate(owner="web")
    ...     print(web.address, web.gateway, web.allocate_port(80))
    10.88.0.2/16 10.88.0.1 49153
    """

    def __init__(
        self,
        bridge: str,
        *,
        network: str | IPAllocator | None = None,
        ports: range | PortAllocator = PORTS,
        backend: Any = "auto",
        store: "str | os.PathLike[str] | Store | None" = None,
        cooldown: float = 0.0,
        sticky: float = 0.0,
        probe: Probe | None = None,
    ) -> None:
        self.bridge = bridge
        self.plan = _plan(bridge, network)
        self.gateway = self.plan.gateway
        self.stale_releases = 0
        self._closed = False
        with ExitStack() as owned:
            self._store = _store(store)
            if self._store is not store:
                owned.callback(self._store.close)
            number = register(self._store, bridge, self.plan)
            self._addresses = Addresses(number, self.plan, cooldown=cooldown, sticky=sticky)
            self._publisher = Publisher(number, self.plan, ports, probe)
            self._mapper: Any = _mapper(backend, bridge, self.plan)
            if self._mapper is not backend:
                owned.callback(self._mapper.close)
            self._changes = Changes(self._store, self._mapper, number)
            self._mapper.setup()
            self._owned = owned.pop_all()

    # ---- allocation

    def allocate(
        self,
        owner: str | None = None,
        ip: IPv4Address | IPv6Address | str | None = None,
        *,
        key: str | None = None,
        labels: dict[str, str] | None = None,
        ports: Sequence[int | Publish] = (),
        early: bool = False,
    ) -> NetworkInterface:
        """An interface with the next free address, or with `ip`, and with `ports` published.

        With `key` the same owner asks again and gets the same interface, its ports as they
        are. `early` gives an address that still cools down when no other is left. Raises
        ExhaustedError, InUseError (naming the holder), OutOfRangeError, CommandError; then
        nothing was taken.
        """
        if key is not None and owner is None:
            raise OutOfRangeError(f"key {key!r} without an owner")
        wishes = [Publish.of(port) for port in ports]

        def change(made: Change) -> Lease:
            lease, new = self._addresses.lease(made.tx, owner, key, ip, labels, early)
            if new and wishes:
                self._publisher.publish(made, [(lease, wish) for wish in wishes])
            return lease

        return NetworkInterface(self, self._make("allocate", change))

    def allocate_many(
        self,
        n: int,
        ports: Sequence[int | Publish] = (),
        owner: str | None = None,
        *,
        labels: dict[str, str] | None = None,
    ) -> list[NetworkInterface]:
        """n interfaces, each with `ports` published, in one transaction: all or none."""
        if n < 0:
            raise OutOfRangeError(f"{n} interfaces cannot be had")
        wishes = [Publish.of(port) for port in ports]

        def change(made: Change) -> list[Lease]:
            leases = self._addresses.lease_many(made.tx, n, owner, labels)
            if wishes:
                self._publisher.publish(
                    made, [(lease, wish) for lease in leases for wish in wishes]
                )
            return leases

        return [NetworkInterface(self, lease) for lease in self._make("allocate_many", change)]

    def reserve(self, ip: IPv4Address | IPv6Address | str, owner: str | None = None) -> None:
        """Keep an address for `owner`, or from everybody, until unreserve.

        A reservation outlives processes, boots and power cuts where the store does. The
        owner gets the address by `allocate`. Raises InUseError, OutOfRangeError.
        """
        self._make("reserve", lambda made: self._addresses.reserve(made.tx, ip, owner), True)

    def unreserve(self, ip: IPv4Address | IPv6Address | str) -> None:
        """Keep an address no longer; who holds it goes on. Raises NotAllocatedError."""
        self._make("unreserve", lambda made: self._addresses.unreserve(made.tx, ip), True)

    @property
    def interfaces(self) -> list[NetworkInterface]:
        """Every interface of this network, whoever allocated it."""
        return self.find()

    def find(
        self, owner: str | None = None, label: tuple[str, str] | None = None
    ) -> list[NetworkInterface]:
        """The interfaces of an owner, those with a label (name, value), or all."""
        return [NetworkInterface(self, lease) for lease in self._find(owner, label)]

    def release(self, owner: str) -> int:
        """Release all that an owner has here; how many interfaces that were.

        Goes on past failures and raises them together, as an ExceptionGroup.
        """
        leases = self._find(owner, None)
        self._release_all(leases)
        return len(leases)

    def reconcile(self) -> Any:
        """Make the kernel agree with what is published; returns what was repaired."""
        return self._mapper.reconcile()

    def close(self) -> None:
        """Give everything back. What a lasting store holds stays, its mappings too."""
        if self._closed:
            return
        self._closed = True
        with self._owned:
            if not self._store.lasting:
                self._mapper.cleanup()

    def __enter__(self) -> "NetworkManager":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ---- what interfaces ask for

    def _publish(self, lease: Lease, wishes: Sequence[int | Publish], hold: bool) -> list[Mapping]:
        checked = [Publish.of(wish) for wish in wishes]

        def change(made: Change) -> list[Mapping]:
            if not self._addresses.current(made.tx, lease):
                raise StaleLeaseError(f"{self._name(lease)} is held by somebody else by now")
            return self._publisher.publish(made, [(lease, wish) for wish in checked])

        return self._make("publish", change)

    def _withdraw(
        self, lease: Lease, choose: Callable[[Sequence[Publication]], Publication]
    ) -> None:
        def change(made: Change) -> None:
            if not self._addresses.current(made.tx, lease):
                raise StaleLeaseError(f"{self._name(lease)} is held by somebody else by now")
            row = choose(self._publisher.of(made.tx, lease))
            self._publisher.withdraw(made, (row,))

        self._make("release_port", change)

    def _release(self, lease: Lease, strict: bool) -> None:
        def change(made: Change) -> bool:
            if not self._addresses.current(made.tx, lease):
                return False
            self._publisher.withdraw(made, self._publisher.of(made.tx, lease))
            self._addresses.end(made.tx, (lease,))
            return True

        try:
            current = self._make("release", change)
        except Exception as error:
            self._release_piecemeal(lease, error)
            return
        if not current:
            self.stale_releases += 1
            log.warning("late release of %s changed nothing", self._name(lease))
            if strict:
                raise StaleLeaseError(f"{self._name(lease)} is held by somebody else by now")

    def _release_piecemeal(self, lease: Lease, first: Exception) -> None:
        """Free one by one what cannot be freed at once; all failures in one group."""
        steps = [
            partial(self._make, "release", partial(self._withdraw_row, row))
            for row in self._look(lambda tx: self._publisher.of(tx, lease))
        ]
        failures = [failure for step in steps if (failure := attempt(step))]
        if failures:
            # A mapping that could not be removed leads to this address: nobody else may
            # have it yet.
            raise ExceptionGroup(f"{self._name(lease)} was not released", failures)
        self._make("release", lambda made: self._addresses.end(made.tx, (lease,)))
        log.warning("%s was released step by step after: %s", self._name(lease), first)

    def _withdraw_row(self, row: Publication, made: Change) -> None:
        self._publisher.withdraw(made, (row,))

    def _release_all(self, leases: Sequence[Lease]) -> None:
        steps = [partial(self._release, lease, strict=False) for lease in leases]
        failures = [failure for step in steps if (failure := attempt(step))]
        if failures:
            raise ExceptionGroup("not everything was released", failures)

    def _ports(self, lease: Lease) -> tuple[Mapping, ...]:
        rows = self._look(lambda tx: self._publisher.of(tx, lease))
        return tuple(self._publisher.mapping(row, lease.owner) for row in rows)

    def _labels(self, lease: Lease) -> dict[str, str]:
        rows = self._look(
            lambda tx: tx.table(Label).where(
                "network", "ordinal", equal=(lease.network, lease.ordinal)
            )
        )
        return {row.name: row.value for row in rows}

    # ---- within

    def _find(self, owner: str | None, label: tuple[str, str] | None) -> list[Lease]:
        number = self._addresses.number

        def view(tx: Transaction) -> list[Lease]:
            leases = tx.table(Lease)
            if label is not None:
                rows = tx.table(Label).where("network", "name", "value", equal=(number, *label))
                found = [leases.get(number, row.ordinal) for row in rows]
                return [x for x in found if x is not None and owner in (None, x.owner)]
            if owner is not None:
                return leases.where("network", "owner", equal=(number, owner))
            return leases.where("network", equal=(number,))

        return self._look(view)

    def _make(self, operation: str, change: Callable[[Change], Any], durable: bool = False) -> Any:
        self._check_open()
        return self._changes.make(operation, change, durable=durable)

    def _look(self, view: Callable[[Transaction], Any]) -> Any:
        self._check_open()
        return self._changes.look(view)

    def _check_open(self) -> None:
        if self._closed:
            raise NotAllocatedError(f"the manager of {self.bridge} is closed")

    def _name(self, lease: Lease) -> str:
        return str(self.plan.address(lease.ordinal))


def _plan(bridge: str, network: str | IPAllocator | None) -> IPAllocator:
    if isinstance(network, IPAllocator):
        return network
    if network is None:
        from netalloc.host.links import interface_address

        return IPAllocator(str(interface_address(bridge)))
    return IPAllocator(network)


def _store(store: "str | os.PathLike[str] | Store | None") -> Store:
    if store is None:
        return MemoryStore()
    if isinstance(store, str | os.PathLike):
        from netalloc.store.sqlite import SqliteStore

        return SqliteStore(store)
    return store


def _mapper(backend: Any, bridge: str, plan: IPAllocator) -> Any:
    if isinstance(backend, Mapper):
        return backend
    from netalloc.portmap import PortMapper

    return PortMapper(backend, bridge=bridge, network=str(plan.network), name=f"netalloc-{bridge}")
