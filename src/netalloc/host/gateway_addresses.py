"""Addresses that routed containers see the host as: on `lo`, for none of their interfaces has one.

The host's own packets to a container have one as their source, and so has what comes to it through
a host port. An address that the host has anyhow, on whatever interface, is used as it is.
"""

import errno
import logging
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from netalloc.errors import InterfaceError
from netalloc.family import family_of
from netalloc.host import rtnetlink
from netalloc.host.local_addresses import is_local
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkSocket, explaining
from netalloc.host.opened import Entry

logger = logging.getLogger(__name__)

Address: TypeAlias = IPv4Address | IPv6Address

_LO: Final = 1  # LOOPBACK_IFINDEX, the same in every namespace
_WHAT: Final = "gateway"  # in the record
_GONE: Final = (errno.EADDRNOTAVAIL, errno.ENODEV)


def are_there(addresses: Sequence[Address]) -> bool:
    """Whether the host has all of them; 10 µs each."""
    with explaining("the gateway addresses of this host"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            return all(is_local(netlink, one.packed) for one in addresses)
        finally:
            netlink.close()


def add(record: set[Entry], user: str, addresses: Sequence[Address]) -> tuple[str, ...]:
    """Put those on `lo` that the host has not, for this user, and note that; which those were.

    Only what we have put there, now or for another user, is noted. Raises InterfaceError where
    `lo` is down, for then nothing is the host's that is on it.
    """
    found: tuple[str, ...] = ()
    with explaining("the gateway addresses on lo"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            for one in addresses:
                was_there = is_local(netlink, one.packed)
                text = str(one)
                if not was_there or any(e.what == _WHAT and e.interface == text for e in record):
                    record.add(Entry(_WHAT, user, _LO, text))
                if not was_there:
                    _put(netlink, one)
                    found += (f"no interface had gateway address {text}",)
        finally:
            netlink.close()
    return found


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


def _put(netlink: NetlinkSocket, address: Address) -> None:
    family = family_of(address.version)
    request = rtnetlink.add_address(_LO, family.af, address.packed, family.bits)
    for failure in filter(None, netlink.outcomes([request])):
        raise failure
    if not is_local(netlink, address.packed):
        raise InterfaceError(f"gateway {address} is on lo and not the host's: lo is down")
    logger.info("put gateway address %s on lo: routed containers see the host as that", address)


def _take(netlink: NetlinkSocket, text: str) -> None:
    family = family_of(6 if ":" in text else 4)
    kind = IPv6Address if family.version == 6 else IPv4Address
    request = rtnetlink.delete_address(_LO, family.af, kind(text).packed, family.bits)
    for failure in netlink.outcomes([request]):
        if failure is not None and failure.errno not in _GONE:
            raise failure
