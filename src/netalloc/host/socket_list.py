"""The host's bound and listening sockets, asked of the kernel (sock_diag(7))."""

import errno
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from netalloc.family import V4, V6
from netalloc.host.netlink import NetlinkError, NetlinkSocket, explaining
from netalloc.host.netlink_messages import attributes

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY = 20
_FAMILIES = (V4.af, V6.af)
_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
_CLOSE, _LISTEN, _BOUND = 7, 10, 13  # TCP_CLOSE, TCP_LISTEN, TCP_BOUND_INACTIVE
_STATES = {"tcp": 1 << _LISTEN | 1 << _BOUND, "udp": 0xFFFFFFFF, "sctp": 1 << _LISTEN}
_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2, before the socket's id
_ID_SIZE = 48
_MESSAGE = struct.Struct("=BBxx")  # struct inet_diag_msg, likewise
_REST = struct.Struct("=IIIII")  # expires, two queues, user, inode, behind the id
_ONLY_IPV6 = 11  # INET_DIAG_SKV6ONLY
_PORT, _IPV4, _IPV6 = slice(4, 6), slice(8, 12), slice(8, 24)  # of a message
_MAPPED, _MAPPED_IPV4 = slice(8, 20), slice(20, 24)
_MAPPED_PREFIX = bytes(10) + b"\xff\xff"
_NO_ADDRESS = bytes(4)
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
    return (found for body in _answers(protocol, port) if (found := _parse(body)).port)


def listed_ports(protocol: str) -> set[int]:
    """The ports that they hold, at whatever address: about 1.5 µs a socket."""
    ports = {int.from_bytes(body[_PORT], "big") for body in _answers(protocol)}
    ports.discard(0)
    return ports


def covered_ports(protocol: str, host_ip: IPv4Address | IPv6Address | None) -> set[int]:
    """Of these ports, those that one of the sockets excludes others from at an address.

    None is every address of IPv4, as 0.0.0.0 is; :: is every one of IPv6. About 1.5 µs a socket.
    """
    if host_ip is not None and host_ip.version == 6:
        return _covered_of_ipv6(protocol, host_ip.packed)
    own = _NO_ADDRESS if host_ip is None else host_ip.packed
    ports = set()
    for body in _answers(protocol):
        if body[0] == _FAMILIES[0]:
            address = body[_IPV4]
        elif body[_IPV6] == bytes(16):
            if _only_ipv6(body):
                continue
            address = _NO_ADDRESS
        elif body[_MAPPED] == _MAPPED_PREFIX:
            address = body[_MAPPED_IPV4]
        else:
            continue
        if own == _NO_ADDRESS or address in (own, _NO_ADDRESS):
            ports.add(int.from_bytes(body[_PORT], "big"))
    ports.discard(0)
    return ports


def _covered_of_ipv6(protocol: str, own: bytes) -> set[int]:
    ports = set()
    for body in _answers(protocol, families=(V6.af,)):
        address = body[_IPV6]
        if address.startswith(_MAPPED_PREFIX):
            continue  # it is of IPv4
        if address in (own, bytes(16)) or own == bytes(16):
            ports.add(int.from_bytes(body[_PORT], "big"))
    ports.discard(0)
    return ports


def _answers(
    protocol: str, port: int = 0, families: tuple[int, ...] = _FAMILIES
) -> Iterator[bytes]:
    source = port.to_bytes(2, "big") + bytes(_ID_SIZE - 2)
    with explaining("a list of the sockets of this host"):
        netlink = NetlinkSocket(_NETLINK_SOCK_DIAG)
        try:
            for family in families:
                head = _REQUEST.pack(family, _NUMBERS[protocol], 0, _STATES[protocol])
                try:
                    bodies, _ = netlink.dump(_BY_FAMILY, head + source)
                except NetlinkError as error:
                    if error.errno not in _ABSENT:
                        raise
                    continue
                yield from bodies
        finally:
            netlink.close()


def _parse(body: bytes) -> ListedSocket:
    family, state = _MESSAGE.unpack_from(body)
    start = _MESSAGE.size
    port = int.from_bytes(body[start : start + 2], "big")
    address = body[start + 4 : start + 20]
    rest = start + _ID_SIZE
    _, _, _, uid, inode = _REST.unpack_from(body, rest)
    ip = IPv4Address(address[:4]) if family == _FAMILIES[0] else IPv6Address(address)
    return ListedSocket(ip, port, state == _LISTEN, _only_ipv6(body), uid, inode)


def _only_ipv6(body: bytes) -> bool:
    start = _MESSAGE.size + _ID_SIZE + _REST.size
    return attributes(body, start).get(_ONLY_IPV6, b"\0") != b"\0"
