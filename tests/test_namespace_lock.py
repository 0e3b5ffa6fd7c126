"""One truth for each network namespace, whatever processes, threads, forks and kills do."""

import fcntl
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults import in_child
from lab import Private
from netalloc.errors import InUseError, NetallocError
from netalloc.host import namespace_lock, netns
from netalloc.host.namespace_lock import claim

FLOCK = struct.Struct("@hhqqi4x")  # struct flock

OTHER = """
import sys
from netalloc.host.namespace_lock import claim
claimed = claim(sys.argv[1], "other")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """The runtime directory of this test."""
    path = tmp_path / "run"
    monkeypatch.setenv("NETALLOC_RUNTIME_DIR", str(path))
    return path


def other(truth, **options):
    """Another process that has claimed for a truth."""
    command = [sys.executable, "-c", OTHER, truth]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )
    assert process.stdout.readline() == "ready\n"
    return process


@contextmanager
def private(directory):
    """A private host that shares our runtime directory."""
    with Private():
        os.environ["NETALLOC_RUNTIME_DIR"] = str(directory)
        yield


def files(directory):
    return sorted(path.name for path in directory.iterdir())


def test_one_truth_goes_together_and_another_is_refused(directory):
    with other("store /a") as process:
        both = claim("store /a", "ours"), claim("store /a", "ours again")
        with pytest.raises(InUseError, match=f"from store /a .other, process {process.pid}"):
            claim("store /b", "ours")
        for one in both:
            one.close()
        with pytest.raises(InUseError, match="cannot be from memory of process 1"):
            claim("memory of process 1", "ours")
        process.stdin.close()
    assert files(directory) == []
    with claim("store /b", "ours") as ours, pytest.raises(InUseError, match="store /b"):
        assert ours.truth == "store /b"
        claim("store /a", "ours")
    assert files(directory) == []
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_file_is_private():
    with claim("store /a", "ours"):
        (path,) = Path(os.environ["NETALLOC_RUNTIME_DIR"]).iterdir()
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_claim_ends_with_its_process_however_that_ends():
    with other("store /a") as process:
        process.kill()
        process.wait()
        with claim("store /b", "ours"):
            pass


def test_who_is_left_is_named_when_the_first_has_gone():
    with other("store /a") as first, other("store /a") as second:
        first.kill()
        first.wait()
        with claim("store /a", "third") as third:
            with pytest.raises(InUseError, match=f"third, process {os.getpid()}"):
                claim("store /b", "ours")
            third.close()
        with pytest.raises(InUseError, match="another process"):
            claim("store /b", "ours")
        second.kill()


def test_a_forked_child_does_not_keep_it_and_does_not_end_it():
    ours = claim("store /a", "ours")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)  # until the parent has closed its claim and looked
        os._exit(0)
    os.close(reading)
    assert in_child(ours.close) == 0  # a child's close takes nothing from the parent
    with pytest.raises(InUseError, match="store /a"):
        claim("store /b", "ours")
    ours.close()
    with claim("store /b", "ours"):
        pass
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0


def test_a_program_that_is_started_does_not_keep_it():
    ours = claim("store /a", "ours")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as cat:
        ours.close()
        with claim("store /b", "ours"):
            pass
        cat.stdin.close()


def test_threads_that_close_one_claim(directory):
    for _ in range(50):
        ours = claim("store /a", "ours")
        threads = [threading.Thread(target=ours.close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert files(directory) == []


def name():
    return f"netns-{netns.current().device}-{netns.current().inode}"


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_what_is_no_file_is_refused_at_once(directory, kind, tmp_path):
    directory.mkdir(mode=0o700)
    path, target = directory / name(), tmp_path / "target"
    target.write_text("precious")
    match kind:
        case "symlink":
            path.symlink_to(target)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
    with pytest.raises(NetallocError, match="remove it"):
        claim("store /a", "ours")
    assert target.read_text() == "precious"


@pytest.mark.parametrize("kind", ["symlink", "file"])
def test_a_runtime_directory_that_is_none_is_refused(directory, kind, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    if kind == "symlink":
        directory.symlink_to(tmp_path / "elsewhere")
    else:
        directory.write_text("")
    with pytest.raises(NetallocError, match="no directory, or a symlink"):
        claim("store /a", "ours")
    assert files(tmp_path / "elsewhere") == []


def test_a_directory_that_others_may_read_becomes_private(directory):
    directory.mkdir(mode=0o755)
    with claim("store /a", "ours"):
        assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.root
def test_another_users_directory_and_file_are_not_used(directory, tmp_path, monkeypatch):
    directory.mkdir()
    os.chown(directory, 65534, 65534)
    with pytest.raises(NetallocError, match="is of user 65534, not ours"):
        claim("store /a", "ours")
    os.chown(directory, 0, 0)
    (directory / name()).touch()
    os.chown(directory / name(), 65534, 65534)
    with pytest.raises(NetallocError, match="is no file of this user"):
        claim("store /a", "ours")


@pytest.mark.root
def test_where_each_user_has_it(tmp_path, monkeypatch):
    monkeypatch.delenv("NETALLOC_RUNTIME_DIR")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with Private():
        with claim("store /a", "ours"):
            assert files(Path("/run/netalloc")) == [name()]
        # A squatter's directory is an error for another user, and root does not go by it.
        tmp = Path("/tmp/netalloc-65534")
        assert not tmp.exists(), "the machine's own"
        tmp.mkdir()
        try:

            def nobody():
                os.setresuid(65534, 65534, 65534)
                with pytest.raises(NetallocError, match="not ours: it is not used"):
                    claim("store /a", "ours")

            assert in_child(nobody) == 0
        finally:
            tmp.rmdir()
        xdg = Path("/run/user")
        xdg.mkdir(mode=0o700)
        os.chown(xdg, 65534, 65534)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(xdg))

        def with_xdg():
            os.setresuid(65534, 65534, 65534)
            with claim("store /a", "ours"):
                assert files(xdg / "netalloc") == [name()]

        assert in_child(with_xdg) == 0
        with claim("store /b", "ours"):  # of root, who minds a user's claims no more than a user
            assert files(Path("/run/netalloc")) == [name()]


@pytest.mark.root
def test_a_namespace_that_took_the_number_of_another_begins_anew(directory):
    with private(directory), other("store /a") as process:
        first = netns.current()
        process.kill()
    (left,) = directory.iterdir()  # which is no harm
    assert left.name == f"netns-{first.device}-{first.inode}"
    left.rename(directory / name())  # as if that number had become ours
    claim("store /b", "ours").close()
    assert files(directory) == []


@pytest.mark.root
def test_a_claimed_namespace_keeps_its_number(directory):
    with private(directory):
        first = netns.current()
        ours = claim("store /a", "ours")
    try:
        for _ in range(50):
            with Private():
                assert netns.current() != first
    finally:
        ours.close()


def test_a_process_stopped_at_the_entrance_is_an_error_and_no_hang(directory, monkeypatch):
    monkeypatch.setattr(namespace_lock, "_WAIT", 0.05)
    claim("store /a", "ours").close()
    code = (
        "import sys; from netalloc.host import runtime_dir;"
        "from netalloc.host.ofd_lock import WRITE, set_lock;"
        "directory = runtime_dir._open();"
        "fd = runtime_dir.open_file(directory, sys.argv[1]);"
        "assert set_lock(fd, WRITE, 1); print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, name()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(NetallocError, match=r"not let go for 0\.05 s"):
            claim("store /a", "ours")
        process.send_signal(signal.SIGCONT)
        process.stdin.close()
    with claim("store /a", "ours"):
        pass


def racer(truth, rounds, path, results, start):
    """Claims and gives up; while it holds, it notes its truth in a file that all share."""
    start.wait()
    won = refused = wrong = 0
    for _ in range(rounds):
        try:
            with claim(truth, "racer"):
                won += 1
                with path.open("r+b") as shared:
                    # Two truths at one time would meet here, each with its byte.
                    mine = {"store /a": 0, "store /b": 1}[truth]
                    fcntl.lockf(shared, fcntl.LOCK_SH, 1, mine)
                    question = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 1 - mine, 1, 0)
                    answer = fcntl.fcntl(shared, fcntl.F_GETLK, question)
                    wrong += FLOCK.unpack(answer)[0] != fcntl.F_UNLCK
        except InUseError as error:
            refused += 1
            named = {"store /a": "store /b", "store /b": "store /a"}[truth]
            wrong += f"managed from {named}" not in str(error)
        except NetallocError:
            wrong += 1
    results.put((won, refused, wrong))


@pytest.mark.parametrize(
    "processes", [40, pytest.param(200, marks=pytest.mark.soak)], ids=["40", "200"]
)
def test_of_two_truths_one_wins_at_any_moment(tmp_path, processes, capsys):
    path = tmp_path / "shared"
    path.write_bytes(b"ab")
    context = multiprocessing.get_context("fork")
    results, start = context.Queue(), context.Event()
    racers = [
        context.Process(target=racer, args=(f"store /{'ab'[number % 2]}", 25, path, results, start))
        for number in range(processes)
    ]
    for one in racers:
        one.start()
    start.set()
    found = [results.get(timeout=30) for _ in racers]
    for one in racers:
        one.join()
    won, refused, wrong = map(sum, zip(*found, strict=True))
    with capsys.disabled():
        sys.stdout.write(f"\n{processes} processes: {won} claims, {refused} refusals, {wrong} bad ")
    assert won + refused == processes * 25
    assert won and not wrong
