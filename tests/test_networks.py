"""A network is configured once: what is stated must be what is registered; all of them by name."""

import pytest

from faults import FaultyBackend
from netalloc import (
    ClosedError,
    CommandError,
    InterfaceError,
    InUseError,
    InvalidValueError,
    NetworkManager,
    Networks,
    NetworkView,
    NotAllocatedError,
    PortRequest,
    Subnet,
)
from netalloc.ipam.networks import NetworkInfo
from netalloc.manager import assembly
from netalloc.manager.repair import make_anew, repair

CONFIGURATION = {
    "network": "10.88.0.1/24",
    "exclude": ["10.88.0.64/26", "10.88.0.5"],
    "ports": range(8100, 8000, -2),
    "backend": "null",
    "cooldown": 2.5,
    "sticky": 60,
    "forward": True,
    "mode": "bridge",
}
OTHER = {
    "network": "10.88.0.2/24",
    "exclude": ["10.88.0.64/27"],
    "ports": range(8000, 8100),
    "backend": "iptables",
    "cooldown": 3,
    "sticky": 0,
    "forward": False,
}


def anew(path):
    """A repair by a new file, also where the one that is there is whole."""
    return make_anew(path, 10.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "host.db"


def test_a_network_opened_by_name_is_all_that_it_was_registered_as(path):
    NetworkManager("br0", store=path, name="web", **CONFIGURATION).close()
    with NetworkManager.open("web", path) as manager, NetworkView(path) as view:
        assert (manager.name, manager.bridge) == ("web", "br0")
        assert str(manager.gateway) == "10.88.0.1"
        subnet = Subnet("10.88.0.1/24", exclude=["10.88.0.5", "10.88.0.64/26"])
        assert manager.subnet == subnet
        expected = NetworkInfo(
            "web", "br0", "bridge", subnet, "null", range(8100, 8000, -2), 2.5, 60.0, True,
            (subnet,), "open", (), ("10.88.0.5", "10.88.0.64/26"),
        )  # fmt: skip
        assert view.networks() == [expected]
        one = manager.allocate("shop", ports=(80,))
        assert one.ports()[0].host_port == 8100
        with pytest.raises(InvalidValueError, match=r"10\.88\.0\.70"):
            manager.allocate(ip="10.88.0.70")
        one.release()
        with pytest.raises(InUseError, match="cooling down"):
            manager.allocate("other", one.ip)
        assert manager.allocate("shop").ip == one.ip  # sticky


@pytest.mark.parametrize("what", OTHER)
def test_a_manager_that_states_something_else_is_told_both_values(path, what):
    with NetworkManager("br0", store=path, **CONFIGURATION) as first:
        held = first.allocate("shop")
        with pytest.raises(InUseError, match="br0 is registered with") as refused:
            NetworkManager("br0", store=path, **CONFIGURATION | {what: OTHER[what]})
        for value in (CONFIGURATION[what], OTHER[what]):
            shown = {
                "exclude": ", ".join(sorted(value, reverse=True)) if what == "exclude" else "",
                "ports": "8000-8099" if value == range(8000, 8100) else "8100-8002/2",
                "cooldown": f"{value} s",
                "sticky": f"{value} s",
            }.get(what, str(value))
            assert all(part in str(refused.value) for part in shown.split(", "))
        assert first.interfaces() == [held]
        # What is left out is as registered, whatever the default for a new one is.
        with NetworkManager("br0", store=path) as same:
            assert same.subnet == first.subnet


def test_the_order_of_exclusions_and_how_they_are_written_make_no_difference(path):
    NetworkManager("br0", store=path, **CONFIGURATION).close()
    again = CONFIGURATION | {"exclude": ["10.88.0.96/27", "10.88.0.5/32", "10.88.0.64/27"]}
    NetworkManager("br0", store=path, **again).close()


def test_a_network_is_configured_anew_after_its_removal(path):
    with Networks(path) as host:
        web = host.create("web", "10.88.0.1/24", bridge="br0", backend="null")
        one = web.allocate("shop", ports=(80,))
        with pytest.raises(InUseError, match="1 addresses leased"):
            host.remove("web")
        one.release()
        web.reserve("10.88.0.9", "db")
        with pytest.raises(InUseError, match="1 addresses reserved"):
            host.remove("web")
        web.unreserve("10.88.0.9")
        with NetworkManager.open("web", path) as elsewhere:
            host.remove("web")
            assert list(host) == []
            with pytest.raises(NotAllocatedError, match="web was removed"):
                elsewhere.allocate()
            again = host.create("web", "10.99.0.1/24", bridge="br0", backend="null")
            assert str(again.allocate().ip) == "10.99.0.2"
            with pytest.raises(NotAllocatedError, match="registered anew"):
                elsewhere.allocate()
        with pytest.raises(NotAllocatedError, match="no network nosuch.*there are: web"):
            host.remove("nosuch")


def test_networks_is_a_mapping_and_hands_out_one_manager_a_name(path):
    with Networks(path) as host:
        assert (len(host), list(host), "web" in host, 5 in host) == (0, [], False, False)
        with pytest.raises(KeyError):
            host["web"]
        with pytest.raises(NotAllocatedError, match="there are: none"):
            host.open("web")
        web = host.create("web", "10.88.0.1/24", bridge="br0", backend="null")
        lab = host.create("lab", "10.89.0.1/24", backend="null", cooldown=3)
        assert (web.bridge, lab.bridge) == ("br0", "lab")
        assert list(host) == ["lab", "web"]
        assert str(host["lab"].subnet) == "10.89.0.1/24"
        assert host["lab"].cooldown == 3
        assert host.open("web") is web
        with pytest.raises(InUseError, match="web is registered already"):
            host.create("web", "10.90.0.1/24", bridge="br9", backend="null")
        with pytest.raises(InUseError, match="bridge br0 is of network web"):
            host.create("third", "10.90.0.1/24", bridge="br0", backend="null")
        with pytest.raises(InUseError, match="overlaps"):
            host.create("third", "10.88.0.129/25", backend="null")
        assert list(host) == ["lab", "web"]
    with pytest.raises(ClosedError):
        web.allocate()
    with pytest.raises(ClosedError):
        list(host)
    host.close()


def test_release_and_gc_over_all_networks_of_a_host(path):
    with Networks(path) as host:
        for i, name in enumerate(("lab", "web")):
            manager = host.create(name, f"10.{88 + i}.0.1/24", backend="null")
            manager.allocate("shop", key="eth0", ports=(80,))
            manager.allocate("gone")
        assert host.gc(["shop"], grace=0) == {}
        found = host.gc(["shop"], grace=0)
        assert {name: list(map(str, ips)) for name, ips in found.items()} == {
            "lab": ["10.88.0.3"],
            "web": ["10.89.0.3"],
        }
        assert host.release("shop") == 2
        assert host.release("shop") == 0
        assert [usage.held for usage in NetworkView(path).usage()] == [0, 0]
        assert host.check() == []
        for hostile in (None, 5, b"x", ["shop"]):
            with pytest.raises(InvalidValueError):
                host.release(hostile)
        for hostile in (None, 5, "shop", b"shop", [None]):
            with pytest.raises(InvalidValueError):
                host.gc(hostile)


class Refusing(FaultyBackend):
    """Fails at one of its steps."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def setup(self):
        super().setup()
        if self.step == "setup":
            raise CommandError("no set-up today")

    def reconcile(self, desired):
        if self.step == "reconcile":
            raise CommandError("no reconciling today")
        return super().reconcile(desired)


@pytest.mark.parametrize("step", ["setup", "reconcile"])
def test_a_refused_constructor_leaves_nothing_registered(path, step):
    NetworkManager("other", network="10.9.0.1/24", backend="null", store=path).close()
    hostile = [
        {"backend": Refusing(step)},
        {"cooldown": float("nan")},
        {"cooldown": -5},
        {"sticky": float("inf")},
        {"ports": range(5)},
        {"ports": range(5, 5)},
        {"exclude": ["10.77.0.0/24"]},
        {"exclude": 5},
        {"forward": 1},
        {"mode": "flat"},
        {"name": "a b"},
        {"name": ""},
        {"probe": 5},
        {"backend": "ipfw"},
        {"network": "10.88.0.255/24"},
        {"network": "10.9.0.129/25"},
        {"network": "hello"},
    ]
    for options in hostile:
        with pytest.raises((InvalidValueError, CommandError, InUseError)):
            NetworkManager(
                "br0", **{"network": "10.88.0.1/24", "backend": "null", "store": path} | options
            )
        with NetworkView(path) as view:
            assert [one.name for one in view.networks()] == ["other"], options
    with pytest.raises(InterfaceError, match="nosuch"):
        NetworkManager("nosuch", store=path)
    with NetworkManager("br0", network="10.88.0.1/24", backend="null", store=path) as manager:
        assert str(manager.allocate().ip) == "10.88.0.2"


def test_a_backend_that_refuses_is_cleaned_up_after(path):
    backend = Refusing("reconcile")
    with pytest.raises(CommandError):
        NetworkManager("br0", network="10.88.0.1/24", backend=backend, store=path)
    assert backend.calls == ["setup", "cleanup", "close"]


def test_a_huge_exclusion_costs_nothing_by_the_address(path):
    with NetworkManager(
        "br0", network="10.0.0.1/8", exclude=["10.128.0.0/9", "10.0.0.2"], backend="null"
    ) as manager:
        assert str(manager.allocate().ip) == "10.0.0.3"
    with NetworkManager(
        "br0", network="10.0.0.1/8", exclude=["10.128.0.0/9"], backend="null", store=path
    ) as manager:
        assert str(manager.allocate().ip) == "10.0.0.2"
        with pytest.raises(InvalidValueError, match="excluded"):
            manager.reserve("10.200.0.1")
        assert manager.check() == []


def test_a_keyed_request_with_other_ports_or_labels_says_how_they_differ(path):
    with NetworkManager("br0", network="10.88.0.1/24", backend="null", store=path) as manager:
        ports = (80, PortRequest(53, "udp", host_port=5353), PortRequest(9000, count=3))
        first = manager.allocate("pod", key="eth0", ports=ports, labels={"app": "shop"})
        assert manager.allocate("pod", key="eth0", ports=ports) == first
        assert manager.allocate("pod", key="eth0", ports=ports[::-1]) == first
        assert manager.allocate("pod", key="eth0", labels={"app": "shop"}) == first
        assert manager.allocate("pod", key="eth0") == first
        others = [
            (443,),
            (80,),
            (*ports, 80),
            (PortRequest(80, "udp"), *ports[1:]),
            (80, PortRequest(53, "udp", host_port=5354), ports[2]),
            (80, ports[1], PortRequest(9000, count=4)),
            (PortRequest(80, host_ip="10.0.0.9"), *ports[1:]),
        ]
        for other in others:
            with pytest.raises(InUseError, match=r"10\.88\.0\.2 as eth0 with .*asks for it with"):
                manager.allocate("pod", key="eth0", ports=other)
        with pytest.raises(InUseError, match="shop.*other"):
            manager.allocate("pod", key="eth0", labels={"app": "other"})
        assert len(manager.interfaces()) == 1
        assert len(first.ports()) == 3


@pytest.mark.parametrize("store", [None, "file"])
def test_what_cools_down_is_not_given_by_way_of_a_reservation(path, store):
    with NetworkManager(
        "br0",
        network="10.88.0.1/29",
        backend="null",
        store=None if store is None else path,
        cooldown=3600,
    ) as manager:
        old = manager.allocate("old")
        old.release()
        manager.reserve(old.ip, "new")
        with pytest.raises(InUseError, match="cooling down"):
            manager.allocate("new", old.ip)
        with pytest.raises(InUseError, match="cooling down"):
            manager.allocate("new")
        manager.unreserve(old.ip)
        assert old.ip not in [one.ip for one in manager.allocate_many(4)]
        with pytest.raises(InUseError, match="cooling down"):
            manager.allocate("new", old.ip)
        assert manager.allocate("old", old.ip).ip == old.ip  # the last holder itself
        assert manager.check() == []


@pytest.mark.parametrize("store", [None, "file"])
def test_a_reserved_lease_that_ends_cools_down_as_any_other(path, store):
    with NetworkManager(
        "br0",
        network="10.88.0.1/24",
        backend="null",
        store=None if store is None else path,
        cooldown=3600,
    ) as manager:
        manager.reserve("10.88.0.9", "db")
        db = manager.allocate("db")
        assert str(db.ip) == "10.88.0.9"
        db.release()
        manager.unreserve("10.88.0.9")
        with pytest.raises(InUseError, match="cooling down"):
            manager.allocate("web", "10.88.0.9")
        assert manager.check() == []


def test_an_ended_lease_shows_nothing_of_its_successor(path):
    with NetworkManager("br0", network="10.88.0.1/24", backend="null", store=path) as manager:
        old = manager.allocate("old", "10.88.0.9", labels={"app": "shop"})
        manager.release("old")
        new = manager.allocate("new", "10.88.0.9", ports=(80,), labels={"app": "other"})
        assert (old.ports(), old.labels) == ((), {})
        assert len(new.ports()) == 1


def test_a_network_that_another_process_has_configured_anew_is_opened_anew(path):
    with Networks(path) as one, Networks(path) as other:
        one.create("web", "10.88.0.1/24", bridge="br0", backend="null")
        old = other.open("web")
        one.remove("web")
        assert (other.release("nothing"), other.gc([]), other.check()) == (0, {}, [])
        one.create("web", "10.89.0.1/28", bridge="br0", backend="null")
        assert other.open("web") is not old
        assert str(other.open("web").allocate("shop").ip) == "10.89.0.2"
        assert other.release("shop") == 1
        assert other.open("web") is other.open("web")


def test_a_network_that_goes_in_the_middle_of_a_sweep_is_no_failure(path, monkeypatch):
    with Networks(path) as one, Networks(path) as other:
        for number, name in enumerate(("api", "web")):
            one.create(name, f"10.8{number}.0.1/24", bridge=name, backend="null")
            one.open(name).allocate("shop")
        opened = Networks.open

        def removed(self, name):
            manager = opened(self, name)
            if name == "api" and self is other:
                one.release("shop")
                one.remove("api")
            return manager

        monkeypatch.setattr(Networks, "open", removed)
        assert other.gc(["shop"]) == {}
        assert list(other) == ["web"]


def test_of_two_that_create_a_network_at_once_one_is_refused(path, monkeypatch):
    with Networks(path) as one, Networks(path) as other:
        looked = Networks._check_open
        made = []

        def meanwhile(self):
            looked(self)
            if self is one and not made:
                made.append(other.create("web", "10.88.0.1/24", bridge="br0", backend="null"))

        monkeypatch.setattr(Networks, "_check_open", meanwhile)
        monkeypatch.setattr(Networks, "__contains__", lambda self, name: False)
        with pytest.raises(InUseError, match="registered already"):
            one.create("web", "10.88.0.1/24", bridge="br0", backend="null")


def test_a_network_that_comes_while_it_is_looked_for_is_opened(path, monkeypatch):
    with Networks(path) as host:
        original = assembly._look

        def late(host_store, stated):
            found = original(host_store, stated)
            if found is None and not stated.fresh:
                host.create("web", "10.88.0.1/24", bridge="br0", backend="null")
            return found

        monkeypatch.setattr(assembly, "_look", late)
        with NetworkManager.open("web", path) as manager:
            assert str(manager.subnet) == "10.88.0.1/24"


@pytest.mark.parametrize("cut_off", [KeyboardInterrupt, CommandError("no")])
def test_a_removal_that_is_cut_off_in_the_kernel_is_mended_by_the_next_change(
    path, monkeypatch, cut_off
):
    with Networks(path) as host:
        manager = host.create("web", "10.88.0.1/24", backend="null")
        number, store = manager._leases.network.number, manager._leases.committer.store

        def cleanup(network, store):
            raise cut_off

        monkeypatch.setattr("netalloc.manager.networks.kernel_cleanup", cleanup)
        with pytest.raises((KeyboardInterrupt, CommandError)):
            host.remove("web")
        assert list(host) == ["web"]
        assert store.needs_recovery(number)
        manager.allocate("x")
        assert not store.needs_recovery(number)


@pytest.mark.parametrize("repair", [repair, anew])
def test_a_manager_sees_after_a_repair_that_its_network_was_removed(path, repair):
    with Networks(path) as host:
        old = host.create("web", "10.88.0.1/24", bridge="br0", backend="null")
        host.create("api", "10.89.0.1/24", bridge="br1", backend="null")
        old.allocate("shop").release()  # it has seen how the networks are
        counted = old._leases.committer.store.view(lambda tx: tx.last("networks"))
        repair(path)
        with Networks(path) as other:
            for _ in range(counted):
                other.remove("web") if "web" in other else other.create(
                    "web", "10.88.0.1/28", bridge="br0", backend="null"
                )
        with pytest.raises(
            NotAllocatedError, match="was removed from the store, or registered anew"
        ):
            old.allocate("shop")
        assert host.check() == []
