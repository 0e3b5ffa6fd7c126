"""What this machine has of each thing that runs out where there are many containers.

Every reading is None where the kernel does not tell: it has no such part, or tells it to the
first network namespace alone.
"""

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_SYS = _PROC / "sys"


class Gauge(NamedTuple):
    """How much is in use of how much there may be."""

    now: int
    limit: int


def setting(name: str) -> int | None:
    """A kernel setting that is a number, by its path below /proc/sys.

    >>> setting("net/ipv4/ip_forward") in (0, 1)
    True
    """
    with suppress(OSError, ValueError):
        return int((_SYS / name).read_text().split()[0])
    return None


def neighbours(version: int) -> Gauge | None:
    """Entries of the neighbour table of a family, 4 or 6, of all network namespaces together.

    The kernel keeps one table for all of them, and gc_thresh3 bounds it (net/core/neighbour.c).
    """
    table, family = ("arp_cache", "ipv4") if version == 4 else ("ndisc_cache", "ipv6")
    limit = setting(f"net/{family}/neigh/default/gc_thresh3")
    with suppress(OSError, IndexError, ValueError):
        line = (_PROC / "net/stat" / table).read_text().splitlines()[1]
        if limit is not None:
            return Gauge(int(line.split()[0], 16), limit)
    return None


def conntrack() -> Gauge | None:
    """Connections that are tracked; the limit is that of each network namespace."""
    now = setting("net/netfilter/nf_conntrack_count")
    limit = setting("net/netfilter/nf_conntrack_max")
    return None if now is None or limit is None else Gauge(now, limit)


def open_files() -> Gauge | None:
    """Open files of the whole machine, and fs.file-max."""
    with suppress(OSError, ValueError):
        used, free, limit = map(int, (_SYS / "fs/file-nr").read_text().split())
        return Gauge(used - free, limit)
    return None


def own_files() -> Gauge:
    """Open files of this process, and how many it may have."""
    return Gauge(len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # noqa: PTH208


def inotify_instances() -> Gauge | None:
    """Inotify instances of this user, and how many it may have; O(open files of the user)."""
    limit = setting("fs/inotify/max_user_instances")
    if limit is None:
        return None
    return Gauge(sum(1 for _ in _inotify()), limit)


def _inotify() -> Iterator[str]:
    uid = os.geteuid()
    for process in os.scandir(_PROC):
        with suppress(OSError):
            if process.name.isdigit() and process.stat().st_uid == uid:
                for fd in os.scandir(f"{process.path}/fd"):
                    with suppress(OSError):
                        if os.readlink(fd.path) == "anon_inode:inotify":  # noqa: PTH115
                            yield fd.path


def namespaces() -> Gauge | None:
    """Network namespaces with a name, and how many this user may have (user.max_net_namespaces)."""
    limit = setting("user/max_net_namespaces")
    if limit is None:
        return None
    try:
        named = len(os.listdir("/run/netns"))  # noqa: PTH208
    except OSError:
        named = 0
    return Gauge(named, limit)


def outgoing_ports() -> range | None:
    """The ports that connections of the host itself take."""
    with suppress(OSError, ValueError):
        low, high = map(int, (_SYS / "net/ipv4/ip_local_port_range").read_text().split())
        return range(low, high + 1)
    return None


def deaf_uplinks() -> list[str]:
    """Interfaces with an IPv6 route learned by advertisement that forwarding would take away.

    A router listens to other routers where accept_ra is 2 alone.
    """
    found = []
    with suppress(OSError):
        for line in (_PROC / "net/ipv6_route").read_text().splitlines():
            fields = line.split()
            learned = int(fields[8], 16) & 0x00040000  # RTF_ADDRCONF, linux/ipv6_route.h
            if (
                learned
                and fields[1] == "00"
                and setting(f"net/ipv6/conf/{fields[9]}/accept_ra") == 1
            ):
                found.append(fields[9])
    return sorted(set(found))
