"""What netalloc is asked for and gives: a port mapping, a request for one, what was repaired."""

from __future__ import annotations

from ipaddress import IPv4Address

from netalloc.address_values import as_host_ip, as_ipv4
from netalloc.errors import OutOfRangeError
from netalloc.values import (
    as_int,
    as_items,
    as_optional_text,
    as_port,
    as_protocol,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_put = object.__setattr__
_new = object.__new__


class Immutable:
    """A value made of the fields in `__slots__`, set once by `_set`."""

    __slots__: tuple[str, ...] = ()

    def _set(self, *values: Any) -> None:
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed: replace() makes another")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in self.__slots__])

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._values()

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"


class PortMapping(Immutable):
    """A host port, or `count` contiguous ones, that lead to a container.

    `dest` is (address, port): for a block the port of the first one, so that host port
    `host_port + i` leads to container port `dest[1] + i`. `host_ip` None means every address
    of the host. `owner` is shown in the kernel's listing where the backend can and takes no
    part in comparison. Raises InvalidValueError and OutOfRangeError.

    >>> PortMapping(8080, ("10.0.0.2", 80)).key
    (None, 'tcp', 8080)
    """

    __slots__ = ("host_port", "dest", "protocol", "host_ip", "count", "owner")  # noqa: RUF023

    host_port: int
    dest: tuple[IPv4Address, int]
    protocol: str
    host_ip: IPv4Address | None
    count: int
    owner: str | None

    def __init__(
        self,
        host_port: int,
        dest: tuple[IPv4Address | str, int],
        protocol: str = "tcp",
        host_ip: IPv4Address | str | None = None,
        count: int = 1,
        owner: str | None = None,
    ) -> None:
        host_port = as_port(host_port, "host port")
        to = dest if type(dest) is tuple else tuple(as_items(dest, "destination"))
        if len(to) != 2:
            raise OutOfRangeError(f"a destination is an address and a port, not {len(to)} items")
        ip, port = as_ipv4(to[0], "destination"), as_port(to[1], "container port")
        if count != 1 or type(count) is not int:
            count = as_int(count, "count", 1, 65536 - host_port)
            as_int(count, f"count from container port {port}", 1, 65536 - port)
        # One by one: thousands are made at a time, and `_set` takes twice as long.
        _put(self, "host_port", host_port)
        _put(self, "dest", (ip, port))
        _put(self, "protocol", as_protocol(protocol))
        _put(self, "host_ip", None if host_ip is None else as_host_ip(host_ip))
        _put(self, "count", count)
        _put(self, "owner", None if owner is None else as_optional_text(owner, "owner"))

    @classmethod
    def plain(
        cls,
        host_port: int,
        dest: tuple[IPv4Address, int],
        protocol: str,
        host_ip: IPv4Address | None,
        count: int,
        owner: str | None,
    ) -> PortMapping:
        """One of values that are known to be plain and right: a quarter of the time."""
        made = _new(cls)
        _put(made, "host_port", host_port)
        _put(made, "dest", dest)
        _put(made, "protocol", protocol)
        _put(made, "host_ip", host_ip)
        _put(made, "count", count)
        _put(made, "owner", owner)
        return made

    @property
    def key(self) -> tuple[IPv4Address | None, str, int]:
        """What is mapped, as opposed to where to."""
        return self.host_ip, self.protocol, self.host_port

    @property
    def ports(self) -> range:
        """The host ports of this mapping."""
        return range(self.host_port, self.host_port + self.count)

    @property
    def shifted(self) -> bool:
        """Whether it is a block whose container ports are other numbers than the host's."""
        return self.count > 1 and self.dest[1] != self.host_port

    def replace(self, **changes: Any) -> PortMapping:
        """The same with other values for the fields that are named."""
        return PortMapping(**{**dict(zip(self.__slots__, self._values(), strict=True)), **changes})

    def __eq__(self, other: object) -> bool:
        if type(other) is not PortMapping:
            return NotImplemented
        return (
            self.host_port == other.host_port
            and self.dest == other.dest
            and self.protocol == other.protocol
            and self.host_ip == other.host_ip
            and self.count == other.count
        )

    def __hash__(self) -> int:
        return hash((self.host_port, self.dest, self.protocol, self.host_ip, self.count))


class PortRequest(Immutable):
    """A container port to be reachable on the host.

    `container_port` None is the same number as the host's. `host_port` None takes the next
    free one of the network's range. `count` adjacent ports: of the host, and from
    `container_port` on of the container. Raises InvalidValueError and OutOfRangeError.

    >>> PortRequest(53, "udp", host_port=5353)
    PortRequest(container_port=53, protocol='udp', host_port=5353, host_ip=None, count=1)
    """

    __slots__ = ("container_port", "protocol", "host_port", "host_ip", "count")  # noqa: RUF023

    container_port: int | None
    protocol: str
    host_port: int | None
    host_ip: IPv4Address | None
    count: int

    def __init__(
        self,
        container_port: int | None,
        protocol: str = "tcp",
        host_port: int | None = None,
        host_ip: IPv4Address | str | None = None,
        count: int = 1,
    ) -> None:
        if container_port is not None:
            container_port = as_port(container_port, "container port")
        if host_port is not None:
            host_port = as_port(host_port, "host port")
        if count != 1 or type(count) is not int:
            count = as_int(count, "count", 1, 65535)
            for what, first in (("container", container_port), ("host", host_port)):
                if first is not None:
                    as_int(count, f"count from {what} port {first}", 1, 65536 - first)
        _put(self, "container_port", container_port)
        _put(self, "protocol", as_protocol(protocol))
        _put(self, "host_port", host_port)
        _put(self, "host_ip", None if host_ip is None else as_host_ip(host_ip))
        _put(self, "count", count)

    @classmethod
    def of(cls, request: int | PortRequest) -> PortRequest:
        """The request itself; a bare number is a tcp port of the container."""
        return request if type(request) is cls else cls(request)  # type: ignore[arg-type]


class ReconcileResult(Immutable):
    """What a reconciliation found and mended; false when there was nothing to do."""

    __slots__ = ("added", "removed", "structure")

    added: tuple[PortMapping, ...]
    removed: tuple[PortMapping, ...]
    structure: tuple[str, ...]

    def __init__(
        self,
        added: tuple[PortMapping, ...] = (),
        removed: tuple[PortMapping, ...] = (),
        structure: tuple[str, ...] = (),
    ) -> None:
        self._set(added, removed, structure)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.structure)

    def lines(self) -> Iterator[str]:
        """What was wrong, a line each."""
        yield from self.structure
        yield from (f"added {mapping}" for mapping in self.added)
        yield from (f"removed {mapping}" for mapping in self.removed)
