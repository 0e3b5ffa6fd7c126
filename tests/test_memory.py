"""What an allocator weighs: by its own account, and by the process's."""

import subprocess
import sys
from array import array

import pytest

from netalloc import Bitmap, IPAllocator

KIB = 1024


def filled(n: int, network: str = "10.0.0.1/8") -> IPAllocator:
    allocator = IPAllocator(network)
    allocator.acquire_into(array("Q", [0]) * n)
    return allocator


def one_by_one(n: int) -> IPAllocator:
    allocator = IPAllocator("10.0.0.1/8")
    for _ in range(n):
        allocator.acquire_int()
    return allocator


def full() -> IPAllocator:
    allocator = IPAllocator("10.0.0.1/8")
    allocator.acquire_block(allocator.capacity)
    return allocator


def full_one_by_one() -> Bitmap:
    bitmap = Bitmap(2**18)
    for _ in range(2**18):
        bitmap.acquire()
    return bitmap


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (lambda: filled(0), 1 * KIB),
        (lambda: filled(0, "10.0.0.0/8"), 1 * KIB),
        (lambda: filled(1000), 2 * KIB),
        (lambda: one_by_one(1000), 2 * KIB),
        (lambda: filled(1_000_000), 8 * KIB),
        (lambda: one_by_one(1_000_000), 8 * KIB),
        (full, 1 * KIB),
        (full_one_by_one, 1 * KIB),
        (lambda: filled(0, "fd00::1/64"), 1 * KIB),
        (lambda: filled(1, "fd00::1/64"), 8 * KIB),
    ],
)
def test_own_account(make: object, limit: int) -> None:
    assert make().nbytes <= limit  # type: ignore[operator]


def test_an_empty_64_weighs_what_an_empty_8_does() -> None:
    assert IPAllocator("fd00::1/64").nbytes == IPAllocator("10.0.0.1/8").nbytes


def test_the_formula_of_the_readme() -> None:
    """256 bytes at most, and 544 for each mixed block of 4096 and each above it; less for lists."""
    empty = IPAllocator("10.0.0.1/8").nbytes
    assert empty <= 256
    for blocks in (1, 10, 60):
        allocator = IPAllocator("10.0.0.1/8")
        for k in range(blocks):
            for i in range(16):
                allocator.reserve(f"10.{k // 16}.{16 * (k % 16) + i}.9")
        assert allocator.nbytes == empty + 544 * (blocks + 1 + (blocks + 63) // 64)


HALF_FULL = """
import random, resource, sys
from array import array
from netalloc import Bitmap

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

chosen = random.Random(1)
spare = [Bitmap(2**24) for _ in range(8)]
block = array("Q", range(4096))
before = resident()
for bitmap in spare:
    for leaf in range(0, 2**24, 4096):
        for i in chosen.sample(range(4096), 16):
            bitmap.reserve(leaf + i)
print((resident() - before) / len(spare), spare[0].nbytes)
"""


def test_the_process_agrees_when_every_block_is_mixed() -> None:
    """Resident memory of eight half-full /8s, per allocator: the nodes and nothing besides."""
    done = subprocess.run(
        [sys.executable, "-c", HALF_FULL], capture_output=True, text=True, check=True
    )
    resident, own = map(float, done.stdout.splitlines()[-1].split())
    assert own <= 2.3 * KIB * KIB
    assert resident == pytest.approx(own, rel=0.05)


COME_AND_GO = """
from netalloc import Bitmap, IPAllocator

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1])

def work():
    for _ in range(2000):
        a = IPAllocator("10.0.0.5/8", cooldown=0.0)
        a.release(a.acquire())
        b = Bitmap(2**64)
        b.release_many([i for start, stop in b.acquire_ranges(5000) for i in range(start, stop)])
        Bitmap.from_bytes(b.to_bytes())
        try:
            Bitmap.from_bytes(b.to_bytes()[:-1])
        except Exception:
            pass

work()
before = resident()
for _ in range(5):
    work()
print(resident() - before)
"""


def test_nothing_leaks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COME_AND_GO], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.splitlines()[-1]) < 50, "pages of 4 KiB, after 10,000 more rounds"
