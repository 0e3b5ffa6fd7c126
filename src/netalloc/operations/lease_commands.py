"""Addresses and ports given out and given back, and what puts them on the machine."""

from __future__ import annotations

from netalloc.address_values import as_ip
from netalloc.errors import InvalidValueError, NotAllocatedError
from netalloc.manager.undo import attempt
from netalloc.operations import answers, describe
from netalloc.operations.port_spec import port_request, published_port
from netalloc.values import as_int, as_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from netalloc.address_values import IP
    from netalloc.manager.interface import NetworkInterface
    from netalloc.manager.manager import NetworkManager
    from netalloc.manager.view import Held, NetworkView
    from netalloc.model import PortRequest

_MANY = 65536  # interfaces in one call


class LeaseCommands:
    """The part of HostOperations that gives out and takes back."""

    if TYPE_CHECKING:
        manager: Callable[[str | None], NetworkManager]
        answer: Callable[[NetworkInterface], answers.Lease]
        interface_of: Callable[[Held], NetworkInterface]
        view: Callable[[], NetworkView]

        def manager_of(self, ip: IP, network: str | None = None) -> NetworkManager: ...

        def held_by(
            self, owner: str, network: str | None, ip: str | None, key: str | None
        ) -> list[Held]: ...

        def one_of(
            self,
            owner: str,
            network: str | None = None,
            ip: str | None = None,
            key: str | None = None,
        ) -> NetworkInterface: ...

    def allocate(
        self,
        owner: str,
        *,
        network: str | None = None,
        ip: str | None = None,
        key: str | None = None,
        labels: dict[str, str] | None = None,
        publish: Sequence[str] = (),
        attach: str | None = None,
        tap: str | None = None,
        ifname: str = "eth0",
        mtu: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        allow_cooling: bool = False,
        check_host: bool = True,
    ) -> answers.Lease:
        """An address for an owner, with its ports published and put on the machine, or nothing.

        `publish` are ports as in port_spec.port_request; `attach` names a network namespace (a
        name, a path or a process), `tap` an interface for a virtual machine. With a `key` it may be
        asked again: then what is there already stays, whatever fails.
        """
        requests = [port_request(spec) for spec in publish]
        if attach is not None and tap is not None:
            raise InvalidValueError(
                f"netns {attach} and tap {tap}: an address is put on one of the two"
            )
        if network is None and ip is not None:
            manager = self.manager_of(as_ip(ip))
        else:
            manager = self.manager(network)
        self._check_ports(manager, requests, check_host)
        known = {one.generation for one in manager.find(owner)} if key is not None else set[int]()
        interface = manager.allocate(
            as_text(owner, "owner"),
            ip,
            key=key,
            labels=labels,
            ports=tuple(requests),
            allow_cooling=allow_cooling,
            check_host=check_host,
        )
        try:
            if attach is not None or tap is not None:
                self._attach(interface, attach, tap, ifname, mtu, uid, gid)
            return self.answer(interface)
        except BaseException:
            if interface.generation not in known:
                attempt(interface.release)
            raise

    def allocate_many(
        self,
        owner: str,
        count: int,
        *,
        network: str | None = None,
        labels: dict[str, str] | None = None,
        publish: Sequence[str] = (),
        check_host: bool = True,
    ) -> list[answers.Lease]:
        """Several addresses for an owner at once, each with the ports published; all or none."""
        requests = [port_request(spec) for spec in publish]
        count = as_int(count, "count", 1, _MANY)
        manager = self.manager(network)
        made = manager.allocate_many(
            count, requests, as_text(owner, "owner"), labels=labels, check_host=check_host
        )
        wanted = {one.generation for one in made}
        infos = {info.name: info for info in self.view().networks()}
        held = self.view().find(owner, network=manager.name)
        return describe.leases([one for one in held if one.generation in wanted], infos)

    def release(
        self,
        owner: str,
        *,
        network: str | None = None,
        ip: str | None = None,
        key: str | None = None,
    ) -> answers.Released:
        """Give back all that an owner holds, or what of it is named.

        Raises NotAllocatedError where that is nothing.
        """
        found = self.held_by(owner, network, ip, key)
        released = []
        for held in found:
            try:
                interface = self.interface_of(held)
            except NotAllocatedError:
                continue  # another process was quicker
            interface.release()
            released.append(str(held.ip))
        return answers.Released(owner, released)

    def attach(
        self,
        owner: str,
        *,
        netns: str | None = None,
        tap: str | None = None,
        ifname: str = "eth0",
        mtu: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        network: str | None = None,
        ip: str | None = None,
        key: str | None = None,
    ) -> answers.Lease:
        """Put what an owner holds into a network namespace, or make a tap of it."""
        interface = self.one_of(owner, network, ip, key)
        self._attach(interface, netns, tap, ifname, mtu, uid, gid)
        return self.answer(interface)

    def detach(
        self,
        owner: str,
        *,
        network: str | None = None,
        ip: str | None = None,
        key: str | None = None,
    ) -> answers.Lease:
        """Take it off the machine; the address stays."""
        interface = self.one_of(owner, network, ip, key)
        self._detach(interface)
        return self.answer(interface)

    def publish(
        self,
        owner: str,
        ports: Sequence[str],
        *,
        network: str | None = None,
        ip: str | None = None,
        key: str | None = None,
        check_host: bool = True,
    ) -> list[answers.Port]:
        """Publish ports of what an owner holds, all or none: [IP:][HOST:]PORT[/PROTOCOL]."""
        requests = [port_request(spec) for spec in ports]
        if not requests:
            raise InvalidValueError("no port is named")
        interface = self.one_of(owner, network, ip, key)
        self._check_ports(self.manager(interface.network), requests, check_host)
        made = interface.publish(tuple(requests), check_host=check_host)
        return [describe.port(one) for one in made]

    def unpublish(
        self,
        owner: str,
        ports: Sequence[str],
        *,
        network: str | None = None,
        ip: str | None = None,
        key: str | None = None,
    ) -> answers.Lease:
        """Publish host ports no longer: [IP:]HOST[/PROTOCOL].

        Raises NotAllocatedError, before anything has changed, for one that is not published.
        """
        wanted = [published_port(spec) for spec in ports]
        if not wanted:
            raise InvalidValueError("no port is named")
        interface = self.one_of(owner, network, ip, key)
        there = {(one.host_port, one.protocol) for one in interface.ports()}
        for host_port, protocol, _ in wanted:
            if (host_port, protocol) not in there:
                raise NotAllocatedError(f"{owner} does not publish {host_port}/{protocol}")
        for host_port, protocol, host_ip in wanted:
            interface.release_port(host_port, protocol, host_ip)
        return self.answer(interface)

    def reserve(
        self, ip: str, owner: str | None = None, *, network: str | None = None
    ) -> answers.Reservation:
        """Keep an address for an owner, or from everyone, also over boots and power cuts."""
        plain = as_ip(ip)
        manager = self.manager_of(plain, network)
        manager.reserve(plain, owner)
        for kept in self.view().reserved(manager.name):
            if plain in kept.ips:
                return describe.reservation(kept)
        raise NotAllocatedError(f"{plain} was unreserved meanwhile")

    def unreserve(self, ip: str, *, network: str | None = None) -> None:
        """Keep an address no longer; a lease of it goes on. NotAllocatedError where it is not."""
        plain = as_ip(ip)
        self.manager_of(plain, network).unreserve(plain)

    # ---- what a rehearsal does otherwise

    def _check_ports(
        self, manager: NetworkManager, requests: Sequence[PortRequest], check_host: bool
    ) -> None:
        """What the manager does not ask of the host by itself."""

    def _attach(
        self,
        interface: NetworkInterface,
        netns: str | None,
        tap: str | None,
        ifname: str,
        mtu: int | None,
        uid: int | None,
        gid: int | None,
    ) -> None:
        target = as_namespace(netns)
        interface.attach(target, tap=tap, ifname=ifname, mtu=mtu, uid=uid, gid=gid)

    def _detach(self, interface: NetworkInterface) -> None:
        interface.detach()


def as_namespace(named: str | None) -> str | int | None:
    """A network namespace as people write it: digits alone are a process."""
    if named is not None and named.isascii() and named.isdigit():
        return f"/proc/{named}/ns/net"  # a number may be a descriptor of ours as well
    return named
