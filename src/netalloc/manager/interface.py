"""What a container gets: an address, and host ports that lead to it."""

from collections.abc import Sequence
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from types import TracebackType

from netalloc.errors import NotAllocatedError, OutOfRangeError
from netalloc.manager.leases import LeaseService
from netalloc.model import PortMapping, PortRequest
from netalloc.store.records import Lease, Publication
from netalloc.values import as_host_ip, as_port, as_protocol


class NetworkInterface:
    """One leased address of a manager's network; as a context manager it releases itself.

    Made by NetworkManager.allocate. It holds no state but the lease: what is published is
    read where it is kept, so that several processes see the same.
    """

    def __init__(self, leases: LeaseService, lease: Lease) -> None:
        self._leases = leases
        self._lease = lease
        self._released = False

    @property
    def ip(self) -> IPv4Address | IPv6Address:
        """The address alone."""
        return self._leases.plan.address(self._lease.ordinal)

    @cached_property
    def address(self) -> IPv4Interface | IPv6Interface:
        """The address with the network's prefix length, as the container configures it."""
        return ip_interface((int(self.ip), self._leases.plan.network.prefixlen))

    @property
    def gateway(self) -> IPv4Address | IPv6Address | None:
        """The container's default route; None where the network names no gateway."""
        return self._leases.plan.gateway

    @property
    def owner(self) -> str | None:
        """Whom the address was allocated for."""
        return self._lease.owner

    @property
    def key(self) -> str | None:
        """What the owner calls this interface: asking for it again gives this one again."""
        return self._lease.key

    @property
    def generation(self) -> int:
        """A number that no other lease has, a later one of the same address included."""
        return self._lease.generation

    @property
    def labels(self) -> dict[str, str]:
        """The labels given at allocation."""
        return self._leases.labels(self._lease)

    def ports(self) -> tuple[PortMapping, ...]:
        """What is published now, by host port."""
        return self._leases.ports(self._lease)

    def allocate_port(
        self,
        port: int,
        protocol: str = "tcp",
        host_port: int | None = None,
        host_ip: IPv4Address | str | None = None,
        *,
        hold: bool = False,
    ) -> int:
        """Publish container port `port`; the host port it is reachable at.

        The next free port of the manager's range, or the one named by `host_port`; on every
        address of the host or on `host_ip`. `hold` keeps a bound socket on it as long as
        the manager is open, so that no other program can take it. Raises ExhaustedError,
        InUseError, OutOfRangeError, CommandError; then no port is taken and no rule made.
        """
        as_port(port)
        request = PortRequest(port, protocol, host_port, host_ip)
        return self.publish((request,), hold=hold)[0].host_port

    def allocate_ports(
        self,
        n: int,
        protocol: str = "tcp",
        host_port: int | None = None,
        host_ip: IPv4Address | str | None = None,
        *,
        hold: bool = False,
    ) -> range:
        """Publish n adjacent ports under their own numbers, as one mapping.

        The first free ones in a row, or those from `host_port`.
        """
        request = PortRequest(None, protocol, host_port, host_ip, n)
        return self.publish((request,), hold=hold)[0].ports

    def publish(
        self, requests: Sequence[int | PortRequest], *, hold: bool = False
    ) -> list[PortMapping]:
        """All of the requests in one step, or none of them."""
        return self._leases.publish(self._in_force(), requests, hold)

    def release_port(
        self,
        host_port: int,
        protocol: str = "tcp",
        host_ip: IPv4Address | str | None = None,
    ) -> None:
        """Publish a port, or the adjacent ports that begin with it, no longer.

        `host_ip` is needed only where the port is published on several host addresses.
        Raises NotAllocatedError when this interface does not publish it.
        """
        as_protocol(protocol)
        as_port(host_port)
        ip = as_host_ip(host_ip)

        def named(rows: Sequence[Publication]) -> Publication:
            found = [
                row
                for row in rows
                if row.host_port == host_port
                and row.protocol == protocol
                and (ip is None or row.host_ip == int(ip))
            ]
            if not found:
                raise NotAllocatedError(f"{self.ip} does not publish port {host_port}/{protocol}")
            if len(found) > 1:
                on = ", ".join(str(IPv4Address(row.host_ip)) for row in found)
                raise OutOfRangeError(
                    f"port {host_port}/{protocol} is published on {on}: name the host address"
                )
            return found[0]

        self._leases.unpublish(self._in_force(), named)

    def release(self, *, strict: bool = False) -> None:
        """Give back the ports and the address.

        Goes on past a failing step and raises all failures as one ExceptionGroup; what
        could not be freed stays held, and release may be called again. Where somebody else
        has ended this lease meanwhile nothing is touched: the manager counts it, and with
        `strict` it is a StaleLeaseError. Releasing twice is a NotAllocatedError.
        """
        lease = self._in_force()
        self._leases.release(lease, strict)
        self._released = True

    def _in_force(self) -> Lease:
        if self._released:
            raise NotAllocatedError(f"{self.ip} was released already")
        return self._lease

    def __enter__(self) -> "NetworkInterface":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._released:
            self.release()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetworkInterface) and self._lease[:3] == other._lease[:3]

    def __hash__(self) -> int:
        return hash(self._lease[:3])

    def __repr__(self) -> str:
        owner = f" of {self.owner}" if self.owner else ""
        return f"<NetworkInterface {self.address}{owner}>"
