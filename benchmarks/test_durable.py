"""The durable path beside bare SQLite: the same rows, pragmas and isolation, by the same module."""

import fcntl
import os
import sqlite3
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv6Address
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from netalloc import NetworkManager
from promised import check, ratio

LEASE = "INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
STATE = "UPDATE state SET sequence = ?, boot = ?, counters = ?, journals = ?, crc = ? WHERE id = 0"
COUNTERS = "store=123456789012 network=2 networks=2 bitmaps=1 generation=1234"


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
        self.held = 0

    def close(self) -> None:
        self._raw.close()
        os.close(self._lock)

    def allocate(self, n: int = 1) -> None:
        """n leases in one transaction, under a lock as ours is."""
        fcntl.fcntl(self._lock, fcntl.F_OFD_SETLK, self._take)
        execute, first = self._raw.execute, self.held
        self.held += n
        execute("BEGIN IMMEDIATE")
        execute("SELECT sequence, crc FROM state").fetchall()
        now = time.time_ns()
        rows = [(1, first + i, first + i, 0, "web", None, now, 12345678) for i in range(n)]
        if n == 1:
            execute(LEASE, rows[0])
        else:
            self._raw.executemany(LEASE, rows)
        journal = f"addresses/1 {self.held} +0:{first} "
        execute(STATE, (self.held, "b" * 36, COUNTERS, journal, 12345678))
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
