"""The manager over both stores beside a slow, obvious reference: the same trace, the same answers.

tests/ipam_reference.py says what is promised. After every step all that can be seen from
outside is compared: who holds what, with which ports and labels, why each address can or
cannot be had, what was held before, and that check() finds nothing. A call that is refused
raises the same error in all three and changes nothing.
"""

import copy
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipam_reference import Port, Reference, Wish
from netalloc import ipam
from netalloc.errors import NetallocError, NotAllocatedError
from netalloc.ipam.clock import SECOND
from netalloc.ipam.reboot import end_of_boot
from netalloc.manager.host_store import callbacks
from netalloc.manager.manager import NetworkManager
from netalloc.manager.view import NetworkView
from netalloc.model import PortRequest
from netalloc.store.memory import MemoryStore
from netalloc.store.sqlite.store import SqliteStore

SIZE = 16
EXCLUDED = [10, 11, 12, 13, 14]  # eight are left, as many as are taken back at an allocation
BY_IPV6 = [10, 12]  # by their counterparts, where there are any
USABLE = range(2, 10)
PORTS = range(8000, 8006)

owners = st.sampled_from([None, "a", "b", "c"])
names = st.sampled_from(["a", "b", "c"])
keys = st.sampled_from([None, None, "k", "l"])
addresses = st.integers(0, SIZE - 1)
labels = st.sampled_from([{}, {}, {"x": "1"}, {"x": "2", "y": ""}])
wish = st.builds(
    Wish,
    st.sampled_from([80, 81]),
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from([None, None, 8001, 8004, 9000]),
    st.sampled_from([None, None, "127.0.0.1", "127.0.0.2"]),
    st.just(1),
)
block = st.builds(
    Wish,
    st.sampled_from([None, 80]),
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from([None, None, 8002, 65533]),
    st.sampled_from([None, None, "127.0.0.1"]),
    st.integers(2, 3),
)
wishes = st.lists(wish | block, max_size=3)
few = st.one_of(st.just([]), wishes)


def ip_of(address: int | None) -> IPv4Address | None:
    return None if address is None else IPv4Address(0x0A000000 + address)


def ip6_of(address: int) -> IPv6Address:
    """Its counterpart, where the network has both families."""
    return IPv6Address((0xFD00 << 112) + address)


def asked(some: Iterable[Wish]) -> list[PortRequest]:
    return [PortRequest(one.to, one.protocol, one.host, one.ip, one.count) for one in some]


def seen(mapping) -> Port:
    where = None if mapping.host_ip is None else str(mapping.host_ip)
    return Port(mapping.host_port, mapping.dest[1], mapping.protocol, where, mapping.count)


class Network(RuleBasedStateMachine):
    """One network in memory, in a file, and in the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.opened = ExitStack()
        self.boots = 0
        self.memory = MemoryStore()
        self.stores = [self.memory, self._file()]
        self.interfaces = {}  # by address: the two interfaces of a lease in force
        self.ended = []

    @initialize(
        cooldown=st.sampled_from([0, 0, 4]),
        sticky=st.sampled_from([0, 0, 9]),
        pair=st.booleans(),
    )
    def begin(self, cooldown, sticky, pair):
        self.pair = pair
        self.model = Reference(USABLE, SIZE, PORTS, cooldown, sticky)
        self.options = {
            "network": ("fd00::1/64", "10.0.0.1/28") if pair else "10.0.0.1/28",
            "exclude": [
                str(ip6_of(address) if pair and address in BY_IPV6 else ip_of(address))
                for address in EXCLUDED
            ],
            "backend": "null",
            "ports": PORTS,
            "cooldown": cooldown,
            "sticky": sticky,
        }
        self.patched = patch.object(ipam.addresses, "boot_clock", self._clock)
        self.patched.start()
        self.managers = [self._open(store) for store in self.stores]

    def teardown(self):
        for manager in getattr(self, "managers", ()):
            manager.close()
        for store in self.stores:
            store.close()
        if hasattr(self, "patched"):
            self.patched.stop()
        shutil.rmtree(self.folder)

    def _clock(self) -> int:
        return int(self.model.now * SECOND)

    def _file(self) -> SqliteStore:
        return SqliteStore(f"{self.folder}/s.db", boot=f"boot {self.boots}", **callbacks())

    def _open(self, store) -> NetworkManager:
        return NetworkManager("br0", store=store, **self.options)

    def same(self, promised, *calls):
        """What the reference answers, which all others must answer too, errors included."""
        self.model.now += 0.001  # no two calls are made at one moment
        before = copy.deepcopy(self.model)
        error = wanted = None
        try:
            wanted = promised()
        except NetallocError as refused:
            error, self.model = refused, before
        found = []
        for call in calls:
            if error is None:
                found.append(call())
            else:
                with pytest.raises(NetallocError) as raised:
                    call()
                assert type(raised.value) is type(error), (raised.value, error)
        return wanted, found

    def named(self, address, six):
        """As a caller names it: where there are two families, by either."""
        return ip6_of(address) if six and self.pair and address is not None else ip_of(address)

    def both(self, promised, call):
        return self.same(
            lambda: promised(self.model), *[lambda m=m: call(m) for m in self.managers]
        )

    # ---- what is done

    @rule(
        owner=owners,
        address=st.one_of(st.none(), st.none(), addresses),
        key=keys,
        labels=labels,
        wishes=few,
        cooling=st.booleans(),
        six=st.booleans(),
    )
    def allocate(self, owner, address, key, labels, wishes, cooling, six):
        key = key if owner is not None else None
        given, found = self.both(
            lambda model: model.allocate(owner, address, key, labels, wishes, cooling),
            lambda manager: manager.allocate(
                owner,
                self.named(address, six),
                key=key,
                labels=labels,
                ports=asked(wishes),
                allow_cooling=cooling,
            ),
        )
        for interface in found:
            assert interface.ip == ip_of(given)
        if found:
            self.interfaces[given] = found

    @rule(n=st.integers(0, 9), owner=owners, labels=labels, wishes=few)
    def allocate_many(self, n, owner, labels, wishes):
        given, found = self.both(
            lambda model: model.allocate_many(n, owner, labels, wishes),
            lambda manager: manager.allocate_many(n, asked(wishes), owner, labels=labels),
        )
        for interfaces in found:
            assert [one.ip for one in interfaces] == [ip_of(address) for address in given]
        if found:
            self.interfaces |= {
                address: list(pair)
                for address, pair in zip(given, zip(*found, strict=True), strict=True)
            }

    @precondition(lambda self: self.interfaces)
    @rule(data=st.data())
    def release(self, data):
        address = data.draw(st.sampled_from(sorted(self.interfaces)))
        self._ended(address)
        self.same(
            lambda: self.model.release(address),
            *[one.release for one in self.ended[-1]],
        )

    @rule(owner=names)
    def release_owner(self, owner):
        held = [a for a, one in sorted(self.model.held.items()) if one.owner == owner]

        def promised(model):
            for address in held:
                model.release(address)
            return len(held)

        count, found = self.both(promised, lambda manager: manager.release(owner))
        assert found == [count, count]
        for address in held:
            self._ended(address)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def release_late(self, data):
        for one in data.draw(st.sampled_from(self.ended)):
            if one._released:
                with pytest.raises(NotAllocatedError):
                    one.release()
            else:
                one.release()  # counted, and nothing else
            assert one.ports() == ()
            assert one.labels in ({}, one._labels)

    @rule(address=addresses, owner=owners, six=st.booleans())
    def reserve(self, address, owner, six):
        self.both(
            lambda model: model.reserve(address, owner),
            lambda manager: manager.reserve(self.named(address, six), owner),
        )

    @rule(address=addresses, six=st.booleans())
    def unreserve(self, address, six):
        self.both(
            lambda model: model.unreserve(address),
            lambda manager: manager.unreserve(self.named(address, six)),
        )

    @rule(alive=st.sets(names), grace=st.sampled_from([0, 2]))
    def gc(self, alive, grace):
        dead, found = self.both(
            lambda model: model.gc(alive, grace), lambda manager: manager.gc(alive, grace)
        )
        assert found == [[ip_of(address) for address in dead]] * 2
        for address in dead:
            self._ended(address)

    @precondition(lambda self: self.interfaces)
    @rule(data=st.data(), wishes=wishes)
    def publish(self, data, wishes):
        address = data.draw(st.sampled_from(sorted(self.interfaces)))
        wanted, found = self.same(
            lambda: self.model.publish(address, wishes),
            *[lambda i=i: i.publish(asked(wishes)) for i in self.interfaces[address]],
        )
        for mappings in found:
            assert self._seen(mappings) == wanted

    @precondition(lambda self: any(one.ports for one in self.model.held.values()))
    @rule(data=st.data())
    def release_port(self, data):
        address, port = data.draw(
            st.sampled_from([(a, p) for a, one in self.model.held.items() for p in one.ports])
        )
        self.same(
            lambda: self.model.unpublish(address, port),
            *[
                lambda i=i: i.release_port(port.host, port.protocol, port.ip)
                for i in self.interfaces[address]
            ],
        )

    @rule(seconds=st.sampled_from([1, 2, 5]))
    def wait(self, seconds):
        self.model.now += seconds

    @rule()
    def another_process(self):
        """The file is closed and opened again; what was handed out before is found again."""
        self._reopen()

    @rule()
    def reboot(self):
        self.boots += 1
        self.model.reboot()
        self.memory.run("reboot", end_of_boot)
        self.managers[0].reconcile()
        self._reopen()
        for address in list(self.interfaces):
            self._ended(address)

    def _reopen(self):
        self.managers[1].close()
        self.stores[1].close()
        self.stores[1] = self._file()
        self.managers[1] = self._open(self.stores[1])
        for address, pair in self.interfaces.items():
            pair[1:] = self.managers[1].find()
            pair[1:] = [one for one in pair[1:] if one.ip == ip_of(address)][:1]
        self.ended = [pair[:1] for pair in self.ended]

    def _ended(self, address):
        self.ended.append(self.interfaces.pop(address))

    # ---- what is seen

    def _seen(self, mappings) -> list[Port]:
        """What is published, which of a pair is in both families what has no host address."""
        found = {
            version: [seen(mapping) for mapping in mappings if mapping.version == version]
            for version in (4, 6)
        }
        assert found[6] == [one for one in found[4] if self.pair and one.ip is None]
        return found[4]

    def _reason(self, address, six=False) -> str:
        ip, model = self.named(address, six), self.model
        if address == 1:
            return f"{ip} is the gateway of network br0"
        if address == 15 and six:
            fewer = "10.0.0.0/28, which has fewer addresses: 13 (network br0)"
            return f"{ip} has no counterpart in {fewer}"
        if self.pair and address in EXCLUDED and six != (address in BY_IPV6):
            other = self.named(address, not six)
            network = "10.0.0.0/28" if six else "fd00::/64"
            return f"{ip} is not given, as {other} is excluded from {network} (network br0)"
        if address not in USABLE:
            return f"{ip} is never given by network br0: it is excluded, or no host's"
        held = model.held.get(address)
        left = model.cooling.get(address, 0) - model.now
        state = []
        if held:
            state.append(f"held by {held.owner or 'a lease without an owner'}")
        elif left > 0:
            state.append(f"cooling down for another {left:.1f} s")
        if address in model.reserved:
            state.append(f"reserved for {model.reserved[address] or 'no owner'}")
        return f"{ip} of network br0 is {', '.join(state) or 'free'}"

    @invariant()
    def all_that_can_be_seen_is_the_same(self):
        if not hasattr(self, "model"):
            return
        model = self.model
        held = [
            (ip_of(a), one.owner, one.key, one.labels, one.ports)
            for a, one in sorted(model.held.items())
        ]
        cooling = {a for a, until in model.cooling.items() if until > model.now}
        taken = {*model.held, *model.reserved, *cooling}
        reasons = [self._reason(address) for address in range(SIZE)]
        for store, manager in zip(self.stores, self.managers, strict=True):
            found = [
                (i.ip, i.owner, i.key, i.labels, self._seen(i.ports())) for i in manager.find()
            ]
            assert found == held
            if self.pair:
                assert [i.ips for i in manager.find()] == [
                    (ip_of(a), ip6_of(a)) for a in sorted(model.held)
                ]
            found = manager.check()
            assert found == [], found
            for address, one in model.held.items():
                past = [*model.history.get(address, []), (one.owner, one.key)]
                for six in (False, self.pair):
                    found = manager.history(self.named(address, six))
                    assert [(p.owner, p.key) for p in found] == past
            view = NetworkView(store)
            assert [view.why(ip_of(address)) for address in range(SIZE)] == reasons
            if self.pair:
                assert [view.why(ip6_of(address)) for address in range(SIZE)] == [
                    self._reason(address, six=True) for address in range(SIZE)
                ]
            free = len(USABLE) - len(taken)
            ports = sum(len(one.ports) for one in model.held.values())
            counts = len(held), free, len(model.reserved), len(cooling), ports
            assert view.usage() == [("br0", len(USABLE), *counts)]


Network.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestNetwork = Network.TestCase


@pytest.mark.soak
class TestNetworkLong(Network.TestCase):
    settings = settings(
        max_examples=1500,
        stateful_step_count=60,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
