"""What netalloc has switched on in a network namespace, and for which of its users.

A file in the runtime directory, one for each namespace, read and written under one lock: who
switched something on must not be forgotten with a crash, nor live in rules that another
program may flush. A namespace that took the inode number of one that is gone has another
cookie (SO_NETNS_COOKIE, Linux 5.14) and begins with an empty record, as does another boot.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

from netalloc.errors import NetallocError
from netalloc.host import netns, runtime_dir
from netalloc.host.boot import boot_id

_SO_NETNS_COOKIE = 71


class Entry(NamedTuple):
    """Something that is on: what, where, for which user.

    `what` is "ip_forward", "ip6_forward", "accept_ra", "bridge", "route_localnet", "clsact",
    "loopback6", "answers6", "gateway", "unreachable" or "way6". `ifindex` and `interface` are 0
    and "" where it is of the whole namespace; of the last three `interface` is the address, or
    the network.
    """

    what: str
    user: str
    ifindex: int = 0
    interface: str = ""


@contextmanager
def opened() -> Iterator[set[Entry]]:
    """The record of the caller's network namespace, to be changed by one at a time.

    What the block leaves in it is written when it ends, also by an error: a step that was
    taken is known. Raises NetallocError when the directory cannot be used, or another
    process keeps it for 5 s.
    """
    here = netns.current()
    name = f"opened-{here.device}-{here.inode}"
    header = f"{_cookie()}\t{boot_id()}"
    with runtime_dir.opened() as directory:
        runtime_dir.lock(directory)
        found, is_whole = _read(directory, name, header)
        before = set(found)
        try:
            yield found
        finally:
            if is_whole and found > before:
                _append(directory, name, found - before)
            elif found != before:
                _write(directory, name, header, found)


def _read(directory: int, name: str, header: str) -> tuple[set[Entry], bool]:
    """The entries, 1 µs each, and whether more can be put behind them."""
    try:
        with _text(directory, name, os.O_RDONLY, "r") as file:
            # What has no end of its line was cut off in the middle, and is not believed.
            *lines, rest = file.read().split("\n")
    except FileNotFoundError:
        return set(), False
    if lines[:1] != [header]:
        return set(), False
    rows = [line.split("\t") for line in lines[1:]]
    found = {Entry(r[0], r[1], int(r[2]), r[3]) for r in rows if len(r) == 4 and r[2].isdigit()}
    return found, not rest


def _write(directory: int, name: str, header: str, found: set[Entry]) -> None:
    if not found:
        os.unlink(name, dir_fd=directory)
        return
    fresh = f"{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with _explained(directory, name):
        _put(directory, fresh, flags, f"{header}\n{_lines(found)}")
        os.rename(fresh, name, src_dir_fd=directory, dst_dir_fd=directory)


def _append(directory: int, name: str, more: set[Entry]) -> None:
    """A hundred networks' entries are not written anew for one more."""
    with _explained(directory, name):
        _put(directory, name, os.O_WRONLY | os.O_APPEND, _lines(more))


def _lines(entries: set[Entry]) -> str:
    return "".join(sorted("\t".join(map(str, entry)) + "\n" for entry in entries))


def _put(directory: int, name: str, flags: int, text: str) -> None:
    with _text(directory, name, flags, "w") as file:
        file.write(text)


@contextmanager
def _text(directory: int, name: str, flags: int, mode: str) -> Iterator[IO[str]]:
    fd = runtime_dir.open_file(directory, name, flags)
    try:
        with os.fdopen(fd, mode, encoding="utf-8", errors="surrogateescape", closefd=False) as file:
            yield file
    finally:
        runtime_dir.close_file(fd)


@contextmanager
def _explained(directory: int, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = runtime_dir.shown(directory)
        raise NetallocError(f"{where}/{name} cannot be written: {error.strerror}") from error


def _cookie() -> int:
    with socket.socket(socket.AF_UNIX) as any_socket:
        try:
            found = any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:  # an older kernel
            return 0
    return int.from_bytes(found, "little")
