"""What belongs to a network in the table that all networks of a host share: set elements.

Three sets say which networks the rules serve. `networks` pairs a bridge with its subnet, and is
the register: who leaves last is who finds no other element there. `subnets` has the subnets
that are behind a bridge, `bridges` the bridges by their index, which a renaming leaves as it is.
"""

import errno
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network
from sys import byteorder
from typing import Final, NamedTuple

from netalloc.host.netlink import NetlinkError, NetlinkSocket
from netalloc.host.netlink_messages import CREATE, attribute, attributes
from netalloc.portmap.nftables import batch, elements

NETWORKS: Final = "networks"
SUBNETS: Final = "subnets"
BRIDGES: Final = "bridges"
DECLARATIONS: Final = {
    NETWORKS: "type ifname . ipv4_addr; flags interval;",
    SUBNETS: "type nf_proto . ipv4_addr; flags interval;",
    BRIDGES: "type iface_index;",
}

_KEY, _KEY_END, _VALUE, _LIST_ELEMENTS = 1, 10, 1, 3
_NAME = 16  # IFNAMSIZ
_NO_BRIDGE: Final = "lo"  # nft has no word for an empty name; no bridge is called so
_IPV4: Final = b"\x02\0\0\0"  # NFPROTO_IPV4, padded to four bytes
_pair = struct.Struct("=HH")
_KEY_HEADER: Final = _pair.pack(28, _KEY) + _pair.pack(24, _VALUE)
_END_HEADER: Final = _pair.pack(28, _KEY_END) + _pair.pack(24, _VALUE)

Wanted = dict[str, tuple[bytes, str]]  # of each set: the entry, and the comment on it


class Member(NamedTuple):
    """A network of the table: bridge, first and last address, and who in it has the two.

    From 0 to 0 is no subnet: it has what leads into no other's. `owner` is "" where no name but
    the table's tells two predecessors apart. No addresses as objects: a hundred are read at once.
    """

    bridge: str | None
    first: int
    last: int
    owner: str = ""

    @classmethod
    def of(cls, bridge: str | None, network: IPv4Network | None, owner: str = "") -> "Member":
        """The one with this subnet."""
        if network is None:
            return cls(bridge, 0, 0, owner)
        return cls(bridge, int(network[0]), int(network[-1]), owner)

    @property
    def network(self) -> IPv4Network | None:
        """Its subnet."""
        if not self.last:
            return None
        return IPv4Network((self.first, 33 - (self.last - self.first + 1).bit_length()))

    def wanted(self, index: int | None) -> Wanted:
        """Its elements; `index` is that of the bridge."""
        first, last = self.first.to_bytes(4, "big"), self.last.to_bytes(4, "big")
        name = (self.bridge or _NO_BRIDGE).encode().ljust(_NAME, b"\0")
        found: Wanted = {NETWORKS: (_interval(name + first, name + last), self.owner)}
        if self.bridge is None or index is None:
            return found
        found[BRIDGES] = (_entry(_KEY, struct.pack("=I", index)), self.bridge)
        if self.last:
            found[SUBNETS] = (_interval(_IPV4 + first, _IPV4 + last), self.owner)
        return found

    def __str__(self) -> str:
        return (
            f"{self.network or 'any network'}{f' of {self.owner}' if self.owner else ''}"
            f"{f' on {self.bridge}' if self.bridge else ''}"
        )


class Element(NamedTuple):
    """One element of a set as the kernel has it, and what stands in its comment."""

    entry: bytes
    comment: str


def registered(bodies: Iterable[bytes]) -> dict[bytes, Member]:
    """What a listing of `networks` says, by entry; 3 µs each.

    What says nothing that we could have said is left out.
    """
    return _read(_elements(bodies))


def near(bodies: Iterable[bytes], me: Member) -> dict[bytes, Member]:
    """Those of a listing that overlap a network or have its owner; 0.6 µs for each other."""
    first, last = me.first.to_bytes(4, "big"), me.last.to_bytes(4, "big")
    owner = me.owner.encode() or b"\xff"  # which is in no text
    return _read(
        data
        for data in _elements(bodies)
        if (data[24:28] <= last and first <= data[52:56]) or owner in data[56:]
    )


def _read(listed: Iterable[bytes]) -> dict[bytes, Member]:
    found = {}
    for data in listed:
        key, end, name = data[:8], data[28:36], data[8:24]
        if key != _KEY_HEADER or end != _END_HEADER or data[36:52] != name:
            continue
        first, last = int.from_bytes(data[24:28], "big"), int.from_bytes(data[52:56], "big")
        size = last - first + 1
        if size < 1 or size & size - 1 or first & size - 1:
            continue
        bridge = name.rstrip(b"\0").decode(errors="replace")
        owner = elements.comment_of(data[56:]) or "" if len(data) > 56 else ""
        found[data[:56]] = Member(None if bridge == _NO_BRIDGE else bridge, first, last, owner)
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
    entry = b"".join(attribute(kind, parts[kind]) for kind in (_KEY, _KEY_END) if kind in parts)
    return Element(entry, elements.comment_of(data) or "")


def _interval(low: bytes, high: bytes) -> bytes:
    return _entry(_KEY, low) + _entry(_KEY_END, high)


def _entry(kind: int, value: bytes) -> bytes:
    return attribute(kind, attribute(_VALUE, value))
