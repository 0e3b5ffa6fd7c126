"""The iptables backend with both families: one batch, one clean-up, each of them mended."""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from ipaddress import IPv6Address, ip_network
from itertools import pairwise
from pathlib import Path

import pytest

from lab import Lab, Private
from moments import Moments
from netalloc.errors import CommandError, InUseError, InvalidValueError, NotAllocatedError
from netalloc.family import FAMILIES, NO_NETWORK, V4, V6, NetworkPair
from netalloc.host import namespaces
from netalloc.model import PortMapping
from netalloc.portmap.choice import remove_others
from netalloc.portmap.iptables import commands, leavings, rules
from netalloc.portmap.iptables.backend import Iptables
from netalloc.portmap.iptables.forward import ForwardAccept
from netalloc.portmap.link import Link

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

PROTOCOLS = ("tcp", "udp")
BOTH = NetworkPair(ip_network(Lab.network), ip_network(Lab.network6))

STRANGERS = """\
*nat
:OTHERS - [0:0]
-A PREROUTING -p tcp -m tcp --dport 22 -j OTHERS
-A OTHERS -j RETURN
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -i br7 -j ACCEPT
COMMIT
"""


@pytest.fixture
def lab(variant):
    with Lab(variant, ipv6=True) as lab:
        yield lab


def make(lab, networks=BOTH, name="netalloc"):
    return lab.keep(Iptables(name, link=Link(lab.bridge), networks=networks))


def every_rule(lab):
    """All rules of the host, of both families."""
    dumps = []
    for command in ("iptables-save", "ip6tables-save"):
        lines = [line.partition(" [")[0] for line in lab.run(command).splitlines()]
        # Tables, chains and policies that a mere look makes are left out.
        dumps.append([one for one in lines if one[:1] not in "#*C" and " ACCEPT" not in one[:25]])
    return dumps


def pairs(count, first=20000):
    """As many published ports, each of both families."""
    return [
        PortMapping(first + i, (ip, 80))
        for ip in ("10.200.0.9", "fd00:c8::9")
        for i in range(count)
    ]


def test_what_leaves_is_masqueraded_where_nobody_could_answer_it():
    for network, masqueraded in (
        ("2001:db8:1::/64", None),
        ("fd00:1::/64", "-s fd00:1::/64 "),
        ("fe00::/7", None),
        ("::/0", "-s fc00::/7 "),
    ):
        for bridge, where in (("br0", "! -o br0"), (None, f"! -d {network}")):
            chains = rules.fixed_rules("n", Link(bridge), ip_network(network), V6)["nat"]
            out = [rule for rule in chains["n/nat"] if " ! -" in rule]
            assert out == ([f"{masqueraded}{where} -j MASQUERADE"] if masqueraded else [])


def udp6(source, to, port):
    """A frame's content: an IPv6 packet with one byte in UDP."""
    source, to = IPv6Address(source).packed, IPv6Address(to).packed
    body = struct.pack("!4H", 999, port, 9, 0) + b"?"
    words = source + to + struct.pack("!II", len(body), 17) + body + b"\0"
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    body = body[:6] + struct.pack("!H", total) + body[8:]
    return struct.pack("!IHBB", 6 << 28, len(body), 17, 64) + source + to + body


@pytest.mark.root
@pytest.mark.parametrize("bridge_nf", [0, 1])
def test_frames_that_say_they_are_for_or_from_loopback_reach_nothing(variant, bridge_nf):
    """No guard is needed for ::1, as is for 127.0.0.0/8: the kernel itself drops them."""
    with Lab(variant, bridge_nf=bridge_nf, ipv6=True) as lab:
        backend = make(lab)
        backend.setup()
        backend.apply([PortMapping(8080, (lab.containers[1].ip6, 80), "udp")])
        (link,) = json.loads(lab.run("ip", "-j", "link", "show", lab.bridge))
        with (
            lab.socket(lab.host, "udp", "::1") as loopback,
            lab.socket(lab.host, "udp", "::") as every,
            namespaces.inside("c0"),
            socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x86DD)) as thief,
        ):
            loopback.bind(("::1", 9999))
            every.bind(("::", 9998))
            at = "eth0", 0x86DD, 0, 0, bytes.fromhex(link["address"].replace(":", ""))
            own = lab.containers[0].ip6
            for _ in range(3):
                thief.sendto(udp6(own, "::1", 9999), at)
                thief.sendto(udp6("::1", lab.gateway6, 9998), at)
                thief.sendto(udp6("::1", "::1", 9999), at)
            # What comes behind them arrives: so they have come by, and were dropped.
            thief.sendto(udp6(own, lab.gateway6, 9998), at)
            every.settimeout(5)
            assert every.recvfrom(10)[1][0] == own
            loopback.settimeout(0)
            with pytest.raises(BlockingIOError):
                loopback.recv(10)


@pytest.mark.root
def test_the_kernel_says_our_rules_as_we_do(lab):
    owners = [None, "plain", "with blank", "quo\"te's and \\", "x" * 255]
    batch = [
        PortMapping(1000 * kind + 100 * number + 7 * turn, (to, port), protocol, host, count, owner)
        for turn, protocol in enumerate(("tcp", "udp", "sctp"))
        for number, owner in enumerate(owners)
        for kind, to, port, host, count in (
            (1, "fd00:c8::2", 80, None, 1),
            (2, "fd00:c8:0:0:1::", 65535, "2001:db8::1", 1),
            (3, "::102:304", 80, "::1", 1),
            (4, "fd00:c8::ab:cd", 80, None, 5),
            (5, "64:ff9b::10.0.0.1", 5000 + 100 * number + 7 * turn, None, 5),
            (6, "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", 1, "::a00:1", 5),
        )
    ]
    backend = make(lab)
    backend.setup()
    backend.apply(batch)
    found = backend.mappings()
    assert set(found) == set(batch)
    assert {m: m.owner for m in found} == {m: m.owner for m in batch}
    assert not backend.reconcile(batch)
    backend.apply((), batch)
    assert backend.mappings() == []


@pytest.mark.root
def test_cleanup_restores_the_tables_with_others_rules_in_between(lab):
    for command in ("iptables", "ip6tables"):
        lab.run(f"{command}-restore", "--noflush", input=STRANGERS)
    before = every_rule(lab)
    backend, other = make(lab), make(lab, name="other")
    backend.setup()
    backend.apply(pairs(200))
    other.setup()
    other.apply(pairs(5, first=9000))
    backend.cleanup()
    assert set(other.mappings()) == set(pairs(5, first=9000))
    assert not other.reconcile(pairs(5, first=9000))
    assert every_rule(lab) != before
    other.cleanup()
    assert every_rule(lab) == before
    other.cleanup()
    assert every_rule(lab) == before


DAMAGE = [
    ["-t", "nat", "-F"],
    ["-t", "nat", "-D", "PREROUTING", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "netalloc"],
    ["-t", "nat", "-F", "OUTPUT"],
    ["-t", "nat", "-F", "netalloc"],
    ["-t", "nat", "-F", "netalloc/nat"],
]


@pytest.mark.root
def test_damage_is_mended_where_it_is(lab):
    backend = make(lab)
    backend.setup()
    desired = pairs(3)
    backend.apply(desired)
    whole = every_rule(lab)
    for damage in DAMAGE:
        lab.run("ip6tables", *damage)
        assert not backend.agrees(desired)
        found = backend.reconcile(desired)
        assert found and all("of table ip6 nat" in line for line in found.structure)
        assert not backend.reconcile(desired) and backend.agrees(desired)
        assert [sorted(one) for one in every_rule(lab)] == [sorted(one) for one in whole]
    found = backend.reconcile(desired[1:4])
    assert set(found.removed) == {desired[0], *desired[4:]} and not found.added
    found = backend.reconcile(desired)
    assert set(found.added) == {desired[0], *desired[4:]} and not found.removed


@pytest.mark.root
def test_a_second_instance_keeps_mappings_in_the_same_chains(lab):
    one, two = make(lab), make(lab)
    one.setup()
    two.setup()
    for turn, (first, second) in enumerate([(one, two), (two, one)] * 3):
        first.apply(pairs(2, first=3000 + 10 * turn))
        second.apply(pairs(2, first=4000 + 10 * turn), pairs(2, first=3000 + 10 * turn))
        # It believes that they are there, and learns better from the command.
        with pytest.raises(NotAllocatedError, match=f"{3000 + 10 * turn}/tcp"):
            first.apply((), pairs(1, first=3000 + 10 * turn))
    assert len(one.mappings()) == 6 * 4 and set(one.mappings()) == set(two.mappings())


@pytest.mark.root
@pytest.mark.parametrize(
    ("error", "made"),
    [(CommandError, False), (KeyboardInterrupt, False), (KeyboardInterrupt, True)],
)
def test_when_the_second_family_fails_the_first_is_undone(lab, monkeypatch, error, made):
    backend = make(lab)
    backend.setup()
    backend.apply(old := pairs(2))
    before = every_rule(lab)
    real = commands.restore

    def fails(changes, *, family=V4, variant=None):
        if family is V6 and error is CommandError:
            changes = {"nat": [*changes["nat"], "-A netalloc -j NOWHERE\n"]}
        elif family is V6:
            monkeypatch.setattr(commands, "restore", real)
            if made:
                real(changes, family=family, variant=variant)
            raise KeyboardInterrupt
        real(changes, family=family, variant=variant)

    for add, remove in ((pairs(2, 21000), []), ([], old), (pairs(2, 21000), old)):
        monkeypatch.setattr(commands, "restore", fails)
        with pytest.raises(error):
            backend.apply(add, remove)
        monkeypatch.setattr(commands, "restore", real)
        assert sorted(map(sorted, every_rule(lab))) == sorted(map(sorted, before))
        assert set(backend.mappings()) == set(old)
    backend.apply([], old)
    assert backend.mappings() == []


@pytest.mark.root
def test_what_our_own_rules_refuse_starts_no_restore(lab, monkeypatch):
    backend = make(lab)
    backend.setup()
    held = PortMapping(20000, ("fd00:c8::7", 80))
    backend.apply([held])
    with monkeypatch.context() as patch:
        patch.setattr(commands, "restore", lambda *_, **__: pytest.fail("a restore"))
        with pytest.raises(InUseError, match="20000/tcp"):
            backend.apply(pairs(1))
        with pytest.raises(NotAllocatedError, match="20000/tcp"):
            backend.apply((), pairs(1))
    assert backend.mappings() == [held]


@pytest.mark.root
def test_an_undo_that_fails_is_raised_with_what_led_to_it(lab, monkeypatch):
    backend = make(lab)
    backend.setup()
    real = commands.restore
    turn = []

    def fails(changes, *, family=V4, variant=None):
        turn.append(family)
        if len(turn) > 1:
            raise CommandError(f"no more {family.word}", (), 4, "xtables lock")
        real(changes, family=family, variant=variant)

    monkeypatch.setattr(commands, "restore", fails)
    with pytest.raises(ExceptionGroup) as caught:
        backend.apply(pairs(1))
    assert [str(one) for one in caught.value.exceptions] == ["no more ip6", "no more ip"]
    monkeypatch.setattr(commands, "restore", real)
    assert backend.reconcile([]).removed == tuple(pairs(1)[:1])


CHANGING = """
import sys
from ipaddress import ip_network
from netalloc.family import NetworkPair
from netalloc.model import PortMapping
from netalloc.portmap.iptables.backend import Iptables
from netalloc.portmap.link import Link
networks = NetworkPair(ip_network("10.200.0.0/16"), ip_network("fd00:c8::/64"))
backend = Iptables(link=Link("br0"), networks=networks)
batch = [
    PortMapping(20000 + i, (ip, 80)) for ip in ("10.200.0.9", "fd00:c8::9") for i in range(60)
]
backend.setup()
add, remove = batch, ()
print("ready", flush=True)
while True:
    backend.apply(add, remove)
    add, remove = remove, add
"""


@pytest.mark.root
def test_kills_between_the_families_are_mended(lab):
    """kill -9 until one has left the two unequal, and then some more."""
    backend = make(lab)
    backend.setup()
    whole = every_rule(lab)
    unequal = 0
    moments = Moments(8, 0.05, 3)
    for moment in moments:
        backend.reconcile([])
        child = subprocess.Popen(
            [sys.executable, "-c", CHANGING], stdout=subprocess.PIPE, process_group=0
        )
        with child:
            assert child.stdout.readline() == b"ready\n"
            time.sleep(moment)
            os.killpg(child.pid, signal.SIGKILL)
        found = dict.fromkeys((4, 6), 0)
        for mapping in backend.mappings():
            found[mapping.version] += 1
        # Each family has all of a batch or nothing of it.
        assert set(found.values()) <= {0, 60}
        unequal += found[4] != found[6]
        moments.saw(done=found[4] == found[6])
        assert backend.reconcile(pairs(60)) or found == {4: 60, 6: 60}
        assert not backend.reconcile(pairs(60))
    assert unequal
    backend.reconcile([])
    assert every_rule(lab) == whole


@pytest.mark.root
@pytest.mark.parametrize("networks", [NO_NETWORK, NetworkPair(BOTH.v4)])
def test_a_family_that_is_not_there_is_not_touched(lab, monkeypatch, networks):
    started = []
    real = commands.run

    def noting(command, text=None):
        started.append(command[0])
        return real(command, text)

    monkeypatch.setattr(commands, "run", noting)
    backend = make(lab, networks)
    backend.setup()
    # Tables read, twice nat; the variant, and the other one; one restore.
    assert len(started) <= 7
    four, six = PortMapping(80, ("10.200.0.2", 80)), PortMapping(80, ("fd00:c8::2", 80))
    backend.apply([four])
    for call in (
        lambda: backend.apply([six]),
        lambda: backend.apply([four, six]),
        lambda: backend.apply((), [six]),
        lambda: backend.reconcile([four, six]),
        lambda: backend.agrees([six]),
    ):
        with pytest.raises(InvalidValueError, match=r"fd00:c8::2:?.* is of IPv6: chain netalloc"):
            call()
    started.clear()
    backend.apply([], [four])
    assert started == ["iptables-restore"]
    started.clear()
    assert backend.mappings() == []
    assert started == ["iptables-save"]
    assert not backend.reconcile([])
    backend.cleanup()
    assert not any(command.startswith("ip6") for command in started)
    assert commands.legacy_tables(V6) == []


@pytest.mark.root
def test_one_family_of_a_batch_starts_one_restore(lab, monkeypatch):
    backend = make(lab)
    backend.setup()
    started = []
    real = commands.run
    monkeypatch.setattr(
        commands,
        "run",
        lambda command, text=None: started.append(command[0]) or real(command, text),
    )
    for mapping in pairs(1):
        backend.apply([mapping])
    backend.apply([], pairs(1))
    assert started == ["iptables-restore", "ip6tables-restore"] * 2


def hide(lab, monkeypatch, tmp_path):
    """A PATH with all of iptables but ip6tables."""
    for command in ("iptables", "iptables-save", "iptables-restore"):
        (tmp_path / command).symlink_to(shutil.which(command))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.root
def test_without_ip6tables_it_says_what_to_install(lab, monkeypatch, tmp_path):
    before = every_rule(lab)
    backend, forward = make(lab), ForwardAccept("netalloc", Link(lab.bridge), FAMILIES)
    with monkeypatch.context() as patch:
        hide(lab, patch, tmp_path)
        for act in (backend.setup, forward.reconcile):
            with pytest.raises(CommandError, match=r"ip6tables-save is not on PATH.*install the"):
                act()
        make(lab, NetworkPair(BOTH.v4)).setup()
        make(lab, NetworkPair(BOTH.v4)).cleanup()
    assert every_rule(lab) == before


@pytest.mark.root
def test_a_failed_setup_leaves_nothing_of_either_family(lab, monkeypatch):
    before = every_rule(lab)
    real = commands.restore

    def fails(changes, *, family=V4, variant=None):
        if family is V6:
            raise CommandError("no ip6tables", (), 4, "xtables lock")
        real(changes, family=family, variant=variant)

    with monkeypatch.context() as patch:
        patch.setattr(commands, "restore", fails)
        with pytest.raises(CommandError, match="no ip6tables"):
            make(lab).setup()
    assert every_rule(lab) == before
    # What a predecessor had stays: here of IPv4.
    four = make(lab, NetworkPair(BOTH.v4))
    four.setup()
    four.apply(pairs(1)[:1])
    with monkeypatch.context() as patch:
        patch.setattr(commands, "restore", fails)
        with pytest.raises(CommandError, match="no ip6tables"):
            make(lab).setup()
    assert four.agrees(pairs(1)[:1])


@pytest.mark.root
def test_chains_of_others_are_refused_in_either_family(lab):
    lab.run("ip6tables", "-t", "nat", "-N", "OTHERS")
    lab.run("ip6tables", "-t", "nat", "-A", "OTHERS", "-i", "docker0", "-j", "RETURN")
    before = every_rule(lab)
    for act in (make(lab, name="OTHERS").setup, make(lab, name="OTHERS").cleanup):
        with pytest.raises(InUseError, match=r"chain OTHERS .* is another program's.*-i docker0"):
            act()
    assert every_rule(lab) == before


@pytest.mark.root
@pytest.mark.parametrize("keep", ["nftables", "iptables"])
def test_what_the_last_backend_left_goes_in_both_families(lab, keep):
    lab.run("ip6tables", "-t", "nat", "-N", "netalloc-br1")
    before = every_rule(lab)
    left = make(lab, name="netalloc-br0")
    left.setup()
    left.apply(pairs(2))
    ForwardAccept("netalloc-br0", Link(lab.bridge), FAMILIES).reconcile()
    assert leavings.is_there(lab.variant, "netalloc-br0", (V6,))
    if keep == "nftables":
        (found,) = remove_others("netalloc-br0", keep, Link(lab.bridge), BOTH)
        assert "with 4 mappings" in found
        assert every_rule(lab) == before
    else:
        # It stays where it is the backend; but what is of IPv4 alone by now has no chains of IPv6.
        assert remove_others("netalloc-br0", keep, Link(lab.bridge), BOTH) == []
        assert set(left.mappings()) == set(pairs(2))
        (found,) = remove_others("netalloc-br0", keep, Link(lab.bridge), NetworkPair(BOTH.v4))
        assert "with 2 mappings" in found
        assert every_rule(lab)[1] == before[1]
        assert make(lab, NetworkPair(BOTH.v4), "netalloc-br0").mappings() == pairs(2)[:2]
    assert remove_others("netalloc-br0", keep, Link(lab.bridge), NetworkPair(BOTH.v4)) == []


@pytest.mark.root
def test_a_dropping_forward_chain(lab):
    c0 = lab.containers[0]
    for protocol in PROTOCOLS:
        lab.serve(c0, protocol, 80)
        lab.serve(lab.outside, protocol, 80)
    for command in ("iptables", "ip6tables"):
        lab.run(command, "-P", "FORWARD", "DROP")
    before = every_rule(lab)
    backend, forward = make(lab), ForwardAccept("netalloc", Link(lab.bridge), FAMILIES)
    backend.setup()
    backend.apply([PortMapping(8080, (ip, 80), p) for ip in (c0.ip, c0.ip6) for p in PROTOCOLS])
    places = ((lab.address, lab.outside.ip), (lab.address6, lab.outside.ip6))
    assert lab.reaches(lab.outside, "udp", (lab.address6, 8080)) is None
    assert len(forward.reconcile()) == 2 * 5
    assert forward.reconcile() == ()
    for protocol in PROTOCOLS:
        for address, outside in places:
            assert lab.ask(lab.outside, protocol, (address, 8080))[0] == "c0"
            assert lab.ask(c0, protocol, (outside, 80))[0] == "outside"
    lab.run("ip6tables", "-F", "FORWARD")
    assert forward.reconcile() == ("chain FORWARD of table ip6 filter lacked '-j netalloc/fwd'",)
    forward.cleanup()
    backend.cleanup()
    assert every_rule(lab) == before


@pytest.mark.root
@pytest.mark.parametrize("networks", [BOTH, NetworkPair(None, BOTH.v6)])
def test_what_others_change_of_ip6tables_wakes_the_watch(networks):
    with Lab("nft", ipv6=True) as lab:
        backend = make(lab, networks)
        backend.setup()
        for command, families in (("ip6tables", networks.families), ("iptables", (V4,))):
            monitor = backend.monitor()
            late = threading.Timer(20, monitor.stop)
            late.start()
            lab.run(command, "-t", "nat", "-N", "somebodys")
            if families == (V4,) and V4 not in networks.families:
                monitor.stop()
                assert not monitor.wait()
            else:
                assert monitor.wait()
            late.cancel()
            late.join()
            monitor.close()


@pytest.mark.root
def test_without_a_bridge(variant):
    """Routed containers: no way from ::1, which is refused at once."""
    with Lab(variant, ipv6=True) as lab:
        c0, c1 = lab.containers
        backend = lab.keep(Iptables(networks=BOTH))
        backend.setup()
        for protocol in PROTOCOLS:
            lab.serve(c0, protocol, 80)
            lab.serve(lab.outside, protocol, 80)
            backend.apply([PortMapping(8080, (c0.ip6, 80), protocol)])
            assert lab.ask(lab.outside, protocol, (lab.address6, 8080)) == ("c0", lab.outside.ip6)
            for place in (lab.host, c0, c1):
                assert lab.ask(place, protocol, (lab.address6, 8080))[0] == "c0"
            assert lab.ask(c0, protocol, (lab.outside.ip6, 80)) == ("outside", lab.address6)
            with pytest.raises(ConnectionRefusedError):
                lab.ask(lab.host, protocol, ("::1", 8080))
        backend.cleanup()


def test_the_tree_is_the_same_in_both_families():
    for four, six in pairwise(pairs(1)):
        assert rules.chain_path(four, "n") == rules.chain_path(six, "n")


@pytest.mark.root
def test_a_host_without_ipv6_tables_says_so_before_anything_changed(variant):
    with Private():
        lab = Lab(variant)
        lab.use(variant)
        directory = Path("/run/broken")
        directory.mkdir()
        for name in ("ip6tables-save", "ip6tables-restore", "ip6tables"):
            (directory / name).write_text("#!/bin/sh\necho no ip6tables here >&2; exit 3\n")
            (directory / name).chmod(0o755)
        path = os.environ["PATH"]
        os.environ["PATH"] = f"{directory}:{path}"
        try:
            with pytest.raises(CommandError, match="no ip6tables here"):
                Iptables(networks=BOTH).setup()
            assert "-A" not in lab.run("iptables-save")
        finally:
            os.environ["PATH"] = path
