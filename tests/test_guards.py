"""Nothing from a container arrives at the host's 127.0.0.0/8, whatever becomes of managers.

Two hostile containers on two bridges write frames to the host's 127.0.0.1, and from 127.0.0.2,
as fast as they can, with and without VLAN tags, while managers start, reconcile, close and are
killed, rules are flushed and bridges renamed. Raw sockets of the host count what is delivered.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from faults import in_child
from lab import Lab
from netalloc.errors import NetallocError
from netalloc.host import namespaces, opened, sysctl
from netalloc.host.links import Links, connect
from netalloc.host.loopback_guard import guards, open_socket
from netalloc.portmap.kernel import KernelMappings
from netalloc.portmap.link import Link

pytestmark = pytest.mark.root

HOSTILE = Path(__file__).with_name("hostile.py")
BRIDGES = {
    "br0": ("c0", "10.200.0.2", "10.200.0.0/16"),
    "br1": ("d0", "10.201.0.2", "10.201.0.0/16"),
}
PORTS = b"\x0f\xa0\x27\x0f"  # from 4000 to 9999


class Manager:
    """A process that has mappings of a bridge, and does what it is told."""

    def __init__(self, bridge, backend):
        self.bridge, self.backend = bridge, backend
        asking, self.ask = os.pipe()
        self.answer, answering = os.pipe()
        self.child = os.fork()
        if self.child:
            os.close(asking)
            os.close(answering)
            return
        try:
            os.close(self.ask)
            os.close(self.answer)
            self.work(asking, answering)
        finally:
            os._exit(0)

    def work(self, asking, answering):
        kernel = kernel_of(self.bridge, self.backend)
        while command := os.read(asking, 1):
            with suppress(NetallocError):  # a bridge that was renamed, say
                {
                    b"s": kernel.setup,
                    b"r": lambda: kernel.reconcile([]),
                    b"c": kernel.cleanup,
                }[command]()
            os.write(answering, b".")

    def do(self, command, *, wait=True):
        os.write(self.ask, command)
        if wait:
            os.read(self.answer, 1)

    def end(self, number=signal.SIGKILL):
        os.kill(self.child, number)
        os.waitpid(self.child, 0)
        os.close(self.ask)
        os.close(self.answer)


def kernel_of(bridge, backend):
    name = f"netalloc-{bridge}"
    return KernelMappings(backend, link=Link(bridge), network=BRIDGES[bridge][2], name=name)


class Siege:
    """A host with two bridges, a hostile container on each, and counters."""

    def __init__(self, variant, seconds):
        self.lab = Lab(variant, containers=1)
        self.seconds = seconds
        self.sent = self.arrived = 0

    def __enter__(self):
        with ExitStack() as stack:
            stack.enter_context(self.lab)
            with Links() as links:
                links.create_bridge("br1", "10.201.0.1/16")
                namespaces.create("d0")
                connect(links, "vethd", namespace="d0", bridge="br1", address="10.201.0.2/16")
            for bridge in BRIDGES:  # rp_filter 0, where a source is believed
                sysctl.write("0", "net", "ipv4", "conf", bridge, "rp_filter")
            sysctl.write("0", "net", "ipv4", "conf", "all", "rp_filter")
            self.counters = [
                stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, number))
                for number in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
            ]
            for one in self.counters:
                one.setblocking(False)
            self.hostile = [self._attack(bridge) for bridge in BRIDGES]
            self.stack = stack.pop_all()
        return self

    def _attack(self, bridge):
        namespace, ip, _ = BRIDGES[bridge]
        mac = Path("/proc/net/arp")  # only to be sure that this is our own /proc
        assert mac.exists()
        shown = self.lab.run("ip", "-o", "link", "show", bridge)
        mac = shown.split("link/ether ")[1].split()[0]
        command = ["ip", "netns", "exec", namespace, sys.executable, str(HOSTILE), "eth0", mac, ip]
        process = subprocess.Popen([*command, str(self.seconds)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        return process

    def count(self):
        """How many hostile packets were delivered since the last look."""
        found = 0
        for one in self.counters:
            with suppress(BlockingIOError):
                while True:
                    data = one.recv(200)
                    start = (data[0] & 15) * 4
                    found += data[start : start + 4] == PORTS
        return found

    def __exit__(self, *_):
        for process in self.hostile:
            with process:
                sent = process.stdout.readline() if self.seconds else ""
                self.sent += int(sent or 0)
        self.stack.close()


def settings(bridge):
    return sysctl.read("net", "ipv4", "conf", bridge, "route_localnet")


def test_the_siege_is_a_real_one():
    """Without a guard everything comes in; the second tag matters, too."""
    with Siege("nft", 1.5) as siege:
        time.sleep(0.1)
        assert siege.count() == 0
        for bridge in BRIDGES:
            sysctl.write("1", "net", "ipv4", "conf", bridge, "route_localnet")
        deadline = time.monotonic() + 10
        kinds = 0
        while kinds < 200 and time.monotonic() < deadline:
            kinds += siege.count()
        assert kinds >= 200


STEPS = ("start", "start", "start", "setup", "reconcile", "close", "kill", "kill in setup",
         "kill in cleanup", "flush nft", "flush iptables", "rename", "rename back")  # fmt: skip


def act(step, dice, siege, managers):
    """One step of a case."""
    lab = siege.lab
    free = [pair for pair in PAIRS if pair not in [(m.bridge, m.backend) for m in managers]]
    one = dice.choice(managers) if managers else None
    bridge = dice.choice(list(BRIDGES))
    match step:
        case "start" if free and len(managers) < 3:
            pair = dice.choice(free)
            if present(pair[0]):
                managers.append(Manager(*pair))
                managers[-1].do(b"s")
        case "setup" if one:
            one.do(b"s")
        case "reconcile" if one:
            one.do(b"r")
        case "close" if one:
            one.do(b"c")
            managers.remove(one)
            one.end()
        case "kill" | "kill in setup" | "kill in cleanup" if one:
            if step != "kill":
                one.do(b"s" if step.endswith("setup") else b"c", wait=False)
                time.sleep(dice.random() * 0.02)
            managers.remove(one)
            one.end()
        case "flush nft":
            lab.run("nft", "flush", "ruleset")
        case "flush iptables":
            for table in ("raw", "mangle", "nat"):
                lab.run("iptables", "-t", table, "-F")
        case "rename" if present(bridge):
            lab.run("ip", "link", "set", bridge, "name", f"{bridge}x")
        case "rename back" if present(f"{bridge}x"):
            lab.run("ip", "link", "set", f"{bridge}x", "name", bridge)
        case _:
            return False
    return True


PAIRS = [(bridge, backend) for bridge in BRIDGES for backend in ("nftables", "iptables")]


def present(bridge):
    return bridge in [name for _, name in socket.if_nameindex()]


def run_cases(variant, seconds, seed, capsys):
    cases = steps = 0
    dice = random.Random(seed)
    with Siege(variant, seconds) as siege:
        end = time.monotonic() + seconds - 2
        while time.monotonic() < end:
            cases += 1
            managers = []
            done = []
            try:
                for _ in range(dice.randrange(4, 14)):
                    step = dice.choice(STEPS)
                    if act(step, dice, siege, managers):
                        steps += 1
                        done.append(step)
                    siege.arrived += siege.count()
                    assert not siege.arrived, (seed, done)
            finally:
                for one in managers:
                    one.end()
            for bridge in BRIDGES:
                with suppress(AssertionError):
                    siege.lab.run("ip", "link", "set", f"{bridge}x", "name", bridge)
            for pair in PAIRS:  # one that takes over a crashed one's name closes what it left open
                kernel = kernel_of(*pair)
                kernel.setup()
                kernel.cleanup()
                kernel.close()
            siege.arrived += siege.count()
            assert [settings(bridge) for bridge in BRIDGES] == ["0", "0"], (seed, done)
            assert not filters(), (seed, done)
            with opened.opened() as record:
                assert not record, (seed, done)
            assert not siege.arrived, (seed, done)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{variant}: {cases} cases, {steps} steps, {siege.sent} frames, "
            f"{siege.arrived} arrived "
        )
    assert cases and siege.sent > 1000


def filters():
    netlink = open_socket()
    try:
        return [guards(netlink, socket.if_nametoindex(bridge)) for bridge in BRIDGES] != [[], []]
    finally:
        netlink.close()


@pytest.mark.parametrize("seconds", [6, pytest.param(300, marks=pytest.mark.soak)])
def test_nothing_arrives(variant, seconds, capsys):
    run_cases(variant, seconds, 7, capsys)


def test_a_renamed_bridge_is_closed_by_the_next_to_come(nft_lab):
    """By its own manager, or by one of another bridge after a crash."""
    with Links() as links:
        links.create_bridge("br1", "10.201.0.1/16")
    for closer in ("own", "other", "cleanup"):
        ours = kernel_of("br0", "nftables")
        ours.setup()
        assert settings("br0") == "1"
        nft_lab.run("ip", "link", "set", "br0", "name", "brx")
        assert settings("brx") == "1"  # and guarded
        if closer == "own":
            with pytest.raises(NetallocError, match="br0"):
                ours.reconcile([])
        elif closer == "other":
            other = kernel_of("br1", "iptables")
            other.setup()
            assert settings("br1") == "1"
        else:
            ours.cleanup()
        assert settings("brx") == "0", closer
        nft_lab.run("ip", "link", "set", "brx", "name", "br0")
        ours.cleanup()
        ours.close()
        if closer == "other":
            assert settings("br1") == "1"  # a sibling of another bridge does not count
            other.cleanup()
            other.close()
        assert settings("br1") == settings("br0") == "0"
        assert not filters()


def test_the_last_of_a_bridge_closes_it(nft_lab):
    one, two = kernel_of("br0", "nftables"), kernel_of("br0", "iptables")
    forward = ("net", "ipv4", "ip_forward")
    assert sysctl.read(*forward) == "0"
    one.setup()
    two.setup()
    one.cleanup()
    assert settings("br0") == sysctl.read(*forward) == "1"

    def crash():
        again = kernel_of("br0", "iptables")
        again.setup()
        os.kill(os.getpid(), signal.SIGKILL)

    two.close()
    assert in_child(crash) == -9
    again = kernel_of("br0", "iptables")
    again.cleanup()  # without a set-up: what was opened is known all the same
    assert settings("br0") == sysctl.read(*forward) == "0"
    assert "clsact" not in nft_lab.run("tc", "qdisc", "show", "dev", "br0")
    for each in (one, again):
        each.close()


def test_forwarding_that_was_on_stays_on_and_is_said_when_it_was_off(nft_lab, caplog):
    caplog.set_level("INFO", "netalloc")
    forward = ("net", "ipv4", "ip_forward")
    for value in ("0", "1"):
        sysctl.write(value, *forward)
        caplog.clear()
        kernel = kernel_of("br0", "nftables")
        kernel.setup()
        assert ("set net.ipv4.ip_forward, which was 0" in caplog.text) == (value == "0")
        kernel.cleanup()
        kernel.close()
        assert sysctl.read(*forward) == value
        assert ("ip_forward back to 0" in caplog.text) == (value == "0")


def test_where_no_guard_can_be_set_nothing_is_opened(nft_lab, monkeypatch, caplog):
    from netalloc.errors import CommandError

    def refuse(*_):
        raise CommandError("no cls_bpf")

    monkeypatch.setattr("netalloc.portmap.bridge_settings.set_guard", refuse)
    kernel = kernel_of("br0", "nftables")
    kernel.setup()
    assert settings("br0") == "0"
    assert "no way to containers from 127.0.0.1: no cls_bpf" in caplog.text
    assert not kernel.reconcile([])
    kernel.cleanup()
    kernel.close()
