"""What it costs to put a container on a network, beside what else does it.

    make bench-attach

Each side puts as many containers with an IPv4 and an IPv6 address into namespaces that are there
already, in turns with the others, on one private host that ends with this program. Those that
start processes pay for them, as their users do.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path
from statistics import mean
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from attach_lab import GATEWAYS, AttachLab
from netalloc import NetworkManager
from netalloc.host import namespaces
from tables import markdown

TURNS, BATCH = 5, 20
CNI = Path("/usr/lib/cni")
BRIDGE = "br0"
ROUTERS = ("169.254.1.1", "fe80::1")

Addresses = tuple[IPv4Interface, IPv6Interface]
Side = Callable[[Sequence[tuple[str, Addresses]]], None]


class Host:
    """A private host, and ways of putting containers on it."""

    def __init__(self, stack: ExitStack, mode: str) -> None:
        self.mode = mode
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(AttachLab(bridge=mode == "bridge"))
        self.manager = stack.enter_context(
            NetworkManager(
                BRIDGE if mode == "bridge" else None,
                network=("10.88.0.1/16", "fd00:88::1/64"),
                name="lab",
                mode=mode,
                isolation="open",
                backend="nftables",
                store=self._folder / "host.db",
            )
        )
        self._number = 0

    def sides(self) -> dict[str, Side]:
        """By name, those that this machine has."""
        plugin = "bridge" if self.mode == "bridge" else "ptp"
        found: dict[str, Side] = {
            "netalloc, `attach_many`": self._many,
            "netalloc, `attach` one by one": self._one_by_one,
        }
        try:
            import pyroute2  # noqa: F401
        except ImportError:
            print("pyroute2 is not installed: left out", file=sys.stderr)
        else:
            found["pyroute2"] = self._pyroute2
        found["`ip -batch`, two processes"] = self._ip_batch
        found["`ip`, a process for each step"] = self._ip
        if (CNI / plugin).exists():
            found["CNI `bridge`, `ptp` with host-local"] = self._cni(plugin)
        else:
            print(f"{CNI / plugin} is not installed: left out", file=sys.stderr)
        return found

    def places(self, count: int) -> list[tuple[str, Addresses]]:
        """New namespaces, with addresses that netalloc does not give meanwhile."""
        found = []
        for _ in range(count):
            name = f"c{self._number}"
            namespaces.create(name)
            namespaces_up(name)
            v4 = ip_interface((GATEWAYS[0] + 0x4000 + self._number, 16))
            v6 = ip_interface((GATEWAYS[1] + 0x4000 + self._number, 64))
            found.append((name, (v4, v6)))
            self._number += 1
        return found

    # ---- the sides

    def _many(self, places: Sequence[tuple[str, Addresses]]) -> None:
        many = self.manager.allocate_many(len(places))
        self.manager.attach_many([(one, name) for one, (name, _) in zip(many, places, strict=True)])

    def _one_by_one(self, places: Sequence[tuple[str, Addresses]]) -> None:
        for name, _ in places:
            self.manager.allocate().attach(name)

    def _pyroute2(self, places: Sequence[tuple[str, Addresses]]) -> None:
        from pyroute2 import IPRoute, NetNS

        with IPRoute() as host:
            for name, addresses in places:
                peer = {"ifname": "eth0", "net_ns_fd": name}
                host.link("add", ifname=f"p{name}", kind="veth", peer=peer)
                (index,) = host.link_lookup(ifname=f"p{name}")
                if self.mode == "bridge":
                    (bridge,) = host.link_lookup(ifname=BRIDGE)
                    host.link("set", index=index, master=bridge)
                host.link("set", index=index, state="up")
                with NetNS(name) as inside:
                    (eth0,) = inside.link_lookup(ifname="eth0")
                    inside.link("set", index=eth0, state="up")
                    for address, gateway, router in zip(addresses, GATEWAYS, ROUTERS, strict=True):
                        flags = {"flags": 2} if address.version == 6 else {}
                        family = 2 if address.version == 4 else 10
                        bits = address.network.prefixlen
                        via, more = str(gateway), {}
                        if self.mode != "bridge":
                            bits = address.max_prefixlen
                            via, more = router, {"flags": 4}  # ONLINK
                            inside.neigh(
                                "add", dst=router, lladdr=mac(host, index), ifindex=eth0, state=128
                            )
                            host.route("add", dst=f"{address.ip}/{bits}", oif=index, family=family)
                        inside.addr(
                            "add", index=eth0, address=str(address.ip), prefixlen=bits, **flags
                        )
                        inside.route("add", gateway=via, oif=eth0, family=family, **more)

    def _ip_batch(self, places: Sequence[tuple[str, Addresses]]) -> None:
        for name, addresses in places:
            outer, inner = self._steps(f"b{name}", name, addresses)
            run(["ip", "-batch", "-"], "\n".join(map(" ".join, outer)))
            run(["ip", "-n", name, "-batch", "-"], "\n".join(map(" ".join, inner)))

    def _ip(self, places: Sequence[tuple[str, Addresses]]) -> None:
        for name, addresses in places:
            outer, inner = self._steps(f"i{name}", name, addresses)
            for step in outer:
                run(["ip", *step])
            for step in inner:
                run(["ip", "-n", name, *step])

    def _steps(self, link: str, name: str, addresses: Addresses) -> tuple[list[list[str]], ...]:
        v4, v6 = addresses
        veth = f"link add {link} address 02:fe:fe:fe:fe:fe type veth peer name eth0 netns {name}"
        outer, inner = [veth], ["link set eth0 up"]
        if self.mode == "bridge":
            outer += [f"link set {link} master {BRIDGE} up"]
            inner += [f"addr add {v4} dev eth0", f"addr add {v6} dev eth0 nodad"]
            inner += [f"route add default via {gateway}" for gateway in GATEWAYS]
        else:
            outer += [f"link set {link} up"]
            outer += [f"route add {v4.ip}/32 dev {link}", f"route add {v6.ip}/128 dev {link}"]
            inner += [f"addr add {v4.ip}/32 dev eth0", f"addr add {v6.ip}/128 dev eth0 nodad"]
            inner += [f"neigh add {router} lladdr 02:fe:fe:fe:fe:fe dev eth0" for router in ROUTERS]
            inner += [f"route add default via {router} dev eth0 onlink" for router in ROUTERS]
        return [one.split() for one in outer], [one.split() for one in inner]

    def _cni(self, plugin: str) -> Side:
        ranges = [
            [{"subnet": "10.88.0.0/16", "rangeStart": "10.88.128.1", "gateway": "10.88.0.1"}],
            [{"subnet": "fd00:88::/64", "rangeStart": "fd00:88::8:1", "gateway": "fd00:88::1"}],
        ]
        conf = {
            "cniVersion": "1.0.0",
            "name": "lab",
            "type": plugin,
            "ipam": {
                "type": "host-local",
                "ranges": ranges,
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                "dataDir": str(self._folder / "cni"),
            },
        }
        if plugin == "bridge":
            conf["bridge"] = BRIDGE
        text = json.dumps(conf)

        def attach(places: Sequence[tuple[str, Addresses]]) -> None:
            for name, _ in places:
                run(
                    [str(CNI / plugin)],
                    text,
                    CNI_COMMAND="ADD",
                    CNI_CONTAINERID=name,
                    CNI_NETNS=str(namespaces.path(name)),
                    CNI_IFNAME="eth0",
                    CNI_PATH=str(CNI),
                )

        return attach


def namespaces_up(name: str) -> None:
    """Switch lo on, which not all sides do."""
    run(["ip", "-n", name, "link", "set", "lo", "up"])


def mac(host: object, index: int) -> str:
    """The MAC address of an interface."""
    (link,) = host.get_links(index)  # type: ignore[attr-defined]
    return str(dict(link["attrs"])["IFLA_ADDRESS"])


def run(command: Sequence[str], text: str = "", **environment: str) -> None:
    """A process that has to succeed."""
    done = subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")


def measured(mode: str) -> dict[str, float]:
    """Milliseconds a container, of each side: the mean of the quieter turns."""
    with ExitStack() as stack:
        host = Host(stack, mode)
        sides = host.sides()
        times: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(TURNS):
            for name in list(sides)[:: 1 if turn % 2 else -1]:
                places = host.places(BATCH)
                start = perf_counter()
                sides[name](places)
                times[name].append((perf_counter() - start) / BATCH * 1e3)
        host.manager.release_many(host.manager.interfaces())
        return {name: mean(sorted(all_of)[: TURNS // 2 + 1]) for name, all_of in times.items()}


def shown(milliseconds: float | None) -> str:
    """As a table has it."""
    if milliseconds is None:
        return ""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.2g} s"
    return f"{milliseconds:.2g} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="as the README has it")
    given = parser.parse_args()
    if os.geteuid():
        sys.exit("this needs root")
    found = {mode: measured(mode) for mode in ("bridge", "routed")}
    names = list(dict.fromkeys(name for one in found.values() for name in one))
    rows = [["a container, v4 and v6", "on a bridge", "routed"]]
    for name in names:
        cells = [shown(found[m].get(name)) for m in found]
        rows.append([name, *cells])
    if given.markdown:
        print(markdown(rows))
    else:
        for row in rows:
            print(f"{row[0]:40}{row[1]:>14}{row[2]:>14}")


if __name__ == "__main__":
    main()
