"""Containers put on a network: a veth pair each, routed or on a bridge, hundreds in one go.

Two sends for each container, and many containers' messages in one of them: what the host's end
takes, and, by a socket that was opened in its namespace, what the container's end takes. Who is
behind which address is told to both ends, so that nothing is ever asked for: no ARP, no NDP, no
duplicate detection. All of a call is made or nothing.

Routed, a host's end has no address and is on no bridge: a /32 route leads to it, and of IPv6 its
network's way, or a /128 route where that does not. The container's default routes by 169.254.1.1
and fe80::1, which no interface has, lead back.

What grows with the number of containers is IPv6: a link that comes up or goes down has the kernel
go through all routes of the host. It does so once for each and not three times, because it is shown
that the link is down while it still is (GET_LINK before it is up), and because the link mode is
"dormant": a link that never counts as up gets no route for ff00::/8 either, which is one list for
all interfaces. `ip link` shows NO-CARRIER for it, and `ip route` linkdown; where the host takes
such routes out of use (ignore_routes_with_linkdown) it is left away.
"""

import errno
from collections.abc import Iterable, Sequence

from netalloc.errors import ExhaustedError, InterfaceError
from netalloc.family import V6
from netalloc.host import attached, rtnetlink
from netalloc.host.attach_steps import (
    FULL,
    Plan,
    Step,
    address_steps,
    families,
    inside,
    router_steps,
    routers,
    settle,
)
from netalloc.host.attached import Present
from netalloc.host.attachment import Attaching
from netalloc.host.bridge_count import MAX_PORTS, port_indexes
from netalloc.host.endpoints import MIN_MTU_V6, Endpoint, checked
from netalloc.host.macs import HOST_END, bridge_mac
from netalloc.host.netlink import NetlinkError, NetlinkSocket, Request
from netalloc.host.netlink_messages import attribute, text
from netalloc.host.new_ends import has_v6, may_be_dormant, uplink_mtu
from netalloc.host.way_elements import WayElements
from netalloc.host.worker import carry_out

_STRICT = 1  # rp_filter: only what comes from the container's own address is let in


def attach_routed(
    endpoints: Iterable[Endpoint], group: int, ways: WayElements | None = None
) -> None:
    """Put containers on the host itself; all of them or none.

    Each is behind a route of its own, and of IPv6 behind its network's `ways` as far as these
    lead to it (netalloc.host.network_way).

    Their host's ends get this group, by which rules know them. The gateways are addresses that
    the host has (`lo` will do): what it sends to the containers comes from them.

    What is there already, in the same namespace, only gets what it lacks. Raises InterfaceError
    naming the interface and the reason, also where it is in another namespace, or its index
    or name is another's; InvalidValueError for values that cannot be. 0.5 to 1 ms each.
    """
    carry_out(Routed(checked(endpoints, in_netns=True), group, ways))


def attach_bridged(
    endpoints: Iterable[Endpoint],
    bridge_index: int,
    *,
    group: int = 0,
    hairpin: bool = False,
    static: bool = False,
) -> None:
    """Put containers on a bridge; all of them or none.

    `hairpin` lets them reach themselves through it, `static` pins their MAC addresses to their
    ports. The host's ends have the bridge's own MAC address, so that it does not change with
    them. Raises as `attach_routed` does, and ExhaustedError, before anything is made, where the
    bridge has no room for all.
    """
    carry_out(Bridged(checked(endpoints, in_netns=True), bridge_index, group, hairpin, static))


class Routed(Attaching):
    """Behind routes."""

    def __init__(self, endpoints: Sequence[Endpoint], group: int, ways: WayElements | None) -> None:
        super().__init__(endpoints, group)
        self._ways = ways
        self._served: frozenset[int] = frozenset()  # indexes of those that the way leads to

    def _prepare(self, host: NetlinkSocket) -> None:
        self._mtu = uplink_mtu(host)
        if self._ways is not None:
            pairs = [(one, self._mtu_of(one)) for one in self.endpoints]
            self._served = self._ways.served(host, pairs)
        self._with_v6 = has_v6()
        self._end = (
            attribute(rtnetlink.MAC, HOST_END)
            + rtnetlink.number(rtnetlink.GROUP, self._group)
            + (rtnetlink.DORMANT if may_be_dormant() else b"")
        )
        self._spec = {
            with_v6: rtnetlink.routed_settings(rp_filter=_STRICT, with_v6=with_v6)
            for with_v6 in (False, True)
        }

    def _settings(self, one: Endpoint) -> Request:
        spec = self._spec[self._with_v6 and self._mtu_of(one) >= MIN_MTU_V6]
        return rtnetlink.set_link(one.index, text(rtnetlink.ALIAS, one.alias) + spec)

    def _outer(self, one: Endpoint) -> Plan:
        plan = [Step("it cannot be set up", rtnetlink.set_up(one.index))]
        served = V6.af if one.index in self._served else None
        for af, address, gateway in families(one):
            if af == served:
                continue
            packed, source = address.packed, None if gateway is None else gateway.packed
            plan += (
                Step(
                    "no route to",
                    rtnetlink.host_route(one.index, af, packed, source),
                    address,
                    address,
                ),
                Step(
                    "no neighbour entry for",
                    rtnetlink.add_neighbour(one.index, af, packed, one.mac),
                    address,
                ),
            )
        return plan

    def _reach(self, host: NetlinkSocket, part: Sequence[Endpoint]) -> None:
        some = [one for one in part if one.index in self._served]
        if not some or self._ways is None:
            return
        try:
            self._ways.enter(some)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            # Another program has just taken the tables away: then by routes.
            self._served -= {one.index for one in some}
            for one in some:
                self._mend_ways(host, one)

    def _mend_ways(self, host: NetlinkSocket, one: Endpoint) -> None:
        plan = self._outer(one)
        settle(host, one, one.index, plan, host.outcomes([step.request for step in plan]))

    def _take_back(self, host: NetlinkSocket) -> None:
        if self._ways is not None:
            self._ways.leave([one for one in self._made if one.index in self._served])
        super()._take_back(host)

    def _inner(self, one: Endpoint, index: int) -> Plan:
        plan = [*inside(index, self._with_v6 and self._mtu_of(one) >= MIN_MTU_V6)]
        for (af, address, _), router in zip(families(one), routers(one), strict=True):
            whole = 8 * len(address.packed)
            plan += address_steps(index, af, address, whole)
            plan += router_steps(index, af, router, HOST_END)
        return plan


class Bridged(Attaching):
    """On a bridge."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        bridge_index: int,
        group: int,
        hairpin: bool,
        static: bool,
    ) -> None:
        super().__init__(endpoints, group)
        self._bridge_index = bridge_index
        self._hairpin = hairpin
        self._static = static

    def _prepare(self, host: NetlinkSocket) -> None:
        found = attached.look(host, [self._bridge_index]).get(self._bridge_index)
        if found is None:
            raise InterfaceError(f"no such interface: {self._bridge_index}, to be the bridge")
        there = port_indexes(found.name)
        check_room(found.name, self.endpoints, there)
        if not there:
            found = _pinned(host, found)
        self._bridge = found
        self._mtu = found.mtu
        self._with_v6 = has_v6()
        self._end = (
            attribute(rtnetlink.MAC, found.mac)
            + rtnetlink.number(rtnetlink.MASTER, found.ifindex)
            + rtnetlink.number(rtnetlink.GROUP, self._group)
        )

    def _settings(self, one: Endpoint) -> Request:
        with_v6 = self._with_v6 and self._mtu_of(one) >= MIN_MTU_V6
        spec = rtnetlink.NO_LINK_LOCAL if with_v6 else b""
        return rtnetlink.set_link(one.index, text(rtnetlink.ALIAS, one.alias) + spec)

    def _outer(self, one: Endpoint) -> Plan:
        assert self._bridge is not None
        plan = [Step("it cannot be set up", rtnetlink.set_up(one.index))]
        if self._hairpin:
            plan.append(Step("no hairpin mode", rtnetlink.set_hairpin(one.index)))
        if self._static:
            plan.append(Step("no static entry", rtnetlink.add_fdb(one.index, one.mac)))
        plan += [
            Step(
                "no neighbour entry for",
                rtnetlink.add_neighbour(self._bridge.ifindex, af, address.packed, one.mac),
                address,
            )
            for af, address, _ in families(one)
        ]
        return plan

    def _inner(self, one: Endpoint, index: int) -> Plan:
        assert self._bridge is not None
        plan = [*inside(index, self._with_v6 and self._mtu_of(one) >= MIN_MTU_V6)]
        for af, address, gateway in families(one):
            plan += address_steps(index, af, address, address.network.prefixlen)
            if gateway is not None:
                plan += router_steps(index, af, gateway, self._bridge.mac)
        return plan


def _pinned(host: NetlinkSocket, bridge: Present) -> Present:
    """The bridge, with a MAC address that stays.

    It would take over the lowest one of its ports, and zeros when the last of them goes. To set
    it drops its neighbour entries: so this is for a bridge that has no ports.
    """
    mac = bridge.mac if any(bridge.mac) else bridge_mac(bridge.name)
    request = rtnetlink.set_link(bridge.ifindex, attribute(rtnetlink.MAC, mac))
    for failure in filter(None, host.outcomes([request])):
        raise failure
    return bridge._replace(mac=mac)


def check_room(bridge: str, endpoints: Sequence[Endpoint], there: Sequence[int]) -> None:
    """Raise ExhaustedError where a bridge, whose ports are these, has no room for all."""
    fresh = {one.index for one in endpoints}.difference(there)
    if len(there) + len(fresh) > MAX_PORTS:
        raise ExhaustedError(
            f"bridge {bridge} has {len(there)} ports, and with {len(fresh)} more {FULL}"
        )
