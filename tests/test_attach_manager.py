"""Leases on the machine and off it: record, interface and kernel agree, whatever comes between."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from attach_lab import AttachLab, ask
from interrupts import Interrupted, Knife
from lab import require_kernel
from netalloc import NetworkManager, Networks
from netalloc.errors import (
    ExhaustedError,
    InterfaceError,
    InUseError,
    InvalidValueError,
    NetallocError,
    StaleLeaseError,
)
from netalloc.host import attached, namespaces, severing
from netalloc.ipam.attachments import group_of
from netalloc.manager import attaching
from netalloc.store.records import Attachment
from test_hostile_values import VALUES

pytestmark = pytest.mark.root

V4, V6 = "10.88.0.1/16", "fd00:88::1/64"
NETWORKS = {"v4": V4, "v6": V6, "both": (V4, V6)}
BRIDGED, ROUTED, GUARDED = "bridge", "routed", "guarded"  # the last on a bridge
UDP = socket.SOCK_DGRAM


class Host(AttachLab):
    """A private host with managers of one network, over a file or in memory."""

    def __init__(self, store, mode=BRIDGED, network=(V4, V6)):
        super().__init__(bridge=mode != ROUTED)
        self.mode, self.network, self.store = mode, network, store

    def manager(self, **options):
        where, mode = (None, "routed") if self.mode == ROUTED else ("br0", "bridge")
        isolation = "guarded" if self.mode == GUARDED else "open"
        options = {"store": self.store, "network": self.network} | options
        return self.enter_context(
            NetworkManager(
                where, name="web", mode=mode, isolation=isolation, backend="nftables", **options
            )
        )

    def of_sibling(self, name):
        """Who answers one container that asks another."""
        return None if self.mode == GUARDED else name

    def names(self, *names):
        for name in names:
            self.namespace(name)
            for family in (socket.AF_INET, socket.AF_INET6):
                self.serve(name, UDP, family)

    def who(self, interface, asker=None, timeout=0.8):
        """Who answers at its addresses, asked from the host or a namespace."""
        return [self.at(ip, asker, timeout) for ip in interface.ips]

    def unheard(self, interface, asker=None):
        """Whether none answers at any of its addresses, by when one that is there long has."""
        return self.who(interface, asker, timeout=0.2) == [None] * len(interface.ips)

    def at(self, ip, asker=None, timeout=0.8):
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        try:
            return ask(asker, UDP, family, ip, timeout)[0]
        except OSError:
            return None


def present():
    """The interfaces, without the times and counters that the kernel has in their settings."""
    found = attached.present("netalloc web ")
    return {index: one._replace(settings={}) for index, one in found.items()}


def agree(manager):
    """All is well, and the kernel has what the records say; how many that is."""
    assert manager.check() == []
    known = manager._leases.read(lambda tx: tx.table(Attachment).all())
    assert sorted(one.index for one in known) == sorted(present())
    return len(known)


@pytest.fixture(autouse=True)
def kernel():
    require_kernel()


MODES = [BRIDGED, ROUTED, GUARDED]


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "host.db"


@pytest.fixture
def host(mode, store):
    with Host(store, mode) as made:
        yield made


@pytest.fixture
def on_file(mode, tmp_path):
    with Host(tmp_path / "host.db", mode) as made:
        yield made


@pytest.mark.parametrize("families", NETWORKS)
def test_it_answers_at_once_and_is_gone_at_once(mode, families, tmp_path):
    with Host(tmp_path / "host.db", mode, NETWORKS[families]) as host:
        manager = host.manager()
        host.names("c0", "c1")
        one, two = manager.allocate_many(2)
        manager.attach_many([(one, "c0"), (two, "c1")])
        assert host.who(one) == ["c0"] * len(one.ips)
        assert host.who(two, "c0") == [host.of_sibling("c1")] * len(two.ips)
        assert agree(manager) == 2
        assert {one.group for one in present().values()} == {group_of(1)}
        one.detach()
        one.detach()
        assert host.unheard(one)
        assert host.who(two) == ["c1"] * len(two.ips)
        assert agree(manager) == 1


@contextmanager
def process_in(name):
    with namespaces.inside(name):
        child = subprocess.Popen(["sleep", "inf"])
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


def test_a_namespace_by_name_path_process_and_descriptor(host):
    manager = host.manager()
    host.names("c0")
    path = str(namespaces.path("c0"))
    fd = os.open(path, os.O_RDONLY)
    host.callback(os.close, fd)
    with process_in("c0") as pid:
        for way in ("c0", path, Path(path), pid, fd):
            one = manager.allocate()
            one.attach(way)
            one.attach(way)
            one.attach("c0")  # the same, whatever it is called
            assert host.who(one) == ["c0", "c0"]
            one.release()
    assert agree(manager) == 0


def test_a_tap_comes_and_goes_with_its_lease(host):
    manager = host.manager()
    one = manager.allocate()
    one.attach(tap="tap0", uid=1000)
    one.attach(tap="tap0", uid=1000)
    assert socket.if_nametoindex("tap0") in present()
    assert agree(manager) == 1
    with pytest.raises(InUseError, match="as tap tap0: detach it first"):
        one.attach(tap="tap1")
    one.release()
    assert agree(manager) == 0


def test_again_it_gets_what_it_lacks(host):
    manager = host.manager()
    host.names("c0")
    one = manager.allocate()
    one.attach("c0")
    before = present()
    endpoint = manager._leases.attaching._endpoint(_record(manager, one), "")
    place = manager._leases.attaching._bridge_or_none(), manager._leases.attaching.ways
    for mend in (lambda: one.attach("c0"), manager.reconcile):
        severing.sever([endpoint], *place)
        assert host.unheard(one)
        mend()
        assert host.who(one) == ["c0", "c0"]
        assert present() == before
    assert agree(manager) == 1


def _record(manager, interface):
    lease = interface._lease
    return manager._leases.read(lambda tx: tx.table(Attachment).get(lease.network, lease.ordinal))


def test_it_is_in_one_place_alone(host):
    manager = host.manager()
    host.names("c0", "c1")
    one, two = manager.allocate_many(2)
    one.attach("c0")
    before = present()
    with pytest.raises(InUseError, match="eth0 in network namespace .*: detach it first"):
        one.attach("c1")
    with pytest.raises(InUseError, match="detach it first"):
        one.attach("c0", ifname="eth1")
    with pytest.raises(InUseError):
        manager.attach_many([(two, "c1"), (one, "c1")])
    assert present() == before
    assert host.who(one) == ["c0", "c0"]
    assert agree(manager) == 1
    one.detach()
    one.attach("c1")
    assert host.who(one) == ["c1", "c1"]


def test_what_cannot_be_made_leaves_nothing(host):
    manager = host.manager()
    host.names("c0", "c1")
    one, two = manager.allocate_many(2)
    with namespaces.inside("c1"):
        subprocess.run(["ip", "link", "add", "eth0", "type", "veth"], check=True)
    with pytest.raises(InterfaceError, match="has an interface eth0 already"):
        manager.attach_many([(one, "c0"), (two, "c1")])
    assert agree(manager) == 0
    with pytest.raises(InterfaceError, match="no network namespace 'c9'"):
        one.attach("c9")
    with pytest.raises(InterfaceError, match="host's own"):
        one.attach("/proc/thread-self/ns/net")
    assert agree(manager) == 0
    manager.attach_many([(one, "c0"), (two, "c1")], ifname="eth1")
    assert agree(manager) == 2


def gone(name):
    """End a namespace, and see its interfaces gone."""
    namespaces.delete(name)
    deadline = time.monotonic() + 10
    while present():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("mended", [True, False])
def test_a_container_takes_its_interface_along(host, mended):
    manager = host.manager()
    namespaces.create("c0")
    host.names("c1")
    one = manager.allocate("web")
    one.attach("c0")
    gone("c0")
    (said,) = manager.check()
    assert str(one.ip) in said
    assert "is not on the machine" in said
    if mended:
        assert any(str(one.ip) in line for line in manager.reconcile().structure)
        assert agree(manager) == 0
    one.attach("c1")
    assert host.who(one) == ["c1", "c1"]
    assert agree(manager) == 1


@pytest.mark.parametrize("way", ["release", "owner", "gc", "context", "host", "close"])
def test_it_goes_with_its_lease(host, way):
    manager = host.manager()
    host.names("c0", "c1")
    kept, one = manager.allocate("kept"), manager.allocate("gone")
    manager.attach_many([(kept, "c0"), (one, "c1")])
    if way == "release":
        one.release()
    elif way == "owner" or (way == "host" and host.store is None):
        assert manager.release("gone") == 1  # a memory's networks are of no host
    elif way == "context":
        with one:
            pass
    elif way == "gc":
        manager.gc(["kept"], grace=0)
        assert manager.gc(["kept"], grace=0) == [one.ip]
    elif way == "host":
        with Networks(host.store) as networks:
            assert networks.release("gone") == 1
    else:
        manager.close()
        assert len(present()) == (0 if host.store is None else 2)
        return
    assert host.who(kept) == ["c0", "c0"]
    assert host.unheard(one)
    assert agree(manager) == 1
    with pytest.raises(NetallocError):
        one.attach("c1")
    assert agree(manager) == 1


def test_it_goes_with_its_network(on_file):
    manager = on_file.manager()
    on_file.names("c0")
    manager.allocate().attach("c0")
    for one in manager.interfaces():
        one.release()
    _stranger(on_file, "netalloc web 5.99")
    manager.close()
    with Networks(on_file.store) as networks:
        networks.remove("web")
    assert present() == {}


def _stranger(host, alias, name="na99", index=(1 << 30) + 99):
    """An interface that no record is of, left by whatever."""
    for command in (
        ["ip", "link", "add", name, "index", str(index), "type", "veth"],
        ["ip", "link", "set", name, "alias", alias],
    ):
        subprocess.run(command, check=True)


def test_what_has_no_lease_is_named_and_taken_away(host):
    manager = host.manager()
    host.names("c0")
    one = manager.allocate()
    one.attach("c0")
    _stranger(host, "netalloc web 1234.99")
    _stranger(host, "netalloc other 1234.98", "na98", (1 << 30) + 98)
    assert [line for line in manager.check() if "na99" in line and "has no lease" in line]
    assert any("na99" in line for line in manager.reconcile().structure)
    assert agree(manager) == 1
    assert host.who(one) == ["c0", "c0"]
    assert socket.if_nametoindex("na98")  # of another network


def test_a_store_that_was_replaced_leaves_nothing_behind(on_file, tmp_path):
    manager = on_file.manager()
    on_file.names("c0", "c1")
    one = manager.allocate()
    one.attach("c0")
    manager.close()
    assert len(present()) == 1
    on_file.store = tmp_path / "another.db"
    manager = on_file.manager()
    assert present() == {}
    again = manager.allocate()
    assert again.generation == one.generation
    again.attach("c1")
    assert on_file.who(again) == ["c1", "c1"]
    assert agree(manager) == 1


def test_a_stale_lease_attaches_nothing(on_file):
    manager, other = on_file.manager(), on_file.manager()
    on_file.names("c0")
    one = manager.allocate("web")
    other.release("web")
    with pytest.raises(StaleLeaseError):
        one.attach("c0")
    with pytest.raises(StaleLeaseError):
        one.detach()
    assert agree(manager) == 0


def test_a_lease_that_ends_meanwhile_has_no_interface(on_file, monkeypatch):
    """Released by another while its interface is being made."""
    manager, other = on_file.manager(), on_file.manager()
    on_file.names("c0")
    one = manager.allocate("web")
    make = attaching.AttachService._make

    def released(service, endpoints):
        other.release("web")
        make(service, endpoints)

    monkeypatch.setattr(attaching.AttachService, "_make", released)
    with pytest.raises(InUseError, match="ended, while it was attached"):
        one.attach("c0")
    assert agree(manager) == 0


def test_what_is_under_way_is_not_what_was_left(on_file, monkeypatch):
    """Another's check and reconcile, and its turn at the same, between record and interface."""
    manager, other = on_file.manager(), on_file.manager()
    on_file.names("c0")
    one = manager.allocate("web")
    make, remove = attaching.AttachService._make, attached.detach
    seen = []

    def looked(*_):
        seen.append(other.check())
        seen.append(list(other.reconcile().structure))

    def slow_make(service, endpoints):
        looked()
        make(service, endpoints)
        looked()

    def slow_remove(*arguments):
        looked()
        return remove(*arguments)

    monkeypatch.setattr(attaching.AttachService, "_make", slow_make)
    one.attach("c0")
    assert seen == [[]] * 4
    monkeypatch.setattr(attaching.attached, "detach", slow_remove)
    one.detach()
    one.attach("c0")
    one.release()
    assert len(seen) >= 8
    assert not any(seen)
    assert agree(manager) == 0


# ---- the old holder and the new one


def test_between_commit_and_deletion_nobody_is_reached_by_the_old_one(on_file, monkeypatch):
    """A process that stops there; the address has its next holder already."""
    manager = on_file.manager()
    on_file.names("c0", "c1", "c2")
    old, sibling = manager.allocate_many(2)
    manager.attach_many([(old, "c0"), (sibling, "c2")])
    assert on_file.who(old) == ["c0", "c0"]
    monkeypatch.setattr(attaching.attached, "detach", lambda *_: 0)
    old.release()
    monkeypatch.undo()
    assert len(present()) == 2
    assert on_file.unheard(old)
    assert on_file.unheard(old, "c2")
    new = manager.allocate(ip=old.ip)
    assert new.ips == old.ips
    new.attach("c1")
    assert on_file.who(new) == ["c1", "c1"]
    # It has just asked in vain who that is, and asks again after a second.
    with namespaces.inside("c2"):  # it has just asked in vain who that is, and waits to ask again
        subprocess.run(["ip", "neigh", "flush", "all"], check=True)
    if on_file.mode == GUARDED:
        assert on_file.unheard(new, "c2")
    else:
        assert on_file.who(new, "c2", timeout=5) == ["c1", "c1"]
    assert on_file.unheard(sibling, "c0")  # nor does the old one reach another
    assert len(manager.check()) == 1
    assert manager.reconcile()
    assert on_file.who(new) == ["c1", "c1"]
    assert on_file.who(new, "c2") == [on_file.of_sibling("c1")] * 2
    assert agree(manager) == 2


def test_a_release_that_is_late_leaves_the_next_holder_its_neighbour_entry(on_file, monkeypatch):
    manager = on_file.manager()
    on_file.names("c0", "c1")
    old = manager.allocate()
    old.attach("c0")
    remove = attached.detach
    late = []
    monkeypatch.setattr(attaching.attached, "detach", lambda *args: late.append(args) or 0)
    old.release()
    monkeypatch.undo()
    new = manager.allocate(ip=old.ip)
    new.attach("c1")
    shown = _permanent(new)
    for arguments in late:
        remove(*arguments)
    assert _permanent(new) == shown
    assert len(shown) == (1 if on_file.mode == "routed" else 2)  # over IPv6 it is the way's
    assert on_file.who(new) == ["c1", "c1"]
    assert agree(manager) == 1


def _permanent(interface):
    out = subprocess.run(["ip", "neigh"], capture_output=True, text=True, check=True).stdout
    known = {str(ip) for ip in interface.ips}
    device = "br0", f"na{interface.generation:x}"
    lines = [line.split() for line in out.splitlines() if "PERMANENT" in line]
    return sorted(" ".join(line) for line in lines if line[0] in known and line[2] in device)


def test_a_change_that_fails_gives_the_interface_its_way_back(on_file, monkeypatch):
    manager = on_file.manager()
    on_file.names("c0")
    one = manager.allocate(ports=(80,))
    one.attach("c0")
    mappings = manager._leases.mappings

    def refuse(remove, add):
        raise InUseError("refused")

    monkeypatch.setattr(mappings, "apply", refuse)
    with pytest.raises(Exception, match="refused|not released"):
        one.release()
    monkeypatch.undo()
    assert on_file.who(one) == ["c0", "c0"]
    assert agree(manager) == 1


# ---- a full bridge


def test_a_full_bridge_is_said_before_anything_is_made(tmp_path):
    with Host(tmp_path / "host.db") as host:
        manager = host.manager()
        host.names("c0", "c1")
        ports = ((f"a{i}", f"b{i}") for i in range(511))
        lines = "".join(
            f"link add {one} type veth peer {two}\n"
            f"link set {one} master br0\nlink set {two} master br0\n"
            for one, two in ports
        )
        subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)
        one, two = manager.allocate_many(2)
        before = socket.if_nameindex()
        with pytest.raises(ExhaustedError, match=r"1,?022 ports.*1,?023.*another bridge.*routed"):
            manager.attach_many([(one, "c0"), (two, "c1")])
        assert socket.if_nameindex() == before
        assert agree(manager) == 0
        one.attach("c0")
        one.attach("c0")  # it has its port already
        with pytest.raises(ExhaustedError, match=r"1,?023"):
            two.attach("c1")
        assert agree(manager) == 1
        one.detach()
        two.attach("c1")
        assert host.who(two) == ["c1", "c1"]


# ---- others


def child(work):
    """The status of a forked process that does it."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
    finally:
        os._exit(status)


def ended(*pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def test_processes_attach_and_detach_side_by_side(on_file):
    on_file.names(*[f"c{i}" for i in range(4)])
    on_file.manager().close()

    def work(name):
        with on_file.manager() as manager:
            for _ in range(15):
                one = manager.allocate(name)
                one.attach(name)
                assert on_file.who(one) == [name, name]
                one.detach()
                one.attach(name)
                one.release()
            manager.allocate(name).attach(name)

    names = [f"c{i}" for i in range(3)]
    assert ended(*[child(lambda name=name: work(name)) for name in names]) == [0, 0, 0]
    manager = on_file.manager()
    assert agree(manager) == 3
    for one in manager.interfaces():
        assert on_file.who(one) == [one.owner, one.owner]


def test_one_lease_by_two_processes_at_once(on_file):
    on_file.names("c0")
    manager = on_file.manager()
    one = manager.allocate("web", key="eth0")
    manager.close()

    def work(seed):
        rng = random.Random(seed)
        with on_file.manager() as manager:
            same = manager.allocate("web", key="eth0")
            for _ in range(30):
                try:
                    same.attach("c0") if rng.random() < 0.6 else same.detach()
                except InUseError:
                    continue  # the other has detached it meanwhile
            same.attach("c0")

    assert ended(*[child(lambda seed=seed: work(seed)) for seed in range(2)]) == [0, 0]
    manager = on_file.manager()
    assert agree(manager) == 1
    assert on_file.who(manager.find("web")[0]) == ["c0", "c0"]
    assert one.ip == manager.find("web")[0].ip


def test_a_forked_child_leaves_its_parents_interfaces(host):
    manager = host.manager()
    host.names("c0", "c1")
    one, two = manager.allocate_many(2)
    one.attach("c0")

    def work():
        if host.store is None:
            with pytest.raises(NetallocError):
                two.attach("c1")
            with pytest.raises(NetallocError):
                one.detach()
        manager.close()

    assert ended(child(work)) == [0]
    assert agree(manager) == 1
    assert host.who(one) == ["c0", "c0"]


# ---- interrupts

PLACES = 6  # of each operation in the normal run; all of them in the long one

OPERATIONS = {
    "attach": (lambda one: None, lambda manager, one: one.attach("c0")),
    "attach again": (lambda one: one.attach("c0"), lambda manager, one: one.attach("c0")),
    "detach": (lambda one: one.attach("c0"), lambda manager, one: one.detach()),
    "release": (lambda one: one.attach("c0"), lambda manager, one: one.release()),
    "reconcile": (lambda one: one.attach("c0"), lambda manager, one: manager.reconcile()),
}


# What was just opened is closed by its object: that is said by a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_interrupt_leaves_all_or_nothing(host, operation):
    _cut(host, *OPERATIONS[operation], PLACES)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_interrupt_anywhere_leaves_all_or_nothing(host, operation):
    _cut(host, *OPERATIONS[operation], None)


def _cut(host, prepare, work, most):
    manager = host.manager()
    host.names("c0")
    _places(manager, prepare, work)  # what is loaded at first use is loaded
    seen = _places(manager, prepare, work)
    for place in range(seen) if most is None else _spread(seen, most):
        one = manager.allocate("web")
        prepare(one)
        knife = Knife(place)
        with suppress(Interrupted):
            knife.run(lambda one=one: work(manager, one))
        assert manager.check() == [], knife.cuts
        count = agree(manager)
        held = manager.find("web")
        assert count <= len(held), knife.cuts
        for again in held:
            again.attach("c0")  # no turn and no lock is left with what was cut off
            assert host.who(again) == ["c0", "c0"], knife.cuts
            again.release()
        assert agree(manager) == 0, knife.cuts


def _places(manager, prepare, work):
    one = manager.allocate("web")
    prepare(one)
    knife = Knife(1 << 30)
    knife.run(lambda: work(manager, one))
    manager.release("web")
    return knife.seen


def _spread(seen, most):
    rng = random.Random(seen)
    return sorted(rng.sample(range(seen), min(seen, most)))


# ---- values

PARAMETERS = ("netns", "tap", "ifname", "mac", "mtu", "uid", "gid")


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_hostile_values(on_file, parameter):
    """What is accepted is attached, all else a NetallocError with nothing made."""
    manager = on_file.manager()
    on_file.names("c0")
    one = manager.allocate()
    for name, make in VALUES.items():
        value = make()
        if parameter == "netns" and hasattr(type(value), "__index__") and name not in _NO_PROCESS:
            continue  # there may be a process of that number, which is none of ours
        arguments = {parameter: value}
        if parameter not in ("netns", "tap"):
            arguments |= {"tap": "tap0"} if parameter in ("uid", "gid") else {"netns": "c0"}
        try:
            one.attach(**arguments)
        except NetallocError:
            assert present() == {}, name
        else:
            assert len(present()) == 1, name
        one.detach()
        assert agree(manager) == 0, name


_NO_PROCESS = ("True", "False", "0", "-1", "huge", "2**64", "failing index")


def test_pairs_that_are_none(host):
    manager = host.manager()
    host.names("c0")
    one = manager.allocate()
    for pairs in (None, 5, "c0", [5], [(one,)], [(one, "c0", 1)], [("c0", one)], [(one, None)]):
        with pytest.raises(InvalidValueError):
            manager.attach_many(pairs)
    with pytest.raises(NetallocError):
        manager.attach_many([(one, "c0"), (one, "c0")])
    manager.attach_many([])
    assert agree(manager) == 0


# ---- deaths


def live(host, write):
    """Containers that come and go for ever, with ports."""
    rng = random.Random(os.getpid())
    with host.manager(probe=lambda *_: True) as manager:
        os.write(write, b"!")
        free = [f"c{i}" for i in range(8)]
        held = []
        while True:
            if free and (not held or rng.random() < 0.6):
                count = rng.randrange(1, min(3, len(free)) + 1)
                names, free = free[:count], free[count:]
                many = [manager.allocate(name, ports=(80,)) for name in names]
                manager.attach_many(list(zip(many, names, strict=True)))
                held += zip(many, names, strict=True)
            else:
                one, name = held.pop(rng.randrange(len(held)))
                if rng.random() < 0.5:
                    one.detach()
                one.release()
                free.append(name)


def deaths(host, rounds):
    """Kernel, interfaces and store agree after each."""
    host.names(*[f"c{i}" for i in range(8)])
    left, rng = 0, random.Random(7)
    for _ in range(rounds):
        read, write = os.pipe()
        pid = child(lambda write=write: live(host, write))
        os.close(write)
        assert os.read(read, 1) == b"!"
        os.close(read)
        time.sleep(rng.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == [-signal.SIGKILL]
        manager = host.manager(probe=lambda *_: True)
        left += bool([line for line in manager.check() if "lease" in line or "machine" in line])
        manager.reconcile()
        agree(manager)
        records = manager._leases.read(lambda tx: tx.table(Attachment).all())
        has = {record.ordinal for record in records}
        for one in manager.interfaces():
            if one._lease.ordinal in has:
                assert host.who(one) == [one.owner, one.owner]
        manager.gc([], grace=0)
        manager.gc([], grace=0)
        assert manager.interfaces() == []
        assert agree(manager) == 0
        assert manager._leases.mappings.present() == []
        manager.close()
    return left


def test_all_agree_after_every_death(on_file):
    deaths(on_file, 8)


@pytest.mark.soak
def test_200_deaths(on_file, capsys):
    left = deaths(on_file, 200)
    with capsys.disabled():
        sys.stdout.write(f"\n200 kills, {left} of them between record and interface\n")
    assert left > 5
