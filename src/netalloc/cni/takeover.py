"""Taking over what host-local has given on a running host, without a container noticing.

host-local keeps a file for each address, called like it, with the container's id and the
interface's name in two lines, in a folder of the network's name.
"""

from __future__ import annotations

import os
from ipaddress import ip_address

from netalloc.cni.addresses import Pools, held_by
from netalloc.cni.configuration import configuration
from netalloc.cni.errors import CONFIG, IO, CniError
from netalloc.cni.request import Request, field
from netalloc.manager.undo import attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from netalloc.address_values import IP
    from netalloc.manager.interface import NetworkInterface

HOST_LOCAL = "/var/lib/cni/networks"
_TYPES = ("host-local", "netalloc-ipam")


def plugins_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The configurations of a .conf or .conflist whose addresses are of host-local, or ours."""
    listed = field(document, "plugins", list, None)
    found = []
    for one in [document] if listed is None else listed:
        ipam = one.get("ipam") if isinstance(one, dict) else None
        if isinstance(ipam, dict) and ipam.get("type") in _TYPES:
            found.append({**one, "name": document.get("name")})
    return found


def take_over(config: dict[str, Any], folder: str | None = None) -> list[str]:
    """Give each container the address that it has; what was taken over, in words.

    All or nothing; again it is no error. `folder` is host-local's dataDir. Raises CniError for an
    address that the configuration does not give, or that another container holds.
    """
    name = str(config["name"])
    given = field(field(config, "ipam", dict, {}), "dataDir", str, HOST_LOCAL)
    leases = _read(os.path.join(folder or given, name))  # noqa: PTH118
    wanted = configuration(Request("ADD", "1.0.0", "", "", "", {}, config))
    taken: list[NetworkInterface] = []
    done = []
    with Pools(wanted, name) as pools:
        try:
            for ip, owner, key in leases:
                ranges = [one for part in wanted.sets for one in part if one.holds(ip)]
                if not ranges:
                    raise CniError(CONFIG, f"{ip} of {owner} {key} is in no range of {name}")
                manager = pools.of(ranges[0])
                if any(one.ip == ip for one in held_by(manager, owner, key)):
                    continue
                taken.append(manager.allocate(owner, ip, key=key))
                done.append(f"{ip} of {owner} {key}")
        except BaseException:
            for interface in taken:
                attempt(interface.release)
            raise
    return done


def _read(folder: str) -> list[tuple[IP, str, str]]:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError as error:
        raise CniError(IO, f"{folder}: {error.strerror}") from error
    found = []
    for name in names:
        try:
            ip = ip_address(name)
        except ValueError:
            continue  # its lock, and which address came last
        try:
            with open(os.path.join(folder, name), encoding="utf-8") as file:  # noqa: PTH123, PTH118
                lines = file.read(4096).replace("\r", "").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise CniError(IO, f"{folder}/{name}: {error}") from error
        if not lines[0].strip():
            continue
        # Before its version 0.7 host-local did not write the interface's name.
        key = lines[1].strip() if len(lines) > 1 and lines[1].strip() else "eth0"
        found.append((ip, lines[0].strip(), key))
    return found
