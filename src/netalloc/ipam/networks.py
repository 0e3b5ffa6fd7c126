"""The networks of a store: each is configured once, and none is in another's way.

The record of a network says all that a manager needs. A caller that states something else than
the record is refused with both values; what a caller leaves out is as registered. To configure
a network anew it is removed first, which takes that nothing of it is in use.
"""

from __future__ import annotations

from netalloc._alloc import Subnet
from netalloc.errors import InUseError, InvalidValueError, NotAllocatedError
from netalloc.ipam.clock import SECOND
from netalloc.ipam.subnets import Subnets
from netalloc.light import NamedTuple
from netalloc.store.records import (
    Allowance,
    Attachment,
    Cooldown,
    GcCandidate,
    Label,
    LastHolder,
    Lease,
    Network,
    Publication,
    Reservation,
)
from netalloc.values import PORTS, as_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Network, IPv6Network
    from typing import Any

    from netalloc.store.protocol import Transaction

CONFIGURED = "networks"  # the counter that grows whenever a record of a network changes
REPLACED = "replaced"  # the one that grows where another record is put in a network's place
MODES = ("bridge", "routed")
ISOLATION = ("open", "guarded")

# A network's name is the bridge's unless given, and chains and tables are called after it.
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:@-")


class Statement(NamedTuple):
    """What a caller says of a network; None where nothing is said.

    A routed network has no bridge. `fresh`: that it is not registered yet.
    """

    name: str
    bridge: str | None = None
    mode: str | None = None
    subnets: Subnets | None = None
    exclude: tuple[Any, ...] | None = None
    backend: str | None = None
    ports: range | None = None
    cooldown: float | None = None
    sticky: float | None = None
    forward: bool | None = None
    isolation: str | None = None
    services: tuple[str, ...] | None = None
    fresh: bool = False


class NetworkInfo(NamedTuple):
    """How a network is configured; `subnet` is the first of the `subnets`, the IPv4 one if any."""

    name: str
    bridge: str | None
    mode: str
    subnet: Subnet
    backend: str
    ports: range
    cooldown: float
    sticky: float
    forward: bool
    subnets: tuple[Subnet, ...]
    isolation: str
    services: tuple[str, ...]
    exclude: tuple[str, ...]


class Nearby(NamedTuple):
    """The numbers of networks that one is in the way of, as long as CONFIGURED is that."""

    configured: int
    numbers: tuple[int, ...]


def as_network_name(name: object) -> str:
    """A name that chains and tables can be called after: 1 to 64 letters, digits and `_.:@-`."""
    plain = as_text(name, "network name", 64)
    if plain[0] == "-" or not all(c in _LETTERS for c in plain):
        raise InvalidValueError(f"network name {plain!r} has more than letters, digits, _.:@-")
    return plain


def subnets_of(network: Network) -> Subnets:
    """The addresses of a network, those that are never given among them."""
    bare = Subnets([Subnet(spec) for spec in (network.subnet, network.subnet6) if spec])
    return bare.without(network.exclude.split(",")) if network.exclude else bare


def prefixes_of(network: Network) -> list[IPv4Network | IPv6Network]:
    """The network's prefixes, one or one of each family."""
    from ipaddress import ip_interface

    return [ip_interface(spec).network for spec in (network.subnet, network.subnet6) if spec]


def info(network: Network) -> NetworkInfo:
    """A network's record, for people and programs to read."""
    subnets = subnets_of(network)
    return NetworkInfo(
        network.name,
        network.bridge,
        network.mode,
        subnets.first,
        network.backend,
        ports_of(network),
        network.cooldown_ns / SECOND,
        network.sticky_ns / SECOND,
        bool(network.forward),
        subnets.each,
        network.isolation,
        services_of(network),
        subnets.exclude,
    )


def ports_of(network: Network) -> range:
    """The range of a network's automatic picks of host ports.

    >>> ports_text(range(8000, 8010)), ports_text(range(8010, 7999, -2))
    ('8000-8009', '8010-8000/2')
    """
    if not network.ports:
        return PORTS
    span, _, step = network.ports.partition("/")
    first, last = map(int, span.split("-"))
    sign = 1 if first <= last else -1
    return range(first, last + sign, sign * int(step or 1))


def services_of(network: Network) -> tuple[str, ...]:
    """The ports of the host that guarded containers reach: "53/udp"."""
    return tuple(network.services.split(",")) if network.services else ()


def ports_text(ports: range) -> str:
    """A range of ports as a record has it: first-last, and the step where it is not 1."""
    step = abs(ports.step)
    return f"{ports[0]}-{ports[-1]}" + (f"/{step}" if step != 1 and len(ports) > 1 else "")


def record_of(number: int, stated: Statement) -> Network:
    """A record with what is stated, and the defaults for the rest."""
    subnets, mode = _whole(stated), stated.mode or "bridge"
    isolation = stated.isolation or ("guarded" if mode == "routed" else "open")
    _check_isolation(stated, isolation)
    v4, v6 = subnets.of_version(4), subnets.of_version(6)
    return Network(
        number,
        stated.name,
        stated.bridge,
        mode,
        None if v4 is None else str(v4),
        None if v6 is None else str(v6),
        ",".join(subnets.exclude),
        stated.backend or "",
        ports_text(stated.ports if stated.ports is not None else PORTS),
        _ns(stated.cooldown or 0.0),
        _ns(stated.sticky or 0.0),
        int(stated.forward or False),
        isolation,
        ",".join(stated.services or ()),
    )


def find(tx: Transaction, name: str) -> Network | None:
    """The network of that name."""
    found = tx.table(Network).where("name", equal=(name,), limit=1)
    return found[0] if found else None


def networks(tx: Transaction, near: Nearby | None = None) -> list[Network]:
    """All networks of the store, by name; only those that are near, where that is known."""
    table = tx.table(Network)
    if near is None or near.configured != tx.last(CONFIGURED):
        found = table.all()
    else:
        found = [one for number in near.numbers if (one := table.get(number)) is not None]
    return sorted(found, key=lambda network: network.name)


def get(tx: Transaction, name: str) -> Network:
    """The same, which must be there: NotAllocatedError."""
    network = find(tx, name)
    if network is None:
        known = ", ".join(one.name for one in networks(tx)) or "none"
        raise NotAllocatedError(f"there is no network {name} in this store; there are: {known}")
    return network


def completed(network: Network, stated: Statement) -> Network:
    """The record, with what is stated where it says nothing: one brought from an older file."""
    if network.backend:
        return network
    subnets = stated.subnets or subnets_of(network)
    fresh = record_of(network.number, stated._replace(subnets=subnets))
    return fresh._replace(
        name=network.name, bridge=network.bridge, subnet=network.subnet, subnet6=network.subnet6
    )


def check_agreement(network: Network, stated: Statement) -> None:
    """Raise InUseError, naming both values, where a caller states something else."""
    for what, registered, wanted in _differences(network, stated):
        raise InUseError(
            f"network {network.name} is registered with {what} {registered}, not {wanted}: leave "
            f"it out to take what is registered, or remove the network to configure it anew",
            network.name,
        )


def enter(tx: Transaction, stated: Statement, near: Nearby | None = None) -> Network:
    """Enter a new network. Raises InUseError where it is in the way of another.

    `near`: where a view has looked for these already; where it is out of date, or None, all
    networks are looked at.
    """
    network = record_of(0, stated)
    if find(tx, network.name) is not None:
        raise InUseError(f"network {network.name} is registered already", network.name)
    for other in networks(tx, near):
        if network.bridge is not None and other.bridge == network.bridge:
            raise InUseError(f"bridge {network.bridge} is of network {other.name}", other.name)
        for theirs in prefixes_of(other):
            for ours in prefixes_of(network):
                if theirs.version == ours.version and theirs.overlaps(ours):
                    raise InUseError(
                        f"{ours} of {network.name} overlaps {theirs} of {other.name}", other.name
                    )
    network = network._replace(number=tx.next("network"))
    tx.table(Network).add((network,))
    tx.next(CONFIGURED)
    return network


def replace(tx: Transaction, network: Network, fresh: Network) -> None:
    """Put another record in a network's place."""
    table = tx.table(Network)
    table.remove((network,))
    table.add((fresh,))
    tx.next(CONFIGURED)
    tx.next(REPLACED)


def remove(tx: Transaction, network: Network) -> None:
    """Take a network out of the store. Raises InUseError while addresses are held or reserved."""
    number = (network.number,)
    kind: type[Any]
    for kind, how in ((Lease, "leased"), (Reservation, "reserved")):
        held = len(tx.table(kind).where("network", equal=number))
        if held:
            raise InUseError(
                f"network {network.name} has {held} addresses {how}: release them first",
                network.name,
            )
    for kind in (Cooldown, LastHolder, GcCandidate, Attachment, Allowance):
        table = tx.table(kind)
        table.remove(table.where("network", equal=number))
    name = f"addresses/{network.number}"
    if tx.known(name):
        tx.drop(name)
    tx.table(Network).remove((network,))
    tx.next(CONFIGURED)


def _check_isolation(stated: Statement, isolation: str) -> None:
    if isolation == "open" and stated.services:
        raise InvalidValueError(
            f"services {', '.join(stated.services)}: network {stated.name} is open, where every "
            "port of the host is reached; isolation='guarded' closes the others"
        )


def _whole(stated: Statement) -> Subnets:
    """The stated subnets with their exclusions."""
    assert stated.subnets is not None, "a new network has a subnet"
    return stated.subnets if stated.exclude is None else stated.subnets.without(stated.exclude)


def _stated_exclusions(stated: Statement) -> tuple[Any, ...] | None:
    if stated.subnets is None or not stated.subnets.exclude:
        return stated.exclude
    return (*stated.subnets.exclude, *(stated.exclude or ()))


def _listed(subnets: Subnets) -> str:
    return ", ".join(subnets.exclude) or "nothing"


def purge(tx: Transaction, network: Network) -> None:
    """Take a network and all that it holds out of the store. O(held)."""
    number = (network.number,)
    kind: type[Any]
    for kind in (Publication, Label, Lease, Reservation):
        table = tx.table(kind)
        table.remove(table.where("network", equal=number))
    remove(tx, network)


def _ns(seconds: float) -> int:
    return int(seconds * SECOND)


def _differences(network: Network, stated: Statement) -> Iterator[tuple[str, object, object]]:
    if stated.bridge is not None and stated.bridge != network.bridge:
        yield "bridge", network.bridge or "none", stated.bridge
    if stated.mode is not None and stated.mode != network.mode:
        yield "mode", network.mode, stated.mode
    if stated.subnets is not None:
        registered = subnets_of(network)
        if str(registered) != str(stated.subnets):
            yield "subnet", registered, stated.subnets
    if network.backend and (wanted := _stated_exclusions(stated)) is not None:
        registered = subnets_of(network)
        other = Subnets([Subnet(str(subnet)) for subnet in registered.each]).without(wanted)
        if registered != other:
            yield "exclude", _listed(registered), _listed(other)
    if not network.backend:  # the rest is not configured yet
        return
    if stated.backend is not None and stated.backend != network.backend:
        yield "backend", network.backend, stated.backend
    if stated.ports is not None and ports_text(stated.ports) != network.ports:
        yield "ports", network.ports, ports_text(stated.ports)
    for what, registered_ns, seconds in (
        ("cooldown", network.cooldown_ns, stated.cooldown),
        ("sticky", network.sticky_ns, stated.sticky),
    ):
        if seconds is not None and _ns(seconds) != registered_ns:
            yield what, f"{registered_ns / SECOND:g} s", f"{seconds:g} s"
    if stated.forward is not None and stated.forward != bool(network.forward):
        yield "forward", bool(network.forward), stated.forward
    if stated.isolation is not None and stated.isolation != network.isolation:
        yield "isolation", network.isolation, stated.isolation
    if stated.services is not None and stated.services != services_of(network):
        yield "services", network.services or "none", ", ".join(stated.services) or "none"
