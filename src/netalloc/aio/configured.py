"""What a manager's network is, for asyncio: what its record says is known, and not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netalloc._alloc import Subnet
    from netalloc.address_values import IP
    from netalloc.aio.threads import Threads
    from netalloc.manager.manager import NetworkManager


class AsyncConfiguredNetwork:
    """A network that was opened."""

    _manager: NetworkManager
    _threads: Threads

    @property
    def name(self) -> str:
        """What the network is called in its store."""
        return self._manager.name

    @property
    def bridge(self) -> str | None:
        """The bridge that the containers are on; None where the network is routed."""
        return self._manager.bridge

    @property
    def backend(self) -> str:
        """What makes the mappings: "nftables", "iptables" or "null"."""
        return self._manager.backend

    @property
    def commits(self) -> tuple[int, int]:
        """How many commits callers that waited for each other shared, and of how many changes."""
        return self._manager.commits

    @property
    def subnet(self) -> Subnet:
        """The addresses of the network: of the first of its subnets, the IPv4 one if any."""
        return self._manager.subnet

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        """The subnets of the network: one, or one of IPv4 and one of IPv6."""
        return self._manager.subnets

    @property
    def gateway(self) -> IP | None:
        """The containers' default route; None where the subnet names no gateway."""
        return self._manager.gateway

    async def registered(self) -> bool:
        """Whether the store still has the network as it was opened: not removed, nor made anew."""
        return await self._threads.read(lambda: self._manager.registered)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._manager.closed or self._threads.closed
