"""Forgetting which MAC address an address was last seen at.

The next holder of a released address would otherwise be spoken to with the last holder's
MAC address until the entry has grown stale, which takes up to a minute.
"""

import errno
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from netalloc.family import family_of
from netalloc.host.links import index_of
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkError, NetlinkSocket, explaining
from netalloc.host.netlink_messages import attribute

_DELETE_NEIGHBOUR = 29  # linux/rtnetlink.h
_DESTINATION = 1  # linux/neighbour.h
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, interface, state, flags, type


def forget(interface: str, addresses: Iterable[IPv4Address | IPv6Address]) -> int:
    """Remove the neighbour entries of these addresses behind an interface; how many there were.

    Raises InterfaceError when there is no such interface, CommandError without the
    privilege. About 10 µs for each address.
    """
    index = index_of(interface)
    with explaining(f"neighbour entries of {interface}"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            return sum([_forget(netlink, index, ip) for ip in addresses])
        finally:
            netlink.close()


def _forget(netlink: NetlinkSocket, index: int, ip: IPv4Address | IPv6Address) -> bool:
    head = _NEIGHBOUR.pack(family_of(ip.version).af, index, 0, 0, 0)
    try:
        netlink.call(_DELETE_NEIGHBOUR, head + attribute(_DESTINATION, ip.packed))
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True
