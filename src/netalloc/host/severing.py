"""Cutting interfaces off from their addresses, and back: quickly, where taking one away is slow.

To delete an interface takes the kernel 16 ms among 10,000, for it waits until no part of the
machine can still be using it. To take its routes and elements, or its port's turn on the bridge,
takes 20 to 50 µs, and from then on nothing reaches a container by that address, nor does it reach
another. So the address may have a new holder before the old one's interface is gone.
"""

import errno
import struct
from collections.abc import Iterable, Iterator, Sequence

from netalloc.errors import InterfaceError
from netalloc.family import FAMILIES, V6
from netalloc.host import attached, rtnetlink
from netalloc.host.endpoints import Endpoint
from netalloc.host.netlink import (
    NETLINK_ROUTE,
    NetlinkError,
    NetlinkSocket,
    Request,
    explaining,
)
from netalloc.host.netlink_messages import attribute
from netalloc.host.way_elements import WayElements

_PORT_STATE, _PORT_FLUSH = 1, 24  # IFLA_BRPORT_...
_DISABLED, _FORWARDING = b"\0", b"\3"  # linux/if_bridge.h
_NESTED = 0x8000
# What was cut off, or has gone, or is not up and will be put to work when it is.
_FINE = (errno.ENODEV, errno.ENXIO, errno.ESRCH, errno.ENOENT, errno.EEXIST, errno.ENETDOWN)
_NO_PORT = (errno.EOPNOTSUPP, errno.EINVAL)  # of an interface that was taken off the bridge


def sever(
    endpoints: Sequence[Endpoint], bridge: int | None, ways: WayElements | None = None
) -> None:
    """Cut them off; what is gone is no error.

    `bridge` is its index, None for routed ones, which `ways` may lead to. Raises InterfaceError:
    then some are cut off.
    """
    what = "cannot be cut off"
    with explaining(f"interfaces that {what}"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            if ways is not None:
                ways.cut_off(endpoints)
            _send(netlink, what, [(one, [*_severing(one, bridge)]) for one in endpoints], bridge)
        finally:
            netlink.close()


def rejoin(
    endpoints: Sequence[Endpoint], bridge: int | None, ways: WayElements | None = None
) -> None:
    """Take `sever` back; what was not cut off is no error, nor what is gone."""
    what = "cannot be reached again"
    with explaining(f"interfaces that {what}"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            served = frozenset[int]() if ways is None else _by_ways(netlink, endpoints, ways)
            plans = [(one, [*_rejoining(one, bridge, served)]) for one in endpoints]
            _send(netlink, what, plans, bridge)
        finally:
            netlink.close()


def _by_ways(
    netlink: NetlinkSocket, endpoints: Sequence[Endpoint], ways: WayElements
) -> frozenset[int]:
    """Have the ways lead to those that they can lead to, which are these."""
    there = attached.look(netlink, [one.index for one in endpoints])
    pairs = [(one, there[one.index].mtu) for one in endpoints if one.index in there]
    served = ways.served(netlink, pairs)
    try:
        ways.enter([one for one in endpoints if one.index in served])
    except NetlinkError as error:
        if error.errno != errno.ENOENT:  # the tables were just taken away
            raise
        return frozenset()
    return served


def _send(
    netlink: NetlinkSocket,
    what: str,
    plans: Sequence[tuple[Endpoint, list[Request]]],
    bridge: int | None,
) -> None:
    outcomes = iter(netlink.outcomes([request for _, plan in plans for request in plan]))
    for one, plan in plans:
        _check(one, what, [next(outcomes) for _ in plan])
    if bridge:  # without a port that works it was down, and comes up when asked for
        netlink.outcomes([(rtnetlink.GET_LINK, 0, rtnetlink.get_link(bridge))])


def _check(one: Endpoint, what: str, found: Iterable[NetlinkError | None]) -> None:
    for failure in found:
        if failure is not None and failure.errno not in _FINE + _NO_PORT:
            raise InterfaceError(f"{one.shown} {what}: {failure.stderr}") from failure


def _severing(one: Endpoint, bridge: int | None) -> Iterator[Request]:
    if bridge is not None:
        # What the bridge has learned there would lead to it, and not to the next holder.
        yield _port(one.index, _DISABLED, attribute(_PORT_FLUSH, b""))
    for family, address in zip(FAMILIES, one.addresses, strict=True):
        if address is None:
            continue
        if bridge is None:
            yield rtnetlink.delete_host_route(one.index, family.af, address.packed)
        elif bridge:
            yield rtnetlink.delete_neighbour(bridge, family.af, address.packed)


def _rejoining(one: Endpoint, bridge: int | None, served: frozenset[int]) -> Iterator[Request]:
    if bridge is not None:
        yield _port(one.index, _FORWARDING)
    for family, address, gateway in zip(FAMILIES, one.addresses, one.gateways, strict=True):
        if address is None:
            continue
        if bridge is None and family is V6 and one.index in served:
            continue
        if bridge is None:
            source = None if gateway is None else gateway.packed
            yield rtnetlink.host_route(one.index, family.af, address.packed, source)
        elif bridge:
            yield rtnetlink.add_neighbour(bridge, family.af, address.packed, one.mac)


def _port(index: int, state: bytes, more: bytes = b"") -> Request:
    body = struct.pack("=BxHiII", rtnetlink.AF_BRIDGE, 0, index, 0, 0)
    return (
        rtnetlink.SET_LINK,
        0,
        body + attribute(rtnetlink.PROTOCOL_INFO | _NESTED, attribute(_PORT_STATE, state) + more),
    )
