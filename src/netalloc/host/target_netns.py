"""The network namespace that a caller names: by a name, a path, a process or a descriptor.

A descriptor of it is what all else works with: the namespace it stands for is not another one
a moment later, as that of a name or of a process may be.
"""

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress

from netalloc.errors import InterfaceError, InvalidValueError
from netalloc.host import namespaces, netns
from netalloc.values import as_int, shown

_GET_TYPE = 0xB703  # NS_GET_NSTYPE, linux/nsfs.h
_MOST = 0x7FFFFFFF


def open_netns(
    target: "str | int | os.PathLike[str]", home: netns.NamespaceId | None = None
) -> int:
    """A descriptor of a container's network namespace, which the caller closes.

    `home` is the caller's own namespace, where that is known.

    `target` is a name in /run/netns, a path (with a / in it, or a Path), a process, or the
    descriptor of a namespace: a number is taken for a descriptor where one of that number is
    a network namespace, and for a process otherwise. Raises InterfaceError where there is
    none, where it is no network namespace, and for the caller's own; InvalidValueError for
    what is no target at all. About 10 µs.
    """
    fd, what = _open(target)
    try:
        if _type_of(fd) != namespaces.CLONE_NEWNET:
            raise InterfaceError(f"{what} is no network namespace")
        found = os.fstat(fd)
        if netns.NamespaceId(found.st_dev, found.st_ino) == (home or netns.current()):
            raise InterfaceError(f"{what} is the host's own network namespace, not a container's")
    except BaseException:
        os.close(fd)
        raise
    return fd


def identity(fd: int) -> str:
    """What tells the namespace of a descriptor from all others that exist now: "device:inode"."""
    found = os.fstat(fd)
    return f"{found.st_dev}:{found.st_ino}"


def name_of(wanted: Callable[[int], bool]) -> str | None:
    """The name in /run/netns of the namespace that is wanted; O(names), for errors alone."""
    for path in sorted(namespaces.DIRECTORY.glob("*")):
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                if _type_of(fd) == namespaces.CLONE_NEWNET and wanted(fd):
                    return path.name
            finally:
                os.close(fd)
    return None


def _open(target: object) -> tuple[int, str]:
    if isinstance(target, str):
        name = str.__str__(target)
        path = name if "/" in name else os.fspath(namespaces.path(name))
        return _opened(path, f"network namespace {shown(name)}")
    if isinstance(target, os.PathLike):
        path = os.fspath(target)
        if not isinstance(path, str):
            raise InvalidValueError(f"network namespace {shown(path)} is not text")
        return _opened(path, f"network namespace {path!r}")
    if isinstance(target, bytes) or not hasattr(type(target), "__index__"):
        raise InvalidValueError(
            f"network namespace {shown(target)} is no name, path, process or descriptor"
        )
    number = as_int(target, "process or descriptor", 0, _MOST)
    what = f"descriptor {number}"
    try:
        fd = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise InterfaceError(f"{what} cannot be opened: {error.strerror}") from error
    else:
        if _type_of(fd) is not None:
            return fd, what
        os.close(fd)
    what = f"process {number}"
    if number == 0:
        raise InterfaceError("0 is no process, and no descriptor of a namespace")
    return _opened(f"/proc/{number}/ns/net", what)


def _opened(path: str, what: str) -> tuple[int, str]:
    try:
        # Not to wait for the other end where it is a FIFO.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), what
    except FileNotFoundError:
        raise InterfaceError(f"there is no {what}") from None
    except ValueError:  # a NUL in it
        raise InvalidValueError(f"{what} is no path") from None
    except OSError as error:
        raise InterfaceError(f"{what} cannot be opened: {error.strerror}") from error


def _type_of(fd: int) -> int | None:
    """Which kind of namespace it is; None where it is none."""
    try:
        return fcntl.ioctl(fd, _GET_TYPE)
    except OSError:
        return None
