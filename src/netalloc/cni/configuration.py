"""The `ipam` section of a configuration: host-local's as it stands, or the shorter one of ours.

    {"type": "netalloc-ipam", "network": "lab"}
    {"type": "netalloc-ipam", "ranges": [[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.50"}]],
     "routes": [{"dst": "0.0.0.0/0"}], "resolvConf": "/etc/resolv.conf"}

Of each range *set* a container gets one address. A range is a network of the store, called after
the configuration's name and its place, which touches no kernel: the plugin that asks does.
"""

from __future__ import annotations

import os
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
    summarize_address_range,
)

from netalloc.cni.errors import CONFIG, IO, CniError
from netalloc.cni.request import field
from netalloc.light import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from netalloc.address_values import IP
    from netalloc.cni.request import Request

_MAX_RESOLV = 1 << 16  # bytes that are read of a resolv.conf
_WIDEST = 64  # prefix of IPv6 that a network of ours covers


class Range(NamedTuple):
    """Spans of addresses of a subnet, but for the gateway: the network `name` of the store."""

    name: str
    subnet: IPv4Network | IPv6Network
    spans: tuple[tuple[IP, IP], ...]
    gateway: IP
    network: str  # as netalloc is given it, written as its gateway or without one
    exclude: tuple[str, ...]

    def holds(self, ip: IP) -> bool:
        """Whether it gives that address."""
        return ip.version == self.subnet.version and any(
            start <= ip <= end  # type: ignore[operator]
            for start, end in self.spans
        )

    @property
    def shown(self) -> str:
        """Its spans as text."""
        return ", ".join(f"{start}-{end}" for start, end in self.spans)


class Part(NamedTuple):
    """One range as it is stated."""

    subnet: IPv4Network | IPv6Network
    start: IP
    end: IP
    gateway: IP


class Configuration(NamedTuple):
    """What is to be given: from a network that is registered, or of each set of ranges."""

    store: str
    network: str | None
    sets: tuple[tuple[Range, ...], ...]
    routes: list[dict[str, Any]]
    dns: dict[str, Any]
    wishes: tuple[IP, ...]


def configuration(request: Request) -> Configuration:
    """The configuration of a request. Raises CniError."""
    config = request.config
    ipam = field(config, "ipam", dict, None)
    if ipam is None:
        raise CniError(CONFIG, "IPAM config missing 'ipam' key")
    network = field(ipam, "network", str, None)
    sets = () if network is not None else tuple(_sets(ipam, str(config["name"])))
    if network is None and not sets:
        raise CniError(CONFIG, "no IP ranges specified", "ipam needs ranges, subnet or network")
    return Configuration(
        _store(ipam),
        network,
        sets,
        _routes(ipam),
        _dns(ipam),
        _wishes(request),
    )


def _store(ipam: dict[str, Any]) -> str:
    named = field(ipam, "store", str, None)
    if named is not None:
        return str(named)
    folder = field(ipam, "dataDir", str, None)
    if folder is not None:
        return os.path.join(folder, "netalloc.db")  # noqa: PTH118
    from netalloc.operations.place import default_store  # it takes 4 ms to load

    return str(default_store())


def _sets(ipam: dict[str, Any], name: str) -> list[tuple[Range, ...]]:
    given = field(ipam, "ranges", list, [])
    keys = ("subnet", "rangeStart", "rangeEnd", "gateway")
    single = {key: ipam[key] for key in keys if key in ipam}
    whole = [[single]] * ("subnet" in single) + list(given)
    found, seen = list[tuple[Range, ...]](), list[Part]()
    for number, one in enumerate(whole):
        if not isinstance(one, list) or not one:
            raise CniError(CONFIG, f"range set {number} is empty")
        parts = [_part(item) for item in one]
        if len({part.subnet.version for part in parts}) > 1:
            raise CniError(CONFIG, f"range set {number} has both families")
        for part in parts:
            _check_apart(seen, part)
            seen.append(part)
        # What is of one subnet is one network: two would overlap.
        by_subnet: dict[Any, list[Part]] = {}
        for part in parts:
            by_subnet.setdefault(part.subnet, []).append(part)
        ranges = enumerate(by_subnet.values())
        found.append(tuple([_range(some, f"cni.{name}.{number}.{i}") for i, some in ranges]))
    return found


def _part(item: object) -> Part:
    if not isinstance(item, dict):
        raise CniError(CONFIG, f"a range is an object, not {str(item)[:80]}")
    subnet = _network(field(item, "subnet", str, ""), "subnet")
    if subnet.num_addresses < 4:
        raise CniError(CONFIG, f"network {subnet} too small to allocate from")
    first, last = subnet.network_address, subnet.broadcast_address
    least, most = first + 1, last - 1 if subnet.version == 4 else last
    start = _address(field(item, "rangeStart", str, str(least)), "rangeStart")
    end = _address(field(item, "rangeEnd", str, str(most)), "rangeEnd")
    gateway = _address(field(item, "gateway", str, str(least)), "gateway")
    for what, one in (("rangeStart", start), ("rangeEnd", end)):
        if one not in subnet:
            raise CniError(CONFIG, f"{what} {one} not in network {subnet}")
    if start > end:  # type: ignore[operator]
        raise CniError(CONFIG, f"rangeStart {start} is behind rangeEnd {end}")
    return Part(subnet, start, end, gateway)


def _range(parts: list[Part], name: str) -> Range:
    """A network of what is stated of one subnet."""
    subnet, gateway = parts[0].subnet, parts[0].gateway
    spans = sorted([(int(one.start), int(one.end)) for one in parts])
    whole = subnet if subnet.version == 4 else _around(subnet, spans[0][0], spans[-1][1])
    low, high = int(whole.network_address), int(whole.broadcast_address)
    spans = [(start, min(end, high)) for start, end in spans if start <= high]
    kind = type(subnet.network_address)
    gaps, at = list[tuple[int, int]](), low
    for start, end in spans:
        gaps.append((at, start - 1))
        at = end + 1
    gaps.append((at, high))
    exclude = [
        str(block)
        for first, last in gaps
        if first <= last
        for block in summarize_address_range(kind(first), kind(last))
    ]
    base = gateway if gateway in whole else whole.network_address
    given = tuple([(kind(start), kind(end)) for start, end in spans])
    network = f"{base}/{whole.prefixlen}"
    return Range(_short(name), subnet, given, gateway, network, tuple(exclude))


def _around(subnet: IPv4Network | IPv6Network, start: int, end: int) -> IPv4Network | IPv6Network:
    """The smallest prefix around a span of IPv6, whose first address is before it; a /64 at most.

    To exclude the rest of a /64 takes as long as to take it.
    """
    last = min(end, (start | ((1 << 64) - 1)))
    for prefixlen in range(125, _WIDEST, -1):
        size = 1 << (128 - prefixlen)
        base = start // size * size
        if base < start and last < base + size:
            return IPv6Network((base, max(prefixlen, subnet.prefixlen)))
    return IPv6Network((start >> 64 << 64, max(_WIDEST, subnet.prefixlen)))


def _check_apart(known: list[Part], one: Part) -> None:
    for other in known:
        if one.subnet.version == other.subnet.version and (
            one.start <= other.end and other.start <= one.end  # type: ignore[operator]
        ):
            raise CniError(
                CONFIG, f"range {one.start}-{one.end} overlaps {other.start}-{other.end}"
            )


def _short(name: str) -> str:
    """A name of at most 64 characters."""
    if len(name) <= 64:
        return name
    from hashlib import blake2s

    return f"{name[:40]}.{blake2s(name.encode(), digest_size=8).hexdigest()}"


def _wishes(request: Request) -> tuple[IP, ...]:
    """The addresses that are asked for: by CNI_ARGS, args and capabilities."""
    found: list[Any] = []
    if request.args.get("IP"):
        found += request.args["IP"].split(",")
    args = field(field(request.config, "args", dict, {}), "cni", dict, {})
    found += field(args, "ips", list, [])
    found += field(field(request.config, "runtimeConfig", dict, {}), "ips", list, [])
    return tuple(dict.fromkeys([_address(str(one).partition("/")[0], "ip") for one in found]))


def _routes(ipam: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for one in field(ipam, "routes", list, []):
        if not isinstance(one, dict):
            raise CniError(CONFIG, f"a route is an object, not {str(one)[:80]}")
        _network(field(one, "dst", str, ""), "route")
        if one.get("gw") is not None:
            _address(field(one, "gw", str, ""), "gateway of a route")
        found.append(dict(one))
    return found


def _dns(ipam: dict[str, Any]) -> dict[str, Any]:
    path = field(ipam, "resolvConf", str, "")
    return resolver(path) if path else {}


def resolver(path: str) -> dict[str, Any]:
    """What a resolv.conf says (resolv.conf(5)). Raises CniError where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            lines = file.read(_MAX_RESOLV).splitlines()
    except OSError as error:
        raise CniError(IO, f"resolvConf {path[:200]}: {error.strerror}") from error
    found: dict[str, Any] = {}
    for line in lines:
        words = line.split()
        if len(words) < 2 or words[0][0] in "#;":
            continue
        if words[0] == "nameserver":
            found.setdefault("nameservers", []).append(words[1])
        elif words[0] == "domain":
            found["domain"] = words[1]
        elif words[0] in ("search", "options"):
            found.setdefault(words[0], []).extend(words[1:])
    return found


def _network(text: str, what: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise CniError(CONFIG, f"invalid {what} {text[:80]!r}: {error}"[:300]) from None


def _address(text: str, what: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError:
        raise CniError(CONFIG, f"invalid {what} {text[:80]!r}") from None
