"""Addresses as callers give them, made plain: what `ipaddress` has to be loaded for."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from netalloc._alloc import int_to_ip, ip_to_int
from netalloc.errors import InvalidValueError, NetallocError
from netalloc.values import shown

ANY = IPv4Address(0)
IP = IPv4Address | IPv6Address


def as_ip(value: object, what: str = "address") -> IP:
    """An address, given as text or as an object; of an interface the address alone."""
    kind = type(value)
    if kind is IPv4Address or kind is IPv6Address:
        return value  # type: ignore[return-value]
    if isinstance(value, IPv4Address):
        return IPv4Address(int(value))
    if isinstance(value, IPv6Address):
        return IPv6Address(int(value))
    if isinstance(value, str) and len(value) < 100:
        try:
            return ip_address(str.__str__(value))
        except ValueError:
            pass
    raise InvalidValueError(f"{what} {shown(value)} is not an IP address")


def as_ipv4(value: object, what: str) -> IPv4Address:
    """An IPv4 address, given as text or as an object."""
    if type(value) is IPv4Address:
        return value
    if isinstance(value, IPv4Address):
        return IPv4Address(int(value))
    if isinstance(value, str) and len(value) < 100:
        try:
            return int_to_ip(ip_to_int(str.__str__(value)))  # a tenth of IPv4Address(text)'s time
        except NetallocError:
            pass
    raise InvalidValueError(f"{what} {shown(value)} is not an IPv4 address")


def as_mapped_ip(value: object, what: str) -> IP:
    """An address of either family that rules can hold.

    Raises InvalidValueError for one with a zone, which only one interface knows, and for an
    IPv4 address in IPv6 form (RFC 4291, 2.5.5.2).
    """
    ip = as_ip(value, what)
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            raise InvalidValueError(f"{what} {shown(value)} has a zone, which no rule can hold")
        if ip.ipv4_mapped is not None:
            raise InvalidValueError(f"{what} {shown(value)} is {ip.ipv4_mapped}: write it so")
    return ip


def as_destination(value: object) -> IP:
    """An address that a port may lead to; of IPv6 none that the host itself answers for.

    What comes from elsewhere for ::1 is dropped, whatever translated it (RFC 4291, 2.5.3).
    """
    ip = as_mapped_ip(value, "destination")
    if isinstance(ip, IPv6Address) and (ip.is_loopback or ip.is_unspecified or ip.is_multicast):
        raise InvalidValueError(f"destination {shown(value)} is not the address of a container")
    return ip


def as_host_place(value: object) -> IP | None:
    """Where on the host a port is published: None is every address, of both families.

    0.0.0.0 and :: stay, for each is every address of its own family.
    """
    kind = type(value)
    if value is None or kind is IPv4Address:
        return value  # type: ignore[return-value]
    if kind is str and ":" not in value:  # type: ignore[operator]
        try:
            return int_to_ip(ip_to_int(value))  # type: ignore[arg-type]
        except NetallocError:
            pass
    return as_mapped_ip(value, "host address")


def as_host_ip_for(value: object, dest: IP) -> IP | None:
    """The host address of what leads to `dest`, which is of its family; None is every one.

    So is the unspecified address of the family.
    """
    if value is None:
        return None
    ip = as_mapped_ip(value, "host address")
    if ip.version != dest.version:
        raise InvalidValueError(
            f"host address {shown(value)} is of IPv{ip.version}, and {dest}, where it leads, is "
            f"of IPv{dest.version}"
        )
    return ip if int(ip) else None
