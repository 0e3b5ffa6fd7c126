"""Asking the host about a port: whether it is free there, and what has it."""

from __future__ import annotations

from ipaddress import IPv6Address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.address_values import IP

_EVERY_ADDRESS: dict[int, IP | None] = {4: None, 6: IPv6Address(0)}  # as host/sockets.py has it


class HostProbe:
    """Whether the host has a port free: nothing listens there and it is not reserved.

    Where no address is named, every one of IP in these versions is meant.
    """

    def __init__(self, reserved: frozenset[int], versions: tuple[int, ...] = (4,)) -> None:
        self._reserved = reserved
        self._everywhere = _everywhere(versions)

    def __call__(self, port: int, protocol: str, host_ip: IP | None) -> bool:
        from netalloc.host.sockets import can_bind

        if port in self._reserved:
            return False
        places = self._everywhere if host_ip is None else (host_ip,)
        return all(can_bind(port, protocol, place) for place in places)

    def refused(self, protocol: str, host_ip: IP | None) -> frozenset[int]:
        """Ports that it says False of, found by one look at the host's sockets."""
        from netalloc.host.sockets import ports_in_the_way

        places = self._everywhere if host_ip is None else (host_ip,)
        return self._reserved.union(*[ports_in_the_way(protocol, place) for place in places])


def host_probe(ports: range, versions: tuple[int, ...] = (4,)) -> HostProbe:
    """Whether the host has a port free: nothing listens there and the administrator did not
    reserve it. Warns where the range overlaps that of the host's outgoing connections.
    """
    from netalloc.host.sockets import reserved_ports, warn_of_overlap

    warn_of_overlap(ports)
    return HostProbe(reserved_ports(), versions)


class HostCheck:
    """Why the host cannot publish that port there, or None.

    A listener of the host would lose its port to the mapping without a word, as address
    translation comes first, and a mapping on an address that is not the host's never answers.
    Port 0 asks about the address alone; where none is named, every one of IP in these versions
    is meant.
    """

    def __init__(self, versions: tuple[int, ...] = (4,)) -> None:
        self._everywhere = _everywhere(versions)

    def __call__(self, port: int, protocol: str, host_ip: IP | None) -> str | None:
        from netalloc.host.local_addresses import is_host_address
        from netalloc.host.sockets import can_bind, listener

        if host_ip is not None and int(host_ip):
            if host_ip.version == 6 and host_ip.is_link_local:
                return f"{host_ip} is a link-local address, another one on each link"
            if not is_host_address(host_ip):
                return f"{host_ip} is not an address of this host"
        if not port:
            return None
        for place in self._everywhere if host_ip is None else (host_ip,):
            if not can_bind(port, protocol, place):
                holder = listener(port, protocol, place) or "a socket of this host holds it"
                return f"port {port}/{protocol} is not free: {holder}"
        return None


def _everywhere(versions: tuple[int, ...]) -> tuple[IP | None, ...]:
    return tuple([_EVERY_ADDRESS[version] for version in versions])
