"""The queue in front of a store: which process may write, and which one is next.

SQLite lets waiting writers starve, so they queue here, in a lock file beside the store. Two
bytes of it are locked in turn: the *queue lock*, then the *write lock*. The process that has
the write lock writes; the next one already has the queue lock, so one that comes back at
once waits behind it. The locks are open file description locks (fcntl(2)): threads exclude
each other as processes do, and the kernel takes them from the dead. A forked child shares
them, and has to close() first.

Handing the write lock over costs as much as a change does. So a process may take it again
without queueing, `_TURNS` times in a row where it finds it free, and then has to queue: with
n processes the one at the head of the queue waits for that many changes of each of the
others at most.

The kernel's own waiting has no time limit and cannot be given up by a thread, so a waiter
tries again and again, and what it does not have at the end of its time it never gets.

The file's one record outlives its writer and tells the next one: which process writes and
why, how many changes the store has seen, and the networks whose kernel part was being
changed. The store must have seen just as many: a store that was put back to an older state,
or whose write-ahead log was damaged and therefore passed over, gives itself away.
"""

import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from netalloc.errors import StoreError
from netalloc.store.sqlite.place import look_at
from netalloc.store.sqlite.writer_record import WriterRecord, is_record

_QUEUE, _WRITE = 0, 1
_TURNS = 8
_PAGE = 4096

# Seconds between two tries. A change takes some 0.1 ms: whoever is next tries as often; those
# in the queue have longer to wait, and all of them try equally often, so that none is favoured.
_NEXT = 60e-6
_QUEUED = 1e-3
_SOON = 0.02  # from then on the one that is next tries as seldom as the others


class WriteLock:
    """One process's place in the queue."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._stale: list[int] = []  # another thread may be reading them
        self.give: Callable[[], object] = int  # gives the turn back, in one call of C
        self._turns = 0  # how often it may be taken without queueing

    def enter(self, operation: str, timeout: float = 10.0) -> WriterRecord | None:
        """Wait for the turn; what the last writer left behind, None for a new lock file.

        Raises StoreError, naming the holder and what it does, after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            fd = self._open()
            try:
                if not (self._turns and _taken(fd, _WRITE)):
                    self._queue(fd, deadline)
                self._turns -= 1
                if self._is_current(fd):
                    return WriterRecord.parse(_read(fd))
            except TimeoutError:
                self._release(fd)
                raise StoreError(
                    f"{operation}: waited {timeout:g} s for {self.path}, held by {self._holder()}"
                ) from None
            except BaseException:
                self._release(fd)
                raise
            # The file was removed and made anew meanwhile: queue at the new one.
            self._release(fd)
            self._stale.append(fd)
            self._fd = None

    def write(self, record: WriterRecord) -> None:
        """Say what is going on; it stays when this process dies."""
        assert self._fd is not None
        data = record.line()
        try:
            done = os.pwrite(self._fd, data, 0)
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], done)
        except OSError as error:
            raise StoreError(f"lock file {self.path}: {error.strerror}") from error

    def leave(self) -> None:
        """Let the next one in."""
        self.give()

    def peek(self) -> WriterRecord | None:
        """What the file says now, without waiting."""
        fd = self._fd
        if fd is not None:
            return WriterRecord.parse(_read(fd))
        if look_at(self.path) is None:
            return None
        fd = self._opened(os.O_RDONLY)
        try:
            return WriterRecord.parse(_read(fd))
        finally:
            os.close(fd)

    def close(self) -> None:
        """Give the file back, and the turn with it."""
        self.give = int
        open_files, self._stale = self._stale, []
        if self._fd is not None:
            open_files.append(self._fd)
            self._fd = None
        for fd in open_files:
            os.close(fd)

    def _queue(self, fd: int, deadline: float) -> None:
        _wait(fd, _QUEUE, deadline)
        _wait(fd, _WRITE, deadline)
        _set(fd, _GIVE[_QUEUE])
        self._turns = _TURNS

    def _release(self, fd: int) -> None:
        """Give up whatever of it was taken: an interrupt may come right behind the taking."""
        if self._fd == fd:
            _set(fd, _GIVE_BOTH)

    def _holder(self) -> str:
        record = self.peek()
        if record is None or not record.pid:
            return "a process that did not say"
        return f"process {record.pid} ({record.operation})"

    def _open(self) -> int:
        if self._fd is None:
            self._fd = self._opened(os.O_RDWR | os.O_CREAT)
            self.give = partial(fcntl.fcntl, self._fd, fcntl.F_OFD_SETLK, _GIVE_BOTH)
        return self._fd

    def _opened(self, flags: int) -> int:
        look_at(self.path)  # before it is opened: to open a device may do something
        try:
            fd = os.open(self.path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise StoreError(f"lock file {self.path}: {error.strerror}") from error
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
                raise StoreError(f"lock file {self.path} was replaced by something else just now")
            if not is_record(_read(fd)):
                raise StoreError(
                    f"{self.path} is no lock file of a store: remove it, or use another path"
                )
            if found.st_mode & 0o077 and found.st_uid == os.geteuid():
                os.fchmod(fd, 0o600)  # who may read it may lock it
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self.path.stat())
        except FileNotFoundError:
            return False


def _wait(fd: int, byte: int, deadline: float) -> None:
    """Take a lock within the time there is. Raises TimeoutError, with nothing taken."""
    begin = time.monotonic()
    while not _taken(fd, byte):
        now = time.monotonic()
        if now >= deadline:
            raise TimeoutError
        often = byte == _WRITE and now - begin < _SOON
        time.sleep(min(_NEXT if often else _QUEUED, deadline - now))


def _taken(fd: int, byte: int) -> bool:
    try:
        _set(fd, _TAKE[byte])
    except BlockingIOError:
        return False
    return True


def _read(fd: int) -> bytes:
    data = os.pread(fd, _PAGE, 0)
    if len(data) == _PAGE and b"\n" not in data:
        data = os.pread(fd, os.fstat(fd).st_size, 0)
    return data


def _flock(kind: int, byte: int, length: int) -> bytes:
    # struct flock: l_type, l_whence, l_start, l_len, l_pid, as the C compiler lays it out.
    return struct.pack("@hhqqi4x", kind, os.SEEK_SET, byte, length, 0)


_TAKE = [_flock(fcntl.F_WRLCK, byte, 1) for byte in (_QUEUE, _WRITE)]
_GIVE = [_flock(fcntl.F_UNLCK, byte, 1) for byte in (_QUEUE, _WRITE)]
_GIVE_BOTH = _flock(fcntl.F_UNLCK, _QUEUE, 2)


def _set(fd: int, lock: bytes) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
