"""Published ports beside the host's own: sockets, addresses, other networks of the store."""

import logging
import os
import socket
from ipaddress import IPv4Interface

import pytest

from netalloc import (
    InUseError,
    NetworkManager,
    PortRequest,
    interface_address,
)

RANGES = [
    (range(8000, 8010), range(8009, 7999, -1)),
    (range(8000, 8010), range(8000, 8010, 2)),
    (range(8009, 7999, -3), range(8000, 8010, 2)),
]


@pytest.mark.parametrize("ranges", RANGES, ids=str)
@pytest.mark.parametrize("host_ip", [None, "192.0.2.1"])
def test_networks_with_ranges_of_every_kind_share_the_ports_of_a_host(tmp_path, ranges, host_ip):
    """A port is a port, whatever the order and the step in which it is picked."""
    managers = [
        NetworkManager(
            f"br{i}",
            network=f"10.{88 + i}.0.1/24",
            ports=ports,
            backend="null",
            store=tmp_path / "host.db",
        )
        for i, ports in enumerate(ranges)
    ]
    given = []
    for manager in managers:
        one = manager.allocate()
        while True:
            try:
                given.append(one.allocate_port(80, host_ip=host_ip))
            except Exception as error:
                assert "no free tcp port" in str(error)
                break
    assert len(given) == len(set(given)) == len(set(ranges[0]) | set(ranges[1]))
    assert managers[0].check() == []
    for manager in managers:
        manager.close()


def test_an_address_with_a_prefix_is_an_address_of_the_host(tmp_path):
    """As interface_address returns it: one row that is no address would block every pick."""
    with NetworkManager(
        "br0", network="10.88.0.1/24", backend="null", store=tmp_path / "host.db"
    ) as manager:
        web = manager.allocate()
        web.allocate_port(80, host_ip=interface_address("lo"))
        web.allocate_port(80, host_ip=IPv4Interface("192.0.2.7/24"))
        web.allocate_port(80)
        assert sorted(str(mapping.host_ip) for mapping in web.ports()) == [
            "127.0.0.1",
            "192.0.2.7",
            "None",
        ]
        port = next(m.host_port for m in web.ports() if str(m.host_ip) == "192.0.2.7")
        web.release_port(port, host_ip=IPv4Interface("192.0.2.7/8"))
        assert manager.check() == []


@pytest.fixture(params=["nftables", "iptables"])
def manager(request, nft_lab, tmp_path):
    with NetworkManager(
        "br0", backend=request.param, store=tmp_path / "host.db", ports=range(8000, 8100)
    ) as made:
        yield made


@pytest.mark.root
def test_a_port_by_number_is_not_taken_from_a_listener_of_the_host(manager, caplog):
    web = manager.allocate("web")
    with socket.create_server(("0.0.0.0", 2222)):
        for request in (
            PortRequest(22, host_port=2222),
            PortRequest(22, host_port=2222, host_ip="192.0.2.1"),
            PortRequest(2220, host_port=2220, count=5),
        ):
            with pytest.raises(InUseError, match=f"2222/tcp.*{os.getpid()}"):
                web.publish([request])
            with pytest.raises(InUseError, match="2222"):
                manager.allocate("other", ports=[request])
        assert len(manager.interfaces()) == 1
        assert web.ports() == ()
        web.allocate_port(22, "udp", host_port=2222)  # another protocol is another port
        with caplog.at_level(logging.WARNING, "netalloc"):
            assert web.allocate_port(22, host_port=2222, check_host=False) == 2222
        assert "2222/tcp" in caplog.text
    assert manager.check() == []


@pytest.mark.root
def test_an_address_that_is_not_the_hosts_own_is_refused_unless_it_floats(manager, caplog):
    web = manager.allocate("web")
    for port in (None, 8080):
        with pytest.raises(InUseError, match=r"203\.0\.113\.9 is not an address of this host"):
            web.allocate_port(80, host_port=port, host_ip="203.0.113.9")
    assert web.ports() == ()
    with caplog.at_level(logging.WARNING, "netalloc"):
        web.allocate_port(80, host_ip="203.0.113.9", check_host=False)
    assert "203.0.113.9" in caplog.text
    web.allocate_port(80, host_ip="192.0.2.1")
    assert manager.check() == []
