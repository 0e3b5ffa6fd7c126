"""Every parameter of every public call of the core, given every value that is not meant.

A refusal is a NetallocError of a bounded length, and nothing has changed; a value that stands for
one that is meant (an enum's member, a subclass) is taken as the plain one. `in` is never refused.
"""

import ctypes
import enum
import ipaddress
import itertools
import mmap
import os
import pickle
import signal
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, ip_network
from typing import Any
from zlib import crc32

import pytest

from netalloc import (
    Bitmap,
    IPAllocator,
    NetallocError,
    OutOfRangeError,
    StoreError,
    int_to_ip,
    ip_to_int,
    network_range,
    network_size,
)
from netalloc._alloc import Subnet
from netalloc.errors import InvalidValueError

LONGEST = 500  # characters that an error may have


# ---- hostile values


class Text(str):
    """A subclass whose own methods lie."""

    def __str__(self) -> str:
        return "10.0.0.2"

    def __len__(self) -> int:
        return 2**40

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


class Whole(int):
    def __index__(self) -> int:
        raise ZeroDivisionError("an int that is asked for its value")

    def __le__(self, other: object) -> bool:
        raise ZeroDivisionError("compared")

    __lt__ = __ge__ = __gt__ = __le__


class Index:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __index__(self) -> Any:
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


class Seven(enum.IntEnum):
    SEVEN = 7


class Colour(str, enum.Enum):
    RED = "red"
    NETWORK = "10.0.0.1/24"


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no equality")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no class")


class Endless:
    """Says that it has no end, and fails."""

    def __iter__(self) -> Iterator[int]:
        raise OSError("no iterator")

    def __length_hint__(self) -> int:
        return 2**60


class Address(IPv4Address):
    def __int__(self) -> int:
        raise OSError("no number")

    def __str__(self) -> str:
        raise OSError("no text")


class Network(IPv4Network):
    @property
    def prefixlen(self) -> Any:
        return 10**6


def raising() -> Iterator[Any]:
    yield 5
    raise LookupError("in the middle")


def wrong_slot(value: object) -> IPv4Address:
    ip = IPv4Address("10.0.0.7")
    ip._ip = value  # type: ignore[attr-defined]
    return ip


def exotic_buffers() -> list[tuple[str, Any]]:
    words = array("Q", range(8))
    return [
        ("empty bytearray", bytearray()),
        ("bytes of 3", b"abc"),
        ("strided", memoryview(words)[::2]),
        ("backwards", memoryview(words)[::-1]),
        ("unaligned", memoryview(bytearray(17))[1:].cast("Q")),
        ("two dimensions", memoryview(bytearray(64)).cast("B", (8, 8))),
        ("an empty view", memoryview(b"")),
        ("doubles", array("d", [1.0])),
        ("shorts", array("H", [1, 2])),
        ("signed bytes", array("b", [1, 2])),
        ("read-only words", memoryview(bytes(16)).cast("Q")),
        ("truths", memoryview(bytearray(8)).cast("?")),
        ("pointers", (ctypes.c_void_p * 2)()),
        ("structures", (ctypes.c_uint64 * 2 * 2)()),
        ("big-endian", (ctypes.c_uint64.__ctype_be__ * 2)()),
        ("a map", mmap.mmap(-1, 16)),
        ("released", released()),
        ("words of a mebibyte", array("Q", bytes(2**20))),
        ("negative", array("q", [-1])),
        ("negative, short", array("i", [-1, -(2**31)])),
        ("highest", array("Q", [2**64 - 1])),
    ]


def released() -> memoryview:
    view = memoryview(bytearray(8))
    view.release()
    return view


HOSTILE: list[tuple[str, Any]] = [
    ("None", None),
    ("Ellipsis", ...),
    ("NotImplemented", NotImplemented),
    ("True", True),
    ("False", False),
    ("1.5", 1.5),
    ("2.0", 2.0),
    ("-0.0", -0.0),
    ("nan", float("nan")),
    ("inf", float("inf")),
    ("-inf", float("-inf")),
    ("complex", 1j),
    ("Decimal", Decimal("NaN")),
    ("Fraction", Fraction(1, 3)),
    ("-1", -1),
    ("2**32", 2**32),
    ("2**64", 2**64),
    ("2**128", 2**128),
    ("-2**63", -(2**63)),
    ("-2**64", -(2**64)),
    ("10**5000", 10**5000),
    ("-10**5000", -(10**5000)),
    ("empty text", ""),
    ("blank", " "),
    ("text", "banana"),
    ("digits", "7"),
    ("foreign digits", "\u0661\u0660.0.0.2"),
    ("surrogate", "\ud800"),
    ("surrogate within", "10.0.0.\udc32"),
    ("NUL", "10.0.0.2\0"),
    ("newline", "10.0.0.2\n"),
    ("leading zero", "10.0.0.02"),
    ("blank before", " 10.0.0.2"),
    ("a megabyte", "1" * 2**20),
    ("a megabyte of slashes", "10.0.0.0/8" + "/" * 2**20),
    ("prefix", "10.0.0.0/-1"),
    ("prefix of digits", "10.0.0.0/" + "9" * 5000),
    ("host bits", "10.0.0.5/30"),
    ("zone", "fe80::1%eth0"),
    ("zone of a network", "fe80::1%eth0/64"),
    ("a zone's object", IPv6Address("fe80::1%eth0")),
    ("IPv6", "fd00::1"),
    ("mapped", "::ffff:10.0.0.2"),
    ("a subclass of str", Text("10.0.0.9")),
    ("a subclass of str, wrong", Text("nonsense")),
    ("a text's enum", Colour.RED),
    ("a network's enum", Colour.NETWORK),
    ("bytes", b"10.0.0.2"),
    ("a megabyte of bytes", b"\xff" * 2**20),
    ("a bytearray", bytearray(b"\n\0\0\2")),
    ("an enum's number", Seven.SEVEN),
    ("a subclass of int", Whole(3)),
    ("index that raises", Index(ValueError("no"))),
    ("index that raises ours", Index(OutOfRangeError("ours"))),
    ("index of text", Index("3")),
    ("index of None", Index(None)),
    ("index of a truth", Index(True)),
    ("index of a huge one", Index(2**200)),
    ("unprintable", Unprintable()),
    ("endless", Endless()),
    ("a type", int),
    ("a function", len),
    ("an instance", object()),
    ("a named megabyte", type("N" * 2**20, (), {})()),
    ("list", [1, 2]),
    ("list of lists", [[[]]]),
    ("list of None", [None]),
    ("list of hostile", [5, float("nan")]),
    ("list of text", ["10.0.0.3", "nonsense"]),
    ("list of megabytes", ["x" * 2**20]),
    ("list of huge", [10**5000]),
    ("list of unprintable", [Unprintable()]),
    ("dict", {"a": 1}),
    ("set", {1, 2}),
    ("range", range(3)),
    ("a long range", range(2**20)),
    ("generator", (n for n in (5, "x", None))),
    ("a generator that raises", raising),
    ("an address's subclass", Address("10.0.0.7")),
    ("an interface", IPv4Interface("10.0.0.7/24")),
    ("a network", IPv4Network("10.0.0.0/30")),
    ("a network's subclass", Network("10.0.0.0/30")),
    ("a foreign network", ip_network("192.0.2.0/24")),
    ("a network of IPv6", ip_network("fd00::/64")),
    ("an address without number", IPv4Address.__new__(IPv4Address)),
    ("an address of text", wrong_slot("10.0.0.7")),
    ("an address of a huge number", wrong_slot(2**200)),
    ("an address of a negative number", wrong_slot(-5)),
    ("an address of a truth", wrong_slot(True)),
    *exotic_buffers(),
]


# ---- the calls


@dataclass
class Call:
    """One parameter of one call; the others are right."""

    name: str
    target: Callable[[], Any]
    run: Callable[[Any, Any], Any]
    state: Callable[[Any], bytes]


def bitmap() -> Bitmap:
    made = Bitmap(5000)
    made.acquire_ranges(4500)
    made.release_many([5, 4100])
    return made


def words() -> Bitmap:
    made = Bitmap(2**64)
    made.acquire_ranges(100)
    return made


def allocator() -> IPAllocator:
    made = IPAllocator("10.0.0.1/19", exclude=["10.0.0.77", "10.0.1.0/28"])
    made.acquire_many(5000)
    return made


def cooling() -> IPAllocator:
    made = IPAllocator("10.0.0.1/24", cooldown=60.0, clock=lambda: 5.0)
    for ip in made.acquire_many(100)[10:20]:
        made.release(ip)
    return made


def wide() -> IPAllocator:
    made = IPAllocator("fd00::77/64")
    made.acquire_many(100)
    return made


def subnet() -> Subnet:
    return Subnet("10.0.0.77/24", exclude=["10.0.0.5"])


def narrow() -> IPAllocator:
    """IPv6, but with so few addresses that no number of them fills the memory."""
    return IPAllocator("fd00::77/112")


def state_of(target: Any) -> bytes:
    if isinstance(target, Bitmap | IPAllocator):
        return target.to_bytes()
    return pickle.dumps(target)


def calls() -> Iterator[Call]:
    def method(make: Callable[[], Any], name: str) -> Call:
        return Call(f"{make.__name__}.{name}", make, lambda t, v: getattr(t, name)(v), state_of)

    def flag(make: Callable[[], Any], name: str, key: str, *before: Any) -> Call:
        return Call(
            f"{make.__name__}.{name} {key}",
            make,
            lambda t, v: getattr(t, name)(*before, **{key: v}),
            state_of,
        )

    def function(name: str, run: Callable[[Any], Any]) -> Call:
        return Call(name, lambda: None, lambda _, v: run(v), state_of)

    for make in (bitmap, words):
        for name in (
            "reserve", "release", "discard", "acquire_into", "acquire_ranges", "acquire_block",
            "release_many", "next_free", "next_set", "previous_set",
        ):  # fmt: skip
            yield method(make, name)
        name = f"{make.__name__}.next_block"
        yield Call(f"{name} n", make, lambda t, v: t.next_block(v, 0), state_of)
        yield Call(f"{name} start", make, lambda t, v: t.next_block(3, v), state_of)
        name = f"{make.__name__}.counts"
        yield Call(f"{name} first", make, lambda t, v: t.counts(v, 8, 4), state_of)
        yield Call(f"{name} cell", make, lambda t, v: t.counts(0, v, 4), state_of)
        yield Call(f"{name} n", make, lambda t, v: t.counts(0, 8, v), state_of)
        yield Call(f"{make.__name__}.cursor", make, lambda t, v: setattr(t, "cursor", v), state_of)
    for make in (allocator, cooling, wide):
        for name in (
            "reserve", "release", "discard", "acquire_into", "acquire_block", "release_many",
            "ordinal", "address",
        ):  # fmt: skip
            yield method(make, name)
        yield flag(make, "acquire", "allow_cooling")
        yield flag(make, "acquire_int", "allow_cooling")
        yield flag(make, "reserve", "allow_cooling", make().address(200))
        yield flag(make, "ordinal", "allow_excluded", make().address(200))
    for make in (allocator, cooling, narrow):
        yield method(make, "acquire_many")
    yield method(subnet, "ordinal")
    yield method(subnet, "address")
    yield function("ip_to_int", ip_to_int)
    yield function("int_to_ip", int_to_ip)
    yield function("network_range", network_range)
    yield function("network_size", network_size)
    yield function("Bitmap", Bitmap)
    yield function("Bitmap.from_bytes", Bitmap.from_bytes)
    yield function("Subnet", Subnet)
    yield function("Subnet exclude", lambda v: Subnet("10.0.0.1/24", exclude=v))
    yield function("Subnet exclude an item", lambda v: Subnet("10.0.0.1/24", exclude=[v]))
    yield function("Subnet of IPv6, exclude", lambda v: Subnet("fd00::1/64", exclude=v))
    yield function("IPAllocator", IPAllocator)
    yield function("IPAllocator.from_bytes", IPAllocator.from_bytes)
    yield function("IPAllocator exclude", lambda v: IPAllocator("10.0.0.1/24", exclude=v))
    yield function("IPAllocator cooldown", lambda v: IPAllocator("10.0.0.1/24", cooldown=v))
    yield function("IPAllocator clock", lambda v: IPAllocator("10.0.0.1/24", clock=v))
    yield function("a clock's time", lambda v: timed(v).release("10.0.0.2"))


def timed(value: Any) -> IPAllocator:
    """One whose clock says this, at its second reading."""
    times = iter((0.0, value))
    made = IPAllocator("10.0.0.1/24", cooldown=1.0, clock=lambda: next(times))
    made.acquire_many(2)
    made.release("10.0.0.3")
    return made


CALLS = list(calls())


def fresh(value: Any) -> Any:
    """Generators are spent by one use."""
    return raising() if value is raising else value


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_every_value(call: Call) -> None:
    refused = 0
    for name, value in HOSTILE:
        target = call.target()
        before = call.state(target)
        try:
            call.run(target, fresh(value))
        except NetallocError as error:
            refused += 1
            text = str(error)
            assert text, f"{name}: an error without a text"
            assert len(text) < LONGEST, f"{name}: {len(text)} characters"
            assert call.state(target) == before, f"{name}: changed and refused"
            if name == "None":
                assert "None" in text, f"the value is not in {text!r}"
        except BaseException as error:
            raise AssertionError(f"{name}: {error!r}") from error
        if hasattr(target, "_check"):
            target._check()
    assert refused > len(HOSTILE) // 4, f"{refused} of {len(HOSTILE)} refused"


def test_how_many_cases_there_are(record_property: Any) -> None:
    record_property("cases", len(CALLS) * len(HOSTILE))
    assert len(CALLS) >= 70, len(CALLS)
    assert len(HOSTILE) >= 100


@pytest.mark.parametrize("make", [bitmap, words, allocator, cooling, wide, subnet])
def test_in_is_never_refused(make: Callable[[], Any]) -> None:
    target = make()
    for name, value in HOSTILE:
        assert (fresh(value) in target) in (True, False), name
    for value in (True, False, None, 5.0, "x", b"", [], Unprintable()):
        assert value not in target


def test_a_flag_is_true_or_false() -> None:
    made = cooling()
    for name, value in HOSTILE:
        if name in ("True", "False"):
            continue
        for call, arguments, flag in (
            ("acquire", (), "allow_cooling"),
            ("acquire_int", (), "allow_cooling"),
            ("reserve", ("10.0.0.200",), "allow_cooling"),
            ("ordinal", ("10.0.0.200",), "allow_excluded"),
        ):
            with pytest.raises(InvalidValueError, match="is neither True nor False"):
                getattr(made, call)(*arguments, **{flag: value})


# ---- what is taken for the plain value that it stands for


def test_an_enums_member_and_a_subclass_are_the_plain_number() -> None:
    made = Bitmap(10)
    made.reserve(Seven.SEVEN)
    made.reserve(Index(8))
    assert Seven.SEVEN in made
    assert Index(8) in made
    assert [type(i) for i in made] == [int, int]
    assert type(IPAllocator("10.0.0.1/24").ordinal(Index(0x0A000002))) is int
    assert int_to_ip(Seven.SEVEN) == IPv4Address(7)
    assert type(Subnet(Colour.NETWORK).network) is IPv4Network
    assert str(Subnet(Text("10.0.0.9/24"))) == "10.0.0.9/24"


def test_an_address_of_another_class_is_the_plain_one() -> None:
    made = IPAllocator("10.0.0.1/24")
    made.reserve(Address("10.0.0.7"))
    made.reserve(IPv4Interface("10.0.0.8/30"))
    assert [type(ip) for ip in made] == [IPv4Address, IPv4Address]
    assert ip_to_int(Address("10.0.0.7")) == 0x0A000007


# ---- the signatures


@pytest.mark.parametrize(
    "step",
    [
        Bitmap,
        lambda: Bitmap(1, 2),  # type: ignore[call-arg]
        lambda: Bitmap(5).reserve(),  # type: ignore[call-arg]
        lambda: Bitmap(5).reserve(1, 2),  # type: ignore[call-arg]
        Subnet,
        lambda: Subnet("10.0.0.1/24", ["10.0.0.2"]),  # type: ignore[misc]
        lambda: Subnet("10.0.0.1/24", cooldown=3.0),  # type: ignore[call-arg]
        lambda: Subnet("10.0.0.1/24", reserved=()),  # type: ignore[call-arg]
        lambda: IPAllocator("10.0.0.1/24", reserved=()),  # type: ignore[call-arg]
        lambda: IPAllocator("10.0.0.1/24").acquire(True),  # type: ignore[misc]
        lambda: IPAllocator("10.0.0.1/24").acquire(early=True),  # type: ignore[call-arg]
        lambda: IPAllocator("10.0.0.1/24").reserve("10.0.0.2", True),  # type: ignore[misc]
    ],
)
def test_a_wrong_call_is_a_type_error(step: Callable[[], object]) -> None:
    with pytest.raises(TypeError) as wrong:
        step()
    assert not isinstance(wrong.value, NetallocError)


# ---- what a caller's code raises


def broken(first: Any, error: BaseException) -> Iterator[Any]:
    yield first
    raise error


def with_a_broken_clock(error: BaseException) -> IPAllocator:
    def clock() -> float:
        raise error

    made = IPAllocator("10.0.0.1/24", cooldown=5.0, clock=clock)
    made.acquire_many(3)
    return made


def taken_bitmap() -> Bitmap:
    made = Bitmap(9)
    made.acquire_ranges(9)
    return made


def steps_that_raise(error: BaseException) -> list[tuple[Any, Callable[[], object]]]:
    made, plain = with_a_broken_clock(error), taken_bitmap()
    return [
        (made, lambda: made.release("10.0.0.2")),
        (made, lambda: made.release_many(broken("10.0.0.2", error))),
        (made, lambda: made.release_many(["10.0.0.2"])),
        (plain, lambda: plain.release_many(broken(5, error))),
        (plain, lambda: plain.release(Index(error))),
        (plain, lambda: Subnet("10.0.0.1/24", exclude=broken("10.0.0.9", error))),
        (plain, lambda: Bitmap(Index(error))),
    ]


@pytest.mark.parametrize("error", [LookupError("x"), OSError(5, "x"), RuntimeError(), TypeError()])
def test_what_a_callers_code_raises_is_the_cause(error: Exception) -> None:
    for target, step in steps_that_raise(error):
        before = list(target)
        with pytest.raises(InvalidValueError) as caught:
            step()
        assert caught.value.__cause__ is error
        assert list(target) == before
        target._check()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_an_interrupt_passes(error: BaseException) -> None:
    for target, step in steps_that_raise(error):
        before = list(target)
        with pytest.raises(type(error)):
            step()
        assert list(target) == before
        target._check()
    with pytest.raises(type(error)):
        assert Index(error) in taken_bitmap()


def test_an_iterator_without_end_is_refused() -> None:
    """Each item is looked at as it comes, and none can be released that is not taken."""
    made = IPAllocator("fd00::/64")
    made.acquire_many(3)
    for values in (ip_network("fd00::/64"), itertools.repeat(made.address(0)), itertools.count()):
        with pytest.raises(NetallocError):
            made.release_many(values)
    assert len(made) == 3
    plain = taken_bitmap()
    for numbers in (itertools.count(), itertools.repeat(3)):
        with pytest.raises(NetallocError):
            plain.release_many(numbers)
    assert len(plain) == 9


# ---- saved bytes, with right checksums


def sealed(body: bytes) -> bytes:
    return body + crc32(body).to_bytes(4, "little")


def forged(**changes: bytes) -> bytes:
    """A saved allocator in which some of the parts are others."""
    made = IPAllocator("10.0.0.9/24", exclude="10.0.0.77", cooldown=60.0, clock=lambda: 0.0)
    for ip in made.acquire_many(5)[:2]:
        made.release(ip)
    data = made.to_bytes()
    names = ("network", "exclusions", "cooldown", "bits", "times")
    sizes = [int.from_bytes(data[8 + 4 * k : 12 + 4 * k], "little") for k in range(5)]
    parts, at = {}, 28
    for name, size in zip(names, sizes, strict=True):
        parts[name] = data[at : at + size]
        at += size
    assert set(changes) <= set(parts)
    parts.update(changes)
    head = data[:8] + b"".join(len(parts[name]).to_bytes(4, "little") for name in names)
    return sealed(head + b"".join(parts[name] for name in names))


def bits_with(*ordinals: int, size: int = 253) -> bytes:
    made = Bitmap(size)
    for i in ordinals:
        made.reserve(i)
    return made.to_bytes()


def times(*entries: tuple[int, float]) -> bytes:
    return b"".join(struct.pack("<Qd", i, left) for i, left in entries)


def test_what_was_saved_comes_back() -> None:
    again = IPAllocator.from_bytes(forged())
    again._check()
    assert (len(again), again.available) == (3, 247)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(forged(network=b"10.0.0.9/33"), id="no network"),
        pytest.param(forged(network=b"\xff\xfe"), id="no text"),
        pytest.param(forged(network=b"10.0.0.9/25"), id="a smaller network"),
        pytest.param(forged(network=b"10.0.0.200/24"), id="another gateway"),
        pytest.param(forged(exclusions=b"10.0.1.5"), id="excluded elsewhere"),
        pytest.param(forged(exclusions=b"10.0.0.99"), id="excluded and free"),
        pytest.param(forged(exclusions=b"10.0.0.77  10.0.0.78"), id="an empty exclusion"),
        pytest.param(forged(exclusions=b"10.0.0.77 10.0.0.1"), id="excluded and cooling"),
        pytest.param(forged(bits=bits_with(0, 1, 76)), id="the gateway is free"),
        pytest.param(forged(bits=bits_with(0, 1, 8)), id="the excluded one is free"),
        pytest.param(forged(bits=bits_with(1, 8, 76)), id="cooling and free"),
        pytest.param(forged(bits=bits_with(0, 1, 8, 76, size=252)), id="bits of another size"),
        pytest.param(forged(bits=b""), id="no bits"),
        pytest.param(forged(cooldown=b"\0" * 8), id="cooling without a cool-down"),
        pytest.param(forged(cooldown=b"\0" * 7), id="half a cool-down"),
        pytest.param(forged(cooldown=times((0, float("nan")))[8:]), id="cool-down nan"),
        pytest.param(forged(cooldown=times((0, float("inf")))[8:]), id="cool-down inf"),
        pytest.param(forged(cooldown=times((0, -1.0))[8:]), id="cool-down negative"),
        pytest.param(forged(times=times((0, float("nan")))), id="time nan"),
        pytest.param(forged(times=times((0, float("inf")))), id="time inf"),
        pytest.param(forged(times=times((0, -1.0))), id="time negative"),
        pytest.param(forged(times=times((0, 60.5))), id="longer than the cool-down"),
        pytest.param(forged(times=times((0, 1.0), (0, 2.0))), id="named twice"),
        pytest.param(forged(times=times((8, 1.0))), id="the gateway cools"),
        pytest.param(forged(times=times((76, 1.0))), id="the excluded one cools"),
        pytest.param(forged(times=times((99, 1.0))), id="a free one cools"),
        pytest.param(forged(times=times((2**63, 1.0))), id="an ordinal that is none"),
        pytest.param(forged(times=b"\0" * 15), id="half a time"),
    ],
)
def test_contradicting_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match="contradict|bitmap"):
        IPAllocator.from_bytes(data)


def test_any_byte_of_it_forged_is_refused_or_sound() -> None:
    data = forged()
    accepted = 0
    for at in range(len(data) - 4):
        for value in {0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1} - {data[at]}:
            body = data[:at] + bytes([value]) + data[at + 1 : -4]
            try:
                again = IPAllocator.from_bytes(sealed(body))
            except StoreError as error:
                assert len(str(error)) < LONGEST
                continue
            again._check()
            gateway = again.gateway
            assert gateway is None or gateway not in set(again.acquire_many(again.available))
            accepted += 1
    assert accepted > 10


def test_a_buffer_that_changes_meanwhile_does_no_harm() -> None:
    """Another process writes into the shared memory that release_many reads.

    Each item is read once: what was checked is what is cleared, and cleared again on an undo.
    """
    shared = mmap.mmap(-1, 8 * 3000)
    view = memoryview(shared).cast("Q")
    child = os.fork()
    if child == 0:
        chosen = 1
        while True:
            chosen = chosen * 6364136223846793005 % 2**64
            view[chosen >> 40 & 2047] = chosen >> 20 & 0x1FFF
    try:
        refused = 0
        for _ in range(3000):
            made = Bitmap(3 * 4096)
            made.acquire_ranges(3 * 4096)
            for k in range(3000):
                view[k] = k
            before = made.to_bytes()
            try:
                made.release_many(view)
            except NetallocError:
                refused += 1
                assert made.to_bytes() == before
            made._check()
            fresh_one = Bitmap(4096)  # the empty node that all share
            assert len(fresh_one) == 0
            assert fresh_one.next_set(0) is None
            if refused > 300:
                break
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        view.release()


def test_the_values_are_what_their_names_say() -> None:
    """The table would be worth little with half of it misspelt."""
    assert len({name for name, _ in HOSTILE}) == len(HOSTILE)
    assert ipaddress.ip_address(str(Text("10.0.0.9"))) == IPv4Address("10.0.0.2")
    assert sys.getsizeof(dict(HOSTILE)["a megabyte"]) > 2**20
