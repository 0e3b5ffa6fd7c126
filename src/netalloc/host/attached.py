"""Which interfaces of ours there are, and how they go.

Whose an interface is stands in its alias, which the same send sets that makes it: so whatever a
killed process left is known. Many go at once: deleted one by one each waits for the whole of
the network's end (16 ms among 10,000), a group waits once.
"""

import errno
import struct
from collections.abc import Iterable, Mapping, Sequence
from fcntl import ioctl
from typing import NamedTuple

from netalloc.errors import InterfaceError
from netalloc.family import FAMILIES, V6
from netalloc.host import rtnetlink
from netalloc.host.endpoints import Endpoint
from netalloc.host.netlink import (
    NETLINK_ROUTE,
    NetlinkError,
    NetlinkSocket,
    Request,
    explaining,
)
from netalloc.host.netlink_messages import attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.host.way_elements import WayElements

_ENDING = 0x6E616C67  # the group of interfaces that are being deleted, now or by a killed process
_U32 = struct.Struct("=I")
_GET_NAME = 0x8910  # SIOCGIFNAME
_NAME = struct.Struct("=16xI20x")  # struct ifreq
_UP = 1
_HELD = 32  # answers of 1 KiB each wait to be read
_GONE = (errno.ENODEV, errno.ENXIO)


class Present(NamedTuple):
    """An interface of the host; `peer` is the other end's index, `peer_netns` its namespace's
    number here.
    """

    ifindex: int
    name: str
    alias: str
    group: int
    master: int
    mtu: int
    mac: bytes
    is_up: bool
    peer: int
    peer_netns: int | None
    settings: dict[int, bytes]


def present(prefix: str) -> dict[int, Present]:
    """All interfaces whose alias begins so, by index; O(interfaces), about 5 µs each."""
    with explaining("the interfaces of this host"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            asked = rtnetlink.get_link(0)
            for _ in range(5):
                bodies, is_whole = netlink.dump(rtnetlink.GET_LINK, asked)
                if is_whole:
                    break
            found = map(parse, _of_us(bodies, prefix.encode()))
            return {one.ifindex: one for one in found if one.alias.startswith(prefix)}
        finally:
            netlink.close()


def present_of(indexes: Iterable[int]) -> dict[int, Present]:
    """Those of these interfaces that there are; 8 µs each, however many there are."""
    with explaining("the interfaces of this host"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            return look(netlink, list(indexes))
        finally:
            netlink.close()


def detach(
    endpoints: Sequence[Endpoint],
    bridge_index: int | None = None,
    ways: "WayElements | None" = None,
) -> int:
    """Take interfaces away, and their network's `ways` to them; how many there were.

    What is gone already, as with its namespace, is no error; an index that is another's by now
    (another alias) is left alone. With a bridge their neighbour entries go as well. Raises
    InterfaceError naming the interface and the reason.
    """
    if not endpoints:
        return 0
    with explaining("interfaces cannot be taken away"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            if ways is not None:
                ways.leave(endpoints)
            return remove(netlink, endpoints, bridge_index)
        finally:
            netlink.close()


def detach_present(found: Iterable[Present]) -> int:
    """The same for what `present` has found."""
    wanted = {one.ifindex: (one.name, one.alias) for one in found}
    with explaining("interfaces cannot be taken away"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            return _remove(netlink, wanted, {})
        finally:
            netlink.close()


def remove(
    netlink: NetlinkSocket, endpoints: Sequence[Endpoint], bridge_index: int | None = None
) -> int:
    """As `detach`, over a kept socket."""
    if bridge_index is not None:
        forget(netlink, endpoints, bridge_index)
        routes: dict[int, bytes] = {}
    else:
        routes = {e.index: e.addresses[1].packed for e in endpoints if e.addresses[1] is not None}
    return _remove(netlink, {one.index: (one.name, one.alias) for one in endpoints}, routes)


def _remove(
    netlink: NetlinkSocket, wanted: dict[int, tuple[str, str]], routes: Mapping[int, bytes]
) -> int:
    there = look(netlink, list(wanted))
    # Without an alias yet is what the undoing of a refused one meets.
    ours = [
        index
        for index, one in there.items()
        if one.alias == wanted[index][1] or (one.name, one.alias) == (wanted[index][0], "")
    ]
    if not ours:
        return 0
    doomed = rtnetlink.number(rtnetlink.GROUP, _ENDING)
    # The end of each interface goes through all IPv6 routes of the host, more than once: of
    # 10,000 that all go it takes a half to take their routes away first, at 5 µs each.
    netlink.outcomes(
        [rtnetlink.delete_host_route(i, V6.af, routes[i]) for i in ours if i in routes]
    )
    requests = [rtnetlink.set_link(index, doomed) for index in ours]
    *moved, deleted = netlink.outcomes([*requests, rtnetlink.delete_group(_ENDING)])
    for index, failure in zip(ours, moved, strict=True):
        if failure is not None and failure.errno not in _GONE:
            raise InterfaceError(
                f"interface {there[index].name} of {wanted[index][1]} cannot be taken away: "
                f"{failure.stderr}"
            ) from failure
    if deleted is not None and deleted.errno not in _GONE:
        raise deleted
    return len(ours)


def forget(netlink: NetlinkSocket, endpoints: Sequence[Endpoint], bridge: int) -> None:
    """Drop their neighbour entries on a bridge, as far as there are any."""
    netlink.outcomes([one for each in endpoints for one in _forgetting(bridge, each)])


def _forgetting(bridge: int, one: Endpoint) -> Iterable[Request]:
    for family, address in zip(FAMILIES, one.addresses, strict=True):
        if address is not None:
            yield rtnetlink.delete_neighbour(bridge, family.af, address.packed)


def look(netlink: NetlinkSocket, indexes: Sequence[int]) -> dict[int, Present]:
    """Those of these that there are, over a kept socket."""
    found: dict[int, Present] = {}
    for start in range(0, len(indexes), _HELD):
        part = indexes[start : start + _HELD]
        for body in _answers(netlink, [rtnetlink.get_link(index) for index in part]):
            one = parse(body)
            found[one.ifindex] = one
    return found


def existing(netlink: NetlinkSocket, indexes: Iterable[int]) -> set[int]:
    """Which of these there are: a tenth of the time of `look`."""
    return {index for index in indexes if _is_there(netlink, index)}


def _is_there(netlink: NetlinkSocket, index: int) -> bool:
    try:  # of a netlink socket as of any other: net/core/dev_ioctl.c
        ioctl(netlink, _GET_NAME, _NAME.pack(index))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise NetlinkError(error.errno or errno.EIO) from None
        return False
    return True


def look_named(netlink: NetlinkSocket, name: str) -> Present | None:
    """The one of that name."""
    for body in _answers(netlink, [rtnetlink.get_link_named(name)]):
        return parse(body)
    return None


def _answers(netlink: NetlinkSocket, questions: Sequence[bytes]) -> list[bytes]:
    return netlink.call_each(rtnetlink.GET_LINK, questions, passed=errno.ENODEV)


def _of_us(bodies: Iterable[bytes], prefix: bytes) -> Iterable[bytes]:
    # 30 µs to take one apart, 0.2 to see that it is another's.
    return [body for body in bodies if prefix in body]


def parse(body: bytes) -> Present:
    """The interface in a message about one."""
    _, _, index, flags, _ = rtnetlink.INFO.unpack_from(body)
    parts = attributes(body, rtnetlink.INFO.size)

    def u32(kind: int) -> int:
        return int(_U32.unpack(parts[kind])[0]) if kind in parts else 0

    return Present(
        index,
        parts.get(rtnetlink.NAME, b"").rstrip(b"\0").decode(errors="replace"),
        parts.get(rtnetlink.ALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        u32(rtnetlink.GROUP),
        u32(rtnetlink.MASTER),
        u32(rtnetlink.MTU),
        parts.get(rtnetlink.MAC, b""),
        bool(flags & _UP),
        u32(rtnetlink.LINK),
        u32(rtnetlink.LINK_NETNSID) if rtnetlink.LINK_NETNSID in parts else None,
        attributes(parts.get(rtnetlink.AF_SPEC, b"")),
    )


def refused(netlink: NetlinkSocket, one: Endpoint) -> InterfaceError:
    """Why an interface was not made, where the kernel says that it exists."""
    there = look(netlink, [one.index]).get(one.index) or look_named(netlink, one.name)
    if there is None:
        return InterfaceError(
            f"{one.shown} cannot be made: its namespace has an interface {one.ifname} already"
        )
    whose = f"of {there.alias}" if there.alias else "without an alias"
    return InterfaceError(
        f"{one.shown} cannot be made: there is interface {there.name} ({there.ifindex}) {whose}"
    )
