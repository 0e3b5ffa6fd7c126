"""Which process is at the other end of a unix socket, as the kernel says (unix(7), SO_PEERCRED)."""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import suppress
from typing import NamedTuple

_CREDENTIALS = struct.Struct("=iII")  # struct ucred
_SO_PEERGROUPS, _SO_PEERPIDFD = 59, 77  # asm-generic/socket.h; the latter since Linux 6.5
_MOST_GROUPS = 65536  # NGROUPS_MAX
_KINDS = ("user", "pid", "net")


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
    handle = _handle(connection)
    try:
        outside = _outside(pid)
        if handle is not None and _has_ended(handle):
            outside = "process that has ended"  # and its number may be another's by now
    finally:
        if handle is not None:
            os.close(handle)
    return Peer(pid, uid, gid, _groups(connection) | {gid}, outside)


def _has_ended(handle: int) -> bool:
    asked = select.poll()  # select() takes no descriptor past 1,023
    asked.register(handle, select.POLLIN)
    return bool(asked.poll(0))


def _handle(connection: socket.socket) -> int | None:
    with suppress(OSError):
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    return None


def _groups(connection: socket.socket) -> frozenset[int]:
    with suppress(OSError):
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * 256)
        return frozenset(struct.unpack(f"={len(raw) // 4}I", raw))
    return frozenset()


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
