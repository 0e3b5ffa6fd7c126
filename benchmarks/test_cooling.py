"""What a call costs where a million addresses cool down, or have just cooled."""

from collections.abc import Callable, Iterator
from itertools import chain

import pytest

from netalloc import ExhaustedError, IPAllocator
from test_ports import ratio

FEW, MANY = 10_000, 1_000_000  # more than all the calls take back
REST = 10.0  # seconds


class Cooling:
    """An allocator of a /8 in which so many cool down, and 300,000 more are held."""

    def __init__(self, n: int, after: float) -> None:
        self.now = 0.0
        self.allocator = IPAllocator("10.0.0.1/8", cooldown=REST, clock=lambda: self.now)
        held = self.allocator.acquire_many(n + 300_000)
        self.allocator.release_many(held[:n])
        self.now += after
        self.cooling, self.held = held[0], iter(held[n:])


class Exhausted:
    """One in which all cool down."""

    def __init__(self, bits: int, after: float) -> None:
        self.now = 0.0
        self.allocator = IPAllocator(f"10.0.0.1/{bits}", cooldown=REST, clock=lambda: self.now)
        self.allocator.release_many(self.allocator.acquire_many(self.allocator.available))
        self.now += after


def refused(call: Callable[[], object]) -> Callable[[], None]:
    def step() -> None:
        with pytest.raises(ExhaustedError):
            call()

    return step


def while_cooling(state: Cooling) -> Iterator[tuple[str, Callable[[], object]]]:
    allocator = state.allocator
    yield "acquire", allocator.acquire
    yield "acquire_many(100)", lambda: allocator.acquire_many(100)
    yield "acquire_block(4)", lambda: allocator.acquire_block(4)
    yield "release", lambda: allocator.release(next(state.held))
    yield "available", lambda: allocator.available
    yield "len", lambda: len(allocator)
    yield "in", lambda: state.cooling in allocator


def while_exhausted(state: Exhausted) -> Iterator[tuple[str, Callable[[], object]]]:
    allocator = state.allocator
    yield "a refused acquire", refused(allocator.acquire)
    yield "a refused acquire_many(2)", refused(lambda: allocator.acquire_many(2))
    yield "a refused acquire_block(2)", refused(lambda: allocator.acquire_block(2))


@pytest.mark.parametrize("after", [0.0, REST])
def test_a_call_costs_the_same_whatever_cools(after: float) -> None:
    sides = [while_cooling(Cooling(n, after)) for n in (MANY, FEW)]
    if not after:
        exhausted = [while_exhausted(Exhausted(bits, after)) for bits in (12, 22)]
        sides = [chain(*pair) for pair in zip(sides, exhausted, strict=True)]
    state = "have cooled" if after else "cool"
    for (what, ours), (_, base) in zip(*sides, strict=True):
        found = ratio((ours, int), (base, int), 100)
        print(f"{what}, of which 1,000,000 {state} : 10,000 {found:20.2f}  of 1.5")
        assert found <= 1.5, what
