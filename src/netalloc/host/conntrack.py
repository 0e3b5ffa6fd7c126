"""Forgetting the flows that a new or removed mapping has made stale.

Address translation looks at a flow's first packet only. A udp flow that was there before
the mapping stays untranslated, and one that went through a mapping still reaches the old
container after it is gone, even when the port leads elsewhere by then. So after a mapping
is made its udp flows go, and after it is removed those of every protocol; when a container
is gone, all that it answers.

Flows are told by the *host* port they were sent to, and only those that the mapping
concerns go: a container's connection to an outside server on the same port number lives
on.

The kernel can be had to delete what a filter describes, in one walk over all flows (150 ns
each, and next to nothing where there are none), or to list it, which also looks into each
of 262,144 buckets (5 ms, with or without flows). So many walks are made one listing where
there are many flows.
"""

import errno
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from netalloc.closing import Closing
from netalloc.family import V4, V6, Family
from netalloc.host import netns
from netalloc.host.conntrack6 import IPv6Flows
from netalloc.host.flow_messages import (
    DELETE,
    DESTINATION,
    GET,
    IPV4,
    NUMBERS,
    SOURCE,
    STATISTICS,
    Flow,
    among,
    answered,
    answered_by,
    by_port,
    is_at,
    leads,
    sent,
    sent_to,
    served,
    translated,
)
from netalloc.host.lazy_socket import LazySocket
from netalloc.host.local_addresses import addresses, is_local
from netalloc.host.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NetlinkError,
    explaining,
)
from netalloc.host.netlink_messages import attributes
from netalloc.host.shown_flows import ShownFlow, shown_flows
from netalloc.model import PortMapping

logger = logging.getLogger(__name__)

_OPENING = explaining("a socket to flush flows")
_LOOPBACK = bytes((127, 0, 0, 1))
_ENTRIES = 1  # CTA_STATS_GLOBAL_ENTRIES
# A deletion by filter, and a listing by filter, take the time of passing so many flows (0.2 µs
# each) besides those that there are: 0.12 and 9 ms where there are none.
_DELETION, _LISTING = 600, 45_000
_SHOWN = 500  # flows up to which to read all of them takes no longer than some deletions
_WALK_FROM = 1_000  # flows of one address: to delete each by itself takes as long as a walk


class Flows(Closing):
    """The flows of the host, asked over a socket that is kept."""

    def __init__(self) -> None:
        self._socket = LazySocket(NETLINK_NETFILTER)
        self._routes = LazySocket(NETLINK_ROUTE)
        self._home = netns.current()
        self._deletes_by_filter = True  # Linux can since 6.8
        self._ipv6 = IPv6Flows(self._socket, self._routes)

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
        of_ipv6 = [mapping for mapping in mappings if mapping.version == 6]
        if of_ipv6:
            mappings = [mapping for mapping in mappings if mapping.version == 4]
        if mappings:
            self._explained(partial(self._added if added else self._removed, mappings))
        if of_ipv6:
            self._explained(partial(self._flush_ipv6, of_ipv6, added))

    def forget(self, mappings: Collection[PortMapping]) -> None:
        """Forget the flows that the containers of these mappings answer, for they are gone.

        Over IPv6 those that went through the mappings. Raises CommandError without the
        privilege. O(flows), in one walk for one address of IPv4.
        """
        servers = {mapping.dest[0].packed for mapping in mappings if mapping.version == 4}
        if servers:
            self._explained(partial(self._forget, servers))
        of_ipv6 = [mapping for mapping in mappings if mapping.version == 6]
        if of_ipv6:
            self._explained(partial(self._flush_ipv6, of_ipv6, False))

    def close(self) -> None:
        """Close the sockets; the next call opens others."""
        self._socket.close()
        self._routes.close()

    def count(self) -> int:
        """How many flows the network namespace has; 8 µs."""
        (answer,) = self._socket.get().call(STATISTICS, IPV4)
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
        if self._walks(len(ports), flows) and self._deleted(served(*one) for one in ports):
            return
        wanted = by_port(mappings)
        listing = translated({mapping.dest[0].packed for mapping in mappings})
        for flow in among(self._socket.get().dump(GET, listing)[0], wanted, V4.af):
            if any(leads(flow, mapping) for mapping in wanted[flow.number, flow.port]):
                self._delete(flow)

    def _added(self, mappings: Collection[PortMapping], flows: int) -> None:
        ports = [(mapping, port) for mapping in mappings for port in mapping.ports]
        filters = self._filters(ports, flows)
        if filters is not None and self._walks(len(filters), flows) and self._deleted(filters):
            return
        wanted, known = by_port(mappings), dict[bytes, bool]()
        listing = sent_to(NUMBERS["udp"], ports[0][1] if len(ports) == 1 else None)
        for flow in among(self._socket.get().dump(GET, listing)[0], wanted, V4.af):
            for mapping in wanted[flow.number, flow.port]:
                if is_at(flow, mapping) and not leads(flow, mapping):
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
            return [body for mapping, port in ports for body in sent(mapping, port, at)]
        places: dict[int, set[bytes]] = {}
        for flow in shown:
            if flow.number == NUMBERS["udp"]:
                places.setdefault(flow.port, set()).add(flow.ip)
        return [
            body
            for mapping, port in ports
            for ip in places.get(port, ())
            if self._reaches(mapping, ip)
            for body in sent(mapping, port, [(DESTINATION, ip)])
        ]

    def _reaches(self, mapping: PortMapping, ip: bytes) -> bool:
        if mapping.host_ip is not None:
            return mapping.host_ip.packed == ip
        return is_local(self._routes.get(), ip)

    def _shown(self, flows: int, family: Family = V4) -> list[ShownFlow] | None:
        """All flows of a family, where the host has few and shows them."""
        return shown_flows(self._home, family) if flows <= _SHOWN else None

    def _flush_ipv6(self, mappings: Collection[PortMapping], added: bool, flows: int) -> None:
        self._ipv6.flush(mappings, self._shown(flows, V6), added=added)

    def _forget(self, servers: set[bytes], flows: int) -> None:
        if len(servers) > 1 and (shown := self._shown(flows)) is not None:
            servers &= {flow.server for flow in shown}
        if self._walks(len(servers), flows) and self._deleted(map(answered, servers)):
            return
        found: dict[bytes, list[Flow]] = {}
        listing = self._socket.get().dump(GET, translated(servers))[0]
        for flow in answered_by(listing, servers, V4.af):
            found.setdefault(flow.server[0], []).append(flow)
        for server, some in found.items():
            if len(some) < _WALK_FROM or not self._deleted([answered(server)]):
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
                netlink.call(DELETE, body)
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
        found = [(DESTINATION, ip) for ip in addresses(self._routes.get())]
        return [*found, (SOURCE, _LOOPBACK)]

    def _delete(self, flow: Flow) -> None:
        try:
            self._socket.get().call(DELETE, flow.name)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:  # it ended by itself
                raise
