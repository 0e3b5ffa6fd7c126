"""Containers put on a network: a veth pair each, routed or on a bridge, hundreds in one go.

Two sends for each container, and many containers' messages in one of them: what the host's end
takes, and, by a socket that was opened in its namespace, what the container's end takes. Who is
behind which address is told to both ends, so that nothing is ever asked for: no ARP, no NDP, no
duplicate detection. All of a call is made or nothing.

Routed, a host's end has no address and is on no bridge: a /32 and a /128 route lead to it, and
the container's default routes by 169.254.1.1 and fe80::1, which are nobody's, lead back. Its link
mode is "dormant" where IPv6 routes are not taken out of use by a link that is not up: the
kernel then does not give it a route for ff00::/8, which is one list for all interfaces, and looks
through all IPv6 routes once and not twice when it comes up. Of 5,000 containers the last one takes
half the time, and nothing that it sends to a multicast address is looked up in a list of 5,000.
"""

import errno
from collections.abc import Collection, Iterable, Sequence

from netalloc.errors import ExhaustedError, InterfaceError
from netalloc.host import attached, namespaces, rtnetlink, target_netns
from netalloc.host.attach_steps import (
    FULL,
    Plan,
    Step,
    address_steps,
    await_address,
    failed,
    families,
    inside,
    router_steps,
    routers,
    settle,
    veth,
)
from netalloc.host.attached import Present
from netalloc.host.bridge_count import MAX_PORTS, port_indexes
from netalloc.host.endpoints import MIN_MTU_V6, Endpoint, checked
from netalloc.host.macs import HOST_END, bridge_mac
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkError, NetlinkSocket, Request
from netalloc.host.netlink_messages import attribute, text
from netalloc.host.new_ends import DEFAULT_MTU, has_v6, may_be_dormant, uplink_mtu
from netalloc.host.worker import carry_out

_CHUNK = 64  # containers whose messages go in one send: more is no faster
_STRICT = 1  # rp_filter: only what comes from the container's own address is let in


def attach_routed(endpoints: Iterable[Endpoint], group: int) -> None:
    """Put containers on the host itself, each behind a route of its own; all of them or none.

    Their host's ends get this group, by which rules know them. The gateways are addresses that
    the host has (`lo` will do): what it sends to the containers comes from them.

    What is there already, in the same namespace, only gets what it lacks. Raises InterfaceError
    naming the interface and the reason, also where it is in another namespace, or its index
    or name is another's; InvalidValueError for values that cannot be. 0.5 to 1 ms each.
    """
    carry_out(Routed(checked(endpoints, in_netns=True), group))


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


class Attaching:
    """One call's work: a thread of its own does it, and undoes it."""

    def __init__(self, endpoints: Sequence[Endpoint], group: int) -> None:
        self.endpoints = endpoints
        self.cancelled = False
        self._group = group
        self._made: list[Endpoint] = []
        self._refused: list[Endpoint] = []
        self._bridge: Present | None = None
        self._mtu = DEFAULT_MTU

    def do(self) -> None:
        """Make all of it; raises at the first that cannot be, and takes back the others."""
        host = NetlinkSocket(NETLINK_ROUTE)
        try:
            try:
                self._make_all(host)
            except BaseException:
                self._take_back(host)
                raise
            if self.cancelled:
                self._take_back(host)
        except NetlinkError as error:
            raise InterfaceError(f"interfaces cannot be made: {error.stderr}") from error
        finally:
            host.close()

    def undo(self) -> None:
        """Take away what this call has made, not what was there before."""
        host = NetlinkSocket(NETLINK_ROUTE)
        try:
            self._take_back(host)
        finally:
            host.close()

    def _make_all(self, host: NetlinkSocket) -> None:
        self._prepare(host)
        for one in self.endpoints:
            if self._mtu_of(one) < MIN_MTU_V6 and one.addresses[1] is not None:
                raise InterfaceError(
                    f"{one.shown} cannot be made: IPv6 needs an MTU of {MIN_MTU_V6}, and that "
                    f"of the bridge or uplink is {self._mtu}"
                )
        for start in range(0, len(self.endpoints), _CHUNK):
            if self.cancelled:
                return
            self._chunk(host, self.endpoints[start : start + _CHUNK])

    def _take_back(self, host: NetlinkSocket) -> None:
        bridge = None if self._bridge is None else self._bridge.ifindex
        if bridge is not None:
            attached.forget(host, self._refused, bridge)
        attached.remove(host, self._made, bridge)
        self._made, self._refused = [], []

    # ---- what the ways of attaching differ in

    def _prepare(self, host: NetlinkSocket) -> None:
        """Look at the host, before anything is made."""
        raise NotImplementedError

    def _settings(self, one: Endpoint) -> Request:
        """Its alias, and what cannot be set with its making, or costs much once it is up."""
        raise NotImplementedError

    def _outer(self, one: Endpoint) -> Plan:
        """What follows on the host."""
        raise NotImplementedError

    def _inner(self, one: Endpoint, index: int) -> Plan:
        """What follows in the namespace, where it has this index."""
        raise NotImplementedError

    # ---- and what they have in common

    _end = b""  # what the host's ends are made with

    def _end_of(self, one: Endpoint) -> bytes:
        return rtnetlink.number(rtnetlink.MTU, self._mtu_of(one)) + self._end

    def _create(self, one: Endpoint) -> Request:
        """The message that makes it."""
        return veth(one, self._end_of(one), rtnetlink.number(rtnetlink.MTU, self._mtu_of(one)))

    def _mtu_of(self, one: Endpoint) -> int:
        return self._mtu if one.mtu is None else one.mtu

    def _chunk(self, host: NetlinkSocket, part: Sequence[Endpoint]) -> None:
        there = self._make(host, part)
        for one, found in there:
            self._mend(host, one, found)
        inside: list[tuple[Endpoint, NetlinkSocket]] = []
        try:
            self._set_up_inside(host, part, {one.index for one, _ in there}, inside)
            # Asking for an interface has the kernel finish its coming up, which it does at
            # leisure otherwise: until then what is sent to it is dropped.
            # So it is with a bridge that had no ports.
            bridge = () if self._bridge is None else (self._bridge.ifindex,)
            coming_up = [*[one.index for one in part], *bridge]
            host.outcomes([(rtnetlink.GET_LINK, 0, rtnetlink.get_link(i)) for i in coming_up])
            for one, netlink in inside:
                await_address(netlink, one)
        finally:
            for _, netlink in inside:
                netlink.close()

    def _make(
        self, host: NetlinkSocket, part: Sequence[Endpoint]
    ) -> list[tuple[Endpoint, Present]]:
        """The host's ends; those that were there already, which is no error."""
        # What the messages say of an index would else be done to another's interface.
        indexes = attached.peers(host, [one.index for one in part])
        there = [
            (one, self._standing(host, one, NetlinkError(errno.EEXIST)))
            for one in part
            if one.index in indexes
        ]
        fresh = [one for one in part if one.index not in indexes]
        return there + self._make_fresh(host, fresh)

    def _make_fresh(
        self, host: NetlinkSocket, part: Sequence[Endpoint]
    ) -> list[tuple[Endpoint, Present]]:
        """Those that another process has made meanwhile."""
        plans = [self._whole(one) for one in part]
        at = len(self._made)
        self._made.extend(part)  # before it is made: whatever happens, it is known
        outcomes = iter(host.outcomes([step.request for plan in plans for step in plan]))
        results = [[next(outcomes) for _ in plan] for plan in plans]
        self._made[at:] = [
            one for one, (first, *_) in zip(part, results, strict=True) if first is None
        ]
        there = []
        for one, plan, (first, *rest) in zip(part, plans, results, strict=True):
            if first is None:
                settle(host, one, one.index, plan[1:], rest)
            else:
                self._refused.append(one)  # what else was sent of it may have been done
                there.append((one, self._standing(host, one, first)))
                self._refused.pop()
        return there

    def _whole(self, one: Endpoint) -> Plan:
        return [
            Step("it cannot be made", self._create(one)),
            Step("its settings cannot be made", self._settings(one)),
            *self._outer(one),
        ]

    def _standing(self, host: NetlinkSocket, one: Endpoint, failure: NetlinkError) -> Present:
        """The interface that keeps it from being made, when it is the same; else an error."""
        if failure.errno not in (errno.EEXIST, errno.EBUSY):
            raise failed(one, "it cannot be made", failure) from failure
        there = attached.look(host, [one.index]).get(one.index)
        if there is None or (there.name, there.alias) != (one.name, one.alias):
            raise attached.refused(host, one) from failure
        _check_place(host, one, there)
        return there

    def _mend(self, host: NetlinkSocket, one: Endpoint, there: Present) -> None:
        """Give it what it lacks on the host."""
        plan = self._outer(one)
        if not there.is_up:  # of one that is up they cost 8 ms among 10,000
            plan.insert(0, Step("its settings cannot be made", self._settings(one)))
        settle(host, one, one.index, plan, host.outcomes([step.request for step in plan]))

    def _set_up_inside(
        self,
        host: NetlinkSocket,
        part: Sequence[Endpoint],
        old: Collection[int],
        inside: list[tuple[Endpoint, NetlinkSocket]],
    ) -> None:
        """Go from one namespace to the next; a socket of each is put into `inside`."""
        peers = attached.peers(host, [one.index for one in part])
        for one in part:
            if one.netns < 0:
                continue
            if one.index not in peers:
                raise InterfaceError(f"{one.shown} has gone again: did its namespace end?")
            index = peers[one.index]
            netlink = _enter(one)
            inside.append((one, netlink))
            if one.index in old:
                _check_name(netlink, one, index)
            plan = self._inner(one, index)
            settle(netlink, one, index, plan, netlink.outcomes([step.request for step in plan]))


class Routed(Attaching):
    """Behind routes."""

    def _prepare(self, host: NetlinkSocket) -> None:
        self._mtu = uplink_mtu(host)
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
        for af, address, gateway in families(one):
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


def _check_place(host: NetlinkSocket, one: Endpoint, there: Present) -> None:
    """That the other end is in the namespace where it is wanted; InterfaceError says where."""
    if one.netns < 0:
        return
    if there.peer_netns is not None and _number(host, one.netns) == there.peer_netns:
        return
    name = target_netns.name_of(lambda fd: _number(host, fd) == there.peer_netns)
    where = f"network namespace {name}" if name else "another network namespace, without a name"
    raise InterfaceError(f"{one.shown} is in {where} already: detach it first")


def _number(host: NetlinkSocket, fd: int) -> int | None:
    """By which number the host knows this namespace."""
    answer = host.call(rtnetlink.GET_NAMESPACE, rtnetlink.namespace_number(fd))
    return rtnetlink.number_in(answer[0])


def _enter(one: Endpoint) -> NetlinkSocket:
    """Take the thread into the container's namespace; a socket that stays there."""
    try:
        namespaces.setns(one.netns, namespaces.CLONE_NEWNET)
    except OSError as error:
        raise InterfaceError(
            f"{one.shown}: its network namespace cannot be entered: {error.strerror}"
        ) from error
    return NetlinkSocket(NETLINK_ROUTE)


def _check_name(netlink: NetlinkSocket, one: Endpoint, index: int) -> None:
    there = attached.look(netlink, [index]).get(index)
    if there is None or there.name != one.ifname:
        called = "gone" if there is None else f"called {there.name}"
        raise InterfaceError(f"{one.shown} is {called} in its namespace, and not {one.ifname}")
