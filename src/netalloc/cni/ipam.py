"""netalloc-ipam: the CNI plugin that gives out addresses, to the specification 0.1 to 1.1.

It reads a configuration of host-local as it stands. ADD is all or nothing; DEL never fails for
what is gone; GC gives back what is not valid, and goes on past what fails.
"""

from __future__ import annotations

import json
import os
import sys

from netalloc.cni import versions
from netalloc.cni.addresses import Pools, held_by
from netalloc.cni.configuration import configuration
from netalloc.cni.errors import (
    ADDRESS,
    CONFIG,
    DUPLICATE,
    FAILED,
    FIELD,
    IO,
    LIMITED,
    MISMATCH,
    NOT_AVAILABLE,
    CniError,
)
from netalloc.cni.request import MAX_INPUT, Request, field, read
from netalloc.cni.result import Given, result
from netalloc.errors import NetallocError, StoreError
from netalloc.manager.undo import attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from netalloc.cni.configuration import Configuration
    from netalloc.manager.interface import NetworkInterface

ABOUT = "netalloc-ipam: a CNI IPAM plugin; see https://www.cni.dev/docs/spec/"


def main() -> None:
    """The plugin as a process."""
    if not os.environ.get("CNI_COMMAND"):
        sys.stderr.write(
            f"{ABOUT}\nCNI protocol versions supported: {', '.join(versions.SUPPORTED)}\n"
        )
        return
    data = sys.stdin.buffer.read(MAX_INPUT + 1)
    status, out = answer(os.environ, data)
    if out:
        sys.stdout.write(out + "\n")
        sys.stdout.flush()
    sys.exit(status)


def answer(environment: Mapping[str, str], data: bytes) -> tuple[int, str]:
    """The exit status and the output for a request: of a failure a CNI error, whatever it is."""
    version = versions.DEFAULT
    try:
        request = read(environment, data)
        version = request.version
        found = _COMMANDS[request.command](request)
    except CniError as error:
        return 1, json.dumps(error.as_json(_version_of(data)))
    except NetallocError as error:
        code = IO if isinstance(error, StoreError) else FAILED
        return 1, json.dumps(CniError(code, str(error)).as_json(version))
    except OSError as error:
        return 1, json.dumps(CniError(IO, str(error)).as_json(version))
    except Exception as error:  # the runtime wants JSON, whatever has happened
        told = CniError(FAILED, f"a defect of the plugin: {error!r}"[:500])
        return 1, json.dumps(told.as_json(version))
    return 0, "" if found is None else json.dumps(found)


def _version_of(data: bytes) -> str:
    """The version that is asked for, so that the runtime can read what went wrong."""
    try:
        version = json.loads(data[: MAX_INPUT + 1]).get("cniVersion")
    except (ValueError, RecursionError, AttributeError):
        return versions.DEFAULT
    return version if version in versions.SUPPORTED else versions.SUPPORTED[-2]


def _add(request: Request) -> dict[str, Any]:
    wanted = configuration(request)
    owner, key = request.container, request.ifname
    with Pools(wanted, str(request.config["name"])) as pools:
        for manager in pools.all_there():
            for held in held_by(manager, owner, key):
                raise CniError(
                    DUPLICATE, f"duplicate allocation is not allowed: {owner} {key} has {held.ip}"
                )
        taken: list[NetworkInterface] = []
        try:
            given = _taken(wanted, pools, owner, key, taken)
            return result(request.version, given, wanted.routes, wanted.dns)
        except BaseException:
            for interface in taken:
                attempt(interface.release)
            raise


def _taken(
    wanted: Configuration, pools: Pools, owner: str, key: str, taken: list[NetworkInterface]
) -> list[Given]:
    """An address of each set, or of each family of the network, as far as wished for."""
    wishes = list(wanted.wishes)
    if wanted.network is not None:
        if len(wishes) > 1:
            raise CniError(ADDRESS, _unmet(wishes[1:]))
        manager = pools.named()
        ip = wishes[0] if wishes else None
        interface = manager.allocate(owner, ip, key=key)
        taken.append(interface)
        return [
            Given(address.ip, address.network.prefixlen, _gateway(interface, address.version))
            for address in interface.addresses
        ]
    given = []
    for ranges in wanted.sets:
        wish = next((ip for ip in wishes if any(one.holds(ip) for one in ranges)), None)
        if wish is not None:
            wishes.remove(wish)
        one, interface = pools.take(ranges, owner, key, wish)
        taken.append(interface)
        given.append(Given(interface.ip, one.subnet.prefixlen, one.gateway))
    if wishes:
        raise CniError(ADDRESS, _unmet(wishes))
    return given


def _unmet(wishes: list[Any]) -> str:
    return f"failed to allocate all requested IPs: {', '.join(map(str, wishes))}"


def _gateway(interface: NetworkInterface, version: int) -> Any:
    return next((ip for ip in interface.gateways if ip.version == version), None)


def _delete(request: Request) -> None:
    wanted = configuration(request)
    with Pools(wanted, str(request.config["name"])) as pools:
        try:
            managers = list(pools.all_there())
        except CniError:
            return  # the network itself is gone, and all of it with it
        for manager in managers:
            for interface in held_by(manager, request.container, request.ifname):
                interface.release()


def _check(request: Request) -> None:
    wanted = configuration(request)
    before = field(request.config, "prevResult", dict, None)
    if before is None:
        raise CniError(CONFIG, "CHECK needs the prevResult of ADD")
    stated = {
        str(one.get("address", "")).partition("/")[0]
        for one in field(before, "ips", list, [])
        if isinstance(one, dict)
    }
    with Pools(wanted, str(request.config["name"])) as pools:
        held = [
            interface
            for manager in pools.all_there()
            for interface in held_by(manager, request.container, request.ifname)
        ]
    if not held:
        raise CniError(
            MISMATCH,
            f"failed to find an address added by container {request.container} {request.ifname}",
        )
    for interface in held:
        for ip in interface.ips:
            if str(ip) not in stated:
                raise CniError(
                    MISMATCH, f"{ip} is held, and prevResult has {', '.join(sorted(stated))}"
                )


def _collect(request: Request) -> None:
    wanted = configuration(request)
    valid = set()
    for one in field(request.config, "cni.dev/valid-attachments", list, []):
        if not isinstance(one, dict):
            raise CniError(FIELD, f"a valid attachment is an object, not {str(one)[:80]}")
        valid.add((field(one, "containerID", str, ""), field(one, "ifname", str, "")))
    failures = []
    with Pools(wanted, str(request.config["name"])) as pools:
        for manager in pools.all_there():
            for interface in manager.interfaces():
                if interface.key is None or (interface.owner, interface.key) in valid:
                    continue  # without a key it was not given by this plugin
                failure = attempt(interface.release)
                if failure is not None:
                    failures.append(f"{interface.ip}: {failure}")
    if failures:
        raise CniError(
            FAILED, f"{len(failures)} addresses could not be given back", "; ".join(failures)[:1000]
        )


def _status(request: Request) -> None:
    wanted = configuration(request)
    try:
        with Pools(wanted, str(request.config["name"])) as pools:
            full = _full(wanted, pools)
    except NetallocError as error:
        raise CniError(NOT_AVAILABLE, f"the store cannot be used: {error}") from error
    if full:
        raise CniError(LIMITED, f"no addresses are free: {full}")


def _full(wanted: Configuration, pools: Pools) -> str:
    """What has no free address, in words."""
    from netalloc.manager.view import NetworkView

    if wanted.network is not None:
        pools.named()
    if not pools.is_there:
        return ""
    with NetworkView(pools.host().store) as view:
        free = {one.network: one.free for one in view.usage()}
    if wanted.network is not None:
        return "" if free.get(wanted.network) else f"network {wanted.network}"
    for ranges in wanted.sets:
        if all(free.get(one.name, 1) == 0 for one in ranges):
            return ", ".join(one.shown for one in ranges)
    return ""


def _tell_version(request: Request) -> dict[str, Any]:
    return {"cniVersion": request.version, "supportedVersions": list(versions.SUPPORTED)}


_COMMANDS = {
    "ADD": _add,
    "DEL": _delete,
    "CHECK": _check,
    "GC": _collect,
    "STATUS": _status,
    "VERSION": _tell_version,
}


if __name__ == "__main__":
    main()
