"""Every allocation of the core made to fail: a MemoryError, and nothing has changed."""

import os
import random
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from netalloc import Bitmap, IPAllocator

try:
    import _testcapi as testcapi
except ImportError:  # some distributions leave it out
    assert os.environ.get("CI") != "true", "in CI nothing is skipped: _testcapi is missing"
    pytest.skip("this Python cannot inject failures", allow_module_level=True)

STEPS: dict[str, Callable[[Bitmap], Any]] = {
    "acquire": lambda b: b.acquire(),
    "reserve": lambda b: b.reserve(2**24 - 5),
    "release": lambda b: b.release(9000),
    "discard": lambda b: b.discard(9000),
    "acquire_ranges": lambda b: b.acquire_ranges(70_000),
    "acquire_block": lambda b: b.acquire_block(70_000),
    "next_block": lambda b: b.next_block(70_000, 0),
    "previous_set": lambda b: b.previous_set(2**24 - 1),
    "counts": lambda b: b.counts(-5, 300, 1000),
    "to_bytes": lambda b: b.to_bytes(),
    "from_bytes": lambda b: Bitmap.from_bytes(BYTES),
    "cursor": lambda b: setattr(b, "cursor", 7),
}


def used() -> Bitmap:
    """Full blocks, mixed blocks and empty ones."""
    bitmap = Bitmap(2**24)
    bitmap.acquire_ranges(20_000)
    chosen = random.Random(1)
    for _ in range(100):
        bitmap.discard(chosen.randrange(12_288, 20_000))
    bitmap.cursor = 100_000
    return bitmap


BYTES = used().to_bytes()


def each_failure(step: Callable[[], Any], unchanged: Callable[[], None]) -> int:
    """Fail the first, second, ... allocation of a step, until it needs no more; how many failed."""
    for n in range(5000):
        testcapi.set_nomemory(n, 0)
        try:
            step()
        except MemoryError:
            failed = True
        else:
            failed = False
        finally:
            testcapi.remove_mem_hooks()
        if not failed:
            return n
        unchanged()
    raise AssertionError("5,000 allocations for one step")


@pytest.mark.parametrize("name", STEPS)
def test_bitmap_is_unharmed(name: str) -> None:
    bitmap = used()
    before = bitmap.to_bytes()

    def unchanged() -> None:
        bitmap._check()
        assert bitmap.to_bytes() == before

    step = STEPS[name]
    failures = each_failure(lambda: step(bitmap), unchanged)
    assert failures or name in ("cursor",)
    bitmap._check()


@pytest.mark.parametrize("given", [range(0, 12_000, 7), [5000, 100, 9000]])
def test_release_many_is_unharmed(given: range | list[int]) -> None:
    """Opening full blocks needs memory; those opened already are closed again."""
    bitmap = used()
    before = bitmap.to_bytes()
    ordinals = array("Q", given)

    def unchanged() -> None:
        bitmap._check()
        assert bitmap.to_bytes() == before

    assert each_failure(lambda: bitmap.release_many(ordinals), unchanged) > 2
    assert bitmap.available == 2**24 - len(Bitmap.from_bytes(before)) + len(ordinals)


def test_acquire_into_is_unharmed() -> None:
    bitmap = used()
    before = bitmap.to_bytes()
    target = array("Q", [0]) * 70_000

    def unchanged() -> None:
        bitmap._check()
        assert bitmap.to_bytes() == before

    assert each_failure(lambda: bitmap.acquire_into(target), unchanged) > 2


@pytest.mark.parametrize("cooldown", [0.0, 60.0])
@pytest.mark.parametrize(
    "method", ["acquire", "acquire_int", "reserve", "release", "acquire_many", "release_many"]
)
def test_allocator_is_unharmed(method: str, cooldown: float) -> None:
    allocator = IPAllocator("10.0.0.9/8", cooldown=cooldown)
    allocator.acquire_block(4096 * 3 - 5)
    taken = list(allocator.runs())
    argument: tuple[Any, ...] = ()
    if method in ("reserve", "release"):
        argument = ("10.0.20.7" if method == "release" else "10.77.0.1",)
    elif method == "acquire_many":
        argument = (300,)
    elif method == "release_many":
        argument = ([f"10.0.{k}.5" for k in range(1, 40)],)

    def unchanged() -> None:
        allocator._check()
        assert list(allocator.runs()) == taken

    assert each_failure(lambda: getattr(allocator, method)(*argument), unchanged)
    allocator._check()
