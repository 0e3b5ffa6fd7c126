"""What a manager says of a guarded network: who of it reaches whom."""

from __future__ import annotations

from netalloc.errors import InvalidValueError
from netalloc.manager.interface import NetworkInterface, as_address
from netalloc.manager.leases import LeaseService

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.address_values import IP
    from netalloc.store.records import Lease


class GuardedNetwork:
    """A network whose containers do not reach each other unless they are allowed to."""

    _leases: LeaseService

    def allow(self, one: NetworkInterface | IP | str, other: NetworkInterface | IP | str) -> None:
        """Let two interfaces of a guarded network reach each other, over IPv4 and IPv6.

        Interfaces of this manager, or addresses of either family. It holds until `disallow`, or
        until either is released, and for no later holder of its address; again it is no error.
        Raises NotAllocatedError for an address without a lease, StaleLeaseError,
        InvalidValueError for one and the same, and where the network is open; CommandError.
        Constant time.
        """
        self._leases.guarding.allow(self._end(one), self._end(other))

    def disallow(
        self, one: NetworkInterface | IP | str, other: NetworkInterface | IP | str
    ) -> None:
        """Let two reach each other no longer; what they have open ends. Not to be is no error.

        Raises as `allow` does. 5 ms, and 2 µs for each flow of the host.
        """
        self._leases.guarding.disallow(self._end(one), self._end(other))

    def allowed(self) -> list[tuple[IP, IP]]:
        """The pairs that reach each other, each once, by the first of their addresses."""
        return self._leases.guarding.allowed()

    def _end(self, value: NetworkInterface | IP | str) -> Lease | IP:
        if not isinstance(value, NetworkInterface):
            return as_address(value)
        if value._leases is not self._leases:
            raise InvalidValueError(f"{value!r} is of another manager")
        return value._in_force()
