"""What belongs to a network in the table that all networks of a host share: set elements.

Sets say which networks the rules serve. `networks` pairs a bridge with its subnet, and is the
register: who leaves last is who finds no other element there. `subnets` has the subnets that are
behind a bridge or routed; both are there once more for IPv6. `bridges` has the bridges by their
index, which a renaming leaves as it is, and `loopback6` the subnets that the host reaches from
::1. `routed` has the groups of the interfaces of routed networks, and the maps `gateways` lead
from there to what their containers see the host as.
"""

import errno
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network
from itertools import pairwise
from sys import byteorder
from typing import Final, NamedTuple

from netalloc.family import FAMILIES, V4, V6, Family, NetworkPair
from netalloc.host.netlink import NetlinkError, NetlinkSocket
from netalloc.host.netlink_messages import CREATE, attribute, attributes
from netalloc.portmap.link import Link
from netalloc.portmap.nftables import batch, elements

NETWORKS: Final = {family: f"networks{family.suffix}" for family in FAMILIES}
SUBNETS: Final = {family: f"subnets{family.suffix}" for family in FAMILIES}
BRIDGES: Final = "bridges"
LOOPBACK6: Final = "loopback6"
ROUTED: Final = "routed"
GATEWAYS: Final = {family: f"gateways{family.suffix}" for family in FAMILIES}
DECLARATIONS: Final = {
    **{NETWORKS[f]: f"type ifname . {f.address_type}; flags interval;" for f in FAMILIES},
    **{SUBNETS[f]: f"type nf_proto . {f.address_type}; flags interval;" for f in FAMILIES},
    LOOPBACK6: f"type nf_proto . {V6.address_type}; flags interval;",
    BRIDGES: "type iface_index;",
    ROUTED: "type devgroup;",
    **{GATEWAYS[f]: f"type devgroup : {f.address_type};" for f in FAMILIES},
}

_KEY, _DATA, _KEY_END, _VALUE, _LIST_ELEMENTS = 1, 2, 10, 1, 3
_NAME = 16  # IFNAMSIZ
_NO_BRIDGE: Final = "lo"  # nft has no word for an empty name; no bridge is called so
_GROUP: Final = "group:"  # of a routed network, in the place of a bridge: no name has a colon
_PARTS: Final = (_KEY, _KEY_END, _DATA)  # of an entry, in the order in which we make them
_pair = struct.Struct("=HH")

Wanted = dict[str, tuple[bytes, str]]  # of each set: the entry, and the comment on it


class Member(NamedTuple):
    """A subnet in the table: bridge, first and last address, and who in it has the two.

    A routed one has no bridge, but the `group` of its interfaces, and a packed `gateway` where
    it is our own. From 0 to 0 is no subnet: it has what leads into no other's. `owner` is ""
    where no name but the table's tells two predecessors apart. No addresses as objects: a hundred
    are read at once.
    """

    bridge: str | None
    first: int
    last: int
    owner: str = ""
    family: Family = V4
    group: int = 0
    gateway: bytes = b""

    @classmethod
    def of(cls, link: Link, networks: NetworkPair, owner: str = "") -> "tuple[Member, ...]":
        """Those of these networks: one of each family, or one without a subnet."""
        group = link.group if link.is_routed else 0
        found = [
            cls(
                link.bridge,
                int(one[0]),
                int(one[-1]),
                owner,
                family,
                group,
                gateway.packed if group and gateway is not None else b"",
            )
            for family, one, gateway in zip(FAMILIES, networks, link.gateways, strict=True)
            if one is not None
        ]
        return tuple(found) or (cls(link.bridge, 0, 0, owner, V4, group),)

    @property
    def place(self) -> str | None:
        """Where its containers are: the bridge, or the group in a word that is no name."""
        return f"{_GROUP}{self.group:x}" if self.group else self.bridge

    @property
    def network(self) -> IPv4Network | IPv6Network | None:
        """Its subnet."""
        if not self.last:
            return None
        prefix = self.family.bits + 1 - (self.last - self.first + 1).bit_length()
        kind = IPv4Network if self.family is V4 else IPv6Network
        return kind((self.first, prefix))

    @property
    def register(self) -> tuple[str, bytes]:
        """The set that it is registered in, and its entry there."""
        name = (self.place or _NO_BRIDGE).encode().ljust(_NAME, b"\0")
        return NETWORKS[self.family], self._from_first_to_last(name)

    @property
    def subnet(self) -> bytes:
        """Its entry in the sets of subnets."""
        return self._from_first_to_last(bytes((self.family.af, 0, 0, 0)))

    @property
    def routed(self) -> bytes:
        """Its entry in the set of groups, and its key in the maps of gateways."""
        return _entry(_KEY, struct.pack("=I", self.group))

    def wanted(self, index: int | None) -> Wanted:
        """Its elements; `index` is that of the bridge."""
        name, entry = self.register
        found: Wanted = {name: (entry, self.owner)}
        if self.group:
            found[ROUTED] = (self.routed, self.owner)
            if self.gateway:
                data = _entry(_DATA, self.gateway)
                found[GATEWAYS[self.family]] = (self.routed + data, self.owner)
        elif self.bridge is None or index is None:
            return found
        else:
            found[BRIDGES] = (_entry(_KEY, struct.pack("=I", index)), self.bridge)
        if self.last:
            found[SUBNETS[self.family]] = (self.subnet, self.owner)
        return found

    def overlaps(self, other: "Member") -> bool:
        """Whether some address is in both."""
        same = self.family is other.family
        return same and self.first <= other.last and other.first <= self.last

    def _from_first_to_last(self, start: bytes) -> bytes:
        size = self.family.size
        low, high = self.first.to_bytes(size, "big"), self.last.to_bytes(size, "big")
        return _interval(start + low, start + high)

    def __str__(self) -> str:
        return (
            f"{self.network or 'any network'}{f' of {self.owner}' if self.owner else ''}"
            f"{f' on {self.place}' if self.place else ''}"
        )


class Element(NamedTuple):
    """One element of a set as the kernel has it, and what stands in its comment."""

    entry: bytes
    comment: str


class _Shape(NamedTuple):
    """Where in an element of a register the parts are."""

    header: bytes
    end_header: bytes
    first: slice
    end: slice  # the header of the other end
    name: slice  # the bridge once more
    last: slice
    size: int

    @classmethod
    def of(cls, family: Family) -> "_Shape":
        """The one of a family."""
        key = _NAME + family.size
        value = _pair.pack(4 + key, _VALUE)
        starts = [8 + _NAME, 8 + key, 16 + key, 16 + key + _NAME, 16 + 2 * key]
        first, end, name, last = [slice(*two) for two in pairwise(starts)]
        header, end_header = _pair.pack(8 + key, _KEY), _pair.pack(8 + key, _KEY_END)
        return cls(header + value, end_header + value, first, end, name, last, starts[-1])


_SHAPES: Final = {family: _Shape.of(family) for family in FAMILIES}


def registered(bodies: Iterable[bytes], family: Family) -> dict[bytes, Member]:
    """What a listing of a register says, by entry; 3 µs each.

    What says nothing that we could have said is left out.
    """
    return _read(_elements(bodies), family)


def near(bodies: Iterable[bytes], me: Sequence[Member], family: Family) -> dict[bytes, Member]:
    """Those of a listing that overlap one of ours or have its owner; 0.6 µs for each other."""
    _, _, low, _, _, high, size = _SHAPES[family]
    own = [one for one in me if one.family is family]
    first = min([one.first for one in own], default=0).to_bytes(family.size, "big")
    last = max([one.last for one in own], default=0).to_bytes(family.size, "big")
    owner = me[0].owner.encode() or b"\xff"  # which is in no text
    return _read(
        (
            data
            for data in _elements(bodies)
            if (data[low] <= last and first <= data[high]) or owner in data[size:]
        ),
        family,
    )


def _read(listed: Iterable[bytes], family: Family) -> dict[bytes, Member]:
    found = {}
    header, end_header, low, end, second, high, whole = _SHAPES[family]
    for data in listed:
        name = data[8 : 8 + _NAME]
        if data[:8] != header or data[end] != end_header or data[second] != name:
            continue
        first, last = int.from_bytes(data[low], "big"), int.from_bytes(data[high], "big")
        size = last - first + 1
        if size < 1 or size & size - 1 or first & size - 1:
            continue
        place, group = name.rstrip(b"\0").decode(errors="replace"), 0
        if place.startswith(_GROUP):
            with suppress(ValueError):  # of another program
                group = int(place[len(_GROUP) :], 16)
        bridge = None if group or place == _NO_BRIDGE else place
        owner = elements.comment_of(data[whole:]) or "" if len(data) > whole else ""
        found[data[:whole]] = Member(bridge, first, last, owner, family, group)
    return found


def addition(table: str, name: str, entry: bytes, comment: str) -> batch.Step:
    """The step that adds an element; one that is there is left as it is."""
    body = elements.body(table, name, [elements.element(entry, comment or None)])
    return batch.Step(batch.NEW_ELEMENT, CREATE, body)


def deletion(table: str, name: str, entries: Iterable[bytes]) -> list[batch.Step]:
    """The steps that delete these elements."""
    return [
        batch.Step(batch.DELETE_ELEMENT, 0, elements.body(table, name, [elements.element(entry)]))
        for entry in entries
    ]


def question(table: str, name: str, entry: bytes) -> bytes:
    """The body that asks for what the kernel has at the start of this entry."""
    return elements.body(table, name, [elements.element(entry[: _pair.unpack_from(entry)[0]])])


def listed(bodies: Iterable[bytes]) -> list[Element]:
    """The elements in the messages of a listing, or of an answer."""
    return [_element(data) for data in _elements(bodies)]


def commented(bodies: Iterable[bytes], comment: str) -> list[bytes]:
    """The entries of a listing that have this comment; a look at the bytes for the others."""
    part = comment.encode()
    near = [_element(data) for data in _elements(bodies) if part in data]
    return [element.entry for element in near if element.comment == comment]


def copies(netlink: NetlinkSocket, table: str, name: str) -> list[batch.Step]:
    """The steps that would add all that a set or map has now, as it is."""
    try:
        bodies, _ = netlink.dump(batch.GET_ELEMENT, elements.head(table, name))
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        return []
    listed = [attributes(body, 4).get(_LIST_ELEMENTS, b"") for body in bodies]
    return [
        batch.Step(batch.NEW_ELEMENT, CREATE, elements.body(table, name, [piece]))
        for piece in listed
        if piece
    ]


def _elements(bodies: Iterable[bytes]) -> Iterator[bytes]:
    for body in bodies:
        data = attributes(body, 4).get(_LIST_ELEMENTS, b"")
        start, stop = 0, len(data) - 4
        while start <= stop:
            size = int.from_bytes(data[start : start + 2], byteorder) or 4
            yield data[start + 4 : start + size]
            start += size + 3 & ~3


def _element(data: bytes) -> Element:
    parts = attributes(data)
    entry = b"".join(attribute(kind, parts[kind]) for kind in _PARTS if kind in parts)
    return Element(entry, elements.comment_of(data) or "")


def _interval(low: bytes, high: bytes) -> bytes:
    return _entry(_KEY, low) + _entry(_KEY_END, high)


def _entry(kind: int, value: bytes) -> bytes:
    return attribute(kind, attribute(_VALUE, value))
