"""What attaching promises: all or nothing, again and again, and words where it is refused."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attach_lab import FIRST, GATEWAYS, GROUP, AttachLab, ask, endpoint, sweep
from interrupts import Interrupted, Knife
from lab import require_kernel
from moments import Moments
from netalloc.errors import ExhaustedError, InterfaceError, InvalidValueError, NetallocError
from netalloc.host import namespaces, rtnetlink
from netalloc.host.attached import detach, present, present_of
from netalloc.host.attaching import attach_bridged, attach_routed
from netalloc.host.bridge_count import MAX_PORTS, port_indexes
from netalloc.host.links import Links
from netalloc.host.macs import mac_of
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkSocket
from netalloc.host.taps import attach_taps
from netalloc.host.target_netns import identity, open_netns

pytestmark = pytest.mark.root
PREFIX = "netalloc:test:"


@pytest.fixture
def lab():
    require_kernel()
    with AttachLab() as lab:
        yield lab


@pytest.fixture
def bridged():
    require_kernel()
    with AttachLab(bridge=True) as lab:
        yield lab


def answers(one, name):
    """Whether the host reaches it by both families."""
    for family in (socket.AF_INET, socket.AF_INET6):
        ip = one.addresses[family == socket.AF_INET6].ip
        assert ask(None, socket.SOCK_DGRAM, family, ip)[0] == name


def serve(lab, name):
    for family in (socket.AF_INET, socket.AF_INET6):
        lab.serve(name, socket.SOCK_DGRAM, family)


# ---- again


def test_again_is_no_error_and_mends_what_is_missing(lab):
    one, other = many = lab.endpoints(2)
    attach_routed(many, GROUP)
    serve(lab, "c0")
    for command in (
        f"ip route del {one.addresses[0].ip}",
        f"ip -6 route del {one.addresses[1].ip}",
        f"ip neigh del {one.addresses[0].ip} dev {one.name}",
        "ip -n c0 route del default",
        "ip -n c0 -6 route del default",
        f"ip -n c0 addr del {one.addresses[0].ip}/32 dev eth0",
        f"ip link set {other.name} down",
    ):
        subprocess.run(command.split(), check=True)
    before = present(PREFIX)
    attach_routed(many, GROUP)
    assert set(present(PREFIX)) == set(before)
    answers(one, "c0")
    assert present(PREFIX)[other.index].is_up


def test_again_on_a_bridge(bridged):
    many = bridged.endpoints(2)
    for _ in range(2):
        attach_bridged(many, bridged.holder, static=True, hairpin=True)
        assert len(port_indexes("br0")) == 2
    serve(bridged, "c0")
    answers(many[0], "c0")


def test_what_is_attached_elsewhere_is_refused_with_the_place(lab):
    (one,) = lab.endpoints(1)
    attach_routed([one], GROUP)
    fresh = lab.endpoint(1, lab.namespace("fresh"))
    moved = endpoint(0, lab.namespace("elsewhere"))
    with pytest.raises(InterfaceError, match="na0.*network namespace c0 already"):
        attach_routed([fresh, moved], GROUP)
    assert set(present(PREFIX)) == {one.index}
    serve(lab, "c0")
    answers(one, "c0")


# ---- all or nothing


def test_one_that_fails_leaves_nothing_of_the_others(lab):
    many = lab.endpoints(3)
    for change, match in (
        ({"name": "lo"}, "there is interface lo .1. without an alias"),
        ({"index": 1}, "there is interface lo .1. without an alias"),
        ({"ifname": "lo"}, "has an interface lo already"),
        ({"gateways": (endpoint(77).addresses[0].ip, None)}, "10.88.0.4"),
    ):
        broken = endpoint(2, many[2].netns, **change)
        with pytest.raises(InterfaceError, match=match):
            attach_routed([*many[:2], broken], GROUP)
        assert present(PREFIX) == {}
        assert present_of([one.index for one in many]) == {}


def test_nothing_is_done_to_an_interface_of_another(lab):
    subprocess.run(["ip", "link", "add", "foreign", "index", "65537", "type", "bridge"], check=True)
    show = ["ip", "-d", "-o", "link", "show", "foreign"]
    before = subprocess.run(show, capture_output=True, check=True).stdout
    many = lab.endpoints(2)
    assert many[1].index == 65537
    for attach in (lambda: attach_routed(many, GROUP), lambda: attach_taps(many, group=GROUP)):
        with pytest.raises(InterfaceError, match="na1.*there is interface foreign .65537."):
            attach()
        assert detach(many) == 0
        assert subprocess.run(show, capture_output=True, check=True).stdout == before
        assert present(PREFIX) == {}


def test_a_route_of_another_is_not_taken_over(lab):
    subprocess.run(["ip", "route", "add", "10.88.0.2/32", "dev", "lo"], check=True)
    many = lab.endpoints(2)
    with pytest.raises(InterfaceError, match="na0.*no route to 10.88.0.2.*another"):
        attach_routed(many, GROUP)
    assert present(PREFIX) == {}


def test_a_namespace_without_ipv6_is_said(lab):
    many = lab.endpoints(2)
    with namespaces.inside("c1"):
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    with pytest.raises(InterfaceError, match="na1.*disable_ipv6"):
        attach_routed(many, GROUP)
    assert present(PREFIX) == {}


def test_a_default_route_of_another_is_not_taken_over(lab):
    first = lab.endpoint(0, lab.namespace("c0"))
    second = endpoint(1, first.netns, ifname="eth1")
    attach_routed([first], GROUP)
    with pytest.raises(InterfaceError, match="no default route by 169.254.1.1.*another"):
        attach_routed([second], GROUP)
    assert set(present(PREFIX)) == {first.index}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"index": 0}, "index 0"),
        ({"name": "sixteen-letters!"}, "cannot name"),
        ({"ifname": "a/b"}, "cannot name"),
        ({"alias": "x" * 300}, "255"),
        ({"mac": b"\1\2\3\4\5\6"}, "MAC 01:"),
        ({"mtu": 1000}, "1280"),
        ({"addresses": (None, None)}, "no address"),
        ({"netns": -1}, "no network namespace"),
    ],
)
def test_values_that_cannot_be(change, match):
    with pytest.raises(InvalidValueError, match=match):
        attach_routed([endpoint(1, 5), endpoint(2, **{"netns": 5, **change})], GROUP)


def test_the_same_twice_in_a_call():
    with pytest.raises(InvalidValueError, match="twice"):
        attach_routed([endpoint(1, 5), endpoint(1, 6)], GROUP)


def test_without_privilege_it_is_said(lab):
    (one,) = lab.endpoints(1)
    child = os.fork()
    if not child:
        try:
            os.setuid(12345)
            with pytest.raises(NetallocError, match="CAP_NET_ADMIN"):
                attach_routed([one], GROUP)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_refused_one_leaves_no_neighbour_entry(bridged):
    many = bridged.endpoints(2)
    broken = endpoint(1, many[1].netns, ifname="lo")
    with pytest.raises(InterfaceError, match="an interface lo already"):
        attach_bridged([many[0], broken], bridged.holder)
    shown = subprocess.run(["ip", "neigh"], capture_output=True, text=True, check=True).stdout
    assert shown == ""


# ---- a full bridge


def test_a_full_bridge_is_refused_before_anything_is_made(bridged):
    first = bridged.namespace("many")
    crowd = [
        endpoint(i, first, ifname=f"e{i}", gateways=(None, None), addresses=_far(i))
        for i in range(MAX_PORTS - 1)
    ]
    attach_bridged(crowd, bridged.holder)
    two = [endpoint(2000 + i, bridged.namespace(f"d{i}")) for i in range(2)]
    with pytest.raises(ExhaustedError, match='1022 ports.*1023 ports.*another bridge.*"routed"'):
        attach_bridged(two, bridged.holder)
    assert len(port_indexes("br0")) == MAX_PORTS - 1
    attach_bridged(two[:1], bridged.holder)
    attach_bridged(two[:1], bridged.holder)  # once more is no more
    with pytest.raises(ExhaustedError):
        attach_taps(two[1:], bridge_index=bridged.holder)
    assert detach([*crowd, *two], bridged.holder) == MAX_PORTS


def _far(i):
    return (endpoint(5000 + i).addresses[0], None)


def test_what_is_no_bridge_is_said(lab):
    (one,) = lab.endpoints(1)
    with pytest.raises(InterfaceError, match="lo is no bridge"):
        attach_bridged([one], 1)
    with pytest.raises(InterfaceError, match="no such interface: 77"):
        attach_bridged([one], 77)


# ---- namespaces


def test_all_ways_to_name_a_namespace(lab, tmp_path):
    fd = lab.namespace("web")
    with namespaces.inside("web"):
        child = subprocess.Popen(["sleep", "60"])
    try:
        wanted = identity(fd)
        for target in ("web", "/run/netns/web", Path("/run/netns/web"), child.pid, fd):
            found = open_netns(target)
            assert identity(found) == wanted
            os.close(found)
    finally:
        child.kill()
        child.wait()
    for target, match in (
        ("nobody", "there is no network namespace 'nobody'"),
        (tmp_path / "nothing", "there is no network namespace"),
        (tmp_path, "no network namespace"),
        ("/proc/self/ns/mnt", "no network namespace"),
        ("/proc/thread-self/ns/net", "the host's own"),
        (os.getpid(), "the host's own"),
        (child.pid, "there is no process"),
    ):
        before = len([*Path("/proc/self/fd").iterdir()])
        with pytest.raises(InterfaceError, match=match):
            open_netns(target)
        assert len([*Path("/proc/self/fd").iterdir()]) == before
    for target in (None, 1.5, True, b"web", "a\0b", "", ".", object()):
        with pytest.raises(InvalidValueError):
            open_netns(target)


def test_mac_addresses_are_stable_and_differ():
    one = endpoint(1)
    assert mac_of(one.addresses[0].ip).hex(":") == "02:42:0a:58:00:03"
    many = {mac_of(GATEWAYS[i % 2] + i) for i in range(4000)}
    assert len(many) == 4000
    assert all(mac[0] & 3 == 2 for mac in many)


# ---- going


def test_detach_when_the_namespace_went_first(lab):
    many = lab.endpoints(3)
    attach_routed(many, GROUP)
    with namespaces.inside("c0"):
        subprocess.run(["ip", "link", "del", "eth0"], check=True)
    assert detach(many) == 2


def test_detach_leaves_an_index_that_is_anothers(lab):
    (one,) = lab.endpoints(1)
    attach_routed([one], GROUP)
    assert detach([endpoint(0, alias=f"{PREFIX}another")]) == 0
    assert set(present(PREFIX)) == {one.index}
    assert present(f"{PREFIX}10.88.0.2") == present(PREFIX)
    assert present("elsewhere") == {}


def test_many_messages_with_errors_among_them(lab):
    """An answer for each, whatever else is in the same send."""
    netlink = NetlinkSocket(NETLINK_ROUTE)
    good, bad = rtnetlink.set_up(1), rtnetlink.set_up(4711)
    for requests in ([good], [bad], [bad, good], [good, bad], [good, bad, good, bad] * 3000):
        found = netlink.outcomes(requests)
        assert [one is None for one in found] == [one is good for one in requests]
    assert netlink.outcomes([]) == []
    netlink.close()


# ---- interrupts and deaths


@pytest.mark.parametrize("way", ["routed", "bridged", "taps"])
def test_an_interrupt_at_any_place_leaves_nothing(way):
    require_kernel()
    with AttachLab(bridge=way == "bridged") as lab:
        many = lab.endpoints(2)

        def work():
            if way == "routed":
                attach_routed(many, GROUP)
            elif way == "bridged":
                attach_bridged(many, lab.holder)
            else:
                attach_taps([endpoint(0), endpoint(1)], group=GROUP)

        cuts = 0
        for n in range(10_000):
            knife = Knife(n)
            try:
                knife.run(work)
            except Interrupted:
                left = present_of([FIRST, FIRST + 1])
                # On the way out of the call itself all is done.
                if left and " attach_" in knife.cuts[0]:
                    assert sweep() == 2
                else:
                    assert left == {}, knife.cuts
                cuts += 1
                continue
            if knife.cuts:  # it came when all was done, and went nowhere
                continue
            break
        assert cuts > 20
        assert sweep() == 2


def _forever(many, write):
    os.write(write, b"!")
    while True:
        attach_routed(many, GROUP)
        os.write(write, b"a")
        detach(many)
        os.write(write, b"d")


def rounds_of_kill(lab, rounds):
    """What is left after each death is told by present(), and goes."""
    many = lab.endpoints(12)
    moments = Moments(rounds, 0.03, 11)
    partial = 0
    for wait in moments:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(read)
                _forever(many, write)
            finally:
                os._exit(1)
        os.close(write)
        assert os.read(read, 1) == b"!"
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        seen = b""
        while more := os.read(read, 4096):
            seen += more
        os.close(read)
        moments.saw(done=b"d" in seen)
        left = present(PREFIX)
        partial += len(left) > 0
        assert set(left) <= {one.index for one in many}
        assert present_of([one.index for one in many]) == left, "some without an alias"
        assert detach(many) == len(left)
        assert present_of([one.index for one in many]) == {}
        shown = subprocess.run(
            "ip -4 route; ip -6 route; ip neigh",
            shell=True,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "dev na" not in shown
    attach_routed(many, GROUP)
    assert len(present(PREFIX)) == 12
    return partial


def test_what_a_death_leaves_is_known_and_goes(lab):
    rounds_of_kill(lab, 25)


@pytest.mark.soak
def test_200_deaths(lab):
    assert rounds_of_kill(lab, 200) > 20


def test_two_processes_at_once(lab):
    """Each its own containers; of the same container one makes it and the other finds it."""
    mine, yours, shared = (
        [lab.endpoint(i, lab.namespace(f"c{i}")) for i in numbers]
        for numbers in (range(20), range(20, 40), range(40, 50))
    )
    child = os.fork()
    if not child:
        try:
            for one in yours:
                attach_routed([one], GROUP)
            attach_routed(yours, GROUP)
            os._exit(0)
        finally:
            sys.stderr.flush()
            os._exit(1)
    for one in mine:
        attach_routed([one], GROUP)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    attach_routed(shared, GROUP)
    assert len(present(PREFIX)) == 50
    child = os.fork()
    if not child:
        try:
            os._exit(0 if detach(yours) <= 20 else 1)
        finally:
            os._exit(1)
    detach(mine)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert set(present(PREFIX)) == {one.index for one in shared}


def test_the_callers_thread_stays_where_it_is(lab):
    before = Path("/proc/thread-self/ns/net").readlink()
    attach_routed(lab.endpoints(2), GROUP)
    assert Path("/proc/thread-self/ns/net").readlink() == before
    with Links() as links:
        links.set_up("na0")
