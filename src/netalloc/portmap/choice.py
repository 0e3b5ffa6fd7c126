"""Which backend makes the mappings: the one that is named, or the best that works here."""

import logging
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, TypeAlias

from netalloc.errors import InvalidValueError, OutOfRangeError
from netalloc.family import NO_NETWORK, V4, NetworkPair
from netalloc.model import PortMapping
from netalloc.portmap.backend import Backend
from netalloc.portmap.link import NO_LINK, Link
from netalloc.values import shown

if TYPE_CHECKING:
    from netalloc.portmap.iptables.forward import ForwardAccept
    from netalloc.portmap.nftables.guard import Guard

logger = logging.getLogger(__name__)

_Network: TypeAlias = IPv4Network | IPv6Network | str
Networks: TypeAlias = _Network | Sequence[_Network] | NetworkPair

BACKENDS = ("auto", "nftables", "iptables", "null")


def networks_of(network: Networks | None, bridge: str | None) -> NetworkPair:
    """What is behind a bridge: one network, as text or as an object, or one of each family.

    None is that of the bridge's IPv4 address.
    """
    if isinstance(network, NetworkPair):
        return network
    if network is None:
        if bridge is None:
            return NO_NETWORK
        from netalloc.host.links import interface_address

        return NetworkPair(interface_address(bridge).network)
    if isinstance(network, tuple | list):
        given = [_network(one) for one in network]
    else:
        given = [_network(network)]
    pair = NetworkPair(
        next((one for one in given if isinstance(one, IPv4Network)), None),
        next((one for one in given if isinstance(one, IPv6Network)), None),
    )
    if not given or len(given) != len(pair.families):
        raise InvalidValueError(
            f"network {shown(network)} is not one network, or one of IPv4 and one of IPv6"
        )
    return pair


def _network(value: object) -> IPv4Network | IPv6Network:
    if isinstance(value, IPv4Network):
        return IPv4Network((int(value.network_address), value.prefixlen))
    if isinstance(value, IPv6Network):
        return IPv6Network((int(value.network_address), value.prefixlen))
    if not isinstance(value, str):
        raise InvalidValueError(f"network {shown(value)} is not an IP network")
    try:
        return ip_network(str.__str__(value), strict=False)
    except ValueError as error:
        raise OutOfRangeError(f"network {shown(value)}: {error}"[:300]) from None


def make_backend(
    backend: str,
    name: str,
    link: Link,
    networks: NetworkPair,
    *,
    shared: bool = False,
    services: tuple[str, ...] = (),
) -> Backend:
    """The backend of that name; `shared`: of a manager, in the table of all the host's networks."""
    if backend == "null":
        from netalloc.portmap.null import Null

        return Null()
    if backend == "iptables":
        from netalloc.portmap.iptables.backend import Iptables

        guard = _guard(link, name, services) if shared else None
        return Iptables(name, link=link, networks=networks, guard=guard)
    if backend == "nftables":
        from netalloc.portmap.nftables.backend import HOST_TABLE, Nftables

        if shared:
            return Nftables(HOST_TABLE, link=link, networks=networks, owner=name, services=services)
        return Nftables(name, link=link, networks=networks)
    if backend == "auto":
        chosen = choose(None if shared else name)
        return make_backend(chosen, name, link, networks, shared=shared, services=services)
    raise OutOfRangeError(f"backend {shown(backend)} is none of {', '.join(BACKENDS)}")


def _guard(link: Link, name: str, services: tuple[str, ...]) -> "Guard":
    """The guard of a network whose mappings are of iptables: nftables' own, in tables by itself."""
    from netalloc.host.lazy_socket import LazySocket
    from netalloc.host.netlink import NETLINK_NETFILTER
    from netalloc.portmap.nftables.backend import HOST_TABLE
    from netalloc.portmap.nftables.guard import Guard

    return Guard(link, name, services, HOST_TABLE, LazySocket(NETLINK_NETFILTER))


def make_forward(name: str, link: Link, networks: NetworkPair) -> "ForwardAccept":
    if link.bridge is None and not link.is_routed:
        raise OutOfRangeError("forward needs the bridge whose packets to accept; it is None")
    from netalloc.portmap.iptables.forward import ForwardAccept

    return ForwardAccept(name, link, networks.families or (V4,))


def choose(name: str | None = None) -> str:
    """nftables where the kernel and privileges allow it, otherwise iptables.

    `name` is that of a table; by itself that of all the host's networks.
    """
    from netalloc.portmap.nftables.backend import HOST_TABLE
    from netalloc.portmap.nftables.structure import unavailable

    reason = unavailable(name or HOST_TABLE)
    if reason is None:
        logger.info("port mappings by nftables: a map element each")
        return "nftables"
    logger.info("port mappings by iptables, because nftables cannot be used: %s", reason)
    return "iptables"


def remove_others(
    name: str, keep: str, link: Link = NO_LINK, networks: NetworkPair = NO_NETWORK
) -> list[str]:
    """Remove what other backends than `keep` have of a manager's network; says what that was.

    After a change of the backend, a crash or another store, the rules of the last one would
    still lead to its containers: its part of the table of nftables, and the chains of both
    variants of iptables, of which with keep="iptables" the one on PATH stays. Flows that went
    through them are flushed. Others' chains and tables stay, a tool that is missing is no error.
    That there is nothing is found out in 0.1 ms without starting a process, unless there are
    tables of legacy iptables: then in 2 ms. Raises CommandError.
    """
    from netalloc.host.conntrack import Flows
    from netalloc.portmap.iptables import leavings
    from netalloc.portmap.iptables.commands import variant
    from netalloc.portmap.link_settings import settings_of
    from netalloc.portmap.nftables.backend import HOST_TABLE, Nftables

    found: list[str] = []
    stale: list[PortMapping] = []
    if keep != "nftables":
        other = Nftables(HOST_TABLE, link=link, networks=networks, owner=name)
        if keep != "null":
            other.guard = None  # the network's own goes on
        try:
            if other.is_there():
                gone = other.mappings()
                other.cleanup()
                stale += gone
                found.append(f"{name} of nftables with {len(gone)} mappings")
        finally:
            other.close()
    for kind in leavings.VARIANTS:
        families = list(leavings.tables_of(kind, name))
        if families and keep == "iptables":
            # What the network has no subnet of any more is left over, too.
            kept = networks.families or (V4,)
            families = [f for f in families if f not in kept or variant(f) != kind]
        if leavings.is_there(kind, name, families):
            if keep != "iptables":
                settings_of(link, f"iptables {name}", networks).withdraw()
            gone = leavings.remove(kind, name, families)
            stale += gone
            found.append(f"chain {name} of iptables-{kind} with {len(gone)} mappings")
    if stale:
        flows = Flows()
        try:
            flows.flush(stale, added=False)
        finally:
            flows.close()
    for what in found:
        logger.warning("removed %s, which another backend had left", what)
    return found
