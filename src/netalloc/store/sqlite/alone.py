"""A store's file without any connection of this process, to copy or to replace it."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager

from netalloc.errors import StoreError
from netalloc.store.sqlite.write_lock import flock
from netalloc.store.turn import in_the_middle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import RLock
    from collections.abc import Iterator

    from netalloc.store.sqlite.file import StoreFile
    from netalloc.store.sqlite.place import StrPath


# The bytes of the file by which SQLite's readers keep it from being rolled into one with its
# log: SHARED_FIRST and SHARED_SIZE of os.h in SQLite's source.
_SHARED = flock(fcntl.F_RDLCK, 0x40000002, 510)


@contextmanager
def alone(file: StoreFile, timeout: float) -> Iterator[None]:
    """Nothing of this process has the file open, and no process puts the log into it.

    Within, the file may be opened and copied. Raises StoreError where another thread is
    at it for longer than `timeout` seconds.
    """
    with held(file, timeout):
        if file.changing or file.viewing or file.surveying:
            raise in_the_middle("repair", f"using {file.path}")
        file.close_connections()
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _share(fd, time.monotonic() + timeout, file.path)
            yield
        finally:
            os.close(fd)


@contextmanager
def held(file: StoreFile, timeout: float) -> Iterator[None]:
    """No other thread of this process reads or writes."""
    with (
        taken(file.round, timeout, file.path),
        taken(file.look, timeout, file.path),
        taken(file.turn, timeout, file.path),
    ):
        yield


@contextmanager
def taken(lock: RLock, timeout: float, path: StrPath) -> Iterator[None]:
    """Hold a lock. Raises StoreError where another thread has it for longer than that."""
    if not lock.acquire(timeout=timeout):
        raise StoreError(f"waited {timeout:g} s for another thread of this process at {path}")
    try:
        yield
    finally:
        lock.release()


def _share(fd: int, deadline: float, path: StrPath) -> None:
    """Keep the last process to close the file from rolling its log into it meanwhile."""
    while not _shared(fd):
        if time.monotonic() >= deadline:
            raise StoreError(f"{path} is locked by a program that does not give way")
        time.sleep(0.001)


def _shared(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _SHARED)
    except BlockingIOError:
        return False
    return True
