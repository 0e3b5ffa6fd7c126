"""What only a store in a file goes through: boots, damage, waiting, forks, shared commits."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from faults import FaultyBackend, write_back
from lab import Private
from netalloc.errors import ExhaustedError, StoreError
from netalloc.host import namespaces
from netalloc.manager.host_store import callbacks
from netalloc.manager.manager import NetworkManager
from netalloc.model import PortRequest
from netalloc.store.sqlite.store import SqliteStore

MS_REMOUNT = 32  # linux/mount.h


def ips(interfaces):
    return [str(one.ip) for one in interfaces]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


def manager_of(path, **options):
    options = {"network": "10.0.0.1/24", "backend": "null", "store": path} | options
    return NetworkManager("br0", **options)


def test_a_reboot_ends_leases_and_keeps_reservations(path):
    with SqliteStore(path, boot="first boot", **callbacks()) as store, manager_of(store) as manager:
        manager.reserve("10.0.0.2", "db")
        manager.reserve("10.0.0.3", "later")
        manager.allocate("db")
        manager.allocate_many(3, (80,), owner="web", labels={"a": "b"})
    with (
        SqliteStore(path, boot="second boot", **callbacks()) as store,
        manager_of(store) as manager,
    ):
        # A reader may be the first one to come.
        assert manager.interfaces() == []
        assert manager.history("10.0.0.4")[0].owner == "web"
        # The dynamic ones start first, and must not get what is reserved.
        assert ips(manager.allocate_many(2, owner="quick")) == ["10.0.0.7", "10.0.0.8"]
        assert str(manager.allocate("db").ip) == "10.0.0.2"
        assert manager.allocate("x", ports=(PortRequest(80, host_port=49153),)).ports
        assert [str(manager.allocate().ip) for _ in range(248)][-1] == "10.0.0.6"
        with pytest.raises(ExhaustedError):
            manager.allocate()
        assert str(manager.allocate("later").ip) == "10.0.0.3"
        assert manager.check() == []


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("PRAGMA user_version = 99", "schema 99 is newer than"),
        ("PRAGMA application_id = 7", "no netalloc store: its application id is 0x7"),
        ("CREATE TABLE stranger (x)", "the tables are not those of schema"),
    ],
)
def test_a_file_that_is_not_ours_is_left_alone(path, sql, message):
    import sqlite3

    manager_of(path).close()
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute(sql)
    other.close()
    write_back(path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=message):
        manager_of(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["empty", "gone", "half", "text", "a page short"])
def test_a_file_that_lost_its_contents_is_never_a_new_one(path, damage):
    with manager_of(path) as manager:
        manager.allocate_many(200, owner="x" * 100)
    write_back(path)
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "half": data[: len(data) // 2],
                "text": b"hello\n" * 1000,
                "a page short": data[:-4096],
            }[damage]
        )
    with pytest.raises(StoreError, match=r"repair|begin anew"):
        manager_of(path)
    assert not path.exists() or path.read_bytes() != data


def test_an_old_copy_put_back_is_noticed_by_who_is_open_and_who_comes(path, tmp_path):
    with manager_of(path) as manager:
        manager.allocate()
    write_back(path)
    old = path.read_bytes()
    with manager_of(path) as manager:
        manager.allocate()
    write_back(path)
    path.write_bytes(old)
    with pytest.raises(StoreError, match="an old copy was put in its place"):
        manager_of(path).allocate()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(StoreError, match="nowhere"):
        manager_of(tmp_path / "nowhere" / "store.db")


def test_a_writer_that_stands_still_is_named_after_a_bounded_wait(path):
    manager_of(path).close()
    code = (
        "import sys, time; from netalloc.store.sqlite.store import SqliteStore\n"
        f"tx = SqliteStore({str(path)!r}).begin('nap'); print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        try:
            assert b"in\n" in iter(other.stdout.readline, b"")
            with SqliteStore(path, timeout=0.2) as store:
                for _ in range(2):
                    with pytest.raises(StoreError, match=rf"process {other.pid} \(nap\)"):
                        store.begin("wait")
                tx = store.read()  # readers never wait
                tx.rollback()
                os.kill(other.pid, 9)
                other.wait()
                store.begin("next").rollback()
                store.begin("next").rollback()
        finally:
            other.kill()


def test_a_thread_that_stands_still_is_named_too(path):
    with SqliteStore(path, timeout=0.1) as store:
        tx = store.begin("first")
        failures = []

        def wait():
            try:
                store.begin("second")
            except StoreError as error:
                failures.append(str(error))

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
        tx.rollback()
        assert failures and "another thread" in failures[0]


def test_a_forked_child_has_its_own_turn(path):
    with manager_of(path, network="10.0.0.1/16") as manager:
        stop, taken = threading.Event(), []

        def work():
            while not stop.is_set() and len(taken) < 15_000:  # as many ports as there are
                taken.append(str(manager.allocate("parent", ports=(80,)).ip))

        thread = threading.Thread(target=work)
        thread.start()
        theirs = []
        try:
            # In the middle of whatever the thread is doing.
            theirs += [answer_of_child(lambda: str(manager.allocate("child").ip)) for _ in range(5)]
        finally:
            stop.set()
            thread.join()
        assert len({*theirs, *taken}) == 5 + len(taken)
        assert {one.owner for one in manager.interfaces()} == {"parent", "child"}
        assert len(manager.interfaces()) == 5 + len(taken)
        assert manager.check() == []


def answer_of_child(call):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, call().encode())
        finally:
            os._exit(0)
    os.close(write)
    answer = os.read(read, 100).decode()
    os.close(read)
    os.waitpid(child, 0)
    assert answer
    return answer


def test_many_threads_share_commits(path):
    with manager_of(path) as manager:
        store = manager._leases.committer.store
        begun, start = [], threading.Barrier(32)
        begin = store.begin
        store.begin = lambda *args, **options: begun.append(args) or begin(*args, **options)
        taken = []

        def work():
            start.wait()
            taken.extend(manager.allocate(ports=(80,)) for _ in range(5))

        threads = [threading.Thread(target=work) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({one.ip for one in taken}) == 160
        assert len({one.ports()[0].host_port for one in taken}) == 160
        assert len(begun) < 80
        assert manager.check() == []


class Slow(FaultyBackend):
    """Its next batch waits until it is let go."""

    def __init__(self):
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def apply(self, add, remove=()):
        self.begun.set()
        assert self.go.wait(30)
        super().apply(add, remove)


def queued(manager, n):
    """Wait until so many callers are in, the one that makes its change among them."""
    while len(manager._leases.committer._calls.inside) < n:
        time.sleep(0.001)


def test_in_a_shared_commit_only_who_fails_is_told(path):
    backend = Slow()
    with manager_of(path, backend=backend, ports=range(8000, 8040)) as manager:
        outcomes = [None] * 12

        def work(i):
            try:
                outcomes[i] = manager.allocate(
                    f"owner{i}", ports=(PortRequest(80, host_port=8000 + i),)
                )
            except Exception as error:
                outcomes[i] = error

        ports = {"ports": (PortRequest(80, host_port=8030),)}
        leader = threading.Thread(target=manager.allocate, args=("first",), kwargs=ports)
        leader.start()
        assert backend.begun.wait(30)
        threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        queued(manager, 13)
        backend.refuse = {8005}
        backend.go.set()
        for thread in (leader, *threads):
            thread.join()
        failed = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]
        assert failed == [5] and "refused 8005" in str(outcomes[5])
        assert len(manager.interfaces()) == len(backend.mappings()) == 12
        assert manager.check() == []


def test_a_caller_that_is_interrupted_in_the_queue_holds_none_up(path):
    backend = Slow()
    with manager_of(path, backend=backend) as manager:
        main = threading.get_ident()

        def interrupt():
            queued(manager, 2)
            signal.pthread_kill(main, signal.SIGUSR1)

        def handler(number, frame):
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            ports = {"ports": (1,)}
            leader = threading.Thread(target=manager.allocate, args=("led",), kwargs=ports)
            leader.start()
            assert backend.begun.wait(30)
            threading.Thread(target=interrupt).start()
            with pytest.raises(KeyboardInterrupt):
                manager.allocate("gone")
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert len(manager._leases.committer._calls.inside) == 1
        backend.go.set()
        leader.join()
        assert manager.allocate("next")
        assert {one.owner for one in manager.interfaces()} == {"led", "next"}


def test_tasks_share_a_manager(path):
    import asyncio

    async def main(manager):
        return await asyncio.gather(
            *(asyncio.to_thread(manager.allocate, f"task{i}", ports=(80,)) for i in range(20))
        )

    with manager_of(path) as manager:
        assert len({one.ip for one in asyncio.run(main(manager))}) == 20


def test_a_commit_that_fails_takes_the_kernel_back(path):
    backend = FaultyBackend()
    with manager_of(path, backend=backend) as manager:
        before = manager.allocate(ports=(80,))
        store = manager._leases.committer.store

        def fail(done):
            raise StoreError("no room")

        store._file.writer().commit = fail
        for step in (
            lambda: manager.allocate(ports=(81,)),
            before.release,
            lambda: before.allocate_port(99),
        ):
            with pytest.raises(Exception, match=r"no room|not released"):
                step()
            assert set(backend.mappings()) == set(before.ports())
            assert manager.interfaces() == [before]
        del store._file.writer().commit
        assert manager.check() == []
        assert manager.allocate(ports=(81,)).ports
        before.release()
        assert manager.check() == []


def test_an_interrupt_in_the_middle_of_the_kernel_batch_is_repaired_at_once(path):
    class Interrupted(FaultyBackend):
        cut = False

        def apply(self, add, remove=()):
            super().apply(add, remove)
            if self.cut:
                self.cut = False
                raise KeyboardInterrupt

    backend = Interrupted()
    with manager_of(path, backend=backend) as manager:
        backend.cut = True
        with pytest.raises(KeyboardInterrupt):
            manager.allocate(ports=(80,))
        assert backend.mappings() == []  # whether or not it came through
        assert manager.interfaces() == [] == manager.check()


def test_a_full_file_is_a_clear_error_and_nothing_is_lost(path):
    with manager_of(path, network="10.0.0.1/16") as manager:
        first = manager.allocate("first", ports=(80,))
        store = manager._leases.committer.store
        ((pages,),) = store._file.writer().rows("PRAGMA page_count")
        store._file.writer().execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StoreError, match=r"no room left on the disk .* nothing was changed"):
            manager.allocate_many(5000, owner="x" * 50)
        assert manager.interfaces() == [first]
        assert manager.check() == []
        store._file.writer().execute("PRAGMA max_page_count = 100000")
        assert len(manager.allocate_many(5000, owner="x" * 50)) == 5000
        assert manager.check() == []


@pytest.mark.root
def test_a_full_disk_is_a_clear_error_and_nothing_is_lost(tmp_path):
    with Private():
        namespaces.mount("tmpfs", str(tmp_path), "tmpfs", 0, "size=600k")
        backend, held = FaultyBackend(), []
        with manager_of(tmp_path / "store.db", network="10.0.0.1/16", backend=backend) as manager:
            with pytest.raises(StoreError, match=r"store\.db: no room left on the disk"):
                while True:
                    held += manager.allocate_many(50, (80,), owner="x" * 50)
            for _ in range(3):
                with pytest.raises(StoreError, match="no room left on the disk"):
                    manager.allocate_many(50, (80,), owner="x" * 50)
            assert manager.interfaces() == held
            assert len(backend.mappings()) == len(held)
        with manager_of(tmp_path / "store.db", network="10.0.0.1/16", backend=backend) as manager:
            assert manager.interfaces() == held
            namespaces.mount("tmpfs", str(tmp_path), "tmpfs", MS_REMOUNT, "size=40m")
            held += manager.allocate_many(500, (80,), owner="x" * 50)
            assert manager.interfaces() == held
            assert manager.check() == []


def test_the_last_to_close_leaves_no_long_log_for_the_next_to_read(path):
    """Nor does one that is not the last take it away from those that are at work."""
    log = path.with_name(f"{path.name}-wal")
    with manager_of(path, network="10.0.0.1/8", backend="null") as first:
        first.allocate_many(20_000, owner="crowd")
        assert log.stat().st_size > 1 << 20
        code = (
            "from netalloc import NetworkManager\n"
            f"NetworkManager.open('br0', {str(path)!r}).close()"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        assert log.stat().st_size > 1 << 20
        first.release("crowd")
    assert not log.exists() or log.stat().st_size <= 1 << 20
    with manager_of(path, network="10.0.0.1/8", backend="null") as again:
        assert again.interfaces() == []
        assert again.check() == []
