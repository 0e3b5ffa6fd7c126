"""Which process is at the other end of a unix socket, as the kernel says (unix(7), SO_PEERCRED)."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
from typing import NamedTuple

_CREDENTIALS = struct.Struct("=iII")  # struct ucred
_SO_PEERGROUPS, _SO_PEERPIDFD = 59, 77  # asm-generic/socket.h; the latter since Linux 6.5
_MOST_GROUPS = 65536  # NGROUPS_MAX
_KINDS = ("user", "pid", "net")
_ENDED = "process that has ended"  # and its number may be another's by now


class Peer(NamedTuple):
    """Who connected: its process, user and groups.

    `outside` says of what kind a namespace is in which it is and this process is not: then it is a
    container's, whatever user it claims to be. None where it is at home.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]
    outside: str | None


def peer_of(connection: socket.socket) -> Peer:
    """The process that connected; of one that has ended since, nothing can be told: outside."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    try:
        handle = _handle(connection)
    except ProcessLookupError:
        return Peer(pid, uid, gid, _groups(connection) | {gid}, _ENDED)
    try:
        outside = _outside(pid)
        if handle is not None and _has_ended(handle):
            outside = _ENDED
    finally:
        if handle is not None:
            os.close(handle)
    return Peer(pid, uid, gid, _groups(connection) | {gid}, outside)


def _has_ended(handle: int) -> bool:
    asked = select.poll()  # select() takes no descriptor past 1,023
    asked.register(handle, select.POLLIN)
    return bool(asked.poll(0))


def _handle(connection: socket.socket) -> int | None:
    """A handle of the process; None where the kernel has none to give, before Linux 6.5.

    Raises ProcessLookupError where the process has ended and was waited for.
    """
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return None
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENODATA):
            raise ProcessLookupError(errno.ESRCH, "the process has ended") from error
        raise


def _groups(connection: socket.socket) -> frozenset[int]:
    """The supplementary groups; socket.getsockopt() takes no more than 256 of them."""
    length = ctypes.c_uint32(4 * _MOST_GROUPS)
    found = (ctypes.c_uint32 * _MOST_GROUPS)()
    libc = ctypes.CDLL(None, use_errno=True)
    given = libc.getsockopt(
        connection.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, found, ctypes.byref(length)
    )
    return frozenset(found[: length.value // 4]) if given == 0 else frozenset()


def _outside(pid: int) -> str | None:
    if pid <= 0:
        return "pid"  # it has no number here
    for kind in _KINDS:
        try:
            theirs, ours = os.stat(f"/proc/{pid}/ns/{kind}"), os.stat(f"/proc/self/ns/{kind}")  # noqa: PTH116
        except OSError:
            return kind
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
            return kind
    return None
