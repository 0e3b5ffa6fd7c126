"""The result of ADD in the form of each version of the specification (section 5)."""

from __future__ import annotations

from netalloc.cni import versions
from netalloc.cni.errors import VERSION, CniError
from netalloc.light import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from netalloc.address_values import IP


class Given(NamedTuple):
    """An address that was given, with the prefix of its subnet, and the gateway if there is one."""

    ip: IP
    prefixlen: int
    gateway: IP | None


def result(
    version: str, given: list[Given], routes: list[dict[str, Any]], dns: dict[str, Any]
) -> dict[str, Any]:
    """The result. Raises CniError where a version has no room for it."""
    if versions.is_old(version):
        return _old(version, given, routes, dns)
    found: dict[str, Any] = {
        "cniVersion": version,
        "ips": [_address(version, one) for one in given],
    }
    if routes:
        found["routes"] = routes
    found["dns"] = dns
    return found


def _address(version: str, one: Given) -> dict[str, Any]:
    found: dict[str, Any] = {"address": f"{one.ip}/{one.prefixlen}"}
    if versions.names_family(version):
        found["version"] = str(one.ip.version)
    if one.gateway is not None:
        found["gateway"] = str(one.gateway)
    return found


def _old(
    version: str, given: list[Given], routes: list[dict[str, Any]], dns: dict[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {"cniVersion": version}
    for one in given:
        name = f"ip{one.ip.version}"
        if name in found:
            raise CniError(
                VERSION, f"CNI version {version} does not support more than 1 address per family"
            )
        entry: dict[str, Any] = {"ip": f"{one.ip}/{one.prefixlen}"}
        if one.gateway is not None:
            entry["gateway"] = str(one.gateway)
        own = [
            {key: route[key] for key in ("dst", "gw") if route.get(key) is not None}
            for route in routes
            if (":" in route["dst"]) == (one.ip.version == 6)
        ]
        if own:
            entry["routes"] = own
        found[name] = entry
    found["dns"] = dns
    return found
