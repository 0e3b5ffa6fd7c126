"""The queue in front of a store: who may write, who does, and what was under way when he died.

SQLite lets waiting writers starve, so they queue here, in a lock file beside the store. Two
bytes of it are locked in turn: the *door*, then the *seat*. Who has the seat writes; the
next one already has the door, so whoever comes back at once waits behind him. The locks are
open file description locks (fcntl(2)): threads exclude each other as processes do, and the
kernel takes them from the dead. A forked child shares them, and has to close() first.

The file's one line outlives its writer and tells the next one: who has the seat and why,
how many changes the store has seen, and the networks whose kernel part was being changed.
The store must have seen just as many: a store that was put back to an older state, or whose
write-ahead log was damaged and therefore passed over, gives itself away.
"""

import contextlib
import fcntl
import os
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import NamedTuple

from netalloc.errors import StoreError

_DOOR, _SEAT = 0, 1
_LINE = 512  # bytes: far more than a line has, far less than a page, so it is written whole


class WriterRecord(NamedTuple):
    """What the lock file says. `pid` 0: nobody is writing. `sequence`: changes committed."""

    pid: int = 0
    operation: str = ""
    boot: str = ""
    sequence: int = 0
    dirty: frozenset[int] = frozenset()

    def line(self) -> bytes:
        """The line of the file, of fixed length."""
        torn = ",".join(map(str, sorted(self.dirty)))
        text = f"{self.pid}|{self.operation}|{self.boot}|{self.sequence}|{torn}"
        return f"{text}|{zlib.crc32(text.encode()):08x}".ljust(_LINE - 1).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> "WriterRecord | None":
        """The mark in a line; None for a new file, and for a line that is damaged."""
        text, _, crc = line.decode("utf-8", "replace").strip().rpartition("|")
        if not text or f"{zlib.crc32(text.encode()):08x}" != crc:
            return None
        pid, operation, boot, sequence, torn = text.split("|")
        numbers = frozenset(int(number) for number in torn.split(",") if number)
        return cls(int(pid), operation, boot, int(sequence), numbers)


class WriteLock:
    """One process's place in the queue; `timeout` is the longest wait in seconds."""

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        self.path = path
        self.timeout = timeout
        self._fd: int | None = None

    def enter(self, operation: str) -> WriterRecord | None:
        """Wait for the turn; what the last writer left behind, None where nothing is known.

        Raises StoreError, naming the holder and what he does, after `timeout` seconds.
        """
        deadline = time.monotonic() + self.timeout
        while True:
            fd = self._open()
            self._lock(fd, _DOOR, deadline, operation)
            try:
                self._lock(fd, _SEAT, deadline, operation)
            finally:
                if self._fd == fd:
                    _set(fd, _DOOR, fcntl.F_UNLCK)
            if self._is_current(fd):
                return WriterRecord.parse(os.pread(fd, _LINE, 0))
            self.close()  # the file was removed and made anew meanwhile: queue at the new one

    def write(self, mark: WriterRecord) -> None:
        """Say what is going on; it stays when this process dies."""
        assert self._fd is not None
        os.pwrite(self._fd, mark.line(), 0)

    def leave(self) -> None:
        """Let the next one in."""
        if self._fd is not None:
            _set(self._fd, _SEAT, fcntl.F_UNLCK)

    def peek(self) -> WriterRecord | None:
        """What the file says now, without waiting."""
        if self._fd is not None:
            return WriterRecord.parse(os.pread(self._fd, _LINE, 0))
        try:
            return WriterRecord.parse(self.path.read_bytes()[:_LINE])
        except FileNotFoundError:
            return None

    def close(self) -> None:
        """Give the file back, and the turn with it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        if self._fd is None:
            try:
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise StoreError(f"lock file {self.path}: {error.strerror}") from error
        return self._fd

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self.path.stat())
        except FileNotFoundError:
            return False

    def _lock(self, fd: int, byte: int, deadline: float, operation: str) -> None:
        with contextlib.suppress(BlockingIOError):
            _set(fd, byte, fcntl.F_WRLCK)
            return
        # fcntl has no time limit, so a thread waits in our stead.
        waiter = _Waiter(fd, byte)
        waiter.start()
        if waiter.wait(deadline - time.monotonic()):
            return
        # The thread closes the file when its turn comes; ours is a new one from now on.
        self._fd = None
        mark = self.peek()
        holder = f"process {mark.pid} ({mark.operation})" if mark and mark.pid else "nobody known"
        raise StoreError(
            f"{operation}: waited {self.timeout:g} s for {self.path}, held by {holder}"
        )


class _Waiter(threading.Thread):
    """Waits for one lock; when it comes after all, but too late, gives it back."""

    def __init__(self, fd: int, byte: int) -> None:
        super().__init__(name="netalloc-lock", daemon=True)
        self._fd = fd
        self._byte = byte
        self._guard = threading.Lock()
        self._arrived = threading.Event()
        self._abandoned = False

    def run(self) -> None:
        _set(self._fd, self._byte, fcntl.F_WRLCK, fcntl.F_OFD_SETLKW)
        with self._guard:
            if not self._abandoned:
                self._arrived.set()
                return
        os.close(self._fd)

    def wait(self, seconds: float) -> bool:
        if self._arrived.wait(max(0.0, seconds)):
            return True
        with self._guard:
            self._abandoned = not self._arrived.is_set()
        return not self._abandoned


def _set(fd: int, byte: int, kind: int, command: int = fcntl.F_OFD_SETLK) -> None:
    # struct flock: l_type, l_whence, l_start, l_len, l_pid, as the C compiler lays it out.
    fcntl.fcntl(fd, command, struct.pack("@hhqqi4x", kind, os.SEEK_SET, byte, 1, 0))
