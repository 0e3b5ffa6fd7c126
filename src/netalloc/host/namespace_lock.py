"""One truth for each network namespace: processes that share it come in, others are refused.

Two stores that both give out the addresses and ports of one host give them twice. So what
touches the kernel of a network namespace first claims it for its truth: a store, or the memory
of one process. Claims of one truth go together, in any number and from any process.

A claim is a shared OFD lock (fcntl(2)) on a file for the namespace: it ends with its process,
however that ends, and neither a forked child nor a program it starts keeps it. A second lock on
the same file, held for microseconds, makes coming and going one at a time. Processes that have
another /run, as in another mount namespace, do not see each other.
"""

import os
import struct
import time
from contextlib import suppress
from typing import NoReturn
from weakref import WeakSet
from zlib import crc32

from netalloc.closing import Closing
from netalloc.errors import InUseError, NetallocError
from netalloc.host import netns, runtime_dir
from netalloc.host.ofd_lock import NONE, READ, WRITE, set_lock

_WAIT = 1.0  # seconds for those who come and go; each takes microseconds
_PAUSE = 0.0005
_HOLDERS, _ENTRANCE = 0, 1  # the bytes that are locked; the record lies over them
_RECORD = struct.Struct("=II")  # checksum and length of what follows
_MAX_RECORD = 1 << 14

# Behind the name, for what goes with it: see owed_flows.py, watch_turn.py and attach_turns.py.
FLOWS, WATCH, ATTACH = ".flows", ".watch-", ".attach"

_open_claims: "WeakSet[NamespaceClaim]" = WeakSet()


class NamespaceClaim(Closing):
    """A claim that lasts until it is closed or its process ends; a context manager."""

    def __init__(self, truth: str, lock: int, namespace: int, name: str) -> None:
        self.truth = truth
        self._name = name
        self._pid = os.getpid()
        # While the namespace is open its inode number is no other's.
        self._open = [(lock, namespace)]
        _open_claims.add(self)

    def close(self) -> None:
        """Give it up; the last one removes the file. A second time is no error."""
        try:
            lock, namespace = self._open.pop()  # one thread alone gets them
        except IndexError:
            return
        try:
            if self._pid == os.getpid():
                others = any(one._open and one._name == self._name for one in _open_claims)
                _leave(self._name, lock, last_here=not others)
        finally:
            runtime_dir.close_file(lock)
            os.close(namespace)

    def __del__(self) -> None:
        self.close()


def claim(truth: str, holder: str) -> NamespaceClaim:
    """Claim the network namespace of the calling thread for a truth, in the name of `holder`.

    Raises InUseError, with the other truth and its process, when it is claimed for another
    one; NetallocError when the runtime directory cannot be used, or a process that was
    stopped while it came in does not let others pass for a second. About 60 µs.
    """
    namespace = os.open(netns.PATH, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(namespace)
        name = file_name(found.st_dev, found.st_ino)
        return NamespaceClaim(truth, _enter(name, truth, holder), namespace, name)
    except BaseException:
        os.close(namespace)
        raise


def claimant() -> tuple[str, str, int] | None:
    """The truth that the caller's network namespace is claimed for, by whom and which process.

    None where it is not claimed, or that cannot be seen. Process 0 has ended since.
    """
    found = os.stat(netns.PATH)  # noqa: PTH116
    name = file_name(found.st_dev, found.st_ino)
    try:
        with runtime_dir.opened() as directory:
            fd = runtime_dir.open_file(directory, name, os.O_RDONLY)
            try:
                there = _read(fd)
            finally:
                runtime_dir.close_file(fd)
    except (OSError, NetallocError):
        return None
    if there is None:
        return None
    pid, holder, truth = there
    return truth, holder, pid if _is_alive(pid) else 0


def file_name(device: int, inode: int) -> str:
    """What the file of a network namespace is called in the runtime directory."""
    return f"netns-{device}-{inode}"


def _enter(name: str, truth: str, holder: str) -> int:
    """The locked descriptor."""
    deadline = time.monotonic() + _WAIT
    with runtime_dir.opened() as directory:
        while True:
            fd = runtime_dir.open_file(directory, name)
            try:
                _wait(fd, deadline, name)
                if _is_at(fd, directory, name):
                    _hold(fd, truth, holder)
                    set_lock(fd, NONE, _ENTRANCE)
                    return fd
            except BaseException:
                runtime_dir.close_file(fd)
                raise
            runtime_dir.close_file(
                fd
            )  # its last holder has removed it: there is another by now, or none


def _hold(fd: int, truth: str, holder: str) -> None:
    """Take a share of the holders' lock; alone at the entrance."""
    if set_lock(fd, WRITE, _HOLDERS):
        _write(fd, truth, holder)
    else:
        there = _read(fd)
        if there is None or there[2] != truth:
            _refuse(there, truth)
        if not _is_alive(there[0]):
            _write(fd, truth, holder)
    set_lock(fd, READ, _HOLDERS)


def _refuse(there: tuple[int, str, str] | None, truth: str) -> NoReturn:
    if there is None:
        raise InUseError(f"this network namespace is claimed, and not for {truth}")
    pid, holder, other = there
    process = f"{holder}, process {pid}" if _is_alive(pid) else "another process"
    raise InUseError(
        f"this network namespace is managed from {other} ({process}), and cannot be from "
        f"{truth} as well: two of them would give the same addresses and ports",
        f"{other} ({process})",
    )


def _leave(name: str, fd: int, *, last_here: bool) -> None:
    """Remove the file when no other holds it, or the name of this process from it.

    A file that stays is no harm: its locks are what counts.
    """
    try:
        with runtime_dir.opened() as directory:
            _wait(fd, time.monotonic() + _WAIT, name)
            if not _is_at(fd, directory, name):
                return
            if set_lock(fd, WRITE, _HOLDERS):
                os.unlink(name, dir_fd=directory)
                for other in os.listdir(directory):  # noqa: PTH208 (an open one)
                    if other.startswith(
                        tuple(name + with_it for with_it in (FLOWS, WATCH, ATTACH))
                    ):
                        with suppress(FileNotFoundError):
                            os.unlink(other, dir_fd=directory)
            elif last_here and (there := _read(fd)) and there[0] == os.getpid():
                _write(fd, there[2], there[1], pid=0)
    except (NetallocError, OSError):
        pass


def _wait(fd: int, deadline: float, name: str) -> None:
    """Be alone at the entrance, until the descriptor is closed."""
    while not set_lock(fd, WRITE, _ENTRANCE):
        if time.monotonic() >= deadline:
            raise NetallocError(
                f"the lock {name} of this network namespace was not let go for {_WAIT:g} s: "
                f"is a process stopped that came or went?"
            )
        time.sleep(_PAUSE)


def _is_at(fd: int, directory: int, name: str) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _write(fd: int, truth: str, holder: str, *, pid: int | None = None) -> None:
    pid = os.getpid() if pid is None else pid
    text = "\0".join((str(pid), holder, truth)).encode(errors="surrogateescape")
    try:
        os.pwrite(fd, _RECORD.pack(crc32(text), len(text)) + text, 0)
    except OSError as error:
        raise NetallocError(f"a claim cannot be written: {error}") from error


def _read(fd: int) -> tuple[int, str, str] | None:
    data = os.pread(fd, _MAX_RECORD, 0)
    if len(data) < _RECORD.size:
        return None
    checksum, size = _RECORD.unpack_from(data)
    text = data[_RECORD.size : _RECORD.size + size]
    parts = text.decode(errors="surrogateescape").split("\0")
    if crc32(text) != checksum or len(parts) != 3:
        return None
    return int(parts[0]), parts[1], parts[2]


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _after_fork() -> None:
    """The child's copies go; the parent's lock stays, for it is of the open file."""
    for one in list(_open_claims):
        one.close()


os.register_at_fork(after_in_child=_after_fork)
