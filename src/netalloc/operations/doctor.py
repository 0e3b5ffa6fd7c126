"""Each limit of the host that bites at density, and each thing that stands in the way.

A gauge warns from four fifths on and is critical from nineteen twentieths on: at either there is
time to act while containers still start.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

from netalloc.errors import NetallocError
from netalloc.host import limits
from netalloc.operations.answers import Finding, Health, Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from netalloc.host.limits import Gauge
    from netalloc.ipam.networks import NetworkInfo

_RANK = ("ok", "unknown", "warning", "critical")
_WAL = 64 << 20  # bytes of log that a checkpoint should have put into the file
_CLOCK = 5.0  # seconds that a lease may seem to begin in the future


def examine(path: Path, networks: Sequence[Network], infos: Sequence[NetworkInfo]) -> Health:
    """All findings about this host; the networks are those of the store at `path`. O(sockets)."""
    held = sum(one.held for one in networks)
    found = [
        *_bridges(networks),
        *_addresses(networks),
        *_ports(infos, networks),
        *_tables(held),
        *_forwarding(networks),
        *_bridge_filter(networks),
        *_foreign(networks),
        *_kernel(networks),
        *_store(path),
        *_claim(path, networks),
    ]
    worst = max((_RANK.index(one.status) for one in found), default=0)
    return Health("ok" if _RANK[worst] == "unknown" else _RANK[worst], found)


def gauge(name: str, text: str, found: Gauge | None, fix: str, *, each: float = 1.0) -> Finding:
    """A finding of how full something is; a container takes `each` of it."""
    if found is None:
        return Finding(name, "unknown", None, None, None, f"{text}: this cannot be seen here")
    room = max(0, int((found.limit - found.now) / each))
    share = found.now / found.limit if found.limit else 1.0
    status = "critical" if share >= 0.95 else "warning" if share >= 0.8 else "ok"
    return Finding(
        name, status, found.now, found.limit, room, text, None if status == "ok" else fix
    )


def fact(name: str, status: str, text: str, fix: str | None = None) -> Finding:
    """A finding that is no number."""
    return Finding(name, status, None, None, None, text, None if status == "ok" else fix)


def _bridges(networks: Sequence[Network]) -> Iterator[Finding]:
    for one in networks:
        if one.bridge is None or one.backend == "null":
            continue
        text = f"ports of bridge {one.bridge}"
        if one.bridge_ports is None or one.bridge_ports_limit is None:
            fix = "netalloc reconcile makes it anew"
            yield fact("bridge", "warning", f"bridge {one.bridge} is not there", fix)
            continue
        found = limits.Gauge(one.bridge_ports, one.bridge_ports_limit)
        fix = "a second network on another bridge, or one of --mode routed, which has no such limit"
        yield gauge("bridge-ports", text, found, fix)


def _addresses(networks: Sequence[Network]) -> Iterator[Finding]:
    for one in networks:
        found = limits.Gauge(one.capacity - one.free, one.capacity)
        fix = (
            "a second network; netalloc gc, if some of what is held is of containers that are gone"
        )
        if one.cooling * 5 > one.capacity:
            fix = f"{one.cooling} cool down: a network with a shorter --cooldown"
        yield gauge("addresses", f"addresses of network {one.name}", found, fix)


def _ports(infos: Sequence[NetworkInfo], networks: Sequence[Network]) -> Iterator[Finding]:
    published = sum(one.published for one in networks)
    outgoing = limits.outgoing_ports()
    seen = set()
    for info in infos:
        first, last = min(info.ports), max(info.ports)
        if (first, last) in seen:
            continue
        seen.add((first, last))
        found = limits.Gauge(min(published, len(info.ports)), len(info.ports))
        text = f"host ports {first}-{last}, of which network {info.name} picks"
        yield gauge("host-ports", text, found, "a network with other --ports, or on host addresses")
        if outgoing is not None and info.backend != "null":
            low, high = max(first, outgoing[0]), min(last, outgoing[-1])
            text = f"the host's own connections take {outgoing[0]}-{outgoing[-1]}"
            if low <= high:
                fix = f"sysctl -w net.ipv4.ip_local_port_range='{outgoing[0]} {first - 1}'"
                if first <= outgoing[0]:
                    fix = f"a network with --ports below {outgoing[0]}"
                overlap = f"{text}, {low}-{high} of them in the range of network {info.name}"
                yield fact("outgoing-ports", "warning", overlap, fix)
            else:
                yield fact("outgoing-ports", "ok", text)
        if info.backend != "null":
            yield _reserved(info, first, last)


def _reserved(info: NetworkInfo, first: int, last: int) -> Finding:
    from netalloc.host.sockets import reserved_ports

    ours = [port for port in reserved_ports() if first <= port <= last]
    if not ours:
        return fact("reserved-ports", "ok", "no port of the range is reserved by the administrator")
    text = f"{len(ours)} ports of network {info.name} are in net.ipv4.ip_local_reserved_ports"
    few = len(ours) * 2 < last - first
    return fact("reserved-ports", "ok" if few else "warning", text, "they are never picked")


def _tables(held: int) -> Iterator[Finding]:
    for version, family in ((4, "ipv4"), (6, "ipv6")):
        found = limits.neighbours(version)
        need = 0 if found is None else max(4096, found.limit * 4)
        fix = (
            f"sysctl -w net.{family}.neigh.default.gc_thresh3={need} "
            f"net.{family}.neigh.default.gc_thresh2={need // 2}"
        )
        text = f"IPv{version} neighbours, of all network namespaces together"
        # A container has an entry for its gateway, and the host one for it.
        yield gauge(f"neighbours-ipv{version}", text, found, fix, each=2)
    flows = limits.conntrack()
    each = 1.0 if flows is None or not held else max(1.0, flows.now / held)
    more = 0 if flows is None else flows.limit * 4
    yield gauge(
        "conntrack", "tracked connections", flows,
        f"sysctl -w net.netfilter.nf_conntrack_max={more}", each=each,
    )  # fmt: skip
    yield gauge(
        "open-files", "open files of the machine", limits.open_files(),
        "sysctl -w fs.file-max=10000000", each=10,
    )  # fmt: skip
    own = limits.own_files()
    fix = "ulimit -n 65536, or LimitNOFILE= of the service"
    yield gauge("own-files", "open files of one process", own, fix)
    yield gauge(
        "inotify", "inotify instances of this user", limits.inotify_instances(),
        "sysctl -w fs.inotify.max_user_instances=8192",
    )  # fmt: skip
    yield gauge(
        "namespaces", "named network namespaces", limits.namespaces(),
        "sysctl -w user.max_net_namespaces=100000",
    )  # fmt: skip


def _forwarding(networks: Sequence[Network]) -> Iterator[Finding]:
    real = [one for one in networks if one.backend != "null"]
    for version, name, key in (
        (4, "net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        (6, "net.ipv6.conf.all.forwarding", "net/ipv6/conf/all/forwarding"),
    ):
        wanted = any((":" in subnet) == (version == 6) for one in real for subnet in one.subnets)
        value = limits.setting(key)
        if not wanted or value is None:
            continue
        if value:
            yield fact("forwarding", "ok", f"{name} is {value}")
        else:
            text = f"{name} is 0: nothing is forwarded to containers over IPv{version}"
            yield fact("forwarding", "critical", text, f"netalloc reconcile, or sysctl -w {name}=1")
    for name in limits.deaf_uplinks():
        text = f"{name} has a route by router advertisement, and a router does not listen to others"
        fix = f"sysctl -w net.ipv6.conf.{name}.accept_ra=2"
        yield fact("accept-ra", "warning", text, fix)


def _bridge_filter(networks: Sequence[Network]) -> Iterator[Finding]:
    bridged = [one for one in networks if one.bridge is not None and one.backend != "null"]
    value = limits.setting("net/bridge/bridge-nf-call-iptables")
    if bridged and value is not None:
        text = f"net.bridge.bridge-nf-call-iptables is {value}"
        if value:
            text += ": bridged frames pass the host's rules, and ports need hairpin"
        yield fact("bridge-filter", "ok", text)


def _foreign(networks: Sequence[Network]) -> Iterator[Finding]:
    if not any(one.backend != "null" for one in networks):
        return
    from netalloc.host.foreign_rules import dropping
    from netalloc.host.privileges import may_change_network

    if not may_change_network():
        yield fact("forward-policy", "unknown", "rules of other programs: that takes root")
        return
    try:
        found = dropping()
    except NetallocError as error:
        yield fact("forward-policy", "unknown", f"rules of other programs: {error}")
        return
    accepted = all(one.forward for one in networks if one.backend != "null")
    for what in found:
        text = f"{what} drops what it is not told to accept"
        if accepted:
            yield fact("forward-policy", "ok", f"{text}; --forward has ours accepted")
        else:
            fix = "a network with --forward, or accept its subnet there"
            yield fact("forward-policy", "warning", text, fix)
    if not found:
        yield fact("forward-policy", "ok", "no other program drops what is forwarded")


def _kernel(networks: Sequence[Network]) -> Iterator[Finding]:
    from netalloc.host.privileges import may_change_network

    if limits.setting("net/ipv6/conf/all/disable_ipv6") is None:
        v6 = any(":" in subnet for one in networks for subnet in one.subnets)
        text = "this kernel has no IPv6"
        fix = "boot without ipv6.disable=1"
        yield fact("kernel-ipv6", "critical" if v6 else "ok", text, fix)
    if limits.conntrack() is None:
        text = "the kernel tracks no connections yet: nf_conntrack is not loaded"
        yield fact("kernel-conntrack", "ok", text)
    if not may_change_network():
        return
    from netalloc.portmap.nftables.backend import HOST_TABLE
    from netalloc.portmap.nftables.structure import unavailable

    reason = unavailable(HOST_TABLE)
    used = any(one.backend == "nftables" or one.isolation == "guarded" for one in networks)
    if reason is None:
        yield fact("kernel-nftables", "ok", "nftables has all that the rules use")
    else:
        text = f"nftables cannot be used: {reason}"
        yield fact(
            "kernel-nftables", "critical" if used else "warning", text, "apt install nftables"
        )


def _store(path: Path) -> Iterator[Finding]:
    try:
        size = path.stat().st_size
    except OSError:
        yield fact("store", "ok", f"there is no store at {path} yet")
        return
    try:
        wal = os.stat(f"{path}-wal").st_size  # noqa: PTH116
    except OSError:
        wal = 0
    found = limits.Gauge(wal, _WAL)
    fix = "end the process that has been reading for long: the log is put into the file after it"
    text = f"bytes of the store's log, beside {size:,} of its file"
    yield replace(gauge("wal", text, found, fix), room=None)
    disk = os.statvfs(path.parent)
    free = disk.f_bavail * disk.f_frsize
    if free < max(4 * size, 64 << 20):
        text = f"{free:,} bytes are free for {path}"
        yield fact("disk", "critical" if free < 8 << 20 else "warning", text, "make room there")


def clock(newest: float) -> Finding:
    """Whether the clock on the wall went back behind the newest lease (seconds since 1970)."""
    ahead = newest - time.time()
    if ahead > _CLOCK:
        text = f"the newest lease begins {ahead:,.0f} s in the future: the clock was set back"
        fix = "timedatectl set-ntp true; cool-downs do not mind, they go by the clock since boot"
        return fact("clock", "warning", text, fix)
    return fact("clock", "ok", "no lease begins in the future")


def _claim(path: Path, networks: Sequence[Network]) -> Iterator[Finding]:
    from netalloc.host.namespace_lock import claimant

    claim = claimant()
    if claim is None:
        return
    truth, holder, pid = claim
    who = f"{holder}, process {pid}" if pid else holder
    real = any(one.backend != "null" for one in networks)
    if truth.startswith(f"store {path.resolve()} ("):
        yield fact("other-managers", "ok", f"this store manages this network namespace ({who})")
    else:
        text = f"this network namespace is managed from {truth} ({who})"
        fix = f"use that one (--store), or end it: {path} is refused the kernel"
        yield fact("other-managers", "critical" if real else "warning", text, fix)
