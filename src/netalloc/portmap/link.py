"""By what a network's containers are reached: a bridge, or interfaces of their own in a group."""

from __future__ import annotations

from netalloc.errors import OutOfRangeError
from netalloc.light import NamedTuple
from netalloc.values import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address
    from typing import TypeAlias

    Gateways: TypeAlias = tuple[IPv4Address | None, IPv6Address | None]

_GROUPS = 1 << 32  # IFLA_GROUP has 32 bits, and 0 is the group of all that were given none


class Link(NamedTuple):
    """What a backend is told of it; without bridge and group it translates destinations alone.

    With a bridge `group` is that of its ports, 0 where they have none. Without one it is that of
    the interfaces behind which a container each is, routed; `gateways` are then what containers
    see the host as, one of each family that the network has. `isolation` is "open" or "guarded".
    """

    bridge: str | None = None
    group: int = 0
    gateways: Gateways = (None, None)
    isolation: str = "open"

    @property
    def is_routed(self) -> bool:
        """Whether each container has an interface of the host's for itself."""
        return self.bridge is None and self.group != 0

    def checked(self) -> Link:
        """The same in plain types. Raises OutOfRangeError for what no interface can have."""
        from netalloc.host.links import check_name

        if not 0 <= self.group < _GROUPS:
            raise OutOfRangeError(f"group {shown(self.group)} is not within 0 to {_GROUPS - 1}")
        bridge = None if self.bridge is None else check_name(self.bridge, "bridge")
        return self._replace(bridge=bridge)

    def __str__(self) -> str:
        return self.bridge or (f"group:{self.group:x}" if self.group else "no bridge")


NO_LINK = Link()
