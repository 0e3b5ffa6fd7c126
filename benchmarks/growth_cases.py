"""What the growth gate compares: two places, and the operations timed on both."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import growth_edges as edges
import growth_places as places
from growth import Place
from growth_operations import ALL, VIEWS, Operation
from growth_places import HOUR, PORTS, crowd, ended, nothing, standing

Make = Callable[[Path | None], Place]


class Case(NamedTuple):
    """The operations that must cost the same on both places, in memory or in a file."""

    full: Make
    few: Make
    operations: Mapping[str, Operation]
    kinds: tuple[str, ...] = ("memory", "file")
    soak: bool = False


def _case(
    fill: Callable[[Place], None], *without: str, soak: bool = False, **options: float
) -> Case:
    """All operations but those that mean another thing there."""
    wanted = {name: one for name, one in {**ALL, **VIEWS}.items() if name not in without}
    return Case(standing(fill, **options), standing(nothing, **options), wanted, soak=soak)


def _among_networks() -> Case:
    """Views of all networks are as long as there are networks."""
    return Case(
        standing(places.networks),
        standing(nothing),
        {**ALL, **edges.NETWORKS},
        ("file",),
    )


def _cold(fill: Callable[[Place], None], *, soak: bool = False) -> Case:
    few = places.at_rest(nothing)
    return Case(places.at_rest(fill), few, edges.COLD, ("file",), soak)


def _full(make: Callable[[int], Make], wanted: Mapping[str, Operation]) -> Case:
    """A /16 and a /28."""
    return Case(make(16), make(28), wanted)


def _ports(make: Callable[[range], Make], wanted: Mapping[str, Operation]) -> Case:
    """64,512 ports and 64."""
    return Case(make(PORTS), make(range(8000, 8064)), wanted)


# A released address is refused to others while it cools down, so it cannot be named again.
_NAMED = ("allocate an address",)
# The port is published on each of the addresses, and the answer names them all.
_LISTED = ("view: who(port)", "view: why(port)")

CASES: dict[str, Case] = {
    "1,000 held": _case(lambda at: crowd(at, 1_000)),
    "50,000 held": _case(lambda at: crowd(at, 50_000)),
    "50,000 of one owner": _case(places.one_owner),
    "50,000 cooling": _case(ended(50_000), *_NAMED, cooldown=HOUR),
    "50,000 last holders": _case(ended(50_000), sticky=HOUR),
    "10,000 reservations": _case(places.reservations),
    "10,000 past leases": _case(ended(10_000)),
    "1,000 host addresses": _case(places.host_addresses, *_LISTED),
    "3,000 blocks": _case(places.blocks),
    "100 networks": _among_networks(),
    "all addresses held": _full(places.full_network, edges.NOTHING_LEFT),
    "all addresses cooling": _full(places.cooling_network, edges.ALL_COOLING),
    "all ports published": _ports(places.full_ports, edges.NO_PORT_LEFT),
    "every second port published": _ports(places.fragmented_ports, edges.NO_GAP),
    "cold, 1,000 held": _cold(lambda at: crowd(at, 1_000)),
    "cold, 50,000 held": _cold(lambda at: crowd(at, 50_000)),
    "cold, 100 networks": _cold(places.networks),
    "500,000 held": _case(lambda at: crowd(at, 500_000, 500), soak=True),
    "cold, 500,000 held": _cold(lambda at: crowd(at, 500_000, 500), soak=True),
}
