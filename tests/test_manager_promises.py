"""What a manager promises, one promise a test, each over memory and over a file."""

import copy
import pickle
import threading
from datetime import datetime, timedelta, timezone
from itertools import pairwise

import pytest

from faults import FaultyBackend
from netalloc.errors import ExhaustedError, InUseError, InvalidValueError, OutOfRangeError
from netalloc.manager.manager import NetworkManager
from netalloc.manager.view import NetworkView
from netalloc.model import PortRequest
from netalloc.store.memory import MemoryTransaction
from netalloc.store.sqlite.table import SqliteTable


@pytest.fixture(params=["memory", "file"])
def make(request, tmp_path):
    """Makes the manager of a network of thirteen addresses; in a file each call makes one more."""
    opened = []

    def make(**options):
        store = None if request.param == "memory" else tmp_path / "store.db"
        options = {"network": "10.0.0.1/28", "backend": "null", "store": store} | options
        opened.append(NetworkManager("br0", **options))
        return opened[-1]

    yield make
    for manager in opened:
        manager.close()


def test_of_two_reservations_the_one_that_does_not_cool_down_is_given(make):
    with make(cooldown=3600) as manager:
        other = manager.allocate("other")
        manager.reserve("10.0.0.9", "db")
        manager.allocate("db").release()
        other.release()
        manager.reserve(other.ip, "db")
        assert str(manager.allocate("db").ip) == "10.0.0.9"
        with pytest.raises(InUseError, match=r"10\.0\.0\.2 is cooling down"):
            manager.allocate("db")


def test_reservations_of_one_owner_are_given_in_their_order(make):
    with make() as manager:
        for ip in ("10.0.0.9", "10.0.0.4", "10.0.0.7"):
            manager.reserve(ip, "db")
        given = [manager.allocate("db").ip for _ in range(3)]
        assert all(a < b for a, b in pairwise(given))


def test_a_sticky_owner_gets_the_address_that_it_had_last(make):
    with make(sticky=3600) as manager:
        first, second, third = [manager.allocate("db") for _ in range(3)]
        for one in (second, third, first):
            one.release()
        assert manager.allocate("db").ip == first.ip
        assert manager.allocate("db").ip == third.ip


def test_a_refused_batch_leaves_the_order_of_what_cools_down(make):
    with make(cooldown=0.000001) as manager:
        manager.allocate_many(13, owner="db")
        manager.release("db")  # all at one moment
        with pytest.raises(ExhaustedError):
            manager.allocate_many(14)
        assert [str(manager.allocate().ip) for _ in range(3)] == [
            "10.0.0.2",
            "10.0.0.3",
            "10.0.0.4",
        ]


def test_a_block_that_leads_elsewhere_is_the_first_free_one(make):
    with make(ports=range(8000, 8010)) as manager:
        web = manager.allocate("web", ports=[80])
        assert web.allocate_ports(3, container_port=443) == range(8001, 8004)
        assert web.ports()[1].dest == (web.ip, 443)
        keyed = manager.allocate("pod", key="a", ports=[PortRequest(90, count=2)])
        again = manager.allocate("pod", key="a", ports=[PortRequest(90, count=2)])
        assert keyed == again
        assert keyed.ports()[0].ports == range(8004, 8006)
        assert manager.check() == []


def test_what_another_manager_has_published_or_released_is_no_difference(tmp_path):
    path = tmp_path / "store.db"
    with (
        NetworkManager("br0", network="10.0.0.1/28", backend="null", store=path) as one,
        NetworkManager.open("br0", path) as other,
    ):
        one.allocate("web", ports=[PortRequest(80, host_port=8080)])
        assert other.check() == []
        assert other.release("web") == 1
        assert one.check() == []
        again = one.allocate("new", ports=[PortRequest(80, host_port=8080)])
        assert again.ports()[0].host_port == 8080
        assert one.check() == other.check() == []


def test_a_number_or_a_moment_beyond_all_measure_is_refused_in_words(make):
    with make(cooldown=5) as manager:
        web = manager.allocate("web")
        for n in (1 << 24, 1 << 63, 1 << 64):
            with pytest.raises((ExhaustedError, OutOfRangeError), match=str(n)[:12]):
                manager.allocate_many(n)
        east, west = (timezone(timedelta(hours=hours)) for hours in (14, -14))
        for at in (
            datetime.min,
            datetime.min.replace(tzinfo=east),
            datetime.max.replace(tzinfo=west),
        ):
            with pytest.raises(OutOfRangeError, match="is no moment in UTC"):
                manager.history(web.ip, at)
        assert manager.interfaces() == [web]


def test_leases_of_two_stores_are_two(make):
    with make() as one, NetworkManager("br0", network="10.0.0.1/28", backend="null") as other:
        web = one.allocate("web")
        assert web == one.find("web")[0]
        assert web != other.allocate("web")


def test_a_handle_is_copied_as_itself_and_pickled_not_at_all(make):
    with make() as manager:
        web = manager.allocate("web", ports=[80])
        assert copy.copy(web) is web
        assert copy.deepcopy({"web": web})["web"] is web
        for one in (web, manager):
            with pytest.raises(InvalidValueError, match="pickled"):
                pickle.dumps(one)
        for value in (*web.ports(), manager.subnet, manager.reconcile(), PortRequest(53, "udp")):
            for other in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
                assert other == value
                assert repr(other) == repr(value)


def test_two_managers_of_one_file_find_the_same_lease(tmp_path):
    with (
        NetworkManager(
            "br0", network="10.0.0.1/28", backend="null", store=tmp_path / "s.db"
        ) as one,
        NetworkManager.open("br0", tmp_path / "s.db") as other,
    ):
        web = one.allocate("web")
        assert {web, *other.find("web")} == {web}


def test_of_two_that_release_an_owner_at_once_each_counts_what_it_ended(tmp_path):
    path = tmp_path / "s.db"
    with (
        NetworkManager("br0", network="10.0.0.1/28", backend="null", store=path) as one,
        NetworkManager.open("br0", path) as other,
    ):
        one.allocate_many(4, owner="web")
        start, counts = threading.Barrier(2), []

        def release(manager):
            start.wait()
            counts.append(manager.release("web"))

        threads = [threading.Thread(target=release, args=(each,)) for each in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(counts) == [0, 4]
        assert one.stale_releases + other.stale_releases == 0


def few(table):
    """The method `all` of a table, for a few records."""
    original = table.all

    def all_of(*self):
        found = original(*self)
        assert len(found) < 10
        return found

    return all_of


class Few:
    """A table of the core, which cannot be patched, with that method."""

    def __init__(self, table):
        self._table = table
        self.all = few(table)

    def __getattr__(self, name):
        return getattr(self._table, name)


def test_the_holder_of_a_port_is_looked_up_and_not_searched_for(make, monkeypatch):
    with make(network="10.0.0.1/16", ports=range(8000, 9000)) as manager:
        manager.allocate_many(300, ports=[80])
        manager.allocate("block", ports=[PortRequest(None, "udp", 9100, count=20)])
        manager.allocate("web", ports=[PortRequest(80, host_port=9000, host_ip="127.0.0.1")])
        monkeypatch.setattr(SqliteTable, "all", few(SqliteTable))
        table = MemoryTransaction.table
        monkeypatch.setattr(MemoryTransaction, "table", lambda tx, kind: Few(table(tx, kind)))
        for port, protocol, holder in (
            (8150, "tcp", "the holder of 10.0.0.152"),
            (9119, "udp", "block"),
            (9000, "tcp", "web"),
        ):
            with pytest.raises(InUseError, match=f"by {holder}"):
                manager.allocate("other", ports=[PortRequest(80, protocol, port)])
        view = NetworkView(manager._leases.committer.store)
        assert [one.owner for one in view.who("udp/9119")] == ["block"]
        assert view.who("udp/9120") == view.who("udp/9099") == []


def test_a_mapping_that_is_being_made_is_no_difference(make, monkeypatch):
    with make(backend=FaultyBackend()) as manager:
        mappings, seen = manager._leases.mappings, []
        original = mappings.differences

        def differences(desired):
            seen.append(None)
            return iter(["half made"]) if len(seen) == 1 else original(desired)

        monkeypatch.setattr(mappings, "differences", differences)
        manager.allocate("web", ports=[80])
        assert manager.check() == []
        assert len(seen) == 2  # the second time in the turn of a change
        manager._leases.mappings._kernel.backend.cleanup()
        assert "the kernel lacks" in manager.check()[0]
