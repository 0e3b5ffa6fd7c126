"""What a store remembers: one NamedTuple a kind of record, of integers and text alone.

TABLES says of each kind which fields identify a record and by which ones records are looked
up besides; an index, or the key, is also usable by its first fields. Networks and
addresses appear as numbers: the network's own, and the ordinal within it. `*_ns` are
nanoseconds; `since_ns`, `start_ns` and `end_ns` by the wall clock, for people to read, all
others by the clock since boot, which nobody can set.
"""

from typing import Any, NamedTuple, TypeAlias

Value: TypeAlias = int | str | None


class Network(NamedTuple):
    """A network as the gateway would write it, behind a bridge of the host."""

    number: int
    bridge: str
    spec: str


class Lease(NamedTuple):
    """An address in use. `generation` is never given twice by one store.

    `publications` is how many there are of it: should damage to the file hide one of them,
    the count tells.
    """

    network: int
    ordinal: int
    generation: int
    publications: int
    owner: str | None
    key: str | None
    since_ns: int


class Label(NamedTuple):
    """One label of a lease."""

    network: int
    ordinal: int
    name: str
    value: str


class Publication(NamedTuple):
    """`port_count` host ports that lead to a leased address; host_ip 0 is every address."""

    network: int
    ordinal: int
    host_ip: int
    protocol: str
    host_port: int
    port_count: int
    container_port: int


class Reservation(NamedTuple):
    """An address kept for an owner, or out of use, whatever boots in between."""

    network: int
    ordinal: int
    owner: str | None
    since_ns: int


class Cooldown(NamedTuple):
    """A released address that is not to be given again before `ready_ns`."""

    network: int
    ordinal: int
    ready_ns: int


class LastHolder(NamedTuple):
    """Who held an address last, and until when he gets it again if it is free."""

    network: int
    ordinal: int
    owner: str
    key: str | None
    until_ns: int


class GcCandidate(NamedTuple):
    """A lease whose owner was not among the living when somebody looked."""

    network: int
    ordinal: int
    generation: int
    seen_ns: int


class EndedLease(NamedTuple):
    """A lease that has ended, numbered in the order in which they did."""

    number: int
    network: int
    ordinal: int
    generation: int
    owner: str | None
    key: str | None
    start_ns: int
    end_ns: int


Record: TypeAlias = (
    Network
    | Lease
    | Label
    | Publication
    | Reservation
    | Cooldown
    | LastHolder
    | GcCandidate
    | EndedLease
)


class TableSpec(NamedTuple):
    """The fields that identify a record of a kind, and those it is looked up by besides."""

    key: tuple[str, ...]
    indexes: tuple[tuple[str, ...], ...] = ()


TABLES: dict[type[Any], TableSpec] = {
    Network: TableSpec(("number",)),
    Lease: TableSpec(("network", "ordinal"), (("network", "owner", "key"),)),
    Label: TableSpec(("network", "ordinal", "name"), (("network", "name", "value"),)),
    Publication: TableSpec(("network", "ordinal", "host_ip", "protocol", "host_port")),
    Reservation: TableSpec(("network", "ordinal"), (("network", "owner"),)),
    Cooldown: TableSpec(("network", "ordinal"), (("network", "ready_ns"),)),
    LastHolder: TableSpec(
        ("network", "ordinal"), (("network", "owner", "key"), ("network", "until_ns"))
    ),
    GcCandidate: TableSpec(("network", "ordinal")),
    EndedLease: TableSpec(("number",), (("network", "ordinal"),)),
}
