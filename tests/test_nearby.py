"""Which networks a new one is in the way of: found without reading all, and never wrong."""

import random
import subprocess
import sys
from ipaddress import ip_interface

import pytest

from netalloc import InUseError, Networks
from netalloc.ipam import nearby as module
from netalloc.ipam.nearby import nearby
from netalloc.ipam.networks import CONFIGURED, Nearby, networks, remove, replace
from netalloc.manager import assembly
from netalloc.manager.repair import repair
from netalloc.store.memory import MemoryStore
from netalloc.store.records import Network
from netalloc.store.sqlite.alone import alone
from netalloc.store.sqlite.store import SqliteStore
from netalloc.store.sqlite.table import SqliteTable


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "host.db")
    yield made
    made.close()


def record(name, bridge, subnet=None, subnet6=None, number=0):
    return Network(
        number, name, bridge, "bridge", subnet, subnet6, "", "null", "", 0, 0, 0, "open", ""
    )


def add(tx, network):
    network = network._replace(number=tx.next("network"))
    tx.table(Network).add((network,))
    tx.next(CONFIGURED)
    return network


def blocks(network):
    return [ip_interface(spec).network for spec in (network.subnet, network.subnet6) if spec]


def in_the_way(one, other):
    return (one.bridge is not None and one.bridge == other.bridge) or any(
        mine.version == theirs.version and mine.overlaps(theirs)
        for mine in blocks(one)
        for theirs in blocks(other)
    )


def check(store, wanted):
    """What is found is what looking at each record finds."""

    def view(tx):
        near = nearby(tx, wanted)
        assert near.configured == tx.last(CONFIGURED)
        there = tx.table(Network).all()
        assert list(near.numbers) == sorted(n.number for n in there if in_the_way(wanted, n))

    store.view(view)


def anything(chosen):
    """A network with subnets from a small part of each family, so that they often meet."""
    length = chosen.randrange(20, 31)
    subnet = f"10.0.{chosen.randrange(64)}.{chosen.randrange(256)}/{length}"
    subnet6 = f"fd00::{chosen.randrange(1 << 12):x}/{chosen.randrange(110, 129)}"
    one, two = chosen.choice([(subnet, None), (None, subnet6), (subnet, subnet6)])
    bridge = chosen.choice([None, f"br{chosen.randrange(40)}"])
    return record(f"n{chosen.randrange(10**9)}", bridge, one, two)


class RolledBack(Exception):
    """Raised where a change is to be undone."""


@pytest.mark.parametrize("seed", range(3))
def test_what_is_found_is_what_looking_at_each_finds(store, seed):
    chosen = random.Random(seed)
    for _ in range(200):
        kind = chosen.choice(["add", "add", "remove", "replace"])

        undone = chosen.random() < 0.3

        def change(tx, kind=kind, undone=undone):
            there = networks(tx)
            if kind == "add":
                add(tx, anything(chosen))
            elif there and kind == "remove":
                remove(tx, chosen.choice(there))
            elif there:
                old = chosen.choice(there)
                replace(tx, old, anything(chosen)._replace(number=old.number))
            if undone:
                raise RolledBack

        try:
            store.run("change", change)
        except RolledBack:
            pass
        if chosen.random() < 0.7:
            check(store, anything(chosen))


def test_what_is_known_is_not_read_again(store, monkeypatch):
    def some(tx):
        for i in range(50):
            add(tx, record(f"n{i}", f"br{i}", f"10.{i}.0.1/16"))

    store.run("change", some)
    check(store, record("new", "new", "10.60.0.1/16"))
    counted = []
    get = SqliteTable.get
    monkeypatch.setattr(SqliteTable, "get", lambda *key: counted.append(key) or get(*key))
    monkeypatch.setattr(SqliteTable, "all", lambda table: pytest.fail("all was read again"))
    for i in range(200):
        wanted = record("new", "new", f"10.{60 + i % 100}.0.1/16")
        assert store.view(lambda tx, wanted=wanted: nearby(tx, wanted)).numbers == ()
        made = store.run("change", lambda tx, wanted=wanted: add(tx, wanted))
        store.run("change", lambda tx, made=made: remove(tx, made))
    assert len(counted) <= 200 * 4


def test_networks_that_are_gone_are_not_kept_for_ever(store):
    for i in range(1000):
        wanted = record("new", None, f"10.{i >> 8}.{i & 255}.1/24")
        made = store.run("change", lambda tx, wanted=wanted: add(tx, wanted))
        check(store, wanted)
        store.run("change", lambda tx, made=made: remove(tx, made))
    known = store.view(lambda tx: tx.kept[module._KEPT])
    assert len(known._entered) <= 2 + module._FEW + 1


def test_an_interrupt_leaves_nothing_half_known(store, monkeypatch):
    wanted = record("new", "br0", "10.1.0.1/16")
    made = store.run("change", lambda tx: add(tx, wanted))
    check(store, wanted)
    store.run("change", lambda tx: remove(tx, made))

    def interrupted(self, network):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module._Known, "_leave", interrupted)
        with pytest.raises(KeyboardInterrupt):
            check(store, wanted)
    check(store, wanted)


ELSEWHERE = """
import sys
from netalloc import Networks
with Networks(sys.argv[1]) as host:
    host.remove("mine")
    host.create("theirs", "10.1.0.1/24", bridge="br1", backend="null")
"""


def test_what_another_process_does_is_noticed(tmp_path):
    path = tmp_path / "host.db"
    with Networks(path) as host:
        host.create("mine", "10.0.0.1/24", bridge="br0", backend="null")
        host.create("other", "10.2.0.1/24", bridge="br2", backend="null")
        subprocess.run([sys.executable, "-c", ELSEWHERE, path], check=True)
        with pytest.raises(InUseError, match=r"overlaps 10\.1\.0\.0/24 of theirs"):
            host.create("new", "10.1.0.1/16", bridge="br3", backend="null")
        with pytest.raises(InUseError, match="bridge br1 is of network theirs"):
            host.create("new", "10.3.0.1/24", bridge="br1", backend="null")
        host.create("new", "10.0.0.1/25", bridge="br0", backend="null")
        assert list(host) == ["new", "other", "theirs"]


@pytest.mark.parametrize("what", ["added", "removed"])
def test_what_is_done_between_the_look_and_the_change_is_noticed(tmp_path, monkeypatch, what):
    with Networks(tmp_path / "host.db") as host:
        host.create("first", "10.0.0.1/24", bridge="br0", backend="null")
        read = assembly._read

        def meanwhile(store, view):
            found = read(store, view)
            if isinstance(found, Nearby):
                monkeypatch.undo()
                if what == "added":
                    host.create("quick", "10.1.0.1/25", bridge="br2", backend="null")
                else:
                    host.remove("first")
            return found

        monkeypatch.setattr(assembly, "_read", meanwhile)
        if what == "added":
            with pytest.raises(InUseError, match="of quick"):
                host.create("new", "10.1.0.1/24", bridge="br1", backend="null")
        else:
            host.create("new", "10.0.0.1/25", bridge="br0", backend="null")


def test_a_number_that_is_given_again_after_a_repair_is_looked_at(tmp_path):
    path = tmp_path / "host.db"
    with SqliteStore(path) as store:
        store.run("change", lambda tx: add(tx, record("a", "br0", "10.0.0.1/24")))
        last = store.run("change", lambda tx: add(tx, record("b", "br1", "10.1.0.1/24")))
        check(store, last)
        store.run("change", lambda tx: remove(tx, last))
        # A state row that is damaged says no more which numbers were given.
        with alone(store._file, 1.0):
            subprocess.run([sys.executable, "-c", DAMAGE, path], check=True)
        repair(path)
        again = store.run("change", lambda tx: add(tx, record("c", "br2", "10.2.0.1/24")))
        assert again.number == last.number
        for wanted in (again, last):
            check(store, wanted)


DAMAGE = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("UPDATE state SET counters = 'nothing'")
db.commit()
"""
