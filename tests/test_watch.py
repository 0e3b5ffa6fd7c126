"""Rules that somebody else changes are mended at once, and our own changes wake nobody."""

import os
import queue
import re
import select
import signal
import threading
import time
from contextlib import ExitStack

import pytest

from netalloc.errors import NetallocError
from netalloc.host.rule_monitor import RuleMonitor
from netalloc.host.watch_turn import WatchTurn
from netalloc.manager import upkeep
from netalloc.manager.manager import NetworkManager
from netalloc.model import PortMapping, PortRequest
from netalloc.portmap.mapper import PortMapper
from netalloc.portmap.watch import Watch

pytestmark = pytest.mark.root

BREAKAGES = {
    "nftables": [
        ("nft", "flush", "ruleset"),
        ("nft", "delete", "table", "inet", "netalloc"),
        ("nft", "flush", "chain", "inet", "netalloc", "prerouting"),
        ("nft", "insert", "rule", "inet", "netalloc", "portmap", "tcp", "dport", "8080", "drop"),
        ("nft", "delete", "element", "inet", "netalloc", "dnat_any", "{ tcp . 8080 }"),
    ],
    "iptables": [
        ("nft", "flush", "ruleset"),
        ("iptables", "-t", "nat", "-F", "netalloc"),
        ("iptables", "-t", "nat", "-F", "PREROUTING"),
    ],
}


@pytest.mark.parametrize("backend", BREAKAGES)
def test_what_others_break_is_mended_within_a_second(nft_lab, backend):
    lab = nft_lab
    c0 = lab.containers[0]
    lab.serve(c0, "tcp", 80)
    with PortMapper(backend, bridge=lab.bridge, network=lab.network) as mapper:
        mapper.map(8080, (c0.ip, 80))
        began = time.monotonic()
        mapper.reconcile()
        patience = max(1, 20 * (time.monotonic() - began))  # the machine may be busy
        found = queue.Queue()
        with mapper.watch(found.put):
            for breakage in BREAKAGES[backend]:
                began = time.monotonic()
                lab.run(*breakage)
                assert found.get(timeout=30), breakage
                assert time.monotonic() - began < patience, breakage
                assert lab.ask(lab.outside, "tcp", (lab.address, 8080))[0] == "c0", breakage


def test_our_own_changes_wake_nobody_and_others_tables_neither(nft_lab):
    with PortMapper("nftables") as mapper, Waits(mapper.backend.monitor()) as monitor:
        mapper.map_many([PortMapping(port, ("10.0.0.2", 80)) for port in range(1, 3000)])
        mapper.unmap(7)
        nft_lab.run("nft", "add", "table", "ip", "stranger")
        nft_lab.run("nft", "add", "table", "ip6", "netalloc")
        # Events come in order: had one of those counted, it would have been the first.
        nft_lab.run("nft", "add", "chain", "inet", "netalloc", "strange")
        assert monitor.changes.get(timeout=30) is True
        nft_lab.run("nft", "delete", "chain", "inet", "netalloc", "strange")
        assert monitor.changes.get(timeout=30) is True
        assert monitor.changes.empty()


def test_a_burst_that_overflows_the_socket_counts_as_a_change(nft_lab):
    monitor = RuleMonitor(["netalloc"])
    monitor._netlink._socket.setsockopt(1, 33, 2048)  # SO_RCVBUFFORCE: room for a few events
    with PortMapper("nftables") as mapper:
        mapper.map_many([PortMapping(port, ("10.0.0.2", 80)) for port in range(1, 9000)])
        assert monitor.wait()
    monitor.close()


def test_a_watch_ends(nft_lab):
    with PortMapper("nftables") as mapper:
        before = threading.active_count()
        first = mapper.watch()
        second = mapper.watch()  # takes the first one's place
        assert threading.active_count() == before + 1
        first.close()
        second.close()
        second.close()
        assert threading.active_count() == before
        mapper.watch()
    # Cleaning up ended it, or it would have made the table again.
    assert threading.active_count() == before
    assert nft_lab.run("nft", "list", "ruleset") == ""


def test_a_watch_may_end_itself(nft_lab):
    done = threading.Event()
    with PortMapper("nftables") as mapper:

        def once(_):
            watch.close()
            done.set()

        watch = mapper.watch(once)
        nft_lab.run("nft", "flush", "ruleset")
        assert done.wait(30)
        watch._thread.join(30)
        assert not watch._thread.is_alive()


def test_a_failed_repair_is_tried_again(nft_lab, monkeypatch):
    monkeypatch.setattr("netalloc.portmap.watch._FIRST_PAUSE", 0.01)
    found, failed = queue.Queue(), threading.Event()
    monkeypatch.setattr("netalloc.portmap.watch.logger.exception", lambda _: failed.set())
    with PortMapper("nftables", bridge=nft_lab.bridge, network=nft_lab.network) as mapper:
        mapper.watch(found.put)
        nft_lab.run("ip", "link", "set", nft_lab.bridge, "name", "away")
        nft_lab.run("nft", "flush", "ruleset")
        assert failed.wait(30)
        assert found.empty()
        nft_lab.run("ip", "link", "set", "away", "name", nft_lab.bridge)
        assert found.get(timeout=30).structure[0] == "table inet netalloc was missing"


def test_what_cannot_be_watched_says_so(make_lab):
    make_lab("legacy")
    with pytest.raises(NetallocError, match="iptables-legacy"):
        PortMapper("iptables").watch()
    with pytest.raises(NetallocError, match="null"):
        PortMapper("null").watch()


class Waits:
    """Runs a monitor's waits in a thread and queues what they return."""

    def __init__(self, monitor):
        self.monitor, self.changes = monitor, queue.Queue()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while self.monitor.wait():
            self.changes.put(True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.monitor.stop()
        self.thread.join()
        self.monitor.close()
        self.monitor.stop()  # harmless afterwards


def manager_of(lab, store, backend="nftables"):
    return NetworkManager(
        lab.bridge, network="10.200.0.1/16", backend=backend, store=store, probe=lambda *_: True
    )


class Watching:
    """A process that watches, and tells of what it repairs."""

    def __init__(self, lab, store, backend):
        self._told, tell = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                with manager_of(lab, store, backend) as manager:
                    manager.watch(lambda _: os.write(tell, b"r"))
                    os.write(tell, b"!")
                    signal.pause()
            finally:
                os._exit(1)
        os.close(tell)
        assert self.repairs(30) == 1

    def repairs(self, seconds):
        """How many repairs it tells of, 0 where it tells of none for so long."""
        ready, _, _ = select.select([self._told], [], [], seconds)
        return len(os.read(self._told, 100)) if ready else 0

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_one_process_watches_and_another_takes_over_when_it_dies(nft_lab, tmp_path, backend):
    store, lab = tmp_path / "store.db", nft_lab
    lab.serve(lab.containers[0], "tcp", 80)
    port = PortRequest(80, host_port=8080)
    with manager_of(lab, store, backend) as manager:
        manager.allocate("x", ip=lab.containers[0].ip, ports=[port])
        first, second = (Watching(lab, store, backend) for _ in range(2))
        for breakage in BREAKAGES[backend][:1]:
            lab.run(*breakage)
            assert first.repairs(30) == 1
            assert lab.ask(lab.outside, "tcp", (lab.address, 8080))[0] == "c0"
        first.kill()
        lab.run("nft", "flush", "ruleset")
        assert second.repairs(30) == 1
        assert lab.ask(lab.outside, "tcp", (lab.address, 8080))[0] == "c0"
        second.kill()
        found = queue.Queue()
        with manager.watch(found.put):  # and this one at once
            lab.run("nft", "flush", "ruleset")
            assert found.get(timeout=30)


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_what_another_process_changes_is_no_repair(nft_lab, tmp_path, backend, monkeypatch):
    store = tmp_path / "store.db"
    looks = queue.Queue()
    is_well = Watch._is_well
    monkeypatch.setattr(Watch, "_is_well", lambda *call: looks.put(is_well(*call)) or True)

    def change():
        with manager_of(nft_lab, store, backend) as other:
            for _ in range(5):
                other.allocate("y", ports=[80, 443]).release()
            other.allocate("z", ports=[80])
        os._exit(0)

    with manager_of(nft_lab, store, backend) as manager:
        manager.allocate("x", ports=[80])
        repairs = []
        monkeypatch.setattr(upkeep, "reconcile", repairs.append)
        with manager.watch():
            repairs.clear()
            well = False
            while not well:  # the first look may have been in the middle of a change
                child = os.fork()
                if not child:
                    try:
                        change()
                    finally:
                        os._exit(1)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                well = looks.get(timeout=30)
        assert repairs == []


def test_a_difference_of_one_element_is_seen_by_a_look(nft_lab, tmp_path):
    with manager_of(nft_lab, tmp_path / "store.db") as manager:
        manager.allocate("x", ports=[PortRequest(80, host_port=8080)])
        found = queue.Queue()
        with manager.watch(found.put):
            table = re.findall(r"table (\w+) (netalloc\S*)", nft_lab.run("nft", "list", "tables"))[
                0
            ]
            nft_lab.run("nft", "delete", "element", *table, "dnat_any", "{ tcp . 8080 }")
            assert [one.host_port for one in found.get(timeout=30).added] == [8080]


def test_a_turn_is_one_watchers_and_passes_on(nft_lab):
    first, second = WatchTurn(1), WatchTurn(1)
    other = WatchTurn(2)
    stopped, stop = os.pipe()
    got = queue.Queue()

    def wait(turn):
        thread = threading.Thread(target=lambda: got.put(turn.wait(stopped)), daemon=True)
        thread.start()
        return thread

    with ExitStack() as stack:
        for fd in (stopped, stop):
            stack.callback(os.close, fd)
        for one in (first, second, other):
            stack.enter_context(one)
        assert first.take() and first.take() and other.take()
        assert not second.take()
        thread = wait(second)
        child = os.fork()
        if not child:  # has none of it, however long it lives
            os.close(stop)
            signal.pause()
        stack.callback(os.waitpid, child, 0)
        stack.callback(os.kill, child, signal.SIGKILL)
        first.close()
        first.close()
        assert got.get(timeout=30) is True
        thread.join()
        thread = wait(first)
        os.write(stop, b".")
        assert got.get(timeout=30) is False
        thread.join()
