"""Ports of routed containers at ::1: one way back for all of them, and for nothing else."""

import socket

import pytest

from lab import Lab
from netalloc import NetworkManager, Networks, PortRequest
from netalloc.host import namespaces
from netalloc.host.loopback_way import ANSWERS, TABLE
from test_routed import STORE, WEB, routed, serve

pytestmark = pytest.mark.root
LOOPBACK = ("::1", 8080)


@pytest.fixture(params=["nftables", "iptables-nft"])
def lab(request):
    backend, _, variant = request.param.partition("-")
    with Lab(variant or None, ipv6=True, routed=True, containers=4) as lab:
        lab.backend = backend
        yield lab


@pytest.fixture
def manager(lab):
    with routed(lab) as manager:
        manager.allocate("web", ports=WEB).attach(netns="c0")
        serve(lab, lab.containers[0])
        yield manager


@pytest.mark.parametrize(
    "damage",
    [
        "ip link del netalloc-lo6",
        "ip link set netalloc-lo6p down",
        f"ip -6 route del {ANSWERS}",
        "ip -6 route del local ::1 dev netalloc-lo6p table local",
        f"nft delete table inet {TABLE}",
        f"nft flush chain inet {TABLE} answers",
    ],
)
def test_what_another_program_broke_is_mended(lab, manager, damage):
    assert lab.ask(lab.host, "udp", LOOPBACK) == ("c0", str(ANSWERS))
    lab.run("sh", "-c", damage)
    assert manager.reconcile()
    assert not manager.reconcile()
    for protocol in ("tcp", "udp"):
        assert lab.ask(lab.host, protocol, LOOPBACK) == ("c0", str(ANSWERS))


def test_two_networks_have_one_and_either_goes_alone(lab, manager):
    options = {"mode": "routed", "backend": lab.backend, "isolation": "open"}
    with Networks(STORE) as host:
        other = host.create("far", ("10.66.0.1/24", "fd00:66::1/64"), **options)
        far = other.allocate("far", ports=[PortRequest(80, "udp", 8081)])
        far.attach(netns="c1")
        lab.serve(lab.containers[1], "udp", 80)
        assert lab.ask(lab.host, "udp", ("::1", 8081)) == ("c1", str(ANSWERS))
        far.release()
        host.remove("far")
    assert lab.ask(lab.host, "udp", LOOPBACK) == ("c0", str(ANSWERS))
    assert "netalloc-lo6" in lab.run("ip", "link")


@pytest.mark.parametrize("isolation", ["open", "guarded"])
def test_nothing_but_an_answer_comes_by_it(lab, isolation):
    """What a container sends there by itself reaches neither ::1 nor any service of the host."""
    services = {"services": ["53/udp"]} if isolation == "guarded" else {}
    with routed(lab, isolation=isolation, **services) as manager:
        web = manager.allocate("web", ports=WEB)
        web.attach(netns="c0")
        serve(lab, lab.containers[0])
        assert lab.ask(lab.host, "udp", LOOPBACK)[0] == "c0"
        with (
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as secret,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as asker,
        ):
            secret.bind(("::", 7777))
            secret.settimeout(0.3)
            asker.bind(("::1", 0))
            asker.connect(LOOPBACK)
            asker.settimeout(5)
            asker.send(b"?")  # a flow there is
            assert asker.recv(100)
            asker.settimeout(0.3)
            port = asker.getsockname()[1]
            with namespaces.inside("c0"):
                hostile = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            with hostile:
                for to in (7777, port, 8080):  # from another port than the one that was asked
                    hostile.sendto(b"hostile", (str(ANSWERS), to))
                for victim in (secret, asker):
                    with pytest.raises(TimeoutError):
                        victim.recv(100)
        web.release()


def test_a_manager_of_ipv4_has_none(lab):
    with NetworkManager(
        None, name="four", network="10.44.0.1/24", mode="routed", backend=lab.backend, store=STORE
    ):
        assert "netalloc-lo6" not in lab.run("ip", "link")
