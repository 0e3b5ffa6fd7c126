"""Forgetting the flows that a new or removed mapping has made stale.

Address translation looks at a flow's first packet only. A udp flow that was there before
the mapping stays untranslated, and one that went through a mapping still reaches the old
container after it is gone, even when the port leads elsewhere by then. So after a mapping
is made its udp flows go, and after it is removed those of every protocol.

Flows are told by the *host* port they were sent to, and only those that the mapping
concerns go: a container's connection to an outside server on the same port number lives
on. Numbers are those of linux/netfilter/nfnetlink_conntrack.h.
"""

import errno
import logging
import struct
from collections.abc import Collection, Container, Iterable, Iterator
from typing import NamedTuple

from netalloc.host.local_addresses import is_local
from netalloc.host.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    LazySocket,
    NetlinkError,
    NetlinkSocket,
    attribute,
    attributes,
    explaining,
)
from netalloc.model import PortMapping

logger = logging.getLogger(__name__)

_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
_GET, _DELETE = (1 << 8 | kind for kind in (1, 2))  # NFNL_SUBSYS_CTNETLINK
_IPV4 = b"\x02\0\0\0"  # struct nfgenmsg: family, version, resource
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_IP, _PROTO, _SOURCE, _DESTINATION = 1, 2, 1, 2
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_NESTED = 0x8000  # without it the kernel refuses the filter

# Which fields of a tuple the kernel compares (nf_internals.h).
_BY_SOURCE, _BY_DESTINATION, _BY_NUMBER, _BY_SOURCE_PORT, _BY_DESTINATION_PORT = 1, 2, 8, 16, 32

_OPENING = explaining("a socket to flush flows")
_LISTING_FROM = 4  # ports from which one listing is cheaper than a walk for each

# The start of a listed flow over IPv4 with ports: every field is where it always is.
_TUPLE_SIZE = 52
_USUAL_HEAD = struct.pack("=HHHH", _TUPLE_SIZE, _ORIGINAL | _NESTED, 20, _IP | _NESTED)
_NUMBER_AT, _PORT_AT = 36, 52


class _Flow(NamedTuple):
    """What a listed flow was sent to, who answers it, and the attributes that name it."""

    number: int
    ip: bytes
    port: int
    server: tuple[bytes, int]
    name: bytes


class Flows:
    """The flows of the host, asked over a socket that is kept."""

    def __init__(self) -> None:
        self._socket = LazySocket(NETLINK_NETFILTER)
        self._routes = LazySocket(NETLINK_ROUTE)

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
        addresses do not touch each other's flows. The kernel looks at every flow it has,
        once for each port or, from 4 on, once for all (16 ms for 50,000 flows).
        Raises CommandError without the privilege; where the kernel has no flow table
        there is nothing to do.
        """
        if added:
            mappings = [mapping for mapping in mappings if mapping.protocol == "udp"]
        if not mappings:
            return
        try:
            self._flush(mappings, added=added)
        except NetlinkError as error:
            # EINVAL: no such subsystem; an older kernel's refusal of a filter was met above.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                what = "flows of changed mappings cannot be flushed"
                raise error.explained(what) from error
            logger.warning("this kernel lists no flows, so that none were flushed: %s", error)

    def _flush(self, mappings: Collection[PortMapping], *, added: bool) -> None:
        netlink = self._socket.get()
        if sum(mapping.count for mapping in mappings) >= _LISTING_FROM:
            self._flush_listed(mappings, netlink.dump(_GET, _IPV4)[0], added=added)
            return
        for mapping in mappings:
            if added:
                for port in mapping.ports:
                    flows = netlink.dump(_GET, _filtered(mapping, port, served=False))[0]
                    self._flush_listed([mapping], flows, added=True)
            else:
                self._flush_removed(mapping)

    def close(self) -> None:
        """Close the sockets; the next call opens others."""
        self._socket.close()
        self._routes.close()

    def _flush_removed(self, mapping: PortMapping) -> None:
        """Have the kernel delete by filter, which it can do since Linux 6.8."""
        netlink = self._socket.get()
        try:
            for port in mapping.ports:
                netlink.call(_DELETE, _filtered(mapping, port, served=True))
        except NetlinkError as error:
            if error.errno == errno.EPERM:
                raise
            # An older one takes the tuple for a whole one: not found, or not complete.
            self._flush_listed([mapping], netlink.dump(_GET, _IPV4)[0], added=False)

    def _flush_listed(
        self, mappings: Iterable[PortMapping], flows: Iterable[bytes], *, added: bool
    ) -> None:
        wanted: dict[tuple[int, int], list[PortMapping]] = {}
        for mapping in mappings:
            for port in mapping.ports:
                wanted.setdefault((_NUMBERS[mapping.protocol], port), []).append(mapping)
        netlink, known = self._socket.get(), dict[bytes, bool]()
        for flow in _among(flows, wanted):
            for mapping in wanted[flow.number, flow.port]:
                if mapping.host_ip is not None and flow.ip != mapping.host_ip.packed:
                    continue
                served = flow.server == _server(mapping, flow.port)
                if added and not served and flow.ip not in known:
                    known[flow.ip] = is_local(self._routes.get(), flow.ip)
                if not served and known[flow.ip] if added else served:
                    _delete(netlink, flow)
                    break


def _server(mapping: PortMapping, port: int) -> tuple[bytes, int]:
    """Who answers what is sent to this port of the mapping."""
    ip, first = mapping.dest
    return ip.packed, first + port - mapping.host_port


def _delete(netlink: NetlinkSocket, flow: _Flow) -> None:
    try:
        netlink.call(_DELETE, _IPV4 + flow.name)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:  # it ended by itself
            raise


def _filtered(mapping: PortMapping, port: int, *, served: bool) -> bytes:
    """The body about flows to this port of the mapping, or those only that it `served`."""
    number = attribute(_NUMBER, bytes((_NUMBERS[mapping.protocol],)))
    original, flags = number + _port(_DESTINATION_PORT, port), _BY_NUMBER | _BY_DESTINATION_PORT
    address = b""
    if mapping.host_ip is not None:
        address = attribute(_DESTINATION, mapping.host_ip.packed)
        flags |= _BY_DESTINATION
    body = _IPV4 + _tuple(_ORIGINAL, address, original)
    compared = attribute(_ORIGINAL, struct.pack("=I", flags))
    if served:
        ip, server_port = _server(mapping, port)
        reply = number + _port(_SOURCE_PORT, server_port)
        body += _tuple(_REPLY, attribute(_SOURCE, ip), reply)
        flags = _BY_SOURCE | _BY_NUMBER | _BY_SOURCE_PORT
        compared += attribute(_REPLY, struct.pack("=I", flags))
    return body + attribute(_FILTER | _NESTED, compared)


def _port(kind: int, port: int) -> bytes:
    return attribute(kind, port.to_bytes(2, "big"))


def _tuple(kind: int, address: bytes, proto: bytes) -> bytes:
    ip = attribute(_IP | _NESTED, address) if address else b""
    return attribute(kind | _NESTED, ip + attribute(_PROTO | _NESTED, proto))


def _among(flows: Iterable[bytes], wanted: Container[tuple[int, int]]) -> Iterator[_Flow]:
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
