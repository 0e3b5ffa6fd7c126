"""Interfaces and named namespaces, on a private host."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from lab import Lab, Private
from netalloc.errors import InterfaceError, InUseError, NotAllocatedError, OutOfRangeError
from netalloc.host import namespaces
from netalloc.host.links import Links, connect, interface_address

pytestmark = pytest.mark.root


def here(kind="net"):
    return Path("/proc/thread-self/ns", kind).readlink()


@pytest.fixture
def host():
    with Private():
        yield


def test_lab_carries_traffic_and_leaves_nothing():
    before = (here(), here("mnt"))
    machine = (Path("/proc/mounts").read_text(), os.environ["PATH"], Path.cwd())
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with Lab("legacy") as lab:
        lab.serve(lab.containers[0], "tcp", 80)
        lab.serve(lab.containers[0], "udp", 80)
        for protocol in ("tcp", "udp"):
            assert lab.ask(lab.containers[1], protocol, (lab.containers[0].ip, 80)) == (
                "c0",
                lab.containers[1].ip,
            )
        assert "legacy" in lab.run("iptables", "-V")
        assert here() != before[0]
    assert (here(), here("mnt")) == (before)
    assert (Path("/proc/mounts").read_text(), os.environ["PATH"], Path.cwd()) == machine
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_interface_address(host, caplog):
    with Links() as links:
        links.create_bridge("br0", "10.200.0.1/16")
        links.create_bridge("bare")
        assert str(interface_address("br0")) == "10.200.0.1/16"
        assert not caplog.records
        links.add_address("br0", "10.9.0.1/24")
        links.add_address("br0", "10.8.0.1/24")
        assert str(interface_address("br0")) == "10.200.0.1/16"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "br0" in record.message and "10.9.0.1/24, 10.8.0.1/24" in record.message
    with pytest.raises(InterfaceError, match=r"nope: no such interface"):
        interface_address("nope")
    with pytest.raises(InterfaceError, match="bare has no IPv4 address"):
        interface_address("bare")


def test_inside_a_running_event_loop(host):
    async def ask():
        with Links() as links:
            links.create_bridge("br0", "10.200.0.1/16")
        return interface_address("br0")

    assert str(asyncio.run(ask())) == "10.200.0.1/16"


def test_a_handle_serves_any_thread(host):
    with Links() as links:
        threads = [
            threading.Thread(target=links.create_bridge, args=(f"b{i}", f"10.{i}.0.1/24"))
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {str(links.interface_address(f"b{i}")) for i in range(8)} == {
            f"10.{i}.0.1/24" for i in range(8)
        }


def test_nothing_is_left_when_a_step_fails(host, monkeypatch):
    def refuse(*_):
        raise OSError(1, "refused")

    namespaces.create("box")
    with Links() as links:
        links.create_bridge("br0", "10.0.0.1/24")
        with pytest.raises(InterfaceError, match="unreachable"):
            connect(
                links,
                "veth0",
                namespace="box",
                bridge="br0",
                address="10.0.0.2/24",
                gateway="192.0.2.1",
            )
        with pytest.raises(InterfaceError, match="veth0: no such interface"):
            interface_address("veth0")
        with pytest.raises(InterfaceError, match="veth0"):
            links.create_veth("veth0", "eth0", namespace="box", bridge="nope")
        with pytest.raises(InterfaceError, match="br0: it exists"):
            links.create_bridge("br0")
        with pytest.raises(OutOfRangeError, match=r"10\.0\.0\.300"):
            links.create_bridge("br1", "10.0.0.300/24")
        monkeypatch.setattr(links, "_add_address", refuse)
        with pytest.raises(InterfaceError, match="br1: refused"):
            links.create_bridge("br1", "10.1.0.1/24")
        with pytest.raises(InterfaceError, match="br1: no such interface"):
            links.delete("br1")
        links.delete("br1", missing_ok=True)


def test_a_full_bridge_says_so(host):
    with Links() as links:
        links.create_bridge("br0")
        pairs = "".join(
            f"link add a{i} master br0 type veth peer name b{i}\nlink set b{i} master br0\n"
            for i in range(511)
        )
        subprocess.run(["ip", "-batch", "-"], input=pairs, text=True, check=True)
        links.create_veth("last", "peer", bridge="br0")
        with pytest.raises(InterfaceError, match="over: the bridge is full: 1023 ports"):
            links.create_veth("over", "peer2", bridge="br0")
        with pytest.raises(InterfaceError, match="over: no such interface"):
            links.delete("over")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a:b", "x" * 16])
def test_impossible_interface_names(host, name):
    with Links() as links, pytest.raises(OutOfRangeError, match="cannot name an interface"):
        links.create_bridge(name)


def test_named_namespaces(host):
    home = here()
    namespaces.create("one")
    assert here() == home
    with pytest.raises(InUseError, match="one"):
        namespaces.create("one")
    with namespaces.inside("one"):
        assert here() != home
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
    assert here() == home
    with pytest.raises(InterfaceError, match="two"):
        Links("two")
    namespaces.delete("one")
    with pytest.raises(NotAllocatedError, match="one"), namespaces.inside("one"):
        pass
    with pytest.raises(NotAllocatedError, match="one"):
        namespaces.delete("one")
    namespaces.delete("one", missing_ok=True)
    assert not list(Path("/run/netns").iterdir())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 256])
def test_impossible_namespace_names(name):
    with pytest.raises(OutOfRangeError, match="cannot name a network namespace"):
        namespaces.path(name)


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, also where the tests were started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_the_middle_of_a_creation_leaves_no_name(host, monkeypatch):
    bind = namespaces._bind_new_namespace

    def interrupted(target):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        bind(target)

    monkeypatch.setattr(namespaces, "_bind_new_namespace", interrupted)
    for _ in range(20):
        with pytest.raises(KeyboardInterrupt):
            namespaces.create("one")
        assert list(namespaces.DIRECTORY.iterdir()) == []
