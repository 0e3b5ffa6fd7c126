"""A network of both families on a real bridge: published once, reached over both."""

import os
import socket

import pytest

from lab import Lab, Place
from netalloc import InUseError, InvalidValueError, NetworkManager, PortRequest
from netalloc.host import namespaces

pytestmark = pytest.mark.root

NETWORK = ("10.200.0.1/16", "fd00:c8::1/64")


@pytest.fixture(params=["nftables", "iptables-legacy", "iptables-nft"])
def backend(request):
    return request.param


@pytest.fixture
def lab(backend):
    variant = "legacy" if backend.endswith("legacy") else "nft"
    with Lab(variant, containers=0, ipv6=True, bridge_nf=0) as lab:
        yield lab


def manager_of(lab: Lab, backend: str, store="/run/host.db", **options) -> NetworkManager:
    options = {"network": NETWORK, "backend": backend.partition("-")[0], "store": store} | options
    return NetworkManager(lab.bridge, **options)


def container(lab: Lab, manager: NetworkManager, name: str, ports=()):
    """An interface that is attached to a namespace of its owner's name, and the place it is."""
    interface = manager.allocate(name, ports=ports)
    namespaces.create(name)
    interface.attach(name)
    place = Place(name, name, *map(str, interface.ips))
    lab.serve(place, "tcp", 80)
    lab.serve(place, "udp", 80)
    return interface, place


def test_one_number_in_both_families(lab, backend):
    with manager_of(lab, backend) as manager:
        web, _ = container(lab, manager, "web", [80, PortRequest(80, "udp")])
        _, other = container(lab, manager, "other")
        ports = {mapping.protocol: mapping.host_port for mapping in web.ports()}
        assert [mapping.version for mapping in web.ports()] == [4, 6, 4, 6]
        for protocol, port in ports.items():
            for address in (lab.address, lab.address6):
                assert lab.ask(lab.outside, protocol, (address, port))[0] == "web"
                assert lab.ask(lab.host, protocol, (address, port))[0] == "web"
                assert lab.ask(other, protocol, (address, port))[0] == "web"
            for address in ("127.0.0.1", "::1"):
                assert lab.ask(lab.host, protocol, (address, port))[0] == "web"
        assert manager.check() == []
        assert not manager.reconcile()
        web.release()
        for protocol, port in ports.items():
            for address in (lab.address, lab.address6):
                assert lab.reaches(lab.outside, protocol, (address, port)) is None
        assert manager.check() == []


def test_a_host_address_is_of_one_family(lab, backend):
    with manager_of(lab, backend) as manager:
        four, _ = container(
            lab, manager, "four", [PortRequest(80, host_port=80, host_ip="0.0.0.0")]
        )
        six, _ = container(lab, manager, "six", [PortRequest(80, host_port=80, host_ip="::")])
        assert [mapping.version for mapping in (*four.ports(), *six.ports())] == [4, 6]
        assert lab.ask(lab.outside, "tcp", (lab.address, 80))[0] == "four"
        assert lab.ask(lab.outside, "tcp", (lab.address6, 80))[0] == "six"
        one = PortRequest(80, host_port=81, host_ip=lab.second_address6)
        six.publish([one])
        assert lab.ask(lab.outside, "tcp", (lab.second_address6, 81))[0] == "six"
        assert lab.reaches(lab.outside, "tcp", (lab.address6, 81)) is None
        six.release_port(81, host_ip=lab.second_address6)
        assert lab.reaches(lab.outside, "tcp", (lab.second_address6, 81)) is None
        assert manager.check() == []


def test_a_family_that_the_network_has_not(lab, backend):
    with manager_of(lab, backend, network=NETWORK[1]) as manager:
        web, _ = container(lab, manager, "web", [80])
        (mapping,) = web.ports()
        assert mapping.version == 6
        assert lab.ask(lab.outside, "tcp", (lab.address6, mapping.host_port))[0] == "web"
        with pytest.raises(InvalidValueError, match=r"192\.0\.2\.1"):
            web.allocate_port(81, host_ip=lab.address)
        assert manager.check() == []


def test_the_next_process_has_both_and_the_next_owner_no_flow_of_the_last(lab, backend):
    with manager_of(lab, backend) as manager:
        web, _ = container(lab, manager, "web", [PortRequest(80, "udp", host_port=5300)])
        with lab.socket(lab.outside, "udp", lab.address6) as client:
            client.settimeout(5)
            client.connect((lab.address6, 5300))
            client.send(b"?")
            assert client.recv(100).startswith(b"web ")
            child = os.fork()
            if not child:
                status = 1
                try:
                    with NetworkManager.open(manager.name, "/run/host.db") as ours:
                        (held,) = ours.find("web")
                        assert held.addresses == web.addresses
                        held.release()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
            # The same addresses for another one, and the same port: nothing of the last one's.
            next_one, _ = container(lab, manager, "next", [PortRequest(80, "udp", host_port=5300)])
            client.send(b"?")
            assert client.recv(100).startswith(b"next ")
            next_one.release()
        assert manager.check() == []


def test_what_flushes_the_rules_is_mended_in_both(lab, backend):
    with manager_of(lab, backend) as manager:
        web, _ = container(lab, manager, "web", [80])
        port = web.ports()[0].host_port
        if backend == "nftables":
            lab.run("nft", "flush", "ruleset")
        else:
            for command in ("iptables", "ip6tables"):
                lab.run(command, "-t", "nat", "-F")
        assert lab.reaches(lab.outside, "tcp", (lab.address6, port)) is None
        assert manager.check() != []
        assert manager.reconcile()
        for address in (lab.address, lab.address6):
            assert lab.ask(lab.outside, "tcp", (address, port))[0] == "web"
        assert manager.check() == [] and not manager.reconcile()


def test_a_listener_of_the_host_in_either_family_is_in_the_way(lab, backend):
    with manager_of(lab, backend) as manager:
        web, _ = container(lab, manager, "web")
        with socket.create_server(("::", 8080), family=socket.AF_INET6):
            with pytest.raises(InUseError, match="8080"):
                web.allocate_port(80, host_port=8080)
            web.allocate_port(80, host_port=8080, host_ip="0.0.0.0")
        assert manager.check() == []
