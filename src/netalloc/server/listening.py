"""Unix sockets to listen at: made where nothing is, or in the place of one that nothing serves."""

from __future__ import annotations

import grp
import os
import socket
import stat
from pathlib import Path

from netalloc.errors import InUseError, InvalidValueError, NetallocError

_BACKLOG = 1024
_NO_ID = (1 << 32) - 1  # what chown(2) takes for: as it was


def default_folder() -> Path:
    """Where the sockets are unless named: /run for root, $XDG_RUNTIME_DIR for others."""
    if os.geteuid() == 0:
        return Path("/run")
    folder = os.environ.get("XDG_RUNTIME_DIR")
    if not folder:
        raise InvalidValueError(
            "XDG_RUNTIME_DIR is not set: name the sockets with --socket, --line"
        )
    return Path(folder)


def listen(path: Path, group: str | None = None) -> socket.socket:
    """A listening socket at a path, for its owner, and for a group where one is named.

    Raises InUseError where another process serves it, and NetallocError for what is no socket.
    """
    number = None if group is None else group_number(group)
    _clear(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        made.bind(os.fspath(path))
        made.listen(_BACKLOG)
        if number is not None:
            os.chown(path, -1, number)
            path.chmod(0o660)
    except OSError as error:
        made.close()
        raise NetallocError(f"socket {path}: {error.strerror or error}") from error
    except BaseException:
        made.close()
        raise
    finally:
        os.umask(before)
    return made


def remove(path: Path, made: os.stat_result) -> None:
    """Remove the socket that was made here; another's, by now, stays."""
    try:
        found = path.lstat()
        if (found.st_dev, found.st_ino) == (made.st_dev, made.st_ino):
            path.unlink()
    except FileNotFoundError:
        pass


def _clear(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise NetallocError(f"{path} is no socket: remove it, or name another with --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(2)
        try:
            trial.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)  # what a killed daemon has left
            return
        except OSError as error:
            raise InUseError(f"socket {path} may be served by another process: {error}") from error
    raise InUseError(f"socket {path} is served by another process")


def group_number(name: str) -> int:
    if name.isascii() and name.isdigit() and len(name) <= 10 and int(name) < _NO_ID:
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidValueError(f"there is no group {name[:40]}") from None
