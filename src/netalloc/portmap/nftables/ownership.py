"""Whose an element is: of the network that it leads into."""

from bisect import bisect_right
from collections.abc import Iterable

from netalloc.errors import OutOfRangeError
from netalloc.model import PortMapping
from netalloc.portmap.desired import describe
from netalloc.portmap.nftables.elements import MapType
from netalloc.portmap.nftables.members import Member

_LAST = (1 << 32) - 1


class Ownership:
    """The addresses of one network; of one without a subnet, those that are in no other's."""

    def __init__(self, me: Member, others: Iterable[Member] = ()) -> None:
        gaps = _between([(one.first, one.last) for one in others if one.last])
        first, last = (me.first, me.last) if me.last else (0, _LAST)
        kept = [(max(a, first), min(b, last)) for a, b in gaps if a <= last and b >= first]
        self._not = f"not into {me.network}" if me.network else "into another one's network"
        self._starts = [a for a, _ in kept]
        self._ends = [b for _, b in kept]
        self._first, self._last = kept[0] if len(kept) == 1 else (1, 0)  # nearly always one

    def has(self, address: int) -> bool:
        """Whether it is one of them; O(log networks)."""
        if self._first <= address <= self._last:
            return True
        at = bisect_right(self._starts, address) - 1
        return at >= 0 and address <= self._ends[at]

    def check(self, mappings: Iterable[PortMapping]) -> None:
        """OutOfRangeError for one that leads elsewhere."""
        for mapping in mappings:
            if not self.has(mapping.dest_number):
                raise OutOfRangeError(
                    f"{describe(mapping)} leads to {mapping.dest[0]}, {self._not}"
                )

    def of(self, entries: Iterable[bytes], map_: MapType) -> set[bytes]:
        """Those entries of a map that lead there: 0.1 µs each."""
        where = map_.address
        if len(self._starts) == 1:  # nearly always
            low, high = (end.to_bytes(4, "big") for end in (self._starts[0], self._ends[0]))
            return {entry for entry in entries if low <= entry[where] <= high}
        return {entry for entry in entries if self.has(int.from_bytes(entry[where], "big"))}


def _between(taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The intervals that these leave."""
    gaps, start = [], 0
    for first, last in sorted(taken):
        if first > start:
            gaps.append((start, first - 1))
        start = max(start, last + 1)
    return [*gaps, (start, _LAST)] if start <= _LAST else gaps
