"""A directory of this user alone, for what is to end with the boot.

Root has /run/netalloc. Another user, and root of a user namespace that may not write to /run,
has $XDG_RUNTIME_DIR/netalloc where that directory is the user's own, otherwise
/tmp/netalloc-UID, UID being the one outside of user namespaces. $NETALLOC_RUNTIME_DIR takes
the place of all of them. Another user may have made what has that name, so that owner and kind
are looked at, no symlink is followed, and files are opened relative to the directory that
was looked at.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from netalloc.errors import NetallocError
from netalloc.host.own_descriptors import close_own, open_own

VARIABLE = "NETALLOC_RUNTIME_DIR"
_WAIT = 5.0  # seconds for other processes' changes, of milliseconds each
_PAUSE = 0.001
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)


@contextmanager
def opened() -> Iterator[int]:
    """A descriptor of the directory, which is made where it is missing.

    Raises NetallocError when it cannot be made, or what is there is another user's or no
    directory.
    """
    directory = _open()
    try:
        yield directory
    finally:
        close_own(directory)


def open_file(
    directory: int, name: str, flags: int = os.O_RDWR | os.O_CREAT, *, kind: int = stat.S_IFREG
) -> int:
    """A descriptor of a regular file, or of a FIFO, of ours in it; a file is made with mode 0600.

    To be closed by `close_file`, for a forked child has it no more. Never waits for a FIFO.
    Raises FileNotFoundError without O_CREAT, NetallocError for what is another user's, a
    symlink or of another kind.
    """
    safe = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = open_own(name, flags | safe, 0o600, dir_fd=directory)
    except FileNotFoundError:
        raise
    except OSError as error:
        where = f"{name} in {shown(directory)}"
        raise NetallocError(f"{where} cannot be opened: {error.strerror}; remove it") from error
    found = os.fstat(fd)
    if stat.S_IFMT(found.st_mode) != kind or found.st_uid != os.geteuid():
        close_own(fd)
        what = "file" if kind == stat.S_IFREG else "FIFO"
        raise NetallocError(f"{name} in {shown(directory)} is no {what} of this user: remove it")
    return fd


def close_file(fd: int) -> None:
    """Close it, unless this process is a child that never had it; a locked file is let go."""
    close_own(fd)


def lock(fd: int) -> None:
    """Be alone with the directory, or a file of it, until the descriptor is closed.

    Raises NetallocError when another process keeps it for 5 s.
    """
    deadline = time.monotonic() + _WAIT
    while not _locked(fd):
        if time.monotonic() > deadline:
            raise NetallocError(f"another process kept the lock of {shown(fd)} for {_WAIT:g} s")
        time.sleep(_PAUSE)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NetallocError(f"{shown(fd)} cannot be locked: {error.strerror}") from error
    return True


def shown(directory: int) -> str:
    """The path of an open directory, for messages."""
    try:
        return str(Path(f"/proc/self/fd/{directory}").readlink())
    except OSError:
        return "the runtime directory"


def _open() -> int:
    named = os.environ.get(VARIABLE)
    if named:
        return _open_at(Path(named))
    if os.geteuid() == 0:
        try:
            return _open_at(Path("/run/netalloc"))
        except OSError as error:
            if error.errno not in _DENIED:
                raise NetallocError(f"/run/netalloc cannot be used: {error}") from error
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(xdg, "netalloc") if xdg and _is_private(xdg) else None
    try:
        return _open_at(path or Path(f"/tmp/netalloc-{_outer_uid()}"))
    except OSError as error:
        raise NetallocError(f"no runtime directory: {error}; set {VARIABLE}") from error


def _open_at(path: Path) -> int:
    try:
        path.mkdir(0o700)
    except FileExistsError:
        pass
    except OSError:
        if VARIABLE in os.environ:
            raise NetallocError(f"{path}, as {VARIABLE} says, cannot be made") from None
        raise
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        directory = open_own(str(path), flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise NetallocError(f"{path} is no directory, or a symlink: remove it") from None
        if error.errno == errno.EACCES:
            raise NetallocError(f"{path} is another user's: it is not used") from None
        raise
    found = os.fstat(directory)
    try:
        if found.st_uid != os.geteuid():
            raise NetallocError(f"{path} is of user {found.st_uid}, not ours: it is not used")
        if found.st_mode & 0o077:
            os.fchmod(directory, 0o700)
    except BaseException:
        close_own(directory)
        raise
    return directory


def _is_private(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    ours = found.st_uid == os.geteuid() and stat.S_ISDIR(found.st_mode)
    return ours and not found.st_mode & 0o022


def _outer_uid() -> int:
    """This user's number outside of user namespaces, as far as it can be seen."""
    uid = os.geteuid()
    try:
        for line in Path("/proc/self/uid_map").read_text().splitlines():
            inner, outer, count = map(int, line.split())
            if inner <= uid < inner + count:
                return outer + uid - inner
    except (OSError, ValueError):
        pass
    return uid
