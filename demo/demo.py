"""Containers on a private bridge, each answering over HTTP through a published port.

Each has an address of IPv4 and one of IPv6, and its port is published over both.

All of it happens in network, mount and process namespaces that end with this program: the
machine's own network, firewall and /run are not touched. Without root it takes a user
namespace where the machine allows one.

    DEMO_BACKEND=iptables make demo     or nftables, or auto
    DEMO_CONTAINERS=40 make demo
"""

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import AF_INET6, create_server, if_nameindex

from private_host import enter_private_host, rules

from netalloc import NetallocError, NetworkInterface, NetworkManager
from netalloc.host import namespaces
from netalloc.host.links import Links
from netalloc.portmap.choice import choose

BRIDGE, NETWORK = "br0", ("10.88.0.1/16", "fd00:88::1/64")
# RFC 5737 and 3849: for documentation, routed nowhere.
HOST, OUTSIDE, PREFIXES = ("192.0.2.1", "2001:db8::1"), ("192.0.2.2", "2001:db8::2"), (24, 64)
NAMES = ("ada", "barbara", "edsger", "grace", "ken")
WIDTHS = (12, 12, 20, 39, 5)
ROW = "  {:<12} {:<12} {:<20} {:<39} {:>5}"


def build_host(links: Links) -> None:
    """The bridge, and a machine outside that reaches the host over a cable."""
    namespaces.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("32768 49152")  # the rest is for us
    for command in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", command).write_text("1")
    Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")  # nobody else is here
    links.set_up("lo")
    links.create_bridge(BRIDGE, *NETWORK)
    namespaces.create("outside")
    links.create_veth("uplink", "eth0", namespace="outside")
    with Links("outside") as outside:
        for host, other, prefix in zip(HOST, OUTSIDE, PREFIXES, strict=True):
            links.add_address("uplink", f"{host}/{prefix}")
            outside.add_address("eth0", f"{other}/{prefix}")
        outside.set_up("eth0")


@contextmanager
def container(name: str, interface: NetworkInterface) -> Iterator[None]:
    """A network namespace on the bridge with a web server in it, for as long as the block."""
    namespaces.create(name)
    try:
        interface.attach(name)
        page_server = Path(__file__).with_name("page_server.py")
        with namespaces.inside(name):
            listening = create_server(("", 80), family=AF_INET6, dualstack_ipv6=True)
        with listening:
            server = subprocess.Popen(
                [sys.executable, "-IS", page_server, str(listening.fileno()), name],
                pass_fds=[listening.fileno()],
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the servers
            )
        try:
            server.stdout.readline()  # it says when it is ready
            yield
        finally:
            server.terminate()
            server.communicate()
    finally:
        namespaces.delete(name)


def fetch(address: str, port: int) -> tuple[str, float]:
    """What the machine outside gets from that port of the host, and in how many ms."""
    begin = time.perf_counter()
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        with namespaces.inside("outside"):
            connection.connect()
        connection.request("GET", "/")
        response = connection.getresponse()
        answer = f"{response.status} {response.read().decode().strip()}"
    except OSError as error:
        answer = f"none: {error}"
    finally:
        connection.close()
    return answer, (time.perf_counter() - begin) * 1e3


def tally(addresses: int, before: int) -> str:
    """What is there now, in numbers that all have to be 0 in the end."""
    spaces = len(list(namespaces.DIRECTORY.iterdir())) - 1  # the machine outside
    pairs = len({name for _, name in if_nameindex()} - {"lo", BRIDGE, "uplink"})
    return (
        f"{addresses} addresses, {rules() - before} rules and map elements, "
        f"{spaces} namespaces, {pairs} links"
    )


def play(backend: str, count: int) -> bool:
    """The demo itself; whether every port answered over both families and nothing is left."""
    before = rules()
    nothing = tally(0, before)
    if backend == "auto":
        backend = choose("netalloc-demo")
    with (
        NetworkManager(BRIDGE, network=NETWORK, backend=backend) as manager,
        ExitStack() as stack,
    ):
        print(f"\n  A private host: bridge {BRIDGE} with {' and '.join(NETWORK)},")
        print(f"  {' and '.join(HOST)} to the outside, {count} containers,")
        print(f"  port mappings by {backend}\n")
        print(ROW.format("container", "address", "published as", "answer to the outside", "ms"))
        print(ROW.format(*(width * "-" for width in WIDTHS)))
        answered = 0
        for number in range(count):
            name = NAMES[number % len(NAMES)] + (str(number) if number >= len(NAMES) else "")
            interface = stack.enter_context(manager.allocate(owner=name))
            stack.enter_context(container(name, interface))
            answered += show(name, interface, interface.allocate_port(80))
        print(f"\n  {answered} of {count} answered over IPv4 and IPv6.")
        print(f"  In use:    {tally(held(manager), before)}")
        stack.close()
        still = held(manager)
    left = tally(still, before)
    print(f"  Released:  {left}\n")
    return answered == count and left == nothing


def show(name: str, interface: NetworkInterface, port: int) -> bool:
    """A row for each address of a container; whether it answered on both."""
    right = True
    for ip, host, outside in zip(interface.ips, HOST, OUTSIDE, strict=True):
        answer, took = fetch(host, port)
        right &= answer == f"200 I am {interface.owner}, you are {outside}"
        published = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        print(ROW.format(name, str(ip), published, answer, f"{took:.1f}"))
        name = ""
    return right


def held(manager: NetworkManager) -> int:
    """How many addresses are in use."""
    return sum(len(interface.ips) for interface in manager.interfaces())


def main() -> None:
    """Run it in a private host; exit status 1 when a port did not answer or something is left."""
    enter_private_host()
    backend = os.environ.get("DEMO_BACKEND", "auto")
    wanted = os.environ.get("DEMO_CONTAINERS", str(len(NAMES)))
    if not (wanted.isdecimal() and 1 <= int(wanted) <= 1023):
        sys.exit(f"demo: DEMO_CONTAINERS={wanted} is not 1 to 1023, the ports of a bridge")
    try:
        with Links() as links:
            build_host(links)
        whole = play(backend, int(wanted))
    except NetallocError as error:
        sys.exit(f"demo: {error}")
    sys.exit(not whole)


if __name__ == "__main__":
    main()
