"""Interfaces for the containers behind one bridge: order, undo, recovery."""

import logging
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import TypeVar

from netalloc._alloc import IPAllocator
from netalloc.errors import (
    OutOfRangeError,
)
from netalloc.ipam.addresses import Addresses
from netalloc.ipam.history import PastLease, history
from netalloc.ipam.networks import register
from netalloc.ipam.publications import Publications
from netalloc.ipam.reboot import end_of_boot
from netalloc.manager.commit import Committer
from netalloc.manager.host_ports import host_probe
from netalloc.manager.interface import NetworkInterface
from netalloc.manager.leases import LeaseService
from netalloc.manager.mappings import ExclusiveMappings, Mapper, SharedMappings
from netalloc.model import PortRequest, ReconcileResult
from netalloc.portmap.backend import Backend
from netalloc.portmap.watch import Watch
from netalloc.ports import PORTS, PortAllocator, Probe
from netalloc.store.memory import MemoryStore
from netalloc.store.protocol import Store
from netalloc.store.records import Lease

__all__ = ["NetworkInterface", "NetworkManager"]
log = logging.getLogger(__name__)
T = TypeVar("T")


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
    says of each automatic pick whether the host has it free; without it, and with a backend
    that touches the kernel, a port is tried by binding it. `forward` accepts the containers'
    packets where the host's FORWARD chain drops them; with a lasting store these rules stay
    when the manager closes, as the mappings do.

    Without a store there can be one manager of a bridge at a time: a second one, in whatever
    process, is an InUseError.

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
        backend: "str | Backend | Mapper" = "auto",
        store: "str | os.PathLike[str] | Store | None" = None,
        cooldown: float = 0.0,
        sticky: float = 0.0,
        probe: Probe | None = None,
        forward: bool = False,
    ) -> None:
        self.bridge = bridge
        self.plan = _plan(bridge, network)
        self.gateway = self.plan.gateway
        with ExitStack() as opened:
            self._store = _store(store)
            self._owns_store = self._store is not store
            if self._owns_store:
                opened.callback(self._store.close)
            number = register(self._store, bridge, self.plan)
            addresses = Addresses(number, self.plan, cooldown=cooldown, sticky=sticky)
            mapper = _mapper(backend, bridge, self.plan, forward)
            opened.callback(mapper.close)
            kernel = (SharedMappings if self._store.persistent else ExclusiveMappings)(mapper)
            self._claims = opened.enter_context(ExitStack())
            if kernel.is_real and not self._store.persistent:
                from netalloc.host.bridge_lock import claim

                self._claims.enter_context(claim(bridge))
            if probe is None and kernel.is_real and isinstance(ports, range):
                probe = host_probe(ports)
            publications = Publications(number, self.plan, ports, probe)
            committer = Committer(self._store, kernel, number, publications.desired)
            self._leases = LeaseService(bridge, addresses, publications, kernel, committer)
            kernel.setup()
            committer.recover()
            opened.pop_all()  # it is whole: from here on close() gives them back

    # ---- allocation

    def allocate(
        self,
        owner: str | None = None,
        ip: IPv4Address | IPv6Address | str | None = None,
        *,
        key: str | None = None,
        labels: dict[str, str] | None = None,
        ports: Sequence[int | PortRequest] = (),
        allow_cooling: bool = False,
    ) -> NetworkInterface:
        """An interface with the next free address, or with `ip`, and with `ports` published.

        With `key` the same owner asks again and gets the same interface, its ports as they
        are. `allow_cooling` gives an address that still cools down when no other is left. Raises
        ExhaustedError, InUseError (naming the holder), OutOfRangeError, CommandError; then
        nothing was taken.
        """
        if key is not None and owner is None:
            raise OutOfRangeError(f"key {key!r} without an owner")
        requests = [PortRequest.of(port) for port in ports] if ports else ()
        lease = self._leases.allocate(owner, key, ip, labels, requests, allow_cooling)
        return NetworkInterface(self._leases, lease)

    def allocate_many(
        self,
        n: int,
        ports: Sequence[int | PortRequest] = (),
        owner: str | None = None,
        *,
        labels: dict[str, str] | None = None,
    ) -> list[NetworkInterface]:
        """n interfaces, each with `ports` published, in one transaction: all or none."""
        if n < 0:
            raise OutOfRangeError(f"{n} interfaces cannot be had")
        requests = [PortRequest.of(port) for port in ports]
        return self._interfaces(self._leases.allocate_many(n, owner, labels, requests))

    def reserve(self, ip: IPv4Address | IPv6Address | str, owner: str | None = None) -> None:
        """Keep an address for `owner`, or from everybody, until unreserve.

        A reservation outlives processes, boots and power cuts where the store does. The
        owner gets the address by `allocate`. Raises InUseError, OutOfRangeError.
        """
        addresses = self._leases.addresses
        self._leases.run("reserve", lambda made: addresses.reserve(made.tx, ip, owner), True)

    def unreserve(self, ip: IPv4Address | IPv6Address | str) -> None:
        """Keep an address no longer; who holds it goes on. Raises NotAllocatedError."""
        addresses = self._leases.addresses
        self._leases.run("unreserve", lambda made: addresses.unreserve(made.tx, ip), True)

    def interfaces(self) -> list[NetworkInterface]:
        """Every interface of this network, whoever allocated it."""
        return self.find()

    def find(
        self, owner: str | None = None, label: str | tuple[str, str] | None = None
    ) -> list[NetworkInterface]:
        """The interfaces of an owner, those with a label ("app=shop", or a pair), or all.

        By address. Raises OutOfRangeError for a label without a value.
        """
        if isinstance(label, str):
            name, equals, value = label.partition("=")
            if not equals:
                raise OutOfRangeError(f"label {label!r} is not name=value")
            label = name, value
        return self._interfaces(self._leases.find(owner, label))

    def release(self, owner: str) -> int:
        """Release all that an owner has here; how many interfaces that were.

        Goes on past failures and raises them together, as an ExceptionGroup.
        """
        leases = self._leases.find(owner, None)
        self._leases.release_all(leases)
        return len(leases)

    def reconcile(self) -> ReconcileResult:
        """Make the kernel agree with what is published; returns what was repaired."""
        return self._leases.committer.reconcile()

    def watch(self, on_repair: Callable[[ReconcileResult], None] | None = None) -> Watch:
        """Reconcile now, and within a second whenever somebody else changes the rules.

        Runs in a thread until the returned watch, or the manager, is closed. `on_repair` is
        called there with what was found. Raises NetallocError where the kernel tells nobody.
        """
        return self._leases.kernel.watch(on_repair, self.reconcile)

    def gc(self, alive: Collection[str], grace: float = 30.0) -> list[IPv4Address | IPv6Address]:
        """Release what belongs to owners who are not among the living; the addresses freed.

        Two looks are needed, `grace` seconds or more apart; a lease that was made, or asked
        for again by its key, between them is spared. Raises OutOfRangeError.
        """
        return [
            self.plan.address(one.ordinal)
            for one in self._leases.collect(frozenset(alive), int(grace * 1e9))
        ]

    def history(
        self, ip: IPv4Address | IPv6Address | str, at: datetime | None = None
    ) -> list[PastLease]:
        """Who held an address, oldest first; with `at`, who did at that moment.

        The store remembers the last 10,000 leases that ended, for 30 days.
        """
        leases = self._leases
        ordinal = self.plan.ordinal(ip)
        return leases.read(lambda tx: history(tx, leases.addresses.number, ordinal, at))

    def check(self) -> list[str]:
        """What is wrong with the store, in itself and against the kernel; empty when all is well.

        O(held).
        """
        return self._leases.check()

    def repair(self) -> list[str]:
        """Mend what check() finds, as far as it can be mended; says what was done.

        A copy of a file is kept first. See netalloc.manager.repair.repair, which works without a
        manager, too.
        """
        from netalloc.manager.repair import mend

        return mend(self._leases)

    def close(self) -> None:
        """Give everything back. What a lasting store holds stays, its mappings too."""
        if self._leases.closed:
            return
        self._leases.close()
        with self._claims:
            try:
                self._leases.kernel.close()
            finally:
                if self._owns_store:
                    self._store.close()

    @property
    def stale_releases(self) -> int:
        """How many releases came too late here, and changed nothing."""
        return self._leases.stale_releases

    def _interfaces(self, leases: Sequence[Lease]) -> list[NetworkInterface]:
        return [NetworkInterface(self._leases, lease) for lease in leases]

    def __enter__(self) -> "NetworkManager":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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
        from netalloc.store.sqlite.store import SqliteStore

        return SqliteStore(store, end_of_boot=end_of_boot)
    return store


def _mapper(
    backend: "str | Backend | Mapper", bridge: str, plan: IPAllocator, forward: bool
) -> Mapper:
    if isinstance(backend, Mapper):
        if forward:
            raise OutOfRangeError("forward=True is for the mapper that was given: make it so")
        return backend
    from netalloc.portmap.mapper import PortMapper

    if plan.network.version == 6:  # host ports lead to IPv4 addresses alone
        return PortMapper("null")
    name = f"netalloc-{bridge}"
    return PortMapper(backend, bridge=bridge, network=str(plan.network), name=name, forward=forward)
