"""A forked child keeps none of the descriptors whose locks end with this process."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from netalloc.host import opened, runtime_dir
from netalloc.host.own_descriptors import close_own, open_own
from netalloc.host.watch_turn import WatchTurn

FORKS = 40


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run"
    monkeypatch.setenv(runtime_dir.VARIABLE, str(path))
    with runtime_dir.opened():
        return path


def kept(directory: Path, pid: int) -> list[str]:
    """What a process has open of a directory, and the directory itself."""
    links = [fd.readlink() for fd in Path(f"/proc/{pid}/fd").iterdir()]
    return [str(link) for link in links if link.is_relative_to(directory)]


def keep_a_record() -> None:
    with opened.opened():
        pass


def take_turns() -> None:
    with WatchTurn(7) as turn:
        turn.take()


@pytest.mark.parametrize("work", [keep_a_record, take_turns])
def test_a_fork_while_a_thread_locks(directory: Path, work: Callable[[], None]) -> None:
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set():
            work()

    threads = [threading.Thread(target=go_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    with ExitStack() as stack:
        stack.callback(lambda: [thread.join() for thread in threads])
        stack.callback(over.set)
        for _ in range(FORKS):
            ready, tell = os.pipe()
            child = os.fork()
            if not child:
                os.write(tell, b".")
                signal.pause()
            try:
                os.read(ready, 1)
                assert kept(directory, child) == []
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                os.close(ready)
                os.close(tell)
    work()  # and nothing holds a lock


def test_a_number_that_is_another_files_by_now_is_left_alone(directory: Path) -> None:
    mine = open_own(str(directory), os.O_RDONLY)
    close_own(mine)
    other = os.open(directory, os.O_RDONLY)
    assert other == mine
    close_own(mine)
    os.fstat(other)
    os.close(other)
