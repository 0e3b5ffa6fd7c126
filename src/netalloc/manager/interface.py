"""What a container gets: an address of each family, and host ports that lead to it."""

from __future__ import annotations

from netalloc._alloc import InterfaceState
from netalloc.errors import InvalidValueError, NotAllocatedError
from netalloc.manager.leases import LeaseService
from netalloc.store.records import Lease
from netalloc.values import as_each, as_flag, as_port, as_protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence
    from ipaddress import IPv4Interface, IPv6Interface
    from types import TracebackType
    from typing import Any, NoReturn

    from netalloc._alloc import Subnet
    from netalloc.address_values import IP
    from netalloc.model import PortMapping, PortRequest


class NetworkInterface(InterfaceState):
    """One lease of a manager's network; as a context manager it releases itself.

    An address, or one of IPv4 and one of IPv6 where the network has both.

    Made by NetworkManager.allocate. It holds no state but the lease: what is published is
    read where it is kept, so that several processes see the same.
    """

    __slots__ = ()

    _leases: LeaseService
    _lease: Lease

    @property
    def ip(self) -> IP:
        """The address alone: the IPv4 one where there is one."""
        return self._leases.address(self._lease.ordinal)

    @property
    def ips(self) -> tuple[IP, ...]:
        """The address of each family alone, the IPv4 one first."""
        return self._leases.subnets.addresses(self._lease.ordinal)

    @property
    def address(self) -> IPv4Interface | IPv6Interface:
        """The address with its subnet's prefix length, as the container configures it.

        The IPv4 one where there is one.
        """
        return _interface(self._leases.subnets.first, self._lease.ordinal)

    @property
    def addresses(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """The address of each family with its subnet's prefix length, the IPv4 one first."""
        ordinal = self._lease.ordinal
        return tuple([_interface(subnet, ordinal) for subnet in self._leases.subnets.each])

    @property
    def gateway(self) -> IP | None:
        """The container's default route; None where the subnet names no gateway."""
        return self._leases.subnets.first.gateway

    @property
    def gateways(self) -> tuple[IP, ...]:
        """The default route of each family whose subnet names a gateway, the IPv4 one first."""
        return self._leases.subnets.gateways

    @property
    def owner(self) -> str | None:
        """What the address was allocated for."""
        return self._lease.owner

    @property
    def network(self) -> str:
        """What its network is called in the store."""
        return self._leases.network.name

    @property
    def key(self) -> str | None:
        """The idempotency key: the same owner that asks with it again gets this one again."""
        return self._lease.key

    @property
    def generation(self) -> int:
        """A number that no other lease has, a later one of the same address included."""
        return self._lease.generation

    @property
    def labels(self) -> dict[str, str]:
        """The labels given at allocation, which never change."""
        if self._labels is None:
            self._labels = self._leases.labels(self._lease)
        return dict(self._labels)

    def ports(self) -> tuple[PortMapping, ...]:
        """What is published now, by host port; nothing once the lease has ended."""
        return self._leases.ports(self._lease)

    def allocate_port(
        self,
        container_port: int,
        protocol: str = "tcp",
        host_port: int | None = None,
        host_ip: IP | str | None = None,
        *,
        hold: bool = False,
        check_host: bool = True,
    ) -> int:
        """Publish a container port; the host port it is reachable at.

        The next free port of the network's range, or the one named by `host_port`; on every
        address of the host, in each family that the interface has an address of, or on
        `host_ip` alone: 0.0.0.0 and :: are every address of their family. `hold` keeps a bound
        socket on it as long as the manager is open, so that no other program can take it. A
        port that is named must be free on the host and `host_ip` one of its addresses, unless
        `check_host` is False, which is logged. Raises ExhaustedError, InUseError,
        InvalidValueError, CommandError; then no port is taken and no rule made.
        """
        from netalloc.model import PortRequest

        if container_port is None:
            as_port(container_port)  # it is to be named
        request = PortRequest(container_port, protocol, host_port, host_ip)
        return self._publish((request,), hold, check_host)[0].host_port

    def allocate_ports(
        self,
        n: int,
        protocol: str = "tcp",
        host_port: int | None = None,
        host_ip: IP | str | None = None,
        *,
        container_port: int | None = None,
        hold: bool = False,
        check_host: bool = True,
    ) -> range:
        """Publish n adjacent ports as one mapping of each family; the host ports.

        The first free ones in a row, or those from `host_port`. They lead to the container
        ports of the same numbers, or to those from `container_port` on.
        """
        from netalloc.model import PortRequest

        request = PortRequest(container_port, protocol, host_port, host_ip, n)
        return self._publish((request,), hold, check_host)[0].ports

    def publish(
        self,
        ports: Iterable[int | PortRequest],
        *,
        hold: bool = False,
        check_host: bool = True,
    ) -> list[PortMapping]:
        """All of the ports in one step, or none of them; see `allocate_port`.

        A port that is of both families has two mappings, the IPv4 one first.
        """
        return self._publish(as_requests(ports), hold, check_host)

    def _publish(
        self, requests: Sequence[PortRequest], hold: bool, check_host: bool
    ) -> list[PortMapping]:
        if hold is not False or check_host is not True:
            hold, check_host = as_flag(hold, "hold"), as_flag(check_host, "check_host")
        mappings, self._lease = self._leases.publish(
            self._in_force(), requests, hold=hold, check_host=check_host
        )
        return mappings

    def release_port(
        self,
        host_port: int,
        protocol: str = "tcp",
        host_ip: IP | str | None = None,
    ) -> None:
        """Publish a port, or the adjacent ports that begin with it, no longer.

        `host_ip` is needed only where the port is published on several host addresses.
        Raises NotAllocatedError when this interface does not publish it.
        """
        from netalloc.address_values import as_host_place

        protocol, host_port = as_protocol(protocol), as_port(host_port)
        ip = None if host_ip is None else as_host_place(host_ip)
        self._lease = self._leases.unpublish(self._in_force(), host_port, protocol, ip)

    def attach(
        self,
        netns: str | int | os.PathLike[str] | None = None,
        *,
        tap: str | None = None,
        ifname: str = "eth0",
        mac: str | bytes | None = None,
        mtu: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        """Put it into a network namespace as `ifname`, or make a tap for a virtual machine.

        `netns` is a name, a path, a process or a descriptor. There it gets its addresses,
        without the two seconds of duplicate detection, default routes and neighbours that are
        known for ever. The `mac` follows from the address unless given, the `mtu` from the
        bridge or the uplink. Of a tap, user `uid` and group `gid` may open it. Where it is
        attached so already that is no error: what it lacks is mended. Raises InterfaceError
        with the reason, InUseError where it is attached elsewhere, ExhaustedError where the
        bridge is full, StaleLeaseError; then nothing is left. About a millisecond.
        """
        self._attach(netns, tap, ifname, mac, mtu, uid, gid)

    def _attach(
        self, netns: Any, tap: Any, ifname: Any, mac: Any, mtu: Any, uid: Any, gid: Any
    ) -> bool:
        """Whether it was not attached before."""
        from netalloc.manager.attach_targets import as_target, close_targets

        lease, service = self._in_force(), self._leases.attaching
        target = as_target(netns, tap, ifname, mac, mtu, uid, gid)
        try:
            return bool(service.attach([(lease, target)]))
        finally:
            close_targets((target,))

    def detach(self) -> None:
        """Take it off the machine, the lease goes on; not to be attached is no error."""
        lease = self._in_force()
        self._leases.attaching.detach([lease])

    def release(self, *, strict: bool = False) -> None:
        """Give back the ports and the address, and take it off the machine.

        Goes on past a failing step and raises all failures as one ExceptionGroup; what
        could not be freed stays held, and release may be called again. Where this lease has
        been ended by another process meanwhile nothing is touched: the manager counts it, and
        with `strict` it is a StaleLeaseError. Releasing twice is a NotAllocatedError.
        """
        if strict is not False:
            strict = as_flag(strict, "strict")
        self._leases.release(self._lease if not self._released else self._in_force(), strict)
        self._released = True

    def _in_force(self) -> Lease:
        if self._released:
            raise NotAllocatedError(f"{self.ip} was released already")
        return self._lease

    def __enter__(self) -> NetworkInterface:
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
        """Whether both are one lease of one store, in whichever way it was found."""
        return (
            isinstance(other, NetworkInterface)
            and self._lease[:3] == other._lease[:3]
            and self._leases.place == other._leases.place
        )

    def __hash__(self) -> int:
        return hash(self._lease[:3])

    def __copy__(self) -> NetworkInterface:
        return self

    def __deepcopy__(self, memo: object) -> NetworkInterface:
        return self

    def __reduce__(self) -> NoReturn:
        raise InvalidValueError(
            f"{self!r} cannot be pickled, as its manager is of this process: allocate with its "
            "owner and key, or find(), gives it elsewhere"
        )

    def __repr__(self) -> str:
        owner = f" of {self.owner}" if self.owner else ""
        return f"<NetworkInterface {' '.join(map(str, self.addresses))}{owner}>"


def _interface(subnet: Subnet, ordinal: int) -> IPv4Interface | IPv6Interface:
    from ipaddress import IPv4Interface, IPv6Interface

    kind = IPv4Interface if subnet.version == 4 else IPv6Interface
    return kind((int(subnet.address(ordinal)), subnet.prefixlen))


# Addresses and ports are loaded with the first call that names any: many a process names none.


def as_address(ip: object) -> IP:
    """An address that a caller names."""
    from netalloc.address_values import as_ip

    return as_ip(ip)


def as_requests(ports: object) -> tuple[PortRequest, ...]:
    """The ports that a caller names."""
    from netalloc.model import PortRequest

    return tuple(as_each(ports, "ports", PortRequest.of))
