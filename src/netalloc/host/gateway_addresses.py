"""Addresses that routed containers see the host as: on `lo`, for none of their interfaces has one.

The host's own packets to a container have one as their source, and so has what comes to it through
a host port. An address that the host has anyhow, on whatever interface, is used as it is.
"""

import errno
import logging
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Final, TypeAlias

from netalloc.family import V6, family_of
from netalloc.host import rtnetlink
from netalloc.host.local_addresses import is_local
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkSocket, explaining
from netalloc.host.opened import Entry

logger = logging.getLogger(__name__)

Address: TypeAlias = IPv4Address | IPv6Address

_LO: Final = 1  # LOOPBACK_IFINDEX, the same in every namespace
_WHAT: Final = "gateway"  # in the record
_CHUNK: Final = 256  # messages in one send
_GONE: Final = (errno.EADDRNOTAVAIL, errno.ENODEV)


def are_there(addresses: Sequence[Address]) -> bool:
    """Whether the host has all of them; 10 µs each."""
    with explaining("the gateway addresses of this host"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            return all(is_local(netlink, one.packed) for one in addresses)
        finally:
            netlink.close()


def note(record: set[Entry], user: str, addresses: Sequence[Address]) -> list[Address]:
    """Note those that this user needs and that we put on `lo`, now or before; which are missing.

    What the host has by itself is not noted. The record has to be written before `put`: an address
    on `lo` does not say whose it is.
    """
    missing = []
    with explaining("the gateway addresses of this host"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            for one in addresses:
                is_there, text = is_local(netlink, one.packed), str(one)
                if not is_there:
                    missing.append(one)
                if not is_there or any(e.what == _WHAT and e.interface == text for e in record):
                    record.add(Entry(_WHAT, user, _LO, text))
        finally:
            netlink.close()
    return missing


def put(addresses: Sequence[Address]) -> tuple[str, ...]:
    """Put these on `lo`; what was wrong, in words."""
    with explaining("the gateway addresses on lo"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            for one in addresses:
                family = family_of(one.version)
                request = rtnetlink.add_address(_LO, family.af, one.packed, family.bits)
                for failure in filter(None, netlink.outcomes([request])):
                    raise failure
                logger.info("put gateway address %s on lo: routed containers know the host so", one)
        finally:
            netlink.close()
    return tuple([f"no interface had gateway address {one}" for one in addresses])


def mend_sources(gateway: IPv6Address, network: IPv6Network) -> None:
    """Say once more where the host's packets to the containers of a network come from.

    With an address the kernel takes the routes of IPv4 that name it as their source, and of IPv6
    the name alone: those are still there and would not be made again. O(routes), for the time
    when another program took a gateway away.
    """
    with explaining("the routes to containers"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            bodies, _ = netlink.dump(rtnetlink.GET_ROUTE, rtnetlink.all_routes(V6.af))
            found = map(rtnetlink.route_without_source, bodies)
            requests = [
                rtnetlink.replacing(rtnetlink.host_route(index, V6.af, packed, gateway.packed))
                for packed, index in filter(None, found)
                if IPv6Address(packed) in network
            ]
            for start in range(0, len(requests), _CHUNK):
                for failure in netlink.outcomes(requests[start : start + _CHUNK]):
                    if failure is not None and failure.errno not in _GONE:
                        raise failure
        finally:
            netlink.close()


def withdraw(record: set[Entry], user: str) -> None:
    """Note that this user has gone; what it was the last one of goes from `lo`."""
    mine = {entry for entry in record if entry[:2] == (_WHAT, user)}
    if not mine:
        return
    with explaining("the gateway addresses on lo"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            for entry in mine:
                users = [e for e in record if e.what == _WHAT and e.interface == entry.interface]
                if users == [entry]:
                    _take(netlink, entry.interface)
                record.discard(entry)
        finally:
            netlink.close()


def _take(netlink: NetlinkSocket, text: str) -> None:
    family = family_of(6 if ":" in text else 4)
    kind = IPv6Address if family.version == 6 else IPv4Address
    request = rtnetlink.delete_address(_LO, family.af, kind(text).packed, family.bits)
    for failure in netlink.outcomes([request]):
        if failure is not None and failure.errno not in _GONE:
            raise failure
