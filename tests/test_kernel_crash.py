"""kill -9 in the middle of batches, with real mappings in a real kernel."""

import os
import queue
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from netalloc.host.command import run
from netalloc.manager.manager import NetworkManager
from netalloc.store.sqlite.write_lock import WriteLock

pytestmark = pytest.mark.root


def allocate_for_ever(lab, store, write):
    with manager_of(lab, store) as manager:
        os.write(write, b"!")
        while True:
            many = manager.allocate_many(40, (80, 443), owner="crowd")
            many[0].allocate_ports(5)
            many[1].release()
            if len(manager.interfaces()) > 400:
                manager.release("crowd")


def manager_of(lab, store):
    return NetworkManager(
        lab.bridge, network=lab.network, backend="nftables", store=store, probe=lambda *_: True
    )


def rounds_of_kill(lab, store, rounds):
    """How many of the deaths had cut a change in two; store and kernel agree after each.

    Every second one comes at a random moment, the others as soon as a kernel batch is under way.
    """
    rng, dirty = random.Random(5), 0
    lock = WriteLock(Path(f"{store}.lock"))
    for round_ in range(rounds):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                allocate_for_ever(lab, store, write)
            finally:
                os._exit(1)
        os.close(write)
        assert os.read(read, 1) == b"!"
        os.close(read)
        if round_ % 2:
            time.sleep(rng.uniform(0, 0.08))
        else:
            while not ((mark := lock.peek()) and mark.dirty):
                pass
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == -signal.SIGKILL
        mark = lock.peek()
        dirty += bool(mark and mark.dirty)
        with manager_of(lab, store) as manager:
            assert manager.check() == []
            assert not manager.reconcile()
            free = manager.subnet.capacity - len(manager.interfaces())
            assert free > 0
    with manager_of(lab, store) as manager:
        manager.release("crowd")
        assert manager.check() == []
        assert manager._leases.mappings.present() == []
    return dirty


def test_store_and_nftables_agree_after_every_death(nft_lab, tmp_path):
    rounds_of_kill(nft_lab, tmp_path / "store.db", 6)


def test_a_flushed_ruleset_is_mended_from_what_the_store_says(nft_lab, tmp_path):
    store = tmp_path / "store.db"
    with manager_of(nft_lab, store) as watcher, manager_of(nft_lab, store) as other:
        repaired = queue.Queue()
        with watcher.watch(repaired.put):
            web = other.allocate("web", ports=(80, 443))
            assert repaired.empty()  # our own changes are nobody else's
            run(["nft", "flush", "ruleset"])
            found = repaired.get(timeout=10)
            assert set(found.added) == set(web.ports())
            assert other.check() == []


def test_release_survives_that_somebody_removed_the_rules(nft_lab, tmp_path, caplog):
    for store in (None, tmp_path / "store.db"):
        with manager_of(nft_lab, store) as manager:
            web = manager.allocate("web", ports=(80, 443))
            run(["nft", "flush", "ruleset"])
            web.release()
            assert manager.interfaces() == []
            assert "gone from the kernel" in caplog.text or "is not mapped" in caplog.text
            manager.reconcile()
            assert manager.check() == []
        caplog.clear()


@pytest.mark.soak
def test_200_deaths(nft_lab, tmp_path, capsys):
    dirty = rounds_of_kill(nft_lab, tmp_path / "store.db", 200)
    with capsys.disabled():
        sys.stdout.write(
            f"\n200 kills, {dirty} of them inside a kernel batch; agreement each time\n"
        )
    assert dirty > 20
