"""A private host for one test: network and mount namespaces of its own, and real traffic.

    with Lab("nft") as lab:
        lab.serve(lab.containers[0], "tcp", 80)
        PortMapper("iptables", bridge=lab.bridge, network=lab.network).setup() ...
        assert lab.ask(lab.outside, "tcp", (lab.address, 8080)) == "c0"

Inside the block the calling thread, and every thread and process it starts, is on that
host: `iptables`, /proc/sys/net and netlink sockets are the host's own. Containers and the
outside are named network namespaces. Nothing of it is left at the end, and the machine's
own network, /run and firewall are never touched.
"""

import os
import selectors
import shutil
import socket
import subprocess
import threading
from collections.abc import Collection
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from netalloc.host import namespaces, sysctl
from netalloc.host.attaching import attach_routed
from netalloc.host.endpoints import Endpoint
from netalloc.host.links import Links, connect
from netalloc.host.macs import mac_of
from netalloc.portmap.link import Link

VARIANTS = ("legacy", "nft")
MULTI = {"legacy": "xtables-legacy-multi", "nft": "xtables-nft-multi"}
TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "sctp": socket.SOCK_STREAM}
NUMBERS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}


class Closable(Protocol):
    def close(self) -> None: ...


Closing = TypeVar("Closing", bound=Closable)


def require_kernel() -> None:
    """Skip on a laptop what a private host needs and this process has not; in CI, fail."""
    reason = _missing()
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI nothing is skipped: {reason}", pytrace=False)
    pytest.skip(reason)


def _missing() -> str | None:
    for command in (*MULTI.values(), "nft"):
        if shutil.which(command) is None:
            return f"{command} is not on PATH"
    held = int(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0], 16)
    for bit, name in ((12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")):
        if not held >> bit & 1:
            return f"{name} is missing"
    return None


@dataclass(frozen=True)
class Place:
    """Somewhere a socket can live: the host itself (no namespace) or a named namespace."""

    name: str
    namespace: str | None
    ip: str
    ip6: str = ""


class Private(AbstractContextManager["Private"]):
    """Takes the calling thread into new network and mount namespaces, and back at the end."""

    def __enter__(self) -> "Private":
        self._cwd = Path.cwd()
        self._directory = os.environ.pop("NETALLOC_RUNTIME_DIR", None)  # /run is private here
        self._home = [
            (os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC), flag)
            for kind, flag in (("net", namespaces.CLONE_NEWNET), ("mnt", namespaces.CLONE_NEWNS))
        ]
        try:
            namespaces.unshare(namespaces.CLONE_NEWNET | namespaces.CLONE_NEWNS)
            namespaces.mount("none", "/", None, namespaces.MS_REC | namespaces.MS_PRIVATE)
            # Named namespaces, iptables' lock and the links of `variant` live and die here.
            namespaces.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        namespaces.unshare(namespaces.CLONE_FS)  # setns refuses while a thread shares it
        for fd, flag in self._home:
            namespaces.setns(fd, flag)
            os.close(fd)
        if self._directory is not None:
            os.environ["NETALLOC_RUNTIME_DIR"] = self._directory
        os.chdir(self._cwd)  # joining a mount namespace goes to its root


def use_iptables(variant: str) -> None:
    """Have PATH lead to the legacy or the nft iptables, with its companions, on a private host."""
    multi = shutil.which(MULTI[variant])
    assert multi is not None, f"{MULTI[variant]} is not on PATH"
    directory = Path("/run/lab", variant)
    directory.mkdir(parents=True, exist_ok=True)
    for command in ("iptables", "ip6tables"):
        for part in ("", "-restore", "-save"):
            with suppress(FileExistsError):
                (directory / f"{command}{part}").symlink_to(multi)
    os.environ["PATH"] = f"{directory}:{os.environ['PATH']}"


class Lab(AbstractContextManager["Lab"]):
    """A host with a bridge, containers on it, and an outside behind a routed veth.

    `variant` chooses what `iptables` on PATH is, None leaves it. `bridge_nf` sets
    bridge-nf-call-iptables. bridge "br0" is 10.200.0.1/16, containers are c0, c1, ... at
    10.200.0.2 and on, the host is 192.0.2.1 (and 192.0.2.11) to the outside, 192.0.2.2.
    With `ipv6` it is fd00:c8::1/64 as well, containers fd00:c8::2 and on, the host 2001:db8::1
    (and 2001:db8::11) to the outside, 2001:db8::2, and servers answer over both. A `routed` one
    has no bridge: containers are put on the host by `attach`, once the gateways are there.
    """

    bridge = "br0"
    network = "10.200.0.0/16"
    gateway = "10.200.0.1"
    address = "192.0.2.1"
    second_address = "192.0.2.11"
    network6 = "fd00:c8::/64"
    gateway6 = "fd00:c8::1"
    address6 = "2001:db8::1"
    second_address6 = "2001:db8::11"
    networks = (network, network6)
    group = 0x6E000001

    def __init__(
        self,
        variant: str | None = None,
        *,
        bridge_nf: int | None = None,
        containers: int = 2,
        hairpin: bool = True,
        ipv6: bool = False,
        routed: bool = False,
    ) -> None:
        self.routed = routed
        self.hairpin = hairpin
        self.ipv6 = ipv6
        self.variant = variant
        self.bridge_nf = bridge_nf
        self.host = Place("host", None, self.gateway, self.gateway6)
        self.outside = Place("outside", "outside", "192.0.2.2", "2001:db8::2")
        self.containers = [
            Place(f"c{i}", f"c{i}", f"10.200.0.{i + 2}", f"fd00:c8::{i + 2:x}")
            for i in range(containers)
        ]
        self._stack = ExitStack()

    def __enter__(self) -> "Lab":
        with ExitStack() as stack:
            stack.enter_context(Private())
            if self.variant is not None:
                stack.callback(os.environ.__setitem__, "PATH", os.environ["PATH"])
                self.use(self.variant)
            self._servers = stack.enter_context(Servers())
            self._build()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def use(self, variant: str) -> None:
        """Make `iptables` and all its companions the legacy or the nft ones, on this host only."""
        use_iptables(variant)

    def _build(self) -> None:
        with Links() as links:
            if self.ipv6:
                sysctl.write("0", "net", "ipv6", "conf", "default", "accept_dad")
            links.set_up("lo")
            own = self._own(f"{self.gateway}/16", f"{self.gateway6}/64")
            if self.routed:  # a bridge of another program's, for what is seen of bridged frames
                links.create_bridge("other0")
            else:
                links.create_bridge(self.bridge, *own)
            if self.bridge_nf is not None:
                for command in self._own("iptables", "ip6tables"):
                    setting = Path(f"/proc/sys/net/bridge/bridge-nf-call-{command}")
                    setting.write_text(f"{self.bridge_nf}")
            for i, place in enumerate(self.containers):
                namespaces.create(place.name)
                if self.routed:
                    continue
                connect(
                    links,
                    f"veth{i}",
                    namespace=place.name,
                    bridge=self.bridge,
                    address=self._own(f"{place.ip}/16", f"{place.ip6}/64"),
                    gateway=self._own(self.gateway, self.gateway6),
                    hairpin=self.hairpin,
                )
            namespaces.create("outside")
            links.create_veth("uplink", "eth0", namespace="outside")
            for address in (self.address, self.second_address):
                links.add_address("uplink", f"{address}/24")
            # The kernel prefers the last one as a source, and of IPv4 the first one.
            for address in (self.second_address6, self.address6) if self.ipv6 else ():
                links.add_address("uplink", f"{address}/64")
            with Links("outside") as outside:
                outside.set_up("lo")
                for address in self._own(f"{self.outside.ip}/24", f"{self.outside.ip6}/64"):
                    outside.add_address("eth0", address)
                outside.set_up("eth0")
                for gateway in self._own(self.address, self.address6):
                    outside.add_route(gateway)

    def _own(self, four: str, six: str) -> tuple[str, ...]:
        """What is there of two of different families."""
        return (four, six) if self.ipv6 else (four,)

    def link(self, versions: Collection[int] = (4, 6)) -> Link:
        """What a backend is told of the way to the containers."""
        if not self.routed:
            return Link(self.bridge)
        given = zip((4, 6), (self.gateway, self.gateway6), strict=True)
        gateways = [ip_address(ip) if version in versions else None for version, ip in given]
        return Link(None, self.group, tuple(gateways))

    def attach(self, versions: Collection[int] = (4, 6)) -> None:
        """Put all containers of a routed lab on the host; those that are there stay."""
        with ExitStack() as stack:
            found = []
            for number, place in enumerate(self.containers):
                fd = os.open(namespaces.path(place.name), os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                v4 = ip_interface(f"{place.ip}/16") if 4 in versions else None
                v6 = ip_interface(f"{place.ip6}/64") if 6 in versions else None
                addresses, gateways = (v4, v6), self.link(versions).gateways
                mac, index = mac_of(ip_address(place.ip)), 1000 + number
                alias = f"netalloc:lab:{place.ip}"
                found.append(Endpoint(index, f"veth{number}", alias, addresses, gateways, mac, fd))
            attach_routed(found, self.group)

    def keep(self, resource: Closing) -> Closing:
        """The resource itself, which the end of the lab closes."""
        self._stack.callback(resource.close)
        return resource

    def socket(self, place: Place, protocol: str, ip: str = "") -> socket.socket:
        """A socket that lives at `place`, for the family of an address; the caller closes it."""
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        arguments = (family, TYPES[protocol], NUMBERS[protocol])
        if place.namespace is None:
            return socket.socket(*arguments)
        with namespaces.inside(place.namespace):
            return socket.socket(*arguments)

    def serve(self, place: Place, protocol: str, port: int, ip: str | None = None) -> None:
        """Answer every request at `place` with the place's name and the client's address."""
        for one in self._own("0.0.0.0", "::") if ip is None else (ip,):
            server = self.socket(place, protocol, one)
            if server.family == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._servers.add(server, place.name, (one, port))

    def ask(
        self, place: Place, protocol: str, to: tuple[str, int], *, timeout: float = 5.0
    ) -> tuple[str, str]:
        """Ask from `place`: who answered, and what address it saw. OSError when nobody does."""
        with self.socket(place, protocol, to[0]) as client:
            client.settimeout(timeout)
            client.connect(to)
            client.send(b"?")
            who, _, seen = client.recv(200).decode().partition(" ")
            return who, seen

    def reaches(self, place: Place, protocol: str, to: tuple[str, int]) -> str | None:
        """The name of who answers, None when nobody does within a short while."""
        try:
            return self.ask(place, protocol, to, timeout=0.3)[0]
        except OSError:
            return None

    def run(self, *command: str, input: str | None = None) -> str:
        """Run a command on the host and return its output; it must succeed."""
        done = subprocess.run(command, input=input, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def rules(self) -> str:
        """All rules of the host's own tables without counters and comments of the dump.

        Tables that hold built-in chains without rules only are left out: iptables makes
        them at the first look and has no way to remove them.
        """
        dump = self.run("iptables-save")
        tables = []
        for table in dump.split("*")[1:]:
            lines = [line.partition(" [")[0] for line in table.splitlines() if line[:1] != "#"]
            plain = all(line.endswith(" ACCEPT") for line in lines if line[:1] == ":")
            if not plain or any(line[:1] == "-" for line in lines):
                tables.append("\n".join(lines))
        return "\n".join(sorted(tables))


class Servers(AbstractContextManager["Servers"]):
    """All echo servers of a lab in one thread; a socket stays in the namespace it was made in."""

    def __enter__(self) -> "Servers":
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        # A lab that nobody closes must not keep the tests from ending.
        self._thread = threading.Thread(target=self._serve, name="lab-servers", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()

    def add(self, server: socket.socket, name: str, address: tuple[str, int]) -> None:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        if server.type == socket.SOCK_STREAM:
            server.listen(64)
        self._selector.register(server, selectors.EVENT_READ, name)
        self._wake.send(b"+")

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                ready = key.fileobj
                if ready is self._woken:
                    if not ready.recv(100):
                        return
                elif ready.type == socket.SOCK_STREAM:
                    client, peer = ready.accept()
                    with client, suppress(OSError):
                        client.settimeout(1)
                        client.recv(1)
                        client.send(f"{key.data} {peer[0]}".encode())
                else:
                    with suppress(OSError):
                        _, peer = ready.recvfrom(200)
                        ready.sendto(f"{key.data} {peer[0]}".encode(), peer)
