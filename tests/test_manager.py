"""The manager over both stores, with a backend that fails on demand."""

import socket
import sys
import threading
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Interface

import pytest

from faults import FaultyBackend
from netalloc._alloc import IPAllocator, Subnet
from netalloc.errors import (
    ClosedError,
    CommandError,
    ExhaustedError,
    InUseError,
    InvalidValueError,
    NotAllocatedError,
    OutOfRangeError,
    StaleLeaseError,
)
from netalloc.host.sockets import can_bind
from netalloc.manager.interface import NetworkInterface
from netalloc.manager.manager import NetworkManager
from netalloc.model import PortMapping, PortRequest
from netalloc.ports import PortAllocator
from netalloc.store.memory import MemoryStore
from netalloc.store.sqlite.store import SqliteStore

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup


@pytest.fixture
def backend():
    return FaultyBackend()


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "store.db")
    yield made
    made.close()


@pytest.fixture
def make(backend, store):
    """Makes managers of one store, which is closed after them."""
    with ExitStack() as stack:

        def make(network="10.0.0.1/29", ports=range(8000, 8004), bridge="br0", **options):
            options = {"backend": backend, "store": store} | options
            return stack.enter_context(
                NetworkManager(bridge, network=network, ports=ports, **options)
            )

        yield make


def test_an_interface_has_address_gateway_owner_and_ports(make, backend):
    with make() as manager:
        web = manager.allocate(owner="web", labels={"app": "shop"})
        assert web.address == IPv4Interface("10.0.0.2/29")
        assert web.gateway == IPv4Address("10.0.0.1")
        assert web.owner == "web"
        assert web.labels == {"app": "shop"}
        assert web.allocate_port(80) == 8000
        assert web.allocate_port(53, "udp", host_port=5353, host_ip="10.1.1.1") == 5353
        assert web.ports() == (
            PortMapping(5353, ("10.0.0.2", 53), "udp", IPv4Address("10.1.1.1")),
            PortMapping(8000, ("10.0.0.2", 80)),
        )
        assert set(backend.mappings()) == set(web.ports())
        assert [m.owner for m in backend.mappings()] == ["web", "web"]
        assert manager.interfaces() == [web]
        web.release_port(8000)
        assert [m.host_port for m in web.ports()] == [5353]
        web.release()
        assert manager.interfaces() == []
        assert backend.mappings() == []


def test_addresses_are_given_in_the_promised_order(make, backend):
    with make("127.0.0.1/29") as manager:
        held = {str(i.ip): i for i in manager.allocate_many(5)}
        assert list(held) == [f"127.0.0.{n}" for n in range(2, 7)]
        with pytest.raises(ExhaustedError, match=r"127\.0\.0\.0/29"):
            manager.allocate()
        for n in (5, 4, 6):
            held[f"127.0.0.{n}"].release()
        assert [str(manager.allocate().ip)[-1] for _ in range(3)] == ["5", "6", "4"]


def test_an_address_asked_for_is_given_once_and_its_holder_named(make, backend):
    with make() as manager:
        assert str(manager.allocate("db", "10.0.0.4").ip) == "10.0.0.4"
        with pytest.raises(InUseError, match=r"10\.0\.0\.4 is held by db") as caught:
            manager.allocate("web", "10.0.0.4")
        assert caught.value.holder == "db"
        for wrong in ("10.0.0.1", "10.0.0.0", "10.0.0.7", "10.0.1.4", "nonsense"):
            with pytest.raises(InvalidValueError, match=wrong):
                manager.allocate(ip=wrong)
        assert len(manager.interfaces()) == 1


def test_a_port_that_the_kernel_refuses_is_not_taken(make, backend):
    backend.refuse = {8000}
    with make() as manager:
        web = manager.allocate()
        with pytest.raises(CommandError):
            web.allocate_port(80)
        assert web.ports() == ()
        backend.refuse = set()
        assert web.allocate_port(80) == 8000


@pytest.mark.parametrize("step", range(8000, 8004))
def test_a_batch_that_fails_at_one_step_leaves_nothing(make, backend, step):
    backend.refuse = {step}
    with make() as manager:
        with pytest.raises(CommandError):
            manager.allocate_many(2, (80, 443))
        assert manager.interfaces() == []
        assert backend.mappings() == []
        backend.refuse = set()
        many = manager.allocate_many(2, (80, 443), owner="web")
        assert [[m.host_port for m in i.ports()] for i in many] == [[8000, 8001], [8002, 8003]]
        with pytest.raises(ExhaustedError):
            manager.allocate(ports=(80,))
        assert len(manager.interfaces()) == 2


def test_an_automatic_pick_keeps_off_what_is_named_later_in_the_batch(make, backend):
    with make() as manager:
        web = manager.allocate(ports=(80, 443, PortRequest(22, host_port=8000)))
        assert {m.dest[1]: m.host_port for m in web.ports()} == {80: 8001, 443: 8002, 22: 8000}


def test_a_held_port_names_its_holder(make, backend):
    with make() as manager:
        manager.allocate("web", ports=(PortRequest(80, host_port=80),))
        with pytest.raises(InUseError, match=r"port 80/tcp is held on every address, by web"):
            manager.allocate("other", ports=(PortRequest(80, host_port=80, host_ip="10.1.1.1"),))
        assert [i.owner for i in manager.interfaces()] == ["web"]


def test_adjacent_ports_are_one_mapping(make, backend):
    with make(ports=range(8000, 8010)) as manager:
        web = manager.allocate()
        web.allocate_port(80, host_port=8002)
        assert web.allocate_ports(5) == range(8003, 8008)
        assert web.allocate_ports(1) == range(8008, 8009)
        assert web.allocate_ports(2, host_port=9000) == range(9000, 9002)
        assert PortMapping(8003, ("10.0.0.2", 8003), count=5) in backend.mappings()
        with pytest.raises(InUseError, match=r"port 8005/tcp .*, by the holder of 10\.0\.0\.2"):
            web.allocate_port(80, host_port=8005)
        web.release_port(8003)
        assert web.allocate_port(80, host_port=8005) == 8005


def test_release_goes_on_past_failures_and_reports_them_all(make, backend):
    with make() as manager:
        web = manager.allocate(ports=(80, 81, 82, 83))
        backend.stuck = {8001, 8002}
        with pytest.raises(ExceptionGroup) as caught:
            web.release()
        assert [str(e) for e in caught.value.exceptions] == ["stuck 8001", "stuck 8002"]
        # What is still mapped to the address keeps it from everybody else.
        assert [m.host_port for m in web.ports()] == [8001, 8002]
        assert manager.interfaces() == [web]
        backend.stuck = set()
        web.release()
        assert (manager.interfaces(), backend.mappings()) == ([], [])


def test_a_context_manager_releases_once(make, backend, store):
    with make() as manager:
        with manager.allocate(ports=(80,)) as web:
            assert backend.mappings()
        assert not backend.mappings()
        with manager.allocate() as web:
            web.release()
        with pytest.raises(NotAllocatedError, match=r"10\.0\.0\.3"):
            web.release()
        with pytest.raises(NotAllocatedError, match=r"10\.0\.0\.3"):
            web.allocate_port(80)
    cleanup = [] if store.persistent else ["cleanup"]
    assert backend.calls == ["setup", *cleanup, "close"]
    with pytest.raises(ClosedError, match="closed"):
        manager.allocate()


def test_a_late_release_does_not_touch_the_next_holder(make, backend):
    with make() as manager:
        late = manager.allocate("first", "10.0.0.3")
        (same,) = manager.find("first")
        same.release()
        second = manager.allocate("second", "10.0.0.3")
        late.release()
        assert manager.stale_releases == 1
        assert manager.interfaces() == [second]
        with pytest.raises(StaleLeaseError, match=r"10\.0\.0\.3"):
            NetworkInterface(manager._leases, same._lease).release(strict=True)
        assert manager.interfaces() == [second]


def test_the_same_owner_and_key_get_the_same_again(make, backend):
    with make() as manager:
        first = manager.allocate("pod", key="eth0", ports=(80,))
        again = manager.allocate("pod", key="eth0", ports=(80,))
        assert again == first
        assert manager.allocate("pod", key="eth1") != first
        assert manager.allocate("pod") not in (first, again)
        assert len(manager.interfaces()) == 3
        with pytest.raises(InUseError, match="pod"):
            manager.allocate("pod", "10.0.0.6", key="eth0")
        with pytest.raises(InvalidValueError, match="eth0"):
            manager.allocate(key="eth0")


@pytest.mark.parametrize("part", [PortAllocator(range(8000, 8002)), [8000, 8001], "8000-8001"])
def test_ports_are_a_range_and_no_allocator(make, part):
    with pytest.raises(InvalidValueError, match="not a range"):
        make(ports=part)


def test_two_networks_of_one_store_share_the_ports_and_do_not_overlap(make, backend):
    with make() as one:
        with pytest.raises(InUseError, match="backend"):
            make()  # the backend of the first one: each would remove the other's mappings
        again = make(backend=FaultyBackend())
        assert one.allocate().ip != again.allocate().ip
        other = make("10.0.1.1/24", bridge="br1", backend=FaultyBackend())
        assert one.allocate(ports=(80,)).ports()[0].host_port == 8000
        assert other.allocate(ports=(80,)).ports()[0].host_port == 8001
        with pytest.raises(InUseError, match=r"10\.0\.0\.0/23 of br2 overlaps 10\.0\.[01]\.0/2"):
            make("10.0.0.1/23", bridge="br2", backend="null")
        with pytest.raises(InUseError, match=r"subnet 10\.0\.1\.1/24, not 10\.0\.1\.2/24"):
            make("10.0.1.2/24", bridge="br1", backend="null")


def test_a_network_is_a_text_or_a_subnet_and_no_allocator(make):
    with pytest.raises(InvalidValueError, match="allocator"):
        make(IPAllocator("10.0.0.1/29"))
    with make(Subnet("10.0.0.1/29", exclude=["10.0.0.2"])) as manager:
        assert str(manager.allocate().ip) == "10.0.0.3"
        with pytest.raises(OutOfRangeError, match=r"10\.0\.0\.2"):
            manager.allocate(ip="10.0.0.2")


def test_threads_never_get_the_same(make, backend):
    with make("10.0.0.1/20", range(20000, 24000)) as manager:
        taken, start = [], threading.Barrier(4)

        def work():
            start.wait()
            for _ in range(50):
                one = manager.allocate(ports=(80,))
                manager.allocate().release()
                taken.append((one.ip, one.ports()[0].host_port))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({ip for ip, _ in taken}) == len({port for _, port in taken}) == 200
        assert len(manager.interfaces()) == len(backend.mappings()) == 200


@pytest.mark.parametrize(
    "wish",
    [0, 65536, "x", 2.5, True],
)
def test_bad_wishes_change_nothing(make, backend, wish):
    with make() as manager:
        if wish != 0:
            with pytest.raises(InvalidValueError):
                manager.allocate(ports=(wish,))
        with pytest.raises(InvalidValueError):
            manager.allocate().allocate_port(0)
        assert len(manager.interfaces()) == 1


def test_a_held_port_cannot_be_bound_by_anybody_else(make, backend):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with make(ports=range(port, port + 1)) as manager:
        web = manager.allocate()
        assert web.allocate_port(80, host_ip="127.0.0.1", hold=True) == port
        assert not bindable(port)
        web.release_port(port)
        assert bindable(port)
        backend.refuse = {port}
        with pytest.raises(CommandError):
            web.allocate_port(80, host_ip="127.0.0.1", hold=True)
        assert bindable(port)
        backend.refuse = set()
        web.allocate_port(80, host_ip="127.0.0.1", hold=True)
        assert not bindable(port)
    assert bindable(port)


def test_a_port_that_somebody_listens_on_is_passed_over_and_not_held(make):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        options = {"ports": range(port, port + 1), "probe": can_bind}
        with make(**options) as manager:
            web = manager.allocate()
            with pytest.raises(ExhaustedError, match="1 more are in use by other programs"):
                web.allocate_port(80, host_ip="127.0.0.1")
            with pytest.raises(InUseError, match=f"{port}"):
                web.allocate_port(80, host_port=port, host_ip="127.0.0.1", hold=True)
            assert web.ports() == ()
            assert manager.check() == []


def bindable(port):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
