"""Forgetting the flows that a new or removed mapping has made stale.

Address translation looks at a flow's first packet only. A udp flow that was there before
the mapping stays untranslated, and one that went through a mapping still reaches the old
container after it is gone, even when the port leads elsewhere by then. So after a mapping
is made its udp flows go, and after it is removed those of every protocol; when a container
is gone, all that it answers.

Flows are told by the *host* port they were sent to, and only those that the mapping
concerns go: a container's connection to an outside server on the same port number lives
on. Numbers are those of linux/netfilter/nfnetlink_conntrack.h.

The kernel can be had to delete what a filter describes, in one walk over all flows (150 ns
each, and next to nothing where there are none), or to list it, which also looks into each
of 262,144 buckets (5 ms, with or without flows). So many walks are made one listing where
there are many flows.
"""

import errno
import logging
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from ipaddress import IPv4Address
from typing import NamedTuple

from netalloc.closing import Closing
from netalloc.host import netns
from netalloc.host.local_addresses import addresses, is_local
from netalloc.host.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    LazySocket,
    NetlinkError,
    explaining,
)
from netalloc.host.netlink_messages import attribute, attributes
from netalloc.host.shown_flows import ShownFlow, shown_flows
from netalloc.model import PortMapping

logger = logging.getLogger(__name__)

NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
_GET, _DELETE, _STATISTICS = (1 << 8 | kind for kind in (1, 2, 5))  # NFNL_SUBSYS_CTNETLINK
_IPV4 = b"\x02\0\0\0"  # struct nfgenmsg: family, version, resource
_ORIGINAL, _REPLY, _STATUS, _ID, _ZONE, _FILTER, _STATUS_MASK = 1, 2, 3, 12, 18, 25, 26
_IP, _PROTO, _SOURCE, _DESTINATION = 1, 2, 1, 2
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_NESTED = 0x8000  # without it the kernel refuses the filter

# Which fields of a tuple the kernel compares (nf_internals.h).
_BY_SOURCE, _BY_DESTINATION, _BY_NUMBER, _BY_SOURCE_PORT, _BY_DESTINATION_PORT = 1, 2, 8, 16, 32

# Flows whose destination was translated (IPS_DST_NAT); a kernel before 5.17 lists the others, too.
_TRANSLATED = b"".join(attribute(kind, b"\0\0\0\x20") for kind in (_STATUS, _STATUS_MASK))

_OPENING = explaining("a socket to flush flows")
_LOOPBACK = bytes((127, 0, 0, 1))
_ENTRIES = 1  # CTA_STATS_GLOBAL_ENTRIES
# A deletion by filter, and a listing by filter, take the time of passing so many flows (0.2 µs
# each) besides those that there are: 0.12 and 9 ms where there are none.
_DELETION, _LISTING = 600, 45_000
_SHOWN = 500  # flows up to which to read all of them takes no longer than some deletions
_WALK_FROM = 1_000  # flows of one address: to delete each by itself takes as long as a walk

# Where things are in the usual listed flow: one over IPv4, with ports.
_TUPLE_SIZE = 52
_USUAL_HEAD = struct.pack("=HHHH", _TUPLE_SIZE, _ORIGINAL | _NESTED, 20, _IP | _NESTED)
_NUMBER_AT, _PORT_AT, _SERVER_AT = 36, 52, 68


class _Flow(NamedTuple):
    """What a listed flow was sent to, who answers it, and the attributes that name it."""

    number: int
    ip: bytes
    port: int
    server: tuple[bytes, int]
    name: bytes


class Flows(Closing):
    """The flows of the host, asked over a socket that is kept."""

    def __init__(self) -> None:
        self._socket = LazySocket(NETLINK_NETFILTER)
        self._routes = LazySocket(NETLINK_ROUTE)
        self._home = netns.current()
        self._deletes_by_filter = True  # Linux can since 6.8

    def open(self) -> None:
        """Open the sockets, so that a flush that follows a change does not fail for want of one.

        Raises CommandError when there is no file descriptor left, or no such kernel part.
        """
        with _OPENING:
            self._socket.get()
            self._routes.get()

    def flush(self, mappings: Collection[PortMapping], *, added: bool) -> None:
        """Forget the flows that these mappings, just added or just removed, have made stale.

        The host address of a mapping is respected: two mappings of one port on two
        addresses do not touch each other's flows. Raises CommandError without the privilege;
        where the kernel has no flow table there is nothing to do. O(flows): 7 ms for 50,000.
        """
        if added:
            mappings = [mapping for mapping in mappings if mapping.protocol == "udp"]
        if mappings:
            self._explained(partial(self._added if added else self._removed, mappings))

    def forget(self, servers: Collection[IPv4Address]) -> None:
        """Forget the flows that these addresses answer, as nothing is behind them any more.

        Raises CommandError without the privilege. O(flows), in one walk for one address.
        """
        if servers:
            self._explained(partial(self._forget, {ip.packed for ip in servers}))

    def close(self) -> None:
        """Close the sockets; the next call opens others."""
        self._socket.close()
        self._routes.close()

    def count(self) -> int:
        """How many flows the network namespace has; 8 µs."""
        (answer,) = self._socket.get().call(_STATISTICS, _IPV4)
        return int.from_bytes(attributes(answer, 4)[_ENTRIES], "big")

    def _explained(self, flush: Callable[[int], None]) -> None:
        """Run what flushes some of so many flows; where there are none nothing is stale."""
        try:
            flows = self.count()
            if flows:
                flush(flows)
        except NetlinkError as error:
            # EINVAL: no such subsystem; an older kernel's refusal of a filter was met below.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                what = "flows of changed mappings cannot be flushed"
                raise error.explained(what) from error
            logger.warning("this kernel lists no flows, so that none were flushed: %s", error)

    def _removed(self, mappings: Collection[PortMapping], flows: int) -> None:
        ports = [(mapping, port) for mapping in mappings for port in mapping.ports]
        if len(ports) > 1 and (shown := self._shown(flows)) is not None:
            there = {(flow.number, flow.port) for flow in shown}
            ports = [(m, port) for m, port in ports if (NUMBERS[m.protocol], port) in there]
        if self._walks(len(ports), flows) and self._deleted(_served(*one) for one in ports):
            return
        wanted = _by_port(mappings)
        listing = _translated({mapping.dest[0].packed for mapping in mappings})
        for flow in _among(self._socket.get().dump(_GET, listing)[0], wanted):
            if any(_leads(flow, mapping) for mapping in wanted[flow.number, flow.port]):
                self._delete(flow)

    def _added(self, mappings: Collection[PortMapping], flows: int) -> None:
        ports = [(mapping, port) for mapping in mappings for port in mapping.ports]
        sent = self._filters(ports, flows)
        if sent is not None and self._walks(len(sent), flows) and self._deleted(sent):
            return
        wanted, known = _by_port(mappings), dict[bytes, bool]()
        listing = _sent_to(ports[0][1] if len(ports) == 1 else None)
        for flow in _among(self._socket.get().dump(_GET, listing)[0], wanted):
            for mapping in wanted[flow.number, flow.port]:
                if _is_at(flow, mapping) and not _leads(flow, mapping):
                    if flow.ip not in known:
                        known[flow.ip] = is_local(self._routes.get(), flow.ip)
                    if known[flow.ip]:
                        self._delete(flow)
                    break

    def _filters(self, ports: Sequence[tuple[PortMapping, int]], flows: int) -> list[bytes] | None:
        """The filters for the udp flows to these ports; None where these are too many.

        Where all flows are shown, one for each address that there are any to; otherwise for each
        address that the host has.
        """
        shown = self._shown(flows)
        if shown is None:
            if not self._walks(len(ports), flows):
                return None
            at = self._local() if any(one.host_ip is None for one, _ in ports) else []
            return [body for mapping, port in ports for body in _sent(mapping, port, at)]
        places: dict[int, set[bytes]] = {}
        for flow in shown:
            if flow.number == NUMBERS["udp"]:
                places.setdefault(flow.port, set()).add(flow.ip)
        return [
            body
            for mapping, port in ports
            for ip in places.get(port, ())
            if self._reaches(mapping, ip)
            for body in _sent(mapping, port, [(_DESTINATION, ip)])
        ]

    def _reaches(self, mapping: PortMapping, ip: bytes) -> bool:
        if mapping.host_ip is not None:
            return mapping.host_ip.packed == ip
        return is_local(self._routes.get(), ip)

    def _shown(self, flows: int) -> list[ShownFlow] | None:
        """All flows, where they are few and shown."""
        return shown_flows(self._home) if flows <= _SHOWN else None

    def _forget(self, servers: set[bytes], flows: int) -> None:
        if len(servers) > 1 and (shown := self._shown(flows)) is not None:
            servers &= {flow.server for flow in shown}
        if self._walks(len(servers), flows) and self._deleted(map(_answered, servers)):
            return
        found: dict[bytes, list[_Flow]] = {}
        for body in self._socket.get().dump(_GET, _translated(servers))[0]:
            # As below: the cheap look first.
            if body.startswith(_USUAL_HEAD, 4) and body[_SERVER_AT : _SERVER_AT + 4] not in servers:
                continue
            flow = _parse(body)
            if flow is not None and flow.server[0] in servers:
                found.setdefault(flow.server[0], []).append(flow)
        for server, some in found.items():
            if len(some) < _WALK_FROM or not self._deleted([_answered(server)]):
                for flow in some:
                    self._delete(flow)

    def _walks(self, number: int, flows: int) -> bool:
        """Whether so many deletions by filter are cheaper than a listing, and possible."""
        cheaper = number < 2 or number * (flows + _DELETION) < flows + _LISTING
        return number == 0 or (self._deletes_by_filter and cheaper)

    def _deleted(self, filters: Iterable[bytes]) -> bool:
        """Have the kernel delete by filters; false where it cannot."""
        netlink = self._socket.get()
        try:
            for body in filters:
                netlink.call(_DELETE, body)
        except NetlinkError as error:
            if error.errno == errno.EPERM:
                raise
            # An older one takes the tuple for a whole one: not found, or not complete.
            self._deletes_by_filter = False
            return False
        return True

    def _local(self) -> list[tuple[int, bytes]]:
        """What tells flows to the host itself: by where they go, or come from.

        What is sent to any other of 127.0.0.0/8 comes from 127.0.0.1.
        """
        found = [(_DESTINATION, ip) for ip in addresses(self._routes.get())]
        return [*found, (_SOURCE, _LOOPBACK)]

    def _delete(self, flow: _Flow) -> None:
        try:
            self._socket.get().call(_DELETE, _IPV4 + flow.name)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:  # it ended by itself
                raise


def _server(mapping: PortMapping, port: int) -> tuple[bytes, int]:
    """Who answers what is sent to this port of the mapping."""
    ip, first = mapping.dest
    return ip.packed, first + port - mapping.host_port


def _is_at(flow: _Flow, mapping: PortMapping) -> bool:
    return mapping.host_ip is None or flow.ip == mapping.host_ip.packed


def _leads(flow: _Flow, mapping: PortMapping) -> bool:
    """Whether the flow, to a port of the mapping, goes where that leads."""
    return _is_at(flow, mapping) and flow.server == _server(mapping, flow.port)


def _by_port(mappings: Iterable[PortMapping]) -> dict[tuple[int, int], list[PortMapping]]:
    found: dict[tuple[int, int], list[PortMapping]] = {}
    for mapping in mappings:
        for port in mapping.ports:
            found.setdefault((NUMBERS[mapping.protocol], port), []).append(mapping)
    return found


# ---- what the kernel is asked for


def _served(mapping: PortMapping, port: int) -> bytes:
    """The flows to this port of the mapping that went through it."""
    number = attribute(_NUMBER, bytes((NUMBERS[mapping.protocol],)))
    address = b""
    flags = _BY_NUMBER | _BY_DESTINATION_PORT
    if mapping.host_ip is not None:
        address = attribute(_DESTINATION, mapping.host_ip.packed)
        flags |= _BY_DESTINATION
    ip, server_port = _server(mapping, port)
    return (
        _IPV4
        + _tuple(_ORIGINAL, address, number + _port(_DESTINATION_PORT, port))
        + _tuple(_REPLY, attribute(_SOURCE, ip), number + _port(_SOURCE_PORT, server_port))
        + _filter((_ORIGINAL, flags), (_REPLY, _BY_SOURCE | _BY_NUMBER | _BY_SOURCE_PORT))
    )


def _sent(mapping: PortMapping, port: int, local: list[tuple[int, bytes]]) -> list[bytes]:
    """The udp flows to this port of the mapping, for each address that it is at."""
    if mapping.host_ip is not None:
        local = [(_DESTINATION, mapping.host_ip.packed)]
    proto = attribute(_NUMBER, bytes((NUMBERS["udp"],))) + _port(_DESTINATION_PORT, port)
    flags = _BY_NUMBER | _BY_DESTINATION_PORT
    return [
        _IPV4
        + _tuple(_ORIGINAL, attribute(end, ip), proto)
        + _filter((_ORIGINAL, flags | (_BY_SOURCE if end == _SOURCE else _BY_DESTINATION)))
        for end, ip in local
    ]


def _sent_to(port: int | None) -> bytes:
    """The udp flows to this port, or to any, wherever they go."""
    proto, flags = attribute(_NUMBER, bytes((NUMBERS["udp"],))), _BY_NUMBER
    if port is not None:
        proto += _port(_DESTINATION_PORT, port)
        flags |= _BY_DESTINATION_PORT
    return _IPV4 + _tuple(_ORIGINAL, b"", proto) + _filter((_ORIGINAL, flags))


def _answered(server: bytes) -> bytes:
    """The flows that this address answers."""
    ip = attribute(_SOURCE, server)
    return _IPV4 + _tuple(_REPLY, ip, b"") + _filter((_REPLY, _BY_SOURCE))


def _translated(servers: Collection[bytes]) -> bytes:
    """The translated flows; where it is but one, those that this address answers."""
    if len(servers) > 1:
        return _IPV4 + _TRANSLATED
    return _answered(*servers) + _TRANSLATED


def _filter(*compared: tuple[int, int]) -> bytes:
    flags = [attribute(side, struct.pack("=I", fields)) for side, fields in compared]
    return attribute(_FILTER | _NESTED, b"".join(flags))


def _port(kind: int, port: int) -> bytes:
    return attribute(kind, port.to_bytes(2, "big"))


def _tuple(kind: int, address: bytes, proto: bytes) -> bytes:
    parts = ((_IP, address), (_PROTO, proto))
    nested = [attribute(part | _NESTED, inner) for part, inner in parts if inner]
    return attribute(kind | _NESTED, b"".join(nested))


# ---- what it lists


def _among(flows: Iterable[bytes], wanted: Collection[tuple[int, int]]) -> Iterator[_Flow]:
    """Those of the listed flows that were sent to a wanted protocol and port."""
    port_at = struct.Struct(">H").unpack_from
    for body in flows:
        # The cheap look first: nearly all flows of a busy host are of no interest.
        usual = body.startswith(_USUAL_HEAD, 4)
        if usual and (body[_NUMBER_AT], port_at(body, _PORT_AT)[0]) not in wanted:
            continue
        flow = _parse(body)
        if flow is not None and (flow.number, flow.port) in wanted:
            yield flow


def _parse(body: bytes) -> _Flow | None:
    """A listed flow; None when it has no ports."""
    parts = attributes(body, 4)
    sides = []
    for side in (_ORIGINAL, _REPLY):
        halves = attributes(parts.get(side, b""))
        ip, proto = attributes(halves.get(_IP, b"")), attributes(halves.get(_PROTO, b""))
        if _DESTINATION_PORT not in proto or _DESTINATION not in ip:
            return None
        sides.append((ip, proto))
    (ip, proto), (reply_ip, reply_proto) = sides
    name = attribute(_ORIGINAL | _NESTED, parts[_ORIGINAL])
    name += b"".join(attribute(kind, parts[kind]) for kind in (_ID, _ZONE) if kind in parts)
    return _Flow(
        proto[_NUMBER][0],
        ip[_DESTINATION],
        int.from_bytes(proto[_DESTINATION_PORT], "big"),
        (reply_ip[_SOURCE], int.from_bytes(reply_proto[_SOURCE_PORT], "big")),
        name,
    )
