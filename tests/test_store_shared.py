"""One file, many who have it open: stores, threads, forks and processes, and a view beside."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from faults import DieAt, in_child
from netalloc.errors import ClosedError, InvalidValueError, OutOfRangeError, StoreError
from netalloc.manager.manager import NetworkManager
from netalloc.manager.repair import make_anew, repair
from netalloc.store.records import Network, Reservation
from netalloc.store.sqlite.alone import alone
from netalloc.store.sqlite.connection import Connection
from netalloc.store.sqlite.store import SqliteStore
from netalloc.store.sqlite.view import open_view
from netalloc.store.sqlite.write_lock import WriteLock
from netalloc.store.sqlite.writer_record import WriterRecord

NETWORK = Network(
    1, "br0", "br0", "bridge", "10.0.0.1/16", None, "", "null", "80-90", 0, 0, 0, "open", ""
)


def anew(path):
    """A repair by a new file, also where the one that is there is whole."""
    return make_anew(path, 10.0)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "store.db"
    with SqliteStore(path) as store:

        def change(tx):
            tx.next("network")
            tx.table(Network).add((NETWORK,))

        store.run("make", change)
        store.write_back()
    return path


def add(store, ordinal, network=1):
    rows = (Reservation(network, ordinal, "x", 1),)
    store.run("add", lambda tx: tx.table(Reservation).add(rows))


def ordinals(store):
    return store.view(lambda tx: sorted(one.ordinal for one in tx.table(Reservation).all()))


def open_files(path):
    found = []
    for one in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(one.readlink()))
        except OSError:
            continue
    return sorted(one for one in found if one.startswith(str(path)))


class Other:
    """Another process with the store open, which does what it is told."""

    CODE = """
import sys
from netalloc.store.records import Reservation
from netalloc.store.sqlite.connection import Connection
from netalloc.store.sqlite.store import SqliteStore
store = SqliteStore(sys.argv[1])
for line in sys.stdin:
    word, _, number = line.strip().partition(" ")
    if word == "add":
        rows = (Reservation(1, int(number), "other", 1),)
        store.run("add", lambda tx: tx.table(Reservation).add(rows))
    elif word == "hold":
        tx = store.begin("hold")
    elif word == "end":
        tx.rollback()
    elif word == "close":
        store.close()
    print("> done", flush=True)
"""

    def __init__(self, path):
        command = [sys.executable, "-c", self.CODE, str(path)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        answers = (answer for answer in self.process.stdout if answer.startswith("> "))
        return next(answers)[2:].strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


# ---- one set of connections


def test_what_a_process_opens_takes_no_locks_of_its_own_away(path):
    """A second store, a view and a check in one process; then another process comes and goes.

    It would be the last one, for all that SQLite knew, and delete the log that is in use.
    """
    with SqliteStore(path) as first, SqliteStore(path) as second:
        add(first, 1)
        with open_view(path) as view:
            assert ordinals(view) == [1]
        assert second.check() == []
        SqliteStore(path).close()
        with Other(path) as other:
            assert other.tell("add 2") == "done"
            assert other.tell("close") == "done"
        log = Path(f"{path}-wal").stat().st_ino
        raw = sqlite3.connect(path)  # of the first edition, say, in another process
        raw.close()
        add(first, 3)
        assert Path(f"{path}-wal").stat().st_ino == log
        assert ordinals(second) == [1, 2, 3]
    with SqliteStore(path) as again:
        assert ordinals(again) == [1, 2, 3]
        assert again.check() == []


@pytest.mark.parametrize("repair", [repair, anew])
def test_a_repair_in_a_process_that_has_it_open_loses_nothing(path, repair):
    with SqliteStore(path) as store, Other(path) as other:
        add(store, 1)
        assert other.tell("add 2") == "done"
        repair(path)
        add(store, 3)
        assert other.tell("add 4") == "done"
        assert other.tell("close") == "done"
        add(store, 5)
        assert ordinals(store) == [1, 2, 3, 4, 5]
    with SqliteStore(path) as again:
        assert ordinals(again) == [1, 2, 3, 4, 5]


LAST_ONE = """
import sqlite3, sys
raw = sqlite3.connect(sys.argv[1])
raw.execute("SELECT * FROM state").fetchall()
print("in", flush=True)
sys.stdin.readline()
raw.close()
print("out", flush=True)
"""


def test_a_repair_keeps_a_process_that_closes_from_rolling_the_log_in(path):
    """What the last one to close would write into the file, while it is being copied."""
    raw = subprocess.Popen(
        [sys.executable, "-c", LAST_ONE, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with raw, SqliteStore(path) as store:
        add(store, 1)
        assert raw.stdout.readline() == b"in\n"
        with alone(store._file, 1.0):
            size = path.stat().st_size, Path(f"{path}-wal").stat().st_size
            raw.stdin.write(b"\n")
            raw.stdin.flush()
            assert raw.stdout.readline() == b"out\n"
            assert (path.stat().st_size, Path(f"{path}-wal").stat().st_size) == size


def test_death_at_any_step_of_a_repair_loses_nothing(path, tmp_path):
    step, status = 0, None
    while status != 0:
        copy = tmp_path / str(step) / "store.db"
        copy.parent.mkdir()
        for suffix in ("", ".lock"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")

        def work(copy=copy, step=step):
            store = SqliteStore(copy)  # left open: so there is a log
            for i in range(5):
                add(store, i)
            die = DieAt(step)
            die.watch(Connection, "execute", "many", "rows")
            die.watch(WriteLock, "enter", "write")
            die.watch(Path, "unlink", "replace")
            anew(copy)

        status = in_child(work)
        assert status in (0, -signal.SIGKILL)
        with SqliteStore(copy) as store:
            assert ordinals(store) == list(range(5)), step
            assert status or store.needs_recovery(1)
            assert store.check() == []
        repair(copy)
        assert [one.name for one in copy.parent.iterdir() if "salvage" in one.name] == []
        shutil.rmtree(copy.parent)
        step += 1 if step >= 70 else 10  # the file is made anew, and then put in its place
    assert step > 75


def test_stores_of_one_process_share_what_is_open(path):
    with SqliteStore(path) as first:
        add(first, 1)
        assert ordinals(first) == [1]
        before = open_files(path)
        others = [SqliteStore(path) for _ in range(20)]
        for i, one in enumerate(others):
            add(one, 10 + i)
            assert len(ordinals(one)) == 2 + i
        assert open_files(path) == before
        for one in others:
            one.close()
        add(first, 2)
        assert len(ordinals(first)) == 22
    assert open_files(path) == []


@pytest.mark.parametrize("another", [False, True])
def test_a_file_that_is_gone_and_put_back_is_gone_on_with(path, another):
    with SqliteStore(path) as store:
        add(store, 1)
        assert ordinals(store) == [1]
        store.survey(lambda tx: None)
        aside = path.with_name("aside.db")
        path.rename(aside)
        for call in (lambda: add(store, 2), lambda: ordinals(store)):
            with pytest.raises(StoreError, match="is gone"):
                call()
        if another:
            shutil.copy(aside, path)
            aside.unlink()
        else:
            aside.rename(path)
        add(store, 3)
        assert ordinals(store) == [1, 3]


def test_a_relative_path_is_the_same_file_after_a_chdir(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with SqliteStore("store.db") as store:
        monkeypatch.chdir(tmp_path / "b")
        add(store, 1)
        with open_view(tmp_path / "a" / "store.db") as view:
            assert ordinals(view) == [1]
    assert list((tmp_path / "b").iterdir()) == []


def test_a_link_that_turns_elsewhere_changes_nothing(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to("store.db")
    with SqliteStore(link) as store, SqliteStore(path) as same:
        link.unlink()
        link.symlink_to("new.db")
        add(store, 1)
        assert ordinals(same) == [1]
    assert not (tmp_path / "new.db").exists()


# ---- values


@pytest.mark.parametrize("timeout", [True, "1", None, float("nan"), -1, float("inf"), 1e300, b"1"])
def test_a_timeout_is_a_number_of_seconds(tmp_path, timeout):
    for way in (SqliteStore, open_view):
        with pytest.raises(InvalidValueError, match="timeout"):
            way(tmp_path / "store.db", timeout=timeout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("boot", [1, b"boot", True, "", "a\nb", "a\0b", "\ud800", "x" * 300])
def test_a_boot_is_a_short_text(tmp_path, boot):
    with pytest.raises((InvalidValueError, OutOfRangeError), match="boot"):
        SqliteStore(tmp_path / "store.db", boot=boot)
    assert list(tmp_path.iterdir()) == []


def test_files_are_their_owners_alone_whatever_the_umask(tmp_path):
    for umask in (0, 0o777):
        path = tmp_path / f"{umask}.db"
        old = os.umask(umask)
        try:
            with SqliteStore(path) as store:
                add(store, 1)
                modes = {
                    one.name: one.stat().st_mode & 0o777 for one in tmp_path.glob(f"{umask}.db*")
                }
        finally:
            os.umask(old)
        assert len(modes) == 4 and set(modes.values()) == {0o600}


# ---- the write lock


def test_any_number_of_networks_may_be_dirty(path):
    """600 networks far apart: a record of two pages. What was cut off shows at each of them."""
    numbers = range(1, 1_200_000, 2000)

    def work():
        store = SqliteStore(path)

        def change(tx):
            tx.table(Network).add(NETWORK._replace(number=n, name=f"n{n}") for n in numbers[1:])

        store.run("add", change)

        def kernel(tx):
            for number in numbers:
                tx.mark_dirty(number)
            os.kill(os.getpid(), signal.SIGKILL)

        store.run("kernel", kernel)

    assert in_child(work) == -signal.SIGKILL
    assert Path(f"{path}.lock").stat().st_size > 4096
    with SqliteStore(path) as store:
        assert store.needs_recovery(1)
        assert store.run("next", lambda tx: tx.dirty) == set(numbers)

        def clean(tx):
            for number in numbers:
                tx.mark_clean(number)

        store.run("clean", clean)
        assert not any(map(store.needs_recovery, numbers))


def test_a_record_that_was_cut_off_counts_as_everything_dirty(path):
    lock = Path(f"{path}.lock")
    many = WriterRecord(7, "x", "boot", 3, frozenset(range(1, 9000, 2)), 5).line()
    few = WriterRecord(0, "", "boot", 3, frozenset(), 5).line()
    assert WriterRecord.parse(many).dirty == frozenset(range(1, 9000, 2))
    assert WriterRecord.parse(few + many[len(few) :]).dirty == frozenset()
    other = WriterRecord(7, "x", "boot", 3, frozenset(range(2, 9000, 2)), 5).line()
    for cut in range(4096, len(many), 4096):
        lock.write_bytes(many[:cut] + other[cut:])
        with SqliteStore(path) as store:
            assert store.needs_recovery(1)
            assert store.run("next", lambda tx: tx.dirty) == {1}


def test_a_record_that_cannot_be_read_is_no_new_store(path):
    Path(f"{path}.lock").write_bytes(b"7|x|boot|3|1,3,5")
    path.unlink()
    with pytest.raises(StoreError, match="something was committed to it"):
        SqliteStore(path)
    assert not path.exists()


def test_waits_that_end_are_over(path):
    """Twenty that time out leave no thread and no file, and none takes the lock afterwards."""
    with Other(path) as other, SqliteStore(path, timeout=0.02) as store:
        add(store, 0)
        assert ordinals(store) == [0]
        assert other.tell("hold") == "done"
        threads, files = threading.active_count(), open_files(path)
        for _ in range(20):
            with pytest.raises(StoreError, match=rf"process {other.process.pid} \(hold\)"):
                add(store, 1)
        assert (threading.active_count(), open_files(path)) == (threads, files)
        assert other.tell("end") == "done"
        with Other(path) as third:
            assert third.tell("add 2") == "done"
        with SqliteStore(path) as patient:
            add(patient, 3)
            assert other.tell("add 4") == "done"
            assert ordinals(patient) == [0, 2, 3, 4]


@pytest.mark.parametrize("byte", [0, 1])
def test_an_interrupted_wait_never_takes_the_lock(path, byte):
    class Interrupt(Exception):
        pass

    def handler(*_):
        raise Interrupt

    holder, queued, lock = (WriteLock(Path(f"{path}.lock")) for _ in range(3))
    holder.enter("hold")
    if byte == 0:  # another one has the queue lock
        thread = threading.Thread(target=lambda: queued.enter("queue", 5.0))
        thread.start()
    old = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(20):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            with pytest.raises(Interrupt):
                lock.enter("wait", 5.0)
        with pytest.raises(StoreError, match="waited 0.01 s"):
            lock.enter("wait", 0.01)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    holder.leave()
    if byte == 0:
        thread.join()
        queued.leave()
    for _ in range(20):  # more often than it may be taken without queueing
        holder.enter("again", 0.1)
        holder.leave()
    for one in (holder, queued, lock):
        one.close()


def test_a_child_that_was_forked_within_a_change_keeps_no_lock(path):
    with SqliteStore(path) as store:
        read, write = os.pipe()

        def change(tx):
            child = os.fork()
            if not child:
                try:
                    os.close(write)
                    for step in (lambda: tx.mark_dirty(1), lambda: add(store, 8), tx.commit):
                        try:
                            step()
                            os._exit(2)
                        except StoreError:
                            pass
                    os.read(read, 1)  # until the parent is done with all of this
                except BaseException:
                    os._exit(1)
                raise KeyError("the child's way out")
            tx.table(Reservation).add((Reservation(1, 1, "x", 1),))
            return child

        try:
            child = store.run("fork", change)
        except KeyError:
            try:
                add(store, 9)
            except StoreError as error:
                os._exit(0 if "forked in the middle" in str(error) else 3)
            os._exit(4)
        os.close(read)
        with Other(path) as other:
            assert other.tell("add 2") == "done"
        add(store, 3)
        os.close(write)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ordinals(store) == [1, 2, 3]


# ---- forks


def test_a_child_has_connections_of_its_own(path):
    """And what it does with them takes nothing from its parent, nor the other way round."""
    with SqliteStore(path) as store:
        add(store, 1)
        assert ordinals(store) == [1]

        def work():
            assert not [one for one in open_files(path) if not one.endswith(".lock")]
            for i in range(20):
                add(store, 100 + i)
            assert len(ordinals(store)) >= 21
            assert store.check() == []

        for i in range(5):
            assert in_child(work if i == 0 else lambda i=i: add(store, 200 + i)) == 0
            add(store, 10 + i)
        assert len(ordinals(store)) == 1 + 20 + 4 + 5
    with SqliteStore(path) as again:
        assert len(ordinals(again)) == 30 and again.check() == []


def test_a_childs_locks_are_seen_by_others(path):
    """The log of a child that works on is not deleted by the last one of the others."""
    with SqliteStore(path) as store:
        add(store, 1)
        asked, ask = os.pipe()
        answered, answer = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(ask)
                add(store, 2)
                os.write(answer, b"!")
                os.read(asked, 1)
                add(store, 3)
                os._exit(0)
            except BaseException:
                os._exit(1)
        os.close(asked)
        assert os.read(answered, 1) == b"!"
        log = Path(f"{path}-wal").stat().st_ino
        store.close()
        sqlite3.connect(path).close()
        with SqliteStore(path) as again:
            add(again, 4)
            os.close(ask)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert ordinals(again) == [1, 2, 3, 4]
            assert Path(f"{path}-wal").stat().st_ino == log
        os.close(answered)
        os.close(answer)


# ---- closing


def test_closing_waits_for_what_is_under_way_and_ends_the_rest(path):
    """Several hundred rounds: threads that write, read and check while it is closed."""
    for round_ in range(300):
        store = SqliteStore(path)
        started, wrong = threading.Barrier(4), []

        def work(call, store=store, started=started, wrong=wrong):
            started.wait()
            try:
                while True:
                    call(store)
            except ClosedError:
                pass
            except BaseException as error:
                wrong.append(error)

        threads = [
            threading.Thread(target=work, args=(call,))
            for call in (ordinals, lambda store: store.needs_recovery(1), touch)
        ]
        for thread in threads:
            thread.start()
        started.wait()
        if round_ % 3:
            time.sleep(0.0003 * (round_ % 3))
        store.close()
        store.close()
        for thread in threads:
            thread.join()
        assert wrong == []
    assert open_files(path) == []


def touch(store):
    store.run("touch", lambda tx: tx.next("generation"))


def test_closing_is_bounded_and_can_be_done_again(path):
    store = SqliteStore(path, timeout=0.05)
    inside, leave = threading.Event(), threading.Event()

    def work():
        def change(tx):
            tx.table(Reservation).add((Reservation(1, 1, "x", 1),))
            inside.set()
            assert leave.wait(10)

        store.run("slow", change)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    with pytest.raises(StoreError, match="another thread"):
        store.close()
    with pytest.raises(ClosedError):
        add(store, 2)
    leave.set()
    thread.join()
    store.close()
    store.close()
    for call in (ordinals, store.check, store.write_back, lambda: store.begin("x"), store.read):
        with pytest.raises(ClosedError):
            call(store) if call is ordinals else call()
    with SqliteStore(path) as again:
        assert ordinals(again) == [1]


def test_closing_one_store_leaves_the_others_of_the_process(path):
    first, second = SqliteStore(path), SqliteStore(path)
    tx = second.begin("long")
    tx.table(Reservation).add((Reservation(1, 1, "x", 1),))
    first.close()
    with pytest.raises(ClosedError):
        ordinals(first)
    tx.commit()
    assert ordinals(second) == [1]
    second.close()


def test_what_a_thread_left_open_is_undone_by_closing(path):
    store = SqliteStore(path)
    tx, view = store.begin("left"), store.read()
    tx.table(Reservation).add((Reservation(1, 1, "x", 1),))
    store.close()
    tx.rollback()
    view.rollback()
    with pytest.raises(ClosedError):
        tx.commit()
    with SqliteStore(path) as again:
        assert ordinals(again) == []


def test_a_change_within_a_change_is_refused_and_the_outer_goes_on(path):
    with SqliteStore(path) as store, SqliteStore(path) as same:

        def change(tx):
            for inner in (store, same):
                with pytest.raises(StoreError, match="in the middle"):
                    add(inner, 2)
                assert ordinals(inner) == []
            with pytest.raises(StoreError, match="in the middle"):
                store.refuse_reentry("release")
            tx.table(Reservation).add((Reservation(1, 1, "x", 1),))

        store.run("outer", change)
        store.refuse_reentry("release")
        with pytest.raises(StoreError, match="in the middle"):
            store.view(lambda tx: ordinals(same))
        assert ordinals(store) == [1]


# ---- the file goes, or becomes another one


def test_a_file_that_is_removed_while_open(path, tmp_path):
    with SqliteStore(path) as store:
        add(store, 1)
        path.unlink()
        for call in (lambda: add(store, 2), lambda: ordinals(store), store.check):
            with pytest.raises(StoreError, match=r"is gone.*begin anew"):
                call()
        Path(f"{path}.lock").unlink()
        with pytest.raises(StoreError, match="is gone"):
            add(store, 2)
        assert not Path(f"{path}.lock").exists()


def test_an_old_copy_in_its_place_while_open(path, tmp_path):
    with SqliteStore(path) as store:
        add(store, 1)
        store.write_back()
        old = tmp_path / "old.db"
        old.write_bytes(path.read_bytes())
        old.chmod(0o600)
        add(store, 2)
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        old.replace(path)
        for call in (lambda: add(store, 3), lambda: ordinals(store)):
            with pytest.raises(StoreError, match="an old copy was put in its place"):
                call()


def test_a_copy_without_its_log_is_no_new_store(tmp_path):
    """All that was ever written is in the log: the file alone has no table yet."""
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    add(store, 1)
    header = path.read_bytes()
    store.close()
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(header)
    with pytest.raises(StoreError, match=r"2 changes were committed to it"):
        SqliteStore(path)
    assert path.read_bytes() == header


def test_another_store_in_its_place(path, tmp_path):
    other = tmp_path / "other.db"
    with SqliteStore(other) as store:
        for i in range(20):
            add(store, i)
        store.write_back()
    with SqliteStore(path) as store:
        add(store, 1)
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        other.replace(path)
        for call in (lambda: add(store, 3), lambda: ordinals(store)):
            with pytest.raises(StoreError, match="another store was put in the place"):
                call()
    with pytest.raises(StoreError, match="another store"):
        ordinals(SqliteStore(path))
    Path(f"{path}.lock").unlink()
    with SqliteStore(path) as store:
        assert len(ordinals(store)) == 20


def test_a_store_without_its_lock_file_has_everything_looked_at(path):
    Path(f"{path}.lock").unlink()
    with SqliteStore(path) as store:
        assert store.needs_recovery(1)
        assert store.run("next", lambda tx: tx.dirty) == {1}
        store.run("clean", lambda tx: tx.mark_clean(1))
        assert not store.needs_recovery(1)


# ---- the view


@pytest.mark.parametrize("repair", [repair, anew])
def test_a_view_sees_what_was_committed_last_while_others_write(path, repair):
    with open_view(path) as view, Other(path) as other:
        assert ordinals(view) == []
        for i in range(5):
            assert other.tell(f"add {i}") == "done"
            assert ordinals(view) == list(range(i + 1))
        assert other.tell("hold") == "done"  # a writer does not keep it waiting
        assert len(ordinals(view)) == 5
        assert other.tell("end") == "done"

        def slow(tx):
            before = len(tx.table(Reservation).all())
            for i in range(10, 15):  # nor does it keep a writer
                assert other.tell(f"add {i}") == "done"
            return before, len(tx.table(Reservation).all())

        assert view.view(slow) == (5, 5)
        assert len(ordinals(view)) == 10
        repair(path)
        assert len(ordinals(view)) == 10
        assert other.tell("add 20") == "done"
        assert len(ordinals(view)) == 11
        assert view.view(lambda tx: tx.dirty) == frozenset()
        with pytest.raises(StoreError, match="in the middle"):
            view.view(lambda tx: ordinals(view))
    with pytest.raises(ClosedError):
        ordinals(view)


def test_a_view_writes_nothing_and_keeps_nothing_open(path):
    with SqliteStore(path) as store:
        add(store, 1)
        store.write_back()
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.chmod(0o400)
    before = {one.name: one.stat().st_mtime_ns for one in path.parent.iterdir()}
    view = open_view(path)
    for _ in range(3):
        assert ordinals(view) == [1]
        assert open_files(path) == []
    with pytest.raises(StoreError):
        view.view(lambda tx: tx.table(Reservation).add((Reservation(1, 2, "x", 1),)))
    assert {one.name: one.stat().st_mtime_ns for one in path.parent.iterdir()} == before


def test_a_view_of_a_file_that_is_written_to_meanwhile_says_so(path):
    with SqliteStore(path) as store:
        store.write_back()
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    with open_view(path) as view:
        tx = view.read()
        with Other(path) as other:
            other.tell("add 1")
            other.tell("close")
        raw = sqlite3.connect(path)
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        raw.close()
        with pytest.raises(StoreError, match="written to while it was read"):
            tx.rollback()
        assert ordinals(view) == [1]


def test_a_dead_writers_log_is_read(path):
    def work():
        store = SqliteStore(path)
        add(store, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    with open_view(path) as view:
        assert ordinals(view) == [1]
    Path(f"{path}-shm").unlink()
    with open_view(path) as view, pytest.raises(StoreError, match="index .* is missing"):
        ordinals(view)


def test_what_a_view_may_not_read_and_what_is_none(path, tmp_path):
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 2")
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw.close()
    with open_view(path) as view, pytest.raises(StoreError, match="schema 2"):
        ordinals(view)
    with open_view(tmp_path / "new.db") as view:
        with pytest.raises(StoreError, match="is not there"):
            ordinals(view)
        with SqliteStore(tmp_path / "new.db") as store:
            add(store, 7)
            assert ordinals(view) == [7]


def test_a_store_made_again_while_a_fork_waits_is_no_deadlock(path):
    """Forks wait for views and changes of all threads, and go between them."""
    with SqliteStore(path) as store:
        stop = threading.Event()

        def work(call):
            while not stop.is_set():
                call(store)

        threads = [threading.Thread(target=work, args=(call,)) for call in (ordinals, touch)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                assert in_child(lambda: touch(store)) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_a_check_sees_one_moment_while_another_process_writes(tmp_path, monkeypatch):
    """Heads and leaves of bitmaps read one after the other are no damage."""
    path = tmp_path / "store.db"
    ask_another = (
        "import sys; from netalloc import NetworkManager\n"
        "m = NetworkManager.open('br0', sys.argv[1]); m.release('a'); m.allocate('b'); m.close()"
    )
    with NetworkManager("br0", network="10.0.0.1/16", backend="null", store=path) as manager:
        manager.allocate_many(3, owner="a")
        written = []
        rows = Connection.rows

        def meanwhile(self, sql, values=()):
            found = rows(self, sql, values)
            if sql == "SELECT * FROM bitmap WHERE name = ?" and not written:
                written.append(sql)
                subprocess.run([sys.executable, "-c", ask_another, path], check=True)
            return found

        monkeypatch.setattr(Connection, "rows", meanwhile)
        assert manager.check() == []
        assert written
        assert [one.owner for one in manager.find()] == ["b"]
