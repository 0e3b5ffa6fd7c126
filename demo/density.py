"""10,000 live containers on one host: routed, of both families, each with a published port.

    make demo-density
    ARGS="-n 1000" make demo-density

A container is a network namespace with a socket in it; one small process answers for all of
them. All of it is on a private host that ends with this program.
"""

import argparse
import os
import random
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter, sleep

from private_host import enter_private_host, rules
from progress import progress

from netalloc import NetallocError, NetworkInterface, NetworkManager, Networks
from netalloc.host import namespaces, rtnetlink
from netalloc.host.links import Links
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkSocket

NETWORK = ("10.88.0.1/16", "fd00:88::1/64")
# RFC 5737 and 3849: for documentation, routed nowhere.
HOST, OUTSIDE = ("192.0.2.1", "2001:db8::1"), ("192.0.2.2", "2001:db8::2")
PREFIXES = (24, 64)
STORE = "/run/density.db"
OWNER = "density"
MOST = 16_000  # of the ports from 49153 up
BATCH = 250
ASKED = 1_000
PATIENCE = 10.0  # seconds
HOST_LINKS = {"lo", "uplink"}


def build_host() -> None:
    """Forwarding, and a machine outside that reaches the host over a cable."""
    namespaces.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    for setting, value in (
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv4/ip_local_port_range", "32768 49152"),  # the rest is for us
    ):
        Path("/proc/sys/net", setting).write_text(value)
    namespaces.create("outside")
    with Links() as links:
        links.set_up("lo")
        links.create_veth("uplink", "eth0", namespace="outside")
        with Links("outside") as outside:
            for host, other, prefix in zip(HOST, OUTSIDE, PREFIXES, strict=True):
                links.add_address("uplink", f"{host}/{prefix}")
                outside.add_address("eth0", f"{other}/{prefix}")
            outside.set_up("eth0")
            for host in HOST:
                outside.add_route(host)


class Containers:
    """Namespaces, each kept by a listening socket in it: one descriptor, and no name."""

    def __init__(self) -> None:
        self.servers: list[socket.socket] = []

    def make(self, count: int) -> list[int]:
        """So many more; descriptors of them, for the caller to close."""
        spaces: list[int] = []
        thread = threading.Thread(target=self._make, args=(count, spaces))
        thread.start()
        thread.join()
        return spaces

    def _make(self, count: int, spaces: list[int]) -> None:
        for _ in range(count):  # a thread of its own: it dies in the last of them
            namespaces.unshare(namespaces.CLONE_NEWNET)
            spaces.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            self.servers.append(
                socket.create_server(("", 80), family=socket.AF_INET6, dualstack_ipv6=True)
            )

    def close(self) -> None:
        """The kernel takes the namespaces down."""
        for server in self.servers:
            server.close()
        self.servers = []


def answer_all(servers: Sequence[socket.socket]) -> None:
    """Serve a page on each socket, for ever: it says which container it is."""
    poll = select.epoll()
    numbers = {server.fileno(): number for number, server in enumerate(servers)}
    for fd in numbers:
        poll.register(fd, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            client, _ = servers[numbers[fd]].accept()
            with client, suppress(OSError):
                client.settimeout(PATIENCE)
                client.recv(1000)
                page = f"I am container {numbers[fd]}\n"
                head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(page)}\r\n\r\n"
                client.sendall((head + page).encode())


def read_page(address: str, port: int) -> tuple[str, float]:
    """The page there, and the seconds it took."""
    start = perf_counter()
    try:
        with socket.create_connection((address, port), PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(1000), b""))
    except OSError as error:
        return str(error), perf_counter() - start
    return answer.decode().rpartition("\r\n\r\n")[2].strip(), perf_counter() - start


def ask_some(chosen: Sequence[tuple[int, int]], address: str) -> tuple[int, float]:
    """How many of (container, port) answer to the machine outside; the median time."""
    found: list[tuple[bool, float]] = []
    with namespaces.inside("outside"):
        for number, port in chosen:
            page, took = read_page(address, port)
            found.append((page == f"I am container {number}", took))
    return sum(good for good, _ in found), median([took for _, took in found])


def used_memory() -> int:
    """KiB of the machine that are not available."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)
    }
    return found["MemTotal"] - found["MemAvailable"]


def listening_ports() -> set[int]:
    """The host ports that some program listens on."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/thread-self/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def timed(what: str, count: int, work: Callable[[], object]) -> float:
    """Do it, and say how long it took."""
    start = monotonic()
    work()
    took = monotonic() - start
    said(what, took, count)
    return took


def said(what: str, took: float, count: int) -> None:
    print(
        f"  {what:<38} {took:>7.1f} s {count / took:>9,.0f} / s {took / count * 1e3:>7.2f} ms each"
    )


class Density:
    """The demo's own state: who is there, and what each step took."""

    def __init__(self, manager: NetworkManager, count: int) -> None:
        self.manager = manager
        self.count = count
        self.containers = Containers()
        self.interfaces: list[NetworkInterface] = []

    def start(self) -> None:
        """All of them: namespace, addresses, port, interface."""
        took = [0.0, 0.0, 0.0]
        before = used_memory()
        sizes = [range(at, min(at + BATCH, self.count)) for at in range(0, self.count, BATCH)]
        for part in progress("containers", sizes):
            marks = [monotonic()]
            spaces = self.containers.make(len(part))
            marks.append(monotonic())
            many = self.manager.allocate_many(len(part), ports=(80,), owner=OWNER)
            marks.append(monotonic())
            self.manager.attach_many(list(zip(many, spaces, strict=True)))
            marks.append(monotonic())
            for space in spaces:
                os.close(space)
            steps = [end - begin for begin, end in pairwise(marks)]
            took = [done + step for done, step in zip(took, steps, strict=True)]
            self.interfaces += many
        said("namespaces, with a socket in each", took[0], self.count)
        said("two addresses and a port, v4 and v6", took[1], self.count)
        said("attached", took[2], self.count)
        said("in all", sum(took), self.count)
        each = (used_memory() - before) / self.count
        print(f"  memory of the machine                  {each:>7.0f} KiB each")

    def ask(self) -> bool:
        """Pages of a random thousand over each family; whether all were right."""
        numbers = random.sample(range(self.count), min(ASKED, self.count))
        chosen = [(n, self.interfaces[n].ports()[0].host_port) for n in numbers]
        child = os.fork()
        if not child:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            answer_all(self.containers.servers)
        whole = True
        try:
            for family, address in zip(("IPv4", "IPv6"), HOST, strict=True):
                good, took = ask_some(chosen, address)
                print(
                    f"  pages read over {family} from outside     {good:,} of {len(chosen):,}, "
                    f"half of them within {took * 1e3:.2f} ms"
                )
                whole &= good == len(chosen)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        published = {mapping.host_port for one in self.interfaces[:100] for mapping in one.ports()}
        held = len(listening_ports() & published)
        print(f"  processes that listen on host ports    {held or 'none':>7}")
        return whole and not held

    def stop(self) -> None:
        """Leases, ports, interfaces, then the namespaces, which the kernel ends behind us."""
        self.manager.release(OWNER)
        self.containers.close()
        deadline = monotonic() + PATIENCE * 6
        while live_namespaces() > 1 and monotonic() < deadline:  # the machine outside stays
            sleep(0.05)


def live_namespaces() -> int:
    """How many network namespaces there are that the host has ever had a link into."""
    netlink = NetlinkSocket(NETLINK_ROUTE)
    try:
        return len(netlink.dump(rtnetlink.GET_NAMESPACE, bytes(4))[0])
    finally:
        netlink.close()


def left(networks: Networks) -> str:
    """What is there still, in numbers that have to be 0."""
    links = [name for _, name in socket.if_nameindex() if name not in HOST_LINKS]
    return (
        f"{len(networks)} networks, {len(links)} links, {live_namespaces() - 1} namespaces, "
        f"{rules()} rules and map elements"
    )


def play(count: int, isolation: str) -> bool:
    """The demo itself; whether every port answered and nothing is left."""
    with Networks(STORE) as networks:
        nothing = left(networks)
        manager = networks.create(
            "pods", NETWORK, mode="routed", isolation=isolation, backend="nftables"
        )
        print(f"\n  {count:,} containers in routed mode, {isolation}, {' and '.join(NETWORK)}\n")
        density = Density(manager, count)
        density.start()
        whole = density.ask()
        wrong = manager.check()
        print(f"  differences between store and kernel   {len(wrong) or 'none':>7}")
        timed("gone again", count, density.stop)
        networks.remove("pods")
        print(f"\n  Left:  {left(networks)}\n")
        return whole and not wrong and left(networks) == nothing


def as_count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MOST):
        raise argparse.ArgumentTypeError(f"{text} is not 1 to {MOST:,}, the ports there are")
    return int(text)


def main() -> None:
    """Run it in a private host; exit status 1 when a port did not answer or something is left."""
    parser = argparse.ArgumentParser(description="Many live containers on one host.")
    parser.add_argument("-n", type=as_count, default=10_000, metavar="CONTAINERS")
    parser.add_argument("--isolation", choices=("open", "guarded"), default="guarded")
    arguments = parser.parse_args()
    enter_private_host()
    wanted = arguments.n + 4 * BATCH + 100  # a socket each, and what is open while attaching
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(most, wanted)))
    except (ValueError, OSError):
        sys.exit(f"demo: {arguments.n} containers need {wanted} open files, and {most} are allowed")
    try:
        build_host()
        whole = play(arguments.n, arguments.isolation)
    except NetallocError as error:
        sys.exit(f"demo: {error}")
    sys.exit(not whole)


if __name__ == "__main__":
    main()
