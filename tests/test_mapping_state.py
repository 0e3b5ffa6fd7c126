"""PortMapping, made in C: plain values as they are, all others as the checks make them."""

import copy
import enum
import gc
import inspect
import itertools
import pickle
import struct
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netalloc.address_values import as_destination
from netalloc.errors import InvalidValueError, OutOfRangeError
from netalloc.model import PortMapping

FIELDS = ("host_port", "dest", "protocol", "host_ip", "count", "owner")
PLAIN = (8080, (IPv4Address("10.0.0.2"), 80), "tcp", None, 1, None)
NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}


class Port(enum.IntEnum):
    WEB = 8080
    CONTAINER = 80
    ONE = 1


class Word(str, enum.Enum):
    TCP = "tcp"
    OWNER = "web"


def of(mapping: PortMapping) -> tuple[Any, ...]:
    return tuple(getattr(mapping, name) for name in FIELDS)


def kinds(value: Any) -> Any:
    """The type of a value, and of all that is in it."""
    return tuple(map(kinds, value)) if type(value) is tuple else type(value)


SPELLINGS: tuple[tuple[Any, ...], ...] = (
    (8080, Port.WEB),
    (
        ("10.0.0.2", 80),
        (IPv4Address("10.0.0.2"), 80),
        (IPv4Interface("10.0.0.2/24"), 80),
        ["10.0.0.2", Port.CONTAINER],
    ),
    ("tcp", Word.TCP),
    (None, "0.0.0.0", IPv4Address(0), IPv4Interface("0.0.0.0/8")),
    (1, Port.ONE),
    (None,),
)


@pytest.mark.parametrize("values", list(itertools.product(*SPELLINGS)), ids=str)
def test_every_spelling_is_made_plain(values: tuple[Any, ...]) -> None:
    mapping = PortMapping(*values)
    assert of(mapping) == PLAIN
    assert kinds(of(mapping)) == kinds(PLAIN)


@pytest.mark.parametrize("owner", [None, "web", "wéb", "x" * 255, 'a"b', Word.OWNER])
@pytest.mark.parametrize("host_ip", [None, "192.0.2.1", IPv4Address("192.0.2.1")])
@pytest.mark.parametrize("count", [1, 2, 57456])
def test_what_is_given_is_read_back(count: int, host_ip: Any, owner: str | None) -> None:
    mapping = PortMapping(8080, ("10.0.0.2", 80), "udp", host_ip, count, owner)
    host_ip = host_ip and IPv4Address(host_ip)
    assert of(mapping) == (8080, PLAIN[1], "udp", host_ip, count, owner)
    assert type(mapping.owner) in (str, type(None))
    assert mapping.dest_number == int(IPv4Address("10.0.0.2"))
    assert of(copy.deepcopy(mapping)) == of(mapping)
    assert of(pickle.loads(pickle.dumps(mapping))) == of(mapping)


WRONG: dict[str, tuple[Any, ...]] = {
    "host_port": (0, 65536, -1, 2**64, True, 1.0, "80", None),
    "dest": (
        None,
        (),
        ("10.0.0.2",),
        ("10.0.0.2", 80, 80),
        ("10.0.0.2", 0),
        ("10.0.0.2", 65536),
        ("10.0.0.2", True),
        ("10.0.0.2/24", 80),
        ("010.0.0.2", 80),
        (b"\x0a\0\0\2", 80),
        (1, 80),
        "10.0.0.2",
    ),
    "protocol": ("icmp", "TCP", "", None, b"tcp"),
    "host_ip": ("x", 1, True, b"\0\0\0\0"),
    "count": (0, -1, True, 57457, 1.0, None),
    "owner": ("", "a\nb", "x" * 256, "\ud800", b"web", 5),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_what_is_wrong_is_refused(name: str, value: Any) -> None:
    values = dict(zip(FIELDS, PLAIN, strict=True)) | {name: value}
    with pytest.raises((InvalidValueError, OutOfRangeError)):
        PortMapping(**values)


def test_a_block_ends_with_the_last_port_on_both_sides() -> None:
    assert PortMapping(65535, ("10.0.0.2", 65535)).ports == range(65535, 65536)
    assert PortMapping(8000, ("10.0.0.2", 65534), count=2).count == 2
    for port, to in ((65534, 80), (80, 65534)):
        with pytest.raises(OutOfRangeError):
            PortMapping(port, ("10.0.0.2", to), count=3)


def test_all_but_the_owner_tells_mappings_apart() -> None:
    one = PortMapping(*PLAIN)
    assert one == PortMapping(*PLAIN).replace(owner="web")
    assert hash(one) == hash(one.replace(owner="web"))
    others = [
        one.replace(host_port=8081),
        one.replace(dest=("10.0.0.3", 80)),
        one.replace(dest=("10.0.0.2", 81)),
        one.replace(protocol="udp"),
        one.replace(host_ip="192.0.2.1"),
        one.replace(count=2),
    ]
    assert len({one, *others}) == 1 + len(others)
    assert one != PLAIN
    for name in FIELDS:
        with pytest.raises(AttributeError):
            setattr(one, name, getattr(one, name))


@pytest.mark.parametrize("protocol", NUMBERS)
@pytest.mark.parametrize("host_ip", [None, "192.0.2.1", "255.255.255.255"])
def test_it_packs_what_the_kernel_compares(protocol: str, host_ip: str | None) -> None:
    for port, to in ((1, 65535), (65535, 1), (8080, 80)):
        mapping = PortMapping(port, ("203.0.113.254", to), protocol, host_ip)
        packed = struct.pack(">B3xH2x4s", NUMBERS[protocol], port, b"data")
        packed += mapping.dest[0].packed + struct.pack(">H2x", to)
        assert (
            mapping.packed(b"data") == (mapping.host_ip.packed if mapping.host_ip else b"") + packed
        )
        assert mapping.packed(b"") == mapping.packed(b"data").replace(b"data", b"")


def test_the_collector_knows_none() -> None:
    """Ten thousand of a mapper would be gone through at each full collection."""
    mapping = PortMapping(8080, ("10.0.0.2", 80), owner="web")
    gc.collect()
    assert not any(map(gc.is_tracked, (mapping, mapping.dest, *mapping.dest)))


def test_its_parameters_can_be_asked_for() -> None:
    assert tuple(inspect.signature(PortMapping).parameters) == FIELDS


hexadecimal = st.text("0123456789abcdefABCDEF:", max_size=45)
groups = st.lists(st.text("0123456789abcdef", min_size=1, max_size=5), min_size=1, max_size=9)
texts = st.one_of(
    hexadecimal,
    groups.map(":".join),
    st.tuples(groups, groups).map(lambda two: "::".join(map(":".join, two))),
    st.integers(0, 2**128 - 1).map(lambda n: str(IPv6Address(n))),
    st.integers(0, 2**128 - 1).map(lambda n: IPv6Address(n).exploded),
    st.sampled_from(["::ffff:1.2.3.4", "64:ff9b::1.2.3.4", "::1", "::", "ff02::1", "fe80::1%eth0"]),
)


@given(texts, st.sampled_from(["", "", "", " ", "\0", "%1", "/64", "é"]))
@settings(deadline=None)
def test_text_of_ipv6_is_read_as_ipaddress_reads_it(text: str, behind: str) -> None:
    """The usual text is read in C, and no other text is taken for an address."""
    text += behind
    try:
        right = as_destination(ip_address(text))
    except ValueError:
        with pytest.raises(InvalidValueError):
            PortMapping(80, (text, 80))
        return
    mapping = PortMapping(80, (text, 80))
    assert mapping.dest == (right, 80) and type(mapping.dest[0]) is type(right)
    assert mapping == PortMapping(80, (right, 80))
    assert mapping.dest_number == int(right) and mapping.version == right.version
