"""Where a lease is to be put on the machine, made plain before anything changes."""

from __future__ import annotations

import os

from netalloc.errors import InvalidValueError
from netalloc.host.links import check_name
from netalloc.host.target_netns import open_netns
from netalloc.light import NamedTuple
from netalloc.values import as_int, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from netalloc.host.netns import NamespaceId

_MAX_MTU = 65535


class Target(NamedTuple):
    """Where a lease is to be put: a namespace's descriptor, or a tap for a user and a group."""

    netns: int
    tap: str | None
    ifname: str
    mac: bytes | None
    mtu: int | None
    uid: int | None
    gid: int | None


def as_target(
    netns: object,
    tap: object,
    ifname: object,
    mac: object,
    mtu: object,
    uid: object,
    gid: object,
    home: NamespaceId | None = None,
) -> Target:
    """A target of plain values, whose descriptor the caller closes. Raises InvalidValueError."""
    if (netns is None) == (tap is None):
        raise InvalidValueError(
            f"netns {shown(netns)} and tap {shown(tap)}: attach takes one of the two"
        )
    plain = (
        "" if tap is None else check_name(tap, "tap"),
        check_name(ifname),
        None if mac is None else _as_mac(mac),
        None if mtu is None else as_int(mtu, "mtu", 68, _MAX_MTU),
        None if uid is None else as_int(uid, "uid", 0, 0xFFFFFFFE),
        None if gid is None else as_int(gid, "gid", 0, 0xFFFFFFFE),
    )
    if tap is not None:
        return Target(-1, *plain)
    if uid is not None or gid is not None:
        raise InvalidValueError("uid and gid say who may open a tap, and this is a namespace")
    fd = open_netns(netns, home)  # type: ignore[arg-type]
    return Target(fd, None, *plain[1:])


def close_targets(targets: Iterable[Target]) -> None:
    """Give back the descriptors."""
    for target in targets:
        if target.netns >= 0:
            os.close(target.netns)


def _as_mac(mac: object) -> bytes:
    """A MAC address of one interface, as text with colons or as bytes."""
    try:
        found = bytes.fromhex(mac.replace(":", "")) if isinstance(mac, str) else mac
    except ValueError:
        found = None
    if not isinstance(found, bytes) or len(found) != 6 or found[0] & 1 or not any(found):
        raise InvalidValueError(f"mac {shown(mac)} is not the MAC address of one interface")
    return found
