"""Every path to a published port over IPv6, alone and beside IPv4, and no other path is opened."""

import socket
import struct
import time
from itertools import product

import pytest

from lab import Lab
from netalloc.family import FAMILIES, NetworkPair
from netalloc.host import namespaces, sysctl
from netalloc.host.links import Links, connect, index_of
from netalloc.host.loopback_route import has_route
from netalloc.host.loopback_way import ANSWERS
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkSocket
from netalloc.model import ReconcileResult
from netalloc.portmap.choice import make_backend, networks_of
from netalloc.portmap.mapper import PortMapper

pytestmark = pytest.mark.root

PROTOCOLS = ("tcp", "udp")
GLOBAL = "2001:db8:c8::"  # a prefix that others route to


@pytest.fixture(params=["nftables", "iptables-legacy", "iptables-nft"])
def backend(request):
    return request.param


def start(backend: str, bridge_nf: int | None = 0, **options) -> Lab:
    variant = "legacy" if backend.endswith("legacy") else "nft"
    return Lab(variant, bridge_nf=bridge_nf, ipv6=True, **options)


def mapper_for(backend: str, lab: Lab, network=Lab.networks, **options) -> PortMapper:
    kind = backend.partition("-")[0]
    if lab.routed:
        return RoutedMapper(kind, lab, networks_of(network, None))
    return PortMapper(kind, bridge=lab.bridge, network=network, **options)


class RoutedMapper(PortMapper):
    """One for a routed lab, whose containers are attached when the host is ready for them."""

    def __init__(self, kind: str, lab: Lab, networks: NetworkPair) -> None:
        self._versions = [family.version for family in networks.families]
        super().__init__(make_backend(kind, "netalloc", lab.link(self._versions), networks))
        self._lab = lab

    def setup(self, *, adopt: bool = False) -> ReconcileResult:
        found = super().setup(adopt=adopt)
        self._lab.attach(self._versions)
        return found


def route(lab: Lab) -> bool:
    netlink = NetlinkSocket(NETLINK_ROUTE)
    try:
        return has_route(netlink, index_of(lab.bridge))
    finally:
        netlink.close()


def forwarding() -> list[str]:
    return [sysctl.read(*family.forwarding) for family in FAMILIES]


def refused(lab: Lab, protocol: str, port: int) -> float:
    """Seconds until a request to ::1 is refused."""
    best = 9.0
    for _ in range(5):  # the machine is others' as well
        began = time.perf_counter()
        with pytest.raises((ConnectionRefusedError, PermissionError)):
            lab.ask(lab.host, protocol, ("::1", port))
        best = min(best, time.perf_counter() - began)
    return best


@pytest.mark.parametrize("bridge_nf", [0, 1])
@pytest.mark.parametrize("versions", [(4,), (6,), (4, 6)], ids=["v4", "v6", "both"])
@pytest.mark.parametrize("mode", ["bridge", "routed"])
def test_all_paths(backend, bridge_nf, versions, mode):
    with start(backend, bridge_nf, routed=mode == "routed") as lab:
        own = {  # the host's addresses that the outside knows, its gateway, and loopback
            4: (lab.address, lab.second_address, lab.gateway, "127.0.0.1"),
            6: (lab.address6, lab.second_address6, lab.gateway6, "::1"),
        }
        both = dict(zip((4, 6), lab.networks, strict=True))
        with mapper_for(backend, lab, [both[version] for version in versions]) as mapper:
            c0, c1 = lab.containers
            for protocol in PROTOCOLS:
                lab.serve(c0, protocol, 80)
                for version in versions:
                    mapper.map(8080, (c0.ip6 if version == 6 else c0.ip, 80), protocol)
            # A family that is not asked for is left alone.
            assert forwarding() == ["1" if version in versions else "0" for version in (4, 6)]
            if mode == "bridge":
                localnet = sysctl.read("net", "ipv4", "conf", lab.bridge, "route_localnet")
                assert localnet == str(int(4 in versions))
            for protocol, version in product(PROTOCOLS, versions):
                first, second, gateway, loopback = own[version]
                # a. outside -> host, through either address; the container sees the client
                for address in (first, second):
                    found = lab.ask(lab.outside, protocol, (address, 8080))
                    assert found == ("c0", lab.outside.ip6 if version == 6 else lab.outside.ip)
                # b. host -> its own address
                for address in (first, second, gateway):
                    assert lab.ask(lab.host, protocol, (address, 8080))[0] == "c0"
                # c. host -> loopback, of IPv6 where the kernel can
                seen = str(ANSWERS) if version == 6 and mode == "routed" else gateway
                if version == 6 and bridge_nf and mode == "bridge":
                    assert refused(lab, protocol, 8080) < 0.001
                else:
                    assert lab.ask(lab.host, protocol, (loopback, 8080)) == ("c0", seen)
                # d. container -> itself, e. container -> sibling
                for container in (c0, c1):
                    for address in (first, gateway):
                        found = lab.ask(container, protocol, (address, 8080))
                        assert found == ("c0", gateway)
            for protocol in PROTOCOLS:
                mapper.unmap(8080, protocol)
                for place, version in product((lab.outside, lab.host, c0, c1), versions):
                    assert lab.reaches(place, protocol, (own[version][0], 8080)) is None
        assert forwarding() == ["0", "0"]
        if mode == "bridge":
            assert not route(lab)
        else:
            assert lab.gateway not in lab.run("ip", "addr", "show", "dev", "lo")


def test_localhost_goes_on_to_ipv4_at_once(backend):
    """Whoever asks for "localhost" asks ::1 first."""
    with start(backend, 1) as lab, mapper_for(backend, lab) as mapper:
        c0 = lab.containers[0]
        lab.serve(c0, "tcp", 80)
        for ip in (c0.ip, c0.ip6):
            mapper.map(8080, (ip, 80))
        began = time.perf_counter()
        for address in ("::1", "127.0.0.1"):  # as socket.create_connection() does
            try:
                with socket.create_connection((address, 8080), timeout=5) as client:
                    client.send(b"?")
                    assert client.recv(100) == f"c0 {lab.gateway}".encode()
            except ConnectionRefusedError:
                assert address == "::1"
        assert time.perf_counter() - began < 0.1


def test_the_way_from_loopback_comes_and_goes_with_bridge_nf(backend):
    with start(backend, 0) as lab, mapper_for(backend, lab) as mapper:
        c0 = lab.containers[0]
        lab.serve(c0, "tcp", 80)
        mapper.map(8080, (c0.ip6, 80))
        assert lab.ask(lab.host, "tcp", ("::1", 8080))[0] == "c0"
        setting = ("net", "bridge", "bridge-nf-call-ip6tables")
        sysctl.write("1", *setting)
        assert mapper.reconcile() and not route(lab) and not mapper.reconcile()
        assert refused(lab, "tcp", 8080) < 0.001
        sysctl.write("0", *setting)
        assert mapper.reconcile() and not mapper.reconcile()
        assert lab.ask(lab.host, "tcp", ("::1", 8080))[0] == "c0"
        # Taken away by another program, it is put back.
        lab.run("ip", "-6", "route", "del", "local", "::1", "dev", lab.bridge, "table", "local")
        assert mapper.reconcile().structure == (f"::1 was not local to bridge {lab.bridge}",)
        assert lab.ask(lab.host, "tcp", ("::1", 8080))[0] == "c0"


def test_a_route_of_another_program_stays(backend):
    with start(backend) as lab:
        lab.run("ip", "-6", "route", "add", "local", "::1", "dev", lab.bridge, "table", "local",
                "metric", "4096")  # fmt: skip
        with mapper_for(backend, lab) as mapper:
            lab.serve(lab.containers[0], "tcp", 80)
            mapper.map(8080, (lab.containers[0].ip6, 80))
            assert lab.ask(lab.host, "tcp", ("::1", 8080))[0] == "c0"
        assert route(lab)


def test_the_hosts_own_loopback_is_not_opened(backend):
    """Frames that say they are from or for ::1 are dropped, with the route that is there."""
    with start(backend) as lab, mapper_for(backend, lab) as mapper:
        c0 = lab.containers[0]
        mapper.map(8080, (c0.ip6, 80))
        assert route(lab)
        with lab.socket(lab.host, "udp", "::") as server:
            server.settimeout(5)
            server.bind(("::", 9999))
            words = lab.run("ip", "-o", "link", "show", lab.bridge).split()
            mac = bytes.fromhex(words[words.index("link/ether") + 1].replace(":", ""))
            with namespaces.inside("c0"):
                raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
                raw.bind(("eth0", 0x86DD))
            with raw:
                for source, destination in (
                    (c0.ip6, "::1"),
                    ("::1", "::1"),
                    ("::1", lab.gateway6),
                    (c0.ip6, lab.gateway6),  # an honest one, which shows that they arrive
                ):
                    raw.send(frame(mac, source, destination, 9999))
            # They come in the order in which they were sent.
            assert server.recvfrom(100)[0].strip() == f"{c0.ip6} {lab.gateway6}".encode()


def frame(mac: bytes, source: str, destination: str, port: int) -> bytes:
    """A UDP datagram in a frame that says where it is from and for."""
    ends = b"".join(socket.inet_pton(socket.AF_INET6, ip) for ip in (source, destination))
    text = f"{source} {destination}".encode()
    text += b" " * (len(text) % 2)
    size = 8 + len(text)
    body = struct.pack(">HHHH", 5, port, size, 0) + text
    words = ends + struct.pack(">II", size, 17) + body
    total = sum(struct.unpack(f">{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:6] + struct.pack(">H", ~total & 0xFFFF or 0xFFFF) + body[8:]
    head = struct.pack(">IHBB", 6 << 28, size, 17, 64)
    return mac + b"\2\0\0\0\0\5" + b"\x86\xdd" + head + ends + body


def test_unique_local_addresses_are_masqueraded_and_others_are_routed(backend):
    """The way out: no NAT66 for a prefix that the outside routes to."""
    with start(backend) as lab:
        with Links() as links:
            links.create_bridge("br1", f"{GLOBAL}1/64")
            namespaces.create("g0")
            connect(links, "vethg", namespace="g0", bridge="br1", address=f"{GLOBAL}2/64",
                    gateway=f"{GLOBAL}1")  # fmt: skip
        g0 = type(lab.host)("g0", "g0", "", f"{GLOBAL}2")
        routed = PortMapper("nftables", bridge="br1", network=f"{GLOBAL}/64", name="netalloc")
        with mapper_for(backend, lab) as mapper, routed as routed:
            for protocol in PROTOCOLS:
                for place in (lab.outside, lab.containers[0], g0):
                    lab.serve(place, protocol, 80, "::")
                mapper.map(8080, (lab.containers[0].ip6, 80), protocol)
                routed.map(8081, (g0.ip6, 80), protocol)
            for protocol in PROTOCOLS:
                outside = (lab.outside.ip6, 80)
                assert lab.ask(lab.containers[0], protocol, outside) == ("outside", lab.address6)
                assert lab.ask(g0, protocol, outside) == ("outside", g0.ip6)
                # Its own published port, a sibling network's, and from everywhere else.
                assert lab.ask(g0, protocol, (lab.address6, 8081)) == ("g0", f"{GLOBAL}1")
                assert lab.ask(g0, protocol, (lab.address6, 8080))[0] == "c0"
                assert lab.ask(lab.containers[0], protocol, (lab.address6, 8081))[0] == "g0"
                assert lab.ask(lab.outside, protocol, (lab.address6, 8081)) == (
                    "g0",
                    lab.outside.ip6,
                )
                assert lab.ask(lab.host, protocol, ("::1", 8081))[0] == "g0"


def test_outside_servers_are_not_hijacked(backend):
    with start(backend) as lab, mapper_for(backend, lab) as mapper:
        for protocol in PROTOCOLS:
            lab.serve(lab.containers[0], protocol, 80)
            lab.serve(lab.outside, protocol, 8080)
            mapper.map(8080, (lab.containers[0].ip6, 80), protocol)
            for place in (*lab.containers, lab.host):
                found = lab.ask(place, protocol, (lab.outside.ip6, 8080))
                assert found == ("outside", lab.address6)


def test_specific_addresses_and_blocks(backend):
    with start(backend) as lab, mapper_for(backend, lab) as mapper:
        c0, c1 = lab.containers
        for protocol in PROTOCOLS:
            lab.serve(c0, protocol, 80)
            lab.serve(c1, protocol, 80)
            mapper.map(8080, (c0.ip6, 80), protocol, lab.address6)
            mapper.map(8080, (c1.ip6, 80), protocol, lab.second_address6)
            mapper.map(8080, (c1.ip6, 80), protocol, "::1")
            assert lab.ask(lab.outside, protocol, (lab.address6, 8080))[0] == "c0"
            assert lab.ask(lab.outside, protocol, (lab.second_address6, 8080))[0] == "c1"
            assert lab.ask(lab.host, protocol, ("::1", 8080))[0] == "c1"
            assert lab.reaches(lab.host, protocol, (lab.gateway6, 8080)) is None
            # Divided, shifted and an interval.
            for first, to, count in ((7000, 7000, 5), (7100, 7200, 300), (10000, 10000, 3000)):
                mapper.map(first, (c1.ip6, to), protocol, count=count)
                for port in (0, count - 1):
                    lab.serve(c1, protocol, to + port)
                    found = lab.ask(lab.outside, protocol, (lab.address6, first + port))
                    assert found[0] == "c1"
                for port in (-1, count):
                    lab.serve(c1, protocol, to + port)
                    where = (lab.address6, first + port)
                    assert lab.reaches(lab.outside, protocol, where) is None
        assert set(mapper.backend.mappings()) == set(mapper.mappings)
        assert not mapper.reconcile()


def test_hairpin_where_bridged_frames_pass_ip6tables_alone(backend):
    with start(backend, 0, hairpin=False) as lab:
        sysctl.write("1", "net", "bridge", "bridge-nf-call-ip6tables")
        with mapper_for(backend, lab) as mapper:
            c0 = lab.containers[0]
            lab.serve(c0, "tcp", 80)
            mapper.map(8080, (c0.ip6, 80))
            assert lab.ask(c0, "tcp", (lab.address6, 8080))[0] == "c0"


@pytest.mark.parametrize("accept_ra", ["1", "2", "0"])
def test_an_uplink_keeps_the_route_that_a_router_has_told_of(backend, accept_ra, caplog):
    with start(backend) as lab:
        setting = ("net", "ipv6", "conf", "uplink", "accept_ra")
        sysctl.write(accept_ra, *setting)
        learned = ("::/0", "via", lab.outside.ip6, "dev", "uplink", "proto", "ra")
        lab.run("ip", "-6", "route", "add", *learned, "expires", "600")
        with caplog.at_level("INFO"):
            one = mapper_for(backend, lab, name="one")
            one.setup()
        told = [r for r in caplog.messages if "accept_ra" in r]
        assert bool(told) == (accept_ra == "1")
        assert sysctl.read(*setting) == {"1": "2"}.get(accept_ra, accept_ra)
        one.cleanup()
        one.close()
        assert sysctl.read(*setting) == accept_ra and forwarding() == ["0", "0"]


@pytest.mark.parametrize("served", [True, False], ids=["with us", "without"])
def test_a_route_really_learned_survives(served):
    """A router advertisement as the kernel takes it, and forwarding on."""
    with start("nftables") as lab:

        def is_there() -> bool:
            return "proto ra" in lab.run("ip", "-6", "route", "show", "default")

        words = lab.run("ip", "-o", "link", "show", "uplink").split()
        mac = bytes.fromhex(words[words.index("link/ether") + 1].replace(":", ""))
        with namespaces.inside("outside"):
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            raw.bind(("eth0", 0x86DD))
        with raw:
            raw.send(advertisement(mac))
        deadline = time.monotonic() + 5
        while not is_there():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if not served:  # what it is about: forwarding alone takes it away
            sysctl.write("1", "net", "ipv6", "conf", "all", "forwarding")
            assert not is_there()
            return
        with mapper_for("nftables", lab):
            assert forwarding() == ["1", "1"] and is_there()
        assert forwarding() == ["0", "0"] and is_there()


def advertisement(mac: bytes) -> bytes:
    """A router's, of half an hour (RFC 4861, 4.2)."""
    ends = b"".join(socket.inet_pton(socket.AF_INET6, ip) for ip in ("fe80::1", "ff02::1"))
    body = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    words = ends + struct.pack(">II", len(body), 58) + body
    total = sum(struct.unpack(f">{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + struct.pack(">H", ~total & 0xFFFF) + body[4:]
    head = struct.pack(">IHBB", 6 << 28, len(body), 58, 255)
    return mac + b"\2\0\0\0\0\5" + b"\x86\xdd" + head + ends + body
