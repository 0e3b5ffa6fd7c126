"""The ports of a bridge, and their hairpin mode, over netlink.

A frame never leaves a bridge by the port it came in by, unless that port is in hairpin mode.
Where the kernel hands bridged frames to iptables (br_netfilter, bridge-nf-call-iptables=1) a
container's connection to its own published port is translated within the bridge, and has to go
back just so. Numbers are those of linux/if_link.h.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from netalloc.errors import NetallocError
from netalloc.family import V4, Family
from netalloc.host import links, sysctl
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkSocket, explaining
from netalloc.host.netlink_messages import attribute, attributes, text

_GET_LINK, _SET_LINK = 18, 19
_AF_BRIDGE = 7
_NAME, _MASTER, _PROTOCOL_INFO, _LINK_INFO = 3, 10, 12, 18
_KIND, _DATA, _SLAVE_DATA = 1, 2, 5  # IFLA_INFO_...
_MODE = 4  # IFLA_BRPORT_MODE
_NESTED = 0x8000
_INFO = struct.Struct("=BxHiII")  # struct ifinfomsg
NEW_LINK = 16


class BridgePort(NamedTuple):
    """An interface that is a port of a bridge."""

    name: str
    ifindex: int
    bridge: int
    hairpin: bool


def set_hairpin(bridge: str) -> list[str]:
    """Put all ports of a bridge into hairpin mode; the names of those that were not.

    A container reaches its own published port then also where br_netfilter is in use. O(ports),
    about 3 µs each. Raises InterfaceError when there is no such bridge, CommandError
    without the privilege.
    """
    index = links.index_of(bridge)
    with explaining(f"hairpin mode of the ports of {bridge}"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            wrong = [port for port in ports(netlink, index) if not port.hairpin]
            for port in wrong:
                mode = attribute(_PROTOCOL_INFO | _NESTED, attribute(_MODE, b"\x01"))
                netlink.call(_SET_LINK, _INFO.pack(_AF_BRIDGE, 0, port.ifindex, 0, 0) + mode)
        finally:
            netlink.close()
    return [port.name for port in wrong]


def needs_hairpin(bridge: str, family: Family = V4) -> bool:
    """Whether frames that cross this bridge pass iptables, by its own setting or the host's."""
    try:
        if sysctl.read("net", "bridge", family.bridge_nf) == "1":
            return True
    except NetallocError:  # no br_netfilter
        return False
    with explaining(f"settings of bridge {bridge}"):
        netlink = NetlinkSocket(NETLINK_ROUTE)
        try:
            answers = netlink.call(_GET_LINK, _INFO.pack(0, 0, 0, 0, 0) + text(_NAME, bridge))
        finally:
            netlink.close()
    info = attributes(attributes(answers[0], _INFO.size).get(_LINK_INFO, b""))
    return attributes(info.get(_DATA, b"")).get(family.bridge_nf_link) == b"\x01"


def ports(netlink: NetlinkSocket, bridge: int) -> Iterator[BridgePort]:
    """All ports of a bridge, which is named by its index."""
    asked = _INFO.pack(0, 0, 0, 0, 0) + attribute(_MASTER, struct.pack("=I", bridge))
    for body in netlink.dump(_GET_LINK, asked)[0]:
        port = parse(body)
        if port is not None and port.bridge == bridge:
            yield port


def parse(body: bytes) -> BridgePort | None:
    """The port in a message about an interface; None when it is none."""
    parts = attributes(body, _INFO.size)
    info = attributes(parts.get(_LINK_INFO, b""))
    mode = attributes(info.get(_SLAVE_DATA, b"")).get(_MODE)
    if mode is None or _MASTER not in parts:
        return None
    return BridgePort(
        parts[_NAME].rstrip(b"\0").decode(errors="replace"),
        _INFO.unpack_from(body)[2],
        struct.unpack("=I", parts[_MASTER])[0],
        mode != b"\0",
    )
