"""The durable path beside bare SQLite: the same rows, pragmas and isolation, by the same module."""

import fcntl
import gc
import os
import sqlite3
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from netalloc import NetworkManager
from promised import check, ratio

LEASE = "INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
ENDED = "INSERT INTO ended_lease VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
PORT = "INSERT INTO publication VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
COUNT = "UPDATE lease SET publications = ?, crc = ? WHERE network = ? AND ordinal = ?"
STATE = "UPDATE state SET sequence = ?, boot = ?, counters = ?, journals = ?, crc = ? WHERE id = 0"
COUNTERS = "store=123456789012 network=2 networks=2 bitmaps=1 generation=1234"
Execute = Callable[..., object]


class Bare:
    """A file with the tables of a store, and what an allocation writes there, by hand."""

    def __init__(self, path: Path, like: Path) -> None:
        with sqlite3.connect(like) as made:
            tables = made.execute("SELECT sql FROM sqlite_schema WHERE sql > ''").fetchall()
        made.close()
        self._raw = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "wal_autocheckpoint = 8000"):
            self._raw.execute(f"PRAGMA {pragma}")
        for (sql,) in tables:
            self._raw.execute(sql)
        self._raw.execute("INSERT INTO state VALUES (0, 1, '', '', '', 1)")
        self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT)
        self._take, self._give = (
            struct.pack("@hhqqi4x", kind, os.SEEK_SET, 1, 1, 0)
            for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK)
        )
        self.held = self._changes = 0

    def close(self) -> None:
        self._raw.close()
        os.close(self._lock)

    def allocate(self, n: int = 1) -> None:
        """n leases in one transaction."""

        def rows(execute: Execute) -> None:
            first, now = self.held, time.time_ns()
            self.held += n
            made = [(1, first + i, first + i, 0, "web", None, now, 12345678) for i in range(n)]
            if n == 1:
                execute(LEASE, made[0])
            else:
                self._raw.executemany(LEASE, made)

        self._change(rows)

    def release(self, ordinal: int) -> None:
        """One lease goes, and is remembered."""

        def rows(execute: Execute) -> None:
            execute("DELETE FROM lease WHERE network = ? AND ordinal = ?", (1, ordinal))
            now = time.time_ns()
            execute(ENDED, (self._changes, 1, ordinal, ordinal, "web", None, now, now, 12345678))

        self._change(rows)

    def allocate_port(self, ordinal: int, port: int) -> None:
        """One port of a lease, which counts it."""

        def rows(execute: Execute) -> None:
            execute(PORT, (1, ordinal, 0, "tcp", port, 1, 80, 12345678))
            execute(COUNT, (1, 23456789, 1, ordinal))

        self._change(rows)

    def _change(self, rows: Callable[[Execute], None]) -> None:
        """A transaction, under a lock as ours is."""
        fcntl.fcntl(self._lock, fcntl.F_OFD_SETLK, self._take)
        execute = self._raw.execute
        self._changes += 1
        execute("BEGIN IMMEDIATE")
        execute("SELECT sequence, crc FROM state").fetchall()
        rows(execute)
        journal = f"addresses/1 {self.held} +0:{self.held} "
        execute(STATE, (self._changes, "b" * 36, COUNTERS, journal, 12345678))
        execute("COMMIT")
        fcntl.fcntl(self._lock, fcntl.F_OFD_SETLK, self._give)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory: what is measured is the path through SQLite, not the disk."""
    with TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def opened(folder: Path, network: str, stack: ExitStack) -> NetworkManager:
    """A manager that touches no kernel, over a file of its own."""
    path = folder / f"{network.partition('/')[0]}.db"
    manager = NetworkManager("br0", network=network, backend="null", store=path)
    return stack.enter_context(manager)


def percentile(step: Callable[[], object], times: int, share: float) -> float:
    """How long a step takes at most, for that share of them."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        step()
        found.append(time.perf_counter() - begin)
    return sorted(found)[int(times * share)]


def in_turns(ours: list[Callable[[], object]], base: list[Callable[[], object]]) -> float:
    """One call of ours and one of the base in turns; the ratio of their quicker quarters."""
    pairs = []
    gc.collect()
    gc.disable()
    try:
        for one, two in zip(ours, base, strict=True):
            begin = time.perf_counter()
            one()
            middle = time.perf_counter()
            two()
            pairs.append((middle - begin, time.perf_counter() - middle))
    finally:
        gc.enable()
    mine, bare = (sorted(side)[len(pairs) // 4] for side in zip(*pairs, strict=True))
    return mine / bare


CALLS = 400


def single(call: str) -> Callable[[NetworkManager, Bare], float]:
    """One call at a time, on leases that were made for it."""

    def measure(manager: NetworkManager, bare: Bare) -> float:
        numbers = range(bare.held, bare.held + CALLS)
        if call == "allocate":
            return in_turns([lambda: manager.allocate("web")] * CALLS, [bare.allocate] * CALLS)
        made = manager.allocate_many(CALLS, owner="web")
        bare.allocate(CALLS)
        if call == "release":
            return in_turns(
                [one.release for one in made], [partial(bare.release, i) for i in numbers]
            )
        ports = [partial(one.allocate_port, 80) for one in made]
        return in_turns(ports, [partial(bare.allocate_port, i, i) for i in numbers])

    return measure


def many(manager: NetworkManager, bare: Bare) -> float:
    """A hundred in one transaction."""
    return in_turns([lambda: manager.allocate_many(100)] * 50, [lambda: bare.allocate(100)] * 50)


@pytest.mark.parametrize(
    ("call", "measure", "limit"),
    [
        ("allocate", single("allocate"), 2.3),
        ("release", single("release"), 2.4),
        ("allocate_port", single("allocate_port"), 3.1),
        ("allocate_many(100)", many, 1.8),
    ],
)
def test_a_call(
    memory: Path, call: str, measure: Callable[[NetworkManager, Bare], float], limit: float
) -> None:
    """Beside bare SQLite that writes the same rows."""
    with ExitStack() as stack:
        manager = opened(memory, "10.0.0.1/8", stack)
        bare = Bare(memory / "bare.db", memory / "10.0.0.1.db")
        stack.callback(bare.close)
        check(
            f"{call} in a file : bare SQLite",
            lambda: statistics.median([measure(manager, bare) for _ in range(5)]),
            limit,
        )


def test_the_slowest_of_a_thousand_allocations(memory: Path) -> None:
    """Where the log is written back, and all else that comes now and then; 200,000 in turns."""
    with ExitStack() as stack:
        manager = opened(memory, "10.0.0.1/8", stack)
        bare = Bare(memory / "bare.db", memory / "10.0.0.1.db")
        stack.callback(bare.close)

        def measure() -> float:
            pairs = [
                (
                    percentile(lambda: manager.allocate("web"), 20_000, 0.999),
                    percentile(bare.allocate, 20_000, 0.999),
                )
                for _ in range(5)
            ]
            ours, base = (statistics.median(side) for side in zip(*pairs, strict=True))
            return ours / base

        check("p99.9 of durable allocations : bare SQLite", measure, 3)


def test_allocations_with_scattered_addresses_held(memory: Path) -> None:
    """3,000 all over an IPv6 /64, each in a leaf of its own, to none."""
    with ExitStack() as stack:
        full, none = (opened(memory, f"2001:db8::{i}/64", stack) for i in (1, 2))
        first = int(IPv6Address("2001:db8::"))
        for i in range(1, 3001):
            full.reserve(IPv6Address(first + i * 0x9E3779B97F4A7C15 % 2**64))

        def static(manager: NetworkManager) -> Callable[[], None]:
            at = iter(range(1 << 20, 1 << 60, 1 << 40))

            def step() -> None:
                for _ in range(20):
                    manager.allocate("web", IPv6Address(first + next(at)))

            return step

        check(
            "a static IPv6 address, 3,000 scattered ones held : none",
            lambda: ratio(static(full), static(none), 15),
            1.5,
        )
