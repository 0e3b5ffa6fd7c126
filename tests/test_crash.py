"""Death at every step of a change, and damage to every part of the file."""

import os
import random
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import pytest

from faults import DieAt, FileKernel, in_child, write_back
from netalloc.errors import NetallocError, StoreError
from netalloc.manager.manager import NetworkManager
from netalloc.manager.repair import QUARANTINE, make_anew, repair
from netalloc.model import PortRequest
from netalloc.store.records import Reservation
from netalloc.store.sqlite.connection import Connection
from netalloc.store.sqlite.write_lock import WriteLock

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup


@pytest.fixture(scope="session")
def tmp_path_factory(tmp_path_factory):
    """Folders in memory: what a kill leaves behind is the same, and nothing waits for disks."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory
        return
    with TemporaryDirectory(dir="/dev/shm", prefix="netalloc-test-") as root:
        yield _Folders(Path(root))


class _Folders:
    def __init__(self, root):
        self.root = root

    def mktemp(self, name):
        return Path(mkdtemp(dir=self.root, prefix=name))


@pytest.fixture
def tmp_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("test")
    yield folder
    shutil.rmtree(folder)


def manager_of(folder, **options):
    options = {"network": "10.0.0.1/24", "ports": range(8000, 8100)} | options
    return NetworkManager(
        "br0", backend=FileKernel(folder / "kernel"), store=folder / "store.db", **options
    )


CHANGES = {
    "allocate_many": lambda manager: manager.allocate_many(3, (80, 443), owner="new"),
    "allocate_port": lambda manager: manager.find("web")[0].allocate_port(81),
    "release": lambda manager: manager.find("web")[0].release(),
    "release_port": lambda manager: manager.find("web")[0].release_port(8000),
    "reserve": lambda manager: manager.reserve("10.0.0.77", "db"),
    "gc": lambda manager: (manager.gc([], grace=0), manager.gc([], grace=0)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_death_at_any_step_leaves_store_and_kernel_in_agreement(tmp_path, what):
    step, outcomes = 0, set()
    while True:
        folder = tmp_path / str(step)
        folder.mkdir()
        with manager_of(folder, cooldown=5) as manager:
            web = manager.allocate("web", ports=(80, PortRequest(53, "udp", host_ip="10.9.9.9")))
            before = state_of(manager)

        def work(folder=folder, step=step):
            die = DieAt(step)
            die.watch(FileKernel, "apply", "reconcile", "_write")
            die.watch(Connection, "execute", "many", "rows")
            die.watch(WriteLock, "enter", "write", "leave")
            with manager_of(folder, cooldown=5) as manager:
                CHANGES[what](manager)

        status = in_child(work)
        with manager_of(folder, cooldown=5) as manager:
            assert manager.check() == [], f"after death at step {step}"
            after = state_of(manager)
            if what in ("allocate_many", "allocate_port"):
                assert before <= after
                assert len(after - before) in (0, 9 if what == "allocate_many" else 1)
            outcomes.add(after == before)
            # Nothing is lost: all that is free can be had.
            free = 253 - len(manager.interfaces()) - 2 * (what in ("reserve", "release", "gc"))
            assert len(manager.allocate_many(free)) == free
            assert web.ip in {one.ip for one in manager.interfaces()} or what in ("release", "gc")
        shutil.rmtree(folder)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        step += 1
    assert step > 20
    assert outcomes == {True, False}


def state_of(manager):
    reservations = manager._leases.read(lambda tx: tx.table(Reservation).all())
    return {(kept.ordinal, kept.owner) for kept in reservations} | {
        item
        for one in manager.interfaces()
        for item in [(one.ip, one.owner, one.generation), *((one.ip, m) for m in one.ports())]
    }


def test_death_while_the_file_is_made(tmp_path):
    step, status = 0, None
    while status != 0:
        folder = tmp_path / str(step)
        folder.mkdir()

        def work(folder=folder, step=step):
            die = DieAt(step)
            die.watch(Connection, "execute", "many", "rows")
            die.watch(WriteLock, "enter", "write", "leave")
            manager_of(folder).allocate("first")

        status = in_child(work)
        with manager_of(folder) as manager:
            assert len(manager.interfaces()) in (0, 1)
            manager.allocate("next")
            assert manager.check() == []
        step += 1
    assert step > 20


def test_every_other_change_survives_death_without_closing(tmp_path):
    def work():
        manager = manager_of(tmp_path)
        for i in range(30):
            manager.allocate(f"owner{i}", ports=(80,))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    with manager_of(tmp_path) as manager:
        assert [one.owner for one in manager.interfaces()] == [f"owner{i}" for i in range(30)]
        assert manager.check() == []


# ---- damage


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A store with something of everything in it, closed."""
    folder = tmp_path_factory.mktemp("original")
    with manager_of(folder, network="10.0.0.1/20", cooldown=3600, sticky=60) as manager:
        manager.reserve("10.0.0.9", "db")
        for one in manager.allocate_many(60, owner="past", labels={"a": "b"})[::2]:
            one.release()
        for i in range(40):
            manager.allocate(f"owner{i}", key="eth0", ports=(80,), labels={"app": "shop"})
        manager.allocate(ports=(PortRequest(80, host_ip="10.9.9.9"), PortRequest(None, count=5)))
    with manager_of(folder, network="10.0.0.1/20", cooldown=3600, sticky=60) as manager:
        assert manager.check() == []
        held = {str(one.ip): (one.owner, one.generation) for one in manager.interfaces()}
    write_back(folder / "store.db")
    return folder, held


def try_damaged(folder, held):
    """Use a store that may be damaged; whether it said so. Never may anybody get what is held."""
    try:
        with manager_of(folder, network="10.0.0.1/20", cooldown=3600, sticky=60) as manager:
            given = [manager.allocate(ports=(80,)) for _ in range(3)]
            given += manager.allocate_many(3, (80,))
            assert not {str(one.ip) for one in given} & (held.keys() | {"10.0.0.9"})
            ports = [mapping.host_port for one in given for mapping in one.ports()]
            assert len(set(ports)) == 6 and min(ports) >= 8045
            for one in manager.interfaces():
                if str(one.ip) in held:
                    assert (one.owner, one.generation) == held[str(one.ip)]
            for one in given[::2]:
                one.release()
            again = manager.allocate("owner3", key="eth0")
            wrong = manager.check()
            # Where an index is damaged he is not found, and gets another one: nobody's.
            same = held.get(str(again.ip)) == ("owner3", again.generation)
            assert same or (wrong and str(again.ip) not in held)
            return bool(wrong)
    except (StoreError, ExceptionGroup) as error:
        assert not isinstance(error, ExceptionGroup) or error.subgroup(StoreError)
        return True


def flip_everywhere(original, tmp_path, positions):
    source, held = original
    data = (source / "store.db").read_bytes()
    detected = mended = 0
    for position in positions(len(data)):
        folder = tmp_path / str(position)
        shutil.copytree(source, folder)
        with (folder / "store.db").open("r+b") as file:
            file.seek(position)
            file.write(bytes([data[position] ^ random.Random(position).randint(1, 255)]))
        found = try_damaged(folder, held)
        detected += found
        if found:
            mended += mend(folder, held)
        shutil.rmtree(folder)
    return len(data), detected, mended


def mend(folder, held):
    """Repair a store; whether that was possible. Still nobody may get what is held."""
    try:
        done = repair(folder / "store.db")
        assert "a copy of the file" in done[0]
    except StoreError as error:
        assert "nothing can be read" in str(error)
        return False
    with manager_of(folder, network="10.0.0.1/20") as manager:
        manager.reconcile()
        assert manager.check() == []
        # A leaf that cannot be read, with leases that are lost: all of it is quarantined.
        free = 0 if sum(QUARANTINE in line for line in done) > 3000 else 50
        assert not {str(one.ip) for one in manager.allocate_many(free)} & held.keys()
        for one in manager.interfaces():
            assert held.get(str(one.ip), (None, 0))[0] in (one.owner, None)
    return True


def report(capsys, text):
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")


def test_a_flipped_byte_is_detected_or_harmless(original, tmp_path, capsys):
    size, detected, mended = flip_everywhere(
        original, tmp_path, lambda size: range(random.Random(1).randrange(97), size, size // 60)
    )
    report(capsys, f"{size} bytes, 60 flips: {detected} detected, {mended} of these mended")


@pytest.mark.soak
def test_500_flipped_bytes(original, tmp_path, capsys):
    size, detected, mended = flip_everywhere(
        original, tmp_path, lambda size: random.Random(2).sample(range(size), 500)
    )
    report(capsys, f"{size} bytes, 500 flips: {detected} detected, {mended} of these mended")


def test_what_a_lost_row_said_is_quarantined(original, tmp_path):
    source, held = original
    folder = tmp_path / "copy"
    shutil.copytree(source, folder)
    with sqlite3.connect(folder / "store.db", isolation_level=None) as raw:
        raw.execute("UPDATE lease SET owner = 'thief' WHERE owner = 'owner7'")
    raw.close()
    with manager_of(folder, network="10.0.0.1/20") as manager:
        with pytest.raises(StoreError, match=r"a row of lease is damaged: .*'thief'"):
            manager.allocate("thief", key="eth0")
        assert any("thief" in problem for problem in manager.check())
        done = "\n".join(manager.repair())
        (ip,) = [ip for ip, (owner, _) in held.items() if owner == "owner7"]
        assert f"{ip} is reserved: {QUARANTINE}" in done
        assert manager.check() == []
        assert manager.find("thief") == manager.find("owner7") == []
        with pytest.raises(NetallocError, match="quarantine"):
            manager.allocate("thief", ip)
        manager.unreserve(ip)
        assert str(manager.allocate("owner7", ip).ip) == ip
    assert (folder / "store.db.damaged-1").exists()


@pytest.mark.parametrize("repair", [repair, make_anew])
def test_repair_of_what_is_whole_changes_nothing_and_others_go_on(original, tmp_path, repair):
    source, held = original
    folder = tmp_path / "copy"
    shutil.copytree(source, folder)
    with manager_of(folder, network="10.0.0.1/20") as manager:
        before = state_of(manager)
        repair(folder / "store.db")
        assert state_of(manager) == before  # the open one goes on with the mended file
        with manager_of(folder, network="10.0.0.1/20") as second:
            assert second.allocate("next").generation > max(g for _, g in held.values())
        assert manager.history("10.0.0.2")
        after = state_of(manager)
    # Closing what had opened the old file does nothing to the log of the new one.
    with manager_of(folder, network="10.0.0.1/20") as manager:
        assert state_of(manager) == after
        assert manager.check() == []


def test_damage_to_the_log_of_a_dead_process_is_noticed(tmp_path):
    def work():
        manager = manager_of(tmp_path)
        for i in range(50):
            manager.allocate(f"owner{i}")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    log = tmp_path / "store.db-wal"
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1  # SQLite passes over everything from there on, silently
    log.write_bytes(data)
    with pytest.raises(StoreError, match="its log is damaged"):
        manager_of(tmp_path).allocate()


OWNER39 = "(SELECT ordinal FROM lease WHERE owner = 'owner39')"


@pytest.mark.parametrize(
    ("sql", "step", "message"),
    [
        (
            f"DELETE FROM publication WHERE ordinal = {OWNER39}",
            lambda manager: manager.find("owner39")[0].release(),
            "publishes 1 times, but 0 can be read",
        ),
        (
            "DELETE FROM bitmap WHERE name = 'ports/tcp/used'",
            lambda manager: manager.allocate(ports=(80,)),
            "bitmap ports/tcp/used is not found",
        ),
        (
            "UPDATE bitmap SET name = 'ports/tcp/usad' WHERE name = 'ports/tcp/used'",
            lambda manager: manager.allocate(ports=(80,)),
            "bitmap ports/tcp/used is not found",
        ),
        (
            "DELETE FROM span WHERE name = 'addresses/1'",
            lambda manager: manager.allocate(),
            "leaf 0 of bitmap addresses/1 is missing",
        ),
        (
            "DELETE FROM lease WHERE ordinal = 99",
            lambda manager: manager.allocate(ip=manager.subnet.address(99)),
            "is marked as taken, but no record says by whom",
        ),
        (
            "UPDATE state SET sequence = sequence + 1",
            lambda manager: manager.allocate(),
            "the state row is damaged",
        ),
    ],
)
def test_a_row_that_damage_hides_is_missed(original, tmp_path, sql, step, message):
    source, _ = original
    folder = tmp_path / "copy"
    shutil.copytree(source, folder)
    raw = sqlite3.connect(folder / "store.db", isolation_level=None)
    assert raw.execute(sql).rowcount == 1
    raw.close()
    with (
        pytest.raises((StoreError, ExceptionGroup)) as caught,
        manager_of(folder, network="10.0.0.1/20") as manager,
    ):
        assert manager.check() != []
        step(manager)
    error = caught.value
    assert message in str(error.exceptions[0] if isinstance(error, ExceptionGroup) else error)
