"""The core's speed: each promise as a ratio, and a slowed copy that the gate must refuse."""

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from compiled import compiled
from gate import PROMISES, Promise, measure
from netalloc import _alloc

SOURCES = Path(__file__).parent.parent / "src"


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.name)
def test_promise(promise: Promise, empty: Any, benchmark: BenchmarkFixture) -> None:
    ours, _ = promise.sides(_alloc, empty)
    benchmark.pedantic(ours, rounds=5)
    measured = measure(promise, _alloc, empty)
    benchmark.extra_info.update(ratio=round(measured.ratio, 3), limit=promise.limit)
    print(f"{promise.name:40} {measured.ratio:6.3f}  of {promise.limit:g}")
    assert measured.ratio <= promise.limit, (
        f"{promise.name}: {measured.ours * 1e9:.1f} ns is {measured.ratio:.3f} x "
        f"{measured.base * 1e9:.1f} ns; the promise is {promise.limit:g} x"
    )


@pytest.fixture(scope="module")
def slowed(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The core, but each acquire forgets the leaf under the cursor."""
    copy = tmp_path_factory.mktemp("slowed")
    shutil.copy(SOURCES / "_alloc.pyx", copy)
    shutil.copytree(SOURCES / "_alloc", copy / "_alloc")
    tree = copy / "_alloc" / "tree.pxi"
    marker = "    t.used += 1\n    t.cursor = i + 1\n"
    text = tree.read_text()
    assert text.count(marker) == 2  # the quick way, and the other
    tree.write_text(text.replace(marker, marker + "    drop_cached_leaf(t)\n"))
    return compiled(copy / "_alloc.pyx", "netalloc._alloc", copy)


def test_gate_closes(slowed: ModuleType, empty: Any) -> None:
    """The same measurement refuses a method that has become slower."""
    promise = next(p for p in PROMISES if p.name == "IPAllocator.acquire_int")
    assert measure(promise, slowed, empty).ratio > promise.limit
