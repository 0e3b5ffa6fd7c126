"""Bitmap against its oracle, its bulk methods, its edges and its bytes."""

from array import array
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from netalloc import (
    Bitmap,
    ExhaustedError,
    InUseError,
    NotAllocatedError,
    OutOfRangeError,
    StoreError,
)
from netalloc.errors import InvalidValueError
from pair import Pair, Walk

SIZES = [1, 63, 64, 65, 4095, 4096, 4097, 2**16, 2**24, 2**32, 2**64]


class Machine(RuleBasedStateMachine):
    """Any order of any steps, on any size."""

    @initialize(size=st.sampled_from(SIZES) | st.integers(1, 20_000))
    def start(self, size: int) -> None:
        self.pair = Pair(size)

    def ordinal(self, share: float) -> int:
        return min(int(self.pair.size * share), self.pair.size - 1)

    @rule()
    def acquire(self) -> None:
        self.pair.acquire()

    @rule(n=st.integers(0, 5000))
    def acquire_ranges(self, n: int) -> None:
        self.pair.acquire_ranges(n)

    @rule(n=st.integers(0, 5000))
    def acquire_into(self, n: int) -> None:
        self.pair.acquire_into(n)

    @rule(n=st.integers(1, 5000))
    def acquire_block(self, n: int) -> None:
        self.pair.acquire_block(n)

    @rule(share=st.floats(0, 1), length=st.integers(1, 200))
    def reserve_run(self, share: float, length: int) -> None:
        first = self.ordinal(share)
        for i in range(first, first + length):
            self.pair.reserve(i)

    @rule(share=st.floats(0, 1), length=st.integers(1, 5000))
    def release_run(self, share: float, length: int) -> None:
        taken = sorted(self.pair.oracle.taken)
        first = int(len(taken) * share)
        self.pair.release_many(taken[first : first + length], "Q")

    @rule(share=st.floats(0, 1))
    def release_one(self, share: float) -> None:
        taken = sorted(self.pair.oracle.taken)
        if taken:
            self.pair.release(taken[int(share * (len(taken) - 1))])

    @rule(share=st.floats(0, 1))
    def release_anything(self, share: float) -> None:
        self.pair.release(self.ordinal(share))

    @rule(share=st.floats(0, 1))
    def move_cursor(self, share: float) -> None:
        self.pair.move_cursor(self.ordinal(share))

    @rule(share=st.floats(0, 1), n=st.integers(1, 300) | st.integers(1, 5000))
    def look(self, share: float, n: int) -> None:
        for start in (
            0,
            self.ordinal(share),
            self.pair.size - 1,
            min(self.pair.size + n, 2**64 - 1),
        ):
            self.pair.next_block(n, start)
            self.pair.previous_set(start)

    @rule(
        share=st.floats(0, 1),
        before=st.integers(-5000, 70),
        cell=st.integers(1, 300) | st.sampled_from([64, 4096, 2**18, 2**40, 2**63]),
        n=st.integers(1, 50),
    )
    def count(self, share: float, before: int, cell: int, n: int) -> None:
        self.pair.counts(before, cell, n)
        self.pair.counts(self.ordinal(share) + before, cell, n)

    @rule()
    def through_bytes(self) -> None:
        self.pair.through_bytes()

    @invariant()
    def check(self) -> None:
        if hasattr(self, "pair"):
            self.pair.check()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def walk(size: int, steps: int) -> None:
    """Random steps, all of them compared, with every invariant checked after each hundred."""
    walk = Walk(size, seed=size)
    for step in range(steps):
        walk.step()
        if step % 100 == 0:
            walk.pair.core._check()
        if step % 10_000 == 0:
            walk.pair.check()
    walk.pair.check()


@pytest.mark.parametrize("size", SIZES)
def test_random_steps(size: int) -> None:
    walk(size, 20_000)


@pytest.mark.soak
@pytest.mark.parametrize("size", SIZES)
def test_a_million_random_steps(size: int) -> None:
    walk(size, 1_000_000)


# ---- order


def test_first_released_after_exhaustion_is_next() -> None:
    bitmap = Bitmap(5)
    bitmap.acquire_ranges(5)
    for i in (3, 1, 4):
        bitmap.release(i)
    assert [bitmap.acquire() for _ in range(3)] == [3, 4, 1]


def test_released_comes_back_as_late_as_possible() -> None:
    bitmap = Bitmap(4)
    assert bitmap.acquire() == 0
    bitmap.release(0)
    assert [bitmap.acquire() for _ in range(4)] == [1, 2, 3, 0]


def test_reserve_does_not_move_the_cursor() -> None:
    bitmap = Bitmap(10)
    bitmap.reserve(5)
    assert bitmap.acquire() == 0


# ---- many


@pytest.mark.parametrize("code", "ILQilq")
def test_acquire_into_every_integer_of_32_or_64_bits(code: str) -> None:
    target = array(code, [0]) * 5
    assert Bitmap(10).acquire_into(target) == 5
    assert target.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (array("H", [0]), "'H'"),
        (array("d", [0]), "'d'"),
        (bytearray(8), "'B'"),
        (array("I", [0]), "^32-bit items cannot hold 8589934591"),
        (array("i", [0]), "^signed 32-bit items cannot hold 8589934591"),
        (memoryview(bytearray(17))[1:].cast("Q"), "middle of an item"),
        (memoryview(array("Q", [0] * 4))[::2], "contiguous"),
        (memoryview(bytes(8)).cast("Q"), "writable"),
        ([0], "no writable"),
    ],
)
def test_acquire_into_refuses_other_items(target: Any, message: str) -> None:
    bitmap = Bitmap(2**33)
    with pytest.raises(InvalidValueError, match=message):
        bitmap.acquire_into(target)
    assert len(bitmap) == 0


def test_a_negative_item_is_no_ordinal() -> None:
    """Its bits would be those of a high one."""
    full32, full64 = Bitmap(2**32), Bitmap(2**64)
    full32.acquire_ranges(2**32)
    full64.acquire_ranges(2**64 - 1)
    full64.reserve(2**64 - 1)
    for bitmap, code in ((full32, "i"), (full64, "q")):
        with pytest.raises(OutOfRangeError, match="^-1 is not in 0 to"):
            bitmap.release_many(array(code, [5, -1]))
        assert bitmap.available == 0
    with pytest.raises(OutOfRangeError, match="signed 64-bit items cannot hold"):
        Bitmap(2**64).acquire_into(array("q", [0]))


def test_all_or_nothing_when_too_few_are_free() -> None:
    bitmap = Bitmap(100)
    bitmap.reserve(50)
    target = array("Q", [7]) * 100
    for step in (lambda: bitmap.acquire_into(target), lambda: bitmap.acquire_ranges(100)):
        with pytest.raises(ExhaustedError, match="100 asked for, 99 of 100 are free"):
            step()
    assert list(bitmap) == [50]
    assert set(target) == {7}


@pytest.mark.parametrize("given", [[1, 2, 99], [1, 2, 2], [1, 2, 200], [2, 1, 1]])
@pytest.mark.parametrize("code", ["I", "Q", None])
def test_release_many_frees_all_or_nothing(given: list[int], code: str | None) -> None:
    bitmap = Bitmap(100)
    bitmap.acquire_ranges(50)
    before = bitmap.to_bytes()
    with pytest.raises((NotAllocatedError, OutOfRangeError)):
        bitmap.release_many(array(code, given) if code else given)
    assert bitmap.to_bytes() == before
    bitmap._check()


def test_release_many_undoes_across_full_blocks() -> None:
    bitmap = Bitmap(2**24)
    bitmap.acquire_ranges(2**24)
    bitmap.release(2**24 - 1)
    before = bitmap.to_bytes()
    with pytest.raises(NotAllocatedError):
        bitmap.release_many(array("Q", [*range(0, 2**24, 1000), 2**24 - 1]))
    assert bitmap.to_bytes() == before
    bitmap._check()


def test_padding_is_no_ordinal() -> None:
    bitmap = Bitmap(70)
    bitmap.acquire_ranges(70)
    with pytest.raises(OutOfRangeError, match="70 is not in 0 to 69"):
        bitmap.release_many([69, 70])
    assert len(bitmap) == 70


def test_huge_ranges_cost_nothing() -> None:
    bitmap = Bitmap(2**64)
    assert bitmap.acquire_block(2**63) == 0
    assert bitmap.acquire_ranges(2**63 - 1) == [(2**63, 2**64 - 1)]
    assert bitmap.available == 1
    assert bitmap.acquire() == 2**64 - 1
    assert bitmap.available == 0
    assert bitmap.nbytes < 1024
    bitmap._check()


def test_block_may_begin_before_the_cursor_and_reach_past_it() -> None:
    bitmap = Bitmap(100)
    bitmap.cursor = 50
    assert bitmap.acquire_block(80) == 0


# ---- bad input


@pytest.mark.parametrize("size", [0, -1, 2**64 + 1])
def test_size_out_of_range(size: int) -> None:
    with pytest.raises(OutOfRangeError, match=str(size)):
        Bitmap(size)


@pytest.mark.parametrize("i", [-1, 10, 2**64, 2**100])
def test_ordinal_out_of_range(i: int) -> None:
    bitmap = Bitmap(10)
    for method in (bitmap.reserve, bitmap.release, bitmap.discard):
        with pytest.raises(OutOfRangeError, match=str(i)):
            method(i)
    assert i not in bitmap


def test_named_errors() -> None:
    bitmap = Bitmap(10)
    bitmap.reserve(3)
    with pytest.raises(InUseError, match="3"):
        bitmap.reserve(3)
    with pytest.raises(NotAllocatedError, match="^4 is not allocated$"):
        bitmap.release(4)
    with pytest.raises(OutOfRangeError):
        bitmap.acquire_block(0)
    with pytest.raises(OutOfRangeError):
        bitmap.acquire_ranges(-1)
    for value in ("3", 3.0, True, None):
        with pytest.raises(InvalidValueError, match=f"^{value!r} is not an integer$"):
            bitmap.reserve(value)  # type: ignore[arg-type]
    assert bitmap.discard(3) is True
    assert bitmap.discard(3) is False


# ---- looking


def test_iteration_starts_at_once_and_bears_changes() -> None:
    bitmap = Bitmap(2**64)
    bitmap.acquire_block(2**63)
    seen = iter(bitmap)
    assert next(seen) == 0
    bitmap.release(1)
    assert next(seen) == 2


def test_next_free_and_next_set() -> None:
    bitmap = Bitmap(2**20)
    bitmap.acquire_ranges(5000)
    assert bitmap.next_free(0) == 5000
    assert bitmap.next_set(5000) is None
    assert bitmap.next_set(4999) == 4999
    assert bitmap.next_set(2**20) is None
    bitmap.acquire_ranges(2**20 - 5000)
    assert bitmap.next_free(0) is None


def test_counts_reach_over_both_ends_and_refuse_what_they_cannot_hold() -> None:
    bitmap = Bitmap(2**64)
    assert bitmap.acquire_ranges(2**63 + 5) == [(0, 2**63 + 5)]
    bitmap.reserve(2**64 - 1)

    def counts(*cells: int) -> list[int]:
        return memoryview(bitmap.counts(*cells)).cast("Q").tolist()

    assert counts(0, 2**63, 2) == [2**63, 6]
    assert counts(-3, 2**63, 3) == [2**63 - 3, 8, 1]
    assert counts(-(2**64), 2**63, 3) == [0, 0, 2**63]
    assert counts(2**64 - 1, 2**63, 2) == [1, 0]
    assert counts(2**63, 1, 8) == [1] * 5 + [0] * 3
    for wrong in ((2**64, 1, 1), (-(2**64) - 1, 1, 1), (0, 0, 1), (0, 2**63 + 1, 1), (0, 1, 0)):
        with pytest.raises(OutOfRangeError):
            bitmap.counts(*wrong)
    with pytest.raises(OutOfRangeError, match="16777217 cells are not in 1 to 16777216"):
        bitmap.counts(0, 1, 2**24 + 1)


def test_next_block_and_previous_set() -> None:
    bitmap = Bitmap(2**20)
    for i in (7, 64, 5000, 2**20 - 1):
        bitmap.reserve(i)
    before = bitmap.to_bytes()
    assert [bitmap.next_block(n, 0) for n in (7, 8, 57, 5000)] == [0, 8, 65, 5001]
    assert bitmap.next_block(2**20 - 5002, 0) == 5001
    assert bitmap.next_block(2**20 - 5001, 0) is None
    assert bitmap.next_block(1, 2**20 - 1) is None
    assert bitmap.next_block(2**64 - 1, 0) is None
    assert [bitmap.previous_set(i) for i in (6, 7, 63, 4999, 2**20 - 2)] == [None, 7, 7, 64, 5000]
    assert bitmap.previous_set(2**64 - 1) == 2**20 - 1
    for n, start in ((0, 0), (-1, 0), (1, -1)):
        with pytest.raises(OutOfRangeError):
            bitmap.next_block(n, start)
    assert bitmap.to_bytes() == before
    empty, full = Bitmap(70), Bitmap(70)
    full.acquire_ranges(70)
    assert (empty.next_block(70, 0), empty.next_block(70, 1)) == (0, None)
    assert (full.next_block(1, 0), full.previous_set(99)) == (None, 69)
    assert empty.previous_set(69) is None


# ---- bytes


def half_used() -> Bitmap:
    bitmap = Bitmap(2**20)
    bitmap.acquire_ranges(10_000)
    bitmap.release_many(list(range(0, 10_000, 3)))
    return bitmap


def test_bytes_keep_the_cursor() -> None:
    bitmap = half_used()
    again = Bitmap.from_bytes(bitmap.to_bytes())
    assert again.cursor == bitmap.cursor
    assert again.acquire() == bitmap.acquire()


def test_every_flipped_bit_is_noticed() -> None:
    data = bytearray(half_used().to_bytes())
    for at in range(0, len(data), 7):
        data[at] ^= 1 << at % 8
        with pytest.raises(StoreError):
            Bitmap.from_bytes(data)
        data[at] ^= 1 << at % 8
    Bitmap.from_bytes(data)._check()


def test_every_truncation_is_noticed() -> None:
    data = half_used().to_bytes()
    for size in range(0, len(data), 11):
        with pytest.raises(StoreError):
            Bitmap.from_bytes(data[:size])
    with pytest.raises(StoreError):
        Bitmap.from_bytes(data + b"x")


def test_foreign_and_newer_bytes_are_refused() -> None:
    data = half_used().to_bytes()
    with pytest.raises(StoreError, match="no bitmap"):
        Bitmap.from_bytes(b"\x7fELF" + data[4:])
    with pytest.raises(StoreError, match="version 2"):
        Bitmap.from_bytes(data[:4] + b"\x02\x00" + data[6:])


def test_contradicting_bytes_with_a_right_checksum_are_refused() -> None:
    """Whatever the checksum says, no bytes may lead the C code out of its memory."""
    from zlib import crc32

    data = bytearray(half_used().to_bytes())
    for at in [*range(4, 200), len(data) - 5]:
        for value in (0, 1, 0x80, 0xFF):
            forged = bytearray(data)
            forged[at] = value
            forged[-4:] = crc32(forged[:-4]).to_bytes(4, "little")
            with suppress(StoreError):
                Bitmap.from_bytes(forged)._check()
