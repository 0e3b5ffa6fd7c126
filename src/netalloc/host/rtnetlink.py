"""The messages about interfaces, addresses, routes and neighbours: linux/rtnetlink.h.

Each is a `Request`, to be sent along with others. Only what putting containers on a network
takes is here.
"""

import struct
from functools import lru_cache

from netalloc.host.netlink import Request
from netalloc.host.netlink_messages import CREATE, EXCLUSIVE, attribute, attributes, message, text

NEW_LINK, DELETE_LINK, GET_LINK, SET_LINK = 16, 17, 18, 19
NEW_ADDRESS, DELETE_ADDRESS = 20, 21
NEW_ROUTE, DELETE_ROUTE, GET_ROUTE = 24, 25, 26
NEW_NEIGHBOUR, DELETE_NEIGHBOUR = 28, 29
GET_NAMESPACE = 90
REPLACE = 0x100

AF_INET, AF_INET6, AF_BRIDGE = 2, 10, 7

INFO = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, mask
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, index, state, flags, type
_U32 = struct.Struct("=I")
_NUMBER = struct.Struct("=HHI")
# What is sent for each container, in one go: a third of the time of attribute by attribute.
_HOST_ROUTE = {
    AF_INET: struct.Struct("=BBBBBBBBIHH4sHHI"),
    AF_INET6: struct.Struct("=BBBBBBBBIHH16sHHI"),
}
_ADDRESSES = {AF_INET: struct.Struct("=BBBBIHH4sHH4s"), AF_INET6: struct.Struct("=BBBBIHH16sHH16s")}
_ENTRY = {
    AF_INET: struct.Struct("=BxxxiHBBHH4sHH6sxx"),
    AF_INET6: struct.Struct("=BxxxiHBBHH16sHH6sxx"),
}
_S32 = struct.Struct("=i")

# IFLA_...
MAC, NAME, MTU, LINK, MASTER, PROTOCOL_INFO = 1, 3, 4, 5, 10, 12
LINK_MODE, LINK_INFO, ALIAS, AF_SPEC, GROUP = 17, 18, 20, 26, 27
NETNS_FD, EXT_MASK, TX_QUEUES, RX_QUEUES, LINK_NETNSID = 28, 29, 31, 32, 37
_LINK_HEAD = struct.pack("=HH", 8, LINK)
KIND, DATA = 1, 2  # IFLA_INFO_...
_VETH_PEER = 1
_VETH_HEAD = struct.Struct("=HHHH4sHHHH")
_PEER_REST = struct.Struct("=HH6sxxHHI")
_PORT_MODE = 4  # IFLA_BRPORT_MODE
_INET_CONF, _ADDR_GEN_MODE = 1, 8  # IFLA_INET_CONF, IFLA_INET6_ADDR_GEN_MODE
_RP_FILTER, _ROUTE_LOCALNET = 8, 26  # linux/ip.h: IPV4_DEVCONF_...
_GEN_NONE = b"\1"
_NESTED = 0x8000
_DORMANT = b"\1"  # IF_LINK_MODE_DORMANT
_SKIP_STATS = 8  # RTEXT_FILTER_SKIP_STATS

_UP = 1
_NO_ARP = 0x80
_NODAD = 2
_PERMANENT, _STATIC = 0x80, 0x40  # NUD_PERMANENT; NUD_NOARP: of a bridge, static
_NTF_MASTER = 4
_TABLE_MAIN, _PROTOCOL_STATIC, _UNICAST, _UNREACHABLE = 254, 4, 1, 7
_PROTOCOL_OURS = 110  # of the numbers that are anyone's, as in netalloc.host.loopback_route
_LAST = 0xFFFFFFFF  # a metric: any other route for the same network goes first
_LOCAL, _TYPE_AT = 2, 7  # of struct rtmsg
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
_ONLINK = 4
_DESTINATION, _OIF, _GATEWAY, _METRIC, _PREFERRED = 1, 4, 5, 6, 7  # RTA_...

NO_STATS = attribute(EXT_MASK, _U32.pack(_SKIP_STATS))
ONE_QUEUE = attribute(TX_QUEUES, _U32.pack(1)) + attribute(RX_QUEUES, _U32.pack(1))
DORMANT = attribute(LINK_MODE, _DORMANT)
_GEN_NONE_V6 = attribute(AF_INET6, attribute(_ADDR_GEN_MODE, _GEN_NONE))
NO_LINK_LOCAL = attribute(AF_SPEC, _GEN_NONE_V6)


def number(kind: int, value: int) -> bytes:
    """An attribute of 32 bits."""
    return _NUMBER.pack(8, kind, value)


def routed_settings(*, rp_filter: int, with_v6: bool) -> bytes:
    """IFLA_AF_SPEC of a host end: where its sources may come from, 127.0.0.0/8, no link-local."""
    conf = number(_RP_FILTER, rp_filter) + number(_ROUTE_LOCALNET, 1)
    v4 = attribute(AF_INET, attribute(_INET_CONF, conf))
    return attribute(AF_SPEC, v4 + (_GEN_NONE_V6 if with_v6 else b""))


@lru_cache(64)  # the same for nearly all containers
def peer_end(name: str, mtu: int) -> bytes:
    """What the ends in containers are made with, besides what `create_veth` adds."""
    return INFO.pack(0, 0, 0, 0, 0) + text(NAME, name) + ONE_QUEUE + number(MTU, mtu)


def create_veth(
    index: int, name: str, rest: bytes, peer: bytes, peer_mac: bytes, netns: int
) -> Request:
    """A pair of that index, both ends down, with one queue each; `peer` is of `peer_end`.

    Without the number of queues each end waits for RCU twice, 0.3 ms and 60 KiB more.
    """
    size = len(peer) + _PEER_REST.size + 4
    return (
        NEW_LINK,
        CREATE | EXCLUSIVE,
        b"".join(
            (
                INFO.pack(0, 0, index, 0, 0),
                text(NAME, name),
                ONE_QUEUE,
                rest,
                _VETH_HEAD.pack(
                    size + 16, LINK_INFO, 8, KIND, b"veth", size + 4, DATA, size, _VETH_PEER
                ),
                peer,
                _PEER_REST.pack(10, MAC, peer_mac, 8, NETNS_FD, netns),
            )
        ),
    )


def create_pair(
    index: int, name: str, rest: bytes, peer_name: str, peer_rest: bytes, peer_index: int = 0
) -> Request:
    """The same with both ends here."""
    peer = INFO.pack(0, 0, peer_index, 0, 0) + text(NAME, peer_name) + ONE_QUEUE + peer_rest
    kind = text(KIND, "veth") + attribute(DATA, attribute(_VETH_PEER, peer))
    body = INFO.pack(0, 0, index, 0, 0) + text(NAME, name) + ONE_QUEUE + rest
    return NEW_LINK, CREATE | EXCLUSIVE, body + attribute(LINK_INFO, kind)


def set_link(index: int, rest: bytes) -> Request:
    """Change what the attributes say."""
    return SET_LINK, 0, INFO.pack(0, 0, index, 0, 0) + rest


def set_up(index: int) -> Request:
    """Switch it on."""
    return NEW_LINK, 0, INFO.pack(0, 0, index, _UP, _UP)


def set_up_silent(index: int) -> Request:
    """Switch it on, and have no neighbour behind it asked for."""
    flags = _UP | _NO_ARP
    return NEW_LINK, 0, INFO.pack(0, 0, index, flags, flags)


def delete_link(index: int) -> Request:
    """Take it away; waits for the end of the whole network."""
    return DELETE_LINK, 0, INFO.pack(0, 0, index, 0, 0)


def get_link(index: int) -> bytes:
    """The body of a question for an interface."""
    return INFO.pack(0, 0, index, 0, 0) + NO_STATS


def get_link_named(name: str) -> bytes:
    """The same by its name."""
    return INFO.pack(0, 0, 0, 0, 0) + text(NAME, name) + NO_STATS


def set_hairpin(index: int) -> Request:
    """Let a bridge port send frames back to where they came from."""
    mode = attribute(PROTOCOL_INFO | _NESTED, attribute(_PORT_MODE, b"\1"))
    return SET_LINK, 0, INFO.pack(AF_BRIDGE, 0, index, 0, 0) + mode


def delete_group(group: int) -> Request:
    """All interfaces of a group, which wait for each other's end together."""
    return DELETE_LINK, 0, INFO.pack(0, 0, 0, 0, 0) + number(GROUP, group)


def add_address(index: int, af: int, packed: bytes, prefix: int) -> Request:
    """Give an interface an address, without looking for a duplicate, which takes two seconds."""
    flags, size = _NODAD if af == AF_INET6 else 0, 4 + len(packed)
    body = _ADDRESSES[af].pack(af, prefix, flags, 0, index, size, 2, packed, size, 1, packed)
    return NEW_ADDRESS, CREATE | REPLACE, body


def delete_address(index: int, af: int, packed: bytes, prefix: int) -> Request:
    """Take it away again."""
    return DELETE_ADDRESS, 0, _ADDRESS.pack(af, prefix, 0, 0, index) + attribute(2, packed)


def host_route(index: int, af: int, packed: bytes, source: bytes | None) -> Request:
    """To one address through an interface; the host's own packets come from `source`."""
    scope = _SCOPE_LINK if af == AF_INET else _SCOPE_UNIVERSE
    size = len(packed)
    body = _HOST_ROUTE[af].pack(
        af, 8 * size, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, scope, _UNICAST, 0,
        4 + size, _DESTINATION, packed, 8, _OIF, index,
    )  # fmt: skip
    if source is not None:
        body += attribute(_PREFERRED, source)
    return NEW_ROUTE, CREATE | EXCLUSIVE, body


def replacing(request: Request) -> Request:
    """The same, where there is one already."""
    return request[0], CREATE | REPLACE, request[2]


def all_routes(af: int) -> bytes:
    """The body of a question for all routes of a family."""
    return _ROUTE.pack(af, 0, 0, 0, 0, 0, 0, 0, 0)


def route_without_source(body: bytes) -> tuple[bytes, int] | None:
    """Address and interface of a route that `host_route` made, and whose source is gone."""
    af, bits, _, _, table, protocol, _, _, _ = _ROUTE.unpack_from(body)
    if (table, protocol) != (_TABLE_MAIN, _PROTOCOL_STATIC) or bits != (32 if af == 2 else 128):
        return None
    parts = attributes(body, _ROUTE.size)
    if _PREFERRED in parts or not {_DESTINATION, _OIF} <= parts.keys():
        return None
    return parts[_DESTINATION], int(_U32.unpack(parts[_OIF])[0])


def delete_host_route(index: int, af: int, packed: bytes) -> Request:
    """Take away a route to one address."""
    head = _ROUTE.pack(af, 8 * len(packed), 0, 0, _TABLE_MAIN, 0, _SCOPE_NOWHERE, 0, 0)
    return DELETE_ROUTE, 0, head + attribute(_DESTINATION, packed) + number(_OIF, index)


def unreachable(af: int, packed: bytes, prefix: int) -> Request:
    """The last choice for a network: nothing is there."""
    return NEW_ROUTE, CREATE | EXCLUSIVE, _end(af, packed, prefix)


def delete_unreachable(af: int, packed: bytes, prefix: int) -> Request:
    """Take it away, if it is ours."""
    return DELETE_ROUTE, 0, _end(af, packed, prefix)


def _end(af: int, packed: bytes, prefix: int) -> bytes:
    head = _ROUTE.pack(af, prefix, 0, 0, _TABLE_MAIN, _PROTOCOL_OURS, 0, _UNREACHABLE, 0)
    return head + attribute(_DESTINATION, packed) + number(_METRIC, _LAST)


def network_route(
    index: int, af: int, packed: bytes, prefix: int, gateway: bytes, source: bytes | None
) -> Request:
    """To a network by a gateway that is behind this interface; any other route goes first."""
    return NEW_ROUTE, CREATE | EXCLUSIVE, _by(index, af, packed, prefix, gateway, source)


def delete_network_route(
    index: int, af: int, packed: bytes, prefix: int, gateway: bytes
) -> Request:
    """Take it away, if it is ours."""
    return DELETE_ROUTE, 0, _by(index, af, packed, prefix, gateway, None)


def _by(
    index: int, af: int, packed: bytes, prefix: int, gateway: bytes, source: bytes | None
) -> bytes:
    head = _ROUTE.pack(
        af, prefix, 0, 0, _TABLE_MAIN, _PROTOCOL_OURS, _SCOPE_UNIVERSE, _UNICAST, _ONLINK
    )
    body = head + attribute(_DESTINATION, packed) + number(_OIF, index)
    body += attribute(_GATEWAY, gateway) + number(_METRIC, _LAST - 1)
    return body if source is None else body + attribute(_PREFERRED, source)


def default_route(index: int, af: int, gateway: bytes) -> Request:
    """By a gateway that is behind this interface, whatever its addresses say."""
    head = _ROUTE.pack(
        af, 0, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_UNIVERSE, _UNICAST, _ONLINK
    )
    body = head + number(_OIF, index) + attribute(_GATEWAY, gateway)
    return NEW_ROUTE, CREATE | EXCLUSIVE, body


def add_neighbour(index: int, af: int, packed: bytes, mac: bytes) -> Request:
    """One that is known for ever: never asked for, and not counted against gc_thresh."""
    body = _ENTRY[af].pack(af, index, _PERMANENT, 0, 0, 4 + len(packed), 1, packed, 10, 2, mac)
    return NEW_NEIGHBOUR, CREATE | REPLACE, body


def delete_neighbour(index: int, af: int, packed: bytes) -> Request:
    """Forget one."""
    return DELETE_NEIGHBOUR, 0, _NEIGHBOUR.pack(af, index, 0, 0, 0) + attribute(1, packed)


def add_fdb(index: int, mac: bytes) -> Request:
    """Tell the bridge which port a MAC address is behind, for ever."""
    body = _NEIGHBOUR.pack(AF_BRIDGE, index, _STATIC, _NTF_MASTER, 0)
    return NEW_NEIGHBOUR, CREATE | REPLACE, body + attribute(2, mac)


def route_to(af: int, packed: bytes) -> bytes:
    """The body of a question by which interface an address is reached."""
    return _ROUTE.pack(af, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0) + attribute(_DESTINATION, packed)


def outgoing(body: bytes) -> int:
    """The interface in the answer, 0 where there is none."""
    found = attributes(body, _ROUTE.size).get(_OIF)
    return 0 if found is None else int(_U32.unpack(found)[0])


def ask_route(number: int, packed: bytes) -> bytes:
    """The whole question by which interface an IPv6 address is reached, without an ACK."""
    return message(GET_ROUTE, 0, number, route_to(AF_INET6, packed))


def is_local(body: bytes) -> bool:
    """Whether it is an address of the host itself."""
    return body[_TYPE_AT] == _LOCAL


def namespace_number(fd: int) -> bytes:
    """The body of a question for the number that this namespace has for that one."""
    return bytes(4) + number(3, fd)  # struct rtgenmsg; NETNSA_FD


def ends_in(body: bytes) -> tuple[int, int]:
    """The indexes of an interface and of its other end (0: none) in a message about it.

    Searched for and not parsed, a twentieth of the time: before it come texts, in which there
    is no NUL but at the end, and numbers that are not these bytes.
    """
    at = body.find(_LINK_HEAD, INFO.size)
    while at & 3 and at > 0:
        at = body.find(_LINK_HEAD, at + 1)
    peer = int(_U32.unpack_from(body, at + 4)[0]) if at > 0 else 0
    return int(INFO.unpack_from(body)[2]), peer


def number_in(body: bytes) -> int | None:
    """The number in the answer; None where it has none."""
    found = attributes(body, 4).get(1)  # NETNSA_NSID
    number = -1 if found is None else int(_S32.unpack(found)[0])
    return None if number < 0 else number
