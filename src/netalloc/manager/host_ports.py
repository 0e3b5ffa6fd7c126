"""Host ports kept from other programs: tried before they are picked, held while published."""

from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from netalloc.model import PortMapping
from netalloc.ports import Probe

if TYPE_CHECKING:
    from netalloc.host.sockets import BoundPort

_Key = tuple[IPv4Address | None, str, int]


def host_probe(ports: range) -> Probe:
    """Whether the host has a port free: nothing listens there and the administrator did not
    reserve it. Warns where the range overlaps that of the host's outgoing connections.
    """
    from netalloc.host.sockets import can_bind, reserved_ports, warn_of_overlap

    warn_of_overlap(ports)
    reserved = reserved_ports()

    def probe(port: int, protocol: str, host_ip: IPv4Address | None) -> bool:
        return port not in reserved and can_bind(port, protocol, host_ip)

    return probe


class PortHolds:
    """Bound sockets that accept nothing, one for each host port that is held."""

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
        for port in mapping.ports:
            yield mapping.host_ip, mapping.protocol, port
