"""PortAllocator against a slow, obvious oracle that holds ports as a host holds sockets."""

import random
from ipaddress import IPv4Address

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from netalloc.errors import ExhaustedError, InUseError, InvalidValueError, NotAllocatedError
from netalloc.port_bitmaps import MemoryBitmaps
from netalloc.ports import PORTS, PortAllocator

ADDRESSES = st.sampled_from([None, "10.0.0.1", "10.0.0.2", IPv4Address("10.0.0.3")])
PROTOCOLS = st.sampled_from(["tcp", "udp", "sctp"])
RANGES = [range(10, 18), range(10, 31, 3), range(30, 10, -4), range(65535, 65530, -1)]


class Sockets:
    """What is held, as a set of (protocol, port, address); one cursor a protocol."""

    def __init__(self, ports):
        self.ports = list(ports)
        self.held = set()
        self.index = dict.fromkeys(("tcp", "udp", "sctp"), 0)

    def conflicts(self, protocol, port, ip):
        return [
            other
            for kind, number, other in self.held
            if (kind, number) == (protocol, port) and (ip is None or other is None or other == ip)
        ]

    def next(self, protocol, ip, n=1):
        """Where the next n free ports in a row begin."""
        start, size = self.index[protocol], len(self.ports)
        for i in (*range(start, size), *range(start)):
            window = self.ports[i : i + n]
            if len(window) == n and not any(self.conflicts(protocol, p, ip) for p in window):
                return i
        return None

    def release(self, protocol, port, ip):
        full = self.next(protocol, ip) is None
        self.held.remove((protocol, port, ip))
        if full and port in self.ports:
            self.index[protocol] = self.ports.index(port)


class Agreement(RuleBasedStateMachine):
    ports = RANGES[0]

    def __init__(self):
        super().__init__()
        self.real = PortAllocator(self.ports)
        self.oracle = Sockets(self.ports)

    @rule(protocol=PROTOCOLS, ip=ADDRESSES, n=st.integers(1, 3))
    def acquire(self, protocol, ip, n):
        oracle = self.oracle
        start = oracle.next(protocol, ip and IPv4Address(ip), n)
        if start is None:
            with pytest.raises(ExhaustedError):
                self.real.acquire_block(n, protocol, ip)
            return
        if n == 1:
            got = [self.real.acquire(protocol, ip)]
        else:
            got = list(self.real.acquire_block(n, protocol, ip))
        assert got == oracle.ports[start : start + n]
        oracle.held |= {(protocol, port, ip and IPv4Address(ip)) for port in got}
        oracle.index[protocol] = (start + n) % len(oracle.ports)

    @rule(protocol=PROTOCOLS, ip=ADDRESSES, port=st.sampled_from([*range(9, 33), 65531]))
    def reserve(self, protocol, ip, port):
        plain = ip and IPv4Address(ip)
        held = bool(self.oracle.conflicts(protocol, port, plain))
        assert self.real.held(port, protocol, ip) is held
        if held:
            with pytest.raises(InUseError, match=f"{port}/{protocol}"):
                self.real.reserve(port, protocol, ip)
        else:
            self.real.reserve(port, protocol, ip)
            self.oracle.held.add((protocol, port, plain))

    @rule(protocol=PROTOCOLS, ip=ADDRESSES, port=st.sampled_from([*range(9, 33), 65531]))
    def release(self, protocol, ip, port):
        plain = ip and IPv4Address(ip)
        if (protocol, port, plain) in self.oracle.held:
            self.real.release(port, protocol, ip)
            self.oracle.release(protocol, port, plain)
        else:
            with pytest.raises(NotAllocatedError, match=f"{port}/{protocol}"):
                self.real.release(port, protocol, ip)

    @invariant()
    def no_bitmap_of_an_address_outlives_its_ports(self):
        in_use = {(kind, ip) for kind, _, ip in self.oracle.held if ip is not None}
        assert sum("/on/" in name for name in self.real._bitmaps.names("")) == len(in_use)


@pytest.mark.parametrize("ports", RANGES, ids=str)
def test_agrees_with_the_oracle(ports):
    machine = type("Agreement", (Agreement,), {"ports": ports})
    machine.TestCase.settings = settings(
        max_examples=25, stateful_step_count=50, deadline=None, derandomize=True
    )
    machine.TestCase("runTest").debug()


@pytest.mark.parametrize(
    "ports", [PORTS, range(1, 65536), range(65535, 0, -7), range(80, 81), range(5, 60, 7)], ids=str
)
def test_gives_the_whole_range_in_its_order_and_then_says_so(ports):
    allocator = PortAllocator(ports)
    assert [allocator.acquire() for _ in ports] == list(ports)
    with pytest.raises(ExhaustedError, match=f"{ports[0]}-{ports[-1]}"):
        allocator.acquire()
    assert allocator.acquire("udp") == ports[0]


def test_the_default_range_is_the_original_one_without_its_missing_last_port():
    assert (PORTS[0], PORTS[-1]) == (49153, 65535)


def test_first_released_is_first_given():
    allocator = PortAllocator(range(8000, 8004))
    for _ in range(4):
        allocator.acquire()
    for port in (8002, 8001, 8003):
        allocator.release(port)
    assert [allocator.acquire() for _ in range(3)] == [8002, 8003, 8001]


@pytest.mark.parametrize("free", [8000, 8005, 8010])
def test_the_one_port_that_no_foreign_process_holds_is_found(free):
    """Ten consecutive ports of the range are somebody else's."""
    asked = []

    def probe(port, protocol, host_ip):
        asked.append((port, protocol, host_ip))
        return port == free

    allocator = PortAllocator(range(8000, 8011), probe=probe)
    assert allocator.acquire("udp", "10.0.0.1") == free
    assert set(asked) <= {(p, "udp", IPv4Address("10.0.0.1")) for p in range(8000, 8011)}
    with pytest.raises(ExhaustedError, match="10 more are in use by other programs"):
        allocator.acquire("udp", "10.0.0.1")


def test_a_block_passes_over_what_foreign_processes_hold():
    allocator = PortAllocator(range(8000, 8020), probe=lambda port, *_: port not in (8003, 8009))
    assert allocator.acquire_block(5) == range(8004, 8009)
    assert allocator.acquire_block(10) == range(8010, 8020)
    assert allocator.acquire_block(3) == range(8000, 8003)
    with pytest.raises(ExhaustedError, match="2 adjacent free tcp port"):
        allocator.acquire_block(2)


def test_a_cursor_left_outside_by_a_changed_range_is_brought_back():
    wide = PortAllocator(range(8000, 9000))
    wide.acquire_block(900)
    for narrow in (range(7000, 7003), range(8950, 8952), range(100, 8001)):
        allocator = PortAllocator(narrow, bitmaps=wide._bitmaps)
        assert allocator.acquire() in narrow
        with pytest.raises(ExhaustedError):
            allocator.acquire_many(len(narrow))


def test_many_are_had_together_or_not_at_all():
    allocator = PortAllocator(range(8000, 8010))
    allocator.reserve(8001)
    assert allocator.acquire_many(8) == [8000, *range(8002, 8009)]
    with pytest.raises(ExhaustedError):
        allocator.acquire_many(2)
    assert allocator.acquire_many(0) == []
    assert allocator.acquire() == 8009


@pytest.mark.parametrize(
    ("ports", "named"),
    [(range(10), "0"), (range(1, 65537), "65536"), (range(5, 5), "no port"), ([1, 2], "list")],
)
def test_a_range_that_is_none_is_refused(ports, named):
    with pytest.raises(InvalidValueError, match=named if named != "list" else "not a range"):
        PortAllocator(ports)


def test_bad_input_names_the_value_and_changes_nothing():
    allocator = PortAllocator(range(8000, 8010))
    for call in (allocator.reserve, allocator.release):
        for port in (0, 65536, -1, "80", 80.0, True):
            with pytest.raises(InvalidValueError, match=str(port)):
                call(port)
        with pytest.raises(InvalidValueError, match="icmp"):
            call(8000, "icmp")
        with pytest.raises(InvalidValueError, match="nowhere"):
            call(8000, "tcp", "nowhere")
    for n in (0, -1, 11):
        with pytest.raises(InvalidValueError, match=str(n)):
            allocator.acquire_block(n)
    with pytest.raises(InvalidValueError, match="-2"):
        allocator.acquire_many(-2)
    assert allocator.acquire_block(10) == range(8000, 8010)


def test_an_error_says_on_which_address_a_port_is_held():
    allocator = PortAllocator()
    allocator.reserve(80, host_ip="10.0.0.1")
    with pytest.raises(InUseError, match=r"80/tcp is held on 10\.0\.0\.1"):
        allocator.reserve(80)
    with pytest.raises(NotAllocatedError, match=r"80/tcp is not held on 10\.0\.0\.2"):
        allocator.release(80, host_ip="10.0.0.2")
    with pytest.raises(NotAllocatedError, match="every address"):
        allocator.release(80)
    allocator.reserve(80, host_ip="10.0.0.2")
    allocator.reserve(80, "udp", "0.0.0.0")
    with pytest.raises(InUseError, match="80/udp is held on every address"):
        allocator.reserve(80, "udp", "10.0.0.2")


class Host:
    """A probe that can be asked for all that it refuses, and counts how often it is asked."""

    def __init__(self, foreign):
        self.foreign, self.asked, self.looked = frozenset(foreign), 0, 0

    def __call__(self, port, protocol, host_ip):
        self.asked += 1
        return port not in self.foreign

    def refused(self, protocol, host_ip):
        self.looked += 1
        return self.foreign


@pytest.mark.parametrize(
    "ports", [range(8000, 12000), range(12000, 8000, -1), range(8000, 12000, 3)], ids=str
)
def test_the_hosts_ports_are_looked_at_once_and_the_pick_alone_is_tried(ports):
    free = set(ports[-20:-9])
    host = Host(port for port in ports if port not in free)
    allocator = PortAllocator(ports, probe=host)
    assert allocator.acquire() == ports[-20]
    assert (host.asked, host.looked) == (9, 1)
    allocator = PortAllocator(ports, probe=host)
    assert allocator.acquire_block(10) == ports[-20:-10]
    assert host.asked < 60 and host.looked == 2
    allocator = PortAllocator(ports, probe=host)
    assert set(allocator.acquire_many(len(free))) == free
    host.asked = 0
    with pytest.raises(ExhaustedError, match=rf"\({len(ports) - len(free)} more are in use"):
        allocator.acquire()
    assert host.asked == 8 and host.looked == 4


def test_what_a_thousand_addresses_hold_costs_no_other_call():
    class Counted(MemoryBitmaps):
        asked = 0

        def bitmap(self, name, size):
            self.asked += 1
            return super().bitmap(name, size)

        def names(self, prefix):
            self.asked += len(self._bitmaps)
            return super().names(prefix)

    bitmaps = Counted()
    ports = PortAllocator(range(8000, 8100), bitmaps=bitmaps)
    hosts = [IPv4Address(0x7F010000 + i) for i in range(1000)]
    for host in hosts:
        ports.reserve(8000, "tcp", host)
    for step in (
        lambda: ports.release(8000, "tcp", hosts[500]),
        lambda: ports.reserve(8000, "tcp", hosts[500]),
        lambda: ports.acquire("tcp", hosts[1]),
        ports.acquire,
        lambda: ports.release(8002),
        lambda: ports.held(8000),
        lambda: ports.held(8000, "tcp", IPv4Address("127.2.0.1")),
    ):
        bitmaps.asked = 0
        step()
        assert bitmaps.asked < 8


def test_a_port_is_free_when_the_last_of_its_addresses_is():
    chance = random.Random(5)
    ports, held = PortAllocator(range(8000, 8004)), set()
    hosts = [None, *(IPv4Address(0x7F010000 + i) for i in range(11))]
    for _ in range(4000):
        port, host = chance.randrange(8000, 8004), chance.choice(hosts)
        if (port, host) in held:
            ports.release(port, "tcp", host)
            held.remove((port, host))
        elif any(p == port and (host is None or h in (None, host)) for p, h in held):
            with pytest.raises(InUseError):
                ports.reserve(port, "tcp", host)
        else:
            ports.reserve(port, "tcp", host)
            held.add((port, host))
        for one in range(8000, 8004):
            assert ports.held(one) == any(p == one for p, _ in held)
    for port, host in held:
        ports.release(port, "tcp", host)
    assert sorted(ports.acquire_many(4)) == [8000, 8001, 8002, 8003]
