"""A process that opens a store, allocates one address and ends, beside one with bare SQLite.

What counts is the processor time of the process: neither of the two waits for anything, and time
by the clock has everything in it that a machine does besides.
"""

import resource
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import netalloc
from netalloc import NetworkManager
from test_manager import check

# Without site, which loads what it likes. Package and core may lie apart, while developed.
OURS = f"""
import sys
sys.path.insert(0, {str(Path(netalloc.__file__).parents[1])!r})
import netalloc
netalloc.__path__.append({str(Path(netalloc._alloc.__file__).parent)!r})
from netalloc import NetworkManager
with NetworkManager.open("br0", sys.argv[1]) as manager:
    manager.allocate("cold")
"""

BARE = """
import sqlite3, sys, time
raw = sqlite3.connect(sys.argv[1], isolation_level=None)
raw.execute("PRAGMA synchronous = NORMAL")
raw.execute("BEGIN IMMEDIATE")
((n, boot, counters),) = raw.execute("SELECT sequence, boot, counters FROM state")
row = 1, n, n, 0, "cold", None, time.time_ns(), 12345678
raw.execute("INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
state = n + 1, boot, counters, f"addresses/1 {n} +0:{n} ", 12345678
raw.execute("UPDATE state SET sequence = ?, boot = ?, counters = ?, journals = ?, crc = ?", state)
raw.execute("COMMIT")
raw.close()
"""


def python(program: str, path: Path) -> float:
    """Processor seconds of a process."""
    # A virtual environment's python first looks for where it is of.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [Path(sys.executable).resolve(), "-I", "-S", "-c", program, str(path)], check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def quiet(turns: list[float]) -> float:
    """What a tenth of them did not take."""
    return sorted(turns)[len(turns) // 10]


def test_a_process_that_allocates_one_address(tmp_path: Path) -> None:
    ours, bare = tmp_path / "ours.db", tmp_path / "bare.db"
    with NetworkManager("br0", network="10.0.0.1/8", backend="null", store=ours) as manager:
        manager.allocate("first")
    with closing(sqlite3.connect(ours)) as made, closing(sqlite3.connect(bare)) as copy:
        made.backup(copy)

    def measure() -> float:

        pairs = [(python(OURS, ours), python(BARE, bare)) for _ in range(40)]
        one, base = (quiet(list(side)) for side in zip(*pairs, strict=True))
        return one / base

    check("a cold process, open and allocate : bare SQLite", measure, 1.9)
