"""What holds an address or a host port, and why it can be had or not, in words."""

from __future__ import annotations

from netalloc.errors import InvalidValueError
from netalloc.ipam.addresses import Addresses
from netalloc.ipam.networks import networks, subnets_of
from netalloc.ipam.publications import holding
from netalloc.store.records import Lease, Reservation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.address_values import IP
    from netalloc.store.protocol import Transaction
    from netalloc.store.records import Network


def holders(tx: Transaction, protocol: str, port: int) -> list[tuple[Network, Lease]]:
    """The leases that publish a host port, each with its network."""
    by_number = {network.number: network for network in networks(tx)}
    rows = [row for row in holding(tx, port, protocol) if row.network in by_number]
    leases = [tx.table(Lease).get(row.network, row.ordinal) for row in rows]
    return [(by_number[lease.network], lease) for lease in leases if lease is not None]


def place_of_address(tx: Transaction, ip: IP) -> tuple[Network | None, int]:
    """The network that an address can be given by, and its ordinal there."""
    for network in networks(tx):
        subnets = subnets_of(network)
        if ip in subnets:
            return network, subnets.ordinal(ip)
    return None, 0


def why(tx: Transaction, ip: IP) -> str:
    """Why an address can be had or not, in a sentence."""
    for network in networks(tx):
        subnets = subnets_of(network)
        subnet = subnets.of_version(ip.version)
        if subnet is None or ip not in subnet.network:
            continue
        if ip == subnet.gateway:
            return f"{ip} is the gateway of network {network.name}"
        if ip not in subnet:
            return f"{ip} is never given by network {network.name}: it is excluded, or no host's"
        try:
            subnets.ordinal(ip)
        except InvalidValueError as error:  # its counterpart is not
            return f"{error} (network {network.name})"
        return _state(tx, network, Addresses.of(network), ip)
    known = ", ".join(f"{one.name} ({subnets_of(one).networks})" for one in networks(tx)) or "none"
    return f"{ip} is of no network of this store; there are: {known}"


def why_port(tx: Transaction, protocol: str, port: int) -> str:
    """Why a host port can be had or not, in a sentence."""
    found = holders(tx, protocol, port)
    if not found:
        return f"port {port}/{protocol} is free: no lease publishes it"
    return "; ".join([_published(port, protocol, *where) for where in found])


def _published(port: int, protocol: str, network: Network, lease: Lease) -> str:
    ip = subnets_of(network).address(lease.ordinal)
    return (
        f"port {port}/{protocol} is published by {lease.owner or ip} ({ip} of network "
        f"{network.name})"
    )


def _state(tx: Transaction, network: Network, addresses: Addresses, ip: IP) -> str:
    ordinal, where = addresses.subnets.ordinal(ip), f"network {network.name}"
    kept = tx.table(Reservation).get(network.number, ordinal)
    kept_for = "" if kept is None else f", reserved for {kept.owner or 'no owner'}"
    lease = tx.table(Lease).get(network.number, ordinal)
    if lease is not None:
        return f"{ip} of {where} is held by {lease.owner or 'a lease without an owner'}{kept_for}"
    left = addresses.cooling_for(tx, ordinal)
    if left:
        return f"{ip} of {where} is cooling down for another {left:.1f} s{kept_for}"
    if kept is not None:
        return f"{ip} of {where} is{kept_for.removeprefix(',')}"
    return f"{ip} of {where} is free"
