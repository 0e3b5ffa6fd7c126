"""What a manager's network is, as its record says."""

from __future__ import annotations

from netalloc.ipam.networks import find
from netalloc.manager.leases import LeaseService

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc._alloc import Subnet
    from netalloc.address_values import IP


class ConfiguredNetwork:
    """A network that was opened."""

    _leases: LeaseService

    @property
    def name(self) -> str:
        """What the network is called in its store."""
        return self._leases.network.name

    @property
    def bridge(self) -> str | None:
        """The bridge that the containers are on; None where the network is routed."""
        return self._leases.network.bridge

    @property
    def backend(self) -> str:
        """What makes the mappings: "nftables", "iptables" or "null"."""
        return self._leases.network.backend

    @property
    def subnet(self) -> Subnet:
        """The addresses of the network: of the first of its subnets, the IPv4 one if any."""
        return self._leases.subnets.first

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        """The subnets of the network: one, or one of IPv4 and one of IPv6."""
        return self._leases.subnets.each

    @property
    def gateway(self) -> IP | None:
        """The containers' default route; None where the subnet names no gateway."""
        return self._leases.subnets.first.gateway

    @property
    def registered(self) -> bool:
        """Whether the store still has the network as it was opened: not removed, nor made anew."""
        return self._leases.read(lambda tx: find(tx, self.name)) == self._leases.network

    @property
    def commits(self) -> tuple[int, int]:
        """How many commits callers that waited for each other shared, and of how many changes."""
        committer = self._leases.committer
        return committer.commits, committer.changes

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._leases.committer.closed
