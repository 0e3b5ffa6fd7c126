"""Eight processes on one file, beside eight of bare SQLite under flock that write the same rows."""

import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from contended import compare, sides

# A process alone reaches 0.45 of the throughput, and takes 2.2 times the processor: with less of
# that in Python both get better. Where waiters poll it was 0.2 and 4.3.
THROUGHPUT = 0.3
PROCESSOR = 2.9


def test_eight_processes_on_one_file() -> None:
    """How many changes they make together, and what of the processor each takes."""
    with TemporaryDirectory(dir="/dev/shm") as folder, ExitStack() as stack:
        ours, base = sides(Path(folder), 8, stack)
        for rounds in (12, 36):
            throughput, processor = compare(ours, base, rounds, 0.3)
            if throughput >= THROUGHPUT and processor <= PROCESSOR:
                break
    for what, found, limit in (
        ("throughput of 8 processes on one file : bare SQLite", throughput, THROUGHPUT),
        ("processor for a change of 8 processes : bare SQLite", processor, PROCESSOR),
    ):
        sys.stdout.write(f"{what:60} {found:6.2f}  of {limit:g}\n")
    assert throughput >= THROUGHPUT
    assert processor <= PROCESSOR
