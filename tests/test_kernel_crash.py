"""kill -9 in the middle of batches, with real mappings in a real kernel."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from netalloc.manager import NetworkManager
from netalloc.store.lock import WriteLock

pytestmark = pytest.mark.root


def allocate_for_ever(lab, store, write):
    with manager_of(lab, store) as manager:
        os.write(write, b"!")
        while True:
            many = manager.allocate_many(40, (80, 443), owner="crowd")
            many[0].allocate_ports(5)
            many[1].release()
            if len(manager.interfaces) > 400:
                manager.release("crowd")


def manager_of(lab, store):
    return NetworkManager(
        lab.bridge, network=lab.network, backend="nftables", store=store, probe=lambda *_: True
    )


def rounds_of_kill(lab, store, rounds):
    """How many of the deaths had cut a change in two; store and kernel agree after each."""
    rng, torn = random.Random(5), 0
    for _ in range(rounds):
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
        time.sleep(rng.uniform(0, 0.08))
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == -signal.SIGKILL
        mark = WriteLock(Path(f"{store}.lock")).peek()
        torn += bool(mark and mark.torn)
        with manager_of(lab, store) as manager:
            assert manager.check() == []
            assert not manager.reconcile()
            free = manager.plan.capacity - len(manager.interfaces)
            assert free > 0
    with manager_of(lab, store) as manager:
        manager.release("crowd")
        assert manager.check() == []
        assert manager._leasing.kernel.present() == []
    return torn


def test_store_and_nftables_agree_after_every_death(nft_lab, tmp_path):
    rounds_of_kill(nft_lab, tmp_path / "store.db", 6)


@pytest.mark.soak
def test_200_deaths(nft_lab, tmp_path, capsys):
    torn = rounds_of_kill(nft_lab, tmp_path / "store.db", 200)
    with capsys.disabled():
        sys.stdout.write(
            f"\n200 kills, {torn} of them inside a kernel batch; agreement each time\n"
        )
    assert torn > 20
