"""The conversions of the original, right for every 32-bit value and prefix length."""

from ipaddress import IPv4Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netalloc import OutOfRangeError, int_to_ip, ip_to_int, network_range, network_size
from netalloc.errors import InvalidValueError


@given(st.integers(0, 2**32 - 1))
def test_there_and_back(n: int) -> None:
    ip = int_to_ip(n)
    assert ip == IPv4Address(n)
    assert ip_to_int(ip) == ip_to_int(str(ip)) == ip_to_int(ip.packed) == n


def test_where_the_original_went_wrong() -> None:
    assert ip_to_int("128.0.0.0") == 2**31
    assert ip_to_int("255.255.255.255") == 2**32 - 1
    assert network_size(0) == network_size("0.0.0.0") == network_size("0.0.0.0/0") == 2**32


@pytest.mark.parametrize("prefix", range(33))
def test_every_prefix_length(prefix: int) -> None:
    network = ip_network((0xC0A80102 >> (32 - prefix) << (32 - prefix), prefix))
    assert network_range(f"192.168.1.2/{prefix}") == (network[0], network[-1])
    size = network_size(prefix)
    assert size == network.num_addresses
    assert network_size(str(network.netmask)) == network_size(network) == size


def test_ipv6() -> None:
    assert network_size("fd00::/64") == 2**64
    assert str(network_range("fd00::5/127")[1]) == "fd00::5"


@pytest.mark.parametrize("ip", ["", "1.2.3", "1.2.3.256", "fd00::1", b"\0\0\0", 5, None, 1.5])
def test_no_address(ip: object) -> None:
    with pytest.raises(InvalidValueError, match="is not an IPv4 address"):
        ip_to_int(ip)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [-1, 2**32])
def test_no_32_bits(n: int) -> None:
    with pytest.raises(OutOfRangeError, match=str(n)):
        int_to_ip(n)


@pytest.mark.parametrize("mask", [-1, 33, "255.0.255.0", "0.0.0.255", "x", "10.0.0.0/33"])
def test_no_mask(mask: int | str) -> None:
    with pytest.raises(InvalidValueError):
        network_size(mask)
