"""Making the host a router, of either family, as long as it is needed.

A router does not listen to other routers: when IPv6 forwarding goes on, the kernel takes away the
default routes that interfaces have learned (rt6_purge_dflt_routers() in net/ipv6/route.c), and
with them a host's way out. Those interfaces are told before to go on listening, accept_ra=2
(ip-sysctl in the kernel's documentation).
"""

import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from sys import byteorder

from netalloc.errors import InterfaceError
from netalloc.family import V4, V6, Family
from netalloc.host import sysctl
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkSocket, explaining
from netalloc.host.netlink_messages import attributes
from netalloc.host.opened import Entry

logger = logging.getLogger(__name__)

_GET_ROUTE, _DEVICE = 26, 4
_LEARNED = 9  # RTPROT_RA
_LISTENING = "accept_ra"  # of an interface, in the record
_WHAT = {V4: "ip_forward", V6: "ip6_forward"}  # in the record


def is_on(family: Family) -> bool:
    """Whether the host is a router."""
    return sysctl.read(*family.forwarding) != "0"


def switch_on(record: set[Entry], user: str, family: Family) -> tuple[str, ...]:
    """Make it one for this user, and note that; what was wrong.

    Only where it was off before the first user came do we note anything.
    """
    what = _WHAT[family]
    was_on = is_on(family)
    if not was_on or any(entry.what == what for entry in record):
        record.add(Entry(what, user))
    if was_on:
        return ()
    if family is V6:
        _go_on_listening(record)
    sysctl.write("1", *family.forwarding)
    name = ".".join(family.forwarding)
    logger.info("set %s, which was 0: the containers need it", name)
    return (f"{name} was 0",)


def switch_off(record: set[Entry], user: str, family: Family) -> None:
    """Note that this user has gone; with the last one it is as it was before the first."""
    what = _WHAT[family]
    mine = Entry(what, user)
    if mine not in record:
        return
    if sum(entry.what == what for entry in record) == 1:
        if is_on(family):
            sysctl.write("0", *family.forwarding)
            logger.info("set %s back to 0, as it was", ".".join(family.forwarding))
        if family is V6:
            _listen_as_before(record)
    record.discard(mine)


def _go_on_listening(record: set[Entry]) -> None:
    for index in _taught():
        name = _name(index)
        with suppress(InterfaceError):  # it goes at this moment
            if name is None or sysctl.read(*_setting(name)) != "1":
                continue
            record.add(Entry(_LISTENING, "", index, name))
            sysctl.write("2", *_setting(name))
            logger.info(
                "set %s to 2: %s has its default route from a router, and would lose it when "
                "the host forwards IPv6",
                ".".join(_setting(name)),
                name,
            )


def _listen_as_before(record: set[Entry]) -> None:
    for entry in [entry for entry in record if entry.what == _LISTENING]:
        name = _name(entry.ifindex)
        with suppress(InterfaceError):
            if name is not None and sysctl.read(*_setting(name)) == "2":
                sysctl.write("1", *_setting(name))
                logger.info("set %s back to 1, as it was", ".".join(_setting(name)))
        record.discard(entry)


def _taught() -> Iterator[int]:
    """The interfaces by which a default route leads that a router has told of; O(routes)."""
    with explaining("default routes of IPv6"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            routes, _ = netlink.dump(_GET_ROUTE, struct.pack("=B11x", V6.af))
        finally:
            netlink.close()
    found = set()
    for route in routes:  # struct rtmsg: family, prefix, -, -, table, protocol
        if route[1] == 0 and route[5] == _LEARNED:
            found.add(int.from_bytes(attributes(route, 12).get(_DEVICE, b""), byteorder))
    yield from sorted(found)


def _setting(name: str) -> tuple[str, ...]:
    return ("net", "ipv6", "conf", name, "accept_ra")


def _name(index: int) -> str | None:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None
