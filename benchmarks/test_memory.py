"""A store in memory: what a lease costs and weighs, and that it costs the same beside many.

Each floor is what one would write by hand for one process without threads, errors, or
anything to undo: a record, two dicts to find it by, an object to hand out.
"""

import gc
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from itertools import count
from typing import Any, NamedTuple

import pytest

from netalloc import ExhaustedError, InUseError, IPAllocator, NetworkInterface, NetworkManager
from promised import check, ratio

CALLS = 200  # less than a millisecond a turn
MANY = 500_000


class Record(NamedTuple):
    """The fields of a lease."""

    network: int
    ip: IPv4Address
    generation: int
    publications: int
    owner: str | None
    key: str | None
    since_ns: int


class Held:
    """What an interface holds."""

    __slots__ = ("labels", "released", "service", "what")

    def __init__(self, service: "ByHand", what: Record) -> None:
        self.service = service
        self.what = what
        self.labels = None
        self.released = False


class ByHand:
    """Addresses and who has them, and those that had them last."""

    def __init__(self) -> None:
        self._allocator = IPAllocator("10.0.0.1/8")
        self._by_ip: dict[IPv4Address, Record] = {}
        self._by_owner: dict[str, Record] = {}
        self._generation = 0
        self._past: deque[tuple[Record, int]] = deque(maxlen=10_000)

    def allocate(self, owner: str) -> Held:
        ip = self._allocator.acquire()
        self._generation += 1
        record = Record(1, ip, self._generation, 0, owner, None, time.time_ns())
        self._by_ip[ip] = record
        self._by_owner[owner] = record
        return Held(self, record)

    def release(self, held: Held) -> None:
        record = held.what
        assert record.owner is not None
        del self._by_ip[record.ip]
        del self._by_owner[record.owner]
        self._past.append((record, time.time_ns()))
        self._allocator.release(record.ip)
        held.released = True


OWNERS = [f"container-{i}" for i in range(CALLS)]


@contextmanager
def managed(held: int = 0, network: str = "10.0.0.1/8", **options: Any) -> Iterator[NetworkManager]:
    """A manager in memory, with so many leases of nothing in particular."""
    with NetworkManager("br0", network=network, backend="null", **options) as manager:
        manager.allocate_many(held)
        yield manager


def turns(
    allocate: Callable[[str], Any], release: Callable[[Any], Any]
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Allocating for each owner, and releasing what that gave, one after the other."""
    held: list[Any] = []

    def take() -> None:
        held.extend([allocate(owner) for owner in OWNERS])

    def give_back() -> None:
        for one in held:
            release(one)
        held.clear()

    return take, give_back


def best_of(rounds: int, *steps: Callable[[], object]) -> list[float]:
    """The seconds of each step at its best, in turns, the collector paused."""
    best = [float("inf")] * len(steps)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for i, step in enumerate(steps):
                begin = time.perf_counter()
                step()
                best[i] = min(best[i], time.perf_counter() - begin)
    finally:
        gc.enable()
    return best


def test_allocate_and_release_beside_the_same_by_hand() -> None:
    hand = ByHand()
    with managed() as manager:
        steps = (
            *turns(manager.allocate, NetworkInterface.release),
            *turns(hand.allocate, hand.release),
        )

        def measure(which: int) -> Callable[[], float]:
            def measured() -> float:
                best = best_of(400, *steps)
                return best[which] / best[which + 2]

            return measured

        check("allocate in memory : the same by hand", measure(0), 2.5)
        # It writes the history that the one by hand keeps in a deque, in tables that can be asked.
        check("release in memory : the same by hand", measure(1), 7)


WEIGHT = """
import gc, sys
from netalloc import NetworkManager

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

n = 100_000
manager = NetworkManager("br0", network="10.0.0.1/8", backend="null")
manager.allocate("first").release()
owners = [f"container-{i}" if sys.argv[1] == "owner" else None for i in range(n)]
held = [None] * n
gc.collect()
before = resident()
for i in range(n):
    held[i] = manager.allocate(owners[i])
print((resident() - before) / n)
"""


@pytest.mark.parametrize("kind", ["owner", "none"])
def test_a_lease_weighs_little(kind: str) -> None:
    """Resident bytes of each of 100,000 leases with its interface; the owner is the caller's."""

    def weigh() -> float:
        done = subprocess.run(
            [sys.executable, "-c", WEIGHT, kind], capture_output=True, text=True, check=True
        )
        return float(done.stdout.splitlines()[-1])

    check(f"bytes a lease, interface included, owner: {kind}", weigh, 600)


def test_the_collector_does_not_go_through_the_leases() -> None:
    """Milliseconds that a full collection takes longer with 500,000 leases, interfaces held."""

    def collection() -> float:
        return best_of(5, gc.collect)[0] * 1e3

    def longer() -> float:
        without = collection()
        with managed() as manager:
            held = [manager.allocate(f"container-{i}") for i in range(MANY)]
            beside = collection()
            assert not gc.is_tracked(held[0]) and not gc.is_tracked(held[0]._lease)
        return beside - without

    check("ms of a full collection with 500,000 leases, less without", longer, 20)


def refused(work: Callable[[], object], error: type[Exception]) -> None:
    try:
        work()
    except error:
        return
    raise AssertionError("it was not refused")


KINDS: dict[str, Callable[[NetworkManager], object]] = {
    "known key": lambda m: m.allocate("web", key="eth0"),
    "find(owner)": lambda m: m.find("web"),
    "find(label)": lambda m: m.find(label=("app", "shop")),
    "an address that is held": lambda m: refused(lambda: m.allocate(ip="10.0.0.2"), InUseError),
    "a key with another address": lambda m: refused(
        lambda: m.allocate("web", "10.9.9.9", key="eth0"), InUseError
    ),
    "a reserved address": lambda m: refused(lambda: m.reserve("10.250.0.1", "x"), InUseError),
    "allocate and release": lambda m: m.allocate("other").release(),
}


@pytest.fixture(scope="module")
def both() -> Iterator[list[NetworkManager]]:
    """One manager with hardly anything, one with half a million leases."""
    with managed() as few, managed() as many:
        for manager in (few, many):
            manager.allocate("web", key="eth0", labels={"app": "shop"})
            manager.reserve("10.250.0.1", "db")
        for i in range(MANY // 10):  # of every kind, not of one owner alone
            many.allocate(f"crowd-{i}", key="eth0", labels={"app": f"app-{i}"})
        many.allocate_many(MANY // 2, owner="crowd")
        many.allocate_many(MANY - MANY // 2 - MANY // 10)
        yield [few, many]


@pytest.mark.parametrize("name", KINDS)
def test_it_costs_the_same_with_500_000_held(both: list[NetworkManager], name: str) -> None:
    few, many = both

    def step(manager: NetworkManager) -> Callable[[], None]:
        def calls() -> None:
            for _ in range(200):
                KINDS[name](manager)

        return calls

    check(f"{name}, at 500,000 held : at none", lambda: ratio(step(many), step(few), 40), 1.5)


def test_one_of_100_000_of_an_owner_is_released_as_one_of_few() -> None:
    with managed() as few, managed() as many:
        many.allocate_many(100_000, owner="crowd")

        def step(manager: NetworkManager) -> Callable[[], None]:
            def calls() -> None:
                for _ in range(200):
                    manager.allocate("crowd").release()

            return calls

        check(
            "allocate and release for an owner of 100,000 : of none",
            lambda: ratio(step(many), step(few), 40),
            1.5,
        )


def full(cooling: int) -> tuple[NetworkManager, Callable[[], None]]:
    """An exhausted network of which so many addresses cool down, and asking it in vain."""
    manager = NetworkManager("br0", network="10.0.0.1/16", backend="null", cooldown=1e6)
    manager.allocate_many(cooling, owner="gone")
    manager.release("gone")
    manager.allocate_many(65533 - cooling)

    def calls() -> None:
        for _ in range(50):
            refused(lambda: manager.allocate("web"), ExhaustedError)

    return manager, calls


def test_an_exhausted_network_says_so_however_many_cool_down() -> None:
    (few, few_calls), (many, many_calls) = full(200), full(60_000)
    with few, many:
        check(
            "exhausted, 60,000 cooling : 200",
            lambda: ratio(many_calls, few_calls, 40),
            1.5,
        )


def test_a_million_that_cool_down_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is taken back and another one cools down, at each step."""
    clock = count(1_000_000_000, 1_000_000)
    monkeypatch.setattr("netalloc.ipam.addresses.boot_clock", lambda: next(clock))

    def step(cooling: int) -> tuple[NetworkManager, Callable[[], None]]:
        # Each step is two looks at the clock: so many of them cool at a time.
        seconds = max(cooling, 10) * 2 / 1000
        manager = NetworkManager("br0", network="10.0.0.1/8", backend="null", cooldown=seconds)
        manager.allocate_many(cooling, owner="gone")
        manager.release("gone")
        for _ in range(2000):
            manager.allocate("web").release()

        def calls() -> None:
            for _ in range(200):
                manager.allocate("web").release()

        return manager, calls

    (few, few_calls), (many, many_calls) = step(0), step(1_000_000)
    with few, many:
        check(
            "allocate and release, 1,000,000 cooling : few",
            lambda: ratio(many_calls, few_calls, 40),
            1.5,
        )
