"""Others' rules beside ours: a dropping FORWARD, Docker, CNI, a second netalloc."""

import re

import pytest

from lab import Lab
from netalloc import NetworkManager
from netalloc.errors import InvalidValueError, OutOfRangeError
from netalloc.portmap.mapper import PortMapper

pytestmark = pytest.mark.root

DROPPING = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i br7 -j ACCEPT\nCOMMIT\n"

# What dockerd makes for one bridge and one container with a published port.
DOCKER = """\
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 9090 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*raw
-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP
COMMIT
"""

# What the CNI plugins bridge and portmap make for one container with a published port.
CNI = """\
*nat
:CNI-0123456789abcdef01234567 - [0:0]
:CNI-DN-0123456789abcdef01234 - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A POSTROUTING -s 10.22.0.2/32 -j CNI-0123456789abcdef01234567
-A CNI-0123456789abcdef01234567 -d 10.22.0.0/16 -j ACCEPT
-A CNI-0123456789abcdef01234567 ! -d 224.0.0.0/4 -j MASQUERADE
-A CNI-DN-0123456789abcdef01234 -s 10.22.0.0/16 -p tcp -m tcp --dport 9091 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-0123456789abcdef01234 -p tcp -m tcp --dport 9091 -j DNAT --to-destination 10.22.0.2:80
-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 9091 -j CNI-DN-0123456789abcdef01234
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A CNI-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000
COMMIT
"""

OTHER_TABLE = """
table inet others {
  chain input { type filter hook input priority 10; policy accept; tcp dport 23 drop; }
  map ports { type inet_service : ipv4_addr; elements = { 9092 : 10.9.0.2 } }
}
"""


@pytest.fixture(params=["nftables", "iptables-legacy", "iptables-nft"])
def backend(request):
    return request.param


def start(backend: str, bridge_nf: int | None = None) -> Lab:
    return Lab("legacy" if backend.endswith("legacy") else "nft", bridge_nf=bridge_nf)


def make(backend: str, lab: Lab, **options) -> PortMapper:
    options = {"bridge": lab.bridge, "network": lab.network, **options}
    return PortMapper(backend.partition("-")[0], **options)


def everything(lab: Lab) -> str:
    """All rules of the host, of both iptables and of nft, without counters and handles."""
    dumps = []
    for variant in ("legacy", "nft"):
        lab.use(variant)
        dumps.append(lab.rules())
    lab.use(lab.variant)
    nft = lab.run("nft", "list", "ruleset")
    # The tables of iptables-nft are in the dump above, and nft cannot print all of them.
    mine = re.sub(r"(?ms)^(# Warning.*?\n)?table ip (nat|raw|filter|mangle) \{.*?^\}\n", "", nft)
    return "\n".join([*dumps, re.sub(r"packets \d+ bytes \d+ ", "", mine)])


def others(dump: str) -> str:
    """A dump less our table and the lines that name us."""
    dump = re.sub(r"(?ms)^table inet netalloc \{.*?^\}\n?", "", dump)
    rest = "\n".join(line for line in dump.split("\n") if "netalloc" not in line)
    return re.sub(r"(?m)^mangle\n(:.*\n)+COMMIT\n?", "", rest)  # nothing but ours was in it


@pytest.mark.parametrize("bridge_nf", [0, 1])
def test_a_dropping_forward_chain(backend, bridge_nf):
    with start(backend, bridge_nf) as lab:
        c0, c1 = lab.containers
        lab.run("iptables-restore", "--noflush", input=DROPPING)
        for protocol in ("tcp", "udp"):
            lab.serve(c0, protocol, 80)
            lab.serve(lab.outside, protocol, 80)
        before = everything(lab)
        with make(backend, lab) as mapper:
            mapper.map(8080, (c0.ip, 80), "udp")
            assert lab.reaches(lab.outside, "udp", (lab.address, 8080)) is None
        with make(backend, lab, forward=True) as mapper:
            for protocol in ("tcp", "udp"):
                mapper.map(8080, (c0.ip, 80), protocol)
                for place in (lab.outside, lab.host, c0, c1):
                    assert lab.ask(place, protocol, (lab.address, 8080))[0] == "c0"
                assert lab.ask(c1, protocol, (lab.outside.ip, 80))[0] == "outside"
                # What is not mapped is still dropped.
                lab.run("ip", "-n", "outside", "route", "replace", lab.network, "via", lab.address)
                assert lab.reaches(lab.outside, protocol, (c0.ip, 80)) is None
            assert not mapper.reconcile()
            lab.run("iptables", "-F", "FORWARD")
            assert any("-j netalloc/fwd" in what for what in mapper.reconcile().structure)
            assert lab.ask(lab.outside, "tcp", (lab.address, 8080))[0] == "c0"
            lab.run("iptables", "-A", "FORWARD", "-i", "br7", "-j", "ACCEPT")
        assert everything(lab) == before


def test_docker_and_cni_are_left_alone(backend):
    with start(backend) as lab:
        lab.run("iptables-restore", "--noflush", input=DOCKER + CNI)
        lab.run("nft", "-f", "-", input=OTHER_TABLE)
        lab.serve(lab.containers[0], "tcp", 80)
        before = everything(lab)
        with make(backend, lab, forward=True) as mapper:
            mapper.map(8080, (lab.containers[0].ip, 80))
            assert lab.ask(lab.outside, "tcp", (lab.address, 8080))[0] == "c0"
            assert others(everything(lab)) == before
            user = lab.run("iptables", "-S", "DOCKER-USER").splitlines()
            assert user[1:] == ["-A DOCKER-USER -j netalloc/fwd", "-A DOCKER-USER -j RETURN"]
            assert "netalloc" not in lab.run("iptables", "-S", "FORWARD")
            mapper.unmap(8080)
            mapper.reconcile()
        assert everything(lab) == before


def test_docker_that_starts_later_gets_the_jump(backend):
    with start(backend) as lab:
        lab.run("iptables", "-P", "FORWARD", "DROP")
        lab.serve(lab.containers[0], "tcp", 80)
        with make(backend, lab, forward=True) as mapper:
            mapper.map(8080, (lab.containers[0].ip, 80))
            lab.run("iptables-restore", "--noflush", input=DOCKER)
            assert lab.ask(lab.outside, "tcp", (lab.address, 8080))[0] == "c0"
            assert mapper.reconcile()
            assert "netalloc" in lab.run("iptables", "-S", "DOCKER-USER")
            assert "netalloc" not in lab.run("iptables", "-S", "FORWARD")
            assert lab.ask(lab.outside, "tcp", (lab.address, 8080))[0] == "c0"
            assert not mapper.reconcile()


def test_two_netallocs_on_a_host(backend):
    with start(backend) as lab:
        c0, c1 = lab.containers
        for place in (c0, c1):
            lab.serve(place, "tcp", 80)
        before = everything(lab)
        with make(backend, lab, forward=True) as one:
            one.map(8080, (c0.ip, 80))
            alone = everything(lab)
            with make(backend, lab, name="netalloc2", forward=True) as two:
                two.map(8081, (c1.ip, 80))
                assert lab.ask(lab.outside, "tcp", (lab.address, 8080))[0] == "c0"
                assert lab.ask(lab.outside, "tcp", (lab.address, 8081))[0] == "c1"
                assert not one.reconcile() and not two.reconcile()
                both = everything(lab)
                one.setup()
                assert everything(lab) == both
            assert everything(lab) == alone
            assert lab.ask(lab.outside, "tcp", (lab.address, 8080))[0] == "c0"
        assert everything(lab) == before


def test_iptables_and_nftables_side_by_side():
    with Lab("nft") as lab:
        c0, c1 = lab.containers
        for place in (c0, c1):
            lab.serve(place, "tcp", 80)
        with make("nftables", lab) as one, make("iptables", lab, name="other") as two:
            one.map(8080, (c0.ip, 80))
            two.map(8081, (c1.ip, 80))
            for place in (lab.outside, lab.host, c0, c1):
                assert lab.ask(place, "tcp", (lab.address, 8080))[0] == "c0"
                assert lab.ask(place, "tcp", (lab.address, 8081))[0] == "c1"
            assert lab.ask(lab.host, "tcp", ("127.0.0.1", 8080))[0] == "c0"
            assert lab.ask(lab.host, "tcp", ("127.0.0.1", 8081))[0] == "c1"


def test_forward_needs_a_bridge():
    with pytest.raises(OutOfRangeError, match="forward needs the bridge"):
        PortMapper("null", forward=True)


@pytest.mark.parametrize("stored", [False, True])
def test_a_manager_where_forward_drops(make_lab, tmp_path, stored):
    lab = make_lab("nft")
    container = lab.containers[0]
    lab.run("iptables-restore", "--noflush", input=DROPPING)
    lab.serve(container, "tcp", 80)
    store = tmp_path / "host.db" if stored else None
    network = f"{lab.gateway}/16"
    with NetworkManager("br0", network=network, store=store, forward=True) as manager:
        interface = manager.allocate(ip=container.ip)
        port = interface.allocate_port(80)
        assert lab.ask(lab.outside, "tcp", (lab.address, port))[0] == container.name
        interface.release()
    with pytest.raises(InvalidValueError, match="backend"):
        NetworkManager("br0", network=network, backend=PortMapper("null"), forward=True)
