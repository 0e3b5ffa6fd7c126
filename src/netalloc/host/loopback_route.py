"""The way back to ::1 for what the host asked from there through a bridge.

What leaves for a container with ::1 as its source is given another one by netfilter, and the
answer is for ::1 again when it has come in by the bridge. The kernel delivers that where ::1 is
local to the very device (`ip -6 route add local ::1 dev BRIDGE table local metric 4096`), and no
other setting makes it. Nothing is opened: what comes from the wire for or from ::1 is dropped
before it is routed (ip6_rcv_core() in net/ipv6/ip6_input.c). That is also why there is no such
way where bridged frames pass ip6tables: they are translated before. Numbers are those of
linux/rtnetlink.h.
"""

import errno
import struct
from typing import Final

from netalloc.family import V6
from netalloc.host.netlink import NetlinkError, NetlinkSocket
from netalloc.host.netlink_messages import CREATE, attribute, attributes

_NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE = 24, 25, 26
_DESTINATION, _DEVICE, _METRIC = 1, 4, 6
_LOCAL, _TABLE = 2, 255  # RTN_LOCAL, RT_TABLE_LOCAL
_MATCH = 0x2000  # RTM_F_FIB_MATCH: the route itself, not where it leads
_PROTOCOL: Final = 110  # who made it: of the numbers that are anyone's, `proto 110` for ip
_BEHIND: Final = 4096  # the metric: after that of the loopback interface itself
_ADDRESS: Final = attribute(_DESTINATION, bytes(15) + b"\x01")
_HEAD = struct.Struct("=BBxxBBxBI")  # struct rtmsg: family, prefix, table, protocol, type, flags


def has_route(netlink: NetlinkSocket, index: int) -> bool:
    """Whether ::1 is local to an interface; 10 µs, however many routes there are."""
    return _protocol(netlink, index) is not None


def add_route(netlink: NetlinkSocket, index: int) -> bool:
    """Make ::1 local to an interface; whether it was not before. The last choice for it."""
    try:
        netlink.call(_NEW_ROUTE, _route(index), CREATE)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        return False
    return True


def remove_route(netlink: NetlinkSocket, index: int) -> None:
    """Take it away, if it is ours; none there, and no such interface, is no error."""
    try:
        if _protocol(netlink, index) == _PROTOCOL:
            netlink.call(_DELETE_ROUTE, _route(index))
    except NetlinkError as error:
        if error.errno not in (errno.ESRCH, errno.ENODEV):
            raise


def leads_to(netlink: NetlinkSocket, index: int, address: bytes) -> bool:
    """Whether an address of IPv6 is reached by this interface; 10 µs."""
    question = _HEAD.pack(V6.af, V6.bits, 0, 0, 0, 0) + attribute(_DESTINATION, address)
    try:
        (answer,) = netlink.call(_GET_ROUTE, question)
    except NetlinkError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            return False
        raise
    return attributes(answer, _HEAD.size).get(_DEVICE) == struct.pack("=I", index)


def _route(index: int) -> bytes:
    head = _HEAD.pack(V6.af, V6.bits, _TABLE, _PROTOCOL, _LOCAL, 0)
    device = attribute(_DEVICE, struct.pack("=I", index))
    return head + _ADDRESS + device + attribute(_METRIC, struct.pack("=I", _BEHIND))


def _protocol(netlink: NetlinkSocket, index: int) -> int | None:
    """Who has made it; None where there is none."""
    device = struct.pack("=I", index)
    question = _HEAD.pack(V6.af, V6.bits, 0, 0, 0, _MATCH) + _ADDRESS + attribute(_DEVICE, device)
    try:
        (answer,) = netlink.call(_GET_ROUTE, question)
    except NetlinkError as error:
        if error.errno in (errno.ENETUNREACH, errno.ENODEV, errno.EHOSTUNREACH):
            return None
        raise
    _, _, _, protocol, kind, _ = _HEAD.unpack_from(answer)
    same = attributes(answer, _HEAD.size).get(_DEVICE) == device
    return protocol if kind == _LOCAL and same else None
