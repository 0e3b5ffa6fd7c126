"""One call's work of putting containers on a network, whichever way: all of it or nothing."""

import errno
from collections.abc import Collection, Sequence

from netalloc.errors import InterfaceError
from netalloc.host import attached, namespaces, rtnetlink, target_netns
from netalloc.host.attach_steps import (
    Plan,
    Step,
    await_address,
    failed,
    settle,
    veth,
)
from netalloc.host.attached import Present
from netalloc.host.endpoints import MIN_MTU_V6, Endpoint
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkError, NetlinkSocket, Request
from netalloc.host.new_ends import DEFAULT_MTU

_CHUNK = 32  # containers whose messages go in one send: more is no faster


class Attaching:
    """One call's work: a thread of its own does it, and undoes it."""

    def __init__(self, endpoints: Sequence[Endpoint], group: int) -> None:
        self.endpoints = endpoints
        self.cancelled = False
        self._group = group
        self._made: list[Endpoint] = []
        self._refused: list[Endpoint] = []
        self._peers: dict[int, int] = {}
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

    def _reach(self, host: NetlinkSocket, part: Sequence[Endpoint]) -> None:
        """What leads to them otherwise than by messages about the host's ends."""

    # ---- and what they have in common

    _end = b""  # what the host's ends are made with

    def _end_of(self, one: Endpoint) -> bytes:
        return rtnetlink.number(rtnetlink.MTU, self._mtu_of(one)) + self._end

    def _create(self, one: Endpoint) -> Request:
        """The message that makes it."""
        return veth(one, self._end_of(one), self._mtu_of(one))

    def _mtu_of(self, one: Endpoint) -> int:
        return self._mtu if one.mtu is None else one.mtu

    def _chunk(self, host: NetlinkSocket, part: Sequence[Endpoint]) -> None:
        there = self._make(host, part)
        for one, found in there:
            self._mend(host, one, found)
        self._reach(host, part)
        inside: list[tuple[Endpoint, NetlinkSocket]] = []
        try:
            self._peers.update({one.index: found.peer for one, found in there})
            self._set_up_inside(part, {one.index for one, _ in there}, inside)
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
        indexes = attached.existing(host, [one.index for one in part])
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
        answers: list[bytes] = []
        requests = [step.request for plan in plans for step in plan]
        outcomes = iter(host.outcomes(requests, answers))
        self._peers = dict(map(rtnetlink.ends_in, answers))
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
            # Tells the other end's index; and the kernel has then seen that the link is down,
            # which it would else see when it is up and go through all IPv6 routes for.
            Step("it is gone", (rtnetlink.GET_LINK, 0, rtnetlink.get_link(one.index))),
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
        part: Sequence[Endpoint],
        old: Collection[int],
        inside: list[tuple[Endpoint, NetlinkSocket]],
    ) -> None:
        """Go from one namespace to the next; a socket of each is put into `inside`."""
        for one in part:
            if one.netns < 0:
                continue
            if one.index not in self._peers:
                raise InterfaceError(f"{one.shown} has gone again: did its namespace end?")
            index = self._peers[one.index]
            netlink = _enter(one)
            inside.append((one, netlink))
            if one.index in old:
                _check_name(netlink, one, index)
            plan = self._inner(one, index)
            settle(netlink, one, index, plan, netlink.outcomes([step.request for step in plan]))


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
    return NetlinkSocket(NETLINK_ROUTE, small=True)


def _check_name(netlink: NetlinkSocket, one: Endpoint, index: int) -> None:
    there = attached.look(netlink, [index]).get(index)
    if there is None or there.name != one.ifname:
        called = "gone" if there is None else f"called {there.name}"
        raise InterfaceError(f"{one.shown} is {called} in its namespace, and not {one.ifname}")
