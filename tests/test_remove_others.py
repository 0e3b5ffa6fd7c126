"""After a change of the backend nothing of the last one leads to its containers."""

import subprocess
import sys
from ipaddress import IPv4Network

import pytest

from lab import Lab
from netalloc.family import NetworkPair
from netalloc.host import sysctl
from netalloc.model import PortMapping
from netalloc.portmap.choice import make_backend, remove_others
from netalloc.portmap.iptables import commands, leavings
from netalloc.portmap.kernel import KernelMappings
from netalloc.portmap.link import Link

pytestmark = pytest.mark.root

BACKENDS = ("nftables", "iptables-legacy", "iptables-nft")


def kernel(backend, lab):
    kind, _, variant = backend.partition("-")
    if variant:
        lab.use(variant)
    network = NetworkPair(IPv4Network(lab.network))
    made = make_backend(kind, "netalloc-br0", Link(lab.bridge), network, shared=True)
    return KernelMappings(made, link=Link(lab.bridge), network=network, name="netalloc-br0")


@pytest.mark.parametrize("before", BACKENDS)
@pytest.mark.parametrize("after", [*BACKENDS, "null"])
def test_what_the_last_backend_left_goes(before, after):
    with Lab("nft") as lab:
        c0, c1 = lab.containers
        for place in (c0, c1):
            lab.serve(place, "udp", 80)
        left = kernel(before, lab)
        left.setup()
        left.apply([PortMapping(8080, (c0.ip, 80), "udp"), PortMapping(8081, (c0.ip, 80), "udp")])
        assert lab.ask(lab.outside, "udp", (lab.address, 8080))[0] == "c0"
        left.close()  # as after a crash
        lab.run("nft", "add", "table", "ip", "stranger")
        for variant in ("legacy", "nft"):
            lab.run(f"iptables-{variant}", "-t", "nat", "-N", "netalloc-br1")
        new = kernel(after, lab)
        where = Link(lab.bridge), NetworkPair(IPv4Network(lab.network))
        found = remove_others("netalloc-br0", new.name, *where)
        assert len(found) == (before != after), found
        assert remove_others("netalloc-br0", new.name, *where) == []
        new.setup()
        if before != after:
            assert new.present() == []
            assert lab.reaches(lab.outside, "udp", (lab.address, 8081)) is None
        new.reconcile([PortMapping(8080, (c1.ip, 80), "udp")])
        if new.is_real:
            assert lab.ask(lab.outside, "udp", (lab.address, 8080))[0] == "c1"
            assert lab.ask(lab.host, "udp", ("127.0.0.1", 8080))[0] == "c1"
        new.cleanup()
        new.close()
        lab.run("nft", "list", "table", "ip", "stranger")
        for variant in ("legacy", "nft"):
            rules = lab.run(f"iptables-{variant}-save")
            assert ":netalloc-br1" in rules and "netalloc-br0" not in rules
        assert sysctl.read("net", "ipv4", "conf", lab.bridge, "route_localnet") == "0"
        assert sysctl.read("net", "ipv4", "ip_forward") == "0"


def test_that_there_is_nothing_costs_no_process(nft_lab, monkeypatch):
    def refuse(*arguments):
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(commands, "run", refuse)
    for keep in ("nftables", "iptables", "null"):
        assert remove_others("netalloc-br0", keep, Link(nft_lab.bridge)) == []
    assert leavings.tables_of("legacy", "netalloc-br0") == {}


def test_missing_tools_are_no_error(nft_lab):
    """As on a host that never had iptables; nor is a missing privilege."""
    code = "from netalloc.portmap.choice import remove_others; print(remove_others('n', 'null'))"
    command = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    for prefix in ([], command):
        found = subprocess.run(
            [*prefix, sys.executable, "-c", f"import os; os.environ['PATH'] = ''; {code}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert found.stdout == "[]\n"
