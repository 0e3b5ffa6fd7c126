"""Networks with a subnet of each family: one lease holds both addresses, over both stores."""

from datetime import datetime, timezone
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, ip_address, ip_interface, ip_network

import pytest

from netalloc import (
    ExhaustedError,
    InUseError,
    InvalidValueError,
    NetworkManager,
    Networks,
    NetworkView,
    OutOfRangeError,
    Subnet,
)
from netalloc.ipam.check import rebuild
from netalloc.ipam.reboot import end_of_boot
from netalloc.manager.repair import make_anew
from netalloc.store.memory import MemoryStore
from netalloc.store.sqlite.store import SqliteStore

V4, V6 = "10.88.0.1/24", "fd00:88::1/64"


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "host.db")
    yield made
    made.close()


def opened(store, network=(V4, V6), **options):
    options = {"backend": "null", **options}
    return NetworkManager("br0", network=network, store=store, **options)


@pytest.mark.parametrize("network", [(V4, V6), (V6, V4), [V4, Subnet(V6)], (ip_interface(V4), V6)])
def test_a_lease_is_an_address_of_each(store, network):
    with opened(store, network) as manager:
        assert manager.subnets == (Subnet(V4), Subnet(V6))
        assert manager.subnet == Subnet(V4)
        assert manager.gateway == IPv4Address("10.88.0.1")
        one = manager.allocate("web")
        assert one.address == ip_interface("10.88.0.2/24")
        assert one.addresses == (one.address, IPv6Interface("fd00:88::2/64"))
        assert one.ip == IPv4Address("10.88.0.2")
        assert one.ips == (one.ip, IPv6Address("fd00:88::2"))
        assert one.gateway == manager.gateway
        assert one.gateways == (manager.gateway, IPv6Address("fd00:88::1"))
        assert repr(one) == "<NetworkInterface 10.88.0.2/24 fd00:88::2/64 of web>"
        assert repr(manager) == "<NetworkManager br0 10.88.0.1/24 and fd00:88::1/64>"
        assert manager.check() == []


@pytest.mark.parametrize("network", [V6, (V6,), [Subnet(V6)], "fd00:88::1/48"])
def test_ipv6_alone(store, network):
    with opened(store, network) as manager:
        one = manager.allocate("web", "fd00:88::77")
        assert one.addresses == (one.address,)
        assert (str(one.ip), str(one.gateway)) == ("fd00:88::77", "fd00:88::1")
        assert one.gateways == (one.gateway,)
        assert len(manager.subnets) == 1
        manager.reserve("fd00:88::ffff:ffff:ffff:ffff", "last")
        assert str(manager.allocate("last").ip) == "fd00:88::ffff:ffff:ffff:ffff"
        assert manager.check() == []


def test_either_address_names_both(store):
    with opened(store, cooldown=3600) as manager:
        by6 = manager.allocate("web", "fd00:88::9", key="eth0")
        assert str(by6.ip) == "10.88.0.9"
        assert manager.allocate("web", "10.88.0.9", key="eth0") == by6
        assert manager.allocate("web", "fd00:88::9", key="eth0") == by6
        with pytest.raises(InUseError, match=r"holds 10\.88\.0\.9 as eth0.* fd00:88::8 too"):
            manager.allocate("web", "fd00:88::8", key="eth0")
        for ip in ("10.88.0.9", "fd00:88::9"):
            with pytest.raises(InUseError, match="is held by web"):
                manager.allocate("other", ip)
            with pytest.raises(InUseError, match="is held by web"):
                manager.reserve(ip, "other")
        manager.reserve("fd00:88::20", "db")
        with pytest.raises(InUseError, match="reserved for db"):
            manager.allocate("other", "10.88.0.32")
        assert str(manager.allocate("db").ip) == "10.88.0.32"
        manager.release("db")
        manager.unreserve("10.88.0.32")
        with pytest.raises(InUseError, match="cooling down"):
            manager.allocate("other", "fd00:88::20")
        assert [past.owner for past in manager.history("fd00:88::20")] == ["db"]
        assert manager.history("fd00:88::20") == manager.history("10.88.0.32")
        now = datetime.now(timezone.utc)
        assert [past.owner for past in manager.history("fd00:88::9", now)] == ["web"]
        assert manager.gc([], grace=0) == []
        assert manager.gc([], grace=0) == [IPv4Address("10.88.0.9")]
        assert manager.check() == []


def test_an_owner_gets_both_again(store):
    with opened(store, sticky=3600) as manager:
        old = manager.allocate("web")
        old.release()
        manager.allocate("other")
        assert manager.allocate("web").ips == old.ips


def test_all_that_goes_together_is_given_and_no_more(store):
    network = ("10.88.0.1/29", "fd00:88::1/64")
    exclude = ["10.88.0.3", "fd00:88::5", "fd00:88:0:0:8000::/65"]
    with opened(store, network, exclude=exclude) as manager:
        given = manager.allocate_many(3)
        assert [str(one.ip) for one in given] == ["10.88.0.2", "10.88.0.4", "10.88.0.6"]
        assert [str(one.ips[1]) for one in given] == ["fd00:88::2", "fd00:88::4", "fd00:88::6"]
        with pytest.raises(
            Exception, match=r"left in 10\.88\.0\.0/29 and fd00:88::/64: 0 of 3 are"
        ):
            manager.allocate()
        for ip in ("10.88.0.3", "fd00:88::3", "10.88.0.5", "fd00:88::5", "fd00:88::7"):
            for call in (manager.allocate, manager.reserve, manager.unreserve, manager.history):
                with pytest.raises(OutOfRangeError, match=ip):
                    call("web", ip) if call == manager.allocate else call(ip)
        assert manager.check() == []
        (info,) = NetworkView(store).networks()
        assert [subnet.exclude for subnet in info.subnets] == [
            ("10.88.0.3",),
            ("fd00:88::5", "fd00:88:0:0:8000::/65"),
        ]


@pytest.mark.parametrize(
    "exclude", [ip_network("fd00:88::8/125"), "fd00:88::8/125", [ip_network("fd00:88::8/125")]]
)
def test_a_network_object_is_one_exclusion(store, exclude):
    with opened(store, exclude=exclude) as manager:
        assert manager.subnets[1].exclude == ("fd00:88::8/125",)
        with pytest.raises(OutOfRangeError, match=r"as fd00:88::9 is excluded"):
            manager.reserve("10.88.0.9")


def test_what_is_made_anew_bars_what_either_excludes(store):
    options = {"exclude": ["10.88.0.5", "fd00:88::3"], "cooldown": 3600}
    with opened(store, (V4, "fd00:88::1/125"), **options) as manager:
        manager.reserve("fd00:88::7", "db")
        one = manager.allocate("web")
        manager.allocate("gone").release()

        def change(tx):
            tx.drop("addresses/1")  # what is made anew has nothing but the tables to go by
            rebuild(tx)

        store.run("rebuild", change)
        assert manager.check() == []
        assert [str(ip) for ip in manager.allocate("next").ips] == ["10.88.0.6", "fd00:88::6"]
        for call in (manager.allocate, lambda: manager.allocate_many(1)):
            with pytest.raises(ExhaustedError, match="0 of 4 are free, 1 are cooling"):
                call()
        assert manager.find("web") == [one]
        store.run("reboot", end_of_boot)
        given = manager.allocate_many(3)
        assert [str(one.ips[1]) for one in given] == ["fd00:88::2", "fd00:88::4", "fd00:88::6"]
        assert manager.allocate("db").ips[1] == ip_address("fd00:88::7")
        assert manager.check() == []


def test_a_repair_keeps_both_families(tmp_path):
    path = tmp_path / "host.db"
    with opened(path, exclude=["fd00:88::4"]) as manager:
        held = [one.ips for one in manager.allocate_many(3, owner="web")]
        manager.reserve("fd00:88::99", "db")
    make_anew(path, 10.0)
    with NetworkManager.open("br0", path) as manager:
        assert [one.ips for one in manager.find("web")] == held
        assert manager.subnets[1].exclude == ("fd00:88::4",)
        assert str(manager.allocate("db").ip) == "10.88.0.153"
        assert manager.check() == []


def test_a_view_knows_both(store):
    with opened(store, exclude=["10.88.0.7"]) as manager:
        one = manager.allocate("web")
        view = NetworkView(store)
        for ip in one.ips:
            (held,) = view.who(ip)
            assert (held.ip, held.ips, held.owner) == (one.ip, one.ips, "web")
            assert view.why(ip) == f"{ip} of network br0 is held by web"
            assert [past.owner for past in view.history(ip)] == ["web"]
        assert [held.ips for held in view.find("web")] == [one.ips]
        assert view.why("fd00:88::3") == "fd00:88::3 of network br0 is free"
        assert view.why("fd00:88::1") == "fd00:88::1 is the gateway of network br0"
        assert view.why("10.88.0.7").startswith("10.88.0.7 is never given by network br0")
        assert view.why("fd00:88::7") == (
            "fd00:88::7 is not given, as 10.88.0.7 is excluded from 10.88.0.0/24 (network br0)"
        )
        assert "fd00:88::ff has no counterpart in 10.88.0.0/24" in view.why("fd00:88::ff")
        assert "there are: br0 (10.88.0.0/24 and fd00:88::/64)" in view.why("fd00:99::1")
        (usage,) = view.usage()
        assert (usage.capacity, usage.held, usage.free) == (252, 1, 251)
        (info,) = view.networks()
        assert info.subnets == manager.subnets
        assert (info.subnet, info.isolation) == (manager.subnet, "open")
        assert view.who("fd00:88::7") == []


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ((), "is 0 subnets"),
        ((V4, V6, "fd01::1/64"), "is 3 subnets"),
        ((V4, "10.99.0.1/24"), r"10\.88\.0\.1/24 and 10\.99\.0\.1/24"),
        ((V6, "fd01::1/64"), "fd00:88::1/64 and fd01::1/64"),
        ((V4, V4), "not 10"),
        ((V4, None), "None is not a network"),
        ((V4, "hello"), "'hello' is not a network"),
        (([V4], V6), "is not a network"),
        ((V4, 5), "5 is not a network"),
        ((V4, "fd00::1%eth0/64"), "has a zone"),
        ({V4, V6}, "is not a network"),
        ([V4] * 100000, "is 100000 subnets"),
    ],
)
def test_what_is_no_network(tmp_path, network, message):
    path = tmp_path / "host.db"
    with pytest.raises(InvalidValueError, match=message):
        opened(path, network)
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "registered", "stated"),
    [
        ({"network": (V4, "fd00:99::1/64")}, V6, "fd00:99::1/64"),
        ({"network": (V4, "fd00:88::2/64")}, V6, "fd00:88::2/64"),
        ({"network": ("10.99.0.1/24", V6)}, V4, "10.99.0.1/24"),
        ({"network": V4}, f"subnet {V4} and {V6}", f"not {V4}:"),
        ({"network": V6}, f"subnet {V4} and {V6}", f"not {V6}:"),
        ({"exclude": ["fd00:88::8"]}, "fd00:88::7", "not fd00:88::8"),
        ({"isolation": "guarded"}, "isolation open", "not guarded"),
        ({"mode": "routed", "bridge": None, "name": "br0"}, "mode bridge", "not routed"),
    ],
)
def test_a_manager_that_states_something_else_is_told_both(tmp_path, options, registered, stated):
    path = tmp_path / "host.db"
    exclude = ["fd00:88::7", "10.88.0.5"]
    with opened(path, exclude=exclude) as first:
        one = first.allocate()
        wanted = {"bridge": "br0", "network": (V4, V6), "exclude": exclude, **options}
        with pytest.raises(InUseError) as refused:
            NetworkManager(store=path, backend="null", **wanted)
        assert registered in str(refused.value) and stated in str(refused.value)
        with opened(path, None) as same, opened(path, (V6, V4), exclude=exclude[::-1]) as other:
            assert same.subnets == other.subnets == first.subnets
            assert same.interfaces() == [one]


def test_networks_that_overlap_in_one_family_are_in_the_way(tmp_path):
    with Networks(tmp_path / "host.db") as host:
        web = host.create("web", (V4, V6), backend="null")
        assert host["web"].subnets == web.subnets
        with pytest.raises(InUseError, match=r"fd00:88::/56 of lab overlaps fd00:88::/64 of web"):
            host.create("lab", ("10.99.0.1/24", "fd00:88::1/56"), backend="null")
        with pytest.raises(InUseError, match=r"10\.88\.0\.0/25 of lab overlaps"):
            host.create("lab", ("fd00:99::1/64", "10.88.0.1/25"), backend="null")
        host.create("lab", ("10.99.0.1/24", "fd00:99::1/64"), backend="null")
        web.allocate("shop")
        assert {name: str(ips) for name, ips in host.gc([], grace=0).items()} == {}
        found = host.gc([], grace=0)
        assert found == {"web": [ip_address("10.88.0.2")]}
        assert host.check() == []


# ---- routed networks, and isolation


def test_a_routed_network_has_no_bridge_and_is_guarded(store):
    with NetworkManager(
        None, network=(V4, V6), mode="routed", backend="null", store=store
    ) as manager:
        assert (manager.name, manager.bridge) == ("routed", None)
        (info,) = NetworkView(store).networks()
        assert (info.mode, info.bridge, info.isolation) == ("routed", None, "guarded")
        assert len(manager.allocate("web").addresses) == 2


def test_a_routed_network_by_name(tmp_path):
    path = tmp_path / "host.db"
    with Networks(path) as host:
        host.create("web", V4, mode="routed", backend="null", isolation="open")
        host.create("lab", V6, mode="routed", backend="null")
        host.create("old", "10.99.0.1/24", backend="null", isolation="guarded")
        assert [(one.bridge, one.mode, one.isolation) for one in host.values()] == [
            (None, "routed", "guarded"),
            ("old", "bridge", "guarded"),
            (None, "routed", "open"),
        ]
    with NetworkManager(None, name="web", mode="routed", store=path) as same:
        assert str(same.subnet) == V4
    for options, message in (
        ({"bridge": "web"}, "bridge none, not web"),
        ({"bridge": None, "mode": "routed", "isolation": "guarded"}, "isolation open, not guarded"),
    ):
        with pytest.raises(InUseError, match=message):
            NetworkManager(name="web", store=path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bridge": None, "network": V4}, "bridge None: only with mode='routed'"),
        ({"bridge": None, "network": V4, "mode": "bridge"}, "bridge None: only with"),
        ({"bridge": "br0", "network": V4, "mode": "routed"}, "'br0': a routed network has none"),
        ({"bridge": None, "mode": "routed"}, "network None: routed network"),
        ({"bridge": "br0", "network": V4, "mode": "flat"}, "'flat' is none of bridge, routed"),
        ({"bridge": "br0", "network": V4, "mode": 5}, "mode 5 is not text"),
        ({"bridge": "br0", "network": V4, "isolation": "shut"}, "'shut' is none of open, guarded"),
        ({"bridge": "br0", "network": V4, "isolation": True}, "isolation True is not text"),
        ({"bridge": "br0", "network": V4, "isolation": ""}, "isolation '' is empty"),
    ],
)
def test_modes_that_make_no_sense(tmp_path, options, message):
    path = tmp_path / "host.db"
    with pytest.raises(InvalidValueError, match=message):
        NetworkManager(store=path, backend="null", **options)
    if path.exists():
        assert NetworkView(path).networks() == []
