"""The messages about one mapping that is no block: all but a number and the element is ready.

Mappings come and go one by one, and to pack the messages of a batch takes three times as long as
what the kernel does with them. What is made here packs them, with a number that `NetlinkSocket`
gives; what the kernel refuses is for the general way to explain.
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from sys import byteorder
from typing import Final

from netalloc.host.netlink_messages import ACK, CREATE, EXCLUSIVE, message
from netalloc.model import PortMapping
from netalloc.portmap.nftables import elements, maps
from netalloc.portmap.nftables.batch import (
    BEGINNING,
    DELETE_ELEMENT,
    ENDING,
    GET_ELEMENT,
    NEW_ELEMENT,
)
from netalloc.portmap.nftables.maps import (
    DNAT_ANY,
    DNAT_ANY6,
    MAP_TYPES,
    MapType,
    single_type_of,
)

Entry = tuple[MapType, bytes]  # an element without its owner, and the map that it belongs in

_MAPS: Final = [map_ for map_ in MAP_TYPES.values() if not map_.block]


def entry(mapping: PortMapping) -> Entry:
    """The entry of a mapping that is no block."""
    map_ = single_type_of(mapping)
    return map_, map_.key_header + mapping.packed(map_.data_header)


def adding(table: str) -> Callable[[int, PortMapping], bytes]:
    """Packs the transaction that adds a mapping with its owner; a key that is present ends it."""
    usual, data, before, between = _usual_addition(table, DNAT_ANY)
    usual6, data6, before6, between6 = _usual_addition(table, DNAT_ANY6)

    def pack(number: int, mapping: PortMapping) -> bytes:
        if mapping.owner is None and mapping.host_ip is None:
            if mapping.version == 4:
                return usual(before, number, between, mapping.packed(data), ENDING)
            return usual6(before6, number, between6, mapping.packed(data6), ENDING)
        map_ = single_type_of(mapping)
        comment = elements.userdata(mapping.owner)
        start, middle = _addition(table, map_.name, len(comment))
        entry = mapping.packed(map_.data_header)
        return b"".join((start, number.to_bytes(4, byteorder), middle, entry, comment, ENDING))

    return pack


def asking(table: str) -> Callable[[int, Entry], bytes]:
    """Packs the question what is present under the key of an entry."""
    parts = {}
    for map_ in _MAPS:
        (key,) = elements.encode_keys([bytes(map_.pack.size)], map_)
        parts[map_.name] = _around(GET_ELEMENT, 0, table, map_.name, key, map_.key_size)

    def pack(number: int, what: Entry) -> bytes:
        map_, plain = what
        before, between = parts[map_.name]
        return b"".join((before, number.to_bytes(4, byteorder), between, plain[: map_.key_size]))

    return pack


def removing(table: str) -> Callable[[int, Entry], bytes]:
    """Packs the transaction that removes this very entry; see batch.removals."""
    parts = {}
    for map_ in _MAPS:
        size = map_.pack.size
        (same,) = elements.encode_plain([bytes(size)], map_)
        (key,) = elements.encode_keys([bytes(size)], map_)
        start, middle = _around(NEW_ELEMENT, CREATE, table, map_.name, same, size)
        second, last = _around(DELETE_ELEMENT, ACK, table, map_.name, key, map_.key_size)
        parts[map_.name] = BEGINNING + start, middle, second, last

    def pack(number: int, what: Entry) -> bytes:
        map_, plain = what
        start, middle, second, last = parts[map_.name]
        at, key = number.to_bytes(4, byteorder), plain[: map_.key_size]
        return b"".join((start, at, middle, plain, second, at, last, key, ENDING))

    return pack


def _usual_addition(table: str, map_: MapType) -> tuple[Callable[..., bytes], bytes, bytes, bytes]:
    """What packs an addition without an owner, and the three parts that are always the same."""
    rest = map_.pack.size - len(map_.key_header)
    before, between = _addition(table, map_.name, 0)
    pack = struct.Struct(f"={len(before)}sI{len(between)}s{rest}s{len(ENDING)}s").pack
    return pack, map_.data_header, before, between


@lru_cache
def _addition(table: str, name: str, comment: int) -> tuple[bytes, bytes]:
    """What of such a transaction is before the number, and from there to the key itself."""
    map_ = maps.MAP_TYPES[name]
    varies = map_.pack.size - len(map_.key_header) + comment
    element = elements.headed(map_.key_header + bytes(varies))
    flags = CREATE | EXCLUSIVE | ACK
    start, middle = _around(NEW_ELEMENT, flags, table, name, element, varies)
    return BEGINNING + start, middle


def _around(
    kind: int, flags: int, table: str, name: str, element: bytes, varies: int
) -> tuple[bytes, bytes]:
    """A message about an element: what is before its number, and from there to what varies."""
    whole = message(kind, flags, 0, elements.body(table, name, [element]))
    return whole[:8], whole[12:-varies]
