"""What durability costs, in one table, beside CNI's host-local and bare SQLite on the same work.

Where CNI's plugins are not at /usr/lib/cni (Debian: containernetworking-plugins) their row
is left out, and says so. Everything is made in a temporary folder and removed.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier, Thread

import netalloc
from netalloc import NetworkManager

NETWORK = "10.0.0.1/8"
HELD = (0, 1_000, 50_000)
HOST_LOCAL = Path("/usr/lib/cni/host-local")


def manager_of(store: Path | None) -> NetworkManager:
    """A manager that touches no kernel."""
    return NetworkManager("br0", network=NETWORK, backend="null", store=store)


def microseconds(step: Callable[[], object], times: int, rounds: int = 5) -> float:
    """The median round of so many steps, each."""
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(times):
            step()
        found.append((time.perf_counter() - begin) / times * 1e6)
    return statistics.median(found)


def grouped(manager: NetworkManager, callers: int, each: int) -> float:
    """Microseconds an allocation, with so many threads at it."""
    start = Barrier(callers + 1)

    def work() -> None:
        start.wait()
        for _ in range(each):
            manager.allocate("caller")

    threads = [Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    start.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - begin) / (callers * each) * 1e6


def prepared(folder: Path, held: int) -> Path:
    """A store with so many addresses held."""
    store = folder / f"{held}.db"
    with manager_of(store) as manager:
        manager.allocate_many(held, owner="crowd")
    return store


def process(store: Path) -> None:
    """What a plugin does that is started for one container, Python's own start included."""
    code = (
        f"import sys; sys.path[:0] = {sys.path[1:]!r}\nimport netalloc\n"
        f"netalloc.__path__ = {list(netalloc.__path__)!r}\n"
        "with netalloc.NetworkManager.open('br0', sys.argv[1]) as one: one.allocate('cold')"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(store)], check=True)


def bare_process(store: Path) -> None:
    """The least of it: Python, its sqlite3, and the rows of a lease in a file like ours."""
    code = (
        "import sqlite3, sys, time\n"
        "raw = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "raw.execute('PRAGMA synchronous = NORMAL')\n"
        "raw.execute('BEGIN IMMEDIATE')\n"
        "((n,),) = raw.execute('SELECT max(ordinal) + 1 FROM lease').fetchall()\n"
        "raw.execute('INSERT INTO lease VALUES (1, ?, ?, 0, ?, NULL, ?, 1)',"
        " (n, n, 'cold', time.time_ns()))\n"
        "raw.execute('UPDATE state SET sequence = sequence + 1')\n"
        "raw.execute('COMMIT')\n"
        "raw.close()"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(store)], check=True)


def host_local(folder: Path, held: int) -> float:
    """Milliseconds of one ADD with so many addresses held: one file each."""
    data = folder / f"cni{held}"
    network = data / "bench"
    network.mkdir(parents=True)
    for i in range(held):
        number = (10 << 24) + 2 + i
        name = ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))
        (network / name).write_text(f"held{i}\r\neth0")
    config = {
        "cniVersion": "1.0.0",
        "name": "bench",
        "type": "bridge",
        "ipam": {"type": "host-local", "dataDir": str(data), "subnet": "10.0.0.0/8"},
    }
    environment = {"CNI_COMMAND": "ADD", "CNI_NETNS": "/dev/null", "CNI_IFNAME": "eth0"}
    times = []
    for i in range(7):
        begin = time.perf_counter()
        subprocess.run(
            [HOST_LOCAL],
            input=json.dumps(config).encode(),
            env={**environment, "CNI_CONTAINERID": f"new{i}", "CNI_PATH": "/usr/lib/cni"},
            check=True,
            capture_output=True,
        )
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def row(what: str, *values: str) -> None:
    """One line of the table."""
    sys.stdout.write(f"{what:52}" + "".join(f"{value:>14}" for value in values) + "\n")


def main() -> None:
    """Measure everything once and print the table."""
    where = sys.argv[1] if len(sys.argv) > 1 else None
    with TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        row("microseconds an interface", "memory", "file")
        managers = [manager_of(None), manager_of(folder / "store.db")]
        singles = [microseconds(lambda m=m: m.allocate("one"), 300) for m in managers]
        row("one at a time", *(f"{value:.1f}" for value in singles))
        batches = [microseconds(lambda m=m: m.allocate_many(100), 10) / 100 for m in managers]
        row("in batches of 100", *(f"{value:.1f}" for value in batches))
        groups = [grouped(manager, 32, 60) for manager in managers]
        row("32 threads, which share commits", *(f"{value:.1f}" for value in groups))
        for manager in managers:
            manager.close()
        row("")
        row("milliseconds a process, with so many held", *(f"{held:,}" for held in HELD))
        stores = [prepared(folder, held) for held in HELD]
        whole = [microseconds(lambda s=s: process(s), 1, 15) / 1e3 for s in stores]
        row("netalloc: start, open the file, allocate, end", *(f"{v:.1f}" for v in whole))
        copies = [store.with_suffix(".bare") for store in stores]
        for store, copy in zip(stores, copies, strict=True):
            shutil.copy(store, copy)
            if Path(f"{store}-wal").exists():
                shutil.copy(f"{store}-wal", f"{copy}-wal")
        bare = [microseconds(lambda c=c: bare_process(c), 1, 15) / 1e3 for c in copies]
        row("bare sqlite3 writing the same lease", *(f"{v:.1f}" for v in bare))
        if os.access(HOST_LOCAL, os.X_OK):
            peers = [host_local(folder, held) for held in HELD]
            row("CNI host-local, ADD", *(f"{value:.1f}" for value in peers))
        else:
            row(f"CNI host-local: not at {HOST_LOCAL}")


if __name__ == "__main__":
    main()
