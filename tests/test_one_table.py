"""Many networks in one nftables table: each its own, whatever the others do, and none twice."""

import os
import random
import signal
import threading
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network

import pytest

from faults import in_child
from netalloc import NetworkManager, Networks
from netalloc.errors import InUseError, NetallocError, OutOfRangeError
from netalloc.family import NetworkPair
from netalloc.host import namespaces
from netalloc.host.links import Links, connect
from netalloc.model import PortMapping
from netalloc.portmap.bridge_settings import BridgeSettings
from netalloc.portmap.link import Link
from netalloc.portmap.mapper import PortMapper
from netalloc.portmap.nftables.backend import HOST_TABLE, Nftables

pytestmark = pytest.mark.root

NETWORKS = {f"br{i}": f"10.{200 + i}.0.0/16" for i in range(4)}
SETS = ("networks", "subnets", "bridges")


@pytest.fixture
def host(nft_lab):
    """The lab with three bridges more, and a container on br1."""
    with Links() as links:
        for bridge, network in list(NETWORKS.items())[1:]:
            links.create_bridge(bridge, network.replace("0.0/", "0.1/"))
        namespaces.create("d0")
        connect(links, "vethd", namespace="d0", bridge="br1", address="10.201.0.2/16",
                gateway="10.201.0.1")  # fmt: skip
    return nft_lab


@pytest.fixture
def make():
    """Makes backends, as several processes would have them, and closes them at the end."""
    with ExitStack() as stack:

        def make(bridge, network=None, **options):
            chosen = NETWORKS[bridge] if network is None else network
            backend = Nftables(link=Link(bridge), networks=pair(chosen), **options)
            stack.callback(backend.close)
            return backend

        yield make


def pair(network):
    return NetworkPair(IPv4Network(network))


def web(bridge, port=8080, **options):
    """A mapping to the first container of a bridge."""
    return PortMapping(port, (IPv4Network(NETWORKS[bridge])[2], 80), **options)


def ruleset(lab):
    return lab.run("nft", "list", "ruleset")


def tables(lab):
    return lab.run("nft", "list", "tables").split("\n")[:-1]


# ---- side by side


@pytest.mark.parametrize("bridge_nf", [0, 1])
def test_containers_of_two_networks_reach_each_other_by_published_ports(make_lab, bridge_nf):
    lab = make_lab("nft", bridge_nf=bridge_nf)
    with Links() as links:
        links.create_bridge("br1", "10.201.0.1/16")
        namespaces.create("d0")
        connect(links, "vethd", namespace="d0", bridge="br1", address="10.201.0.2/16",
                gateway="10.201.0.1")  # fmt: skip
    c0, c1 = lab.containers
    d0 = type(c0)("d0", "d0", "10.201.0.2")
    for place in (c0, d0):
        for protocol in ("tcp", "udp"):
            lab.serve(place, protocol, 80)
    lab.serve(lab.outside, "tcp", 80)
    lab.serve(lab.host, "tcp", 4000, "127.0.0.1")
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(PortMapper("nftables", bridge=b, network=NETWORKS[b]))
            for b in ("br0", "br1")
        )
        for protocol in ("tcp", "udp"):
            one.map(8080, (c0.ip, 80), protocol)
            two.map(8081, (d0.ip, 80), protocol)
        for place in (lab.outside, lab.host, c0, c1, d0):
            for protocol in ("tcp", "udp"):
                assert lab.ask(place, protocol, (lab.address, 8080))[0] == "c0"
                assert lab.ask(place, protocol, (lab.address, 8081))[0] == "d0"
        for port, name in ((8080, "c0"), (8081, "d0")):
            assert lab.ask(lab.host, "tcp", ("127.0.0.1", port))[0] == name
        # To the outside both as the host; on its own bridge a container is itself.
        for place in (c0, d0):
            assert lab.ask(place, "tcp", (lab.outside.ip, 80))[1] == lab.address
            assert lab.reaches(place, "tcp", ("127.0.0.1", 4000)) is None
        assert lab.ask(c1, "tcp", (c0.ip, 80)) == ("c0", c1.ip)
        assert len(tables(lab)) == 1
        one.cleanup()
        assert lab.reaches(lab.outside, "tcp", (lab.address, 8080)) is None
        assert lab.ask(c0, "tcp", (lab.outside.ip, 80))[1] == c0.ip  # no masquerade any more
        assert lab.ask(lab.host, "tcp", ("127.0.0.1", 8081))[0] == "d0"
        assert lab.ask(d0, "tcp", (lab.outside.ip, 80))[1] == lab.address
    assert ruleset(lab) == ""


def test_each_sees_and_touches_its_own_alone(host, make):
    one, two, any_ = make("br0"), make("br1"), Nftables()
    for backend in (one, two, any_):
        backend.setup()
    elsewhere = PortMapping(7000, ("192.168.7.7", 7000), count=9)
    one.apply([web("br0"), web("br0", 9000).replace(dest=("10.200.0.2", 9000), count=5)])
    two.apply([web("br1", 8081, owner="two")])
    any_.apply([elsewhere])
    right = sorted(ruleset(host).splitlines())
    assert two.mappings() == [web("br1", 8081)]
    assert any_.mappings() == [elsewhere]
    for backend, wanted in ((two, [web("br1", 8081)]), (any_, [elsewhere])):
        assert not backend.reconcile(wanted)
    assert two.reconcile([]).removed == (web("br1", 8081),)
    assert two.reconcile([web("br1", 8081, owner="two")]).added == (web("br1", 8081),)
    assert sorted(ruleset(host).splitlines()) == right
    # A key is one for all, and who has it is named.
    with pytest.raises(InUseError, match="8080/tcp -> 10.200.0.2:80"):
        two.apply([web("br1", 8080)])
    with pytest.raises(InUseError, match="8080/tcp -> 10.200.0.2:80 is of another network"):
        two.reconcile([web("br1", 8080)])
    with pytest.raises(InUseError, match="9000-9004/tcp"):
        two.apply([PortMapping(8999, ("10.201.0.2", 8999), count=10)])
    for backend, mapping in ((two, web("br0", 1)), (any_, web("br0", 1))):
        with pytest.raises(OutOfRangeError, match=r"leads to 10\.200\.0\.2"):
            backend.apply([mapping])
        with pytest.raises(NetallocError, match="not mapped"):
            backend.apply((), [web("br0")])
    one.cleanup()
    assert two.mappings() == [web("br1", 8081)] and any_.mappings() == [elsewhere]
    any_.cleanup()
    two.cleanup()
    assert ruleset(host) == ""


def test_networks_that_overlap_are_refused(host, make):
    make("br0").setup()
    before = ruleset(host)
    for bridge, network in (
        ("br1", "10.200.0.0/16"),
        ("br1", "10.200.5.0/24"),
        ("br1", "10.128.0.0/9"),
        ("br0", "10.200.0.0/24"),
    ):
        with pytest.raises(InUseError, match="overlaps 10.200.0.0/16 on br0"):
            make(bridge, network).setup()
        assert ruleset(host) == before
    assert not make("br0").reconcile([])
    for backend in (make("br0"), make("br1")):
        backend.setup()
        backend.cleanup()
    assert ruleset(host) == ""


def test_two_networks_on_a_bridge(host, make):
    one, two = make("br1"), make("br1", "10.77.0.0/24")
    one.setup()
    two.setup()
    one.cleanup()
    assert 'comment "br1"' in ruleset(host)  # the other one needs it
    assert not two.reconcile([])
    two.cleanup()
    assert ruleset(host) == ""


def test_a_hundred_networks(host):
    with Links() as links:
        for i in range(100):
            links.create_bridge(f"x{i}", f"10.{i}.0.1/16")
    mappers = [PortMapper("nftables", bridge=f"x{i}", network=f"10.{i}.0.0/16") for i in range(100)]
    for i, mapper in enumerate(mappers):
        mapper.setup()
        mapper.map(1000 + i, (f"10.{i}.0.2", 80))
    assert len(tables(host)) == 1
    chains = ruleset(host).count("hook")
    assert chains == 6
    for i, mapper in enumerate(mappers):
        assert [m.host_port for m in mapper.backend.mappings()] == [1000 + i]
        assert not mapper.reconcile()
    random.Random(1).shuffle(mappers)
    for mapper in mappers:
        mapper.cleanup()
        mapper.close()
    assert ruleset(host) == ""


# ---- what others do


@pytest.mark.parametrize("name", SETS)
def test_a_flushed_set_is_mended_by_each_for_itself(host, make, name):
    one, two = make("br0"), make("br1")
    for backend, mapping in ((one, web("br0")), (two, web("br1", 8081))):
        backend.setup()
        backend.apply([mapping])
    right = sorted(host.run("nft", "list", "set", "inet", "netalloc", name))
    host.run("nft", "flush", "set", "inet", "netalloc", name)
    assert one.reconcile([web("br0")]).structure == (f"set {name} lacked 10.200.0.0/16 on br0",)
    assert two.mappings() == [web("br1", 8081)]
    assert two.reconcile([web("br1", 8081)]).structure == (
        f"set {name} lacked 10.201.0.0/16 on br1",
    )
    assert sorted(host.run("nft", "list", "set", "inet", "netalloc", name)) == right
    assert not one.reconcile([web("br0")])


def test_a_flush_of_everything_is_mended_by_each_for_itself(host, make):
    one, two = make("br0"), make("br1")
    for backend in (one, two):
        backend.setup()
    for backend, wanted in ((one, [web("br0")]), (two, [web("br1", 8081)])):
        backend.reconcile(wanted)
    right = sorted(ruleset(host).splitlines())
    host.run("nft", "flush", "ruleset")
    assert one.reconcile([web("br0")]).structure[0] == "table inet netalloc was missing"
    found = two.reconcile([web("br1", 8081)])
    assert found.structure[0].startswith("set networks lacked 10.201.0.0/16")
    assert found.added == (web("br1", 8081),)
    assert sorted(ruleset(host).splitlines()) == right


def test_a_table_that_resists_is_made_anew_with_all_that_others_have(host, make):
    one, two = make("br0"), make("br1")
    for backend, mapping in ((one, web("br0")), (two, web("br1", 8081, owner="two"))):
        backend.setup()
        backend.apply([mapping])
    right = sorted(ruleset(host).splitlines())
    vandal = "delete map inet netalloc dnat_ip; add map inet netalloc dnat_ip { type mark : mark; }"
    host.run("nft", f"flush chain inet netalloc portmap; {vandal}")
    assert one.reconcile([web("br0")]).structure
    assert sorted(ruleset(host).splitlines()) == right
    assert not two.reconcile([web("br1", 8081, owner="two")])


def test_what_leads_into_no_network_stays_unless_it_is_in_the_way(host, make):
    one = make("br0")
    one.setup()
    for element in (
        "dnat_any { tcp . 8080 : 10.6.6.6 . 80 }",
        "dnat_any { tcp . 8081 : 10.6.6.6 . 80 }",
        "block_any { udp . 9000-9999 : 10.6.6.6 }",
    ):
        host.run("nft", "add", "element", "inet", "netalloc", *element.split(" ", 1))
    assert one.mappings() == []
    assert not one.reconcile([])
    block = PortMapping(8990, ("10.200.0.2", 8990), "udp", count=300)
    found = one.reconcile([web("br0"), block])
    assert sorted(m.host_port for m in found.removed) == [8080, 9000]
    assert set(one.mappings()) == {web("br0"), block}
    assert "tcp . 8081 : 10.6.6.6 . 80" in ruleset(host)
    one.cleanup()
    assert ruleset(host) == ""


@pytest.mark.parametrize("fresh", [False, True])
def test_a_bridge_that_is_made_anew_or_renamed(host, make, fresh):
    one, other = make("br1"), make("br2")
    other.setup()
    one.setup()
    if fresh:
        host.run("ip", "link", "delete", "br1")
        with Links() as links:
            links.create_bridge("br1", "10.201.0.1/16")
        assert any("set bridges lacked" in what for what in one.reconcile([]).structure)
        assert not one.reconcile([])
    else:
        host.run("ip", "link", "set", "br1", "name", "brx")
        one.close()
        one = make("br1", "10.201.0.0/16")
        renamed = Nftables(link=Link("brx"), networks=pair("10.201.0.0/16"))
        renamed.setup()
        assert '"brx" . 10.201.0.0/16' in ruleset(host) and '"br1"' not in ruleset(host)
        assert not renamed.reconcile([])
        renamed.cleanup()
        renamed.close()
    one.cleanup()
    assert not other.reconcile([])
    other.cleanup()
    assert ruleset(host) == ""


# ---- earlier versions

EARLIER = """
table ip {name} {{
  map dnat_ip {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map dnat_any {{ type inet_proto . inet_service : ipv4_addr . inet_service;
    elements = {{ tcp . 8080 comment "web" : 10.200.0.2 . 80, tcp . 8081 : 10.9.9.9 . 80 }} }}
  map block_ip {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr; flags interval; }}
  map block_any {{ type inet_proto . inet_service : ipv4_addr; flags interval;
    elements = {{ udp . 9000-9009 : 10.200.0.2 }} }}
  set fingerprint {{ type mark; }}
  chain portmap {{ }}
}}
"""


@pytest.mark.parametrize("managed", [False, True])
def test_the_table_of_an_earlier_version_is_taken_over(host, make, managed):
    name = "netalloc-br0" if managed else "netalloc"
    options = {"name": HOST_TABLE, "owner": name} if managed else {}
    host.run("nft", "-f", "-", input=EARLIER.format(name=name))
    host.run("nft", "add", "table", "ip", "netalloc-br9")  # another network's
    earlier = BridgeSettings("br0", f"nftables {name}")
    earlier.restore()
    one = make("br0", **options)
    one.setup()
    block = PortMapping(9000, ("10.200.0.2", 9000), "udp", count=10)
    assert set(one.mappings()) == {web("br0"), block}
    assert [m.owner for m in one.mappings()] == ["web", None]
    assert f"table ip {name}" not in tables(host)
    assert "table ip netalloc-br9" in tables(host)
    host.run("nft", "delete", "table", "ip", "netalloc-br9")
    one.cleanup()
    assert ruleset(host) == ""
    localnet = host.run("sysctl", "-n", f"net.ipv4.conf.{host.bridge}.route_localnet")
    assert localnet == "0\n"


# ---- at once


def work(bridge, rounds, seed):
    """What a process does with a network of its own; it ends with 0 when all was as it should."""
    dice = random.Random(seed)
    for _ in range(rounds):
        backend = Nftables(link=Link(bridge), networks=pair(NETWORKS[bridge]))
        backend.setup()
        mine = {web(bridge, 1000 * (int(bridge[2:]) + 1) + i) for i in range(dice.randrange(1, 30))}
        backend.apply(list(mine))
        if dice.random() < 0.5:
            assert not backend.reconcile(mine)
        assert set(backend.mappings()) == mine
        backend.cleanup()
        assert backend.mappings() == []
        backend.close()


def test_processes_that_come_and_go_at_once(host):
    """The last one of the table leaves all the time while another one arrives."""
    children = []
    for i, bridge in enumerate(NETWORKS):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(bridge, 12, i)
                status = 0
            except BaseException as error:
                os.write(2, f"{bridge}: {error!r}\n".encode())
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
    assert ruleset(host) == ""


def test_threads_that_come_and_go_at_once(host):
    failures = []

    def run(bridge, seed):
        try:
            work(bridge, 12, seed)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=pair[::-1]) for pair in enumerate(NETWORKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert ruleset(host) == ""


@pytest.mark.parametrize("when", ["setup", "cleanup", "reconcile"])
def test_killed_anywhere_the_others_live_on(host, make, when):
    """A child dies at its n-th message to the kernel, for every n."""
    two = make("br1")
    two.setup()
    two.apply([web("br1", 8081)])
    both = [web("br0"), web("br0", 8082)]
    deaths = 0
    for moment in range(1, 60):

        def child(moment=moment):
            victim = Nftables(link=Link("br0"), networks=pair(NETWORKS["br0"]))
            if when != "setup":
                victim.setup()
                victim.apply(both[:1])
            die_at(moment)
            {"setup": victim.setup, "cleanup": victim.cleanup,
             "reconcile": lambda: victim.reconcile(both[1:])}[when]()  # fmt: skip

        status = in_child(child)
        assert status in (0, -signal.SIGKILL)
        deaths += status != 0
        assert two.mappings() == [web("br1", 8081)]
        assert not two.reconcile([web("br1", 8081)])
        successor = make("br0")
        successor.setup()
        successor.reconcile(both)
        assert set(successor.mappings()) == set(both)
        successor.cleanup()
        successor.close()
        if not status:
            break
    assert deaths > 3 and not status
    two.cleanup()
    assert ruleset(host) == ""


def die_at(moment):
    """Have this process killed before its n-th netlink message from now."""
    from netalloc.host import netlink

    sending, left = netlink.NetlinkSocket._send, [moment]

    def send(self, data):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return sending(self, data)

    netlink.NetlinkSocket._send = send


def test_the_last_one_leaves_the_table_to_one_that_comes_meanwhile(host, make, monkeypatch):
    """Between the look at the register and the deletion another one joins."""
    one, two = make("br0"), make("br1")
    one.setup()
    register = type(one._register)
    members, joins = register._members, [two.setup]

    def raced(self):
        found = members(self)
        if self is one._register and joins:
            joins.pop()()
        return found

    monkeypatch.setattr(register, "_members", raced)
    one.cleanup()
    assert not joins
    assert not two.reconcile([])
    two.cleanup()
    assert ruleset(host) == ""


def test_the_table_goes_away_while_one_joins(host, make, monkeypatch):
    one, two = make("br0"), make("br1")
    one.setup()
    register = type(one._register)
    join, leaves = register.join, [one.cleanup]

    def raced(self):
        if self is two._register and leaves:
            leaves.pop()()
        return join(self)

    monkeypatch.setattr(register, "join", raced)
    two.setup()
    assert not leaves and not two.reconcile([])
    two.cleanup()
    assert ruleset(host) == ""


def test_a_block_comes_in_between_the_look_and_the_change(host, make, monkeypatch):
    """The kernel takes a block that encloses another: the look has to be of the same moment."""
    one, two = make("br0"), make("br1")
    for backend in (one, two):
        backend.setup()
    changes = type(one._changes)
    check = changes._check_free
    races = [lambda: two.apply([PortMapping(9002, ("10.201.0.2", 9002), count=300)])]

    def raced(self, *arguments):
        check(self, *arguments)
        if races:
            races.pop()()

    monkeypatch.setattr(changes, "_check_free", raced)
    with pytest.raises(InUseError, match="9002-9301/tcp"):
        one.apply([PortMapping(9000, ("10.200.0.2", 9000), count=400)])
    assert one.mappings() == []


SINGLE = PortMapping(9005, ("10.200.0.2", 9005))
SMALL = PortMapping(9000, ("10.200.0.2", 9000), count=10)
LARGE = PortMapping(8900, ("10.200.0.2", 8900), count=500)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (SMALL, LARGE),
        (LARGE, SMALL),
        (SMALL.replace(host_port=8895, dest=("10.200.0.2", 8895)), LARGE),
        (LARGE, SMALL.replace(host_port=9399, dest=("10.200.0.2", 80))),
        (SMALL, SMALL.replace(host_port=9009, dest=("10.200.0.2", 9009))),
        (SMALL, SINGLE),
        (SINGLE, SMALL),
        (SINGLE, LARGE),
        (LARGE, LARGE.replace(host_port=8000, dest=("10.200.0.2", 8000), count=1500)),
    ],
)
@pytest.mark.parametrize("at", [None, "192.0.2.1"])
def test_blocks_of_two_networks_exclude_each_other(host, make, first, second, at):
    one, two = make("br0"), make("br1")
    for backend in (one, two):
        backend.setup()
    first, second = first.replace(host_ip=at), second.replace(host_ip=at)
    elsewhere = (IPv4Address("10.201.0.2"), second.dest[1])
    one.apply([first])
    with pytest.raises(InUseError, match=f":{first.host_port}"):
        two.apply([second.replace(dest=elsewhere)])
    assert two.mappings() == []
    one.apply([second], [first])  # what goes in the same change is in no way
    assert one.mappings() == [second]


# ---- managers


@pytest.mark.parametrize("stored", [False, True])
def test_managers_share_one_table_and_the_last_takes_it_away(host, tmp_path, stored):
    store = tmp_path / "host.db" if stored else None
    with ExitStack() as stack:
        managers = [
            stack.enter_context(
                NetworkManager(bridge, network=network.replace("0.0/", "0.1/"), store=store)
            )
            for bridge, network in NETWORKS.items()
        ]
        ports = [m.allocate("x", ports=(80,)).ports()[0].host_port for m in managers]
        assert len(set(ports)) == len(ports)
        assert tables(host) == [f"table inet {HOST_TABLE}"]
        for manager in managers:
            assert manager.check() == [] and not manager.reconcile()
        managers[0].release("x")
        host.run("nft", "flush", "ruleset")
        assert managers[0].check() == []
        assert len(managers[1].check()) == 1
        for manager in managers:
            manager.reconcile()
            assert manager.check() == []
    if stored:
        with Networks(store) as networks:
            networks.release("x")
            for name in list(networks):
                networks.remove(name)
                left = ruleset(host)
                assert f'"{name}"' not in left and (HOST_TABLE in left) == bool(len(networks))
    assert ruleset(host) == ""


def test_what_a_store_that_is_gone_has_left_makes_room(host, tmp_path, caplog):
    first = NetworkManager("br0", network="10.200.0.1/16", store=tmp_path / "a.db", name="old")
    port = first.allocate("x", ports=(80,)).ports()[0].host_port
    first.close()
    # Another name, another bridge, and a subnet that encloses the old one's.
    with NetworkManager("br1", network="10.200.0.1/15", store=tmp_path / "b.db", name="new") as one:
        assert "10.200.0.0/16 of netalloc-old on br0, of another store, makes room" in caplog.text
        assert one.check() == []
        assert one.allocate("y", ports=(80,)).ports()[0].host_port == port
        assert "netalloc-old" not in ruleset(host)


def test_a_mapper_cannot_take_the_managers_table(host):
    with pytest.raises(InUseError, match="belongs to the managers"):
        PortMapper("nftables", name=HOST_TABLE)
