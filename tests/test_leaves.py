"""The bitmap that lives in a store by leaves, beside the core's."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netalloc._alloc import Bitmap, Span
from netalloc.errors import (
    ExhaustedError,
    InUseError,
    NotAllocatedError,
    OutOfRangeError,
    StoreError,
)
from netalloc.store.sqlite.leaf_bitmap import LEAF, LeafBitmap


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    size=st.sampled_from([1, 5, LEAF - 1, LEAF, LEAF + 1, 3 * LEAF + 7, 5 * LEAF]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(
                ["acquire", "reserve", "release", "ranges", "cursor", "reload", "follow", "catch"]
            ),
            st.integers(0, 6 * LEAF) | st.integers(0, 5).map(lambda n: n * LEAF),
        ),
        max_size=60,
    ),
)
def test_leaves_agree_with_the_core(size, steps):
    core, stored = Bitmap(size), Stored()
    leaves, behind = stored.read(size), stored.read(size)
    for what, number in steps:
        if what == "reload":
            stored.write(leaves)
            leaves, behind = stored.read(size), stored.read(size)
        elif what == "catch":  # one that has read it earlier goes on from there
            assert behind.catch_up(f"{leaves.cursor} {leaves.journal}")
            assert (behind.journal, behind.cursor) == (leaves.journal, leaves.cursor)
            assert (behind.dirty, len(behind)) == (leaves.dirty, len(leaves))
            leaves, behind = behind, leaves
        elif what == "follow":  # another process reads what is stored, and the journal
            journal, cursor = leaves.journal, leaves.cursor
            leaves = stored.read(size)
            leaves.follow(cursor, journal)
            assert leaves.journal == journal
        elif what == "cursor":
            core.cursor = leaves.cursor = number % size
        else:
            name = {"ranges": "acquire_ranges"}.get(what, what)
            arguments = () if what == "acquire" else (number,)
            assert outcome(core, name, arguments) == outcome(leaves, name, arguments)
        assert (len(core), core.cursor) == (len(leaves), leaves.cursor)
        for start in (0, number % size, min(number, size - 1)):
            assert core.next_free(start) == leaves.next_free(start)
            assert core.next_set(start) == leaves.next_set(start)
            assert core.previous_set(start) == leaves.previous_set(start)
            for cells in ((start, 7, 50), (-3, 512, 40), (start - LEAF, 2 * LEAF, 3)):
                assert core.counts(*cells) == leaves.counts(*cells)
            for n in (1, 2, number % 300 + 1, LEAF, number + 1):
                assert core.next_block(n, start) == leaves.next_block(n, start)
            assert (start in core) == (start in leaves)


@pytest.mark.parametrize("every", [2, 3, 61, 4096])
def test_a_block_may_reach_over_leaves_and_over_none(every):
    size = 4 * LEAF + 100
    core, leaves = Bitmap(size), LeafBitmap(size, lambda n: None)
    gap = range(LEAF - 50, 3 * LEAF + 10)
    for ordinal in range(0, size, every):
        if ordinal not in gap:
            core.reserve(ordinal)
            leaves.reserve(ordinal)
    for n in (every, 100, 2 * LEAF, len(gap), len(gap) + every, size, size + 1):
        for start in (0, 1, LEAF, 2 * LEAF + 5, 3 * LEAF, size - 1, size):
            assert core.next_block(n, start) == leaves.next_block(n, start)


def test_following_a_journal_goes_by_runs_and_not_by_ordinals():
    """As a cold process does: of a long run it took a millisecond a leaf."""
    leaves = LeafBitmap(8 * LEAF, lambda n: None)
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append(event))
    leaves.follow(0, f"+0:{6 * LEAF} -10:{5 * LEAF} ")
    sys.setprofile(None)
    assert len(calls) < 1_000
    assert (len(leaves), leaves.next_free(0)) == (LEAF + 10, 10)
    assert leaves.next_set(10) == 5 * LEAF + 1
    assert leaves.journal == f"+0:{6 * LEAF} -10:{5 * LEAF} "


def test_of_a_full_bitmap_the_first_one_released_is_the_next():
    leaves = LeafBitmap(LEAF + 5, lambda n: None)
    leaves.acquire_ranges(LEAF + 5)
    for ordinal in (LEAF + 2, 7, LEAF + 3):
        leaves.release(ordinal)
    assert [leaves.acquire() for _ in range(3)] == [LEAF + 2, LEAF + 3, 7]


def test_a_journal_that_does_not_go_on_from_this_one_is_not_followed():
    leaves = LeafBitmap(100, lambda n: None)
    leaves.acquire_ranges(3)
    leaves.release(1)
    for other in ("0 ", "4 +0:4 -1 ", "4 +0:2 +1 ", "4 +0:2 -1:0 ", "4 +0:2 -1 -1 ", ""):
        copy = LeafBitmap(100, lambda n: None)
        copy.follow(leaves.cursor, leaves.journal)
        assert not copy.catch_up(other)
    assert leaves.catch_up("3 +0:2 -1 +1 ") and 1 in leaves


def outcome(bitmap, name, arguments):
    try:
        return getattr(bitmap, name)(*arguments)
    except (ExhaustedError, InUseError, NotAllocatedError, OutOfRangeError) as error:
        return type(error)


def test_a_change_writes_few_spans_and_a_look_reads_few_whatever_is_held():
    """3,000 scattered over a /64, and the ends of long runs."""
    stored = Stored()
    leaves = stored.read(1 << 64)
    chosen = [i * 0x9E3779B97F4A7C15 % 2**64 for i in range(3000)]
    for ordinal in chosen:
        leaves.reserve(ordinal)
        assert len(leaves.dirty - {-1}) <= 2
        stored.write(leaves)
    for ordinal in chosen[::7]:
        stored.reads = 0
        cold = stored.read(1 << 64)
        assert ordinal in cold and stored.reads == 1
        cold.release(ordinal)
        assert len(cold.dirty - {-1}) <= 2 and stored.reads <= 2
    long = stored.read(1 << 40)
    long.acquire_ranges(300 * LEAF)
    assert len(long.spans()) == 1
    long.release(100 * LEAF + 5)
    assert [(span.first, span.stop) for span in long.spans()] == [(0, 100), (100, 101), (101, 300)]
    long.reserve(100 * LEAF + 5)
    assert [(span.first, span.stop) for span in long.spans()] == [(0, 300)]


def test_a_span_that_is_missing_is_noticed():
    stored = Stored()
    leaves = stored.read(1 << 30)
    for number in (3, 5, 9):
        leaves.reserve(number * LEAF)
    stored.write(leaves)
    for gone in (3, 5, 9):
        kept = stored.rows.pop(gone)
        with pytest.raises(StoreError, match=f"leaf {gone} of bitmap x is missing"):
            assert stored.read(1 << 30).spans() != []
        for number in (gone, gone + 1):
            with pytest.raises(StoreError, match=f"leaf {gone} of bitmap x is missing"):
                assert number * LEAF in stored.read(1 << 30)
        stored.rows[gone] = kept


class Stored:
    """The rows of spans, as a store has them."""

    def __init__(self):
        self.rows, self.head, self.reads = {}, {}, 0

    def write(self, leaves):
        for first in leaves.dirty:
            span = leaves.span(first)
            if span is None:
                self.rows.pop(first, None)
            elif first >= 0:
                bits = None if span.bits is None else span.bits.to_bytes()
                self.rows[first] = span.stop, span.following, bits
        self.head = {"first": leaves.first, "count": leaves.count, "cursor": leaves.cursor}
        leaves.stored()

    def load(self, number):
        self.reads += 1
        first = max((first for first in self.rows if first <= number), default=None)
        if first is None:
            return None
        stop, following, bits = self.rows[first]
        return Span(first, stop, following, None if bits is None else Bitmap.from_bytes(bits))

    def read(self, size):
        head = self.head if size == getattr(self, "size", size) else {}
        if not head:
            self.rows = {}
        self.size = size
        return LeafBitmap(size, self.load, name="x", **head)
