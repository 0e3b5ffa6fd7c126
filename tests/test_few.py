"""Ordinals that are set far from each other: lists in place of paths of nodes."""

import random
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from functools import partial

import pytest

from netalloc import Bitmap, IPAllocator, NotAllocatedError
from test_no_memory import each_failure

SIZES = [2**64, 2**64 - 3, 2**30 + 5000, 2**24, 4096 * 64 + 1]


class Walk:
    """Steps over a bitmap and a set of ordinals that agree: clusters, loners, both ends."""

    def __init__(self, size: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.size, self.bitmap, self.held = size, Bitmap(size), set[int]()
        self.centres = [0, size - 1, *(self.chance.randrange(size) for _ in range(5))]

    def any(self) -> int:
        near = self.chance.choice((1, 5, 40, 4096, 1 << 18))
        around = self.chance.choice(self.centres) + self.chance.randint(-near, near)
        loner = self.chance.randrange(self.size)
        return min(self.size - 1, max(0, self.chance.choice((around, around, loner))))

    def next_free(self, start: int) -> int | None:
        while start in self.held:
            start += 1
        return start if start < self.size else None

    def next_block(self, n: int, start: int, behind: list[int]) -> int | None:
        for held in [*behind, self.size]:
            if held - start >= n:
                return start
            start = held + 1
        return None

    def reserve(self) -> None:
        i = self.any()
        if i not in self.held:
            self.bitmap.reserve(i)
            self.held.add(i)

    def release(self) -> None:
        if self.held:
            i = self.chance.choice(sorted(self.held))
            self.bitmap.release(i)
            self.held.remove(i)

    def acquire(self) -> None:
        self.bitmap.cursor = cursor = self.any()
        wanted = self.next_free(cursor)
        found = self.bitmap.acquire()
        assert found == (self.next_free(0) if wanted is None else wanted)
        self.held.add(found)

    def take_runs(self) -> None:
        self.bitmap.cursor = self.any()
        runs = self.bitmap.acquire_ranges(self.chance.choice((1, 30, 5000)))
        self.add({i for start, stop in runs for i in range(start, stop)})

    def take_block(self) -> None:
        n = self.chance.choice((2, 70, 5000))
        first = self.bitmap.acquire_block(n)
        self.add(set(range(first, first + n)))

    def take_into(self) -> None:
        buffer = array("Q", bytes(8 * 50))
        self.bitmap.acquire_into(buffer)
        self.add(set(buffer))

    def add(self, new: set[int]) -> None:
        assert not new & self.held
        self.held |= new

    def release_many(self) -> None:
        some = self.chance.sample(sorted(self.held), min(len(self.held), 300))
        if (wrong := self.any()) not in self.held:
            before = self.bitmap.to_bytes()
            with pytest.raises(NotAllocatedError):
                self.bitmap.release_many([*some, wrong])
            assert self.bitmap.to_bytes() == before
        self.bitmap.release_many(some)
        self.held.difference_update(some)

    def through_bytes(self) -> None:
        data = self.bitmap.to_bytes()
        self.bitmap = Bitmap.from_bytes(data)
        assert self.bitmap.to_bytes() == data

    def look(self) -> None:
        self.bitmap._check()
        assert len(self.bitmap) == len(self.held)
        ordered, i = sorted(self.held), self.any()
        behind = ordered[bisect_left(ordered, i) :]
        assert (i in self.bitmap) == (i in self.held)
        assert self.bitmap.next_set(i) == (behind[0] if behind else None)
        assert self.bitmap.next_free(i) == self.next_free(i)
        before = ordered[: bisect_right(ordered, i)]
        assert self.bitmap.previous_set(i) == (before[-1] if before else None)
        n = self.chance.choice((1, 3, 100, 1 << 20))
        assert self.bitmap.next_block(n, i) == self.next_block(n, i, behind)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_lists_agree_with_a_set(size: int, seed: int) -> None:
    walk = Walk(size, seed)
    often = [Walk.reserve] * 8 + [Walk.release] * 4 + [Walk.acquire, Walk.through_bytes]
    seldom = [Walk.take_runs, Walk.take_block, Walk.take_into, Walk.release_many]
    for step in range(700):
        walk.chance.choice(often)(walk)
        if step % 20 == 0:
            walk.chance.choice(seldom)(walk)
            walk.look()
    assert list(walk.bitmap) == sorted(walk.held)
    for i in walk.held:
        walk.bitmap.release(i)
    walk.bitmap._check()
    assert len(walk.bitmap) == 0


@pytest.mark.parametrize("network", ["fd00::1/64", "10.0.0.1/8"])
def test_a_scattered_address_weighs_tens_of_bytes(network: str) -> None:
    """In a tree of nodes alone it was 4 KiB in a /64, half of one in a /8."""
    chance = random.Random(3)
    allocator = IPAllocator(network)
    empty = allocator.nbytes
    for i in {chance.randrange(allocator.size) for _ in range(3000)}:
        allocator.reserve(allocator.address(i))
    assert (allocator.nbytes - empty) / 3000 < 48
    again = IPAllocator.from_bytes(allocator.to_bytes())
    assert (again.nbytes - empty) / 3000 < 48
    again._check()


def loners() -> Bitmap:
    """One full list of fifteen, lists of two and of one, and a node beside them."""
    bitmap = Bitmap(2**64)
    for i in range(15):
        bitmap.reserve(2**60 + i * 2**20)
    for i in (5 * 2**60, 5 * 2**60 + 2**40, 7 * 2**60, 9 * 2**60, 9 * 2**60 + 4095):
        bitmap.reserve(i)
    bitmap.cursor = 2**61
    bitmap.acquire()
    return bitmap


STEPS: dict[str, Callable[[Bitmap], object]] = {
    "another list": lambda b: b.reserve(11 * 2**60),
    "one more in a list": lambda b: b.reserve(7 * 2**60 + 7),
    "one too many": lambda b: b.reserve(2**60 + 3),
    "where the size ends": lambda b: b.reserve(2**64 - 1),
    "acquire within": lambda b: (setattr(b, "cursor", 2**60), b.acquire()),
    "fill over": lambda b: (setattr(b, "cursor", 2**60 - 50), b.acquire_ranges(2**23)),
    "a block over": lambda b: (setattr(b, "cursor", 5 * 2**60 - 9), b.acquire_block(2**30)),
    "release many": lambda b: b.release_many([9 * 2**60 + 4095, 5 * 2**60, 2**60]),
    "through bytes": lambda b: Bitmap.from_bytes(b.to_bytes()),
}


@pytest.mark.parametrize("name", STEPS)
def test_without_memory_nothing_has_changed(name: str) -> None:
    bitmap = loners()
    bitmap.cursor = 0
    held = list(bitmap.runs())

    def unchanged() -> None:
        bitmap._check()
        assert list(bitmap.runs()) == held

    assert each_failure(lambda: STEPS[name](bitmap), unchanged)
    bitmap._check()


def test_a_release_out_of_a_list_needs_no_memory() -> None:
    bitmap = loners()
    for i in (2**60 + 2**20, 7 * 2**60):
        assert each_failure(partial(bitmap.release, i), bitmap._check) == 0
    bitmap._check()
