"""A process without file descriptors: what it is refused is no damage, and nothing stays open."""

import errno
import os
import resource
import shutil
import sqlite3
import sys
from functools import partial
from pathlib import Path

import pytest

from faults import in_child
from netalloc.errors import StoreError
from netalloc.manager.repair import make_anew, repair
from netalloc.store.records import Network, Reservation
from netalloc.store.sqlite.copying import copy_of
from netalloc.store.sqlite.store import SqliteStore
from netalloc.store.sqlite.view import open_view

NETWORK = Network(
    1, "br0", "br0", "bridge", "10.0.0.1/16", None, "", "null", "80-90", 0, 0, 0, "open", ""
)
MOST = 6  # descriptors that one of these calls has open at once


def anew(path):
    """A repair by a new file, also where the one that is there is whole."""
    return make_anew(path, 10.0)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "store" / "store.db"
    path.parent.mkdir()
    with SqliteStore(path) as store:

        def change(tx):
            tx.next("network")
            tx.table(Network).add((NETWORK,))

        store.run("make", change)
        add(store, 1)
        store.write_back()
    return path


def add(store, ordinal):
    rows = (Reservation(1, ordinal, "x", 1),)
    store.run("add", lambda tx: tx.table(Reservation).add(rows))


def ordinals(store):
    return store.view(lambda tx: sorted(one.ordinal for one in tx.table(Reservation).all()))


class Descriptors:
    """How many this process may still open, whatever gaps there are in what it has open."""

    def __init__(self):
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = self.opened()[-1]
        self.next = 0  # all below are taken
        while self.next <= highest:
            self.next = os.open(os.devnull, os.O_RDONLY) + 1

    def leave(self, free):
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.next + free, self.limits[1]))

    def run_out(self):
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, self.limits[1]))

    def lift(self):
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)

    @staticmethod
    def opened():
        found = [int(one.name) for one in Path("/proc/self/fd").iterdir()]
        return sorted(one for one in found if Path(f"/proc/self/fd/{one}").is_symlink())

    def left_open(self):
        found = [one for one in self.opened() if one >= self.next]
        return [str(Path(f"/proc/self/fd/{one}").readlink()) for one in found]


@pytest.mark.parametrize("free", range(MOST + 3))
def test_however_few_are_free_it_is_an_error_and_then_goes_on(path, free):
    def work():
        fds = Descriptors()
        kept = SqliteStore(path)
        kept.run("nothing", lambda tx: None)  # it is open to write, not yet to read
        views = (kept, open_view(path))
        inode, refused = path.stat().st_ino, 0
        fds.next += len(fds.left_open())  # of the store, without a gap
        fds.leave(free)
        for call in (
            lambda: open_view(path).view(lambda tx: None),
            lambda: SqliteStore(path).close(),
            lambda: copy_of(path, path.with_name(f"copy-{free}")),
            lambda: add(kept, 2),
            lambda: repair(path),
            *(lambda one=one: ordinals(one) for one in views),
        ):
            try:
                call()
            except StoreError as error:
                refused += 1
                assert "damaged (" not in str(error), error
        assert path.stat().st_ino == inode, "a whole file was made anew"
        fds.lift()
        assert bool(refused) == (free < MOST)
        add(kept, 3)
        assert set(ordinals(kept)) in ({1, 3}, {1, 2, 3})
        assert ordinals(views[1]) == ordinals(kept)
        assert kept.check() == []
        kept.close()
        assert [one for one in fds.left_open() if "store" in one] == []

    assert in_child(work) == 0


class Short:
    """Without descriptors at the n-th thing that is done, for that thing alone or from then on.

    A statement is refused then even where SQLite has all open that it needs.
    """

    def __init__(self, fds):
        self.fds, self.left, self.lasting, self.inside = fds, 0, False, False
        self.refused = ""  # the statement
        self.events = {"open", "sqlite3.connect", "os.listdir", "os.scandir", "tempfile.mkdtemp"}
        sys.addaudithook(lambda event, _: event in self.events and self._count())
        short = self

        class Cursor(sqlite3.Cursor):
            def execute(self, sql, *values):
                short.state(sql)
                return super().execute(sql, *values)

            def executemany(self, sql, *values):
                short.state(sql)
                return super().executemany(sql, *values)

        class Raw(sqlite3.Connection):
            def cursor(self):
                return super().cursor(Cursor)

            def execute(self, sql):
                return self.cursor().execute(sql)

        sqlite3.connect = partial(sqlite3.connect, factory=Raw)

    def at(self, step, lasting, work):
        """What came of it; None where that is an error."""
        self.left, self.lasting, self.refused, self.inside = step, lasting, "", True
        try:
            return work()
        except StoreError:
            return None
        finally:
            self.inside = False
            self.fds.lift()

    def state(self, sql):
        self._count()
        if self.inside and self.left == -1 and sql != "ROLLBACK":
            self.refused = sql
            raise sqlite3.OperationalError("unable to open database file")

    def _count(self):
        if self.inside:
            if self.left == 0:
                self.fds.run_out()
            elif self.left == -1 and not self.lasting:
                self.fds.lift()
            self.left -= 1


@pytest.mark.parametrize(
    ("repair", "lasting"),
    [
        pytest.param(repair, False, id="repair-once", marks=pytest.mark.soak),
        pytest.param(anew, True, id="anew-lasting", marks=pytest.mark.soak),
        pytest.param(repair, True, id="repair-lasting"),
        pytest.param(anew, False, id="anew-once"),
    ],
)
def test_running_out_at_any_step_of_a_repair_loses_nothing_and_leaves_nothing(
    path, tmp_path, repair, lasting
):
    def work():
        fds = Descriptors()
        short = Short(fds)
        step, refused = 0, 0
        while short.left < 0 or not step:
            copy = tmp_path / str(step) / "store.db"
            copy.parent.mkdir()
            for suffix in ("", ".lock"):
                shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
            store = SqliteStore(copy)
            add(store, 2)  # so there is a log
            inode = copy.stat().st_ino
            done = short.at(step, lasting, lambda copy=copy: repair(copy))
            beside = [one.name for one in copy.parent.iterdir() if "salvage" in one.name]
            assert beside == [], (step, short.refused)
            if done is None or repair is not anew:
                assert copy.stat().st_ino == inode, (step, short.refused)
            assert done is None or not short.refused, (step, short.refused)
            if done is None:
                assert list(copy.parent.glob("*.damaged-*")) == [], (step, short.refused)
            else:
                assert not any("lost" in one for one in done), (step, done)
            assert ordinals(store) == [1, 2], (step, short.refused)
            assert store.check() == [], (step, short.refused)
            add(store, 3)
            store.close()
            assert [one for one in fds.left_open() if str(copy) in one] == [], (step, short.refused)
            shutil.rmtree(copy.parent)
            refused += done is None
            step += 1
        assert done is not None
        assert refused > 10

    assert in_child(work) == 0


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES])
def test_what_the_system_refuses_is_no_damage(path, number, monkeypatch):
    real, inode = os.open, path.stat().st_ino

    def refuse(name, *arguments, **options):
        if "boot_id" in str(name):
            raise OSError(number, os.strerror(number))
        return real(name, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match=os.strerror(number)):
        repair(path)
    monkeypatch.undo()
    assert path.stat().st_ino == inode
    assert list(path.parent.glob("*.damaged-*")) == []


def test_a_header_that_forbids_writing_is_damage(path):
    """SQLite's word for it is the same as for a file without the right to write."""
    with path.open("r+b") as file:
        file.seek(18)  # of the format to write
        file.write(b"\3")
    repair(path)
    with SqliteStore(path) as store:
        add(store, 2)
        assert ordinals(store) == [1, 2]
