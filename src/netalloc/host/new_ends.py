"""What new interfaces of this host go by: the uplink's MTU, and IPv6's settings."""

import os
from contextlib import suppress

from netalloc.errors import NetallocError
from netalloc.family import FAMILIES
from netalloc.host import attached, rtnetlink, sysctl
from netalloc.host.attach_steps import OUTSIDE
from netalloc.host.endpoints import MAX_MTU
from netalloc.host.netlink import NetlinkError, NetlinkSocket

DEFAULT_MTU = 1500


def uplink_mtu(host: NetlinkSocket) -> int:
    """That of the interface by which the host reaches the outside."""
    for family, outside in zip(FAMILIES, OUTSIDE, strict=True):
        with suppress(NetlinkError):
            asked = rtnetlink.route_to(family.af, outside.packed)
            index = rtnetlink.outgoing(host.call(rtnetlink.GET_ROUTE, asked)[0])
            found = attached.look(host, [index]).get(index)
            if found is not None:
                return min(found.mtu, MAX_MTU)
    return DEFAULT_MTU


def has_v6() -> bool:
    """Whether this kernel has IPv6; without, its settings are refused."""
    return os.path.exists("/proc/sys/net/ipv6")  # noqa: PTH110 (a tenth of the time)


def may_be_dormant() -> bool:
    """Whether IPv6 routes by a link that is not up are used by new interfaces of this host."""
    try:
        return sysctl.read("net", "ipv6", "conf", "default", "ignore_routes_with_linkdown") == "0"
    except NetallocError:
        return False
