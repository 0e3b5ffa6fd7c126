"""Locks of an open file on bytes of it (OFD, fcntl(2)): the kernel takes them from the dead.

Threads exclude each other by them as processes do, each over a descriptor of its own.
"""

import errno
import fcntl
import os
import struct

from netalloc.errors import NetallocError

WRITE, READ, NONE = fcntl.F_WRLCK, fcntl.F_RDLCK, fcntl.F_UNLCK
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: type, whence, start, length, pid


def set_lock(fd: int, kind: int, byte: int, count: int = 1) -> bool:
    """Take, turn or give up the lock of so many bytes without waiting; whether it could be had.

    Raises NetallocError where it is not a matter of others.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, packed(kind, byte, count))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise NetallocError(f"a lock of the runtime directory failed: {error}") from error
    return True


def is_locked(fd: int, byte: int) -> bool:
    """Whether another descriptor has a lock of that byte."""
    asked = packed(WRITE, byte, 1)
    found: tuple[int, ...] = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    return found[0] != NONE


def packed(kind: int, byte: int, count: int) -> bytes:
    """What fcntl(2) is told; a count of 0 is all from there on."""
    return _FLOCK.pack(kind, os.SEEK_SET, byte, count, 0)
