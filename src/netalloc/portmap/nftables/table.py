"""One nftables table of ours: reading its elements, over a socket that is kept."""

import errno
from collections.abc import Sequence

from netalloc.errors import CommandError
from netalloc.family import FAMILIES, Family
from netalloc.host.lazy_socket import LazySocket
from netalloc.host.netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket
from netalloc.model import PortMapping
from netalloc.portmap.nftables import batch, elements, maps

_ASK_ROOM = 64  # keys to a question: its answers have to fit into the receive buffer
_LIST_FROM = 1024  # keys from which listing the whole map is cheaper than asking for each
_LISTINGS = 20  # tries for a listing that lacks nothing
_INTERRUPTIONS = 3  # of which so many for one that nothing interrupted


class NftTable:
    """Table `inet NAME`. The socket belongs to the network namespace of the first call."""

    def __init__(self, name: str, family: bytes = elements.INET) -> None:
        self.name = name
        self.family = family
        self.socket = LazySocket(NETLINK_NETFILTER)

    @property
    def netlink(self) -> NetlinkSocket:
        """The kept socket."""
        return self.socket.get()

    def close(self) -> None:
        """Close the socket; the next call opens another one."""
        self.socket.close()

    def list(self, families: Sequence[Family] = FAMILIES) -> dict[str, dict[bytes, bytes]]:
        """The entries of every map of these families, each with what is behind it."""
        return {
            name: self.list_map(map_)
            for name, map_ in maps.MAP_TYPES.items()
            if map_.family in families
        }

    def list_map(self, map_: maps.MapType) -> dict[bytes, bytes]:
        """All entries of a map; none when the map is missing.

        Two things spoil a listing. While the kernel still rehashes a map that has grown,
        it lists some elements twice and lacks as many, and does not say so: we look again.
        And it marks the listing as interrupted when any table of the namespace changed,
        which on a busy host is every one: so three tries, after which an element may be
        lacking that came or went meanwhile. A repair built on that is refused as a whole.
        """
        question = elements.head(self.name, map_.name, self.family)
        for attempt in range(1, _LISTINGS + 1):
            try:
                bodies, consistent = self.netlink.dump(batch.GET_ELEMENT, question)
            except NetlinkError as error:
                if error.errno != errno.ENOENT:
                    raise
                return {}
            found: dict[bytes, bytes] = {}
            count = sum([elements.listed(body, map_, found) for body in bodies])
            if count == len(found) and (consistent or attempt >= _INTERRUPTIONS):
                return found
        raise CommandError(
            f"map {map_.name} of table {self.name} changed in each of {_LISTINGS} listings"
        )

    def look_up(self, map_: maps.MapType, entries: Sequence[bytes]) -> dict[bytes, bytes]:
        """What the kernel has under the keys of these entries, about 10 µs each."""
        if len(entries) >= _LIST_FROM:
            return self.list_map(map_)
        found: dict[bytes, bytes] = {}
        for first in range(0, len(entries), _ASK_ROOM):
            some = entries[first : first + _ASK_ROOM]
            body = elements.body(self.name, map_.name, elements.encode_keys(some, map_))
            try:
                answers = self.netlink.call(batch.GET_ELEMENT, body)
            except NetlinkError as error:
                if error.errno != errno.ENOENT:
                    raise
                # The kernel stops at the first key that is absent.
                if len(some) > 1:
                    for entry in some:
                        found.update(self.look_up(map_, [entry]))
                continue
            for answer in answers:
                elements.listed(answer, map_, found)
        return found

    def at_ports(
        self, block: PortMapping, ports: Sequence[int], map_: maps.MapType
    ) -> dict[bytes, bytes]:
        """What of a map these ports of a block are in; 1 µs for each."""
        asked = elements.encode_ports(block, ports, map_)
        found: dict[bytes, bytes] = {}
        for first in range(0, len(asked), _ASK_ROOM):
            bodies = [
                elements.body(self.name, map_.name, [one]) for one in asked[first:][:_ASK_ROOM]
            ]
            for answer in self.netlink.call_each(batch.GET_ELEMENT, bodies):
                elements.listed(answer, map_, found)
        return found

    def holder(self, mapping: PortMapping) -> PortMapping | None:
        """What is mapped where `mapping` would be."""
        map_ = maps.map_type_of(mapping)
        if map_.block:
            near = self.list_map(map_)
        else:
            near = self.look_up(map_, elements.entries_of(mapping))
        for entry, rest in near.items():
            there = elements.decode(entry, rest, map_)
            if there is not None and overlap(mapping, there):
                return there
        return None


def overlap(one: PortMapping, other: PortMapping) -> bool:
    """Whether two mappings of the same host address and protocol share a port."""
    same = one.key[:2] == other.key[:2]
    return same and (other.host_port in one.ports or one.host_port in other.ports)
