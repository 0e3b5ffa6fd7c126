"""Mappings as elements of nftables maps: the wire format of linux/netfilter/nf_tables.h.

An element is KEY, for a block KEY_END, DATA and, for the owner, USERDATA. What stands
before USERDATA we call its entry: the kernel lists it byte for byte as it was added, so
desired and present mappings compare as bytes and need no decoding.

A divided block (netalloc.portmap.nftables.maps) is an element for each port, 1 µs each; each has
in its USERDATA a mark that names the block, by which they are one mapping again when they are
listed.
"""

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from netalloc.errors import InUseError, InvalidValueError
from netalloc.host.netlink_messages import attribute, attributes, text
from netalloc.model import PortMapping
from netalloc.portmap.nftables.maps import (
    DNAT_ANY,
    DNAT_ANY6,
    MAP_TYPES,
    MapType,
    divided,
    map_type_of,
)

NUMBERS: Final = {"tcp": 6, "udp": 17, "sctp": 132}
_NAMES: Final = {number: name for name, number in NUMBERS.items()}

ANY_FAMILY: Final = b"\0\0\0\0"
INET: Final = b"\x01\0\0\0"  # struct nfgenmsg: family, version, resource
IPV4: Final = b"\x02\0\0\0"  # of the tables of earlier versions

MAX_USERDATA = 254  # bytes: the kernel keeps the size of it and one more in a byte

_ELEMENT, _KEY, _DATA, _USERDATA, _KEY_END, _VALUE = 1, 1, 2, 6, 10, 1
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_COMMENT = 0  # libnftnl's NFTNL_UDATA_SET_ELEM_COMMENT
_MARK = b"\x6e\x04"  # a kind that libnftnl passes over, and the size: first port and count
_MESSAGE_ROOM = 64_000  # of the 65,535 bytes that a nested attribute can say it has

_pair = struct.Struct("=HH").pack
_TWO = struct.Struct(">H").pack


_KEY_ANY, _DATA_ANY = DNAT_ANY.key_header, DNAT_ANY.data_header
_DATA_ANY6 = DNAT_ANY6.data_header

_ELEMENT_HEADER: Final = {
    map_.name: _pair(4 + map_.pack.size, _ELEMENT) for map_ in MAP_TYPES.values()
}


def entry(mapping: PortMapping) -> bytes:
    """The element of one mapping, or of the first port of a divided block, without its owner.

    >>> entry(PortMapping(8080, ("10.0.0.2", 80))).hex(" ", 4)  # doctest: +NORMALIZE_WHITESPACE
    '10000100 0c000100 06000000 1f900000 10000200 0c000100 0a000002 00500000'
    """
    map_ = map_type_of(mapping)
    if not map_.block:
        return map_.key_header + mapping.packed(map_.data_header)
    both = mapping.packed(b"")
    cut = len(both) - map_.family.size - 4
    key, address = both[:cut], both[cut:-4]
    end = key[:-4] + _TWO(mapping.host_port + mapping.count - 1) + b"\0\0"
    return map_.key_header + key + map_.end_header + end + map_.data_header + address


def entries_of(mapping: PortMapping) -> list[bytes]:
    """All elements of one mapping: one, or one for each port of a divided block."""
    first = entry(mapping)
    if not divided(mapping):
        return [first]
    at = _port_at(map_type_of(mapping))
    before, between = first[:at], first[at + 2 : -4]
    shift = mapping.dest[1] - mapping.host_port
    return [before + _TWO(p) + between + _TWO(p + shift) + b"\0\0" for p in mapping.ports]


def _port_at(map_: MapType) -> int:
    """Where in an entry, or in a key, the host port stands."""
    return len(map_.key_header) + (map_.family.size if map_.specific else 0) + 4


_ADDRESSES: Final[dict[int, type[IPv4Address] | type[IPv6Address]]] = {
    4: IPv4Address,
    6: IPv6Address,
}
Held = dict[str, dict[bytes, PortMapping]]


def entries(mappings: Iterable[PortMapping]) -> Held:
    """The mappings by map and entry; 0.3 µs each for the usual kind.

    Raises InUseError when two are the very same.
    """
    usual: dict[bytes, PortMapping] = {}
    usual6: dict[bytes, PortMapping] = {}
    found: Held = {DNAT_ANY.name: usual, DNAT_ANY6.name: usual6}
    count = 0
    for mapping in mappings:
        count += 1
        if mapping.count == 1 and mapping.host_ip is None:
            if mapping.version == 4:
                usual[_KEY_ANY + mapping.packed(_DATA_ANY)] = mapping
            else:
                usual6[_KEY_ANY + mapping.packed(_DATA_ANY6)] = mapping
        elif divided(mapping):
            count += mapping.count - 1
            held = found.setdefault(map_type_of(mapping).name, {})
            held.update(dict.fromkeys(entries_of(mapping), mapping))
        else:
            found.setdefault(map_type_of(mapping).name, {})[entry(mapping)] = mapping
    if count != sum(map(len, found.values())):
        raise InUseError("a mapping stands twice in one batch")
    return found


def encode(held: dict[bytes, PortMapping], map_: MapType) -> list[bytes]:
    """The elements of entries of one map, with the owner as the comment that nft shows."""
    plain = _ELEMENT_HEADER[map_.name]
    tails: dict[int, bytes] = {}  # the same behind each element of a divided block
    found = []
    for entry, mapping in held.items():
        if mapping.owner is None and (mapping.count == 1 or map_.block):
            found.append(plain + entry)
            continue
        tail = tails.get(id(mapping))
        if tail is None:
            tail = tails[id(mapping)] = userdata(mapping.owner, mark(mapping))
        found.append(headed(entry + tail))
    return found


def encode_plain(held: Iterable[bytes], map_: MapType) -> list[bytes]:
    """The elements of entries of one map, without owners."""
    plain = _ELEMENT_HEADER[map_.name]
    return [plain + entry for entry in held]


def encode_ports(block: PortMapping, ports: Iterable[int], map_: MapType) -> list[bytes]:
    """The elements that ask what in a map each of these ports is in, at the block's address."""
    key = entry(block)[: _port_at(map_)]
    header = _pair(8 + len(key), _ELEMENT) + key
    return [header + struct.pack(">H2x", port) for port in ports]


def encode_keys(held: Iterable[bytes], map_: MapType) -> list[bytes]:
    """The elements that name the keys only, as a deletion or a question wants them."""
    size = map_.key_size
    header = _pair(4 + size, _ELEMENT)
    return [header + entry[:size] for entry in held]


def mark(mapping: PortMapping) -> bytes:
    """What the elements of a divided block have in common; nothing for other mappings."""
    if not divided(mapping):
        return b""
    return _MARK + struct.pack(">HH", mapping.host_port, mapping.count)


def mark_of(rest: bytes) -> bytes:
    """The mark in what is behind an entry."""
    return rest[4:10] if rest[4:6] == _MARK else b""


def element(entry: bytes, comment: str | None = None, data: bytes = b"") -> bytes:
    """An element of this entry, with userdata and a comment that nft shows."""
    return headed(entry + userdata(comment, data))


def headed(body: bytes) -> bytes:
    """An element with its header."""
    return _pair(4 + len(body), _ELEMENT) + body


def userdata(comment: str | None, data: bytes = b"") -> bytes:
    """What goes behind an entry: data of ours and a comment that nft shows, if there are any."""
    if comment is not None:
        printable = _printable(comment, MAX_USERDATA - len(data) - 3)
        data += bytes((_COMMENT, len(printable))) + printable
    return attribute(_USERDATA, data) if data else b""


def _printable(owner: str, limit: int) -> bytes:
    """The owner as nft can print it and read it back: it has no way to quote a quote."""
    if '"' in owner or not owner.isprintable():
        owner = "".join(c if c.isprintable() and c != '"' else "?" for c in owner)
    if len(owner) <= limit and owner.isascii():  # nearly all: a third of the time
        return owner.encode() + b"\0"
    short = owner.encode(errors="replace")[:limit]
    return short.decode(errors="ignore").encode() + b"\0"


def split(elements: Sequence[bytes]) -> list[Sequence[bytes]]:
    """Pieces that one message can carry: about a thousand elements of comments' usual size."""
    each = _MESSAGE_ROOM // max(map(len, elements), default=1)
    if len(elements) <= each:
        return [elements] if elements else []
    return [elements[first : first + each] for first in range(0, len(elements), each)]


@lru_cache
def head(table: str, set_name: str, family: bytes = INET) -> bytes:
    """What a message about a map or set begins with; alone it asks for all that is in it."""
    return family + text(_LIST_TABLE, table) + text(_LIST_SET, set_name)


def body(table: str, set_name: str, elements: Iterable[bytes]) -> bytes:
    """The body of a message about these elements."""
    return head(table, set_name) + attribute(_LIST_ELEMENTS, b"".join(elements))


def listed(body: bytes, map_: MapType, found: dict[bytes, bytes]) -> int:
    """Put the entries in one message of a listing into `found`, each with what is behind it.

    Returns how many there were: more than `found` grew by when some came twice.
    """
    start, size = 4, 0
    while start + 4 <= len(body):
        size, kind = struct.unpack_from("=HH", body, start)
        if kind & 0x3FFF == _LIST_ELEMENTS or size < 4:
            break
        start += size + 3 & ~3
    else:
        return 0
    stop, start = start + size, start + 4
    header = _ELEMENT_HEADER[map_.name]
    plain = 4 + map_.pack.size
    count = 0
    while start < stop:
        count += 1
        if body.startswith(header, start):
            found[body[start + 4 : start + plain]] = b""
            start += plain
        else:
            size = struct.unpack_from("=H", body, start)[0]
            middle = start + min(plain, size)
            found[body[start + 4 : middle]] = body[middle : start + size]
            start += max(size, 4) + 3 & ~3
    return count


def decode_all(held: dict[bytes, bytes], map_: MapType, into: list[PortMapping]) -> list[bytes]:
    """Append what the entries of a listing stand for; returns those that are no mapping.

    Parts of a divided block that is not whole are none. About two microseconds for each of
    the usual kind.
    """
    foreign = []
    blocks: dict[PortMapping, list[bytes]] = {}
    unpack, names, size = map_.pack.unpack, _NAMES, map_.pack.size
    usual = not (map_.specific or map_.block)
    address = _ADDRESSES[map_.family.version]
    for entry, rest in held.items():
        if usual and len(entry) == size and not mark_of(rest):
            _, number, port, _, ip, dest_port = unpack(entry)
            if number in names and port and dest_port:
                dest, owner = (address(ip), dest_port), comment_of(rest) if rest else None
                try:
                    into.append(PortMapping(port, dest, names[number], None, 1, owner))
                except InvalidValueError:
                    foreign.append(entry)  # to ::1, say
                continue
        mapping = decode(entry, rest, map_)
        if mapping is None:
            foreign.append(entry)
        elif mapping.count > 1 and not map_.block:
            blocks.setdefault(mapping, []).append(entry)
        else:
            into.append(mapping)
    for mapping, parts in blocks.items():
        if len(parts) == mapping.count:
            into.append(mapping)
        else:
            foreign += parts
    return foreign


def decode(entry: bytes, rest: bytes, map_: MapType) -> PortMapping | None:
    """The mapping that an entry and the attributes behind it stand for, or are part of.

    None for what another program put there and no mapping can say.
    """
    try:
        return _decode(map_.pack.unpack(entry), rest, map_)
    except (struct.error, InvalidValueError, KeyError):
        return None


def _decode(fields: tuple[Any, ...], rest: bytes, map_: MapType) -> PortMapping | None:
    address, host, host_ip = _ADDRESSES[map_.family.version], None, None
    owner = comment_of(rest) if rest else None
    if map_.specific:
        host, fields = fields[1], fields[1:]
        host_ip = address(host)
    number, port = fields[1:3]
    if not map_.block:
        ip, to, first, count = address(fields[-2]), fields[-1], port, 1
        if part := mark_of(rest):
            first, count = struct.unpack_from(">HH", part, len(_MARK))
            to -= port - first
            if not first <= port < first + count:
                return None
        found = PortMapping(first, (ip, to), _NAMES[number], host_ip, count, owner)
        return found if divided(found) == bool(part) else None
    if fields[-4] != number or (map_.specific and host != fields[-5]):
        return None  # it spans more than ports
    dest = (address(fields[-1]), port)
    return PortMapping(port, dest, _NAMES[number], host_ip, fields[-3] - port + 1, owner)


def comment_of(rest: bytes) -> str | None:
    """The comment in what is behind an entry."""
    data = attributes(rest).get(_USERDATA, b"")
    start = 0
    while start + 2 <= len(data):
        kind, size = data[start], data[start + 1]
        if kind == _COMMENT:
            return data[start + 2 : start + 2 + size].rstrip(b"\0").decode(errors="replace")
        start += 2 + size
    return None
