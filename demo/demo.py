"""Containers on a private bridge, each answering over HTTP through a published port.

All of it happens in network, mount and process namespaces that end with this program: the
machine's own network, firewall and /run are not touched. Without root it takes a user
namespace where the machine allows one.

    DEMO_BACKEND=iptables make demo     or nftables, or auto
    DEMO_CONTAINERS=40 make demo
"""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import create_server, if_nameindex

from netalloc import NetallocError, NetworkInterface, NetworkManager
from netalloc.host import namespaces
from netalloc.host.command import run
from netalloc.host.links import Links, connect
from netalloc.portmap.choice import choose

BRIDGE, NETWORK = "br0", "10.88.0.1/16"
HOST, OUTSIDE = "192.0.2.1", "192.0.2.2"  # RFC 5737: for documentation, routed nowhere
NAMES = ("ada", "barbara", "edsger", "grace", "ken")
INSIDE = "NETALLOC_DEMO_INSIDE"
WIDTHS = (12, 12, 17, 36, 5)
ROW = "  {:<12} {:<12} {:<17} {:<36} {:>5}"


def enter_private_host() -> None:
    """Start again as the first program of a host of its own; does not return."""
    unshare = shutil.which("unshare", path=os.environ.get("PATH", "") + ":/usr/bin:/bin")
    if unshare is None:
        sys.exit("demo: unshare is not on PATH: install Debian's util-linux")
    command = [unshare, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        command.append("--map-root-user")
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        sys.exit(
            "demo: network namespaces are refused here: run `sudo make demo`, or allow user\n"
            "namespaces to users without root: sudo sysctl kernel.unprivileged_userns_clone=1"
        )
    os.environ[INSIDE] = "yes"
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # Debian gives users no sbin, where iptables is
    os.execv(unshare, [*command, sys.executable, *sys.argv])


def build_host(links: Links) -> None:
    """The bridge, and a machine outside that reaches the host over a cable."""
    namespaces.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("32768 49152")  # the rest is for us
    links.set_up("lo")
    links.create_bridge(BRIDGE, NETWORK)
    namespaces.create("outside")
    links.create_veth("uplink", "eth0", namespace="outside")
    links.add_address("uplink", f"{HOST}/24")
    with Links("outside") as outside:
        outside.add_address("eth0", f"{OUTSIDE}/24")
        outside.set_up("eth0")


@contextmanager
def container(name: str, number: int, interface: NetworkInterface, links: Links) -> Iterator[None]:
    """A network namespace on the bridge with a web server in it, for as long as the block."""
    namespaces.create(name)
    try:
        connect(
            links,
            f"veth{number}",
            namespace=name,
            bridge=BRIDGE,
            address=interface.address,
            gateway=interface.gateway,
        )
        page_server = Path(__file__).with_name("page_server.py")
        with namespaces.inside(name), create_server((str(interface.address.ip), 80)) as socket:
            server = subprocess.Popen(
                [sys.executable, "-IS", page_server, str(socket.fileno()), name],
                pass_fds=[socket.fileno()],
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the servers
            )
        try:
            server.stdout.readline()  # it says when it is ready
            yield
        finally:
            server.terminate()
            server.communicate()
            links.delete(f"veth{number}")
    finally:
        namespaces.delete(name)


def fetch(port: int) -> tuple[str, float]:
    """What the machine outside gets from that port of the host, and in how many ms."""
    begin = time.perf_counter()
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
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


def rules() -> int:
    """How many rules and map elements the kernel holds, of all programs."""
    count = 0
    for item in json.loads(run(["nft", "--json", "list", "ruleset"]))["nftables"]:
        count += ("rule" in item) + len(item.get("map", {}).get("elem", ()))
    # Without it the kernel has no legacy iptables; in a user namespace no one may have rules there.
    legacy = os.access("/proc/net/ip_tables_names", os.R_OK)
    if legacy and shutil.which("iptables-legacy-save"):
        saved = run(["iptables-legacy-save"])
        count += sum(line.startswith("-A") for line in saved.splitlines())
    return count


def tally(addresses: int, before: int) -> str:
    """What is there now, in numbers that all have to be 0 in the end."""
    spaces = len(list(namespaces.DIRECTORY.iterdir())) - 1  # the machine outside
    pairs = sum(name.startswith("veth") for _, name in if_nameindex())
    return (
        f"{addresses} addresses, {rules() - before} rules and map elements, "
        f"{spaces} namespaces, {pairs} links"
    )


def play(links: Links, backend: str, count: int) -> bool:
    """The demo itself; whether every port answered and nothing is left."""
    before = rules()
    nothing = tally(0, before)
    if backend == "auto":
        backend = choose("netalloc-demo")
    with NetworkManager(BRIDGE, backend=backend) as manager, ExitStack() as stack:
        print(f"\n  A private host: bridge {BRIDGE} {NETWORK}, {HOST} to the outside,")
        print(f"  {count} containers, port mappings by {backend}\n")
        print(ROW.format("container", "address", "published as", f"answer to {OUTSIDE}", "ms"))
        print(ROW.format(*(width * "-" for width in WIDTHS)))
        answered = 0
        for number in range(count):
            name = NAMES[number % len(NAMES)] + (str(number) if number >= len(NAMES) else "")
            interface = stack.enter_context(manager.allocate(owner=name))
            stack.enter_context(container(name, number, interface, links))
            port = interface.allocate_port(80)
            answer, took = fetch(port)
            answered += answer == f"200 I am {name}, you are {OUTSIDE}"
            published = f"{HOST}:{port}"
            print(ROW.format(name, str(interface.address.ip), published, answer, f"{took:.1f}"))
        print(f"\n  {answered} of {count} answered.")
        print(f"  In use:    {tally(len(manager.interfaces()), before)}")
        stack.close()
        held = len(manager.interfaces())
    left = tally(held, before)
    print(f"  Released:  {left}\n")
    return answered == count and left == nothing


def stop(*_: object) -> None:
    """Leave at once: with its first process the private host goes, and all that is on it."""
    os.write(2, b"\ndemo: stopped, and the private host is gone with all that was on it\n")
    os._exit(1)


def main() -> None:
    """Run it in a private host; exit status 1 when a port did not answer or something is left."""
    if INSIDE not in os.environ:
        enter_private_host()
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)  # the first process of a namespace has no default for it
    backend = os.environ.get("DEMO_BACKEND", "auto")
    wanted = os.environ.get("DEMO_CONTAINERS", str(len(NAMES)))
    if not (wanted.isdecimal() and 1 <= int(wanted) <= 1023):
        sys.exit(f"demo: DEMO_CONTAINERS={wanted} is not 1 to 1023, the ports of a bridge")
    try:
        with Links() as links:
            build_host(links)
            whole = play(links, backend, int(wanted))
    except NetallocError as error:
        sys.exit(f"demo: {error}")
    sys.exit(not whole)


if __name__ == "__main__":
    main()
