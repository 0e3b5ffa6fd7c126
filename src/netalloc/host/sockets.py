"""What the host's own sockets have to do with its ports: who listens, what is kept free.

A published port that something on the host listens on would be taken away from it: address
translation comes first. So a port is tried by really binding it.
"""

import errno
import logging
import resource
import socket
from ipaddress import IPv4Address
from pathlib import Path

from netalloc.errors import ExhaustedError, InUseError, NetallocError

logger = logging.getLogger(__name__)

_KINDS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
_SETTINGS = Path("/proc/sys/net/ipv4")
_IP_FREEBIND = 15  # linux/in.h
_ABSENT = (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)


class BoundPort:
    """A bound socket that accepts nothing; while it is open no other socket can have the port."""

    def __init__(self, bound: socket.socket | None) -> None:
        self._socket = bound

    def close(self) -> None:
        """Let the port go; a second time is no error."""
        if self._socket is not None:
            self._socket.close()


def can_bind(port: int, protocol: str = "tcp", host_ip: IPv4Address | None = None) -> bool:
    """Whether nothing on the host listens on the port, or holds it, at that address.

    None is every address, where a listener on any one of them is in the way. Connections
    that wait out their end (TIME_WAIT) are not. Raises NetallocError when this process may
    not bind the port, and thus cannot know. About 10 µs.
    """
    try:
        bound = _bind(port, protocol, host_ip, reuse=True)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise _explained(error, port, protocol, host_ip) from error
    if bound is not None:
        bound.close()
    return True


def hold(port: int, protocol: str = "tcp", host_ip: IPv4Address | None = None) -> BoundPort:
    """Bind the port and keep it, so that no program on the host can take it later.

    Costs one file descriptor. Raises InUseError when another socket has it, be it only for
    connections in TIME_WAIT; ExhaustedError when no file descriptor is left; NetallocError
    when this process may not bind it.
    """
    try:
        return BoundPort(_bind(port, protocol, host_ip, reuse=False))
    except OSError as error:
        raise _explained(error, port, protocol, host_ip) from error


def reserved_ports() -> frozenset[int]:
    """The ports that the administrator keeps out of automatic choice.

    From net.ipv4.ip_local_reserved_ports of the caller's network namespace.
    """
    return parse_ports((_SETTINGS / "ip_local_reserved_ports").read_text())


def parse_ports(text: str) -> frozenset[int]:
    """The ports in the kernel's notation.

    >>> sorted(parse_ports("8080,9148-9150\\n"))
    [8080, 9148, 9149, 9150]
    """
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


_warned: set[tuple[int, int]] = set()


def warn_of_overlap(ports: range) -> None:
    """Log one warning when the kernel takes ports of this range for outgoing connections.

    A connection that the host opens may then sit on a port just before it is published.
    One warning for each range in the life of the process.
    """
    if not ports:
        return
    low, high = map(int, (_SETTINGS / "ip_local_port_range").read_text().split())
    span = (min(ports[0], ports[-1]), max(ports[0], ports[-1]))
    first, last = max(low, span[0]), min(high, span[1])
    if first > last or span in _warned:
        return
    _warned.add(span)
    logger.warning(
        "host ports %d-%d overlap net.ipv4.ip_local_port_range %d-%d: outgoing connections "
        "of the host may occupy %d-%d; choose other ports, or move the end of that setting",
        *(*span, low, high, first, last),
    )


def _bind(
    port: int, protocol: str, host_ip: IPv4Address | None, *, reuse: bool
) -> socket.socket | None:
    """A bound socket; None where the kernel has no such protocol, so that none can listen."""
    try:
        made = socket.socket(socket.AF_INET, *_KINDS[protocol])
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
    try:
        if host_ip is not None:  # one that the host does not have yet is no reason to refuse
            made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        if reuse and protocol != "udp":  # there it would let us in beside a listener
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("" if host_ip is None else str(host_ip), port))
    except BaseException:
        made.close()
        raise
    return made


def _explained(
    error: OSError, port: int, protocol: str, host_ip: IPv4Address | None
) -> NetallocError:
    what = f"{host_ip or '0.0.0.0'}:{port}/{protocol}"
    if error.errno == errno.EADDRINUSE:
        return InUseError(f"{what} is held by a socket of this host")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return ExhaustedError(f"{what} cannot be bound: {error.strerror} (the limit is {limit})")
    if error.errno == errno.EACCES:
        return NetallocError(f"{what} cannot be bound: this process lacks CAP_NET_BIND_SERVICE")
    return NetallocError(f"{what} cannot be bound: {error.strerror}")
