"""Networks whose addresses lead nowhere but to the containers that have one.

Routed, each container has a route of its own, and what is for an address that none has would
follow the host's default route: out of the host, under its own address, or to and fro between the
host and the router that sends the network's packets to it. The last choice for such a network is
a route that says "unreachable", as a bridge does after three seconds.
"""

import errno
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, TypeAlias

from netalloc.family import family_of
from netalloc.host import rtnetlink
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkSocket, Request, explaining
from netalloc.host.opened import Entry

Network: TypeAlias = IPv4Network | IPv6Network

_WHAT: Final = "unreachable"  # in the record


def note(record: set[Entry], user: str, networks: Iterable[Network]) -> None:
    """Note that this user needs them closed; to be written before `close`."""
    record |= {Entry(_WHAT, user, 0, str(one)) for one in networks}


def close(networks: Iterable[Network]) -> tuple[str, ...]:
    """Close them; which were not. 10 µs each, however many routes there are."""
    given = list(networks)
    made = _send([rtnetlink.unreachable(*_place(one)) for one in given], errno.EEXIST)
    return tuple([f"network {one} had no end" for one, new in zip(given, made, strict=True) if new])


def withdraw(record: set[Entry], user: str) -> None:
    """Note that this user has gone; what it was the last one of is open again."""
    mine = {entry for entry in record if entry[:2] == (_WHAT, user)}
    record -= mine
    kept = {entry.interface for entry in record if entry.what == _WHAT}
    gone = [ip_network(entry.interface) for entry in mine if entry.interface not in kept]
    _send([rtnetlink.delete_unreachable(*_place(one)) for one in gone], errno.ESRCH)


def _place(network: Network) -> tuple[int, bytes, int]:
    family = family_of(network.version)
    return family.af, network.network_address.packed, network.prefixlen


def _send(requests: list[Request], passed: int) -> list[bool]:
    """Which did something; of the others the kernel said what is passed over."""
    if not requests:
        return []
    with explaining("the ends of networks"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            outcomes = netlink.outcomes(requests)
        finally:
            netlink.close()
        for failure in outcomes:
            if failure is not None and failure.errno != passed:
                raise failure
    return [failure is None for failure in outcomes]
