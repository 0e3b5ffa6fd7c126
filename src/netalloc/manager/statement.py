"""What a caller states of a network, made plain or refused before anything is opened."""

from __future__ import annotations

from netalloc._alloc import IPAllocator, Subnet
from netalloc.errors import InvalidValueError
from netalloc.ipam.networks import ISOLATION, MODES, Statement, as_network_name
from netalloc.ipam.subnets import Subnets
from netalloc.ports import as_ports
from netalloc.values import PROTOCOLS, as_flag, as_items, as_seconds, as_text, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from netalloc.portmap.backend import Backend

    OneSubnet = str | Subnet
    StatedNetwork = OneSubnet | tuple[OneSubnet, ...] | list[OneSubnet]

ROUTED = "routed"  # what a network without a bridge is called unless it gets a name
BACKENDS = ("auto", "nftables", "iptables", "null")


def statement(
    bridge: str | None,
    *,
    network: StatedNetwork | None = None,
    exclude: Iterable[Any] | None = None,
    ports: range | None = None,
    backend: str | Backend = "auto",
    name: str | None = None,
    cooldown: float | None = None,
    sticky: float | None = None,
    forward: bool | None = None,
    mode: str | None = None,
    isolation: str | None = None,
    services: Iterable[str] | None = None,
) -> tuple[Statement, Backend | None]:
    """The arguments of a NetworkManager as a statement, and the backend that is given as a part."""
    mode, isolation = _one_of(MODES, mode, "mode"), _one_of(ISOLATION, isolation, "isolation")
    if mode == "routed":
        if bridge is not None:
            raise InvalidValueError(f"bridge {shown(bridge)}: a routed network has none")
    elif bridge is None:
        raise InvalidValueError("bridge None: only with mode='routed' a network has none")
    else:
        bridge = as_text(bridge, "bridge", 15)
    part = None if isinstance(backend, str) else _part(backend)
    stated = Statement(
        as_network_name((bridge or ROUTED) if name is None else name),
        bridge,
        mode,
        None if network is None else _subnets(network),
        None if exclude is None else _excluded(exclude),
        _backend(part.name if part is not None else backend),
        None if ports is None else as_ports(ports),
        None if cooldown is None else as_seconds(cooldown, "cooldown"),
        None if sticky is None else as_seconds(sticky, "sticky"),
        None if forward is None else as_flag(forward, "forward"),
        isolation,
        None if services is None else as_services(services),
    )
    return stated, part


def as_services(services: object) -> tuple[str, ...]:
    """Ports of the host, "53/udp", in order and each once. Raises InvalidValueError."""
    found = {_as_service(one) for one in as_items(services, "services")}
    return tuple([f"{port}/{protocol}" for port, protocol in sorted(found)])


def _as_service(service: object) -> tuple[int, str]:
    port, slash, protocol = as_text(service, "service").partition("/")
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    if not slash or protocol not in PROTOCOLS or not 0 < number < 65536:
        raise InvalidValueError(
            f"service {shown(service)} is no port from 1 to 65535 with its protocol: '53/udp'"
        )
    return number, protocol


def _one_of(known: tuple[str, ...], value: object, what: str) -> str | None:
    if value is None:
        return None
    plain = as_text(value, what)
    if plain not in known:
        raise InvalidValueError(f"{what} {shown(value)} is none of {', '.join(known)}")
    return plain


def _subnets(network: object) -> Subnets:
    """One subnet, or one of each family in any order."""
    if not isinstance(network, tuple | list):
        return Subnets((_subnet(network),))
    some = as_items(network, "network")
    if len(some) not in (1, 2):
        raise InvalidValueError(
            f"network {shown(network)} is {len(some)} subnets: a network has one, or one of IPv4 "
            "and one of IPv6"
        )
    return Subnets(map(_subnet, some))


def _subnet(network: object) -> Subnet:
    if isinstance(network, IPAllocator):
        raise InvalidValueError(
            f"network {network!r} is an allocator, whose addresses would not be known here: give "
            "its network as text or as a Subnet"
        )
    return network if isinstance(network, Subnet) else Subnet(network)  # type: ignore[arg-type]


def _excluded(exclude: object) -> tuple[Any, ...]:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    # A network is an iterable, too: of 2**64 addresses, perhaps.
    if isinstance(exclude, str | IPv4Address | IPv4Network | IPv6Address | IPv6Network):
        return (exclude,)
    return tuple(as_items(exclude, "exclude"))


def _part(backend: Any) -> Backend:
    for method in ("apply", "reconcile", "setup", "cleanup", "mappings"):
        if not callable(getattr(backend, method, None)):
            raise InvalidValueError(f"backend {shown(backend)} is none of {', '.join(BACKENDS)}")
    return backend  # type: ignore[no-any-return]


def _backend(backend: object) -> str | None:
    plain = as_text(backend, "backend")
    if plain not in BACKENDS and plain != "file":
        raise InvalidValueError(f"backend {shown(plain)} is none of {', '.join(BACKENDS)}")
    return None if plain == "auto" else plain
