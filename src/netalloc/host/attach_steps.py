"""What is told the kernel to put one container on a network, step by step, and its answers."""

import errno
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import NamedTuple

from netalloc.errors import ExhaustedError, InterfaceError, NetallocError
from netalloc.family import FAMILIES, family_of
from netalloc.host import rtnetlink
from netalloc.host.bridge_count import MAX_PORTS
from netalloc.host.endpoints import Endpoint
from netalloc.host.netlink import NetlinkError, NetlinkSocket, Request

# By which a routed container reaches everything: link-local, and no interface's.
ROUTERS: tuple[IPv4Address | IPv6Address, ...] = (
    IPv4Address("169.254.1.1"),
    IPv6Address("fe80::1"),
)
# Addresses that only a default route leads to, as a rule; nothing is sent there.
OUTSIDE: tuple[IPv4Address | IPv6Address, ...] = (IPv4Address("1.0.0.1"), IPv6Address("2000::1"))

_LOOPBACK = 1  # the index of lo, in every namespace
FULL = (
    f"it would have more than the {MAX_PORTS} ports that a bridge can have: "
    f'use another bridge, or mode="routed"'
)
_PAUSES = (0.0, *(0.0002,) * 50, *(0.01,) * 99)  # seconds
_REASONS = {
    errno.EPERM: "CAP_NET_ADMIN is missing",
    errno.EEXIST: "there is another one",
    errno.EACCES: "IPv6 is switched off there (disable_ipv6)",
}


class Step(NamedTuple):
    """A message; what an error says of it, and of which address; which one it makes a route to.

    As tuples and texts that are put together for an error alone: that takes a quarter of all.
    """

    what: str
    request: Request
    address: IPv4Address | IPv6Address | None = None
    destination: IPv4Address | IPv6Address | None = None

    @property
    def said(self) -> str:
        """For an error."""
        if self.address is None:
            return self.what
        ip = (
            self.address.ip
            if isinstance(self.address, IPv4Interface | IPv6Interface)
            else self.address
        )
        return f"{self.what} {ip}"


Plan = list[Step]


def families(
    one: Endpoint,
) -> list[tuple[int, IPv4Interface | IPv6Interface, IPv4Address | IPv6Address | None]]:
    """AF_..., address and gateway, of each family that it has."""
    gateways = one.gateways
    return [
        (FAMILIES[at].af, address, gateways[at])
        for at, address in enumerate(one.addresses)
        if address is not None
    ]


def routers(one: Endpoint) -> list[IPv4Address | IPv6Address]:
    return [
        router
        for router, address in zip(ROUTERS, one.addresses, strict=True)
        if address is not None
    ]


def veth(one: Endpoint, end: bytes, mtu: int) -> Request:
    peer = rtnetlink.peer_end(one.ifname, mtu)
    return rtnetlink.create_veth(one.index, one.name, end, peer, one.mac, one.netns)


@lru_cache(64)  # the same for nearly all containers: a tenth of the time
def inside(index: int, with_v6: bool) -> tuple[Step, ...]:
    plan = [Step("its loopback cannot be set up", rtnetlink.set_up(_LOOPBACK))]
    if with_v6:  # before it is up: link-local addresses take 2 ms each
        plan.append(
            Step(
                "link-local addresses cannot be kept off",
                rtnetlink.set_link(index, rtnetlink.NO_LINK_LOCAL),
            )
        )
    plan.append(Step("its end inside cannot be set up", rtnetlink.set_up(index)))
    # The kernel finishes its coming up for who asks, and would at leisure: see await_address.
    plan.append(Step("it is gone", (rtnetlink.GET_LINK, 0, rtnetlink.get_link(index))))
    return tuple(plan)


def address_steps(
    index: int, af: int, address: IPv4Interface | IPv6Interface, prefix: int
) -> tuple[Step, ...]:
    request = rtnetlink.add_address(index, af, address.packed, prefix)
    return (Step("it cannot have", request, address),)


@lru_cache(64)
def router_steps(
    index: int, af: int, router: IPv4Address | IPv6Address, mac: bytes
) -> tuple[Step, ...]:
    return (
        Step(
            "no neighbour entry for",
            rtnetlink.add_neighbour(index, af, router.packed, mac),
            router,
        ),
        Step(
            "no default route by",
            rtnetlink.default_route(index, af, router.packed),
            router,
            OUTSIDE[router.version == 6],
        ),
    )


def settle(
    netlink: NetlinkSocket,
    one: Endpoint,
    index: int,
    plan: Sequence[Step],
    outcomes: Sequence[NetlinkError | None],
) -> None:
    """Raise what was refused, unless it was there already."""
    if any(outcomes):
        for step, failure in zip(plan, outcomes, strict=True):
            if failure is not None and not _is_there(netlink, index, step, failure):
                raise failed(one, step.said, failure) from failure


def _is_there(netlink: NetlinkSocket, index: int, step: Step, failure: NetlinkError) -> bool:
    if failure.errno != errno.EEXIST or step.destination is None:
        return False
    family = family_of(step.destination.version)
    asked = rtnetlink.route_to(family.af, step.destination.packed)
    with suppress(NetlinkError):
        answer = netlink.call(rtnetlink.GET_ROUTE, asked)
        return rtnetlink.outgoing(answer[0]) == index
    return False


def failed(one: Endpoint, what: str, failure: NetlinkError) -> NetallocError:
    if failure.errno == errno.EXFULL:
        return ExhaustedError(f"{one.shown}: {FULL}")
    reason = _REASONS.get(failure.errno) or failure.stderr
    return InterfaceError(f"{one.shown}: {what}: {reason}")


def await_address(netlink: NetlinkSocket, one: Endpoint) -> None:
    """Wait until its IPv6 address takes packets in, which the kernel sees to in its own time.

    As a rule it has been done meanwhile. It is given a second, for it comes in any case.
    """
    if one.addresses[1] is None:
        return
    packed = one.addresses[1].packed
    for pause in _PAUSES:
        try:
            if rtnetlink.is_local(netlink.ask_one(rtnetlink.ask_route, packed)):
                return
        except NetlinkError:
            pass  # there is no way at all yet
        time.sleep(pause)
