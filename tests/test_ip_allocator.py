"""IPAllocator: which addresses, in which order, and what is refused."""

import pickle
import random
from array import array
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, ip_network
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import reference
from netalloc import (
    ExhaustedError,
    InUseError,
    IPAllocator,
    NetallocError,
    NotAllocatedError,
    OutOfRangeError,
    StoreError,
)
from netalloc.errors import InvalidValueError


def texts(addresses: object) -> list[str]:
    return [str(ip) for ip in addresses]  # type: ignore[attr-defined]


# ---- order


def test_the_original_example() -> None:
    allocator = IPAllocator("127.0.0.1/29")
    assert texts(allocator.acquire() for _ in range(5)) == [f"127.0.0.{n}" for n in range(2, 7)]
    with pytest.raises(ExhaustedError):
        allocator.acquire()
    for n in (5, 4, 6):
        allocator.release(f"127.0.0.{n}")
    assert texts(allocator.acquire() for _ in range(3)) == ["127.0.0.5", "127.0.0.6", "127.0.0.4"]
    with pytest.raises(ExhaustedError, match="all 5 addresses of 127.0.0.0/29 are taken"):
        allocator.acquire()


def agree(ours: object, theirs: object, method: str, *arguments: object) -> object:
    """The same call on both; they must return the same, or raise the same."""
    results = []
    for side in (ours, theirs):
        try:
            results.append(getattr(side, method)(*arguments))
        except NetallocError as error:
            results.append(type(error))
    assert results[0] == results[1], f"{method}{arguments}"
    return results[0]


def against_the_oracle(network: str, steps: int) -> None:
    """Random acquire, release and reserve; the share taken wanders up and down."""
    chosen = random.Random(network)
    ours, theirs = IPAllocator(network), reference.IPAllocator(network)
    first, last = theirs.lowest - 1, theirs.highest + 1
    held: list[IPv4Address] = []
    most = min(ours.capacity, 20_000)
    rising = True
    for step in range(steps):
        rising = (rising and len(held) < most) or not held
        dice = chosen.random()
        if dice < (0.55 if rising else 0.35):
            got = agree(ours, theirs, "acquire")
            if isinstance(got, IPv4Address):
                held.append(got)
        elif dice < (0.65 if rising else 0.4):
            near = min(first + chosen.randrange(2 * most), last) if dice < 0.6 else last
            ip = IPv4Address(chosen.randint(first, near) % 2**32)
            if agree(ours, theirs, "reserve", ip) is None:
                held.append(ip)
        elif held and dice < 0.98:
            k = chosen.randrange(len(held))
            held[k], held[-1] = held[-1], held[k]
            agree(ours, theirs, "release", held.pop())
        else:
            ip = IPv4Address(chosen.randint(first, last) % 2**32)
            if agree(ours, theirs, "release", ip) is None:
                held.remove(ip)
        if step % 1000 == 0:
            assert ours.available == theirs.available
    assert list(ours) == sorted(theirs.taken)
    ours._check()


NETWORKS = ["192.168.7.1/24", "172.16.9.200/16", "10.0.0.1/8", "10.9.8.5/30"]


@pytest.mark.parametrize("network", [*NETWORKS, "200.1.2.0/31", "0.0.0.0/0", "255.255.255.255/31"])
def test_random_steps(network: str) -> None:
    against_the_oracle(network, 30_000)


@pytest.mark.soak
@pytest.mark.parametrize("network", NETWORKS)
def test_a_million_random_steps(network: str) -> None:
    against_the_oracle(network, 1_000_000)


class Machine(RuleBasedStateMachine):
    """Any order of any steps beside the oracle: exclusions, and a cool-down or none."""

    @initialize(
        network=st.sampled_from(["10.0.0.1/28", "10.0.0.9/26", "10.0.0.0/29", "10.0.0.77/20"]),
        exclude=st.lists(st.sampled_from(["10.0.0.3", "10.0.0.4/31", "10.0.0.6"]), max_size=3),
        cooldown=st.sampled_from([0.0, 30.0]),
    )
    def start(self, network: str, exclude: list[str], cooldown: float) -> None:
        self.now = 1000.0
        options: dict[str, Any] = {"exclude": exclude, "cooldown": cooldown}
        self.ours = IPAllocator(network, clock=lambda: self.now, **options)
        self.theirs = reference.IPAllocator(network, clock=lambda: self.now, **options)

    def both(self, method: str, *arguments: Any, **options: Any) -> Any:
        results = []
        for side in (self.ours, self.theirs):
            try:
                results.append(getattr(side, method)(*arguments, **options))
            except NetallocError as error:
                results.append(type(error))
        assert results[0] == results[1], f"{method}{arguments}{options}: {self.ours!r}"
        return results[0]

    def some(self, share: float) -> IPv4Address:
        held = sorted(self.theirs.taken)
        return held[int(share * (len(held) - 1))] if held else IPv4Address("10.0.0.5")

    @rule(allow_cooling=st.booleans())
    def acquire(self, allow_cooling: bool) -> None:
        self.both("acquire", allow_cooling=allow_cooling)

    @rule(n=st.integers(0, 30) | st.integers(0, 4100))
    def acquire_many(self, n: int) -> None:
        self.both("acquire_many", n)

    @rule(low=st.integers(-2, 70), allow_cooling=st.booleans())
    def reserve(self, low: int, allow_cooling: bool) -> None:
        self.both("reserve", IPv4Address(0x0A000000 + low), allow_cooling=allow_cooling)

    @rule(share=st.floats(0, 1))
    def release(self, share: float) -> None:
        self.both("release", self.some(share))

    @rule(low=st.integers(-2, 70))
    def release_anything(self, low: int) -> None:
        self.both("release", IPv4Address(0x0A000000 + low))

    @rule(share=st.floats(0, 1), n=st.integers(0, 400), buffer=st.booleans())
    def release_many(self, share: float, n: int, buffer: bool) -> None:
        held = sorted(self.theirs.taken)
        start = int(share * len(held))
        given = held[start : start + n]
        self.theirs.release_many(given)
        self.ours.release_many(array("I", map(int, given)) if buffer else given)

    @rule(share=st.floats(0, 1))
    def release_twice(self, share: float) -> None:
        self.both("release_many", [self.some(share)] * 2)

    @rule(seconds=st.sampled_from([0.5, 15.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def through_bytes(self) -> None:
        """It comes back without its clock, so the oracle goes on with the old one."""
        again = IPAllocator.from_bytes(self.ours.to_bytes())
        again._check()
        assert list(again) == list(self.ours)
        assert again.excluded() == self.ours.excluded()

    @invariant()
    def same(self) -> None:
        if hasattr(self, "ours"):
            self.ours._check()
            assert list(self.ours) == sorted(self.theirs.taken)
            assert self.ours.available == self.theirs.available
            assert self.ours.capacity == self.theirs.most


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# ---- which addresses


@pytest.mark.parametrize(
    ("network", "gateway", "given"),
    [
        ("10.0.0.1/30", "10.0.0.1", ["10.0.0.2"]),
        ("10.0.0.2/30", "10.0.0.2", ["10.0.0.1"]),
        ("10.0.0.0/30", None, ["10.0.0.1", "10.0.0.2"]),
        ("10.0.0.3/29", "10.0.0.3", [f"10.0.0.{n}" for n in (1, 2, 4, 5, 6)]),
        ("10.0.0.6/31", None, ["10.0.0.6", "10.0.0.7"]),
        ("10.0.0.7/31", "10.0.0.7", ["10.0.0.6"]),
        ("10.0.0.5/32", None, ["10.0.0.5"]),
        ("255.255.255.254/31", None, ["255.255.255.254", "255.255.255.255"]),
        ("fd00::/127", None, ["fd00::", "fd00::1"]),
        ("fd00::1/127", "fd00::1", ["fd00::"]),
        ("fd00::9/128", None, ["fd00::9"]),
        ("fd00::1/126", "fd00::1", ["fd00::2", "fd00::3"]),
        ("fd00::/126", None, ["fd00::1", "fd00::2", "fd00::3"]),
    ],
)
def test_which_addresses_are_given(network: str, gateway: str | None, given: list[str]) -> None:
    allocator = IPAllocator(network)
    assert str(allocator.gateway) == str(gateway)
    assert allocator.capacity == allocator.available == len(given)
    assert texts(allocator.acquire_many(len(given))) == given
    assert texts(allocator) == given
    with pytest.raises(ExhaustedError):
        allocator.acquire()
    allocator._check()


@pytest.mark.parametrize(
    ("network", "first", "last"),
    [
        ("0.0.0.0/0", "0.0.0.1", "255.255.255.254"),
        ("128.0.0.1/1", "128.0.0.2", "255.255.255.254"),
        ("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff"),
        ("fd00::/48", "fd00::1", "fd00::ffff:ffff:ffff:ffff"),
        ("fd00::1/48", "fd00::2", "fd00::ffff:ffff:ffff:ffff"),
        ("::/0", "::1", "::ffff:ffff:ffff:ffff"),
    ],
)
def test_the_last_address_is_reachable(network: str, first: str, last: str) -> None:
    allocator = IPAllocator(network)
    allocator.reserve(last)
    assert str(allocator.acquire()) == first
    assert texts(allocator) == [first, last]
    assert allocator.capacity == allocator.available + 2
    allocator._check()


def test_every_prefix_length() -> None:
    for prefix in range(33):
        allocator = IPAllocator(IPv4Network((0x80000000, prefix), strict=False))
        size = 2 ** (32 - prefix)
        assert allocator.capacity == (size if size <= 2 else size - 2)
        assert allocator.acquire() in allocator.network


def test_network_as_an_object() -> None:
    assert IPAllocator(IPv4Interface("10.0.0.1/8")).gateway == IPv4Address("10.0.0.1")
    assert IPAllocator(IPv4Network("10.0.0.0/8")).gateway is None
    assert IPAllocator("10.0.0.1/255.0.0.0").network == IPv4Network("10.0.0.0/8")


def test_reserved_addresses_and_networks_are_never_given() -> None:
    allocator = IPAllocator("10.0.0.1/28", exclude=["10.0.0.2", "10.0.0.4/30", "10.0.0.6"])
    left = ["10.0.0.3", *[f"10.0.0.{n}" for n in range(8, 15)]]
    assert allocator.capacity == len(left)
    assert texts(allocator.acquire_many(len(left))) == left
    for ip in ("10.0.0.2", "10.0.0.5"):
        assert ip not in allocator
        with pytest.raises(OutOfRangeError, match=f"{ip} is excluded from 10.0.0.0/28"):
            allocator.release(ip)
    assert [list(map(str, run)) for run in allocator.runs()] == [
        ["10.0.0.3", "10.0.0.3"],
        ["10.0.0.8", "10.0.0.14"],
    ]
    assert list(allocator.excluded()) == [(0, 1), (2, 6)]
    allocator._check()


def test_ordinals_and_addresses() -> None:
    allocator = IPAllocator("10.0.0.5/24")
    for i in (0, 3, allocator.size - 1):
        assert allocator.ordinal(allocator.address(i)) == i or i == 4
    with pytest.raises(OutOfRangeError):
        allocator.address(allocator.size)
    assert list(allocator.excluded()) == [(4, 5)]


# ---- addresses in and out


@pytest.mark.parametrize("network", ["10.0.0.1/8", "fd00::1/64"])
def test_addresses_are_ordinary_ones(network: str) -> None:
    """They are made without the constructor; nothing may show it."""
    allocator = IPAllocator(network)
    ip = allocator.acquire()
    same = type(ip)(str(ip))
    assert (ip, hash(ip), str(ip), repr(ip)) == (same, hash(same), str(same), repr(same))
    assert pickle.loads(pickle.dumps(ip)) == ip
    assert ip in ip_network(network, strict=False)
    assert ip + 1 == same + 1
    assert int(ip) == allocator.acquire_int() - 1
    assert getattr(ip, "scope_id", None) is None


def test_every_spelling_of_an_address() -> None:
    allocator = IPAllocator("10.0.0.1/8")
    for ip in ("10.0.0.9", IPv4Address("10.0.0.9"), 0x0A000009, IPv4Interface("10.0.0.9/8")):
        allocator.reserve(ip)
        assert ip in allocator
        allocator.release(ip)
    assert "10.0.0.9" not in allocator


def test_acquire_into_and_release_many() -> None:
    allocator = IPAllocator("10.0.0.3/16", exclude=["10.0.1.0/24"])
    target = array("I", [0]) * 1000
    assert allocator.acquire_into(target) == 1000
    assert texts(map(IPv4Address, target[:3])) == ["10.0.0.1", "10.0.0.2", "10.0.0.4"]
    assert [int(ip) for ip in allocator] == target.tolist()
    allocator.release_many(target[:500])
    allocator.release_many([IPv4Address(n) for n in target[500:]])
    assert len(allocator) == 0
    allocator._check()


def test_acquire_into_of_ipv6_gives_host_parts() -> None:
    allocator = IPAllocator("fd00::1/64")
    target = array("Q", [0]) * 3
    assert allocator.acquire_into(target) == 3
    assert target.tolist() == [2, 3, 4]
    assert IPv6Address("fd00::4") in allocator
    allocator.release_many(target)
    assert len(allocator) == 0
    with pytest.raises(OutOfRangeError, match="32-bit items"):
        allocator.acquire_into(array("I", [0]))


@pytest.mark.parametrize("network", ["10.0.0.1/24", "10.0.0.7/24"])
def test_release_many_frees_all_or_nothing(network: str) -> None:
    allocator = IPAllocator(network)
    given = allocator.acquire_many(10)
    before = allocator.to_bytes()
    for wrong in ("10.0.0.200", "10.0.9.9", given[3], "10.0.0.0"):
        with pytest.raises((NotAllocatedError, OutOfRangeError)):
            allocator.release_many([*given, wrong])
        assert allocator.to_bytes() == before


def test_block() -> None:
    allocator = IPAllocator("10.0.0.1/24")
    allocator.reserve("10.0.0.4")
    assert str(allocator.acquire_block(5)) == "10.0.0.5"
    with pytest.raises(ExhaustedError):
        allocator.acquire_block(250)


# ---- bad input


@pytest.mark.parametrize(
    "network",
    ["", "10.0.0.0/33", "10.0.0.256/8", "10.0.0/8", "010.0.0.1/8", "x/8", "fd00::/129", None, 5],
)
def test_no_network(network: object) -> None:
    with pytest.raises(InvalidValueError, match="is not a network"):
        IPAllocator(network)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "10.0.0.255/24"}, "is the broadcast address"),
        ({"network": "10.0.0.1/24", "cooldown": -1.0}, "-1.0"),
        ({"network": "10.0.0.1/24", "cooldown": float("nan")}, "nan"),
        ({"network": "10.0.0.1/24", "exclude": ["10.0.1.1"]}, "10.0.1.1 is not of"),
        ({"network": "10.0.0.1/24", "exclude": ["x"]}, "'x'"),
        ({"network": "10.0.0.1/24", "exclude": ["fd00::1"]}, "fd00::1 is not of"),
        ({"network": "10.0.0.1/30", "exclude": "10.0.0.2"}, "no address to give"),
    ],
)
def test_constructor_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        IPAllocator(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ip", "message"),
    [
        ("10.0.0.0", "is the network address"),
        ("10.0.0.255", "is the broadcast address"),
        ("10.0.0.1", "is the gateway"),
        ("10.0.1.1", "10.0.1.1 is not of 10.0.0.0/24"),
        ("9.255.255.255", "is not of"),
        ("fd00::1", "is not of"),
        ("banana", "'banana' is not an IP address"),
        (-1, "-1"),
        (2**32, "4294967296"),
    ],
)
def test_addresses_that_are_never_given(ip: str | int, message: str) -> None:
    allocator = IPAllocator("10.0.0.1/24")
    for method in (allocator.reserve, allocator.release):
        with pytest.raises(InvalidValueError, match=message):
            method(ip)
    assert ip not in allocator
    assert len(allocator) == 0


def test_named_errors() -> None:
    allocator = IPAllocator("10.0.0.1/24")
    allocator.reserve("10.0.0.9")
    with pytest.raises(InUseError, match="10.0.0.9 is taken"):
        allocator.reserve("10.0.0.9")
    allocator.release("10.0.0.9")
    with pytest.raises(NotAllocatedError, match="^10.0.0.9 is not allocated$"):
        allocator.release("10.0.0.9")
    assert allocator.discard("10.0.0.9") is False
    with pytest.raises(InvalidValueError, match="1.5 is not an IP address"):
        allocator.reserve(1.5)  # type: ignore[arg-type]


# ---- bytes


def test_bytes_keep_everything() -> None:
    allocator = IPAllocator("10.0.0.9/16", exclude=["10.0.3.0/24"])
    allocator.acquire_many(1000)
    allocator.release("10.0.0.5")
    again = pickle.loads(pickle.dumps(allocator))
    assert again.to_bytes() == allocator.to_bytes()
    assert (again.gateway, again.capacity) == (allocator.gateway, allocator.capacity)
    assert list(again) == list(allocator)
    assert again.acquire() == allocator.acquire()
    again._check()


def test_damaged_bytes_are_refused() -> None:
    data = bytearray(IPAllocator("10.0.0.9/16", cooldown=3).to_bytes())
    for at in range(len(data)):
        data[at] ^= 0x10
        with pytest.raises(StoreError):
            IPAllocator.from_bytes(data)
        data[at] ^= 0x10
        with pytest.raises(StoreError):
            IPAllocator.from_bytes(data[:at])
    IPAllocator.from_bytes(data)._check()
