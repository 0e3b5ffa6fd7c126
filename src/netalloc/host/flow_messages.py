"""What the kernel is asked about flows, and what it lists of them.

Numbers are those of linux/netfilter/nfnetlink_conntrack.h.
"""

import struct
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from netalloc.family import V4, V6, Family
from netalloc.host.netlink_messages import attribute, attributes
from netalloc.model import PortMapping

NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
GET, DELETE, STATISTICS = (1 << 8 | kind for kind in (1, 2, 5))  # NFNL_SUBSYS_CTNETLINK
IPV4, IPV6 = V4.header, V6.header
_ORIGINAL, _REPLY, _STATUS, _ID, _ZONE, FILTER, _STATUS_MASK = 1, 2, 3, 12, 18, 25, 26
_IP, _PROTO, SOURCE, DESTINATION = 1, 2, 1, 2
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_NESTED = 0x8000  # without it the kernel refuses the filter

# Which fields of a tuple the kernel compares (nf_internals.h).
_BY_SOURCE, _BY_DESTINATION, _BY_NUMBER, _BY_SOURCE_PORT, _BY_DESTINATION_PORT = 1, 2, 8, 16, 32

# Flows whose destination was translated (IPS_DST_NAT); a kernel before 5.17 lists the others, too.
TRANSLATED = b"".join(attribute(kind, b"\0\0\0\x20") for kind in (_STATUS, _STATUS_MASK))


class _Layout(NamedTuple):
    """Where things are in the usual listed flow of a family: one with ports."""

    head: bytes  # what such a flow begins with, behind the header
    number: int
    port: int
    server: slice  # the address that answers
    source: int  # what the attribute of an address is called
    destination: int


def _layout(family: Family, source: int, destination: int) -> _Layout:
    addresses = 4 + 2 * (4 + family.size)
    way = 4 + addresses + 28
    head = struct.pack("=HHHH", way, _ORIGINAL | _NESTED, addresses, _IP | _NESTED)
    number, server = addresses + 16, way + 16
    return _Layout(
        head, number, number + 16, slice(server, server + family.size), source, destination
    )


USUAL = {V4.af: _layout(V4, SOURCE, DESTINATION), V6.af: _layout(V6, 3, 4)}


class Flow(NamedTuple):
    """What a listed flow was sent to, who answers it, and the message's body that names it."""

    number: int
    ip: bytes
    port: int
    server: tuple[bytes, int]
    name: bytes


def server_of(mapping: PortMapping, port: int) -> tuple[bytes, int]:
    """Who answers what is sent to this port of the mapping."""
    ip, first = mapping.dest
    return ip.packed, first + port - mapping.host_port


def is_at(flow: Flow, mapping: PortMapping) -> bool:
    """Whether the flow was sent to an address of the host's that the mapping is at."""
    return mapping.host_ip is None or flow.ip == mapping.host_ip.packed


def leads(flow: Flow, mapping: PortMapping) -> bool:
    """Whether the flow, to a port of the mapping, goes where that leads."""
    return is_at(flow, mapping) and flow.server == server_of(mapping, flow.port)


def by_port(mappings: Iterable[PortMapping]) -> dict[tuple[int, int], list[PortMapping]]:
    """The mappings by protocol number and host port."""
    found: dict[tuple[int, int], list[PortMapping]] = {}
    for mapping in mappings:
        for port in mapping.ports:
            found.setdefault((NUMBERS[mapping.protocol], port), []).append(mapping)
    return found


# ---- what the kernel is asked for


def served(mapping: PortMapping, port: int) -> bytes:
    """The flows to this port of the mapping that went through it."""
    number = attribute(_NUMBER, bytes((NUMBERS[mapping.protocol],)))
    address = b""
    flags = _BY_NUMBER | _BY_DESTINATION_PORT
    if mapping.host_ip is not None:
        address = attribute(DESTINATION, mapping.host_ip.packed)
        flags |= _BY_DESTINATION
    ip, server_port = server_of(mapping, port)
    return (
        IPV4
        + _tuple(_ORIGINAL, address, number + port_attribute(_DESTINATION_PORT, port))
        + _tuple(_REPLY, attribute(SOURCE, ip), number + port_attribute(_SOURCE_PORT, server_port))
        + _filter((_ORIGINAL, flags), (_REPLY, _BY_SOURCE | _BY_NUMBER | _BY_SOURCE_PORT))
    )


def sent(mapping: PortMapping, port: int, local: list[tuple[int, bytes]]) -> list[bytes]:
    """The udp flows to this port of the mapping, for each address that it is at."""
    if mapping.host_ip is not None:
        local = [(DESTINATION, mapping.host_ip.packed)]
    proto = attribute(_NUMBER, bytes((NUMBERS["udp"],))) + port_attribute(_DESTINATION_PORT, port)
    flags = _BY_NUMBER | _BY_DESTINATION_PORT
    return [
        IPV4
        + _tuple(_ORIGINAL, attribute(end, ip), proto)
        + _filter((_ORIGINAL, flags | (_BY_SOURCE if end == SOURCE else _BY_DESTINATION)))
        for end, ip in local
    ]


def sent_to(
    number: int, port: int | None, *, header: bytes = IPV4, translated_only: bool = False
) -> bytes:
    """The flows of a protocol to this port, or to any, wherever they go."""
    proto, flags = attribute(_NUMBER, bytes((number,))), _BY_NUMBER
    if port is not None:
        proto += port_attribute(_DESTINATION_PORT, port)
        flags |= _BY_DESTINATION_PORT
    status = TRANSLATED if translated_only else b""
    return header + _tuple(_ORIGINAL, b"", proto) + _filter((_ORIGINAL, flags)) + status


def answered(server: bytes) -> bytes:
    """The flows that this address answers."""
    ip = attribute(SOURCE, server)
    return IPV4 + _tuple(_REPLY, ip, b"") + _filter((_REPLY, _BY_SOURCE))


def translated(servers: Collection[bytes]) -> bytes:
    """The translated flows; where it is but one, those that this address answers."""
    if len(servers) > 1:
        return IPV4 + TRANSLATED
    return answered(*servers) + TRANSLATED


def _filter(*compared: tuple[int, int]) -> bytes:
    flags = [attribute(side, struct.pack("=I", fields)) for side, fields in compared]
    return attribute(FILTER | _NESTED, b"".join(flags))


def port_attribute(kind: int, port: int) -> bytes:
    """A port of a flow, in a message."""
    return attribute(kind, port.to_bytes(2, "big"))


def _tuple(kind: int, address: bytes, proto: bytes) -> bytes:
    parts = ((_IP, address), (_PROTO, proto))
    nested = [attribute(part | _NESTED, inner) for part, inner in parts if inner]
    return attribute(kind | _NESTED, b"".join(nested))


# ---- what it lists


def among(flows: Iterable[bytes], wanted: Collection[tuple[int, int]], af: int) -> Iterator[Flow]:
    """Those of the listed flows of a family that were sent to a wanted protocol and port."""
    port_at = struct.Struct(">H").unpack_from
    head, number, port, *_ = USUAL[af]
    for body in flows:
        # The cheap look first: nearly all flows of a busy host are of no interest.
        usual = body.startswith(head, 4)
        if usual and (body[number], port_at(body, port)[0]) not in wanted:
            continue
        flow = parse(body)
        if flow is not None and (flow.number, flow.port) in wanted:
            yield flow


def answered_by(flows: Iterable[bytes], servers: Collection[bytes], af: int) -> Iterator[Flow]:
    """Those of the listed flows of a family that one of these addresses answers."""
    usual = USUAL[af]
    head, server = usual.head, usual.server
    for body in flows:
        # As above.
        if body.startswith(head, 4) and body[server] not in servers:
            continue
        flow = parse(body)
        if flow is not None and flow.server[0] in servers:
            yield flow


def parse(body: bytes) -> Flow | None:
    """A listed flow; None when it has no ports."""
    parts = attributes(body, 4)
    *_, source, destination = USUAL[body[0]]
    sides = []
    for side in (_ORIGINAL, _REPLY):
        halves = attributes(parts.get(side, b""))
        ip, proto = attributes(halves.get(_IP, b"")), attributes(halves.get(_PROTO, b""))
        if _DESTINATION_PORT not in proto or destination not in ip:
            return None
        sides.append((ip, proto))
    (ip, proto), (reply_ip, reply_proto) = sides
    name = attribute(_ORIGINAL | _NESTED, parts[_ORIGINAL])
    name += b"".join(attribute(kind, parts[kind]) for kind in (_ID, _ZONE) if kind in parts)
    return Flow(
        proto[_NUMBER][0],
        ip[destination],
        int.from_bytes(proto[_DESTINATION_PORT], "big"),
        (reply_ip[source], int.from_bytes(reply_proto[_SOURCE_PORT], "big")),
        body[:4] + name,
    )
