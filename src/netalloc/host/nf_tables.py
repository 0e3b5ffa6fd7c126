"""Tables of nftables by netlink, without nft: linux/netfilter/nf_tables.h.

Only what the ways of networks take (netalloc.host.network_way) is here: a few sets, chains and
rules, which are the same for ever.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from netalloc.host.netlink import NetlinkSocket
from netalloc.host.netlink_messages import ACK, CREATE, attribute, attributes, message, text

NETDEV: Final = b"\x05\0\0\0"  # struct nfgenmsg: family, version, resource
INET: Final = b"\x01\0\0\0"

_SUBSYSTEM = 10 << 8
NEW_TABLE, GET_TABLE, DELETE_TABLE = (_SUBSYSTEM | kind for kind in (0, 1, 2))
NEW_CHAIN, GET_CHAIN, DELETE_CHAIN = (_SUBSYSTEM | kind for kind in (3, 4, 5))
NEW_RULE, GET_RULE, DELETE_RULE = (_SUBSYSTEM | kind for kind in (6, 7, 8))
NEW_SET, DELETE_SET = _SUBSYSTEM | 9, _SUBSYSTEM | 11
NEW_ELEMENT, GET_ELEMENT, DELETE_ELEMENT = (_SUBSYSTEM | kind for kind in (12, 13, 14))
_BEGIN, _END = 0x10, 0x11
_ENVELOPE = b"\0\0\0\x0a"

IPV6_ADDR, ETHER_ADDR, IFACE_INDEX = (8, 16), (9, 6), (20, 4)  # types as nft calls them, lengths

LINK, NETWORK = 0, 1  # headers
IIFNAME, OIFNAME, IIFTYPE, NFPROTO, L4PROTO, IIFGROUP = 6, 7, 8, 15, 16, 21  # NFT_META_...
_NAME, _FLAGS = 1, 2
_APPEND = 0x800
_MAP = 8
_HOST, _BIG = struct.pack("=I", 1), struct.pack("=I", 2)  # orders of bytes
_IS_NOT = _NOT_EQUAL = 1
_VALUE, _KEY, _DATA = 1, 1, 2
_ITEM, _ELEMENTS = 1, 3
_REGISTER = 1
_pair = struct.Struct("=HH")


class Step(NamedTuple):
    """One message of a transaction."""

    kind: int
    flags: int
    body: bytes


def send(netlink: NetlinkSocket, steps: Sequence[Step]) -> None:
    """Take these steps, all or none; raises NetlinkError."""
    begin = netlink.sequence(len(steps) + 2)
    last = begin + len(steps)
    batch = [message(_BEGIN, 0, begin, _ENVELOPE)]
    for seq, (kind, flags, body) in enumerate(steps, begin + 1):
        batch.append(message(kind, flags | ACK if seq == last else flags, seq, body))
    batch.append(message(_END, 0, last + 1, _ENVELOPE))
    data = b"".join(batch)
    netlink.can_send(len(data))
    netlink.transact(data, begin, last)


# ---- tables, sets, chains


def table(family: bytes, name: str) -> Step:
    """A table, that is awake."""
    return Step(NEW_TABLE, CREATE, table_named(family, name) + _number(_FLAGS, 0))


def table_named(family: bytes, name: str) -> bytes:
    """The body of a question for a table, or of its deletion."""
    return family + text(_NAME, name)


def is_awake(netlink: NetlinkSocket, family: bytes, name: str) -> bool:
    """Whether a table does something; NetlinkError (ENOENT) where there is none."""
    (body,) = netlink.call(GET_TABLE, table_named(family, name))
    return not any(attributes(body, 4).get(_FLAGS, b""))


def hash_set(
    family: bytes, where: str, name: str, key: tuple[int, int], data: tuple[int, int] | None = None
) -> Step:
    """A set of such keys, or with data a map."""
    body = family + text(1, where) + text(2, name) + _number(3, _MAP if data else 0)
    body += _number(4, key[0]) + _number(5, key[1])
    if data is not None:
        body += _number(6, data[0]) + _number(7, data[1])
        # So that nft shows the numbers of the one, and the addresses of the other, as they are.
        orders = bytes((0, 4)) + _BIG + bytes((1, 4)) + (_HOST if data is IFACE_INDEX else _BIG)
        body += attribute(13, orders)
    return Step(NEW_SET, CREATE, body + _number(10, 1))


def base_chain(
    family: bytes,
    where: str,
    name: str,
    hook: int,
    *,
    priority: int = 0,
    device: str = "",
    drops: bool = False,
) -> Step:
    """A chain of filters at a hook, of one device where that is of devices."""
    at = _number(1, hook) + _number(2, priority) + (text(3, device) if device else b"")
    body = chain_named(family, where, name) + attribute(4, at) + _number(5, 0 if drops else 1)
    return Step(NEW_CHAIN, CREATE, body + text(7, "filter"))


def chain_named(family: bytes, where: str, name: str) -> bytes:
    """The body of a question for a chain, or of its deletion."""
    return family + text(1, where) + text(3, name)


def rules_of(family: bytes, where: str, chain: str) -> bytes:
    """The body of a question for the rules of a chain, or of their deletion."""
    return family + text(1, where) + text(2, chain)


def rule(family: bytes, where: str, chain: str, expressions: Iterable[bytes]) -> Step:
    """A rule behind those that there are."""
    listed = b"".join([attribute(_ITEM, one) for one in expressions])
    return Step(NEW_RULE, CREATE | _APPEND, rules_of(family, where, chain) + attribute(4, listed))


# ---- what a rule says


def meta_is(key: int, value: bytes) -> tuple[bytes, bytes]:
    """That the packet has this there, or begins so."""
    return _expression("meta", _number(2, key) + _number(1, _REGISTER)), _is(value)


def meta_is_in(key: int, mask: int, value: int) -> tuple[bytes, bytes, bytes]:
    """That a number of the packet, as this machine writes it, is this where the mask is set."""
    there, wanted = struct.pack("=I", mask), struct.pack("=I", value)
    part = _number(1, _REGISTER) + _number(2, _REGISTER) + _number(3, 4)
    part += attribute(4, attribute(_VALUE, there)) + attribute(5, attribute(_VALUE, bytes(4)))
    meta = _expression("meta", _number(2, key) + _number(1, _REGISTER))
    return meta, _expression("bitwise", part), _is(wanted)


def frame_is(ethertype: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """That it is an Ethernet frame, and of what."""
    return *meta_is(IIFTYPE, struct.pack("=H", 1)), _payload(LINK, 12, 2), _is(ethertype)


def address6() -> bytes:
    """Take where an IPv6 packet goes to."""
    return _payload(NETWORK, 24, 16)


def goes_to(address: bytes, *, otherwise: bool = False) -> tuple[bytes, bytes]:
    """That it goes to this address of IPv6, or to any other."""
    return address6(), _is(address, _NOT_EQUAL if otherwise else 0)


def mapped(name: str) -> bytes:
    """Take what the map has for that; without anything the rule ends."""
    return _expression("lookup", text(1, name) + _number(2, _REGISTER) + _number(3, _REGISTER))


def is_not_in(name: str) -> bytes:
    """That the set does not have it."""
    return _expression("lookup", text(1, name) + _number(2, _REGISTER) + _number(5, _IS_NOT))


def set_receiver() -> bytes:
    """Write it into the frame, as the MAC address that it is for."""
    part = _number(5, _REGISTER) + _number(2, LINK) + _number(3, 0) + _number(4, 6)
    return _expression("payload", part + _number(6, 0) + _number(7, 0) + _number(8, 0))


def forward() -> bytes:
    """Send the frame out by the interface of that index."""
    return _expression("fwd", _number(1, _REGISTER))


def notrack() -> bytes:
    """Let it be of no flow."""
    return text(1, "notrack")


def drop() -> bytes:
    """End it."""
    verdict = attribute(_DATA, attribute(2, _number(1, 0)))  # NFTA_DATA_VERDICT, NF_DROP
    return _expression("immediate", _number(1, 0) + verdict)


def reject(code: int | None) -> bytes:
    """Refuse with an ICMPv6 message of that code, or by a reset of TCP."""
    return _expression("reject", _number(1, code is None) + attribute(2, bytes((code or 0,))))


def _payload(base: int, offset: int, size: int) -> bytes:
    part = _number(1, _REGISTER) + _number(2, base) + _number(3, offset) + _number(4, size)
    return _expression("payload", part)


def _is(value: bytes, how: int = 0) -> bytes:
    return _expression(
        "cmp", _number(1, _REGISTER) + _number(2, how) + attribute(3, attribute(_VALUE, value))
    )


def _expression(name: str, what: bytes) -> bytes:
    return text(1, name) + attribute(2, what)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, (value & 0xFFFFFFFF).to_bytes(4, "big"))


# ---- elements


def elements(
    kind: int, family: bytes, where: str, name: str, some: Iterable[tuple[bytes, bytes]]
) -> Step:
    """The step that adds, or deletes, keys with their data; up to some 1,000 at once."""
    items = b"".join(_items(list(some)))
    flags = CREATE if kind == NEW_ELEMENT else 0
    body = set_named(family, where, name) + attribute(_ELEMENTS, items)
    return Step(kind, flags, body)


def _items(some: list[tuple[bytes, bytes]]) -> list[bytes]:
    """What is around key and data is the same for all, and made once: a sixth of the time."""
    if not some:
        return []
    key, data = some[0]
    model = attribute(_ITEM, _entry(key, data))
    first = 12  # three headers, and then the key
    last = first + len(key)
    head, between, end = model[:first], model[last : last + 8], model[last + 8 + len(data) :]
    if not data:
        return [head + one + model[last:] for one, _ in some]
    return [head + one + between + its + end for one, its in some]


def set_named(family: bytes, where: str, name: str) -> bytes:
    """The body of a question for all that is in a set or map."""
    return family + text(1, where) + text(2, name)


def _entry(key: bytes, data: bytes) -> bytes:
    entry = attribute(_KEY, attribute(_VALUE, key))
    return entry + attribute(_DATA, attribute(_VALUE, data)) if data else entry


def listed(bodies: Iterable[bytes]) -> dict[bytes, bytes]:
    """Keys and data in the answers to a question for elements."""
    found = {}
    for body in bodies:
        data = attributes(body, 4).get(_ELEMENTS, b"")
        start = 0
        while start + 4 <= len(data):
            size = max(_pair.unpack_from(data, start)[0], 4)
            parts = attributes(data, start + 4, start + size)
            start += size + 3 & ~3
            key = attributes(parts.get(_KEY, b"")).get(_VALUE, b"")
            found[key] = attributes(parts.get(_DATA, b"")).get(_VALUE, b"")
    return found
