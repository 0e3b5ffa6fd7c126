"""Every path to a published port carries real traffic, and no other path is opened."""

import threading

import pytest

from lab import Lab
from netalloc.host import namespaces, sysctl
from netalloc.portmap.mapper import PortMapper

pytestmark = pytest.mark.root

PROTOCOLS = ("tcp", "udp")


@pytest.fixture(params=["iptables-legacy", "iptables-nft", "nftables"])
def backend(request):
    return request.param


def start(backend: str, bridge_nf: int | None = None) -> Lab:
    """A lab for a backend; the nftables one runs beside the nft iptables."""
    return Lab("legacy" if backend.endswith("legacy") else "nft", bridge_nf=bridge_nf)


def mapper_for(backend: str, lab: Lab, **options) -> PortMapper:
    return PortMapper(backend.partition("-")[0], bridge=lab.bridge, network=lab.network, **options)


@pytest.mark.parametrize("bridge_nf", [0, 1])
def test_all_paths(backend, bridge_nf):
    with start(backend, bridge_nf) as lab, mapper_for(backend, lab) as mapper:
        c0, c1 = lab.containers
        for protocol in PROTOCOLS:
            lab.serve(c0, protocol, 80)
            mapper.map(8080, (c0.ip, 80), protocol)
        for protocol in PROTOCOLS:
            # a. outside -> host, through either address; the container sees the client
            assert lab.ask(lab.outside, protocol, (lab.address, 8080)) == ("c0", lab.outside.ip)
            assert lab.ask(lab.outside, protocol, (lab.second_address, 8080))[0] == "c0"
            # b. host -> its own address
            assert lab.ask(lab.host, protocol, (lab.address, 8080))[0] == "c0"
            assert lab.ask(lab.host, protocol, (lab.gateway, 8080))[0] == "c0"
            # c. host -> 127.0.0.1
            assert lab.ask(lab.host, protocol, ("127.0.0.1", 8080)) == ("c0", lab.gateway)
            # d. container -> itself, e. container -> sibling
            for container in (c0, c1):
                for address in (lab.address, lab.gateway):
                    assert lab.ask(container, protocol, (address, 8080)) == ("c0", lab.gateway)
        for protocol in PROTOCOLS:
            mapper.unmap(8080, protocol)
            for place in (lab.outside, lab.host, c0, c1):
                assert lab.reaches(place, protocol, (lab.address, 8080)) is None


def test_outside_servers_are_not_hijacked(backend):
    with start(backend) as lab, mapper_for(backend, lab) as mapper:
        for protocol in PROTOCOLS:
            lab.serve(lab.containers[0], protocol, 80)
            lab.serve(lab.outside, protocol, 8080)
            mapper.map(8080, (lab.containers[0].ip, 80), protocol)
            for place in (*lab.containers, lab.host):
                # ... and the containers' way out is masqueraded.
                assert lab.ask(place, protocol, (lab.outside.ip, 8080)) == (
                    "outside",
                    lab.address,
                )


def test_containers_cannot_reach_the_hosts_loopback(backend):
    with start(backend) as lab, mapper_for(backend, lab) as mapper:
        thief = lab.containers[0]
        lab.run("ip", "-n", "c0", "route", "add", "127.0.0.0/8", "via", lab.gateway, "dev", "eth0",
                "table", "100")  # fmt: skip
        lab.run("ip", "-n", "c0", "rule", "add", "pref", "0", "to", "127.0.0.0/8", "table", "100")
        lab.run("ip", "-n", "c0", "rule", "add", "pref", "1", "table", "local")
        lab.run("ip", "-n", "c0", "rule", "del", "pref", "0", "table", "local")
        with namespaces.inside("c0"):
            sysctl.write("1", "net", "ipv4", "conf", "all", "route_localnet")
        for protocol in PROTOCOLS:
            lab.serve(lab.host, protocol, 9999, "127.0.0.1")
            mapper.map(8080, (thief.ip, 80), protocol)
            assert lab.ask(lab.host, protocol, ("127.0.0.1", 9999))[0] == "host"
            assert lab.reaches(thief, protocol, ("127.0.0.1", 9999)) is None
        # The attack is a real one: it succeeds as soon as both guards are gone.
        guards = {
            "iptables-legacy": ("iptables", "-t", "raw", "-F", "netalloc"),
            "iptables-nft": ("iptables", "-t", "raw", "-F", "netalloc"),
            "nftables": ("nft", "flush", "chain", "inet", "netalloc", "guard"),
        }
        lab.run(*guards[backend])
        assert lab.reaches(thief, "udp", ("127.0.0.1", 9999)) is None
        lab.run("tc", "qdisc", "del", "dev", lab.bridge, "clsact")
        assert lab.ask(thief, "udp", ("127.0.0.1", 9999))[0] == "host"
        assert mapper.reconcile()
        assert lab.reaches(thief, "udp", ("127.0.0.1", 9999)) is None


def test_specific_addresses_and_blocks(backend):
    with start(backend) as lab, mapper_for(backend, lab) as mapper:
        c0, c1 = lab.containers
        for protocol in PROTOCOLS:
            lab.serve(c0, protocol, 80)
            lab.serve(c1, protocol, 80)
            mapper.map(8080, (c0.ip, 80), protocol, lab.address)
            mapper.map(8080, (c1.ip, 80), protocol, lab.second_address)
            mapper.map(8080, (c1.ip, 80), protocol, "127.0.0.1")
            assert lab.ask(lab.outside, protocol, (lab.address, 8080))[0] == "c0"
            assert lab.ask(lab.outside, protocol, (lab.second_address, 8080))[0] == "c1"
            assert lab.ask(lab.host, protocol, ("127.0.0.1", 8080))[0] == "c1"
            assert lab.reaches(lab.host, protocol, (lab.gateway, 8080)) is None
            # A block keeps its ports, within a leaf and across groups.
            for first, count in ((7000, 5), (10000, 3000)):
                mapper.map(first, (c1.ip, first), protocol, count=count)
                for port in (first, first + count - 1):
                    lab.serve(c1, protocol, port)
                    assert lab.ask(lab.outside, protocol, (lab.address, port))[0] == "c1"
                for port in (first - 1, first + count):
                    lab.serve(c1, protocol, port)
                    assert lab.reaches(lab.outside, protocol, (lab.address, port)) is None


def test_sctp(backend):
    with start(backend) as lab, mapper_for(backend, lab) as mapper:
        c0 = lab.containers[0]
        mapper.map(8080, (c0.ip, 80), "sctp")
        assert mapper.backend.mappings() == mapper.mappings
        try:
            lab.serve(c0, "sctp", 80)
        except OSError:
            return  # this kernel has no sctp sockets; the rule is all there is to see
        assert lab.ask(lab.outside, "sctp", (lab.address, 8080))[0] == "c0"


def test_every_mapping_of_many_leads_to_its_own_container(backend):
    with start(backend) as lab, mapper_for(backend, lab) as mapper:
        for place in lab.containers:
            lab.serve(place, "udp", 80)
        ports = [1, 63, 64, 65, 1023, 1024, 8191, 8192, 49152, 65534, 65535]
        for turn, port in enumerate(ports):
            mapper.map(port, (lab.containers[turn % 2].ip, 80), "udp")
        for turn, port in enumerate(ports):
            assert lab.ask(lab.outside, "udp", (lab.address, port))[0] == f"c{turn % 2}"


def test_threads_share_a_mapper(backend):
    with start(backend) as lab, mapper_for(backend, lab) as mapper:
        c0 = lab.containers[0]
        lab.serve(c0, "tcp", 80)

        def work(first):
            for port in range(first, first + 4):
                mapper.map(port, (c0.ip, 80))
            mapper.unmap(first)

        threads = [threading.Thread(target=work, args=(5000 + 10 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wanted = {5000 + 10 * i + j for i in range(4) for j in (1, 2, 3)}
        assert {mapping.host_port for mapping in mapper.mappings} == wanted
        assert not mapper.reconcile()
        assert lab.ask(lab.outside, "tcp", (lab.address, 5033))[0] == "c0"
