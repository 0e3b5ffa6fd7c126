"""Where a store may lie: at one resolved path, in files that are its owner's alone.

Nothing here opens the store's file. A process that closes any descriptor of it loses all of
its POSIX locks on it (fcntl(2)), SQLite's among them, so everything is asked of stat(2).
"""

from __future__ import annotations

import os
import stat

from netalloc.errors import InvalidValueError, OutOfRangeError, StoreError
from netalloc.values import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    StrPath = str | os.PathLike[str]

SIDE_FILES = ("-wal", "-shm", "-journal")  # SQLite's own, beside the file
_PATH_MAX = 4096  # linux/limits.h, with the NUL
_OTHERS = 0o037  # more than that the group may read is never meant: anybody could lock writers out

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


def resolved(path: object) -> str:
    """The absolute path without symbolic links that a store goes by from now on.

    Raises InvalidValueError for what is not a path, or one that SQLite would take for
    something else than a file, and OutOfRangeError for one that is too long.
    """
    try:
        text = os.fspath(path)  # type: ignore[call-overload]
    except Exception as error:
        raise InvalidValueError(f"store {shown(path)} is not a path") from error
    if not isinstance(text, str):
        raise InvalidValueError(f"store {shown(text)} is a path of bytes, not text")
    text = str.__str__(text)
    if not text:
        raise InvalidValueError("the path of the store is empty")
    if text == ":memory:" or text.startswith("file:"):
        raise InvalidValueError(
            f"store {shown(text)} is SQLite's word for something else than the path of a file: "
            f'write "./{text[:40]}" for one of that name, or leave it out to keep all in memory'
        )
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidValueError(f"store {shown(text)} has a NUL or a surrogate in its path")
    if len(text.encode()) >= _PATH_MAX:
        raise OutOfRangeError(
            f"store {shown(text)} is no path: one has {_PATH_MAX - 1} bytes at most"
        )
    try:
        return os.path.realpath(text)
    except OSError as error:  # a relative one, and the working directory is gone
        raise StoreError(f"{shown(text)}: {error.strerror}") from error


def look_at(path: StrPath, *, owner: bool = True) -> os.stat_result | None:
    """What is at a path; None where nothing is.

    Raises StoreError unless it is a file under one name alone, for SQLite finds its log by
    the name, and, with `owner`, one of this user or of root.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{_named(path)}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise StoreError(f"{path} is {kind}, not a file")
    if found.st_nlink != 1:
        raise StoreError(
            f"{path} is a file with {found.st_nlink} names (hard links), and a store has to have "
            "one alone: copy it, and remove the others"
        )
    if owner and found.st_uid not in (os.geteuid(), 0):
        raise StoreError(
            f"{path} belongs to user {found.st_uid}, who could change it at any time: it has to "
            f"be a file of user {os.geteuid()}, or of root"
        )
    return found


def check_beside(path: StrPath, *, owner: bool = True) -> None:
    """Raise StoreError unless SQLite's files beside a store, where they are, could be its own."""
    for suffix in SIDE_FILES:
        look_at(f"{path}{suffix}", owner=owner)


def check_folder(path: StrPath) -> None:
    """Raise StoreError where everybody may replace the files of the folder around a path.

    A sticky folder such as /tmp will do. The owner and the group of a folder are trusted.
    """
    folder, name = os.path.split(os.fspath(path))
    try:
        mode = os.stat(folder).st_mode
    except OSError as error:
        raise StoreError(f"{_named(path)}: {_named(folder)}: {error.strerror}") from error
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise StoreError(
            f"{folder} lets every user replace {name} (its mode is {mode & 0o7777:o}): take "
            "that right away with chmod o-w, or use another folder"
        )


def create(path: StrPath) -> None:
    """Make an empty file that its owner alone may read; nothing may be there."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(path, flags, 0o600)
        try:
            os.fchmod(file, 0o600)  # whatever the umask took away
        finally:
            os.close(file)
    except OSError as error:
        raise StoreError(f"{_named(path)}: {error.strerror}") from error


def tighten(path: StrPath) -> None:
    """Take the rights of others on a store's files away; a group may keep the right to read."""
    for suffix in ("", *SIDE_FILES):
        beside = f"{path}{suffix}"
        found = look_at(beside)
        if found is None or not found.st_mode & _OTHERS:
            continue
        try:
            os.chmod(beside, 0o600)
        except OSError:  # root's, and this user is another one
            continue
        import logging

        logging.getLogger(__name__).warning(
            "%s had mode %o, so that others could read or lock it: it is 600 now",
            beside,
            found.st_mode & 0o777,
        )


def remove(path: StrPath) -> None:
    """Remove a store's file and SQLite's beside it."""
    for suffix in (*SIDE_FILES, ""):
        unlink(f"{path}{suffix}")


def unlink(path: StrPath) -> None:
    """Remove a file; one that is not there is no error."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _named(path: StrPath) -> str:
    """A path as an error shows it: one that is too long for the system is too long to read."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:300]}... ({len(text)} long)"
