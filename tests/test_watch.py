"""Rules that somebody else changes are mended at once, and our own changes wake nobody."""

import queue
import threading
import time

import pytest

from netalloc.errors import NetallocError
from netalloc.host.rule_monitor import RuleMonitor
from netalloc.model import PortMapping
from netalloc.portmap.mapper import PortMapper

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
