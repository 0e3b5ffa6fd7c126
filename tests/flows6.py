"""Flows over IPv6, entered by netlink as another program would."""

import socket
import struct

from netalloc.family import V6
from netalloc.host.netlink import NETLINK_NETFILTER, NetlinkSocket
from netalloc.host.netlink_messages import attribute, message

_NEW, _CREATE, _ACK, _NESTED = 1 << 8, 0x400, 0x4, 0x8000
_STATUS, _PROTOCOL_STATE, _TIMEOUT, _NAT_DESTINATION = 3, 4, 7, 13
_CONFIRMED_AND_ASSURED = struct.pack(">I", 0x8 | 0x4 | 0x2)
_ESTABLISHED = attribute(
    _PROTOCOL_STATE | _NESTED, attribute(1 | _NESTED, attribute(1, bytes((3,))))
)
_AT_ONCE = 100


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(parts))


def port(kind: int, number: int) -> bytes:
    return attribute(kind, number.to_bytes(2, "big"))


def way(kind: int, source: bytes, destination: bytes, protocol: int, ports: tuple[int, int]):
    """One direction of a flow."""
    ip = nested(1, attribute(3, source), attribute(4, destination))
    return nested(kind, ip, nested(2, attribute(1, bytes((protocol,))), *map(port, (2, 3), ports)))


def entry(client: str, client_port: int, to: tuple[str, int], server: tuple[str, int] | None = None,
          protocol: int = 6) -> bytes:  # fmt: skip
    """A flow from a client to an address; where a server is named, translated to that."""
    source, destination = (socket.inet_pton(V6.af, ip) for ip in (client, to[0]))
    body = (
        V6.header
        + way(1, source, destination, protocol, (client_port, to[1]))
        + way(2, destination, source, protocol, (to[1], client_port))
        + attribute(_STATUS, _CONFIRMED_AND_ASSURED)
        + attribute(_TIMEOUT, struct.pack(">I", 3600))
        + (_ESTABLISHED if protocol == 6 else b"")
    )
    if server is not None:
        ip = socket.inet_pton(V6.af, server[0])
        ports = nested(3, port(1, server[1]), port(2, server[1]))
        body += nested(_NAT_DESTINATION, attribute(4, ip), attribute(5, ip), ports)
    return body


def enter(entries: list[bytes]) -> None:
    """Have the kernel know these flows."""
    netlink = NetlinkSocket(NETLINK_NETFILTER)
    try:
        for i in range(0, len(entries), _AT_ONCE):
            some = entries[i : i + _AT_ONCE]
            first = netlink.sequence(len(some))
            last = first + len(some) - 1
            netlink.transact(
                b"".join(
                    message(_NEW, _CREATE | (_ACK if first + j == last else 0), first + j, body)
                    for j, body in enumerate(some)
                ),
                first,
                last,
            )
    finally:
        netlink.close()
