"""The maps of a table: one for each family, with or without the host address, of ports or blocks.

A block is one element only where it is large: the kernel passes all elements of a map of
intervals to take one away, 26 ms among 3,000. And such a map can keep the port of a block or
replace it, but not shift it. So a block of up to SMALL ports, or whose container ports are
others, is divided: an element for each port.
"""

import struct
from typing import Final, NamedTuple

from netalloc.family import FAMILIES, Family
from netalloc.model import PortMapping

SMALL: Final = 256  # ports; of larger blocks there are at most 251 to an address and protocol

_KEY, _DATA, _KEY_END, _VALUE = 1, 2, 10, 1  # NFTA_SET_ELEM_..., NFTA_DATA_VALUE
_pair = struct.Struct("=HH").pack


def _header(kind: int, size: int) -> bytes:
    return _pair(8 + size, kind) + _pair(4 + size, _VALUE)


class MapType(NamedTuple):
    """One map: its name, its type in nft's words, and how an entry is packed."""

    name: str
    family: Family
    specific: bool  # whether the host address is part of the key
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
        data = self.family.size if self.block else self.family.size + 4
        return self.pack.size - len(self.data_header) - data

    @property
    def address(self) -> slice:
        """Where in an entry the address stands that it leads to."""
        start = self.key_size + len(self.data_header)
        return slice(start, start + self.family.size)


def _map_type(family: Family, specific: bool, block: bool) -> MapType:
    # Each component is padded to four bytes: address, protocol, port; then address, port.
    address, kind = "I" if family.version == 4 else "16s", family.address_type
    key = (address if specific else "") + "B3xH2x"
    size = family.size + 8 if specific else 8
    return MapType(
        f"{'block' if block else 'dnat'}_{'ip' if specific else 'any'}{family.suffix}",
        family,
        specific,
        f"type {f'{kind} . ' if specific else ''}inet_proto . inet_service : "
        + (f"{kind}; flags interval;" if block else f"{kind} . inet_service;"),
        struct.Struct(f">8s{key}" + (f"8s{key}8s{address}" if block else f"8s{address}H2x")),
        _header(_KEY, size),
        _header(_KEY_END, size) if block else b"",
        _header(_DATA, family.size if block else family.size + 4),
    )


# By version of IP, by whether the host address is in the key, by whether it is of intervals.
_MAPS: Final = {
    (family.version, specific, block): _map_type(family, specific, block)
    for family in FAMILIES
    for block in (False, True)
    for specific in (True, False)
}
MAP_TYPES: Final = {map_.name: map_ for map_ in _MAPS.values()}
DNAT_ANY, DNAT_ANY6 = (_MAPS[version, False, False] for version in (4, 6))


def divided(mapping: PortMapping) -> bool:
    """Whether it is a block of which each port is an element."""
    return mapping.count > 1 and (mapping.count <= SMALL or mapping.shifted)


def map_type_of(mapping: PortMapping) -> MapType:
    """The map that a mapping belongs in."""
    block = mapping.count > 1 and not divided(mapping)
    return _MAPS[mapping.version, mapping.host_ip is not None, block]


def map_types_at(mapping: PortMapping) -> tuple[MapType, MapType]:
    """The map of single ports, and that of intervals, at the host address of a mapping."""
    version, specific = mapping.version, mapping.host_ip is not None
    return _MAPS[version, specific, False], _MAPS[version, specific, True]


def single_type_of(mapping: PortMapping) -> MapType:
    """The map that a mapping of one port belongs in."""
    return _MAPS[mapping.version, mapping.host_ip is not None, False]
