"""Records as answers: addresses and moments become text."""

from __future__ import annotations

from netalloc.address_values import as_ip
from netalloc.errors import InterfaceError
from netalloc.ipam.networks import ports_text
from netalloc.operations import answers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from netalloc.address_values import IP
    from netalloc.ipam.history import PastLease
    from netalloc.ipam.networks import NetworkInfo
    from netalloc.manager.view import Held, Kept, Usage
    from netalloc.model import PortMapping


def moment(when: datetime) -> str:
    """A moment as ISO 8601 in UTC, to the microsecond.

    >>> from datetime import datetime, timezone
    >>> moment(datetime(2026, 5, 1, 12, 30, tzinfo=timezone.utc))
    '2026-05-01T12:30:00.000000Z'
    """
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")


def network(info: NetworkInfo, usage: Usage) -> answers.Network:
    """A network and how much of it is in use."""
    ports = bridge_ports(info.bridge) if info.backend != "null" else None
    return answers.Network(
        info.name,
        info.mode,
        info.bridge,
        [str(subnet) for subnet in info.subnets],
        info.backend,
        ports_text(info.ports),
        list(info.exclude),
        info.cooldown,
        info.sticky,
        info.forward,
        info.isolation,
        list(info.services),
        usage.capacity,
        usage.held,
        usage.free,
        usage.cooling,
        usage.reserved,
        usage.ports,
        ports,
        None if ports is None else _limit(),
    )


def lease(held: Held, info: NetworkInfo) -> answers.Lease:
    """An address that is held, and all that goes with it."""
    attached = held.attached
    return answers.Lease(
        held.network,
        held.owner,
        held.key,
        held.generation,
        str(held.ip),
        [f"{ip}/{_prefixlen(info, ip)}" for ip in held.ips],
        [str(subnet.gateway) for subnet in info.subnets if subnet.gateway is not None],
        moment(held.since),
        dict(held.labels),
        [port(one) for one in held.ports],
        None
        if attached is None
        else answers.Attachment(
            attached.kind,
            attached.interface,
            attached.namespace,
            attached.peer,
            attached.mac,
            attached.mtu,
            bool(attached.made),
        ),
    )


def leases(held: list[Held], infos: Mapping[str, NetworkInfo]) -> list[answers.Lease]:
    """The same of many."""
    return [lease(one, infos[one.network]) for one in held if one.network in infos]


def port(mapping: PortMapping) -> answers.Port:
    """A mapping."""
    host_ip = mapping.host_ip
    return answers.Port(
        None if host_ip is None or not int(host_ip) else str(host_ip),
        mapping.host_port,
        mapping.count,
        mapping.protocol,
        str(mapping.dest[0]),
        mapping.dest[1],
    )


def past(network: str, ip: IP | str, one: PastLease) -> answers.Past:
    """A lease of an address in its history."""
    end = None if one.end is None else moment(one.end)
    return answers.Past(network, str(as_ip(ip)), one.owner, one.key, moment(one.start), end)


def reservation(kept: Kept) -> answers.Reservation:
    """An address that is kept."""
    return answers.Reservation(kept.network, str(kept.ip), kept.owner, moment(kept.since))


def bridge_ports(bridge: str | None) -> int | None:
    """How many ports a bridge of this machine has; None where there is none."""
    if bridge is None:
        return None
    from netalloc.host.bridge_count import port_indexes

    try:
        return len(port_indexes(bridge))
    except InterfaceError:
        return None


def _limit() -> int:
    from netalloc.host.bridge_count import MAX_PORTS

    return MAX_PORTS


def _prefixlen(info: NetworkInfo, ip: IP) -> int:
    return next(subnet.prefixlen for subnet in info.subnets if subnet.version == ip.version)
