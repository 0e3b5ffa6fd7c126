"""Containers that were attached speak to each other, the host and the outside, at once."""

import fcntl
import os
import select
import socket
import struct
import subprocess
import time
from ipaddress import ip_address

import pytest

from attach_lab import FIRST, GATEWAYS, GROUP, AttachLab, ask, sweep
from lab import require_kernel
from netalloc.host import namespaces
from netalloc.host.attached import detach, present
from netalloc.host.attaching import attach_bridged, attach_routed
from netalloc.host.links import Links
from netalloc.host.taps import attach_taps

pytestmark = pytest.mark.root

FAMILIES = (socket.AF_INET, socket.AF_INET6)
KINDS = (socket.SOCK_DGRAM, socket.SOCK_STREAM)
ROUTED, BRIDGED = "routed", "bridged"


@pytest.fixture(autouse=True)
def kernel():
    require_kernel()


@pytest.fixture(params=[ROUTED, BRIDGED])
def lab(request):
    with AttachLab(bridge=request.param == BRIDGED) as lab:
        lab.attach = (
            (lambda many: attach_routed(many, GROUP))
            if request.param == ROUTED
            else (lambda many: attach_bridged(many, lab.holder, group=GROUP, static=True))
        )
        lab.bridge = lab.holder if request.param == BRIDGED else None
        yield lab


@pytest.fixture
def routed():
    with AttachLab() as lab:
        yield lab


def address(one, family):
    return one.addresses[family == socket.AF_INET6].ip


def serve_everywhere(lab, names):
    for family in FAMILIES:
        for kind in KINDS:
            for name in names:
                lab.serve(name, kind, family)


@pytest.mark.parametrize("kind", KINDS, ids=["udp", "tcp"])
@pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
def test_everybody_reaches_everybody(lab, family, kind):
    first, second = many = lab.endpoints(2)
    lab.attach(many)
    serve_everywhere(lab, ["c0", None])
    gateway = GATEWAYS[family == socket.AF_INET6]
    assert ask(None, kind, family, address(first, family)) == ("c0", str(gateway))
    assert ask("c1", kind, family, address(first, family)) == ("c0", str(address(second, family)))
    assert ask("c1", kind, family, gateway) == ("host", str(address(second, family)))


@pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
def test_the_outside_is_reached(lab, family):
    namespaces.create("outside")
    here, there = ("192.0.2.1", "192.0.2.2") if family == 2 else ("2001:db8::1", "2001:db8::2")
    bits = "24" if family == 2 else "64"
    with Links() as links:
        links.create_veth("uplink", "eth0", namespace="outside")
        links.set_up("uplink")
    nodad = [] if family == 2 else ["nodad"]
    commands = [
        ["ip", "addr", "add", f"{here}/{bits}", "dev", "uplink", *nodad],
        ["ip", "-n", "outside", "link", "set", "eth0", "up"],
        ["ip", "-n", "outside", "addr", "add", f"{there}/{bits}", "dev", "eth0", *nodad],
        [
            "ip",
            "-n",
            "outside",
            f"-{4 if family == 2 else 6}",
            "route",
            "add",
            "default",
            "via",
            here,
        ],
    ]
    for command in commands:
        subprocess.run(command, check=True)
    (one,) = many = lab.endpoints(1)
    lab.attach(many)
    lab.serve("outside", socket.SOCK_STREAM, family)
    seen = ask("c0", socket.SOCK_STREAM, family, ip_address(there), timeout=5)
    assert seen == ("outside", str(address(one, family)))


@pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
def test_the_first_packet_waits_for_nothing(lab, family):
    """Neither duplicate detection (2 s) nor a neighbour that has to be asked for."""
    waits = []
    for i in range(8):
        one = lab.endpoint(i, lab.namespace(f"c{i}"))
        lab.serve(f"c{i}", socket.SOCK_DGRAM, family)
        lab.attach([one])
        start = time.perf_counter()
        ask(None, socket.SOCK_DGRAM, family, address(one, family), timeout=5)
        waits.append(time.perf_counter() - start)
    # A neighbour that is asked for twice takes a second, and proxies up to 0.8 s.
    assert sorted(waits)[6] < 0.1, waits


def test_as_many_as_a_neighbour_table_does_not_hold(lab):
    """Entries that are learned end at 1,024 on the whole machine; ours do not count."""
    many = lab.endpoints(40)
    lab.attach(many)
    shown = subprocess.run(["ip", "neigh"], capture_output=True, text=True, check=True).stdout
    for one in many:
        for ip in one.addresses:
            assert any(
                line.startswith(f"{ip.ip} ") and "PERMANENT" in line for line in shown.splitlines()
            )


def test_detach_leaves_nothing(lab):
    many = lab.endpoints(5)
    before = _everything()
    lab.attach(many)
    assert len(present("netalloc:test:")) == 5
    assert detach(many, lab.bridge) == 5
    assert detach(many, lab.bridge) == 0
    assert present("netalloc:test:") == {}
    assert _everything() == before


def _everything():
    commands = ("ip -o link show", "ip -4 route show table all", "ip neigh", "bridge fdb")
    shown = [
        subprocess.run(one.split(), capture_output=True, text=True, check=True).stdout
        for one in (*commands, "ip -6 route show table all")
    ]
    # An empty bridge has no carrier, and multicast entries of its own come and go.
    lines = {line.strip() for text in shown for line in text.splitlines()}
    return {line for line in lines if "br0" not in line}


def test_one_family_alone(lab):
    v4 = lab.endpoint(0, lab.namespace("c0"))
    v6 = lab.endpoint(1, lab.namespace("c1"))
    v4 = lab.endpoint(0, v4.netns, addresses=(v4.addresses[0], None))
    v6 = lab.endpoint(1, v6.netns, addresses=(None, v6.addresses[1]))
    lab.attach([v4, v6])
    serve_everywhere(lab, ["c0", "c1"])
    assert ask(None, socket.SOCK_DGRAM, socket.AF_INET, v4.addresses[0].ip)[0] == "c0"
    assert ask(None, socket.SOCK_DGRAM, socket.AF_INET6, v6.addresses[1].ip)[0] == "c1"


def test_a_container_reaches_itself_through_a_hairpin():
    with AttachLab(bridge=True) as lab:
        on, off = lab.endpoints(2)
        attach_bridged([on], lab.holder, hairpin=True)
        attach_bridged([off], lab.holder)
        for one, expected in ((on, "hairpin on"), (off, "hairpin off")):
            shown = subprocess.run(
                ["bridge", "-d", "link", "show", "dev", one.name],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            assert expected in shown


def test_mtu_is_that_of_the_uplink(routed):
    with Links() as links:
        links.create_veth("uplink", "far")
        links.set_up("far")
        links.add_address("uplink", "192.0.2.1/24")
        links.set_up("uplink")
        links.add_route("192.0.2.2")
    subprocess.run(["ip", "link", "set", "uplink", "mtu", "1400"], check=True)
    one, other = routed.endpoints(2)
    other = routed.endpoint(1, other.netns, mtu=9000)
    attach_routed([one, other], GROUP)
    for name, mtu in (("c0", "1400"), ("c1", "9000")):
        with namespaces.inside(name):
            shown = subprocess.run(
                ["ip", "-o", "link", "show", "eth0"], capture_output=True, text=True, check=True
            ).stdout
        assert f"mtu {mtu} " in shown
    assert present("netalloc:test:")[other.index].mtu == 9000


def test_mtu_is_that_of_the_bridge():
    with AttachLab(bridge=True) as lab:
        subprocess.run(["ip", "link", "set", "br0", "mtu", "1450"], check=True)
        (one,) = lab.endpoints(1)
        attach_bridged([one], lab.holder)
        assert present("netalloc:test:")[one.index].mtu == 1450


def test_the_bridge_keeps_its_mac_address():
    """The containers know it for ever; a bridge takes over the lowest one of its ports."""
    with AttachLab(bridge=True) as lab:
        before = _mac("br0")
        many = lab.endpoints(3)
        attach_bridged(many, lab.holder)
        assert _mac("br0") == before
        detach(many[:2], lab.holder)
        assert _mac("br0") == before
        detach(many, lab.holder)
        assert _mac("br0") == before


def _mac(name):
    shown = subprocess.run(
        ["ip", "-o", "link", "show", name], capture_output=True, text=True, check=True
    )
    return shown.stdout.split("link/ether ")[1].split()[0]


@pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
def test_frames_go_out_by_a_tap(lab, family):
    """What is sent to the machine is read from its tap, by the owner's descriptor."""
    one = lab.endpoint(0, uid=1234)
    attach_taps([one], group=GROUP, bridge_index=lab.bridge, static=True)
    fd = _open_tap(one.name)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            frame = _frame_of(fd, client, (str(address(one, family)), 9))
        assert frame[:6] == one.mac
    finally:
        os.close(fd)
    shown = subprocess.run(
        ["ip", "-d", "link", "show", one.name], capture_output=True, text=True, check=True
    ).stdout
    assert "user 1234" in shown and "multi_queue" not in shown and "persist on" in shown
    assert "vnet_hdr on" in shown
    assert detach([one], lab.bridge) == 1


def _open_tap(name):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x5002))
    return fd


def _frame_of(fd, client, to):
    """The frame of a datagram, sent again until the tap has come up for who opened it."""
    for _ in range(100):
        client.sendto(b"to the machine", to)
        while select.select([fd], [], [], 0.05)[0]:
            frame = os.read(fd, 4096)[10:]
            if b"to the machine" in frame:
                return frame
    raise AssertionError("nothing arrived")


def test_many_taps_and_a_second_time(routed):
    many = [routed.endpoint(i) for i in range(10)]
    attach_taps(many, group=GROUP)
    attach_taps(many, group=GROUP)
    assert set(present("netalloc:test:")) == {FIRST + i for i in range(10)}
    assert sweep() == 10
