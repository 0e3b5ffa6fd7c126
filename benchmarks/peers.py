"""The core beside what else a Python user would pick, on the same work, in one table.

    fill it    the next free address, a million times, from an empty /8
    half full  release one at random and acquire the next, on a /8 half full at random
    one hole   acquire in a full /8 with one hole just behind the cursor
    memory     what a full /8 adds to the process

Each peer gets the way its own documentation suggests for "the next free one after the last".
Times are medians over turns that go round all of them; work that would take minutes is done
on a part and marked with ~ (a first fit gets slower as it goes).
"""

import argparse
import gc
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from ipaddress import ip_network
from time import perf_counter
from typing import Any

from tables import markdown

SIZE = 2**24
SEED = 1
WORK = ("fill it, each", "half full: release and acquire", "one hole just behind the cursor")


class Peer:
    """The next free ordinal of `size` after the last one given; subclasses name their library."""

    name = ""
    needs = ""
    fill = 200_000  # how many to acquire to fill it
    half = True  # whether half of a /8 can be taken at random in reasonable time
    whole = True  # whether a /8 can be filled

    def __init__(self, size: int) -> None:
        self.size = size
        self.cursor = 0

    def acquire(self) -> int:
        raise AssertionError

    def release(self, i: int) -> None:
        raise AssertionError

    def take(self, ordinals: Any) -> None:
        """Mark these as taken, as fast as the library can."""
        raise AssertionError


class Ours(Peer):
    name = "netalloc"
    fill = 1_000_000

    def __init__(self, size: int) -> None:
        from netalloc import Bitmap

        self.bitmap = Bitmap(size)
        self.acquire = self.bitmap.acquire  # type: ignore[method-assign]
        self.release = self.bitmap.release  # type: ignore[method-assign]

    def take(self, ordinals: Any) -> None:
        import numpy as np

        self.bitmap.acquire_ranges(self.bitmap.size)
        free = np.ones(self.bitmap.size, dtype=bool)
        free[ordinals] = False
        self.bitmap.release_many(np.flatnonzero(free).astype(np.uint64))
        self.bitmap.cursor = 0


class Bitarray(Peer):
    name = "bitarray, `find`"
    needs = "bitarray"

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.bits = import_module("bitarray").bitarray(size)
        self.bits.setall(0)

    def acquire(self) -> int:
        i: int = self.bits.find(0, self.cursor)
        if i < 0:
            i = self.bits.find(0)
        self.bits[i] = 1
        self.cursor = i + 1
        return i

    def release(self, i: int) -> None:
        self.bits[i] = 0

    def take(self, ordinals: Any) -> None:
        import numpy as np

        taken = np.zeros(self.size, dtype=np.uint8)
        taken[ordinals] = 1
        self.bits = import_module("bitarray").bitarray(taken.astype(bool).tolist())


class Bytes(Bitarray):
    name = "bytearray, `find`"
    needs = ""

    def __init__(self, size: int) -> None:
        Peer.__init__(self, size)
        self.bits = bytearray(size)

    def take(self, ordinals: Any) -> None:
        import numpy as np

        np.frombuffer(self.bits, dtype=np.uint8)[ordinals] = 1


class Numpy(Peer):
    name = "numpy, a bool array and `argmin`"
    needs = "numpy"

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.taken = import_module("numpy").zeros(size, dtype=bool)

    def acquire(self) -> int:
        i = self.cursor + int(self.taken[self.cursor :].argmin()) if self.cursor < self.size else 0
        if self.taken[i]:
            i = int(self.taken.argmin())
        self.taken[i] = True
        self.cursor = i + 1
        return i

    def release(self, i: int) -> None:
        self.taken[i] = False

    def take(self, ordinals: Any) -> None:
        self.taken[ordinals] = True


class Dict(Peer):
    name = "a dict and a loop"
    whole = False  # 1.1 GiB

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.taken: dict[int, None] = {}

    def acquire(self) -> int:
        i = self.cursor
        while i in self.taken:
            i = (i + 1) % self.size
        self.taken[i] = None
        self.cursor = (i + 1) % self.size
        return i

    def release(self, i: int) -> None:
        del self.taken[i]

    def take(self, ordinals: Any) -> None:
        self.taken = dict.fromkeys(ordinals.tolist())


class Hosts(Peer):
    name = "`hosts()` and a set"
    whole = False  # 1.8 GiB
    half = False

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.network = ip_network("10.0.0.0/8")
        self.hosts = self.network.hosts()
        self.taken: set[Any] = set()

    def acquire(self) -> Any:
        for ip in self.hosts:
            if ip not in self.taken:
                self.taken.add(ip)
                return ip
        self.hosts = self.network.hosts()
        return self.acquire()

    def release(self, ip: Any) -> None:
        self.taken.remove(ip)


class Netaddr(Peer):
    name = "netaddr `IPSet` of the free"
    needs = "netaddr"
    fill = 300
    half = whole = False

    def __init__(self, size: int) -> None:
        super().__init__(size)
        netaddr = import_module("netaddr")
        self.free = netaddr.IPSet(["10.0.0.0/8"])

    def acquire(self) -> Any:
        ip = next(iter(self.free))
        self.free.remove(ip)
        return ip

    def release(self, ip: Any) -> None:
        self.free.add(ip)


class AddrPool(Peer):
    name = "pyroute2 `AddrPool` (first fit)"
    needs = "pyroute2"
    fill = 20_000
    half = whole = False

    def __init__(self, size: int) -> None:
        super().__init__(size)
        pool = import_module("pyroute2.common").AddrPool(minaddr=1, maxaddr=size)
        self.acquire = pool.alloc  # type: ignore[method-assign]
        self.release = pool.free  # type: ignore[method-assign]


PEERS: list[type[Peer]] = [Ours, Bitarray, Bytes, Numpy, Dict, Hosts, Netaddr, AddrPool]


# ---- the work


def fill(peer: type[Peer], turns: int) -> Callable[[], float]:
    def turn() -> float:
        acquire = peer(SIZE).acquire
        gc.collect()
        start = perf_counter()
        for _ in range(peer.fill):
            acquire()
        return (perf_counter() - start) / peer.fill

    return turn


def churn(peer: type[Peer]) -> Callable[[], float]:
    import numpy as np

    chosen = np.random.default_rng(SEED)
    taken = np.flatnonzero(chosen.random(SIZE) < 0.5)
    state = peer(SIZE)
    state.take(taken)
    held = chosen.choice(taken, 20_000, replace=False).tolist()
    order = random.Random(SEED)

    def turn() -> float:
        picks = [order.randrange(len(held)) for _ in range(2000)]
        start = perf_counter()
        for k in picks:
            state.release(held[k])
            held[k] = state.acquire()
        return (perf_counter() - start) / len(picks)

    return turn


def hole(peer: type[Peer]) -> Callable[[], float]:
    import numpy as np

    state = peer(SIZE)
    state.take(np.arange(SIZE))
    middle = SIZE // 2

    def turn() -> float:
        for step in range(2):  # the second leaves the cursor behind the hole
            state.release(middle)
            start = perf_counter()
            i = state.acquire()
            seconds = perf_counter() - start
            assert i == middle, f"{i} at step {step}"
        return seconds

    return turn


RESIDENT = """
import sys
sys.path.insert(0, {here!r})
import numpy as np, resource
from peers import {peer}, SIZE

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

ordinals = np.arange(SIZE)
{peer}(64).take(np.arange(64))
before = resident()
state = {peer}(SIZE)
state.take(ordinals)
print(max(resident() - before, 0))
"""


def resident(peer: type[Peer]) -> float:
    """What a full /8 adds to a process of its own."""
    code = RESIDENT.format(here=str(__file__).rsplit("/", 1)[0], peer=peer.__name__)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    for unit, scale in (("ns", 1e9), ("µs", 1e6), ("ms", 1e3)):
        if value * scale < 1000:
            return f"{value * scale:.3g} {unit}"
    return f"{value:.3g} s"


def size(value: float | None) -> str:
    if value is None:
        return ""
    for unit, scale in (("KiB", 2**10), ("MiB", 2**20)):
        if value / scale < 1000:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 2**30:.3g} GiB"


def medians(work: dict[str, Callable[[], float]], turns: int) -> dict[str, float]:
    """The median of so many turns of each, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(turns):
        for name, turn in work.items():
            times[name].append(turn())
    return {name: statistics.median(all_times) for name, all_times in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    w1 = medians({peer.name: fill(peer, turns) for peer in PEERS}, turns)
    w2 = medians({peer.name: churn(peer) for peer in PEERS if peer.half}, 4 * turns)
    w3 = medians({peer.name: hole(peer) for peer in PEERS if peer.whole}, turns)
    memory = {peer.name: resident(peer) for peer in PEERS if peer.half}
    rows = [["", *WORK, "memory when full"]]
    for peer in PEERS:
        name = peer.name
        times = [seconds(w1[name]), seconds(w2.get(name)), seconds(w3.get(name))]
        if peer.fill < 100_000:
            times[0] = f"~ {times[0]}"
        rows.append([name, *times, size(memory.get(name))])
    print(markdown(rows))
    for what, row in zip((*WORK, "memory"), (w1, w2, w3, memory), strict=True):
        first = min(row, key=lambda name: row[name])
        if first != Ours.name:
            print(f"{what}: {first} is ahead of netalloc")


if __name__ == "__main__":
    main()
