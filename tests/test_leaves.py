"""The bitmap that lives in a store by leaves, beside the core's."""

from hypothesis import given, settings
from hypothesis import strategies as st

from netalloc._alloc import Bitmap
from netalloc.errors import (
    ExhaustedError,
    InUseError,
    NotAllocatedError,
    OutOfRangeError,
)
from netalloc.store.sqlite.leaf_bitmap import LEAF, LeafBitmap


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.sampled_from([1, 5, LEAF - 1, LEAF, LEAF + 1, 3 * LEAF + 7]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["acquire", "reserve", "release", "ranges", "cursor", "reload"]),
            st.integers(0, 4 * LEAF),
        ),
        max_size=60,
    ),
)
def test_leaves_agree_with_the_core(size, steps):
    core, rows = Bitmap(size), {}
    leaves = LeafBitmap(size, lambda n: Bitmap.from_bytes(rows[n]))
    for what, number in steps:
        if what == "reload":
            rows.update((n, leaves.leaf(n).to_bytes()) for n in leaves.dirty)
            leaves = reloaded(leaves)
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
            assert (start in core) == (start in leaves)


def test_of_a_full_bitmap_the_first_one_released_is_the_next():
    leaves = LeafBitmap(LEAF + 5, lambda n: None)
    leaves.acquire_ranges(LEAF + 5)
    for ordinal in (LEAF + 2, 7, LEAF + 3):
        leaves.release(ordinal)
    assert [leaves.acquire() for _ in range(3)] == [LEAF + 2, LEAF + 3, 7]


def outcome(bitmap, name, arguments):
    try:
        return getattr(bitmap, name)(*arguments)
    except (ExhaustedError, InUseError, NotAllocatedError, OutOfRangeError) as error:
        return type(error)


def reloaded(old):
    new = LeafBitmap(old.size, old._load)
    new.full, new.mixed, new.count, new.cursor = old.full, old.mixed, old.count, old.cursor
    return new
