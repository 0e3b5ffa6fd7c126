"""Processes that write to one store together, beside as many that write its rows by bare SQLite.

Both sides are started once and take turns: while one works, the other waits at its pipes.
"""

import fcntl
import multiprocessing
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from netalloc import NetworkManager
from test_durable import COUNTERS, LEASE, STATE

Step = Callable[[], object]
NETWORK = "10.0.0.1/8"
PRAGMAS = "journal_mode = WAL", "synchronous = NORMAL", "wal_autocheckpoint = 8000"


class FlockedBare:
    """What an allocation writes, by hand, in the file of a store; its writers wait in flock(2)."""

    def __init__(self, path: Path) -> None:
        self._raw = sqlite3.connect(path, isolation_level=None)
        for pragma in PRAGMAS:
            self._raw.execute(f"PRAGMA {pragma}")
        self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT)

    def close(self) -> None:
        self._raw.close()
        os.close(self._lock)

    def allocate(self) -> None:
        """A lease at the place that the state row tells, and the state row."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        execute = self._raw.execute
        execute("BEGIN IMMEDIATE")
        ((sequence, _),) = execute("SELECT sequence, crc FROM state").fetchall()
        row = (1, sequence, sequence, 0, "web", None, time.time_ns(), 12345678)
        execute(LEASE, row)
        journal = f"addresses/1 {sequence} +0:{sequence} "
        execute(STATE, (sequence + 1, "b" * 36, COUNTERS, journal, 12345678))
        execute("COMMIT")
        fcntl.flock(self._lock, fcntl.LOCK_UN)


def manager(path: Path, stack: ExitStack) -> Step:
    """To allocate by a manager of one's own, that touches no kernel."""
    made = NetworkManager("br0", network=NETWORK, backend="null", store=path)
    stack.enter_context(made)
    return lambda: made.allocate("web")


def bare(path: Path, stack: ExitStack) -> Step:
    """The same by bare SQLite, under flock."""
    made = FlockedBare(path)
    stack.callback(made.close)
    return made.allocate


def _work(make: Callable[[Path, ExitStack], Step], path: Path, pipe: Connection) -> None:
    """Whenever it gets a span of time (monotonic), work in it; tells the waits one by one."""
    with ExitStack() as stack:
        step = make(path, stack)
        step()
        while True:
            pipe.send(None)
            span = pipe.recv()
            if span is None:
                return
            begin, end = span
            time.sleep(max(0.0, begin - time.monotonic()))
            waits = []
            spent, last = time.process_time(), time.monotonic()
            while last < end:
                step()
                now = time.monotonic()
                waits.append(now - last)
                last = now
            pipe.send((waits, time.process_time() - spent))


class Round(NamedTuple):
    """How long each step of each process took, and the processor's time for all."""

    waits: list[list[float]]
    processor: float

    @property
    def steps(self) -> int:
        """How many there were."""
        return sum(map(len, self.waits))


class Side:
    """So many processes that do the same to one file."""

    def __init__(
        self, make: Callable[[Path, ExitStack], Step], path: Path, processes: int, stack: ExitStack
    ) -> None:
        context = multiprocessing.get_context("fork")
        self._pipes = []
        for _ in range(processes):
            mine, its = context.Pipe()
            process = context.Process(target=_work, args=(make, path, its), daemon=True)
            process.start()
            its.close()
            stack.callback(process.join)
            self._pipes.append(mine)
        stack.callback(self.end)
        for pipe in self._pipes:
            pipe.recv()

    def run(self, seconds: float) -> Round:
        """What they do in so much time."""
        begin = time.monotonic() + 0.02
        for pipe in self._pipes:
            pipe.send((begin, begin + seconds))
        found = [pipe.recv() for pipe in self._pipes]
        for pipe in self._pipes:
            pipe.recv()
        return Round([waits for waits, _ in found], sum(spent for _, spent in found))

    def end(self) -> None:
        """Let them end."""
        for pipe in self._pipes:
            pipe.send(None)


def sides(folder: Path, processes: int, stack: ExitStack) -> tuple[Side, Side]:
    """Ours, and bare SQLite; each over a file of its own with the tables of a store."""
    ours, base = (folder / f"{name}.db" for name in ("ours", "bare"))
    for path in (ours, base):
        with ExitStack() as once:
            manager(path, once)()
    return (
        Side(manager, ours, processes, stack),
        Side(bare, base, processes, stack),
    )


def compare(ours: Side, base: Side, rounds: int, seconds: float) -> tuple[float, float]:
    """Throughput of ours over that of bare SQLite, and its processor time for each likewise.

    Each side is taken at its best of rounds in turns.
    """
    pairs = [[side.run(seconds) for side in (ours, base)] for _ in range(rounds)]
    most = [max(one.steps for one in side) for side in zip(*pairs, strict=True)]
    least = [min(one.processor / one.steps for one in side) for side in zip(*pairs, strict=True)]
    return most[0] / most[1], least[0] / least[1]


def describe(name: str, found: Round, seconds: float) -> str:
    """Operations per second, how they are spread, and the longest waits."""
    counts = [len(one) for one in found.waits]
    waits = sorted(wait for one in found.waits for wait in one)
    fair = found.steps / len(counts)
    p99 = waits[int(len(waits) * 0.99)]
    return (
        f"{name:6}{found.steps / seconds:9.0f} /s   {found.processor / found.steps * 1e6:6.1f} us "
        f"of the processor   {min(counts) / fair:5.2f} to {max(counts) / fair:5.2f} of its share   "
        f"p99 {p99 * 1e3:6.2f} ms   longest {waits[-1] * 1e3:7.1f} ms\n"
    )


def main() -> None:
    """Measure once, for one process and for more."""
    for processes in map(int, sys.argv[1:] or ("1", "2", "8")):
        with TemporaryDirectory(dir="/dev/shm") as folder, ExitStack() as stack:
            ours, base = sides(Path(folder), processes, stack)
            sys.stdout.write(f"{processes} processes\n")
            for _ in range(3):
                for name, side in (("ours", ours), ("bare", base)):
                    sys.stdout.write(describe(name, side.run(0.5), 0.5))
            throughput, processor = compare(ours, base, 7, 0.4)
            sys.stdout.write(f"throughput {throughput:.2f}, processor {processor:.2f}\n")


if __name__ == "__main__":
    main()
