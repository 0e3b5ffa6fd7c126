"""Cutting interfaces off from their addresses, and back: quickly, where taking one away is slow.

To delete an interface takes the kernel 16 ms among 10,000, for it waits until no part of the
machine can still be using it. To take its routes, or its port's turn on the bridge, takes 20 µs,
and from then on nothing reaches a container by that address, nor does it reach another. So the
address may have a new holder before the old one's interface is gone.
"""

import errno
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

from netalloc.errors import InterfaceError
from netalloc.family import FAMILIES
from netalloc.host import rtnetlink
from netalloc.host.endpoints import Endpoint
from netalloc.host.netlink import (
    NETLINK_ROUTE,
    NetlinkError,
    NetlinkSocket,
    Request,
    explaining,
)
from netalloc.host.netlink_messages import attribute

_PORT_STATE, _PORT_FLUSH = 1, 24  # IFLA_BRPORT_...
_DISABLED, _FORWARDING = b"\0", b"\3"  # linux/if_bridge.h
_NESTED = 0x8000
# What was cut off, or has gone, or is not up and will be put to work when it is.
_FINE = (errno.ENODEV, errno.ENXIO, errno.ESRCH, errno.ENOENT, errno.EEXIST, errno.ENETDOWN)
_NO_PORT = (errno.EOPNOTSUPP, errno.EINVAL)  # of an interface that was taken off the bridge


def sever(endpoints: Sequence[Endpoint], bridge: int | None) -> None:
    """Cut them off; what is gone is no error.

    `bridge` is its index, None for routed ones. Raises InterfaceError: then some are cut off.
    """
    _send("cannot be cut off", endpoints, bridge, _severing)


def rejoin(endpoints: Sequence[Endpoint], bridge: int | None) -> None:
    """Take `sever` back; what was not cut off is no error, nor what is gone."""
    _send("cannot be reached again", endpoints, bridge, _rejoining)


def _send(
    what: str,
    endpoints: Sequence[Endpoint],
    bridge: int | None,
    make: Callable[[Endpoint, int | None], Iterator[Request]],
) -> None:
    with explaining(f"interfaces that {what}"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            plans = [list(make(one, bridge)) for one in endpoints]
            outcomes = iter(netlink.outcomes([request for plan in plans for request in plan]))
            for one, plan in zip(endpoints, plans, strict=True):
                _check(one, what, [next(outcomes) for _ in plan])
            if bridge:  # without a port that works it was down, and comes up when asked for
                netlink.outcomes([(rtnetlink.GET_LINK, 0, rtnetlink.get_link(bridge))])
        finally:
            netlink.close()


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


def _rejoining(one: Endpoint, bridge: int | None) -> Iterator[Request]:
    if bridge is not None:
        yield _port(one.index, _FORWARDING)
    for family, address, gateway in zip(FAMILIES, one.addresses, one.gateways, strict=True):
        if address is None:
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
