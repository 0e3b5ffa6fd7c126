"""What netalloc is asked for and gives: a port mapping, a request for one, what was repaired."""

from __future__ import annotations

from ipaddress import IPv6Address

from netalloc._alloc import MappingState
from netalloc.address_values import as_destination, as_host_ip_for, as_host_place
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

    from netalloc.address_values import IP

_EVERY_V6 = IPv6Address(0)
_put = object.__setattr__
_new = object.__new__


class Immutable:
    """A value made of `_fields`, set once."""

    __slots__ = ()
    _fields: tuple[str, ...] = ()

    def _set(self, *values: Any) -> None:
        for name, value in zip(self._fields, values, strict=True):
            _put(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed: replace() makes another")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in self._fields])

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._values()

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({fields})"


class PortMapping(Immutable, MappingState):
    """A host port, or `count` contiguous ones, that lead to a container.

    `dest` is (address, port): for a block the port of the first one, so that host port
    `host_port + i` leads to container port `dest[1] + i`. `host_ip` is of the same family;
    None, 0.0.0.0 and :: mean every address of the host in that family. `owner` is shown in the
    kernel's listing where the backend can and takes no part in comparison. Raises
    InvalidValueError and OutOfRangeError.

    >>> PortMapping(8080, ("10.0.0.2", 80)).key
    (None, 'tcp', 8080)
    """

    __slots__ = ()
    _fields = ("host_port", "dest", "protocol", "host_ip", "count", "owner")

    # Made, compared and hashed in C: a tenth of the time.
    __eq__ = MappingState.__eq__
    __hash__ = MappingState.__hash__

    @staticmethod
    def _plain(
        host_port: object,
        dest: Any,
        protocol: object,
        host_ip: object,
        count: object,
        owner: object,
    ) -> tuple[int, tuple[IP, int], str, IP | None, int, str | None]:
        """The values, which are not all plain, made so."""
        first = as_port(host_port, "host port")
        to = dest if type(dest) is tuple else tuple(as_items(dest, "destination"))
        if len(to) != 2:
            raise OutOfRangeError(f"a destination is an address and a port, not {len(to)} items")
        ip, port = as_destination(to[0]), as_port(to[1], "container port")
        size = as_int(count, "count", 1, 65536 - first)
        as_int(size, f"count from container port {port}", 1, 65536 - port)
        at = as_host_ip_for(host_ip, ip)
        return first, (ip, port), as_protocol(protocol), at, size, as_optional_text(owner, "owner")

    @property
    def key(self) -> tuple[IP | None, str, int]:
        """What is mapped, as opposed to where to; every address of IPv6 is ::, of IPv4 None."""
        host_ip = self.host_ip
        if host_ip is None and self.version == 6:
            host_ip = _EVERY_V6
        return host_ip, self.protocol, self.host_port

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
        return PortMapping(**{**dict(zip(self._fields, self._values(), strict=True)), **changes})


class PortRequest(Immutable):
    """A container port to be reachable on the host.

    `container_port` None is the same number as the host's. `host_port` None takes the next
    free one of the network's range. `host_ip` None is every address of the host in each family
    that the container has; 0.0.0.0 and :: are every one of their family, and one address of
    either family is that alone. `count` adjacent ports: of the host, and from `container_port`
    on of the container. Raises InvalidValueError and OutOfRangeError.

    >>> PortRequest(53, "udp", host_port=5353)
    PortRequest(container_port=53, protocol='udp', host_port=5353, host_ip=None, count=1)
    """

    _fields = ("container_port", "protocol", "host_port", "host_ip", "count")
    __slots__ = _fields

    container_port: int | None
    protocol: str
    host_port: int | None
    host_ip: IP | None
    count: int

    def __init__(
        self,
        container_port: int | None,
        protocol: str = "tcp",
        host_port: int | None = None,
        host_ip: IP | str | None = None,
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
        if host_ip is not None:
            host_ip = as_host_place(host_ip)
        # One by one, for `_set` takes twice as long.
        _put(self, "container_port", container_port)
        _put(self, "protocol", as_protocol(protocol))
        _put(self, "host_port", host_port)
        _put(self, "host_ip", host_ip)
        _put(self, "count", count)

    @classmethod
    def of(cls, request: int | PortRequest) -> PortRequest:
        """The request itself; a bare number is a tcp port of the container."""
        return request if type(request) is cls else cls(request)  # type: ignore[arg-type]


class ReconcileResult(Immutable):
    """What a reconciliation found and mended; false when there was nothing to do."""

    _fields = ("added", "removed", "structure")
    __slots__ = _fields

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
