"""No flow of the last holder reaches the next one, however soon it comes and whatever dies."""

import os
import queue
import random
import signal
import threading
import time
from contextlib import ExitStack, closing, suppress
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab import Private
from netalloc import NetworkManager, PortRequest
from netalloc.errors import NetallocError
from netalloc.host import conntrack, flow_messages, owed_flows
from netalloc.host.netlink import NetlinkSocket
from netalloc.host.owed_flows import ADDED, ENDED, OwedFlows, OwedFlush
from netalloc.model import PortMapping
from test_conntrack import Connection, Flow, listen

pytestmark = pytest.mark.root

UDP = PortRequest(80, "udp", 8080)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "store.db"


def manager_of(lab, store, backend="nftables"):
    return NetworkManager(lab.bridge, network="10.200.0.1/16", backend=backend, store=store)


@pytest.fixture
def flow(nft_lab, stack):
    """A udp flow that c0 answers through the port that `manager` publishes for it."""

    def make(manager):
        for place in nft_lab.containers:
            nft_lab.serve(place, "udp", 80)
        lease = manager.allocate("old", ip=nft_lab.containers[0].ip, ports=[UDP])
        found = Flow(nft_lab, nft_lab.outside, (nft_lab.address, 8080))
        stack.callback(found.socket.close)
        assert found.ask() == "c0"
        return found, lease

    return make


def in_a_child(work):
    """What `work` runs in a fork; how that ended."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def release_and_die(lab, store, owner="old"):
    """Death right behind the commit, before the flush."""

    def work():
        OwedFlush.settle = lambda self: os.kill(os.getpid(), signal.SIGKILL)
        with manager_of(lab, store) as manager:
            manager.release(owner)

    assert in_a_child(work) == -signal.SIGKILL


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_port_or_an_address_that_is_reused_at_once(nft_lab, store, flow, backend):
    c0, c1 = nft_lab.containers
    with manager_of(nft_lab, store, backend) as manager:
        found, lease = flow(manager)
        lease.release()
        lease = manager.allocate("new", ip=c1.ip, ports=[UDP])  # the port
        assert found.ask() == "c1"
        lease.release_port(8080, "udp")
        assert found.silent()
        manager.allocate("newest", ip=c0.ip, ports=[PortRequest(80, "udp", 8081)])  # the address
        assert found.silent()


def test_a_tcp_connection_ends_with_its_lease_and_others_go_on(nft_lab, store, stack):
    c0, c1 = nft_lab.containers
    listeners = [stack.enter_context(listen(nft_lab, place, 80)) for place in (c0, c1)]
    manager = stack.enter_context(manager_of(nft_lab, store))
    leases = [
        manager.allocate("x", ip=place.ip, ports=[PortRequest(80, "tcp", port)])
        for place, port in ((c0, 8080), (c1, 8081))
    ]
    ours, other = (
        stack.enter_context(
            closing(Connection(nft_lab, listener, nft_lab.outside, (nft_lab.address, port)))
        )
        for listener, port in zip(listeners, (8080, 8081), strict=True)
    )
    leases[0].release()
    assert other.works()
    assert not ours.works()


def test_a_lease_ends_with_one_deletion_whatever_it_published(nft_lab, store, flow, monkeypatch):
    with manager_of(nft_lab, store) as manager:
        flow(manager)  # where there are no flows at all nothing is deleted
        ends_with_one_deletion(manager, monkeypatch)


def ends_with_one_deletion(manager, monkeypatch):
    asked = []
    call, dump = NetlinkSocket.call, NetlinkSocket.dump

    def counted(way):
        def count(self, kind, *arguments):
            if kind in (flow_messages.GET, flow_messages.DELETE):
                asked.append(kind)
            return way(self, kind, *arguments)

        return count

    monkeypatch.setattr(NetlinkSocket, "call", counted(call))
    monkeypatch.setattr(NetlinkSocket, "dump", counted(dump))
    for number in (0, 1, 4, 64):
        lease = manager.allocate("x", ports=[PortRequest(80 + i) for i in range(number)])
        assert asked == []
        lease.release()
        assert asked == [flow_messages.DELETE][:number]
        asked.clear()
    lease = manager.allocate("x", ports=[80, 81])
    lease.release_port(lease.ports()[0].host_port)
    assert asked == [flow_messages.DELETE]


def test_death_between_commit_and_flush_is_mended_for_the_ports_next_holder(
    nft_lab, tmp_path, flow
):
    store, c1 = tmp_path / "store.db", nft_lab.containers[1]
    with manager_of(nft_lab, store) as manager:
        found, _ = flow(manager)
        release_and_die(nft_lab, store)
        assert found.ask() == "c0"  # what this is about is real
        manager.allocate("new", ip=c1.ip, ports=[UDP])
        assert found.ask() == "c1"
        assert manager.check() == []


def test_and_for_the_next_holder_of_the_address(nft_lab, tmp_path, flow):
    store, c0 = tmp_path / "store.db", nft_lab.containers[0]
    with manager_of(nft_lab, store) as manager:
        found, _ = flow(manager)
        release_and_die(nft_lab, store)
        assert found.ask() == "c0"
        manager.allocate("new", ip=c0.ip)
        assert found.silent()


@pytest.mark.parametrize("mend", ["open", "reconcile", "allocate another"])
def test_and_by_any_that_looks(nft_lab, tmp_path, flow, mend):
    store = tmp_path / "store.db"
    with manager_of(nft_lab, store) as manager:
        found, _ = flow(manager)
        release_and_die(nft_lab, store)
        if mend == "open":
            manager_of(nft_lab, store).close()
        elif mend == "reconcile":
            manager.reconcile()
        else:
            manager.allocate("another")
        assert found.silent()


def test_a_publication_that_died_before_its_flush_is_mended(nft_lab, tmp_path, stack):
    store, c0 = tmp_path / "store.db", nft_lab.containers[0]
    nft_lab.serve(c0, "udp", 80)
    found = Flow(nft_lab, nft_lab.outside, (nft_lab.address, 8080))
    stack.callback(found.socket.close)

    def work():
        OwedFlush.settle = lambda self: os.kill(os.getpid(), signal.SIGKILL)
        with manager_of(nft_lab, store) as manager:
            manager.allocate("x", ip=c0.ip, ports=[UDP])

    with manager_of(nft_lab, store) as manager:
        assert found.silent()  # begins before the mapping
        assert in_a_child(work) == -signal.SIGKILL
        assert found.silent()
        manager.allocate("another")
        assert found.ask() == "c0"


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_between_commit_and_flush(nft_lab, store, flow, monkeypatch, times):
    settle, interrupts = OwedFlush.settle, []

    def interrupted(self):
        if len(interrupts) < times:
            interrupts.append(1)
            raise KeyboardInterrupt
        settle(self)

    with manager_of(nft_lab, store) as manager:
        found, lease = flow(manager)
        monkeypatch.setattr(OwedFlush, "settle", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lease.release()
        assert len(interrupts) == times
        if times == 2:  # finishing was cut off as well
            manager.allocate("new")
        assert found.silent()


class Stopped:
    """A process that has released "old" and is stopped before its flush."""

    def __init__(self, lab, store):
        (self._said, say), (hear, self._tell) = os.pipe(), os.pipe()
        self._pid = os.fork()
        if not self._pid:
            settle = OwedFlush.settle

            def wait(owed):
                os.write(say, b"!")
                os.read(hear, 1)
                settle(owed)

            OwedFlush.settle = wait
            try:
                with manager_of(lab, store) as manager:
                    manager.release("old")
                os._exit(0)
            finally:
                os._exit(1)
        assert os.read(self._said, 1) == b"!"

    def go_on(self):
        os.write(self._tell, b"!")
        assert os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]) == 0


@pytest.mark.parametrize("wanted", ["port", "address"])
def test_who_gets_what_another_has_still_to_flush_waits_and_others_do_not(
    nft_lab, tmp_path, flow, monkeypatch, wanted
):
    monkeypatch.setattr(owed_flows, "_PATIENCE", 60)
    store, (c0, c1) = tmp_path / "store.db", nft_lab.containers
    with manager_of(nft_lab, store) as manager:
        found, _ = flow(manager)
        stopped = Stopped(nft_lab, store)
        assert found.ask() == "c0"
        manager.allocate("else", ip="10.200.9.9", ports=[PortRequest(80, "udp")])
        manager.release("else")
        got, pauses = queue.Queue(), queue.Queue()
        clock = SimpleNamespace(monotonic=time.monotonic, monotonic_ns=time.monotonic_ns)
        clock.sleep = pauses.put
        monkeypatch.setattr(owed_flows, "time", clock)
        ip, ports = (c1.ip, [UDP]) if wanted == "port" else (c0.ip, [])
        thread = threading.Thread(
            target=lambda: got.put(manager.allocate("new", ip=ip, ports=ports))
        )
        thread.start()
        for _ in range(3):
            pauses.get(timeout=30)  # it looks again and again
        assert got.empty()
        stopped.go_on()
        thread.join(30)
        assert got.get(timeout=30).owner == "new"
        assert found.ask() == "c1" if wanted == "port" else found.silent()


def test_what_does_not_come_in_time_is_flushed_by_the_one_that_waits(
    nft_lab, tmp_path, flow, monkeypatch
):
    monkeypatch.setattr(owed_flows, "_PATIENCE", 0.01)
    store, c0 = tmp_path / "store.db", nft_lab.containers[0]
    with manager_of(nft_lab, store) as manager:
        found, _ = flow(manager)
        stopped = Stopped(nft_lab, store)
        manager.allocate("new", ip=c0.ip)
        assert found.silent()
        stopped.go_on()


def test_threads_that_release_together_leave_nothing(nft_lab, store):
    with manager_of(nft_lab, store) as manager:
        leases = [manager.allocate("x", ports=[80, 443]) for _ in range(40)]
        threads = [threading.Thread(target=lease.release) for lease in leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert manager.interfaces() == []
        assert manager.check() == []
        owed = manager._leases.flows._owed
        assert not any(os.pread(owed._file(), 4096, 0))
        assert not owed.dropped
        assert sorted(owed._free) == sorted(owed._held)


def contend(lab, store, seed):
    """Get and release one of two addresses, with one of two ports, for ever."""
    chance = random.Random(seed)
    with manager_of(lab, store) as manager:
        while True:
            with suppress(NetallocError):
                request = PortRequest(80, "udp", chance.choice((8080, 8081)))
                place = chance.choice(lab.containers)
                one = manager.allocate(f"child{seed}", ip=place.ip, ports=[request])
                if chance.random() < 0.3:
                    one.release_port(request.host_port, "udp")
                one.release()


def contending(lab, store, seed):
    child = os.fork()
    if not child:
        try:
            contend(lab, store, seed)
        finally:
            os._exit(1)
    return child


@pytest.mark.soak
def test_who_got_a_port_and_an_address_has_them_whatever_others_did(nft_lab, tmp_path, stack):
    """Three processes contend for them, and are killed at any moment."""
    lab, store, chance = nft_lab, tmp_path / "store.db", random.Random(9)
    for place in lab.containers:
        lab.serve(place, "udp", 80)
    clients = {port: Flow(lab, lab.outside, (lab.address, port)) for port in (8080, 8081)}
    for client in clients.values():
        stack.callback(client.socket.close)
    got = 0
    with manager_of(lab, store) as manager:
        children = {seed: contending(lab, store, seed) for seed in range(3)}
        for round_ in range(3, 600):
            for client in clients.values():  # flows go on
                with suppress(OSError):
                    client.socket.send(b"?")
            if chance.random() < 0.5:
                seed = chance.choice(list(children))
                os.kill(children[seed], signal.SIGKILL)
                os.waitpid(children.pop(seed), 0)
                manager.release(f"child{seed}")
                children[round_] = contending(lab, store, round_)
            place, port = chance.choice(lab.containers), chance.choice((8080, 8081))
            try:
                mine = manager.allocate("me", ip=place.ip, ports=[PortRequest(80, "udp", port)])
            except NetallocError:
                continue
            got += 1
            clients[port].ask()  # the answer to an earlier question may have been on its way
            clients[8080 + 8081 - port].silent()
            assert clients[port].ask() == place.name
            assert clients[8080 + 8081 - port]._ask(0.05) != place.name
            mine.release()
        for child in children.values():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for seed in children:
            manager.release(f"child{seed}")
        assert manager.check() == []
    assert got > 50


# ---- the notes themselves

MAPPINGS = [
    PortMapping(8080, ("10.200.0.2", 80), "udp", "192.0.2.1"),
    PortMapping(7000, ("10.200.0.3", 700), "sctp", None, 100),
]


@pytest.fixture
def owed(nft_lab):
    with OwedFlows() as owed:
        yield owed


def test_what_is_noted_is_read_as_it_was(owed):
    note = OwedFlush(owed, ENDED, MAPPINGS)
    note.note()
    assert owed._items(owed._file(), note.slot) == [(ENDED, one) for one in MAPPINGS]
    note.cancel()
    again = OwedFlush(owed, ADDED, MAPPINGS)
    again.note()
    assert again.slot == note.slot  # the place is used again
    note.cancel()  # and is no longer its
    assert os.pread(owed._file(), 1, again.slot) == b"\1"
    again.settle()
    assert os.pread(owed._file(), 1, again.slot) == b"\0"


@pytest.mark.parametrize(
    ("address", "mapping", "concerned"),
    [
        ("10.200.0.2", None, True),
        ("10.200.0.4", None, False),
        (None, PortMapping(8080, ("10.200.0.9", 1), "udp"), True),
        (None, PortMapping(8080, ("10.200.0.9", 1), "udp", "192.0.2.1"), True),
        (None, PortMapping(8080, ("10.200.0.9", 1), "udp", "192.0.2.2"), False),
        (None, PortMapping(8080, ("10.200.0.9", 1), "tcp"), False),
        (None, PortMapping(8081, ("10.200.0.9", 1), "udp"), False),
        (None, PortMapping(7099, ("10.200.0.9", 1), "sctp", "192.0.2.2"), True),
        (None, PortMapping(6999, ("10.200.0.9", 1), "sctp", None, 1), False),
        (None, PortMapping(6990, ("10.200.0.9", 1), "sctp", None, 11), True),
        (None, PortMapping(7100, ("10.200.0.9", 1), "sctp"), False),
    ],
)
def test_whom_a_flush_concerns(owed, monkeypatch, address, mapping, concerned):
    monkeypatch.setattr(owed_flows, "_PATIENCE", 0.0)
    flushed = []
    monkeypatch.setattr(owed_flows, "_flushed", lambda flows, items: flushed.append(items))
    note = OwedFlush(owed, ENDED, MAPPINGS)
    note.note()
    owed.wait([int(IPv4Address(address))] if address else [], [mapping] * bool(mapping))
    assert bool(flushed) is concerned
    note.cancel()
    new = OwedFlush(owed, ADDED, MAPPINGS)  # what is only just there keeps none
    new.note()
    flushed.clear()
    owed.wait([int(IPv4Address("10.200.0.2"))], MAPPINGS)
    assert not flushed
    new.cancel()


def test_many_at_a_time_and_too_many(owed, monkeypatch):
    with OwedFlows() as other:  # as another process
        theirs = OwedFlush(other, ENDED, MAPPINGS)
        theirs.note()
        owed._untried = [1, 0]
        notes = [OwedFlush(owed, ENDED, MAPPINGS) for _ in range(2)]
        notes[0].note()
        assert (theirs.slot, notes[0].slot) == (0, 1)
        with pytest.raises(NetallocError, match="4096 flushes of flows are under way"):
            notes[1].note()
        theirs.cancel()
        notes[0].cancel()
    monkeypatch.setattr(owed_flows, "_MOST", 1)
    with pytest.raises(NetallocError, match="2 mappings at once; the limit is 1"):
        OwedFlush(owed, ENDED, MAPPINGS).note()


def test_a_flush_that_fails_is_made_by_the_next_one(owed, monkeypatch, caplog):
    forget = conntrack.Flows.forget
    asked = []

    def fails(self, servers):
        asked.append(servers)
        if len(asked) == 1:
            raise NetallocError("no memory")
        forget(self, servers)

    monkeypatch.setattr(conntrack.Flows, "forget", fails)
    note = OwedFlush(owed, ENDED, MAPPINGS)
    note.note()
    note.settle()
    assert "no memory" in caplog.text
    slot = note.slot
    assert os.pread(owed._file(), 1, slot) == b"\1"
    del note
    owed.wait([])
    assert asked[0] == asked[1]
    assert os.pread(owed._file(), 1, slot) == b"\0"


def test_a_call_within_a_flush_waits_for_nothing(owed, monkeypatch):
    """As a signal handler may make it, in the thread that flushes."""
    forget = conntrack.Flows.forget
    inner = OwedFlush(owed, ENDED, MAPPINGS[1:])

    def handler(self, servers):
        if inner.slot < 0:
            inner.note()
            inner.settle()
        forget(self, servers)

    monkeypatch.setattr(conntrack.Flows, "forget", handler)
    note = OwedFlush(owed, ENDED, MAPPINGS)
    note.note()
    note.settle()
    assert note.over and inner.over


def test_a_thread_in_another_namespace_flushes_nothing_there(owed, monkeypatch, caplog):
    monkeypatch.setattr(owed_flows, "_PATIENCE", 0.01)
    owed.wait([])  # its file is open
    made = []
    monkeypatch.setattr(owed_flows, "_flushed", lambda flows, items: made.append(items) or True)
    with OwedFlows() as other:
        note = OwedFlush(other, ENDED, MAPPINGS)
        note.note()
        os.close(other._fd)  # as when its process dies
        other._fd = None

        def elsewhere():
            with Private():
                owed.wait([int(MAPPINGS[0].dest[0])])

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        assert made == []
        assert "another network namespace" in caplog.text
        owed.wait([])
        assert made == [note.items]


def test_a_forked_child_notes_for_itself(owed):
    note = OwedFlush(owed, ENDED, MAPPINGS)
    note.note()

    def work():
        mine = OwedFlush(owed, ENDED, MAPPINGS)
        mine.note()
        assert mine.slot != note.slot
        mine.settle()
        os._exit(0)

    assert in_a_child(work) == 0
    assert os.pread(owed._file(), 4, 0).count(1) == 1
    note.cancel()


def test_the_file_goes_with_the_last_manager(nft_lab, store):
    def names():
        return [path.name for path in Path("/run/netalloc").iterdir()]

    with manager_of(nft_lab, store) as manager:
        manager.allocate("x", ports=[80]).release()
        assert any(name.endswith(".flows") for name in names())
    assert not any(name.endswith(".flows") or name.startswith("netns") for name in names())
