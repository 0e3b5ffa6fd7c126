"""Every parameter of every public call, with values of every wrong kind.

What reaches the caller is a NetallocError, nothing has changed after it, and what was accepted
is read back equal. The core's own calls are in test_core_hostile.py.
"""

import enum
import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import netalloc
from netalloc import (
    NetallocError,
    NetworkManager,
    Networks,
    NetworkView,
    PortAllocator,
    PortMapper,
    PortMapping,
    PortRequest,
    Subnet,
)


class Number(enum.IntEnum):
    PORT = 8080


class Word(str, enum.Enum):
    WEB = "web"


class Text(str):
    __slots__ = ()

    def __str__(self):
        raise RuntimeError("a text that cannot be shown")

    __repr__ = __str__


class Integer(int):
    def __index__(self):
        raise RuntimeError("an integer that is none")

    def __repr__(self):
        raise RuntimeError("an integer that cannot be shown")


class Index:
    def __init__(self, value):
        self.value = value

    def __index__(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Unhashable:
    __hash__ = None


class Nameless:
    def __repr__(self):
        raise RuntimeError("no repr")


def failing() -> Iterator[Any]:
    yield 80
    raise RuntimeError("in the middle of a generator")


VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "-1": lambda: -1,
    "8080": lambda: 8080,
    "65536": lambda: 65536,
    "huge": lambda: 10**5000,
    "2**64": lambda: 2**64,
    "IntEnum": lambda: Number.PORT,
    "int subclass": lambda: Integer(80),
    "index": lambda: Index(8081),
    "failing index": lambda: Index(RuntimeError("no index")),
    "1.5": lambda: 1.5,
    "80.0": lambda: 80.0,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "1e400 as text": lambda: "1e400",
    "complex": lambda: 1j,
    "empty text": lambda: "",
    "text": lambda: "web",
    "blank": lambda: "a b",
    "port as text": lambda: "8080",
    "address": lambda: "10.88.0.77",
    "foreign address": lambda: "192.0.2.9",
    "address object": lambda: ipaddress.IPv4Address("10.88.0.78"),
    "interface object": lambda: ipaddress.IPv4Interface("10.88.0.79/24"),
    "network object": lambda: ipaddress.IPv4Network("10.88.0.0/24"),
    "v6 network object": lambda: ipaddress.IPv6Network("fd00:9::/124"),
    "v6 address": lambda: ipaddress.IPv6Address("fd00::5"),
    "mapped": lambda: "::ffff:10.88.0.5",
    "scoped": lambda: "fe80::1%eth0",
    "str Enum": lambda: Word.WEB,
    "str subclass": lambda: Text("web"),
    "surrogate": lambda: "we\udc80b",
    "NUL": lambda: "we\0b",
    "newline": lambda: "we\nb",
    "escape": lambda: "\x1b[31m",
    "not ASCII": lambda: "wéb-\N{SNOWMAN}",
    "quotes": lambda: "a'b\"c`d;--",
    "1 MB": lambda: "x" * 1_000_000,
    "1 MB of snow": lambda: "\N{SNOWMAN}" * 333_333,
    "bytes": lambda: b"web",
    "bytearray": lambda: bytearray(b"web"),
    "list": list,
    "list of lists": lambda: [[]],
    "tuple": lambda: (80, 80),
    "dict": dict,
    "dict of numbers": lambda: {5: 6},
    "dict of lists": lambda: {"a": []},
    "dict of None": lambda: {None: None},
    "set": set,
    "unhashable": Unhashable,
    "no repr": Nameless,
    "object": object,
    "class": lambda: int,
    "function": lambda: failing,
    "failing generator": failing,
    "generator of text": lambda: (c for c in "web"),
    "range": lambda: range(8000, 8010),
    "empty range": lambda: range(0),
    "PortRequest": lambda: PortRequest(80),
    "PortMapping": lambda: PortMapping(80, ("10.0.0.2", 80)),
    "Subnet": lambda: Subnet("10.88.0.1/24"),
    "short prefix": lambda: "fd00::1/40",
    "two networks": lambda: ("10.88.0.1/24", "fd00::1/64"),
    "three networks": lambda: ["10.88.0.1/24", "fd00::1/64", "fd01::1/64"],
}


@dataclass
class World:
    """A manager with a lease and ports, a view, an allocator and a mapper, to be left as is."""

    path: Any

    def __post_init__(self) -> None:
        self.networks = Networks(self.path)
        self.manager = self.networks.create("web", "10.88.0.1/24", bridge="br0", backend="null")
        self.web = self.manager.allocate("shop", key="eth0", labels={"app": "shop"})
        self.web.publish([PortRequest(443, host_port=8443), PortRequest(53, "udp")])
        self.manager.reserve("10.88.0.200", "db")
        self.pair = self.networks.create("pair", ("10.77.0.1/24", "fd00:77::1/64"), backend="null")
        self.pair.allocate("shop")
        self.view = NetworkView(self.networks._store)
        self.ports = PortAllocator(range(8000, 8100))
        self.ports.reserve(8001)
        self.mapper = PortMapper("null")
        self.mapper.map(9000, ("10.0.0.2", 80))

    def close(self) -> None:
        self.networks.close()

    def seen(self) -> Any:
        view = self.view
        held = [self.ports.held(port) for port in range(8000, 8100)]
        return (
            view.find(),
            view.networks(),
            view.usage(),
            self.manager._leases.mappings.present(),
            self.ports._bitmaps.bitmap("ports/tcp/used", 65536).cursor,
            held,
            self.mapper.mappings,
        )


# Each is a call with one hostile value; the name says which parameter of which call it is.
CALLS: dict[str, Callable[[World, Any], Any]] = {
    "allocate owner": lambda w, v: w.manager.allocate(v),
    "allocate ip": lambda w, v: w.manager.allocate("a", v),
    "allocate key": lambda w, v: w.manager.allocate("a", key=v),
    "allocate labels": lambda w, v: w.manager.allocate("a", labels=v),
    "allocate label value": lambda w, v: w.manager.allocate("a", labels={"app": v}),
    "allocate ports": lambda w, v: w.manager.allocate("a", ports=v),
    "allocate one port": lambda w, v: w.manager.allocate("a", ports=[v]),
    "allocate allow_cooling": lambda w, v: w.manager.allocate("a", allow_cooling=v),
    "allocate check_host": lambda w, v: w.manager.allocate("a", check_host=v),
    "allocate_many n": lambda w, v: w.manager.allocate_many(v),
    "allocate_many ports": lambda w, v: w.manager.allocate_many(1, v),
    "allocate_many owner": lambda w, v: w.manager.allocate_many(1, owner=v),
    "allocate_many labels": lambda w, v: w.manager.allocate_many(1, labels=v),
    "reserve ip": lambda w, v: w.manager.reserve(v),
    "reserve owner": lambda w, v: w.manager.reserve("10.88.0.99", v),
    "unreserve": lambda w, v: w.manager.unreserve(v),
    "find owner": lambda w, v: w.manager.find(v),
    "find label": lambda w, v: w.manager.find(label=v),
    "find label pair": lambda w, v: w.manager.find(label=("app", v)),
    "release": lambda w, v: w.manager.release(v),
    "gc alive": lambda w, v: w.manager.gc(v),
    "gc one alive": lambda w, v: w.manager.gc(["shop", v]),
    "gc grace": lambda w, v: w.manager.gc(["shop"], v),
    "history ip": lambda w, v: w.manager.history(v),
    "history at": lambda w, v: w.manager.history("10.88.0.2", v),
    "watch": lambda w, v: w.manager.watch(v),
    "allocate_port": lambda w, v: w.web.allocate_port(v),
    "allocate_port protocol": lambda w, v: w.web.allocate_port(81, v),
    "allocate_port host_port": lambda w, v: w.web.allocate_port(81, "tcp", v),
    "allocate_port host_ip": lambda w, v: w.web.allocate_port(81, "tcp", None, v),
    "allocate_port hold": lambda w, v: w.web.allocate_port(81, hold=v),
    "allocate_port check_host": lambda w, v: w.web.allocate_port(81, check_host=v),
    "allocate_ports n": lambda w, v: w.web.allocate_ports(v),
    "allocate_ports container_port": lambda w, v: w.web.allocate_ports(2, container_port=v),
    "publish": lambda w, v: w.web.publish(v),
    "publish one": lambda w, v: w.web.publish([v]),
    "release_port": lambda w, v: w.web.release_port(v),
    "release_port protocol": lambda w, v: w.web.release_port(8443, v),
    "release_port host_ip": lambda w, v: w.web.release_port(8443, "tcp", v),
    "release strict": lambda w, v: w.manager.allocate("brief").release(strict=v),
    "PortRequest container_port": lambda w, v: w.web.publish([PortRequest(v)]),
    "PortRequest protocol": lambda w, v: w.web.publish([PortRequest(82, v)]),
    "PortRequest host_port": lambda w, v: w.web.publish([PortRequest(82, host_port=v)]),
    "PortRequest host_ip": lambda w, v: w.web.publish([PortRequest(82, host_ip=v)]),
    "PortRequest count": lambda w, v: w.web.publish([PortRequest(82, count=v)]),
    "acquire protocol": lambda w, v: w.ports.acquire(v),
    "acquire host_ip": lambda w, v: w.ports.acquire("tcp", v),
    "acquire_many n": lambda w, v: w.ports.acquire_many(v),
    "acquire_block n": lambda w, v: w.ports.acquire_block(v),
    "reserve port": lambda w, v: w.ports.reserve(v),
    "release port": lambda w, v: w.ports.release(v),
    "held port": lambda w, v: w.ports.held(v),
    "PortAllocator": lambda w, v: PortAllocator(v),
    "PortAllocator probe": lambda w, v: PortAllocator(range(1, 9), probe=v),
    "map host_port": lambda w, v: w.mapper.map(v, ("10.0.0.3", 80)),
    "map dest": lambda w, v: w.mapper.map(9001, v),
    "map dest ip": lambda w, v: w.mapper.map(9001, (v, 80)),
    "map dest port": lambda w, v: w.mapper.map(9001, ("10.0.0.3", v)),
    "map protocol": lambda w, v: w.mapper.map(9001, ("10.0.0.3", 80), v),
    "map host_ip": lambda w, v: w.mapper.map(9001, ("10.0.0.3", 80), "tcp", v),
    "map count": lambda w, v: w.mapper.map(9001, ("10.0.0.3", 9001), count=v),
    "map owner": lambda w, v: w.mapper.map(9001, ("10.0.0.3", 80), owner=v),
    "unmap": lambda w, v: w.mapper.unmap(v),
    "unmap protocol": lambda w, v: w.mapper.unmap(9000, v),
    "unmap host_ip": lambda w, v: w.mapper.unmap(9000, "tcp", v),
    "map_many": lambda w, v: w.mapper.map_many(v),
    "map_many one": lambda w, v: w.mapper.map_many([v]),
    "unmap_many": lambda w, v: w.mapper.unmap_many(v),
    "unmap_many one": lambda w, v: w.mapper.unmap_many([v]),
    "PortMapper backend": lambda w, v: PortMapper(v),
    "PortMapper bridge": lambda w, v: PortMapper("nftables", bridge=v, network="10.0.0.0/24"),
    "PortMapper network": lambda w, v: PortMapper("nftables", bridge="br0", network=v),
    "PortMapper name": lambda w, v: PortMapper("nftables", name=v),
    "PortMapper iptables name": lambda w, v: PortMapper("iptables", name=v),
    "PortMapper forward": lambda w, v: PortMapper("null", bridge="br0", forward=v),
    "manager bridge": lambda w, v: NetworkManager(v, network="10.9.0.1/24", backend="null"),
    "manager network": lambda w, v: NetworkManager("br9", network=v or "x", backend="null"),
    "manager second network": lambda w, v: _manager(network=("10.9.0.1/24", v)),
    "manager network of IPv6": lambda w, v: _manager(network=[v, "fd00:9::1/64"]),
    "pair exclude": lambda w, v: _manager(network=PAIR, exclude=v),
    "pair one exclude": lambda w, v: _manager(network=PAIR, exclude=["fd00:9::7", v]),
    "pair allocate ip": lambda w, v: w.pair.allocate("a", v),
    "pair reserve": lambda w, v: w.pair.reserve(v),
    "pair history": lambda w, v: w.pair.history(v),
    "manager exclude": lambda w, v: _manager(exclude=v),
    "manager one exclude": lambda w, v: _manager(exclude=[v]),
    "manager ports": lambda w, v: _manager(ports=v),
    "manager backend": lambda w, v: NetworkManager("br9", network="10.9.0.1/24", backend=v),
    "manager store": lambda w, v: _manager(store=v),
    "manager name": lambda w, v: _manager(name=v),
    "manager cooldown": lambda w, v: _manager(cooldown=v),
    "manager sticky": lambda w, v: _manager(sticky=v),
    "manager forward": lambda w, v: _manager(forward=v),
    "manager mode": lambda w, v: _manager(mode=v),
    "manager isolation": lambda w, v: _manager(isolation=v),
    "manager services": lambda w, v: _manager(isolation="guarded", services=[v]),
    "routed bridge": lambda w, v: NetworkManager(
        v, network="10.9.0.1/24", backend="null", mode="routed"
    ),
    "routed network": lambda w, v: NetworkManager(None, network=v, backend="null", mode="routed"),
    "networks create mode": lambda w, v: w.networks.create(
        "lab", "10.9.0.1/24", backend="null", mode=v
    ),
    "manager probe": lambda w, v: _manager(probe=v),
    "open name": lambda w, v: NetworkManager.open(v, w.path),
    "open store": lambda w, v: NetworkManager.open("web", v),
    "networks name": lambda w, v: w.networks.open(v),
    "networks in": lambda w, v: v in w.networks,
    "networks create": lambda w, v: w.networks.create(v, "10.88.0.1/24", backend="null"),
    "networks create network": lambda w, v: w.networks.create("web", v, backend="null"),
    "networks remove": lambda w, v: w.networks.remove(v),
    "networks release": lambda w, v: w.networks.release(v),
    "networks gc": lambda w, v: w.networks.gc(v),
    "networks store": lambda w, v: Networks(v),
    "view store": lambda w, v: NetworkView(v),
    "view find owner": lambda w, v: w.view.find(v),
    "view find network": lambda w, v: w.view.find(network=v),
    "view find label": lambda w, v: w.view.find(label=v),
    "view who": lambda w, v: w.view.who(v),
    "view why": lambda w, v: w.view.why(v),
    "view history": lambda w, v: w.view.history(v),
    "view history at": lambda w, v: w.view.history("10.88.0.2", v),
    "interface_address": lambda w, v: netalloc.interface_address(v),
    "iptables": lambda w, v: netalloc.iptables(v),
}

# These may only be asked with values that name nothing of the machine's own.
NEVER = {
    "PortMapper backend": {"text"},
    "manager store": {"text", "blank", "port as text", "address", "foreign address", "mapped"},
    "iptables": set(VALUES) - {"None", "1.5", "list", "object", "NUL", "failing generator"},
}
PAIR = ("10.9.0.1/24", "fd00:9::1/64")
FILES = {"manager store", "open store", "networks store", "view store"}


def _manager(**options: Any) -> NetworkManager:
    return NetworkManager("br9", **{"network": "10.9.0.1/24", "backend": "null"} | options)


def _forget(result: Any) -> None:
    """Undo what a call that was accepted has made, so that the next one begins anew."""
    if isinstance(result, NetworkManager | Networks | NetworkView | PortMapper):
        result.close()


def refused(world: World, call: str, value: str) -> bool:
    """Whether the call refused that value, in the only way in which it may."""
    before = world.seen()
    try:
        result = CALLS[call](world, VALUES[value]())
    except NetallocError as error:
        text = str(error)
        assert len(text) < 1000, f"{call} with {value}: {len(text)} characters of error"
        assert "damaged" not in text, f"{call} with {value}: {text}"
        if call != "release strict":
            assert world.seen() == before, f"{call} with {value} changed something: {text}"
        return True
    if result is not world.manager:
        _forget(result)
    return False


@pytest.mark.parametrize("call", CALLS)
def test_a_hostile_value_is_refused_or_read_back_equal(call, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)  # a text that is taken for a path makes a file here
    world = World(tmp_path / "host.db")
    count = 0
    try:
        for value in VALUES:
            if value in NEVER.get(call, ()):
                continue
            count += 1
            if not refused(world, call, value):
                # What was taken may have changed much: begin anew.
                assert world.manager.check() == [], (call, value)
                world.close()
                for file in tmp_path.iterdir():
                    file.unlink()
                world = World(tmp_path / "host.db")
        assert world.manager.check() == []
    finally:
        world.close()
    request.config.stash[CASES] = request.config.stash.get(CASES, 0) + count


CASES = pytest.StashKey[int]()


def test_how_many_cases_there_are(request, capsys):
    expected = sum(len(VALUES) - len(NEVER.get(call, ())) for call in CALLS)
    assert expected > 6000
    with capsys.disabled():
        print(f"\n{expected} hostile values in {len(CALLS)} parameters", end=" ")  # noqa: T201


ACCEPTED = [Word.WEB, "wéb-\N{SNOWMAN}", "a'b\"c`d;--", "a b", "x" * 255]


@pytest.mark.parametrize("text", ACCEPTED, ids=range(len(ACCEPTED)))
def test_a_store_reads_back_equal_what_it_accepted(text, tmp_path):
    path = tmp_path / "host.db"
    with NetworkManager("br0", network="10.88.0.1/24", backend="null", store=path) as manager:
        one = manager.allocate(text, key=text, labels={text: text}, ports=(Number.PORT,))
        manager.reserve("10.88.0.9", text)
        assert (one.owner, one.key, one.labels) == (text, text, {text: text})
    with NetworkManager.open("br0", path) as manager:
        (again,) = manager.find(text)
        assert (again.owner, again.key, again.labels) == (text, text, {text: text})
        assert {type(again.owner), type(again.key)} == {str}
        assert manager.find(label=(text, text)) == [again]
        assert manager.allocate(text, key=text) == again
        assert again.ports()[0].dest[1] == 8080
        assert type(again.ports()[0].dest[1]) is int
        manager.release(text)
        assert manager.history(again.ip)[0].owner == text
        assert str(manager.allocate(text).ip) == "10.88.0.9"
        assert manager.check() == []
