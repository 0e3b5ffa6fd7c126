"""The spans of a stored bitmap: what of it is taken, each with the place of the next.

It is cut into leaves of 4096 ordinals. What is stored are *spans*: a leaf of which some
ordinals are taken, with its bits, or a run of leaves that are wholly taken, of whatever length;
an empty leaf is in none. Each span says where the next one begins. So one that is missing is
noticed by the one before it, and two places must be wrong before anything is given twice; a look
needs the last span that begins at or before a leaf, which an index finds, and a change writes
four rows at most, whatever the size and however scattered the ordinals. (Two bitmaps over all
leaves, in one row, took 36 ms a change at 3,000 scattered addresses of an IPv6 /64.)
"""

from __future__ import annotations

from bisect import bisect_right, insort

from netalloc._alloc import Bitmap, Span, StoredSpans
from netalloc.errors import StoreError
from netalloc.store.sqlite.connection import REPAIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LEAF = 4096
SHIFT = 12
MASK = LEAF - 1


class Spans(StoredSpans):
    """The spans of the bitmap `name`; `load(number)` brings the last one stored that begins at or
    before a leaf, None where there is none.

    `dirty` has the firsts of spans that differ from the store, or are in it no more.
    """

    __slots__ = ()

    def __init__(
        self, name: str, size: int, load: Callable[[int], Span | None], first: int, count: int
    ) -> None:
        self.name = name
        self.size = size
        self.count = count
        self.dirty = set()
        self._load = load
        self._leaves = leaves_of(size)
        # The head stands before the first leaf, so that every leaf has a span before it.
        self._head = Span(-1, 0, first)
        self._by_first = {-1: self._head}
        self._starts = [-1]

    @property
    def first(self) -> int:
        """Where the first span begins."""
        return self._head.following

    def span(self, first: int) -> Span | None:
        """The span that begins there; None where none does any more."""
        return self._by_first.get(first)

    def spans(self) -> list[Span]:
        """All of them, in order. O(spans)."""
        found, number = [], self._head.following
        while number < self._leaves:
            span = self._find(number)
            found.append(span)
            number = span.following
        return found

    def taken_by(self, span: Span) -> int:
        """How many ordinals of a span are taken."""
        if span.bits is not None:
            return len(span.bits)
        return min(span.stop << SHIFT, self.size) - (span.first << SHIFT)

    def _find(self, number: int) -> Span:
        """The last span that begins at or before a leaf, read from the store if need be."""
        found = self._by_first.get(number)
        if found is not None:
            return found
        before = self._by_first[self._starts[bisect_right(self._starts, number) - 1]]
        if before.following > number:
            return before
        found = self._load(number)
        if found is None or not before.following <= found.first < found.stop <= found.following:
            raise self._missing(before.following)
        if found.following <= number:
            raise self._missing(found.following)
        self._enter(found)
        return found

    def _missing(self, number: int) -> StoreError:
        return StoreError(f"leaf {number} of bitmap {self.name} is missing; {REPAIR}")

    def _enter(self, span: Span) -> None:
        if span.first not in self._by_first:
            insort(self._starts, span.first)
        self._by_first[span.first] = span

    def _remove(self, span: Span) -> None:
        self.dirty.add(span.first)
        del self._by_first[span.first]
        del self._starts[bisect_right(self._starts, span.first) - 1]

    def _take(self, ordinal: int, n: int) -> int:
        """Take up to n ordinals of one leaf from there on, up to one that is taken already."""
        number, low = ordinal >> SHIFT, ordinal & MASK
        span = self._by_first.get(number)
        if span is None:
            before = self._find(number)
            size = min(LEAF, self.size - (number << SHIFT))
            span = Span(number, number + 1, before.following, Bitmap(size))
            before.following = number
            self.dirty.add(before.first)
            self._enter(span)
        bits = span.bits
        assert bits is not None
        if n == 1:
            bits.reserve(low)
            taken = 1
        else:
            end = bits.next_set(low)
            taken = min(n, (bits.size if end is None else end) - low)
            bits.cursor = low
            bits.acquire_ranges(taken)  # all of them free: the run itself
        self.count += taken
        self.dirty.add(number)
        if len(bits) == bits.size:
            self._fill(span)
        return taken

    def _fill(self, span: Span) -> None:
        """Make one span of those around that are wholly taken."""
        span.bits = None
        before = self._find(span.first - 1) if span.first else self._head
        if before.bits is None and before.first >= 0 and before.stop == span.first:
            before.stop, before.following = span.stop, span.following
            self._remove(span)
            self.dirty.add(before.first)
            span = before
        if span.following == span.stop < self._leaves:
            after = self._find(span.stop)
            if after.bits is None:
                span.stop, span.following = after.stop, after.following
                self._remove(after)

    def _give(self, ordinal: int, n: int) -> int:
        """Give back up to n ordinals of one leaf from there on, up to one that is free already."""
        number, low = ordinal >> SHIFT, ordinal & MASK
        span = self._find(number)
        if span.bits is None:
            span = self._split(span, number)
        bits = span.bits
        assert bits is not None
        if n == 1:
            bits.release(low)
            given = 1
        else:
            end = bits.next_free(low)
            given = min(n, (bits.size if end is None else end) - low)
            bits.release_many(_in_a_row(low, given))
        self.count -= given
        self.dirty.add(number)
        if not len(bits):
            before = self._find(number - 1) if number else self._head
            before.following = span.following
            self.dirty.add(before.first)
            self._remove(span)
        return given

    def _split(self, span: Span, number: int) -> Span:
        """The span of one leaf, made out of a run of leaves that are wholly taken."""
        following = span.following
        if number + 1 < span.stop:
            self._enter(Span(number + 1, span.stop, following))
            self.dirty.add(number + 1)
            following = number + 1
        bits = Bitmap(min(LEAF, self.size - (number << SHIFT)))
        bits.acquire_ranges(bits.size)
        if number == span.first:
            span.stop, span.following, span.bits = number + 1, following, bits
            return span
        span.stop = span.following = number
        self.dirty.add(span.first)
        made = Span(number, number + 1, following, bits)
        self._enter(made)
        return made


def _in_a_row(low: int, n: int) -> memoryview:
    """So many ordinals of a leaf from there on, as release_many takes them in 1 ns each."""
    numbers, leaf = memoryview(bytearray(4 * n)).cast("I"), Bitmap(LEAF)
    leaf.cursor = low
    leaf.acquire_into(numbers)
    return numbers


def leaves_of(size: int) -> int:
    """How many leaves a bitmap has: the number that no span begins at."""
    return (size - 1 >> SHIFT) + 1
