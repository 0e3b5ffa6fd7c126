"""Which addresses are the host's own, asked of its routes."""

from ipaddress import IPv4Address, IPv6Address

from netalloc.family import FAMILIES, V4, V6, Family
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkError, NetlinkSocket, explaining
from netalloc.host.netlink_messages import attribute, attributes

_GET_ADDRESS, _GET_ROUTE, _RTN_LOCAL = 22, 26, 2  # linux/rtnetlink.h
_DESTINATION = 1  # RTA_DST
_ADDRESS, _LOCAL = 1, 2  # IFA_ADDRESS, IFA_LOCAL: the other end's and ours, where they differ
_TYPE_AT = 7  # of struct rtmsg, where the answer begins
# struct rtmsg: family, and the bits of the destination; by bytes of an address.
_ROUTE_TO = {one.size: bytes((one.af, one.bits)) + bytes(10) for one in FAMILIES}


def is_host_address(ip: IPv4Address | IPv6Address) -> bool:
    """Whether what is sent to this address from the host arrives at the host itself.

    True for every address of its interfaces, and for all of 127.0.0.0/8, in the network
    namespace of the caller, broadcast, anycast and multicast addresses excepted. CommandError
    where the kernel does not say. About 15 µs, however many addresses there are.
    """
    with explaining(f"whether {ip} is an address of this host"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            return is_local(netlink, ip.packed)
        finally:
            netlink.close()


def local_addresses() -> frozenset[IPv4Address]:
    """The IPv4 addresses of all interfaces; O(addresses)."""
    with explaining("the addresses of this host"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            return frozenset(map(IPv4Address, addresses(netlink)))
        finally:
            netlink.close()


def addresses(netlink: NetlinkSocket, family: Family = V4) -> set[bytes]:
    """Those of a family over a kept socket, packed."""
    bodies, _ = netlink.dump(_GET_ADDRESS, bytes((family.af,)) + bytes(7))
    found = set()
    for body in bodies:
        parts = attributes(body, 8)
        packed = parts.get(_LOCAL) or (parts.get(_ADDRESS) if family is not V4 else None)
        if packed:
            found.add(packed)
    return found


def is_local(netlink: NetlinkSocket, packed: bytes) -> bool:
    """The same over a kept socket; false where there is no route to it.

    An interface without a carrier, as a bridge that nothing is attached to, has no routes to its
    IPv6 addresses: they are looked up as addresses then.
    """
    to = attribute(_DESTINATION, packed)
    try:
        answer = netlink.call(_GET_ROUTE, _ROUTE_TO[len(packed)] + to)
        if answer[0][_TYPE_AT] == _RTN_LOCAL:
            return True
    except NetlinkError:
        pass
    if len(packed) != V6.size:
        return False
    try:
        netlink.call(_GET_ADDRESS, bytes((V6.af,)) + bytes(7) + attribute(_ADDRESS, packed))
    except NetlinkError:
        return False
    return True
