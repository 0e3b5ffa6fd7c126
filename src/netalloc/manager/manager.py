"""Interfaces for the containers of one network: values checked, parts put together."""

from __future__ import annotations

import os
from _thread import RLock
from datetime import datetime

from netalloc._alloc import is_plain_text
from netalloc.closing import Closing
from netalloc.errors import InvalidValueError
from netalloc.ipam.clock import SECOND
from netalloc.ipam.networks import Statement, as_network_name
from netalloc.locks import holding
from netalloc.manager.assembly import assemble
from netalloc.manager.configured import ConfiguredNetwork
from netalloc.manager.guarded import GuardedNetwork
from netalloc.manager.interface import NetworkInterface, as_address, as_requests
from netalloc.manager.many import ManyInterfaces
from netalloc.manager.undo import Teardown
from netalloc.values import (
    MAX_TEXT,
    as_each,
    as_flag,
    as_label,
    as_labels,
    as_optional_text,
    as_seconds,
    as_text,
    shown,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn

    from netalloc.address_values import IP
    from netalloc.ipam.history import PastLease
    from netalloc.manager.statement import StatedNetwork
    from netalloc.model import PortRequest, ReconcileResult
    from netalloc.portmap.backend import Backend
    from netalloc.portmap.watch import Watch
    from netalloc.ports import Probe
    from netalloc.store.protocol import Store


class NetworkManager(Closing, ManyInterfaces, GuardedNetwork, ConfiguredNetwork):
    """Gives out the addresses of a bridge's network, and host ports that lead to them.

    `network` is written as the gateway would ("10.88.0.1/16"), or a Subnet; without it the
    bridge's own address is taken. With one of each family, ("10.88.0.1/16", "fd00:88::1/64"),
    each interface has an address of both, at the same place of each. `exclude` names addresses
    and networks that are never given.
    `ports` bounds the automatic picks of host ports. `backend` is "nftables", "iptables",
    "null" or "auto". `store` is the path of a file that outlives the process and may be shared
    by many; without it everything is in memory and ends with the manager. `name` is what the
    network is called in the store, the bridge's name unless given. `mode` is "bridge", or
    "routed" without one, and `isolation` "open" or, as in a routed network unless stated,
    "guarded": then containers send as themselves, and reach no sibling that is not allowed and
    of the host the ports in `services` alone ("53/udp"), which takes nftables in the kernel.

    A released address is kept out for `cooldown` seconds; an owner that comes back within
    `sticky` seconds gets its address again if it is free. `forward` accepts the containers'
    packets where the host's FORWARD chain drops them. `probe(port, protocol, host_ip)` says of
    each automatic pick whether the host has it free; without it, and with a backend that
    touches the kernel, a port is tried by binding it.

    A network is configured once: what is left out is as registered in the store, and what is
    stated otherwise is an InUseError that names both values. Whatever touches the kernel of one
    network namespace shares one store: a second one is an InUseError that names the first.
    On the host this switches on net.ipv4.ip_forward, and route_localnet on the bridge alone,
    behind a guard that keeps 127.0.0.0/8 from the containers.

    Thread-safe. An allocation takes constant time, however many addresses are held. Raises
    InvalidValueError, InterfaceError, InUseError, CommandError, StoreError; then nothing is
    registered.

    >>> with NetworkManager("br0", network="10.88.0.1/16", backend="null") as manager:
    ...     web = manager.allocate(owner="web")
    ...     print(web.address, web.gateway, web.allocate_port(80))
    10.88.0.2/16 10.88.0.1 49153
    """

    def __init__(
        self,
        bridge: str | None,
        *,
        network: StatedNetwork | None = None,
        exclude: Iterable[Any] | None = None,
        ports: range | None = None,
        backend: str | Backend = "auto",
        store: str | os.PathLike[str] | Store | None = None,
        name: str | None = None,
        cooldown: float | None = None,
        sticky: float | None = None,
        forward: bool | None = None,
        mode: str | None = None,
        isolation: str | None = None,
        services: Iterable[str] | None = None,
        probe: Probe | None = None,
    ) -> None:
        from netalloc.manager.statement import statement

        stated, part = statement(
            bridge,
            network=network,
            exclude=exclude,
            ports=ports,
            backend=backend,
            name=name,
            cooldown=cooldown,
            sticky=sticky,
            forward=forward,
            mode=mode,
            isolation=isolation,
            services=services,
        )
        self._assemble(stated, store, part, probe)

    @classmethod
    def _create(
        cls, bridge: str | None, store: object, *, probe: Probe | None = None, **configuration: Any
    ) -> NetworkManager:
        """The manager of a network that is not registered yet: InUseError where it is."""
        self = cls.__new__(cls)
        from netalloc.manager.statement import statement

        stated, part = statement(bridge, **configuration)
        self._assemble(stated._replace(fresh=True), store, part, probe)
        return self

    @classmethod
    def open(
        cls, name: str, store: str | os.PathLike[str] | Store, *, probe: Probe | None = None
    ) -> NetworkManager:
        """The manager of a network that is registered in a store, with all its configuration.

        Raises NotAllocatedError for a name that is not registered, naming those that are.
        """
        self = cls.__new__(cls)
        if store is None:
            raise InvalidValueError("store None has no network to open: give a path")
        self._assemble(Statement(as_network_name(name)), store, None, probe, registered=True)
        return self

    def _assemble(
        self,
        stated: Statement,
        store: object,
        part: Backend | None,
        probe: Probe | None,
        *,
        registered: bool = False,
    ) -> None:
        if probe is not None and not callable(probe):
            raise InvalidValueError(f"probe {shown(probe)} cannot be called")
        self._closing = RLock()
        self._opened = Teardown()
        try:
            self._leases = assemble(self._opened, stated, store, part, probe, registered=registered)
        except BaseException:
            self._opened.close()
            raise

    # ---- allocation

    def allocate(
        self,
        owner: str | None = None,
        ip: IP | str | None = None,
        *,
        key: str | None = None,
        labels: dict[str, str] | None = None,
        ports: Iterable[int | PortRequest] = (),
        allow_cooling: bool = False,
        check_host: bool = True,
    ) -> NetworkInterface:
        """An interface with the next free address, or with `ip`, and with `ports` published.

        `key` makes it idempotent: the same owner that asks again gets the same interface; with
        another address, other ports or other labels that is an InUseError which says how they
        differ. `allow_cooling` gives an address that still cools down when no other is left.
        A port asked for by number must be free on the host, and a host address its own, unless
        `check_host` is False. Raises ExhaustedError, InUseError (naming the holder),
        InvalidValueError, CommandError; then nothing was taken.
        """
        if owner is not None and not is_plain_text(owner, MAX_TEXT):
            owner = as_text(owner, "owner")
        if key is not None:
            key = as_text(key, "key")
            if owner is None:
                raise InvalidValueError(f"key {key!r} without an owner")
        leases = self._leases
        lease = leases.allocate(
            owner,
            key,
            None if ip is None else as_address(ip),
            None if labels is None else as_labels(labels),
            () if type(ports) is tuple and not ports else as_requests(ports),
            allow_cooling if allow_cooling is False else as_flag(allow_cooling, "allow_cooling"),
            check_host if check_host is True else as_flag(check_host, "check_host"),
        )
        return NetworkInterface(leases, lease)

    def reserve(self, ip: IP | str, owner: str | None = None) -> None:
        """Keep an address for `owner`, or from everyone, until unreserve.

        A reservation outlives processes, boots and power cuts where the store does. The
        owner gets the address by `allocate`. Again for the same owner it is no error. Raises
        InUseError, OutOfRangeError.
        """
        plain, owner = as_address(ip), as_optional_text(owner, "owner")
        addresses = self._leases.addresses
        self._leases.run("reserve", lambda made: addresses.reserve(made.tx, plain, owner), True)

    def unreserve(self, ip: IP | str) -> None:
        """Keep an address no longer; a lease of it goes on. Raises NotAllocatedError."""
        plain, addresses = as_address(ip), self._leases.addresses
        self._leases.run("unreserve", lambda made: addresses.unreserve(made.tx, plain), True)

    def interfaces(self) -> list[NetworkInterface]:
        """Every interface of this network, in whatever process it was allocated."""
        return self.find()

    def find(
        self, owner: str | None = None, label: str | tuple[str, str] | None = None
    ) -> list[NetworkInterface]:
        """The interfaces of an owner, those with a label ("app=shop", or a pair), or all.

        By address. Raises InvalidValueError for a label without a value.
        """
        if owner is not None and not is_plain_text(owner, MAX_TEXT):
            owner = as_text(owner, "owner")
        found = self._leases.find(owner, None if label is None else as_label(label))
        return self._interfaces(found)

    def release(self, owner: str) -> int:
        """Release all that an owner has here; how many interfaces that were.

        Goes on past failures and raises them together, as an ExceptionGroup.
        """
        return self._leases.release_owner(as_text(owner, "owner"))

    # ---- upkeep

    def reconcile(self) -> ReconcileResult:
        """Make the kernel agree with what is published; returns what was repaired."""
        from netalloc.manager.upkeep import reconcile

        return reconcile(self._leases)

    def watch(self, on_repair: Callable[[ReconcileResult], None] | None = None) -> Watch:
        """Reconcile now, and within a second whenever another program changes the rules.

        Runs in a thread until the returned watch, or the manager, is closed. `on_repair` is
        called there with what was found. Of all processes that watch a network of a store one
        does it; another takes over when that ends or dies. Raises NetallocError where the
        kernel does not tell.
        """
        if on_repair is not None and not callable(on_repair):
            raise InvalidValueError(f"on_repair {shown(on_repair)} cannot be called")
        from netalloc.manager.upkeep import watch

        return watch(self._leases, on_repair)

    def gc(self, alive: Iterable[str], grace: float = 30.0) -> list[IP]:
        """Release what belongs to owners that are not among the living; the addresses freed.

        Two looks are needed, `grace` seconds or more apart; a lease that was made, or asked
        for again by its key, between them is spared, and so are leases without an owner.
        Raises InvalidValueError.
        """
        living = frozenset(as_each(alive, "alive", lambda owner: as_text(owner, "owner")))
        from netalloc.manager.upkeep import collect

        dead = collect(self._leases, living, int(as_seconds(grace, "grace") * SECOND))
        address = self._leases.subnets.address
        return [address(lease.ordinal) for lease in dead]

    def history(self, ip: IP | str, at: datetime | None = None) -> list[PastLease]:
        """What held an address, oldest first; with `at`, what did at that moment.

        The store remembers the last 10,000 leases that ended, for 30 days.
        """
        from netalloc.ipam.history import as_moment, history

        at = None if at is None else as_moment(at, "at")
        number = self._leases.addresses.number
        ordinal = self._leases.subnets.ordinal(as_address(ip))
        return self._leases.read(lambda tx: history(tx, number, ordinal, at))

    def check(self) -> list[str]:
        """What is wrong with the store, in itself and against the kernel; empty when all is well.

        O(held).
        """
        from netalloc.manager.upkeep import check

        return check(self._leases)

    def repair(self) -> list[str]:
        """Mend what check() finds, as far as it can be mended; says what was done.

        A copy of a file is kept first. See netalloc.manager.repair.repair, which works without
        a manager, too.
        """
        from netalloc.manager.repair import mend

        return mend(self._leases)

    @property
    def stale_releases(self) -> int:
        """How many releases came too late here, and changed nothing."""
        return self._leases.stale_releases

    def close(self) -> None:
        """Give everything back. What a file holds stays, its mappings too.

        Waits for calls in progress; later ones are a ClosedError. From any thread, twice is no
        error. One that was interrupted may be called again. Raises StoreError within a call.
        """
        self._leases.committer.close()  # before anything is given back that a call may need
        holding(self._closing, -1, "", self._give_back)

    def _give_back(self) -> None:
        if self._leases.committer.inherited:
            self._opened.forget()  # a forked child has nothing to give back
        self._opened.close()

    def __reduce__(self) -> NoReturn:
        raise InvalidValueError(
            f"{self!r} cannot be copied or pickled: NetworkManager.open(name, store) opens it "
            "elsewhere"
        )

    def __repr__(self) -> str:
        return f"<NetworkManager {self.name} {self._leases.subnets}>"
