"""No call costs more because much is held: each operation at much and at little."""

import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from growth import compare, settle
from growth_cases import CASES
from growth_operations import ALL, VIEWS
from growth_places import crowd, nothing, standing
from netalloc import NetworkManager

PAIRS = [
    pytest.param(kind, name, id=f"{kind}-{name}", marks=[pytest.mark.soak] if case.soak else [])
    for name, case in CASES.items()
    for kind in case.kinds
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where files are: in memory if there is room, as how fast a disk syncs is not the matter."""
    shared = Path("/dev/shm")
    room = os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > 4 << 30
    with TemporaryDirectory(dir=shared if room else None) as found:
        yield Path(found)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged of thousands of late releases is not kept."""
    caplog.set_level("CRITICAL", "netalloc")


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_growth(folder: Path, kind: str, name: str) -> None:
    case, in_file = CASES[name], kind == "file"
    full = case.full(folder / "full.db" if in_file else None)
    few = case.few(folder / "few.db" if in_file else None)
    settle()
    wanted = [one for one in case.operations if in_file or one not in VIEWS]
    try:
        beyond = compare(
            f"{kind}, {name}",
            wanted,
            lambda one: (case.operations[one](full), case.operations[one](few)),
        )
    finally:
        full.close()
        few.close()
    assert not beyond, f"{kind}, {name}: {beyond}"


# ---- the gate closes


def beyond(folder: Path | None, held: int, *wanted: str) -> dict[str, float]:
    """What the gate refuses of these operations, at so many held."""
    paths = [None if folder is None else folder / f"{side}.db" for side in ("full", "few")]
    full = standing(lambda at: crowd(at, held))(paths[0])
    few = standing(nothing)(paths[1])
    try:
        return compare("bent", wanted, lambda name: (ALL[name](full), ALL[name](few)))
    finally:
        full.close()
        few.close()


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_gate_closes(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocation that looks at each lease is refused; its neighbour is not."""
    original = NetworkManager.allocate

    def bent(self: NetworkManager, *arguments: Any, **options: Any) -> Any:
        assert len(self.interfaces()) >= 0
        return original(self, *arguments, **options)

    monkeypatch.setattr(NetworkManager, "allocate", bent)
    place = None if kind == "memory" else folder
    assert beyond(place, 1_000, "allocate", "find(owner)").keys() == {"allocate"}


class UnhintedCursor(sqlite3.Cursor):
    """Leaves the choice of the index to SQLite."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return super().execute(re.sub(" INDEXED BY [a-z_0-9]+", "", sql), *values)


class Unhinted(sqlite3.Connection):
    """A connection whose statements name no index."""

    def cursor(self, *_: Any) -> sqlite3.Cursor:
        return super().cursor(UnhintedCursor)


def test_gate_closes_without_index_hints(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What names its index grows without the name."""
    connect = partial(sqlite3.connect, factory=Unhinted)
    monkeypatch.setattr(sqlite3, "connect", connect)
    hinted = ("allocate with a known key", "find(label)")
    assert beyond(folder, 5_000, *hinted, "ports()").keys() == set(hinted)
