"""One way to all IPv6 containers of a routed network: a device, a route, and a map behind them.

With a route to each container every change of any link's state costs more the more containers
there are, for the kernel goes through all IPv6 routes then. So a network has one route, by a
device that no frame ever leaves: where they would, at its egress hook, nftables looks into a map
and sends each out by the interface of its container instead. A packet costs the same by both.

The device is a veth pair whose other end nothing arrives at. It is in the group of the network's
interfaces, so that rules which name the group are about what goes by the device as well. The
tables behind it are those of netalloc.host.way_tables.

Where the kernel has no such hook (before Linux 5.16), or a rule of another program's asks by which
interface the way back leads, containers have a route each.
"""

import errno
import logging
from ipaddress import IPv6Address, IPv6Network
from typing import Final, NamedTuple

from netalloc.family import V6
from netalloc.host import attached, reverse_path, rtnetlink, way_tables
from netalloc.host.attached import Present
from netalloc.host.netlink import (
    NETLINK_ROUTE,
    NetlinkError,
    NetlinkSocket,
    Request,
    explaining,
)
from netalloc.host.netlink_messages import text
from netalloc.host.new_ends import uplink_mtu
from netalloc.host.opened import Entry
from netalloc.host.way_tables import DEVICES, UNABLE

logger = logging.getLogger(__name__)

_WHAT: Final = "way6"  # in the record
_ALIAS: Final = "netalloc-way"
_NEXT: Final = IPv6Address("fe80::2").packed  # the next hop, which there is not

_GROUPS: Final = 0x6E << 24  # those that ipam.attachments gives
_OF_GROUP: Final = 0x7FFFFF
_FIRST: Final = 0x3F << 24  # two indexes for each: below those of containers' interfaces
_ADDRESSES: Final = int(IPv6Address("fe80::6e00:0:0"))

_GONE: Final = (errno.ENODEV, errno.ESRCH, errno.ENOENT, errno.ENXIO)


class Way(NamedTuple):
    """That of a network whose interfaces are in this group; the host is `gateway` to it."""

    group: int
    network: IPv6Network
    gateway: IPv6Address | None = None

    @classmethod
    def of(cls, group: int, network: IPv6Network, gateway: IPv6Address | None) -> "Way | None":
        """That of those of its addresses that are given; None for a group that is no network's."""
        if not is_networks(group):
            return None
        return cls(group, IPv6Network((network[0], max(network.prefixlen, 64))), gateway)

    @property
    def number(self) -> int:
        """Which of the networks it is of."""
        return self.group & _OF_GROUP

    @property
    def ifindex(self) -> int:
        """The device's."""
        return index_of(self.group)

    @property
    def name(self) -> str:
        """The device's."""
        return f"{DEVICES}{self.number:x}"

    @property
    def address(self) -> IPv6Address:
        """What the device has, so that the kernel tells when it goes, or goes down."""
        return IPv6Address(_ADDRESSES | self.number)

    @property
    def _place(self) -> tuple[int, int, bytes, int, bytes]:
        return self.ifindex, V6.af, self.network[0].packed, self.network.prefixlen, _NEXT

    @property
    def route(self) -> Request:
        """The message that makes it."""
        source = None if self.gateway is None else self.gateway.packed
        return rtnetlink.network_route(*self._place, source)

    @property
    def route_deletion(self) -> Request:
        """The message that ends it."""
        return rtnetlink.delete_network_route(*self._place)


def is_networks(group: int) -> bool:
    """Whether it is a group that a network can have: only those have a device."""
    return group & ~_OF_GROUP == _GROUPS


def index_of(group: int) -> int:
    """The index of a network's device.

    >>> hex(index_of(0x6E000003))
    '0x3f000006'
    """
    return _FIRST + 2 * (group & _OF_GROUP)


# ---- the record


def note(record: set[Entry], user: str, way: Way) -> None:
    """Note that this user needs it; to be written before `mend`."""
    record.add(Entry(_WHAT, user, way.ifindex, str(way.network)))


def withdraw(record: set[Entry], user: str) -> None:
    """Note that this user has gone; what it was the last one of goes, the tables with the last."""
    mine = {entry for entry in record if entry[:2] == (_WHAT, user)}
    if not mine:
        return
    rest = [entry for entry in record - mine if entry.what == _WHAT]
    with explaining("the ways of networks"):
        for entry in mine:
            group = _GROUPS | (entry.ifindex - _FIRST) // 2
            way = Way(group, IPv6Network(entry.interface))
            if all(one.interface != entry.interface for one in rest):
                _remove(way, whole=all(one.ifindex != entry.ifindex for one in rest))
        if not rest:
            way_tables.remove()
    record -= mine


# ---- making it, and making it whole


def is_whole(way: Way) -> bool:
    """Whether all of it is there; 0.1 ms, however many networks and containers there are."""
    with explaining("the ways of networks"):
        host = NetlinkSocket(NETLINK_ROUTE)
        try:
            if not _is_right(way, attached.look(host, [way.ifindex]).get(way.ifindex)):
                return False
        finally:
            host.close()
        return way_tables.are_whole(way.name)


def put_route(way: Way) -> tuple[str, ...]:
    """Make the route if there is none; what was missing. 10 µs."""
    return _routed([way.route], way)


def mend(way: Way, *, anew: bool) -> tuple[str, ...] | None:
    """Make what of it is missing, and say what was; None where the kernel has no such thing.

    `anew` has the route made again, of which the kernel has taken the source.
    """
    with explaining("the ways of networks"):
        try:
            found = _mend_device(way) + way_tables.mend(way.name)
        except NetlinkError as error:
            if error.errno not in UNABLE:
                raise
            logger.info("IPv6 containers of %s have a route each: %s", way.network, error)
            _remove(way, whole=True)
            return None
    if anew:
        _routed([way.route_deletion], way)
    made = _routed([way.route], way)
    return found + (() if anew else made)


def _routed(requests: list[Request], way: Way) -> tuple[str, ...]:
    with explaining("the ways of networks"):
        host = NetlinkSocket(NETLINK_ROUTE)
        try:
            for failure in host.outcomes(requests):
                if failure is None:
                    return (f"network {way.network} had no way",)
                if failure.errno not in (errno.EEXIST, *_GONE, errno.ENETDOWN, errno.EHOSTUNREACH):
                    raise failure
        finally:
            host.close()
    return ()


def _is_right(way: Way, there: Present | None) -> bool:
    return there is not None and (there.name, there.alias, there.group, there.is_up) == (
        *(way.name, _ALIAS, way.group),
        True,
    )


def _mend_device(way: Way) -> tuple[str, ...]:
    host = NetlinkSocket(NETLINK_ROUTE)
    try:
        there = attached.look(host, [way.ifindex]).get(way.ifindex)
        if _is_right(way, there):
            return ()
        if there is None and reverse_path.is_asked():
            raise NetlinkError(
                errno.EOPNOTSUPP, text="a rule drops what comes by another way than it leads back"
            )
        if there is not None and there.alias != _ALIAS:
            raise NetlinkError(errno.EINVAL, text=f"interface {way.ifindex} is {there.name}")
        if there is not None and there.name != way.name:  # which older kernels keep while it is up
            host.outcomes([rtnetlink.delete_link(way.ifindex)])
            there = None
        settings = rtnetlink.NO_LINK_LOCAL + text(rtnetlink.ALIAS, _ALIAS)
        group = rtnetlink.number(rtnetlink.GROUP, way.group)
        requests = [
            rtnetlink.set_link(way.ifindex, group + settings),
            rtnetlink.set_link(way.ifindex + 1, settings),
            rtnetlink.set_up(way.ifindex + 1),
            rtnetlink.set_up_silent(way.ifindex),
            rtnetlink.add_address(way.ifindex, V6.af, way.address.packed, 128),
            # The kernel finishes its coming up for who asks.
            (rtnetlink.GET_LINK, 0, rtnetlink.get_link(way.ifindex)),
        ]
        if there is None:
            mtu = rtnetlink.number(rtnetlink.MTU, uplink_mtu(host))
            ends = (way.ifindex, way.name, mtu + group), (f"{way.name}p", mtu, way.ifindex + 1)
            requests = [rtnetlink.create_pair(*ends[0], *ends[1]), *requests]
        for failure in filter(None, host.outcomes(requests)):
            if failure.errno != errno.EEXIST:
                raise failure
    finally:
        host.close()
    return (f"network {way.network} had no device",)


# ---- the end of it


def _remove(way: Way, *, whole: bool) -> None:
    """Take away the route, and the elements behind it; as a whole the device and its chain too."""
    host = NetlinkSocket(NETLINK_ROUTE)
    try:
        requests = [way.route_deletion]
        there = attached.look(host, [way.ifindex]).get(way.ifindex) if whole else None
        if there is not None and there.alias == _ALIAS:
            requests.append(rtnetlink.delete_link(way.ifindex))
        for failure in filter(None, host.outcomes(requests)):
            if failure.errno not in _GONE:
                raise failure
    finally:
        host.close()
    way_tables.leave(way.network, way.name if whole else None)
