"""Asking the host about a port: whether it is free there, and what has it."""

from __future__ import annotations

from ipaddress import IPv4Address


class HostProbe:
    """Whether the host has a port free: nothing listens there and it is not reserved."""

    def __init__(self, reserved: frozenset[int]) -> None:
        self._reserved = reserved

    def __call__(self, port: int, protocol: str, host_ip: IPv4Address | None) -> bool:
        from netalloc.host.sockets import can_bind

        return port not in self._reserved and can_bind(port, protocol, host_ip)

    def refused(self, protocol: str, host_ip: IPv4Address | None) -> frozenset[int]:
        """Ports that it says False of, found by one look at the host's sockets."""
        from netalloc.host.sockets import ports_in_the_way

        return self._reserved | ports_in_the_way(protocol, host_ip)


def host_probe(ports: range) -> HostProbe:
    """Whether the host has a port free: nothing listens there and the administrator did not
    reserve it. Warns where the range overlaps that of the host's outgoing connections.
    """
    from netalloc.host.sockets import reserved_ports, warn_of_overlap

    warn_of_overlap(ports)
    return HostProbe(reserved_ports())


def host_check(port: int, protocol: str, host_ip: IPv4Address | None) -> str | None:
    """Why the host cannot publish that port there, or None.

    A listener of the host would lose its port to the mapping without a word, as address
    translation comes first, and a mapping on an address that is not the host's never answers.
    Port 0 asks about the address alone.
    """
    from netalloc.host.local_addresses import is_host_address
    from netalloc.host.sockets import can_bind, listener

    if host_ip is not None and not is_host_address(host_ip):
        return f"{host_ip} is not an address of this host"
    if not port or can_bind(port, protocol, host_ip):
        return None
    holder = listener(port, protocol, host_ip) or "a socket of this host holds it"
    return f"port {port}/{protocol} is not free: {holder}"
