"""What belongs to a network in the table that all networks of a host share: set elements.

Three sets say which networks the rules serve. `networks` pairs a bridge with its subnet, and is
the register: who leaves last is who finds no other element there. `subnets` has the subnets
that are behind a bridge, `bridges` the bridges by their index, which a renaming leaves as it is.
"""

import errno
import struct
from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import Final, NamedTuple

from netalloc.host.netlink import CREATE, NetlinkError, NetlinkSocket, attribute, attributes
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

Wanted = dict[str, tuple[bytes, str]]  # of each set: the entry, and the comment on it


class Member(NamedTuple):
    """A network of the table: bridge and subnet, and who in it has the two.

    Without a subnet it has what leads into no other's. `owner` is "" where no name but the
    table's tells two predecessors apart.
    """

    bridge: str | None
    network: IPv4Network | None
    owner: str = ""

    @property
    def addresses(self) -> tuple[int, int]:
        """The first and the last address; 0.0.0.0 stands for no network."""
        if self.network is None:
            return 0, 0
        return int(self.network[0]), int(self.network[-1])

    def overlaps(self, other: "Member") -> bool:
        """Whether an address is in both, or neither has a subnet."""
        first, last = self.addresses
        start, end = other.addresses
        return first <= end and start <= last

    def wanted(self, index: int | None) -> Wanted:
        """Its elements; `index` is that of the bridge."""
        first, last = (address.to_bytes(4, "big") for address in self.addresses)
        name = (self.bridge or _NO_BRIDGE).encode().ljust(_NAME, b"\0")
        found: Wanted = {NETWORKS: (_interval(name + first, name + last), self.owner)}
        if self.bridge is None or index is None:
            return found
        found[BRIDGES] = (_entry(_KEY, struct.pack("=I", index)), self.bridge)
        if self.network is not None:
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


def member(element: Element) -> Member | None:
    """What an element of `networks` says; None where it says nothing that we could have said."""
    parts = attributes(element.entry)
    low, high = (attributes(parts.get(kind, b"")).get(_VALUE, b"") for kind in (_KEY, _KEY_END))
    if len(low) != _NAME + 4 or low[:_NAME] != high[:_NAME]:
        return None
    bridge = low[:_NAME].rstrip(b"\0").decode(errors="replace")
    first, last = (int.from_bytes(end[_NAME:], "big") for end in (low, high))
    size = last - first + 1
    if size < 1 or size & size - 1 or first & size - 1:
        return None
    network = IPv4Network((first, 33 - size.bit_length())) if last else None
    return Member(None if bridge == _NO_BRIDGE else bridge, network, element.comment)


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
    found = []
    for body in bodies:
        data = attributes(body, 4).get(_LIST_ELEMENTS, b"")
        start = 0
        while start + 4 <= len(data):
            size = max(_pair.unpack_from(data, start)[0], 4)
            found.append(_element(data[start + 4 : start + size]))
            start += size + 3 & ~3
    return found


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


def index_of(element: Element) -> int:
    """The index that an element of `bridges` stands for."""
    key = attributes(attributes(element.entry).get(_KEY, b"")).get(_VALUE, b"\0\0\0\0")
    return int(struct.unpack("=I", key[:4].ljust(4, b"\0"))[0])


def _element(data: bytes) -> Element:
    parts = attributes(data)
    entry = b"".join(attribute(kind, parts[kind]) for kind in (_KEY, _KEY_END) if kind in parts)
    return Element(entry, elements.comment_of(data) or "")


def _interval(low: bytes, high: bytes) -> bytes:
    return _entry(_KEY, low) + _entry(_KEY_END, high)


def _entry(kind: int, value: bytes) -> bytes:
    return attribute(kind, attribute(_VALUE, value))
