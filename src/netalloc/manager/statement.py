"""What a caller states of a network, made plain or refused before anything is opened."""

from __future__ import annotations

from netalloc._alloc import IPAllocator, Subnet
from netalloc.errors import InvalidValueError
from netalloc.ipam.networks import MODES, Statement, as_network_name
from netalloc.ports import as_ports
from netalloc.values import as_flag, as_items, as_seconds, as_text, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from netalloc.portmap.backend import Backend


BACKENDS = ("auto", "nftables", "iptables", "null")


def statement(
    bridge: str,
    *,
    network: str | Subnet | None = None,
    exclude: Iterable[Any] | None = None,
    ports: range | None = None,
    backend: str | Backend = "auto",
    name: str | None = None,
    cooldown: float | None = None,
    sticky: float | None = None,
    forward: bool | None = None,
    mode: str | None = None,
) -> tuple[Statement, Backend | None]:
    """The arguments of a NetworkManager as a statement, and the backend that is given as a part."""
    if mode is not None and mode not in MODES:
        raise InvalidValueError(f"mode {shown(mode)} is none of {', '.join(MODES)}")
    bridge = as_text(bridge, "bridge", 15)
    part = None if isinstance(backend, str) else _part(backend)
    stated = Statement(
        as_network_name(bridge if name is None else name),
        bridge,
        None if mode is None else as_text(mode, "mode"),
        None if network is None else _subnet(network),
        None if exclude is None else _excluded(exclude),
        _backend(part.name if part is not None else backend),
        None if ports is None else as_ports(ports),
        None if cooldown is None else as_seconds(cooldown, "cooldown"),
        None if sticky is None else as_seconds(sticky, "sticky"),
        None if forward is None else as_flag(forward, "forward"),
    )
    return stated, part


def _subnet(network: object) -> Subnet:
    if isinstance(network, IPAllocator):
        raise InvalidValueError(
            f"network {network!r} is an allocator, whose addresses would not be known here: give "
            "its network as text or as a Subnet"
        )
    return network if isinstance(network, Subnet) else Subnet(network)  # type: ignore[arg-type]


def _excluded(exclude: object) -> tuple[Any, ...]:
    return (exclude,) if isinstance(exclude, str) else tuple(as_items(exclude, "exclude"))


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
