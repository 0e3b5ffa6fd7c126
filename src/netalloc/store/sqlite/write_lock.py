"""The queue in front of a store: which process may write, and which one is next.

SQLite lets waiting writers starve, so they queue here, in a lock file beside the store. Two
bytes of it are locked in turn: the *queue lock*, then the *write lock*. The process that has
the write lock writes; the next one already has the queue lock, so one that comes back at
once waits behind it. The locks are open file description locks (fcntl(2)): threads exclude
each other as processes do, and the kernel takes them from the dead. A forked child shares
them, and has to close() first.

Handing the write lock over costs as much as some changes do: what was read is out of date, and
the processor has other things at hand. So a process that makes one change after the other has a
*burst*: for `_BURST` seconds it may take the lock again without queueing, and then has to queue.
With n processes each waits for n bursts, and a change, at most.

The kernel's own waiting for a lock has no time limit and cannot be given up by a thread. So a
waiter sleeps at a *doorbell* of the lock file, and tries when it is rung. It is rung for the
queue where the queue lock is given up, and for the one that is next where a burst is over. A
process that dies, or has nothing more to do, does not ring. So the one that is next looks by
itself as well: it takes the lock if that was free at two looks, and no change made in between.
Those in the queue try again some time, and what a waiter does not have at the end of its patience
it never gets.

The file's one record outlives its writer and tells the next one: which process writes and
why, how many changes the store has seen, and the networks whose kernel part was being
changed. The store must have seen just as many: a store that was put back to an older state,
or whose write-ahead log was damaged and therefore passed over, gives itself away. It is written
behind a change, and before one only where the kernel is to be touched, or where the operation is
none of the usual ones: for those the write lock itself says who has it. Its length, which is
nothing to the kernel (it begins at one byte), is the number of process and operation.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import time
from functools import partial

from netalloc._alloc import Doorbell, FilePlace
from netalloc.errors import StoreError
from netalloc.store.sqlite.place import look_at
from netalloc.store.sqlite.writer_record import LENGTH, WriterRecord, is_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from netalloc.store.sqlite.place import StrPath


_QUEUE, _WRITE = 0, 1
_BURST = 4e-3  # seconds: to hand over takes 0.2 ms
# The operations that a lock says by their place here: so it stays, and others come behind it.
_USUAL = ("", "allocate", "allocate_many", "publish", "release", "release_port")
_CODES = 64

# Seconds between two looks of the one that is next, at first (a change takes some 0.1 ms) and at
# last; and of sleep in the queue. To look costs 15 microseconds.
_OFTEN, _SELDOM = 60e-6, 1e-3
_SLEEP = 50e-3

# The bells, and where they are: behind any record, at the beginning of a page of any size.
_IN_QUEUE, _NEXT = 0, 1
_DOOR, _WORD = 1 << 16, 4


def _nothing() -> None:
    """What is done before a lock file is opened, where nothing is said."""


class WriteLock:
    """One process's place in the queue."""

    def __init__(self, path: StrPath) -> None:
        self.path = path
        self._fd: int | None = None
        self._stale: list[int] = []  # another thread may be reading them
        self.give: Callable[[], object] = int  # gives the turn back, in one call of C
        self._last: tuple[bytes, WriterRecord | None] = b"", None  # what is in it, as of here
        self._until = 0.0  # up to then it may be taken without queueing
        self._doorbell: Doorbell | None = None  # at what is open
        self._new = False  # whether nothing was in it yet, which has a meaning
        self._place: FilePlace | None = None  # of what is open
        self._takes: dict[str, bytes] = {}  # for an operation, what takes the write lock
        self.says_who = False  # whether the lock that was taken says it

    def enter(
        self,
        operation: str,
        timeout: float = 10.0,
        before_opening: Callable[[], None] = _nothing,
    ) -> WriterRecord | None:
        """Wait for the turn; what the last writer left behind, None for a new lock file.

        `before_opening` is called before the file is opened, and made where it is missing;
        what that raises is raised with nothing made. Raises StoreError, naming the holder and
        what it does, after `timeout` seconds.
        """
        now = time.monotonic()
        deadline = now + timeout
        while True:
            fd = self._fd if self._fd is not None else self._open(before_opening)
            try:
                take = self._takes.get(operation) or self._take(operation)
                if now >= self._until or not _taken(fd, take):
                    self._queue(fd, take, deadline, now >= self._until)
                self.says_who = operation in self._takes
                if self._is_current():
                    data = _read(fd)
                    if data != self._last[0]:
                        self._last = data, WriterRecord.parse(data)
                    return self._last[1]
            except TimeoutError:
                self._release(fd)
                raise StoreError(
                    f"{operation}: waited {timeout:g} s for {self.path}, held by {self._holder(fd)}"
                ) from None
            except BaseException:
                self._release(fd)
                raise
            # The file was removed and made anew meanwhile: queue at the new one.
            self._release(fd)
            self._stale.append(fd)
            self._fd = self._doorbell = None

    def write(self, record: WriterRecord) -> None:
        """Say what is going on, if it says something else; it stays when this process dies."""
        assert self._fd is not None
        if record == self._last[1]:
            return
        data = record.line()
        self._last = b"", None
        try:
            done = os.pwrite(self._fd, data, 0)
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], done)
        except OSError as error:
            raise StoreError(f"lock file {self.path}: {error.strerror}") from error
        self._last = data, record
        if self._new:
            self._new = False
            self._doorbell = _doorbell(self._fd, len(data))

    def leave(self) -> None:
        """Let the next one in."""
        self.give()

    def peek(self) -> WriterRecord | None:
        """What the file says now, without waiting; safe while another thread closes this."""
        if look_at(self.path) is None:
            return None
        fd = self._opened(os.O_RDONLY)
        try:
            return WriterRecord.parse(_read(fd))
        finally:
            os.close(fd)

    def read(self) -> WriterRecord | None:
        """The same, faster, for a caller that keeps other threads from closing this."""
        fd = self._fd
        return self.peek() if fd is None else self._parsed(_read(fd))

    def _parsed(self, data: bytes) -> WriterRecord | None:
        known, record = self._last
        return record if data and data == known else WriterRecord.parse(data)

    def close(self) -> None:
        """Give the file back, and the turn with it."""
        self.give = int
        self._last = b"", None
        self._takes = {}  # in a forked child they are another process's
        self._doorbell = None
        open_files, self._stale = self._stale, []
        if self._fd is not None:
            open_files.append(self._fd)
            self._fd = None
        for fd in open_files:
            os.close(fd)

    def _queue(self, fd: int, take: bytes, deadline: float, burst_is_over: bool) -> None:
        if not _taken(fd, _TAKE_QUEUE):
            if burst_is_over:
                self._ring(_NEXT)
            self._wait_in_queue(fd, deadline)
        if not _taken(fd, take):
            try:
                self._wait_as_next(fd, take, deadline)
            except TimeoutError:
                if not _taken(fd, take):
                    raise
        _set(fd, _GIVE_QUEUE)
        if not _is_free(fd, _ASK_WAITING):  # where none waits the file stays as it is
            self._ring(_IN_QUEUE)
        self._until = time.monotonic() + _BURST

    def _wait_in_queue(self, fd: int, deadline: float) -> None:
        _set(fd, _WAITING)  # before it tries: so it is seen, or finds the queue lock given up
        while True:
            rings = _rings(fd, _IN_QUEUE)
            if _taken(fd, _TAKE_QUEUE):
                return
            self._sleep(_IN_QUEUE, rings, _SLEEP, deadline)

    def _wait_as_next(self, fd: int, take: bytes, deadline: float) -> None:
        pause = _OFTEN
        before: bytes | None = None  # what was in the file when the lock was free
        rung = False
        while True:
            rings = _rings(fd, _NEXT)
            found = _read(fd) if _is_free(fd, _ASK_WRITE) else None
            if found is None:
                pause = min(2 * pause, _SELDOM)
            elif (rung or found == before) and _taken(fd, take):
                return
            else:
                pause = _OFTEN
            before = found
            rung = self._sleep(_NEXT, rings, pause, deadline)

    def _sleep(self, bell: int, rings: bytes, pause: float, deadline: float) -> bool:
        """Whether the bell was rung meanwhile. Raises TimeoutError at the end of the time."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if self._doorbell is not None:
            try:
                return self._doorbell.sleep(bell, rings, min(pause, left))
            except OSError:
                pass
        time.sleep(min(pause, left, _SELDOM))  # there are no bells at this file
        return False

    def _ring(self, bell: int) -> None:
        if self._doorbell is not None:
            try:
                self._doorbell.ring(bell)
            except OSError:
                pass  # those that sleep try again without it

    def _take(self, operation: str) -> bytes:
        code = _USUAL.index(operation) if operation in _USUAL else 0
        usual = _USUAL[code]
        if usual not in self._takes:
            length = 1 + os.getpid() * _CODES + code
            self._takes[usual] = flock(fcntl.F_WRLCK, _WRITE, length)
        return self._takes[usual]

    def _release(self, fd: int) -> None:
        """Give up whatever of it was taken: an interrupt may come right behind the taking."""
        if self._fd == fd:
            _set(fd, _GIVE_BOTH)

    def _holder(self, fd: int) -> str:
        lock = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, flock(fcntl.F_WRLCK, _WRITE, 1))
        pid, code = divmod(int.from_bytes(lock[16:24], sys.byteorder) - 1, _CODES)
        if pid and 0 < code < len(_USUAL):
            return f"process {pid} ({_USUAL[code]})"
        record = self.peek()
        if record is None or not record.pid:
            return "a process that did not say"
        return f"process {record.pid} ({record.operation})"

    def _open(self, before_opening: Callable[[], None]) -> int:
        if self._fd is None:
            before_opening()
            self._last = b"", None
            self._fd = self._opened(os.O_RDWR | os.O_CREAT)
            found = os.fstat(self._fd)
            self._place = FilePlace(os.fsencode(self.path), found.st_dev, found.st_ino)
            self._new = not found.st_size
            self._doorbell = None if self._new else _doorbell(self._fd, found.st_size)
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
            if found.st_mode & 0o777 != 0o600 and found.st_uid == os.geteuid():
                os.fchmod(fd, 0o600)  # who may read it may lock it
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _is_current(self) -> bool:
        return self._place is not None and self._place.is_there()


def _doorbell(fd: int, size: int) -> Doorbell | None:
    try:
        if size < _DOOR + 2 * _WORD:
            os.truncate(fd, _DOOR + 2 * _WORD)
        return Doorbell(fd, _DOOR)
    except OSError:
        return None  # no memory, or a filesystem without that


def _rings(fd: int, bell: int) -> bytes:
    return os.pread(fd, _WORD, _DOOR + bell * _WORD)


def _taken(fd: int, take: bytes) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, take)
    except BlockingIOError:
        return False
    return True


def _is_free(fd: int, ask: bytes) -> bool:
    return fcntl.fcntl(fd, fcntl.F_OFD_GETLK, ask)[:2] == _FREE


def _read(fd: int) -> bytes:
    data = os.pread(fd, LENGTH, 0)
    if len(data) == LENGTH and not data.endswith(b"\n"):
        data = os.pread(fd, _DOOR, 0)
        data = data[: data.find(b"\n") + 1] or data
    return data


def flock(kind: int, start: int, length: int) -> bytes:
    # struct flock: l_type, l_whence, l_start, l_len, l_pid, as the C compiler lays it out; a
    # length of 0 is all that follows.
    parts = (kind, 2), (os.SEEK_SET, 6), (start, 8), (length, 8), (0, 8)
    return b"".join([value.to_bytes(size, sys.byteorder) for value, size in parts])


_TAKE_QUEUE = flock(fcntl.F_WRLCK, _QUEUE, 1)
_GIVE_QUEUE = flock(fcntl.F_UNLCK, _QUEUE, 1)
_GIVE_BOTH = flock(fcntl.F_UNLCK, _QUEUE, 0)
_ASK_WRITE = flock(fcntl.F_WRLCK, _WRITE, 1)
# All that wait in the queue share the lock of a byte, far behind what any write lock is long.
_WAITING, _ASK_WAITING = (flock(kind, 1 << 62, 1) for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK))
_FREE = _GIVE_BOTH[:2]  # the type of a lock that is none


def _set(fd: int, lock: bytes) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
