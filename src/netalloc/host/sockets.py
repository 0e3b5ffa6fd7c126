"""What the host's own sockets have to do with its ports: who listens, what is kept free.

A published port that something on the host listens on would be taken away from it: address
translation comes first. So a port is tried by really binding it.
"""

import errno
import logging
import os
import resource
import socket
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

from netalloc.address_values import IP
from netalloc.errors import ExhaustedError, InUseError, NetallocError
from netalloc.host.socket_list import ListedSocket, covered_ports, listed, listed_ports

logger = logging.getLogger(__name__)

_KINDS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
_SETTINGS = Path("/proc/sys/net/ipv4")
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78  # linux/in.h, linux/in6.h
_LOOK_FROM = 8  # ports from which a look at all sockets is cheaper than to bind them in vain
_ABSENT = (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EAFNOSUPPORT)


class BoundPort:
    """A bound socket that accepts nothing; while it is open no other socket can have the port."""

    def __init__(self, bound: socket.socket | None) -> None:
        self._socket = bound

    def close(self) -> None:
        """Let the port go; a second time is no error."""
        if self._socket is not None:
            self._socket.close()


def can_bind(port: int, protocol: str = "tcp", host_ip: IP | None = None, count: int = 1) -> bool:
    """Whether nothing on the host listens on the ports, or holds one, at that address.

    None is every address of IPv4, as 0.0.0.0 is, and :: every one of IPv6: there a listener on
    any one of the family is in the way. Connections
    that wait out their end (TIME_WAIT) are not. Raises NetallocError when this process may
    not bind a port, and thus cannot know. About 10 µs for each of `count` ports from `port`
    on; a block that meets a listener ends sooner.
    """
    if count > _LOOK_FROM and not ports_in_the_way(protocol, host_ip).isdisjoint(
        range(port, port + count)
    ):
        return False
    for number in range(port, port + count):
        try:
            bound = _bind(number, protocol, host_ip, reuse=True)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise _explained(error, number, protocol, host_ip) from error
        if bound is not None:
            bound.close()
    return True


def bound_ports(protocol: str = "tcp") -> frozenset[int]:
    """Every port that a socket of this network namespace listens on or is bound to.

    Of one IP version or the other, at whatever address: a pick that passes these over needs
    to try its candidate alone. Connected tcp sockets are left out, and before Linux 6.8 those
    that are bound only. Two questions to the kernel, about a millisecond.
    """
    return frozenset(listed_ports(protocol))


def ports_in_the_way(protocol: str = "tcp", host_ip: IP | None = None) -> frozenset[int]:
    """Of these ports, those that can_bind would refuse at an address; None is every one of IPv4.

    A port that is not among them may still be refused: see `bound_ports`.
    """
    return frozenset(covered_ports(protocol, host_ip))


def listener(port: int, protocol: str = "tcp", host_ip: IP | None = None) -> str | None:
    """What holds a port at an address, in words: "sshd (pid 812) listens on 0.0.0.0:22".

    None where no socket does, or none that can be seen. For messages: it looks through the
    open files of all processes.
    """
    for number, one in _in_the_way(protocol, host_ip, port):
        if number == port:
            does = "listens on" if one.listens else "is bound to"
            where = f"[{one.ip}]" if one.ip.version == 6 else str(one.ip)
            return f"{_holder_of(one)} {does} {where}:{port}"
    return None


def _in_the_way(
    protocol: str, host_ip: IP | None, port: int = 0
) -> Iterator[tuple[int, ListedSocket]]:
    """The sockets that exclude others of their port at an address; None is every one of IPv4."""
    if host_ip is not None and host_ip.version == 6:
        for one in listed(protocol, port):
            of_ipv6 = isinstance(one.ip, IPv6Address) and one.ip.ipv4_mapped is None
            if of_ipv6 and (not int(host_ip) or int(one.ip) in (0, int(host_ip))):
                yield one.port, one
        return
    if host_ip is not None and not int(host_ip):
        host_ip = None
    for one in listed(protocol, port):
        mapped = one.ip.ipv4_mapped if isinstance(one.ip, IPv6Address) else one.ip
        everywhere = int(one.ip) == 0 and not one.only_ipv6
        if everywhere or (mapped is not None and host_ip in (None, mapped)):
            yield one.port, one


def _holder_of(one: ListedSocket) -> str:
    name = f"socket:[{one.inode}]"
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            # It may end, or not be ours to look at, at any moment.
            if any(os.readlink(fd) == name for fd in (process / "fd").iterdir()):  # noqa: PTH115
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue
    return f"a socket of user {one.uid}"


def hold(port: int, protocol: str = "tcp", host_ip: IP | None = None) -> BoundPort:
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


def _bind(port: int, protocol: str, host_ip: IP | None, *, reuse: bool) -> socket.socket | None:
    """A bound socket; None where the kernel has no such protocol, so that none can listen.

    Nor is one bound to a link-local address, which is one of each interface.
    """
    of_ipv6 = host_ip is not None and host_ip.version == 6
    if host_ip is not None and of_ipv6 and host_ip.is_link_local:
        return None
    try:
        made = socket.socket(socket.AF_INET6 if of_ipv6 else socket.AF_INET, *_KINDS[protocol])
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
    try:
        # An address that the host does not have yet is no reason to refuse.
        if of_ipv6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        elif host_ip is not None:
            made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        if reuse and protocol != "udp":  # there it would let us in beside a listener
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("" if host_ip is None else str(host_ip), port))
    except BaseException:
        made.close()
        raise
    return made


def _explained(error: OSError, port: int, protocol: str, host_ip: IP | None) -> NetallocError:
    at = f"[{host_ip}]" if host_ip is not None and host_ip.version == 6 else host_ip or "0.0.0.0"
    what = f"{at}:{port}/{protocol}"
    if error.errno == errno.EADDRINUSE:
        return InUseError(f"{what} is held by a socket of this host")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return ExhaustedError(f"{what} cannot be bound: {error.strerror} (the limit is {limit})")
    if error.errno == errno.EACCES:
        return NetallocError(f"{what} cannot be bound: this process lacks CAP_NET_BIND_SERVICE")
    return NetallocError(f"{what} cannot be bound: {error.strerror}")
