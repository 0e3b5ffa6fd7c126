"""Whose an element is: of the network that it leads into."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from netalloc.errors import OutOfRangeError
from netalloc.family import FAMILIES, Family
from netalloc.model import PortMapping
from netalloc.portmap.desired import describe
from netalloc.portmap.nftables.maps import MapType
from netalloc.portmap.nftables.members import Member


class Ownership:
    """The addresses of one network; of one without a subnet, those that are in no other's."""

    def __init__(self, me: Sequence[Member], others: Iterable[Member] = ()) -> None:
        others = list(others)
        of = {family.version: _Addresses(family, me, others) for family in FAMILIES}
        self._of, self._four, self._six = of, of[4], of[6]
        self._not = "into another one's network"
        if networks := [str(one.network) for one in me if one.last]:
            self._not = f"not into {' or '.join(networks)}"
        self.families = tuple([f for f in FAMILIES if not of[f.version].is_empty])

    def has(self, mapping: PortMapping) -> bool:
        """Whether it leads to one of them; O(log networks)."""
        return (self._four if mapping.version == 4 else self._six).has(mapping.dest_number)

    def check(self, mappings: Iterable[PortMapping]) -> None:
        """OutOfRangeError for one that leads elsewhere."""
        for mapping in mappings:
            if not self.has(mapping):
                raise OutOfRangeError(
                    f"{describe(mapping)} leads to {mapping.dest[0]}, {self._not}"
                )

    def of(self, entries: Iterable[bytes], map_: MapType) -> set[bytes]:
        """Those entries of a map that lead there: 0.1 µs each."""
        return self._of[map_.family.version].of(entries, map_.address)


class _Addresses:
    """Those of one family: of the networks, or all but the others'."""

    def __init__(self, family: Family, me: Sequence[Member], others: Iterable[Member]) -> None:
        everything = (1 << family.bits) - 1
        taken = [(one.first, one.last) for one in others if one.last and one.family is family]
        mine = [(one.first, one.last) for one in me if one.last and one.family is family]
        if not any(one.last for one in me):
            mine = [(0, everything)]
        kept = [
            (max(a, first), min(b, last))
            for a, b in _between(taken, everything)
            for first, last in mine
            if a <= last and b >= first
        ]
        self._size = family.size
        self._starts = [a for a, _ in kept]
        self._ends = [b for _, b in kept]
        self._first, self._last = kept[0] if len(kept) == 1 else (1, 0)  # nearly always one

    @property
    def is_empty(self) -> bool:
        """Whether there are none."""
        return not self._starts

    def has(self, address: int) -> bool:
        """Whether it is one of them."""
        if self._first <= address <= self._last:
            return True
        at = bisect_right(self._starts, address) - 1
        return at >= 0 and address <= self._ends[at]

    def of(self, entries: Iterable[bytes], where: slice) -> set[bytes]:
        """Those entries that have one of them there."""
        if len(self._starts) == 1:  # nearly always
            low, high = (
                end.to_bytes(self._size, "big") for end in (self._starts[0], self._ends[0])
            )
            return {entry for entry in entries if low <= entry[where] <= high}
        return {entry for entry in entries if self.has(int.from_bytes(entry[where], "big"))}


def _between(taken: list[tuple[int, int]], everything: int) -> list[tuple[int, int]]:
    """The intervals that these leave."""
    gaps, start = [], 0
    for first, last in sorted(taken):
        if first > start:
            gaps.append((start, first - 1))
        start = max(start, last + 1)
    return [*gaps, (start, everything)] if start <= everything else gaps
