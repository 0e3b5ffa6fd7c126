"""Mappings as elements of nftables maps: the wire format of linux/netfilter/nf_tables.h.

An element is KEY, for a block KEY_END, DATA and, for the owner, USERDATA. What stands
before USERDATA we call its entry: the kernel lists it byte for byte as it was added, so
desired and present mappings compare as bytes and need no decoding.

A block is one element only where it is large: the kernel passes all elements of a map of
intervals to take one away, 26 ms among 3,000. And such a map can keep the port of a block or
replace it, but not shift it. So a block of up to SMALL ports, or whose container ports are
others, is an element for each port, 1 µs each; each has in its USERDATA a mark that names the
block, by which they are one mapping again when they are listed.
"""

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Any, Final, NamedTuple

from netalloc.errors import InUseError, InvalidValueError
from netalloc.host.netlink_messages import attribute, attributes, text
from netalloc.model import PortMapping

NUMBERS: Final = {"tcp": 6, "udp": 17, "sctp": 132}
_NAMES: Final = {number: name for name, number in NUMBERS.items()}

ANY_FAMILY: Final = b"\0\0\0\0"
INET: Final = b"\x01\0\0\0"  # struct nfgenmsg: family, version, resource
IPV4: Final = b"\x02\0\0\0"  # of the tables of earlier versions

SMALL: Final = 256  # ports; of larger blocks there are at most 251 to an address and protocol
MAX_USERDATA = 254  # bytes: the kernel keeps the size of it and one more in a byte

_ELEMENT, _KEY, _DATA, _USERDATA, _KEY_END, _VALUE = 1, 1, 2, 6, 10, 1
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_COMMENT = 0  # libnftnl's NFTNL_UDATA_SET_ELEM_COMMENT
_MARK = b"\x6e\x04"  # a kind that libnftnl passes over, and the size: first port and count
_MESSAGE_ROOM = 64_000  # of the 65,535 bytes that a nested attribute can say it has

_pair = struct.Struct("=HH").pack


def _header(kind: int, size: int) -> bytes:
    return _pair(8 + size, kind) + _pair(4 + size, _VALUE)


class MapType(NamedTuple):
    """One map: its name, its type in nft's words, and how an entry is packed."""

    name: str
    declaration: str
    pack: struct.Struct
    key_header: bytes
    end_header: bytes
    data_header: bytes

    @property
    def block(self) -> bool:
        """Whether the keys are intervals of ports."""
        return bool(self.end_header)

    @property
    def key_size(self) -> int:
        """How much of an entry is its key; the address that it leads to is behind that."""
        return self.pack.size - len(self.data_header) - (4 if self.block else 8)

    @property
    def address(self) -> slice:
        """Where in an entry the address stands that it leads to."""
        start = self.key_size + len(self.data_header)
        return slice(start, start + 4)

    @property
    def specific(self) -> bool:
        """Whether the host address is part of the key."""
        return self.name.endswith("_ip")


def _map_type(name: str, specific: bool, block: bool) -> MapType:
    # Each component is padded to four bytes: address, protocol, port; then address, port.
    key = ("I" if specific else "") + "B3xH2x"
    size = 12 if specific else 8
    return MapType(
        name,
        f"type {'ipv4_addr . ' if specific else ''}inet_proto . inet_service : "
        + ("ipv4_addr; flags interval;" if block else "ipv4_addr . inet_service;"),
        struct.Struct(f">8s{key}" + (f"8s{key}8sI" if block else "8sIH2x")),
        _header(_KEY, size),
        _header(_KEY_END, size) if block else b"",
        _header(_DATA, 4 if block else 8),
    )


DNAT_IP: Final = _map_type("dnat_ip", True, False)
DNAT_ANY: Final = _map_type("dnat_any", False, False)
BLOCK_IP: Final = _map_type("block_ip", True, True)
BLOCK_ANY: Final = _map_type("block_any", False, True)
MAP_TYPES: Final = {map_.name: map_ for map_ in (DNAT_IP, DNAT_ANY, BLOCK_IP, BLOCK_ANY)}

BLOCKS: Final = {name for name, map_ in MAP_TYPES.items() if map_.block}

_ELEMENT_HEADER: Final = {
    map_.name: _pair(4 + map_.pack.size, _ELEMENT) for map_ in MAP_TYPES.values()
}


def divided(mapping: PortMapping) -> bool:
    """Whether it is a block of which each port is an element."""
    return mapping.count > 1 and (mapping.count <= SMALL or mapping.shifted)


def map_type_of(mapping: PortMapping) -> MapType:
    """The map that a mapping belongs in."""
    if mapping.count == 1 or divided(mapping):
        return DNAT_ANY if mapping.host_ip is None else DNAT_IP
    return BLOCK_ANY if mapping.host_ip is None else BLOCK_IP


def map_types_at(mapping: PortMapping) -> tuple[MapType, MapType]:
    """The map of single ports, and that of intervals, at the host address of a mapping."""
    return (DNAT_ANY, BLOCK_ANY) if mapping.host_ip is None else (DNAT_IP, BLOCK_IP)


def entry(mapping: PortMapping, offset: int = 0) -> bytes:
    """The element of one mapping, or of one port of a divided block, without its owner.

    >>> entry(PortMapping(8080, ("10.0.0.2", 80))).hex(" ", 4)  # doctest: +NORMALIZE_WHITESPACE
    '10000100 0c000100 06000000 1f900000 10000200 0c000100 0a000002 00500000'
    """
    map_ = map_type_of(mapping)
    ip, port = mapping.dest
    number = NUMBERS[mapping.protocol]
    host = () if mapping.host_ip is None else (int(mapping.host_ip),)
    start = (*host, number, mapping.host_port + offset)
    if map_.block:
        end = (*host, number, mapping.host_port + mapping.count - 1)
        return map_.pack.pack(
            map_.key_header, *start, map_.end_header, *end, map_.data_header, int(ip)
        )
    return map_.pack.pack(map_.key_header, *start, map_.data_header, int(ip), port + offset)


def entries_of(mapping: PortMapping) -> list[bytes]:
    """All elements of one mapping: one, or one for each port of a divided block."""
    return [entry(mapping, offset) for offset in range(mapping.count if divided(mapping) else 1)]


Held = dict[str, dict[bytes, PortMapping]]


def entries(mappings: Iterable[PortMapping]) -> Held:
    """The mappings by map and entry; about a microsecond each for the usual kind.

    Raises InUseError when two are the very same.
    """
    pack, key, data = DNAT_ANY.pack.pack, DNAT_ANY.key_header, DNAT_ANY.data_header
    usual: dict[bytes, PortMapping] = {}
    found: Held = {DNAT_ANY.name: usual}
    count = 0
    for mapping in mappings:
        count += 1
        if mapping.count == 1 and mapping.host_ip is None:
            ip, port = mapping.dest
            usual[pack(key, NUMBERS[mapping.protocol], mapping.host_port, data, int(ip), port)] = (
                mapping
            )
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
    return [
        plain + entry
        if mapping.owner is None and (mapping.count == 1 or map_.block)
        else _with_userdata(entry, mapping)
        for entry, mapping in held.items()
    ]


def encode_plain(held: Iterable[bytes], map_: MapType) -> list[bytes]:
    """The elements of entries of one map, without owners."""
    plain = _ELEMENT_HEADER[map_.name]
    return [plain + entry for entry in held]


def encode_ports(block: PortMapping, ports: Iterable[int], map_: MapType) -> list[bytes]:
    """The elements that ask what in a map each of these ports is in, at the block's address."""
    key = entry(block)[: len(map_.key_header) + (12 if map_.specific else 8) - 4]
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


def _with_userdata(entry: bytes, mapping: PortMapping) -> bytes:
    return element(entry, mapping.owner, mark(mapping))


def element(entry: bytes, comment: str | None = None, data: bytes = b"") -> bytes:
    """An element of this entry, with userdata and a comment that nft shows."""
    if comment is not None:
        printable = _printable(comment, MAX_USERDATA - len(data) - 3)
        data += bytes((_COMMENT, len(printable))) + printable
    body = entry + attribute(_USERDATA, data) if data else entry
    return _pair(4 + len(body), _ELEMENT) + body


def _printable(owner: str, limit: int) -> bytes:
    """The owner as nft can print it and read it back: it has no way to quote a quote."""
    clean = "".join(c if c.isprintable() and c != '"' else "?" for c in owner)
    short = clean.encode(errors="replace")[:limit]
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


def body_of_one(table: str, mapping: PortMapping) -> bytes:
    """The body of a message about one mapping that is no block, with its owner."""
    if mapping.host_ip is None and mapping.owner is None:  # nearly all: half of the time
        ip, port = mapping.dest
        number = NUMBERS[mapping.protocol]
        pack, key, data = DNAT_ANY.pack.pack, DNAT_ANY.key_header, DNAT_ANY.data_header
        return _head_of_one(table) + pack(key, number, mapping.host_port, data, int(ip), port)
    map_ = map_type_of(mapping)
    return body(table, map_.name, encode({entry(mapping): mapping}, map_))


@lru_cache
def _head_of_one(table: str) -> bytes:
    """What comes before the entry of a plain element."""
    empty = b"\0" * DNAT_ANY.pack.size
    whole = body(table, DNAT_ANY.name, [_ELEMENT_HEADER[DNAT_ANY.name] + empty])
    return whole[: -len(empty)]


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
    usual = map_ is DNAT_ANY
    for entry, rest in held.items():
        if usual and len(entry) == size and not mark_of(rest):
            _, number, port, _, ip, dest_port = unpack(entry)
            if number in names and port and dest_port:
                dest, owner = (IPv4Address(ip), dest_port), comment_of(rest) if rest else None
                into.append(PortMapping(port, dest, names[number], None, 1, owner))
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
    host_ip = None
    owner = comment_of(rest) if rest else None
    if map_.specific:
        host_ip, fields = IPv4Address(fields[1]), fields[1:]
    number, port = fields[1:3]
    if not map_.block:
        ip, to, first, count = IPv4Address(fields[-2]), fields[-1], port, 1
        if part := mark_of(rest):
            first, count = struct.unpack_from(">HH", part, len(_MARK))
            to -= port - first
            if not first <= port < first + count:
                return None
        found = PortMapping(first, (ip, to), _NAMES[number], host_ip, count, owner)
        return found if divided(found) == bool(part) else None
    if fields[-4] != number or (host_ip is not None and int(host_ip) != fields[-5]):
        return None  # it spans more than ports
    dest = (IPv4Address(fields[-1]), port)
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
