"""Where on the host a publication is: on every address, on all of a family, or on one."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.address_values import IP
    from netalloc.store.records import Publication


def place_of(host_ip: int | str) -> IP | None:
    """Where on the host a publication is: see store/records.py; None is every address."""
    if not host_ip:
        return None
    if type(host_ip) is str and ":" in host_ip:
        return IPv6Address(host_ip)
    return IPv4Address(host_ip)


def entry_of(place: IP | None) -> int | str:
    """The same as publications have it."""
    if place is None:
        return 0
    return int(place) if place.version == 4 and int(place) else str(place)


def in_order(row: Publication) -> tuple[int, int, int, int, str, int]:
    """What publications are sorted by: numbers and text, as host addresses are, have no order."""
    return (row.network, row.ordinal, *by_place(row), row.protocol, row.host_port)


def by_place(row: Publication) -> tuple[int, int]:
    """A publication's host address, to sort by."""
    place = place_of(row.host_ip)
    return (0, 0) if place is None else (place.version, int(place))


def conflict(one: IP | None, two: IP | None) -> bool:
    """Whether a port can be held on one of them alone, as netalloc/ports.py has it."""
    if one is None or two is None:
        return True
    return one.version == two.version and (one == two or not int(one) or not int(two))
