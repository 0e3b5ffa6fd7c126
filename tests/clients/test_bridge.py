"""The IPAM plugin under Debian's `bridge` and `ptp`, beside host-local, with real traffic."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import IPAM, Plugin
from lab import Lab, Place
from netalloc import NetworkView
from netalloc.host import namespaces

pytestmark = pytest.mark.root
DEBIAN = Path("/usr/lib/cni")
STATE = Path("/run/cni-state")


@pytest.fixture
def host() -> Iterator[Lab]:
    with Lab("nft", containers=0, ipv6=True) as lab:
        STATE.mkdir()
        install = [sys.executable, "-m", "netalloc.cni", "install", "/run/cni-bin"]
        subprocess.run(install, check=True, capture_output=True)
        yield lab


def bridge(**more: Any) -> Plugin:
    """Debian's bridge plugin with our addresses, of both families."""
    return main_plugin("bridge", bridge="cni0", isGateway=True, **more)


def main_plugin(kind: str, **more: Any) -> Plugin:
    config = {
        "cniVersion": "1.0.0",
        "name": "net",
        "type": kind,
        "ipMasq": False,
        "ipam": {
            "type": "netalloc-ipam",
            "dataDir": str(STATE),
            "ranges": [[{"subnet": "10.61.0.0/16"}], [{"subnet": "fd00:61::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
        **more,
    }
    environment = {"CNI_PATH": f"{DEBIAN}:/run/cni-bin"}
    return Plugin(config, [str(DEBIAN / kind)], environment)


def call(plugin: Plugin, command: str, name: str, **more: Any) -> tuple[int, Any]:
    path = f"{DEBIAN}:/run/cni-bin"
    return plugin(command, name, CNI_NETNS=f"/run/netns/{name}", CNI_PATH=path, **more)


def held() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with NetworkView(STATE / "netalloc.db") as view:
        for one in view.find():
            found.setdefault(str(one.owner), []).append(str(one.ip))
    return found


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_a_container_answers_and_goes(host: Lab, kind: str) -> None:
    plugin = bridge() if kind == "bridge" else main_plugin("ptp")
    namespaces.create("shop")
    status, result = call(plugin, "ADD", "shop")
    assert status == 0, result
    ip = result["ips"][0]["address"].partition("/")[0]
    assert ip == "10.61.0.2"
    host.serve(Place("shop", "shop", ip), "tcp", 80)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    host.run("ip", "-n", "outside", "route", "replace", "10.61.0.0/16", "via", host.address)
    assert host.ask(host.outside, "tcp", (ip, 80))[0] == "shop"
    status, told = call(plugin, "CHECK", "shop", prevResult=result)
    assert (status, told) == (0, None)
    assert call(plugin, "DEL", "shop", prevResult=result) == (0, None)
    assert held() == {}


def test_two_hundred_in_parallel_killed_at_random_and_collected(host: Lab) -> None:
    plugin, chance = bridge(), random.Random(3)
    names = [f"c{number}" for number in range(200)]
    for name in names:
        namespaces.create(name)
    doomed = set(chance.sample(names, 60))

    def add(name: str) -> Any:
        if name not in doomed:
            status, result = call(plugin, "ADD", name)
            assert status == 0, result
            return result
        variables = {
            "CNI_COMMAND": "ADD", "CNI_CONTAINERID": name, "CNI_IFNAME": "eth0",
            "CNI_NETNS": f"/run/netns/{name}", "CNI_PATH": f"{DEBIAN}:/run/cni-bin",
        }  # fmt: skip
        with subprocess.Popen(
            plugin.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **variables},
        ) as process:  # fmt: skip
            assert process.stdin is not None
            process.stdin.write(json.dumps(plugin.config).encode())
            process.stdin.close()
            try:
                process.wait(random.Random(name).random() * 0.25)
            except subprocess.TimeoutExpired:
                process.kill()
        return None

    with ThreadPoolExecutor(16) as pool:
        results = dict(zip(names, pool.map(add, names), strict=True))
    given = {n: r["ips"] for n, r in results.items() if r is not None}
    everything = [ip["address"] for ips in given.values() for ip in ips]
    assert len(everything) == 2 * len(given)
    assert len(set(everything)) == len(everything), "no address twice"
    kept = held()
    for name, ips in given.items():
        assert {ip["address"].partition("/")[0] for ip in ips} == set(kept[name]), "nothing lost"
    valid = [{"containerID": name, "ifname": "eth0"} for name in given]
    ours = Plugin({**plugin.config, "cniVersion": "1.1.0"}, IPAM)
    ours.well("GC", **{"cni__dev/valid-attachments": valid})
    assert set(held()) == set(given)
    with ThreadPoolExecutor(16) as pool:
        for status, told in pool.map(lambda name: call(plugin, "DEL", name), names):
            assert status == 0, told
    assert held() == {}


@pytest.mark.parametrize("version", ["0.2.0", "0.3.1", "0.4.0", "1.0.0"])
@pytest.mark.parametrize(
    "ipam",
    [
        {"ranges": [[{"subnet": "10.1.2.0/24"}]]},
        {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.50", "rangeEnd": "10.1.2.52"},
        {"ranges": [[{"subnet": "10.1.2.0/29", "gateway": "10.1.2.6"}], [{"subnet": "fd00::/64"}]]},
        {"ranges": [[{"subnet": "10.1.2.0/30"}, {"subnet": "10.1.3.0/30"}]],
         "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.2.9"}]},
        {"ranges": [[{"subnet": "fd00::/48", "rangeStart": "fd00::10"}]]},
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else value,
)  # fmt: skip
def test_it_answers_as_host_local_does(host: Lab, version: str, ipam: dict[str, Any]) -> None:
    def plugin(kind: str, command: list[str]) -> Plugin:
        section = {"type": kind, "dataDir": str(STATE / kind), **ipam}
        return Plugin({"cniVersion": version, "name": "net", "ipam": section}, command)

    theirs = plugin("host-local", [str(DEBIAN / "host-local")])
    ours = plugin("netalloc-ipam", IPAM)
    for number in range(6):
        expected, found = theirs("ADD", f"c{number}"), ours("ADD", f"c{number}")
        assert (found[0] == 0) == (expected[0] == 0), (expected, found)
        if expected[0] == 0:
            assert found == expected
    again = ours("ADD", "c0"), theirs("ADD", "c0")
    assert [status != 0 for status, _ in again] == [True, True]
    for name in ("c0", "nothing"):
        assert ours("DEL", name) == theirs("DEL", name) == (0, None)
