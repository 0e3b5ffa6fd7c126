"""Putting a manager together: store, claim, network, kernel, in an order that undoes itself."""

from __future__ import annotations

from functools import partial

from netalloc._alloc import Subnet
from netalloc.errors import InUseError, InvalidValueError
from netalloc.ipam.addresses import Addresses
from netalloc.ipam.networks import (
    Statement,
    check_agreement,
    completed,
    enter,
    find,
    get,
    ports_of,
    purge,
    record_of,
    replace,
    services_of,
    subnets_of,
)
from netalloc.ipam.subnets import Subnets
from netalloc.logs import Log
from netalloc.manager.commit import Committer
from netalloc.manager.host_store import HostStore, open_store, private_store, shared_store
from netalloc.manager.leases import LeaseService
from netalloc.manager.mappings import ExclusiveMappings, NoMappings, SharedMappings
from netalloc.manager.undo import Teardown, attempt
from netalloc.store.records import Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from netalloc.ipam.publications import Publications
    from netalloc.ports import Probe
    from netalloc.store.protocol import Store, Transaction

    T = TypeVar("T")

    from netalloc.portmap.backend import Backend
    from netalloc.portmap.link import Link


log = Log(__name__)
REAL = ("nftables", "iptables")  # the backends that touch the kernel


def assemble(
    opened: Teardown,
    stated: Statement,
    store: object,
    part: Backend | None = None,
    probe: Probe | None = None,
    *,
    registered: bool = False,
) -> LeaseService:
    """The leases of a network as it is stated; `opened` gives everything back, in its order.

    A new network is entered when all the rest is there: the kernel's part is made inside the
    transaction that enters it, so that a refusal leaves nothing registered.
    """
    if stated.backend is None and store is None:
        stated = _complete(stated)
    host = _host_store(stated, store)
    opened.push(host.close)
    while True:
        network = _look(host, stated)
        if network is None and registered:
            network = _read(host.store, lambda tx: get(tx, stated.name))  # says which there are
        if network is None or not network.backend:
            whole = _complete(_with_subnet(stated, network))
        else:
            whole = stated._replace(backend=network.backend)
        made = Teardown()
        make = partial(mappings_of, part=part, store=host.store, made=made)
        try:
            if whole.backend in REAL:
                host.claim(stated.name)
            known = network is not None and network.backend
            if network is not None and known:
                mappings = make(network)
                mappings.setup()
            else:
                registered_now = _register(host.store, whole, make)
                if registered_now is None:
                    continue  # another process was quicker: look again
                network, mappings = registered_now
            leases = service_of(host, network, mappings, probe)
            ours = type(host.store).__module__.startswith("netalloc.store.")
            leases.calls_back = not (ours and part is None and probe is None)
            if known and not host.store.persistent:
                leases.committer.reconcile()
            else:
                leases.committer.recover()
            opened.push(mappings.close)
            made.forget()
            break
        finally:
            made.close()
    if host.shared:
        opened.push(partial(_take_back, host, network))
    opened.push(leases.holds.close)
    opened.push(partial(_close_attaching, leases))
    opened.push(leases.committer.close)
    return leases


def _close_attaching(leases: LeaseService) -> None:
    """Its socket, if anything was attached or taken off."""
    service = leases.__dict__.get("attaching")
    if service is not None and service.ways is not None:
        service.ways.close()


def service_of(
    host: HostStore, network: Network, mappings: ExclusiveMappings, probe: Probe | None
) -> LeaseService:
    publications = _publications(network, probe)
    if network.backend in REAL:
        publications()  # it warns of ports that the host uses itself
    committer = Committer(
        host.store, mappings, network.number, lambda tx: publications().desired(tx)
    )
    flows = None
    if host.owed is not None:
        from netalloc.manager.stale_flows import StaleFlows

        flows = StaleFlows(host.owed)
        flows.finish()
    leases = LeaseService(network, Addresses.of(network), publications, mappings, committer, flows)
    if network.isolation == "guarded" and mappings.guard is not None:
        committer.guard = leases.guarding.reconcile
    return leases


def _publications(network: Network, probe: Probe | None) -> Callable[[], Publications]:
    """What makes them at its first call: a process that publishes nothing never loads them."""
    made: list[Publications] = []

    def get() -> Publications:
        if not made:
            made.append(_made_publications(network, probe))
        return made[0]

    return get


def _made_publications(network: Network, probe: Probe | None) -> Publications:
    from netalloc.ipam.publications import Publications

    subnets, ports, check = subnets_of(network), ports_of(network), None
    if network.backend in REAL:
        from netalloc.manager.host_checks import HostCheck, host_probe

        versions = tuple([subnet.version for subnet in subnets.each])
        probe = host_probe(ports, versions) if probe is None else probe
        check = HostCheck(versions)
    return Publications(network.number, subnets, ports, probe, check)


def _host_store(stated: Statement, store: object) -> HostStore:
    if store is not None:
        return open_store(store)
    return shared_store() if stated.backend in REAL else private_store()


def _look(host: HostStore, stated: Statement) -> Network | None:
    """The record of the network, which must not say anything else than is stated."""
    network = _read(host.store, lambda tx: find(tx, stated.name))
    if network is None:
        return None
    if stated.fresh:
        raise InUseError(f"network {stated.name} is registered already: open() it", stated.name)
    if host.shared:
        raise InUseError(
            f"network {stated.name} is managed in memory, by this process: two managers of a "
            "network need a store to share",
            stated.name,
        )
    check_agreement(network, stated)
    return network


def _read(store: Store, view: Callable[[Transaction], T]) -> T:
    return store.view(view)


def _with_subnet(stated: Statement, network: Network | None) -> Statement:
    """What is stated, with the addresses of the record, or else of the bridge."""
    if stated.subnets is not None:
        return stated
    if network is not None:
        return stated._replace(subnets=subnets_of(network), bridge=network.bridge)
    if stated.bridge is None:
        raise InvalidValueError(
            f"network None: routed network {stated.name} is not registered, and has no bridge to "
            "take its addresses from"
        )
    from netalloc.host.links import interface_address

    subnet = Subnet(str(interface_address(stated.bridge)))
    return stated._replace(subnets=Subnets((subnet,)))


def _complete(stated: Statement) -> Statement:
    """What is stated, with the best backend that works here where none is named."""
    if stated.backend is not None:
        return stated
    from netalloc.portmap.choice import choose

    return stated._replace(backend=choose())


def _remove_others(network: Network) -> None:
    """Take away what another backend has under the network's name, from a store that is gone."""
    if network.backend in REAL:
        from netalloc.portmap.choice import remove_others

        name, networks = kernel_name(network.name), subnets_of(network).pair
        for what in remove_others(name, network.backend, link_of(network), networks):
            log.warning("network %s: removed what another backend had left: %s", network.name, what)


def kernel_name(network: str) -> str:
    """What tables and chains of a network are called; a chain's name has 24 characters."""
    if len(network) > 15:
        from hashlib import blake2s

        network = f"{network[:6]}-{blake2s(network.encode(), digest_size=4).hexdigest()}"
    return f"netalloc-{network}"


def link_of(network: Network) -> Link:
    """By what its containers are reached."""
    from netalloc.ipam.attachments import group_of
    from netalloc.portmap.link import Link

    subnets = [subnets_of(network).of_version(version) for version in (4, 6)]
    gateways = tuple([None if subnet is None else subnet.gateway for subnet in subnets])
    group = group_of(network.number)
    return Link(network.bridge, group, gateways, network.isolation)  # type: ignore[arg-type]


def mappings_of(
    network: Network, part: Backend | None, store: Store, made: Teardown
) -> ExclusiveMappings:
    """The kernel's part, which `made` closes; nothing of it is there yet."""
    if part is None and network.backend == "null":
        return NoMappings()
    from netalloc.portmap.choice import make_backend
    from netalloc.portmap.kernel import KernelMappings

    made.close()  # of an attempt that the store has taken back
    kind = SharedMappings if store.persistent else ExclusiveMappings
    if part is not None:
        mappings = kind(KernelMappings(part))
    else:
        link, pair, name = link_of(network), subnets_of(network).pair, kernel_name(network.name)
        services = services_of(network)
        backend = make_backend(network.backend, name, link, pair, shared=True, services=services)
        forward = bool(network.forward)
        kernel = KernelMappings(backend, link=link, network=pair, name=name, forward=forward)
        mappings = kind(kernel)
    made.push(mappings.close)
    return mappings


def _register(
    store: Store, stated: Statement, make: Callable[[Network], ExclusiveMappings]
) -> tuple[Network, ExclusiveMappings] | None:
    """Enter the network and make its part in the kernel, or neither.

    None where another process has registered it since we looked. What the kernel has under its
    name, from a store that is gone, goes. The kernel is told of the network's number, which it
    has once it is entered.
    """

    def register(tx: Transaction) -> tuple[Network, ExclusiveMappings] | None:
        network = find(tx, stated.name)
        if network is not None and network.backend:
            return None
        if network is None:
            network = enter(tx, stated, near)
        else:
            replace(tx, network, fresh := completed(network, stated))
            network = fresh
        from netalloc.ipam.publications import Publications

        mappings = make(network)
        try:
            mappings.setup()
            _remove_others(network)
            _remove_interfaces(network)
            subnets = subnets_of(network)
            of = Publications(network.number, subnets, ports_of(network))
            mappings.reconcile(of.desired(tx))
            if mappings.guard is not None:
                mappings.guard.reconcile((), ())
            tx.commit()
        except BaseException:
            if not tx.committed:
                failure = attempt(mappings.cleanup)
                if failure is not None:
                    log.warning("what could not be set up could not be cleaned up: %s", failure)
            raise
        return network, mappings

    from netalloc.ipam.nearby import nearby

    wanted = record_of(0, stated)
    near = _read(store, lambda tx: nearby(tx, wanted))
    return store.run("register", register, durable=True)


def _take_back(host: HostStore, network: Network) -> None:
    """Take what a manager in memory held out of the store that it shared."""

    from netalloc.ipam.check import rebuild_ports

    _remove_interfaces(network)

    def take_back(tx: Transaction) -> None:
        purge(tx, network)
        rebuild_ports(tx)

    host.store.run("close", take_back)


def _remove_interfaces(network: Network) -> None:
    if network.backend in REAL:
        from netalloc.host.attached import detach_present, present
        from netalloc.ipam.attachments import alias_prefix

        detach_present(present(alias_prefix(network.name)).values())


def kernel_cleanup(network: Network, store: Store) -> None:
    """Remove what a network has in the kernel; its bridge may be gone."""
    if network.backend not in REAL:
        return
    host = HostStore(store, owned=False)
    try:
        host.claim(network.name)
        _remove_interfaces(network)
        made = Teardown()
        try:
            mappings_of(network, None, store, made).cleanup()
        finally:
            made.close()
    finally:
        host.close()
