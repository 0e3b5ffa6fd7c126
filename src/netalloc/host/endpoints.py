"""What puts one container on a network: decided by the caller beforehand, all of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import NamedTuple

from netalloc.errors import InvalidValueError, OutOfRangeError
from netalloc.host.links import check_name
from netalloc.values import as_int, shown

_MAX_INDEX = 0x7FFFFFFF
_MAX_ALIAS = 255  # bytes: IFALIASZ less the NUL
MIN_MTU, MIN_MTU_V6, MAX_MTU = 68, 1280, 65535


class Endpoint(NamedTuple):
    """One container's interface, or one tap.

    `index`, `name` and `alias` are those of the host's end, `mac` and `ifname` of the
    container's. `netns` is a descriptor of the container's namespace (none for a tap), `uid`
    and `gid` say who may open a tap. Without an `mtu` it is that of the bridge or the uplink.
    """

    index: int  # type: ignore[assignment]  # in the place of tuple.index, which none of us calls
    name: str
    alias: str
    addresses: tuple[IPv4Interface | None, IPv6Interface | None]
    gateways: tuple[IPv4Address | None, IPv6Address | None]
    mac: bytes
    netns: int = -1
    ifname: str = "eth0"
    mtu: int | None = None
    uid: int | None = None
    gid: int | None = None

    @property
    def shown(self) -> str:
        """As an error names it."""
        return f"interface {self.name} ({self.index}) of {self.alias}"


def checked(endpoints: Iterable[Endpoint], *, in_netns: bool) -> Sequence[Endpoint]:
    """The same, when each can be made and no two have the same index, name or address.

    Raises InvalidValueError and OutOfRangeError. 3 µs each.
    """
    found = list(endpoints)
    indexes, names = set(), set()
    for one in found:
        as_int(one.index, "interface index", 1, _MAX_INDEX)
        check_name(one.name)
        if in_netns:
            check_name(one.ifname)
            if one.netns < 0:
                raise InvalidValueError(f"{one.shown} has no network namespace to be in")
        if len(one.alias.encode()) > _MAX_ALIAS or not one.alias:
            raise OutOfRangeError(
                f"alias {shown(one.alias)} of {one.name} is not of 1 to {_MAX_ALIAS} bytes"
            )
        if len(one.mac) != 6 or one.mac[0] & 1 or not any(one.mac):
            raise InvalidValueError(f"MAC {one.mac.hex(':')} of {one.name} is none of an interface")
        if not any(one.addresses):
            raise InvalidValueError(f"{one.shown} has no address")
        if one.mtu is not None:
            least = MIN_MTU if one.addresses[1] is None else MIN_MTU_V6
            as_int(one.mtu, f"MTU of {one.name}:", least, MAX_MTU)
        if one.index in indexes or one.name in names:
            raise InvalidValueError(f"{one.shown} is there twice")
        indexes.add(one.index)
        names.add(one.name)
    return found
