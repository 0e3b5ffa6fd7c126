"""What durability costs: the same calls on a manager in memory and on one in a file.

A folder may be named to have the file there; otherwise it is a temporary one.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier, Thread

from netalloc import NetworkManager
from tables import markdown

NETWORK = "10.0.0.1/8"


def manager_of(store: Path | None) -> NetworkManager:
    """A manager that touches no kernel."""
    return NetworkManager("br0", network=NETWORK, backend="null", store=store)


def microseconds(step: Callable[[], object], times: int, rounds: int = 40) -> float:
    """The quickest round of so many steps, each."""
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(times):
            step()
        found.append((time.perf_counter() - begin) / times * 1e6)
    return min(found)


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


def main() -> None:
    """Measure everything once and print the table."""
    where = sys.argv[1] if len(sys.argv) > 1 else None
    with TemporaryDirectory(dir=where) as name, ExitStack() as opened:
        paths = (None, Path(name) / "store.db")
        managers = [opened.enter_context(manager_of(path)) for path in paths]
        found = {
            "one interface at a time": [
                microseconds(lambda m=m: m.allocate("one"), 50) for m in managers
            ],
            "in batches of 100, each": [
                microseconds(lambda m=m: m.allocate_many(100), 2) / 100 for m in managers
            ],
            "32 threads that share commits, each": [
                min(grouped(m, 32, 60) for _ in range(5)) for m in managers
            ],
        }
    table = [["", "in memory", "in a file"]]
    for what, values in found.items():
        table.append([what, *(f"{float(f'{value:.2g}'):g} µs" for value in values)])
    sys.stdout.write(markdown(table))


if __name__ == "__main__":
    main()
