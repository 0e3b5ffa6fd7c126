"""Subnet: geometry beside its oracle, exclusions, and what makes it a value."""

import copy
import pickle
import random
import time
from array import array
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from typing import Any

import pytest

import reference
from netalloc import IPAllocator, OutOfRangeError
from netalloc._alloc import Subnet
from netalloc.errors import InvalidValueError

# ---- beside the oracle


def random_subnet(chosen: random.Random) -> tuple[str, list[str]]:
    """A small network with any gateway, and exclusions of any size and place."""
    v4 = chosen.random() < 0.7
    bits, total = chosen.randrange(8), 32 if v4 else 128
    base = chosen.choice([0x0A000000, 0xFFFFFF00, 0]) if v4 else 0xFD00 << 112
    base = base >> bits << bits
    offset = 0 if chosen.random() < 0.3 else chosen.randrange(2**bits)

    def text(n: int, prefix: int) -> str:
        ip = IPv4Address(n) if v4 else ip_address(n)
        return str(ip) if prefix == total else f"{ip}/{prefix}"

    exclude = []
    for _ in range(chosen.choice([0, 1, 1, 2, 5])):
        low = chosen.randrange(chosen.randrange(bits + 1) + 1)
        exclude.append(text(base + (chosen.randrange(2**bits) >> low << low), total - low))
    gateway = IPv4Address(base + offset) if v4 else ip_address(base + offset)
    return f"{gateway}/{total - bits}", exclude


def test_random_subnets_agree_with_the_oracle() -> None:
    chosen, refused = random.Random(1), 0
    for _ in range(1500):
        network, exclude = random_subnet(chosen)
        theirs = reference.Subnet(network, exclude)
        try:
            ours = Subnet(network, exclude=exclude)
        except OutOfRangeError as error:
            refused += 1
            broadcast = theirs.kind is IPv4Address and theirs.gateway == theirs.network[-1]
            assert (broadcast and "broadcast" in str(error)) or theirs.capacity <= 0, network
            continue
        case = f"{network} without {exclude}"
        assert (ours.size, ours.capacity) == (theirs.size, theirs.capacity), case
        assert str(ours.gateway) == str(theirs.gateway), case
        assert ours.excluded() == theirs.excluded(), case
        assert ours.exclude == theirs.exclude(), case
        for n in range(theirs.lowest - 2, theirs.highest + 3):
            if 0 <= n < 2 ** (32 if ours.version == 4 else 128):
                assert (n in ours) == theirs.gives(n), f"{case}: {n}"
        for i in range(ours.size):
            assert int(ours.address(i)) == theirs.first + i
            assert ours.ordinal(ours.address(i), allow_excluded=True) == i
        again = Subnet(str(ours), exclude=ours.exclude)
        assert again == ours, case
        assert hash(again) == hash(ours), case
        allocator = IPAllocator(ours)
        assert [int(ip) for ip in allocator.acquire_many(ours.capacity)] == [
            n for n in range(theirs.lowest, theirs.highest + 1) if theirs.gives(n)
        ], case
        allocator._check()
    assert 50 < refused < 750


# ---- exclusions


def test_excluded_may_be_read_again_and_again() -> None:
    """It was a generator: spent after one pass, so what was excluded was given."""
    for made in (
        Subnet("10.0.0.77/24", exclude="10.0.0.8/30"),
        IPAllocator("10.0.0.77/24", exclude="10.0.0.8/30", cooldown=5.0),
    ):
        runs = made.excluded()
        assert list(runs) == list(runs) == [(7, 11), (76, 77)]
        assert made.excluded() == runs


@pytest.mark.parametrize(
    "exclude",
    [
        "10.0.0.8/30",
        IPv4Network("10.0.0.8/30"),
        ["10.0.0.8/31", "10.0.0.10", IPv4Address("10.0.0.11")],
        {"10.0.0.8", "10.0.0.9", "10.0.0.10", "10.0.0.11"},
        (f"10.0.0.{n}" for n in (11, 10, 8, 9, 8)),
        ["10.0.0.8/30", "10.0.0.0/30", "10.0.0.2", "10.0.0.3"],
    ],
    ids=lambda exclude: type(exclude).__name__,
)
def test_every_way_to_exclude(exclude: Any) -> None:
    made = Subnet("10.0.0.3/24", exclude=exclude)
    assert "10.0.0.8/30" in made.exclude
    assert (7, 11) in made.excluded()
    assert "10.0.0.9" not in made
    assert "10.0.0.12" in made


def test_an_excluded_address_keeps_its_ordinal() -> None:
    plain, less = Subnet("10.0.0.1/24"), Subnet("10.0.0.1/24", exclude=["10.0.0.0/28"])
    assert less.size == plain.size
    for i in range(plain.size):
        assert less.address(i) == plain.address(i)
        assert less.ordinal(plain.address(i), allow_excluded=True) == i
    with pytest.raises(OutOfRangeError, match=r"10\.0\.0\.5 is excluded from 10\.0\.0\.0/24"):
        less.ordinal("10.0.0.5")
    with pytest.raises(OutOfRangeError, match="is the gateway"):
        less.ordinal("10.0.0.1", allow_excluded=True)


@pytest.mark.parametrize(
    ("exclude", "error", "message"),
    [
        ("10.0.1.1", OutOfRangeError, "exclude: 10.0.1.1 is not of 10.0.0.0/24"),
        ("10.0.0.0/23", OutOfRangeError, "exclude: 10.0.0.0/23 is not of 10.0.0.0/24"),
        (["fd00::/64"], OutOfRangeError, "exclude: fd00::/64 is not of"),
        ("10.0.0.0/24", OutOfRangeError, "has no address to give"),
        ("10.0.0.5/30", InvalidValueError, "'10.0.0.5/30' has host bits set"),
        (IPv4Interface("10.0.0.5/24"), InvalidValueError, "is an address in a network"),
        ([5], InvalidValueError, "5 is neither an address nor a network"),
        (5, InvalidValueError, "5 cannot be iterated"),
        (None, InvalidValueError, "None cannot be iterated"),
    ],
)
def test_what_cannot_be_excluded(exclude: Any, error: type[Exception], message: str) -> None:
    if isinstance(exclude, IPv4Interface):
        exclude = [exclude]
    with pytest.raises(error, match=message):
        Subnet("10.0.0.1/24", exclude=exclude)


@pytest.mark.parametrize("make", [Subnet, IPAllocator])
def test_a_9_costs_what_an_address_does(make: Any) -> None:
    """By runs: one by one, 8,388,607 of them would take a million times as long."""

    def fastest(exclude: str) -> float:
        best = 1.0
        for _ in range(50):
            start = time.perf_counter()
            made = make("10.0.0.1/8", exclude=exclude)
            made.excluded()
            best = min(best, time.perf_counter() - start)
        return best

    assert fastest("10.128.0.0/9") < 5 * fastest("10.128.0.0")
    made = make("10.0.0.1/8", exclude="10.128.0.0/9")
    assert made.excluded() == ((2**23 - 2, 2**24 - 3),)
    assert made.exclude == ("10.128.0.0/9",)
    assert made.capacity == 2**23 - 2


# ---- as a value


def test_equal_is_what_gives_the_same() -> None:
    one = Subnet("10.0.0.1/24", exclude=["10.0.0.8/31", "10.0.0.10/31"])
    same = Subnet(IPv4Interface("10.0.0.1/24"), exclude="10.0.0.8/30")
    assert one == same
    assert hash(one) == hash(same)
    assert len({one, same, Subnet("10.0.0.1/24")}) == 2
    for other in (
        Subnet("10.0.0.1/24"),
        Subnet("10.0.0.2/24", exclude="10.0.0.8/30"),
        Subnet("10.0.0.1/25", exclude="10.0.0.8/30"),
        "10.0.0.1/24",
        None,
    ):
        assert one != other


def test_an_allocator_is_a_subnet_and_equal_to_itself_alone() -> None:
    one = IPAllocator("10.0.0.1/24", exclude="10.0.0.9")
    assert isinstance(one, Subnet)
    assert one != IPAllocator("10.0.0.1/24", exclude="10.0.0.9")
    assert one != Subnet(one)
    assert Subnet(one) != one
    assert one == one
    assert len({one, one, Subnet(one)}) == 2
    assert Subnet(one) == Subnet("10.0.0.1/24", exclude="10.0.0.9")


def test_another_subnet_is_taken_and_left_as_it_is() -> None:
    one = Subnet("10.0.0.77/24", exclude="10.0.0.9")
    more = Subnet(one, exclude="10.0.0.10")
    assert one.exclude == ("10.0.0.9",)
    assert more.exclude == ("10.0.0.9", "10.0.0.10")
    made = IPAllocator(more, exclude="10.0.0.8", cooldown=5.0)
    made.release(made.acquire())
    made.acquire_many(10)
    assert made.exclude == ("10.0.0.8/31", "10.0.0.10")
    assert more.excluded() == ((8, 10), (76, 77))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("network", ["10.0.0.77/24", "fd00::1/64", "10.0.0.6/31"])
def test_through_pickle_and_copy(network: str, protocol: int) -> None:
    made = Subnet(network, exclude=["10.0.0.5"] if network.endswith("24") else ())
    for again in (
        pickle.loads(pickle.dumps(made, protocol)), copy.copy(made), copy.deepcopy(made),
        eval(repr(made)),
    ):  # fmt: skip
        assert again == made
        assert type(again) is Subnet


@pytest.mark.parametrize(
    ("network", "text", "version", "prefixlen"),
    [
        ("10.88.0.1/16", "10.88.0.1/16", 4, 16),
        ("10.88.0.0/255.255.0.0", "10.88.0.0/16", 4, 16),
        (IPv4Network("10.0.0.0/31"), "10.0.0.0/31", 4, 31),
        ("10.0.0.5", "10.0.0.5/32", 4, 32),
        (IPv6Network("fd00::/64"), "fd00::/64", 6, 64),
        ("FD00:0::1/64", "fd00::1/64", 6, 64),
    ],
)
def test_as_the_gateway_would_write_it(
    network: Any, text: str, version: int, prefixlen: int
) -> None:
    made = Subnet(network)
    assert str(made) == str(IPAllocator(network)) == text
    assert (made.version, made.prefixlen) == (version, prefixlen)
    assert repr(made) == f"Subnet({text!r})"


def test_it_is_immutable() -> None:
    made = Subnet("10.0.0.1/24")
    for name in ("network", "gateway", "capacity", "size", "exclude", "other"):
        with pytest.raises(AttributeError):
            setattr(made, name, 5)
    made.__init__("10.0.0.2/24")  # type: ignore[misc]
    assert str(made) == "10.0.0.1/24"


# ---- prefixes shorter than /64


def test_of_a_short_prefix_the_first_addresses_are_given() -> None:
    short, long = Subnet("fd00::1/48"), Subnet("fd00::1/64")
    assert (short.size, short.capacity) == (long.size, long.capacity)
    last = IPv6Address("fd00::ffff:ffff:ffff:ffff")
    for ip in (IPv6Address("fd00::2"), IPv6Address("fd00::8000:0:0:0"), last):
        assert short.ordinal(ip) == long.ordinal(ip)
        assert short.address(short.ordinal(ip)) == ip
    assert short.network == IPv6Network("fd00::/48")
    with pytest.raises(OutOfRangeError, match=r"fd00:0:0:1:: is beyond the first 2\*\*64 addr"):
        short.ordinal("fd00:0:0:1::")
    with pytest.raises(OutOfRangeError, match=r"fd00:1:: is not of fd00::/48"):
        short.ordinal("fd00:1::")
    with pytest.raises(OutOfRangeError, match="anycast"):
        short.ordinal("fd00::")
    with pytest.raises(OutOfRangeError, match="is not in 0 to"):
        short.address(short.size)


@pytest.mark.parametrize("prefix", range(64))
def test_every_short_prefix(prefix: int) -> None:
    base = 0xFD << 120 >> 128 - prefix << 128 - prefix
    made = Subnet(IPv6Network((base, prefix)))
    assert int(made.address(0)) == base + 1
    assert int(made.address(made.size - 1)) == base + 2**64 - 1
    assert made.gateway is None


def test_what_lies_beyond_may_be_gateway_or_excluded() -> None:
    made = Subnet("fd00:0:0:5::1/48", exclude=["fd00:0:0:1::/64", "fd00:0:0:9::7"])
    assert str(made.gateway) == "fd00:0:0:5::1"
    assert made.ordinal("fd00::1") == 0
    assert (made.excluded(), made.exclude, made.size) == ((), (), 2**64 - 1)
    assert str(made) == "fd00:0:0:5::1/48"
    with pytest.raises(OutOfRangeError, match="is the gateway of"):
        made.ordinal("fd00:0:0:5::1")
    half = Subnet("fd00::1/48", exclude="fd00:0:0:0:8000::/65")
    assert half.exclude == ("fd00::8000:0:0:0/65",)
    assert half.capacity == 2**63 - 2
    with pytest.raises(OutOfRangeError, match="no address to give"):
        Subnet("fd00::1/48", exclude="fd00::/64")
    last = Subnet("fd00::ffff:ffff:ffff:ffff/48")
    assert (last.size, last.excluded()) == (2**64 - 2, ())


def test_an_allocator_of_a_short_prefix() -> None:
    made = IPAllocator("fd00::1/48", exclude=["fd00::3", "fd00:0:0:1::/64"])
    assert [str(ip) for ip in made.acquire_many(2)] == ["fd00::2", "fd00::4"]
    made.reserve("fd00::ffff:ffff:ffff:ffff")
    made.release("fd00::2")
    with pytest.raises(OutOfRangeError, match="beyond the first"):
        made.reserve("fd00:0:0:1::")
    with pytest.raises(OutOfRangeError, match="beyond the first"):
        made.release_many(["fd00:0:0:1::"])
    again = IPAllocator.from_bytes(made.to_bytes())
    assert again.to_bytes() == made.to_bytes()
    assert repr(again) == repr(made) == f"<IPAllocator fd00::1/48: 2 of {2**64 - 3} taken>"
    assert (str(again.network), again.exclude) == ("fd00::/48", ("fd00::3",))
    for one in (made, again):
        one._check()
        assert str(one.acquire()) == "fd00::5"
    buffer = array("Q", [0]) * 2
    made.acquire_into(buffer)
    assert buffer.tolist() == [6, 7]


def test_a_short_prefix_through_repr_and_pickle() -> None:
    made = Subnet("fd00::1/48", exclude="fd00::8/125")
    for again in (eval(repr(made)), pickle.loads(pickle.dumps(made)), Subnet(made)):
        assert again == made
        assert hash(again) == hash(made)
    assert made != Subnet("fd00::1/64", exclude="fd00::8/125")
