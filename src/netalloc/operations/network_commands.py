"""Networks made and removed, with the bridges that are made for them."""

from __future__ import annotations

from netalloc.errors import InvalidValueError
from netalloc.logs import Log
from netalloc.manager.statement import statement
from netalloc.operations import answers
from netalloc.operations.port_spec import port_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from netalloc._alloc import Subnet
    from netalloc.ipam.networks import Statement
    from netalloc.manager.networks import Networks

log = Log(__name__)


class NetworkCommands:
    """The part of HostOperations that configures networks."""

    if TYPE_CHECKING:

        def open(self, *, make: bool = False) -> Networks: ...

        def network(self, name: str) -> answers.Network: ...

    def create_network(
        self,
        name: str,
        subnets: Sequence[str],
        *,
        bridge: str | None = None,
        mode: str | None = None,
        backend: str = "auto",
        exclude: Sequence[str] = (),
        ports: str | None = None,
        cooldown: float | None = None,
        sticky: float | None = None,
        forward: bool | None = None,
        isolation: str | None = None,
        services: Sequence[str] = (),
    ) -> answers.Network:
        """Register a network of one subnet, or one of each family, written as its gateway.

        A bridge that this machine does not have is made, with the gateways' addresses; one that
        is there is used as it is. Raises InUseError, InvalidValueError, InterfaceError.
        """
        if not 1 <= len(subnets) <= 2:
            raise InvalidValueError(
                f"a network has one subnet, or one of each family, not {len(subnets)}"
            )
        stated: dict[str, Any] = {
            "network": subnets[0] if len(subnets) == 1 else tuple(subnets),
            "backend": backend,
            "exclude": list(exclude) or None,
            "ports": None if ports is None else port_range(ports),
            "cooldown": cooldown,
            "sticky": sticky,
            "forward": forward,
            "isolation": isolation,
            "services": list(services) or None,
        }
        if bridge is None and mode != "routed":
            bridge = name
        plain, _ = statement(bridge, name=name, mode=mode, **stated)  # before anything is made
        networks = self.open(make=True)
        made = self._bridge_for(networks, plain)
        try:
            networks.create(name, bridge=bridge, mode=mode, **stated)
        except BaseException:
            if made is not None:
                self._remove_bridge(made, name)
            raise
        return self.network(name)

    def remove_network(self, name: str) -> None:
        """Take a network out of the store and the kernel, and the bridge that was made for it.

        Raises NotAllocatedError, and InUseError while addresses are held or reserved.
        """
        networks = self.open()
        info = networks.get(name)
        networks.remove(name)
        if info is not None and info.bridge is not None and info.backend != "null":
            self._remove_bridge(info.bridge, name)

    def _bridge_for(self, networks: Networks, stated: Statement) -> str | None:
        """The bridge that was made for a network about to be registered; None where none was."""
        from netalloc.host import made_bridges

        bridge = stated.bridge
        if bridge is None or stated.backend == "null" or stated.subnets is None:
            return None
        if stated.name in networks or made_bridges.is_there(bridge):
            return None
        self._make_bridge(bridge, stated.name, stated.subnets.each)
        return bridge

    def _make_bridge(self, bridge: str, network: str, subnets: Sequence[Subnet]) -> None:
        from ipaddress import ip_interface

        from netalloc.host import made_bridges

        addresses = [
            ip_interface(f"{subnet.gateway}/{subnet.prefixlen}")
            for subnet in subnets
            if subnet.gateway is not None
        ]
        made_bridges.make(bridge, network, addresses)
        log.info("made bridge %s of network %s", bridge, network)

    def _remove_bridge(self, bridge: str, network: str) -> None:
        from netalloc.host import made_bridges

        if made_bridges.remove(bridge, network):
            log.info("removed bridge %s of network %s", bridge, network)
