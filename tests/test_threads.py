"""One allocator for many threads, and one on each side of a fork."""

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from netalloc import IPAllocator, NotAllocatedError


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Threads change places as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def together(work: Callable[[int], None], threads: int = 8) -> None:
    """Run in so many threads, started at one moment; an error in any fails."""
    barrier = threading.Barrier(threads)
    errors: list[BaseException] = []

    def run(k: int) -> None:
        try:
            barrier.wait()
            work(k)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(k,)) for k in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.usefixtures("eager_switches")
def test_no_address_has_two_holders() -> None:
    allocator = IPAllocator("10.0.0.9/22")
    holders: Counter[int] = Counter()

    def churn(k: int) -> None:
        mine: list[int] = []
        for step in range(5000):
            if step % 3 == 2 or len(mine) > 100:
                ip = mine.pop(0)
                holders[ip] -= 1  # before it is free again, or another could see two
                allocator.release(ip)
            else:
                ip = allocator.acquire_int()
                holders[ip] += 1
                assert holders[ip] == 1, f"{ip:#x} has two holders"
                mine.append(ip)
        for ip in mine:
            holders[ip] -= 1
            allocator.release(ip)

    together(churn)
    assert len(allocator) == 0
    allocator._check()


@pytest.mark.usefixtures("eager_switches")
def test_one_release_wins() -> None:
    allocator = IPAllocator("10.0.0.1/16")
    given = [allocator.acquire() for _ in range(2000)]
    won: Counter[int] = Counter()

    def release_all(k: int) -> None:
        for ip in given:
            try:
                allocator.release(ip)
            except NotAllocatedError:
                continue
            won[k] += 1

    together(release_all)
    assert sum(won.values()) == 2000
    assert len(allocator) == 0


def test_fork_leaves_one_allocator_on_each_side() -> None:
    allocator = IPAllocator("10.0.0.1/16")
    allocator.acquire_many(5000)
    child = os.fork()
    if child == 0:
        try:
            allocator.acquire_many(10_000)
            allocator._check()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(allocator) == 5000
    allocator._check()
