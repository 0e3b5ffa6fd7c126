"""Ports to publish, as people write them: [IP:][HOST:]CONTAINER[/PROTOCOL]."""

from __future__ import annotations

import re

from netalloc.errors import InvalidValueError, OutOfRangeError
from netalloc.model import PortRequest
from netalloc.values import as_port, as_protocol, shown

_SPEC = re.compile(
    r"(?:(?P<ip>\[[0-9A-Fa-f:.]+\]|\d+\.[0-9.]+):)?"
    r"(?:(?P<host>\d+(?:-\d+)?)?:)?"
    r"(?P<container>\d+(?:-\d+)?)"
    r"(?:/(?P<protocol>[A-Za-z]+))?"
)
_PUBLISHED = re.compile(
    r"(?:(?P<ip>\[[0-9A-Fa-f:.]+\]|\d+\.[0-9.]+):)?(?P<host>\d+)(?:-\d+)?(?:/(?P<protocol>[A-Za-z]+))?"
)


def port_request(spec: str) -> PortRequest:
    """What a text asks for.

    A host port that is left out is the next free one of the network's range. Adjacent ports are
    written first-last, of the host as many as of the container. The protocol is tcp unless named.
    Raises InvalidValueError and OutOfRangeError.

    >>> port_request("127.0.0.1:8080:80"), port_request("8000-8009:80-89/udp").count
    (PortRequest(container_port=80, protocol='tcp', host_port=8080, \
host_ip=IPv4Address('127.0.0.1'), count=1), 10)
    """
    found = _SPEC.fullmatch(spec)
    if found is None:
        raise InvalidValueError(
            f"port {shown(spec)} is not [IP:][HOST:]CONTAINER[/PROTOCOL], as in 8080:80, "
            "127.0.0.1:8080:80/tcp or [::1]:53:53/udp"
        )
    first, count = _span(found["container"], "container port")
    host_port = None
    if found["host"] is not None:
        host_port, host_count = _span(found["host"], "host port")
        if host_count != count:
            raise InvalidValueError(
                f"port {spec}: {host_count} host ports cannot lead to {count} container ports"
            )
    ip = found["ip"]
    return PortRequest(
        first,
        as_protocol((found["protocol"] or "tcp").lower()),
        host_port,
        None if ip is None else ip.strip("[]"),
        count,
    )


def published_port(spec: str) -> tuple[int, str, str | None]:
    """Host port, protocol and host address of [IP:]HOST[/PROTOCOL], which names what is published.

    >>> published_port("8080"), published_port("[::1]:53/udp")
    ((8080, 'tcp', None), (53, 'udp', '::1'))
    """
    found = _PUBLISHED.fullmatch(spec)
    if found is None:
        raise InvalidValueError(
            f"port {shown(spec)} is not [IP:]HOST[/PROTOCOL], as in 8080 or 127.0.0.1:53/udp"
        )
    ip = found["ip"]
    return (
        as_port(int(found["host"]), "host port"),
        as_protocol((found["protocol"] or "tcp").lower()),
        None if ip is None else ip.strip("[]"),
    )


def _span(text: str, what: str) -> tuple[int, int]:
    """The first of adjacent ports, and how many."""
    first, _, last = text.partition("-")
    start = as_port(int(first), what)
    stop = as_port(int(last), what) if last else start
    if stop < start:
        raise OutOfRangeError(f"{what}s {text} end before they begin")
    return start, stop - start + 1


def port_range(text: str) -> range:
    """A range of host ports as people write it, first-last or first-last/step.

    >>> port_range("8000-8099")
    range(8000, 8100)
    """
    found = re.fullmatch(r"(\d+)-(\d+)(?:/(\d+))?", text)
    if found is None:
        raise InvalidValueError(f"ports {shown(text)} are not FIRST-LAST, as in 49153-65535")
    first, last = as_port(int(found[1])), as_port(int(found[2]))
    step = int(found[3] or 1)
    if not 1 <= step <= 65535:
        raise OutOfRangeError(f"ports {text}: a step is 1 to 65535")
    return range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
