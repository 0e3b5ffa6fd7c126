"""What a container gets, for asyncio."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from netalloc.aio import taking
from netalloc.errors import InvalidValueError
from netalloc.manager.interface import NetworkInterface, as_requests
from netalloc.model import PortRequest
from netalloc.values import as_port

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence
    from ipaddress import IPv4Interface, IPv6Interface
    from types import TracebackType
    from typing import NoReturn

    from netalloc.address_values import IP
    from netalloc.aio.threads import Threads
    from netalloc.model import PortMapping


class AsyncNetworkInterface:
    """NetworkInterface with coroutines: what each does is told there.

    As an asynchronous context manager it releases itself. What a cancelled call has taken is
    given back before the cancellation goes on.
    """

    __slots__ = ("_interface", "_threads")

    def __init__(self, interface: NetworkInterface, threads: Threads) -> None:
        self._interface = interface
        self._threads = threads

    @property
    def ip(self) -> IP:
        """The address alone: the IPv4 one where there is one."""
        return self._interface.ip

    @property
    def ips(self) -> tuple[IP, ...]:
        """The address of each family alone, the IPv4 one first."""
        return self._interface.ips

    @property
    def address(self) -> IPv4Interface | IPv6Interface:
        """The address with its subnet's prefix length, as the container configures it."""
        return self._interface.address

    @property
    def addresses(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """The address of each family with its subnet's prefix length, the IPv4 one first."""
        return self._interface.addresses

    @property
    def gateway(self) -> IP | None:
        """The container's default route; None where the subnet names no gateway."""
        return self._interface.gateway

    @property
    def gateways(self) -> tuple[IP, ...]:
        """The default route of each family whose subnet names a gateway, the IPv4 one first."""
        return self._interface.gateways

    @property
    def owner(self) -> str | None:
        """What the address was allocated for."""
        return self._interface.owner

    @property
    def key(self) -> str | None:
        """The idempotency key: the same owner that asks with it again gets this one again."""
        return self._interface.key

    @property
    def network(self) -> str:
        """What its network is called in the store."""
        return self._interface.network

    @property
    def generation(self) -> int:
        """A number that no other lease has, a later one of the same address included."""
        return self._interface.generation

    async def labels(self) -> dict[str, str]:
        """The labels given at allocation, which never change."""
        return await self._threads.read(lambda: self._interface.labels)

    async def ports(self) -> tuple[PortMapping, ...]:
        """What is published now, by host port; nothing once the lease has ended."""
        return await self._threads.read(self._interface.ports)

    async def allocate_port(
        self,
        container_port: int,
        protocol: str = "tcp",
        host_port: int | None = None,
        host_ip: IP | str | None = None,
        *,
        hold: bool = False,
        check_host: bool = True,
    ) -> int:
        """Publish a container port; the host port it is reachable at. Cancelled: released."""
        if container_port is None:
            as_port(container_port)  # it is to be named
        request = PortRequest(container_port, protocol, host_port, host_ip)
        return (await self._publish((request,), hold, check_host))[0].host_port

    async def allocate_ports(
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
        """Publish n adjacent ports; the host ports. Cancelled: released."""
        request = PortRequest(container_port, protocol, host_port, host_ip, n)
        return (await self._publish((request,), hold, check_host))[0].ports

    async def publish(
        self,
        ports: Iterable[int | PortRequest],
        *,
        hold: bool = False,
        check_host: bool = True,
    ) -> list[PortMapping]:
        """All of the ports in one step, or none of them. Cancelled: released."""
        return await self._publish(as_requests(ports), hold, check_host)

    async def _publish(
        self, requests: Sequence[PortRequest], hold: bool, check_host: bool
    ) -> list[PortMapping]:
        interface = self._interface
        return await self._threads.take(
            partial(interface.publish, requests, hold=hold, check_host=check_host),
            partial(taking.unpublish, interface, requests),
        )

    async def release_port(
        self,
        host_port: int,
        protocol: str = "tcp",
        host_ip: IP | str | None = None,
    ) -> None:
        """Publish a port, or the adjacent ports that begin with it, no longer."""
        await self._threads.give(
            partial(self._interface.release_port, host_port, protocol, host_ip)
        )

    async def attach(
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
        """Put it into a network namespace, or make a tap. Cancelled: detached if it was not on."""
        interface = self._interface

        def undo(is_new: bool) -> None:
            if is_new:
                interface.detach()

        await self._threads.take(
            partial(interface._attach, netns, tap, ifname, mac, mtu, uid, gid),
            undo,
            (("attach", interface.generation),),
        )

    async def detach(self) -> None:
        """Take it off the machine, the lease goes on; not to be attached is no error."""
        await self._threads.give(self._interface.detach)

    async def release(self, *, strict: bool = False) -> None:
        """Give back the ports and the address, and take it off the machine."""
        await self._threads.give(partial(self._interface.release, strict=strict))

    async def __aenter__(self) -> AsyncNetworkInterface:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._interface._released:
            await self.release()

    def __eq__(self, other: object) -> bool:
        """Whether both are one lease of one store, in whichever way it was found."""
        return isinstance(other, AsyncNetworkInterface) and self._interface == other._interface

    def __hash__(self) -> int:
        return hash(self._interface)

    def __copy__(self) -> AsyncNetworkInterface:
        return self

    def __deepcopy__(self, memo: object) -> AsyncNetworkInterface:
        return self

    def __reduce__(self) -> NoReturn:
        raise InvalidValueError(
            f"{self!r} cannot be pickled, as its manager is of this process: allocate with its "
            "owner and key, or find(), gives it elsewhere"
        )

    def __repr__(self) -> str:
        return repr(self._interface).replace("<", "<Async", 1)


def sync(value: object) -> NetworkInterface:
    """The interface behind one of these; anything else as it is, to be refused where it is used."""
    return (
        value._interface
        if isinstance(value, AsyncNetworkInterface)
        else cast("NetworkInterface", value)
    )
