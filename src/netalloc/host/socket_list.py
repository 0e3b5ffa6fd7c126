"""The host's bound and listening sockets, asked of the kernel (sock_diag(7))."""

import errno
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from netalloc.host.netlink import NetlinkError, NetlinkSocket, attributes, explaining

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY = 20
_FAMILIES = (2, 10)
_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
_CLOSE, _LISTEN, _BOUND = 7, 10, 13  # TCP_CLOSE, TCP_LISTEN, TCP_BOUND_INACTIVE
_STATES = {"tcp": 1 << _LISTEN | 1 << _BOUND, "udp": 0xFFFFFFFF, "sctp": 1 << _LISTEN}
_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2, before the socket's id
_ID_SIZE = 48
_MESSAGE = struct.Struct("=BBxx")  # struct inet_diag_msg, likewise
_REST = struct.Struct("=IIIII")  # expires, two queues, user, inode, behind the id
_ONLY_IPV6 = 11  # INET_DIAG_SKV6ONLY
_ABSENT = (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL, errno.EPROTONOSUPPORT)


class ListedSocket(NamedTuple):
    """A socket that holds a port."""

    ip: IPv4Address | IPv6Address
    port: int
    listens: bool
    only_ipv6: bool
    uid: int
    inode: int


def listed(protocol: str, port: int = 0) -> Iterator[ListedSocket]:
    """The sockets of this network namespace that hold a port, or this port.

    None where the kernel cannot list those of the protocol. Raises CommandError.
    """
    source = port.to_bytes(2, "big") + bytes(_ID_SIZE - 2)
    with explaining("a list of the sockets of this host"):
        netlink = NetlinkSocket(_NETLINK_SOCK_DIAG)
        try:
            for family in _FAMILIES:
                head = _REQUEST.pack(family, _NUMBERS[protocol], 0, _STATES[protocol])
                try:
                    bodies, _ = netlink.dump(_BY_FAMILY, head + source)
                except NetlinkError as error:
                    if error.errno not in _ABSENT:
                        raise
                    continue
                yield from (found for body in bodies if (found := _parse(body)).port)
        finally:
            netlink.close()


def _parse(body: bytes) -> ListedSocket:
    family, state = _MESSAGE.unpack_from(body)
    start = _MESSAGE.size
    port = int.from_bytes(body[start : start + 2], "big")
    address = body[start + 4 : start + 20]
    rest = start + _ID_SIZE
    _, _, _, uid, inode = _REST.unpack_from(body, rest)
    only = attributes(body, rest + _REST.size).get(_ONLY_IPV6, b"\0") != b"\0"
    ip = IPv4Address(address[:4]) if family == _FAMILIES[0] else IPv6Address(address)
    return ListedSocket(ip, port, state == _LISTEN, only, uid, inode)
