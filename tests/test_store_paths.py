"""Every kind of path that a store can be asked to lie at, for each way of opening one.

Each case runs in a process of its own under a watchdog, and is either an error of ours that
changed nothing and left nothing behind, or a store that works in its own files alone.
"""

import hashlib
import os
import shutil
import signal
import socket
import sqlite3
import stat
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from lab import Private, require_kernel
from netalloc.errors import NetallocError
from netalloc.host import namespaces
from netalloc.manager.repair import repair
from netalloc.store.records import Network, Reservation
from netalloc.store.sqlite.store import SqliteStore
from netalloc.store.sqlite.view import open_view

NETWORK = Network(
    1, "br0", "br0", "bridge", "10.0.0.1/24", None, "", "null", "8000-8100", 0, 0, 0, "open", ""
)
OTHER = 1234  # the id of a user that is neither root nor any of ours
MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096  # linux/mount.h


def use_store(path):
    with SqliteStore(path, timeout=1.0) as store:
        store.run("use", lambda tx: tx.table(Reservation).add((Reservation(1, 9, "use", 1),)))
        assert store.view(lambda tx: tx.table(Reservation).get(1, 9)) is not None
        assert store.check() == []


def use_repair(path):
    assert "a copy of the file" in repair(path, timeout=1.0)[0]
    use_store(path)


def use_view(path):
    with open_view(path, timeout=1.0) as view:
        assert view.view(lambda tx: tx.table(Network).all()) == [NETWORK]
        assert view.view(lambda tx: tx.table(Reservation).get(1, 5)).owner == "kept"


WAYS = {"store": use_store, "repair": use_repair, "view": use_view}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A store with a network and a reservation, of which the file alone is whole."""
    path = tmp_path_factory.mktemp("template") / "store.db"
    make_store(path)
    return path


def make_store(path):
    with SqliteStore(path) as store:

        def change(tx):
            tx.next("network")
            tx.table(Network).add((NETWORK,))
            tx.table(Reservation).add((Reservation(1, 5, "kept", 1),))

        store.run("make", change)
        store.write_back()
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


class Setup:
    """A folder with a store in it, and what a case does to it."""

    def __init__(self, folder, template, stack):
        self.folder = folder
        self.path = folder / "store.db"
        self.template = template
        self.enter_context = stack.enter_context
        self.cwd = folder
        self.left = ()  # what a refusal may leave: SQLite's own of a store that was opened
        self.prepared = lambda: None  # within the process of the case, before it opens

    def good(self, path=None):
        path = path or self.path
        for suffix in ("", ".lock"):
            shutil.copyfile(f"{self.template}{suffix}", f"{path}{suffix}")
            Path(f"{path}{suffix}").chmod(0o600)
        return path


class Case(NamedTuple):
    prepare: Callable
    store: str
    repair: str
    view: str


CASES = {}


def case(store, repair, view):
    """What becomes of each way: "ok", or the name of the error."""

    def add(prepare):
        CASES[prepare.__name__] = Case(prepare, store, repair, view)
        return prepare

    return add


INVALID = ("InvalidValueError",) * 3
REFUSED = ("StoreError",) * 3
OK = ("ok",) * 3

# ---- what is no path


def value(name, given, outcome=INVALID):
    def prepare(setup):
        return given

    prepare.__name__ = name
    case(*outcome)(prepare)


class Fails:
    def __fspath__(self):
        raise ZeroDivisionError


class Text(str):
    pass


value("empty", "")
value("memory", ":memory:")
value("memory_as_a_path", Path(":memory:"))
value("uri", "file:store.db?mode=memory")
value("none", None)
value("a_descriptor", 0)
value("true", True)
value("float", 1.5)
value("list", ["store.db"])
value("fspath_that_fails", Fails())
value("nul", "/tmp/a\0b")
value("surrogate", "/tmp/\ud800")
value("escaped_byte", "/tmp/\udcff")
value("too_long", "/tmp/" + "x/" * 3000, ("OutOfRangeError",) * 3)
value("far_too_long", "/tmp/" + "x/" * 3_000_000, ("OutOfRangeError",) * 3)
value("name_too_long", "/tmp/" + "x" * 256, REFUSED)
value("nowhere", "/nowhere/at/all/store.db", REFUSED)
value("in_proc", "/proc/self/status", REFUSED)
value("null_device", "/dev/null", REFUSED)
value("a_folder_of_the_system", "/", REFUSED)


@case(*INVALID)
def bytes_path(setup):
    return os.fsencode(setup.good())


@case("StoreError", "StoreError", "StoreError")
def no_room_for_the_lock_files_name(setup):
    return setup.folder / ("x" * 252)


@case(*OK)
def odd_characters(setup):
    return setup.good(setup.folder / "a b\n'\"%?#&;.db")


@case(*OK)
def subclass_of_text(setup):
    return Text(setup.good())


@case(*OK)
def unicode(setup):
    return setup.good(setup.folder / "größe☃.db")


# ---- relative paths


@case(*OK)
def relative(setup):
    setup.good()
    setup.prepared = lambda: os.chdir(setup.folder)
    return "store.db"


@case(*OK)
def relative_with_dots(setup):
    setup.good()
    setup.cwd = setup.folder / "sub"
    setup.cwd.mkdir()
    setup.prepared = lambda: os.chdir(setup.cwd)
    return "../sub/.././store.db"


@case(*REFUSED)
def relative_to_a_folder_that_is_gone(setup):
    def go():
        gone = setup.folder / "gone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()

    setup.prepared = go
    return "store.db"


@case(*OK)
def named_like_a_uri(setup):
    setup.good(setup.folder / "file:store.db")
    setup.prepared = lambda: os.chdir(setup.folder)
    return "./file:store.db"


# ---- links


@case(*OK)
def symlink_to_a_file(setup):
    (setup.folder / "link").symlink_to(setup.good())
    return setup.folder / "link"


@case(*OK)
def symlink_in_a_parent(setup):
    (setup.folder / "real").mkdir()
    setup.good(setup.folder / "real" / "store.db")
    (setup.folder / "link").symlink_to("real")
    return setup.folder / "link" / "store.db"


@case("ok", "StoreError", "StoreError")
def symlink_that_dangles(setup):
    (setup.folder / "link").symlink_to("store.db")
    return setup.folder / "link"


@case(*REFUSED)
def symlink_that_dangles_far(setup):
    (setup.folder / "link").symlink_to("nowhere/store.db")
    return setup.folder / "link"


@case(*REFUSED)
def symlink_to_a_folder(setup):
    (setup.folder / "real").mkdir()
    (setup.folder / "link").symlink_to("real")
    return setup.folder / "link"


@case(*REFUSED)
def symlink_to_itself(setup):
    (setup.folder / "link").symlink_to("link")
    return setup.folder / "link"


@case(*REFUSED)
def hard_link(setup):
    os.link(setup.good(), setup.folder / "other")
    return setup.path


@case(*REFUSED)
def hard_link_by_the_other_name(setup):
    os.link(setup.good(), setup.folder / "other")
    return setup.folder / "other"


# ---- what is no file


@case(*REFUSED)
def fifo(setup):
    os.mkfifo(setup.path)
    return setup.path


@case(*REFUSED)
def unix_socket(setup):
    listener(setup.path)
    return setup.path


def listener(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@case(*REFUSED)
def folder(setup):
    setup.path.mkdir()
    return setup.path


@case(*REFUSED)
def folder_with_a_slash(setup):
    setup.path.mkdir()
    return f"{setup.path}/"


@case(*REFUSED)
def within_a_file(setup):
    return setup.good() / "store.db"


@case("ok", "StoreError", "StoreError")
def nothing_yet(setup):
    return setup.path


@case("ok", "StoreError", "StoreError")
def empty_file(setup):
    setup.path.touch()
    return setup.path


@case(*REFUSED)
def text_file(setup):
    setup.path.write_text("hello\n" * 1000)
    return setup.path


@case(*REFUSED)
def short_text_file(setup):
    setup.path.write_text("hello\n")
    return setup.path


@case(*REFUSED)
def zeros(setup):
    setup.path.write_bytes(bytes(8192))
    return setup.path


@case(*REFUSED)
def another_database(setup):
    with sqlite3.connect(setup.path) as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    return setup.path


# ---- the lock file


@case("ok", "ok", "ok")
def lock_is_absent(setup):
    setup.good()
    Path(f"{setup.path}.lock").unlink()
    return setup.path


def lock(name, make, *outcome):
    def prepare(setup):
        setup.good()
        where = Path(f"{setup.path}.lock")
        where.unlink()
        make(setup, where)
        return setup.path

    prepare.__name__ = f"lock_is_{name}"
    case(*outcome)(prepare)


def to_a_victim(setup, where):
    victim = setup.folder / "victim"
    victim.write_text("precious\n" * 100)
    where.symlink_to(victim)


def linked_twice(setup, where):
    shutil.copyfile(f"{setup.template}.lock", where)
    os.link(where, setup.folder / "other")


def of_another(setup, where):
    shutil.copyfile(f"{setup.template}.lock", where)
    os.chown(where, OTHER, OTHER)


def wide_open(setup, where):
    shutil.copyfile(f"{setup.template}.lock", where)
    where.chmod(0o666)


LOCKED_OUT = ("StoreError", "StoreError", "ok")  # a view does without
lock("fifo", lambda setup, where: os.mkfifo(where), *LOCKED_OUT)
lock("socket", lambda setup, where: listener(where), *LOCKED_OUT)
lock("folder", lambda setup, where: where.mkdir(), *LOCKED_OUT)
lock("symlink", to_a_victim, *LOCKED_OUT)
lock("dangling", lambda setup, where: where.symlink_to("new"), *LOCKED_OUT)
lock("hard_link", linked_twice, *LOCKED_OUT)
lock("of_another_user", of_another, *LOCKED_OUT)
lock("a_text", lambda setup, where: where.write_text("precious\n" * 100), *LOCKED_OUT)
lock("wide_open", wide_open, *OK)
lock("torn", lambda setup, where: where.write_text("0||boot|12|1,2,3"), *OK)
lock("zeros", lambda setup, where: where.write_bytes(bytes(512)), *OK)

# ---- SQLite's own files beside it


def beside(name, suffix, make, *outcome):
    def prepare(setup):
        make(setup, Path(f"{setup.good()}{suffix}"))
        return setup.path

    prepare.__name__ = name
    case(*outcome)(prepare)


for suffix, view in (("-wal", "StoreError"), ("-shm", "ok")):
    beside(f"fifo{suffix}", suffix, lambda setup, where: os.mkfifo(where), *REFUSED)
    beside(f"symlink{suffix}", suffix, to_a_victim, *REFUSED)
    beside(f"folder{suffix}", suffix, lambda setup, where: where.mkdir(), *REFUSED)
    beside(f"of_another{suffix}", suffix, of_another, "StoreError", "StoreError", view)

# ---- rights


@case(*("StoreError", "StoreError", "ok"))
def file_of_another_user(setup):
    os.chown(setup.good(), OTHER, OTHER)
    return setup.path


def as_user(setup, uid=OTHER):
    def drop():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)

    setup.folder.chmod(0o755)
    setup.prepared = drop


@case(*REFUSED)
def file_that_may_not_be_read(setup):
    setup.good()
    as_user(setup)
    return setup.path


@case("StoreError", "StoreError", "ok")
def file_that_may_be_read(setup):
    setup.good().chmod(0o644)
    as_user(setup)
    return setup.path


@case("StoreError", "StoreError", "ok")
def file_that_may_be_read_in_a_group(setup):
    setup.good().chmod(0o640)
    os.chown(setup.path, 0, OTHER)
    as_user(setup)
    return setup.path


@case(*REFUSED)
def folder_that_may_not_be_entered(setup):
    inner = setup.folder / "inner"
    inner.mkdir(0o700)
    setup.good(inner / "store.db").chmod(0o666)
    as_user(setup)
    return inner / "store.db"


@case(*REFUSED)
def folder_that_may_not_be_written(setup):
    as_user(setup)
    return setup.path


@case(*OK)
def all_of_a_user_that_is_not_root(setup):
    setup.good()
    for one in (setup.path, Path(f"{setup.path}.lock"), setup.folder):
        os.chown(one, OTHER, OTHER)
    as_user(setup)
    return setup.path


@case(*OK)
def wide_open(setup):
    setup.good().chmod(0o666)
    return setup.path


@case("StoreError", "StoreError", "ok")
def folder_that_everybody_may_write(setup):
    setup.good()
    setup.folder.chmod(0o777)
    return setup.path


@case(*OK)
def sticky_folder(setup):
    setup.good()
    setup.folder.chmod(0o1777)
    return setup.path


@case("StoreError", "StoreError", "ok")
def read_only_filesystem(setup):
    mounted(setup, setup.good)
    namespaces.mount("none", str(setup.folder), "", MS_REMOUNT | MS_BIND | MS_RDONLY, "")
    return setup.path


@case("StoreError", "StoreError", "StoreError")
def read_only_filesystem_with_nothing_yet(setup):
    mounted(setup, lambda: None)
    namespaces.mount("none", str(setup.folder), "", MS_REMOUNT | MS_BIND | MS_RDONLY, "")
    return setup.path


@case("StoreError", "StoreError", "ok")
def full_disk(setup):
    mounted(setup, lambda: fill(setup.good().with_name("ballast")))
    setup.left = ("store.db-wal", "store.db-shm")
    return setup.path


@case("StoreError", "StoreError", "StoreError")
def full_disk_with_nothing_yet(setup):
    mounted(setup, lambda: fill(setup.folder / "ballast"))
    return setup.path


@case("StoreError", "StoreError", "StoreError")
def no_inodes_left(setup):
    mounted(setup, lambda: None, "nr_inodes=1")
    return setup.path


def mounted(setup, fill_it, options="size=300k"):
    require_kernel()
    setup.enter_context(Private())
    namespaces.mount("tmpfs", str(setup.folder), "tmpfs", 0, options)
    fill_it()


def fill(path):
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


# ---- the harness


def tree(folder):
    """All that is in a folder: kind, mode, owner, and what is in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        inside = None
        if stat.S_ISREG(status.st_mode):
            inside = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            inside = str(path.readlink())
        name = str(path.relative_to(folder))
        found[name] = (oct(status.st_mode), status.st_uid, status.st_nlink, inside)
    return found


def outcome_of(way, argument, prepared):
    """What came of it in a process of its own: "ok", or an error's name and message."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.alarm(20)
            prepared()
            try:
                WAYS[way](argument)
                text = "ok"
            except NetallocError as error:
                text = f"{type(error).__name__} {error}"
            except BaseException as error:
                text = f"raw {type(error).__name__} {error!r}"
            os.write(write, text.encode("utf-8", "replace")[:4000])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return text if status == 0 else f"died of {status}"


OURS = ("", ".lock", "-wal", "-shm", ".damaged-1", ".damaged-1-wal")


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_a_path_is_refused_without_a_trace_or_right(template, name, way):
    with ExitStack() as stack:
        # Where other users may go, too.
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="netalloc-test-")))
        folder.chmod(0o755)
        setup = Setup(folder, template, stack)
        argument = CASES[name].prepare(setup)
        before = tree(folder)
        outcome = outcome_of(way, argument, setup.prepared)
        after = tree(folder)
        expected = getattr(CASES[name], way)
        assert outcome.split(" ")[0] == expected, outcome
        changed = {one for one in before.keys() | after.keys() if before.get(one) != after.get(one)}
        if expected != "ok" or way == "view":
            assert changed <= set(setup.left)
        if expected != "ok":
            assert "is damaged" not in outcome, outcome
            assert len(outcome) < 800
            return
        real = os.path.realpath(setup.cwd / os.fspath(argument))
        for one in changed:
            assert str(folder / one) in [f"{real}{suffix}" for suffix in OURS], one
            assert int(after[one][0], 8) & 0o777 in (0o600, 0o640), (one, after[one])


def test_there_are_as_many_cases_as_that(capsys):
    with capsys.disabled():
        sys.stdout.write(f"\n{len(CASES)} kinds of path, {len(CASES) * len(WAYS)} cases\n")
    assert len(CASES) * len(WAYS) >= 200
