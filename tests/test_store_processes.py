"""Many processes on one store."""

import sqlite3
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from netalloc.manager.manager import NetworkManager
from storm import storm


def report(capsys, text):
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")


def test_processes_that_are_killed_never_share_an_address_and_lose_none(tmp_path, capsys):
    result = storm(tmp_path, processes=4, operations=1600, seconds=20, kill_every=0.1)
    report(capsys, result)
    assert result.kills > 3


@pytest.mark.soak
def test_eight_processes_for_a_minute(tmp_path, capsys):
    result = storm(tmp_path, processes=8, operations=10**6, seconds=60, kill_every=0.3)
    report(capsys, result)
    fair = sum(result.operations) / len(result.operations)
    assert result.kills > 50 and min(result.operations) > max(2000, fair / 3)


def test_nobody_is_starved(tmp_path, capsys):
    """Everybody works without a pause; each gets a third of his fair share at least."""
    result = storm(tmp_path, processes=6, operations=10**6, seconds=3, kill_every=3)
    report(capsys, result)
    fair = sum(result.operations) / len(result.operations)
    assert min(result.operations) >= fair / 3 and max(result.operations) <= fair * 3


def test_a_change_is_seen_by_everybody_at_the_next_call(tmp_path):
    path = tmp_path / "store.db"
    options = {"network": "10.0.0.1/24", "backend": "null", "store": path}
    with NetworkManager("br0", **options) as one, NetworkManager("br0", **options) as two:
        for _ in range(5):
            first = one.allocate("one", ports=(80,))
            (seen,) = two.find("one")
            assert (seen.ip, seen.ports()) == (first.ip, first.ports())
            assert two.allocate("two").ip == first.ip + 1
            seen.allocate_port(443)
            assert len(first.ports()) == 2
            assert two.release("one") == 1
            assert one.find("one") == []
            first.release()
            assert one.release("two") == 1
        assert one.stale_releases == 5


def counting(connect, steps, *arguments, **options):
    """A connection that counts the steps of SQLite's virtual machine."""
    made = connect(*arguments, **options)
    made.set_progress_handler(lambda: steps.append(1), 1)
    return made


def test_what_a_cold_process_does_does_not_grow_with_what_is_held(tmp_path, monkeypatch):
    """Steps of SQLite for open, allocate, close: the same with 10 and with 20,000 held."""
    counts, connect = {}, sqlite3.connect
    for held in (10, 20_000):
        path = tmp_path / f"{held}.db"
        options = {"network": "10.0.0.1/8", "backend": "null", "store": path}
        with NetworkManager("br0", **options) as manager:
            manager.allocate_many(held, owner="x")
        steps = []
        monkeypatch.setattr(sqlite3, "connect", partial(counting, connect, steps))
        with NetworkManager("br0", **options) as manager:
            manager.allocate("cold")
        monkeypatch.undo()
        counts[held] = len(steps)
    assert counts[20_000] <= 1.1 * counts[10]


def test_a_reader_does_not_wait_for_a_writer(tmp_path):
    options = {"network": "10.0.0.1/24", "backend": "null", "store": tmp_path / "store.db"}
    with NetworkManager("br0", **options) as writer, NetworkManager("br0", **options) as reader:
        writer.allocate("web")
        tx = writer._leases.committer.store.begin("slow")
        try:
            begin = time.monotonic()
            assert [one.owner for one in reader.interfaces()] == ["web"]
            assert time.monotonic() - begin < reader._leases.committer.store.timeout / 2
        finally:
            tx.rollback()


def test_nothing_stays_open(tmp_path):
    options = {"network": "10.0.0.1/24", "backend": "null", "store": tmp_path / "store.db"}
    NetworkManager("br0", **options).close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with NetworkManager("br0", **options) as manager:
            manager.allocate()
            assert manager.interfaces()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
