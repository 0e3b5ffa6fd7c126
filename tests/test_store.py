"""What a store promises, over both of them."""

import time
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone

import pytest

from faults import FaultyBackend
from netalloc._alloc import IPAllocator
from netalloc.errors import (
    ExhaustedError,
    InUseError,
    InvalidValueError,
    NotAllocatedError,
    StaleLeaseError,
    StoreError,
)
from netalloc.ipam import addresses as addresses_module
from netalloc.ipam import ended as ended_module
from netalloc.manager.manager import NetworkManager
from netalloc.model import PortRequest
from netalloc.store.memory import MemoryStore
from netalloc.store.records import GcCandidate

SECOND = 1_000_000_000


class Clock:
    """Time since boot, in our hands."""

    def __init__(self):
        self.now = 1_000 * SECOND

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += int(seconds * SECOND)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(addresses_module, "boot_clock", made)
    return made


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request, tmp_path):
    """Makes managers; each call closes the one before, as a restart of the process would.

    The memory store is carried over: for it a restart is only another manager.
    """
    memory, backend = MemoryStore(), FaultyBackend()
    with ExitStack() as stack:
        last = []

        def make(network="10.0.0.1/29", **options):
            for manager in last:
                manager.close()
            store = memory if request.param == "memory" else tmp_path / "store.db"
            options = {"store": store, "backend": backend, "ports": range(8000, 8100)} | options
            made = stack.enter_context(NetworkManager("br0", network=network, **options))
            last[:] = [made]
            return made

        yield make


def ips(interfaces):
    return [str(one.ip) for one in interfaces]


# ---- cool-down, stickiness, reservations, history, owners


def test_a_released_address_cools_down_over_a_restart(reopen, clock):
    manager = reopen(cooldown=30)
    manager.allocate_many(5)
    for one in manager.interfaces()[:2]:
        one.release()
        clock.sleep(10)
    manager = reopen(cooldown=30)
    with pytest.raises(ExhaustedError, match=r"2 are cooling down, the first is ready in 10\.0 s"):
        manager.allocate()
    with pytest.raises(InUseError, match=r"10\.0\.0\.2 is cooling down for another 10\.0 s"):
        manager.allocate(ip="10.0.0.2")
    with pytest.raises(ExhaustedError, match="2 addresses"):
        manager.allocate_many(2)
    clock.sleep(10)
    assert str(manager.allocate().ip) == "10.0.0.2"
    with pytest.raises(ExhaustedError):
        manager.allocate()
    assert str(manager.allocate(allow_cooling=True).ip) == "10.0.0.3"
    assert manager.check() == []


def test_however_many_are_wanted_a_few_that_cool_are_looked_at(reopen, clock, monkeypatch):
    manager = reopen("10.0.0.1/20", cooldown=30)
    capacity = manager.subnet.capacity
    manager.allocate_many(1_000, owner="gone")
    manager.release("gone")
    asked = []
    original = addresses_module.expire_cooldowns

    def counting(tx, *arguments):
        class Counted:
            table = staticmethod(lambda kind: Table(tx.table(kind)))

        class Table:
            def __init__(self, table):
                self.get, self.remove, self.of = table.get, table.remove, table

            def where(self, *fields, **options):
                found = self.of.where(*fields, **options)
                asked.append(len(found))
                return found

        original(Counted, *arguments)

    monkeypatch.setattr(addresses_module, "expire_cooldowns", counting)
    for many in (capacity + 1, 10 * capacity, capacity):
        with pytest.raises(ExhaustedError, match="more than 10 are cooling down"):
            manager.allocate_many(many)
    assert sum(asked) < 10
    clock.sleep(30)
    del asked[:]
    manager.allocate_many(100)  # as many come back as are taken, so that they never pile up
    assert 100 <= sum(asked) < 300
    assert len(manager.allocate_many(capacity - 100)) == capacity - 100
    assert manager.check() == []


def test_the_wall_clock_has_no_say_in_cooling(reopen, clock, monkeypatch):
    manager = reopen(cooldown=30)
    manager.allocate_many(5)[0].release()
    for jump in (-86400, 86400):
        now = time.time_ns() + jump * SECOND
        monkeypatch.setattr(addresses_module.time, "time_ns", lambda now=now: now)
        with pytest.raises(ExhaustedError, match="cooling"):
            manager.allocate()
    clock.sleep(30)
    assert str(manager.allocate().ip) == "10.0.0.2"


def test_an_owner_who_comes_back_in_time_gets_his_address(reopen, clock):
    manager = reopen(sticky=60, cooldown=20)
    web, other = manager.allocate("web", key="eth0"), manager.allocate("other")
    web.release()
    other.release()
    manager = reopen(sticky=60, cooldown=20)
    assert manager.allocate("stranger").ip not in (web.ip, other.ip)
    assert manager.allocate("web", key="eth0").ip == web.ip  # though it still cools
    clock.sleep(61)
    late = manager.allocate("other")
    assert late.ip != other.ip
    assert manager.check() == []


def test_a_sticky_address_that_somebody_took_is_his(reopen, clock):
    manager = reopen(sticky=60)
    manager.allocate("web").release()
    taken = manager.allocate("thief", "10.0.0.2")
    assert manager.allocate("web").ip != taken.ip


def test_a_reserved_address_is_for_its_owner_alone(reopen):
    manager = reopen()
    manager.reserve("10.0.0.2", "db")
    manager.reserve("10.0.0.3")
    manager = reopen()
    assert ips(manager.allocate_many(2)) == ["10.0.0.4", "10.0.0.5"]
    with pytest.raises(InUseError, match=r"10\.0\.0\.2 is reserved for db"):
        manager.allocate("web", "10.0.0.2")
    with pytest.raises(InUseError, match=r"10\.0\.0\.3 is reserved, for no owner"):
        manager.allocate("db", "10.0.0.3")
    db = manager.allocate("db")
    assert str(db.ip) == "10.0.0.2"
    manager.reserve("10.0.0.2", "db")  # a boot script may say it again
    with pytest.raises(InUseError, match="reserved for db"):
        manager.reserve("10.0.0.2", "web")
    db.release()
    assert str(manager.allocate("web").ip) == "10.0.0.6"
    assert str(manager.allocate("db").ip) == "10.0.0.2"
    manager.unreserve("10.0.0.3")
    manager.unreserve("10.0.0.2")  # still held by db
    assert str(manager.allocate().ip) == "10.0.0.3"
    with pytest.raises(ExhaustedError):
        manager.allocate()
    with pytest.raises(NotAllocatedError, match=r"10\.0\.0\.3"):
        manager.unreserve("10.0.0.3")
    with pytest.raises(InvalidValueError):
        manager.reserve("10.0.0.1")
    assert manager.check() == []


def test_the_last_holder_may_reserve_what_he_holds(reopen):
    manager = reopen()
    db = manager.allocate("db")
    with pytest.raises(InUseError, match="held by db"):
        manager.reserve(db.ip, "web")
    manager.reserve(db.ip, "db")
    db.release()
    assert manager.allocate("web").ip != db.ip
    assert manager.check() == []


def test_history_says_who_held_an_address_when(reopen):
    manager = reopen()
    start = datetime.now(timezone.utc)
    manager.allocate("first", "10.0.0.4", key="eth0").release()
    between = datetime.now(timezone.utc)
    manager.allocate("second", "10.0.0.4")
    manager = reopen()
    first, second = manager.history("10.0.0.4")
    assert (first.owner, first.key, second.owner, second.end) == ("first", "eth0", "second", None)
    assert start <= first.start <= first.end <= between <= second.start
    later = datetime.now(timezone.utc) + timedelta(seconds=1)
    assert manager.history("10.0.0.4", at=later) == [second]
    assert manager.history("10.0.0.4", at=start - timedelta(seconds=1)) == []
    assert manager.history("10.0.0.5") == []


def test_history_is_bounded_in_size_and_age(reopen, monkeypatch):
    monkeypatch.setattr(ended_module, "HISTORY", 3)
    manager = reopen()
    for i in range(6):
        manager.allocate(f"owner{i}", "10.0.0.4").release()
    assert [one.owner for one in manager.history("10.0.0.4")] == ["owner3", "owner4", "owner5"]
    monkeypatch.setattr(ended_module, "HISTORY_AGE", -1)
    manager.allocate("last", "10.0.0.5").release()
    manager.allocate("last", "10.0.0.5").release()
    assert manager.history("10.0.0.4") == []


def test_owners_and_labels_are_found(reopen):
    manager = reopen()
    manager.allocate("web", labels={"app": "shop", "tier": "front"})
    manager.allocate("web", labels={"app": "blog"})
    manager.allocate_many(2, owner="db", labels={"app": "shop"})
    manager = reopen()
    assert ips(manager.find("web")) == ["10.0.0.2", "10.0.0.3"]
    assert ips(manager.find(label=("app", "shop"))) == ["10.0.0.2", "10.0.0.4", "10.0.0.5"]
    assert ips(manager.find("web", "app=shop")) == ["10.0.0.2"]
    with pytest.raises(InvalidValueError, match="'app' is not name=value"):
        manager.find(label="app")
    assert manager.find("web")[0].labels == {"app": "shop", "tier": "front"}
    assert manager.release("web") == 2
    assert manager.release("web") == 0
    assert ips(manager.find(label=("app", "shop"))) == ["10.0.0.4", "10.0.0.5"]
    assert manager.check() == []


def test_gc_releases_after_two_looks_and_a_grace_period(reopen, clock):
    manager = reopen()
    for owner in ("alive", "dead", "dead", "reborn", "again"):
        manager.allocate(owner, key="eth0" if owner in ("again", "reborn") else None)
    manager.find("dead")[0].allocate_port(80)
    assert manager.gc(["alive"], grace=10) == []
    clock.sleep(5)
    assert manager.gc(["alive"], grace=10) == []  # the second look, but too soon
    # Another container of the same name, on the same address; and one that asked again.
    manager.find("reborn")[0].release()
    manager.allocate("reborn", "10.0.0.5", key="eth0")
    manager.allocate("again", key="eth0")
    clock.sleep(5)
    manager = reopen()
    assert [str(ip) for ip in manager.gc(["alive"], grace=10)] == ["10.0.0.3", "10.0.0.4"]
    assert [one.owner for one in manager.interfaces()] == ["alive", "reborn", "again"]
    assert manager.check() == []
    clock.sleep(9)
    assert manager.gc(["alive", "again"], grace=10) == []  # both were noted 9 s ago
    clock.sleep(1)
    assert [str(ip) for ip in manager.gc(["alive", "again"], grace=10)] == ["10.0.0.5"]
    with pytest.raises(InvalidValueError, match="-1"):
        manager.gc([], grace=-1)


def test_gc_spares_a_lease_that_is_not_the_one_it_saw(reopen, clock):
    manager = reopen()
    web = manager.allocate("dead")
    tx = manager._leases.committer.store.begin("note an older lease")
    older = GcCandidate(web._lease.network, web._lease.ordinal, web.generation - 1, 0)
    tx.table(GcCandidate).add((older,))
    tx.commit()
    assert manager.gc([], grace=10) == []
    clock.sleep(9)
    assert manager.gc([], grace=10) == []
    clock.sleep(1)
    assert manager.gc([], grace=10) == [web.ip]


def test_gc_goes_on_past_what_cannot_be_released(reopen, clock):
    manager = reopen()
    backend = manager._leases.mappings._kernel.backend
    stuck, free = manager.allocate("dead", ports=(80,)), manager.allocate("dead")
    backend.stuck = {stuck.ports()[0].host_port}
    manager.gc([], grace=0)
    with pytest.raises(Exception, match="not everything was released"):
        manager.gc([], grace=0)
    assert manager.interfaces() == [stuck]
    backend.stuck = set()
    assert manager.gc([], grace=0) == [stuck.ip]
    assert free.ip != stuck.ip


def test_a_key_is_remembered_over_a_restart(reopen):
    first = reopen().allocate("pod", key="eth0", ports=(80,))
    ports = first.ports()
    again = reopen().allocate("pod", key="eth0", ports=(80,))
    assert (again.ip, again.generation, again.ports()) == (first.ip, first.generation, ports)


def test_the_cursor_goes_on_where_it_was_and_another_network_is_refused(reopen):
    manager = reopen("10.0.0.1/24", ports=range(8000, 9000))
    for one in manager.allocate_many(100, (80,)):
        one.release()
    manager = reopen("10.0.0.1/24", ports=range(8000, 9000))
    assert str(manager.allocate(ports=(80,)).ip) == "10.0.0.102"
    assert manager.interfaces()[0].ports()[0].host_port == 8100
    manager.interfaces()[0].release()
    with pytest.raises(InUseError, match=r"subnet 10\.0\.0\.1/24, not 10\.0\.0\.1/29"):
        reopen("10.0.0.1/29")
    with pytest.raises(InUseError, match="ports 8000-8999, not 8000-8001"):
        reopen("10.0.0.1/24", ports=range(8000, 8002))


@pytest.mark.parametrize("network", ["10.0.0.0/31", "10.0.0.3/32", "fd00::/64", "fd00::1/126"])
def test_small_networks_and_wide_ones(reopen, network):
    plan, manager = IPAllocator(network), reopen(network)
    last = plan.address(plan.size - 1)
    interface = manager.allocate("last", last)
    manager = reopen(network)
    assert ips(manager.interfaces()) == [str(last)]
    assert interface.address == manager.interfaces()[0].address
    with pytest.raises(InUseError, match="held by last"):
        manager.allocate("other", last)
    manager.find("last")[0].release()
    assert len(manager.allocate_many(min(plan.capacity, 5000))) == min(plan.capacity, 5000)
    assert manager.check() == []


def test_a_release_that_came_too_late_is_counted_and_strict_ones_told(reopen):
    late = reopen().allocate("first", "10.0.0.4")
    manager = reopen()
    manager.find("first")[0].release()
    second = manager.allocate("second", "10.0.0.4", ports=(80,))
    stale = type(second)(manager._leases, late._lease)
    stale.release()
    assert manager.stale_releases == 1
    for call in (lambda: stale.allocate_port(80), lambda: stale.release_port(8000)):
        with pytest.raises(NotAllocatedError):
            call()
    stale = type(second)(manager._leases, late._lease)
    for call in (
        lambda: stale.allocate_port(80),
        lambda: stale.release_port(8000),
        lambda: stale.release(strict=True),
    ):
        with pytest.raises(StaleLeaseError, match="of first of 10"):
            call()
    assert manager.interfaces() == [second]
    assert len(second.ports()) == 1


def test_check_names_what_is_wrong_and_repair_mends_it(reopen):
    manager = reopen()
    web = manager.allocate("web", ports=(80, PortRequest(53, "udp", host_ip="10.9.9.9")))
    assert manager.check() == []
    backend = manager._leases.mappings._kernel.backend
    mapping = backend.mappings()[0]
    backend.reconcile([])
    tx = manager._leases.committer.store.begin("sabotage")
    bitmap = manager._leases.addresses.bitmap(tx)
    bitmap.release(web._lease.ordinal)
    bitmap.reserve(3)
    tx.bitmap("ports/tcp/used", tx.bitmap("ports/tcp/used", 65536).size).release(mapping.host_port)
    tx.commit()
    problems = "\n".join(manager.check())
    assert "10.0.0.2 is not marked as taken" in problems
    assert "10.0.0.5 is marked as taken, but no record says by whom" in problems
    assert "bitmap ports/tcp/used differs from the publications at 1 ports" in problems
    assert problems.count("the kernel lacks PortMapping(host_port=") == 2
    with pytest.raises(StoreError, match="repair"):
        manager.allocate(ip="10.0.0.5")
    manager.repair()
    assert manager.check() == []
    assert set(backend.mappings()) == set(web.ports())
