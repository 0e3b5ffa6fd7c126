"""A container reaches its own published port where bridged frames pass iptables."""

import queue

import pytest

from lab import Lab
from netalloc.errors import InterfaceError
from netalloc.host import namespaces
from netalloc.host.bridge_ports import needs_hairpin, set_hairpin
from netalloc.host.links import Links, connect
from netalloc.portmap.mapper import PortMapper

pytestmark = pytest.mark.root


@pytest.mark.parametrize("backend", ["nftables", "iptables-nft", "iptables-legacy"])
def test_its_own_port(backend):
    kind, _, variant = backend.partition("-")
    with Lab(variant or "nft", bridge_nf=1, hairpin=False) as lab:
        c0 = lab.containers[0]
        with PortMapper(kind, bridge=lab.bridge, network=lab.network) as mapper:
            for protocol in ("tcp", "udp"):
                lab.serve(c0, protocol, 80)
                mapper.map(8080, (c0.ip, 80), protocol)
                assert lab.ask(c0, protocol, (lab.address, 8080))[0] == "c0"
            # One that joins later, at the next reconciliation ...
            late = join(lab, "late", "10.200.0.9")
            mapper.map(8081, (late.ip, 80), "udp")
            assert lab.reaches(late, "udp", (lab.address, 8081)) is None
            assert mapper.reconcile().structure == ("hairpin mode of vlate was off",)
            assert lab.ask(late, "udp", (lab.address, 8081))[0] == "late"
            if variant == "legacy":
                return
            found = queue.Queue()  # ... or at once where there is a watch
            with mapper.watch(found.put):
                later = join(lab, "later", "10.200.0.10")
                mapper.map(8082, (later.ip, 80), "udp")
                assert found.get(timeout=30).structure == ("hairpin mode of vlater was off",)
                assert lab.ask(later, "udp", (lab.address, 8082))[0] == "later"


def join(lab, name, ip):
    """A container that another program puts on the bridge."""
    place = type(lab.outside)(name, name, ip)
    namespaces.create(name)
    with Links() as links:
        connect(links, f"v{name}", namespace=name, bridge=lab.bridge, address=f"{ip}/16",
                gateway=lab.gateway)  # fmt: skip
    lab.serve(place, "udp", 80)
    return place


def test_where_it_is_not_needed_ports_are_left_alone():
    with Lab("nft", bridge_nf=0, hairpin=False) as lab:
        assert not needs_hairpin(lab.bridge)
        with PortMapper("nftables", bridge=lab.bridge, network=lab.network):
            assert "hairpin on" not in lab.run("bridge", "-d", "link")
        lab.run("ip", "link", "set", lab.bridge, "type", "bridge", "nf_call_iptables", "1")
        assert needs_hairpin(lab.bridge)
        assert set_hairpin(lab.bridge) == ["veth0", "veth1"]
        assert set_hairpin(lab.bridge) == []
        assert lab.run("bridge", "-d", "link").count("hairpin on") == 2
        with pytest.raises(InterfaceError, match="no such interface: nope"):
            set_hairpin("nope")
