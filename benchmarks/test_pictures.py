"""What a picture of a whole /8 costs to count, half of its addresses in use."""

from pathlib import Path

import numpy as np
import pytest

from netalloc import Bitmap, NetworkManager, NetworkView
from netalloc.ipam.addresses import Addresses
from netalloc.ipam.networks import get
from netalloc.pictures.survey import survey
from netalloc.store.memory import MemoryStore
from netalloc.store.protocol import Store
from netalloc.store.sqlite.store import SqliteStore
from promised import check, ratio

SIZE = 1 << 24
CELL = 256


@pytest.fixture(scope="module")
def chosen() -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Which ordinals are taken: half of them, at random."""
    return np.random.default_rng(1).random(SIZE) < 0.5


def unpacked(packed: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> object:
    """The same counts of bits that NumPy has in a row."""
    bits = np.unpackbits(packed, bitorder="little")
    return bits.reshape(-1, CELL).sum(axis=1, dtype=np.uint32)


def test_counting_is_no_slower_than_unpacking(chosen) -> None:
    """A sixth; a loop in Python over the runs of the bitmap would be at 500."""
    bitmap = Bitmap(SIZE)
    for ordinal in np.flatnonzero(chosen).tolist():
        bitmap.reserve(ordinal)
    packed = np.packbits(chosen, bitorder="little")
    counted = np.frombuffer(bitmap.counts(0, CELL, SIZE // CELL), np.uint64)
    assert (counted == unpacked(packed)).all()

    def measure() -> float:
        return ratio(lambda: bitmap.counts(0, CELL, SIZE // CELL), lambda: unpacked(packed))

    check("pictures: counts of a /8 / unpacking its bits", measure, 0.3)


@pytest.mark.parametrize(("kind", "limit"), [("memory", 1.0), ("file", 14.0)])
def test_a_survey_of_a_whole_8(chosen, kind: str, limit: float, tmp_path: Path) -> None:
    """All of it: opening the file, reading 4,096 leaves with their checksums, counting them."""
    path = tmp_path / "host.db"
    store: Store = MemoryStore() if kind == "memory" else SqliteStore(path)
    with NetworkManager("br1", network="10.0.0.1/8", backend="null", store=store) as manager:
        manager.allocate()

        def fill(tx) -> None:
            bitmap = Addresses.of(get(tx, "br1")).bitmap(tx)
            for ordinal in np.flatnonzero(chosen[1 : bitmap.size]).tolist():
                bitmap.reserve(ordinal + 1)

        store.run("fill", fill)
        view = NetworkView(store if kind == "memory" else path)
        packed = np.packbits(chosen, bitorder="little")
        assert survey(view, "br1").totals.used > 0.49 * SIZE

        def measure() -> float:
            return ratio(lambda: survey(view, "br1"), lambda: unpacked(packed))

        check(f"pictures: survey of a /8, {kind} / unpacking its bits", measure, limit)
