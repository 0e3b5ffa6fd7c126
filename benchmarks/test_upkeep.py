"""Upkeep is linear in what is held, and no change of it grows with that."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netalloc import NetworkManager
from netalloc.manager.host_store import callbacks
from netalloc.manager.repair import repair
from netalloc.store.sqlite.store import SqliteStore
from promised import check, timed

FEW, MANY = 4_000, 32_000


def filled(path: Path | None, held: int, ports: tuple[int, ...] = ()) -> NetworkManager:
    """A manager of so many leases of ten owners."""
    manager = NetworkManager(
        "br0", network="10.0.0.1/8", backend="null", ports=range(1024, 65536), store=path
    )
    for i in range(10):
        manager.allocate_many(held // 10, ports, owner=f"owner{i}")
    return manager


def test_a_repair_is_linear(tmp_path: Path) -> None:
    for held in (FEW, MANY):
        filled(tmp_path / f"{held}.db", held, (80,)).close()

    def measure() -> float:
        few, many = (
            min(timed(lambda: repair(tmp_path / f"{held}.db")) for _ in range(2)) / held  # noqa: B023
            for held in (FEW, MANY)
        )
        return many / few

    check("repair, each of 32,000 : of 4,000 leases with a port", measure, 1.5)


def test_the_end_of_a_boot_hardly_grows(tmp_path: Path) -> None:
    def measure() -> float:
        found = []
        for held in (20_000, 200_000):
            path = tmp_path / f"{held}-{time.monotonic_ns()}.db"
            filled(path, held).close()

            def end(path: Path = path) -> None:
                with SqliteStore(path, boot="another", timeout=60, **callbacks()) as store:
                    store.run("end", lambda tx: None)

            found.append(timed(end))
            path.unlink()
        return found[1] / found[0]

    check("end of boot, all of 200,000 : of 20,000 leases", measure, 2)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_no_turn_of_upkeep_is_a_large_part_of_it(kind: str, tmp_path: Path) -> None:
    """The longest time for which gc() and check() keep the store from another thread.

    In one turn it would be a third of the whole. In memory it is that of a copy, 40 ns a record.
    """

    def measure() -> float:
        path = tmp_path / f"{time.monotonic_ns()}.db" if kind == "file" else None
        with filled(path, MANY) as manager:
            store: Any = manager._leases.committer.store
            turns, begin = Turns(store), time.perf_counter()
            manager.gc([f"owner{i}" for i in range(10)])
            manager.gc((), grace=0)
            manager.gc((), grace=0)
            manager.check()
            found = turns.longest / (time.perf_counter() - begin)
            assert manager.interfaces() == []
            return found

    check(f"longest turn of gc and check, {kind}, 32,000 : all of them", measure, 0.1)


class Turns:
    """Times what keeps others out: changes, and views of a store in memory."""

    def __init__(self, store: Any) -> None:
        self.longest = 0.0
        for name in ("run", "view", "run_change"):
            if not hasattr(store, name):
                continue  # run_change is the short way of one in memory
            setattr(store, name, self._timing(getattr(store, name)))

    def _timing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                self.longest = max(self.longest, time.perf_counter() - begin)

        return timing
