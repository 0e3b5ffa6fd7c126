"""Which addresses are the host's own, asked of its routes."""

from ipaddress import IPv4Address

from netalloc.host.netlink import NETLINK_ROUTE, NetlinkError, NetlinkSocket, explaining
from netalloc.host.netlink_messages import attribute, attributes

_GET_ADDRESS, _GET_ROUTE, _RTN_LOCAL = 22, 26, 2  # linux/rtnetlink.h
_DESTINATION = 1  # RTA_DST
_LOCAL = 2  # IFA_LOCAL
_AF_INET = 2
_TYPE_AT = 7  # of struct rtmsg, where the answer begins
# struct rtmsg: family, and the bits of the destination.
_ROUTE_TO = bytes((_AF_INET, 32)) + bytes(10)


def is_host_address(ip: IPv4Address) -> bool:
    """Whether what is sent to this address from the host arrives at the host itself.

    True for every address of its interfaces and for all of 127.0.0.0/8 in the network
    namespace of the caller, broadcast addresses excepted. CommandError where the kernel
    does not say. About 15 µs, however many addresses there are.
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


def addresses(netlink: NetlinkSocket) -> set[bytes]:
    """The same over a kept socket, packed."""
    bodies, _ = netlink.dump(_GET_ADDRESS, bytes((_AF_INET,)) + bytes(7))
    return {packed for body in bodies if (packed := attributes(body, 8).get(_LOCAL))}


def is_local(netlink: NetlinkSocket, packed: bytes) -> bool:
    """The same over a kept socket; false where there is no route to it."""
    try:
        answer = netlink.call(_GET_ROUTE, _ROUTE_TO + attribute(_DESTINATION, packed))
    except NetlinkError:
        return False
    return answer[0][_TYPE_AT] == _RTN_LOCAL
