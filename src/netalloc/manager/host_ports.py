"""Host ports kept from other programs while they are published."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from netalloc.address_values import IP
    from netalloc.host.sockets import BoundPort
    from netalloc.model import PortMapping

    _Key: TypeAlias = tuple[IP | None, str, int]  # None is every address of IPv4, :: of IPv6


class PortHolds:
    """Bound sockets that accept nothing, one for each host port that is held, and each family."""

    def __init__(self) -> None:
        self._held: dict[_Key, BoundPort] = {}

    def take(self, mappings: Iterable[PortMapping]) -> None:
        """Hold every port of the mappings, or none: InUseError, ExhaustedError."""
        from netalloc.host.sockets import hold

        taken: dict[_Key, BoundPort] = {}
        try:
            for key in _keys(mappings):
                taken[key] = hold(key[2], key[1], key[0])
        except BaseException:
            for one in taken.values():
                one.close()
            raise
        self._held.update(taken)

    def drop(self, mappings: Iterable[PortMapping]) -> None:
        """Let the ports of the mappings go; those that are not held are passed over."""
        if self._held:
            for key in _keys(mappings):
                one = self._held.pop(key, None)
                if one is not None:
                    one.close()

    def close(self) -> None:
        """Let all of them go."""
        for one in self._held.values():
            one.close()
        self._held.clear()


def _keys(mappings: Iterable[PortMapping]) -> Iterable[_Key]:
    for mapping in mappings:
        host_ip, protocol, _ = mapping.key
        for port in mapping.ports:
            yield host_ip, protocol, port
