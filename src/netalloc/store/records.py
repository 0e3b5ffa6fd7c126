"""What a store remembers: one NamedTuple a kind of record, of exact int, str and None alone.

A change of these classes is a new version of the store's file: see store/sqlite/versions.py.
TABLES says of each kind which fields identify a record and by which ones records are looked
up besides; an index, or the key, is also usable by its first fields. Networks and
addresses appear as numbers: the network's own, and the ordinal within it. `*_ns` are
nanoseconds; `since_ns`, `start_ns` and `end_ns` by the wall clock, for people to read, all
others by the clock since boot, which cannot be set.
"""

from __future__ import annotations

from netalloc._alloc import RecordMaker
from netalloc.errors import InvalidValueError
from netalloc.light import NamedTuple
from netalloc.values import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

Value: TypeAlias = int | str | None
_INT = 1 << 63  # SQLite's integers are signed
_ORDINAL = 1 << 64  # an IPv6 /64 has as many addresses


def check_plain(record: Record) -> None:
    """Raise InvalidValueError unless each value is exactly int, str or None, and can be stored.

    A subclass (bool, an IntEnum) would be written as what it stands for and read as such,
    and what is written has to be what its checksum was made of.
    """
    value: Any
    for value in record:
        kind = type(value)
        if kind is int:
            if not -0x8000000000000000 <= value <= 0x7FFFFFFFFFFFFFFF:  # constants: a third faster
                _check_large(record)
        elif value is not None:
            if kind is not str:
                raise InvalidValueError(
                    f"{_place(record, value)} is of {kind.__name__}, not int, str or None"
                )
            if not value.isascii() and _has_surrogate(value):
                raise InvalidValueError(f"{_place(record, value)} has a surrogate")


def _check_large(record: Record) -> None:
    for field, value in zip(record._fields, record, strict=True):
        low, high = (0, _ORDINAL) if field == "ordinal" else (-_INT, _INT)
        if type(value) is int and not low <= value < high:
            raise InvalidValueError(
                f"{_place(record, value)} is not within {low} to {high - 1}, what can be stored"
            )


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _place(record: Record, value: object) -> str:
    pairs = zip(record._fields, record, strict=True)
    field = next(field for field, found in pairs if found is value)
    return f"{type(record).__name__}.{field}: {shown(value)}"


class Network(NamedTuple):
    """A network and all that it was configured with; each process that opens it gets this.

    `subnet` (IPv4) and `subnet6` are written as their gateway would ("10.88.0.1/16"), one of
    them may be None. `mode` is "bridge" or "routed", and `bridge` is None in the latter.
    `exclude` are subnets and addresses of both families with commas between, "" for none.
    `backend` is "nftables", "iptables" or "null", and `ports` a range as its first and last
    one ("49153-65535", "8000-8100/2", "8010-8000"); each is "" while it was not stated yet,
    as in a record of version 2. `forward` is 0 or 1, `isolation` "open" or "guarded";
    `services` are the ports of the host that guarded containers reach, "53/udp,22/tcp".
    """

    number: int
    name: str
    bridge: str | None
    mode: str
    subnet: str | None
    subnet6: str | None
    exclude: str
    backend: str
    ports: str
    cooldown_ns: int
    sticky_ns: int
    forward: int
    isolation: str
    services: str


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


# Of a tuple of its fields, in a fifth of the time of the class's own constructor.
new_lease = RecordMaker(Lease).make


class Label(NamedTuple):
    """One label of a lease."""

    network: int
    ordinal: int
    name: str
    value: str


class Publication(NamedTuple):
    """`port_count` host ports that lead to a lease's addresses, the first to `container_port`.

    `host_ip` 0 is every address of the host in each family that the network has. One address of
    IPv4 is its number; one of IPv6 is text, and so are "0.0.0.0" and "::" where the network has
    both families.
    """

    network: int
    ordinal: int
    host_ip: int | str
    protocol: str
    host_port: int
    port_count: int
    container_port: int


new_publication = RecordMaker(Publication).make


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
    """Who held an address last, and until when that owner gets it again if it is free."""

    network: int
    ordinal: int
    owner: str
    key: str | None
    until_ns: int


class GcCandidate(NamedTuple):
    """A lease whose owner was not among the living when gc looked."""

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


new_ended = RecordMaker(EndedLease).make


class Attachment(NamedTuple):
    """What a lease is on the machine: a pair of interfaces, or a tap. It ends with the lease.

    `kind` is "veth" or "tap". `interface` and `index` are of the host's end; `namespace` says in
    which network namespace the other one is and `peer` what it is called there, both None of a
    tap. `mac` is the container's. `made` is 0 while it is being made: with a killed process it
    stays so, and what there is of the interface is not to be relied on.
    """

    network: int
    ordinal: int
    generation: int
    kind: str
    interface: str
    index: int  # type: ignore[assignment]  # in the place of tuple.index, which none of us calls
    namespace: str | None
    peer: str | None
    mac: str
    mtu: int
    made: int = 1


class Allowance(NamedTuple):
    """Two leases of a guarded network that reach each other. It ends with either.

    `ordinal` is the smaller one of the two. `other` is an ordinal as well, and one from 2**63 on is
    there less 2**64.
    """

    network: int
    ordinal: int
    other: int


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
    | Attachment
    | Allowance
)


class TableSpec(NamedTuple):
    """The fields that identify a record of a kind, and those it is looked up by besides.

    `descending`: the indexes that are gone through downward, of two fields each.
    """

    key: tuple[str, ...]
    indexes: tuple[tuple[str, ...], ...] = ()
    descending: tuple[tuple[str, ...], ...] = ()


TABLES: dict[type[Any], TableSpec] = {
    Network: TableSpec(("number",), (("name",),)),
    Lease: TableSpec(("network", "ordinal"), (("network", "owner", "key"),)),
    Label: TableSpec(("network", "ordinal", "name"), (("network", "name", "value"),)),
    Publication: TableSpec(
        ("network", "ordinal", "host_ip", "protocol", "host_port"),
        (("protocol", "host_port"),),
        descending=(("protocol", "host_port"),),
    ),
    Reservation: TableSpec(("network", "ordinal"), (("network", "owner"),)),
    Cooldown: TableSpec(("network", "ordinal"), (("network", "ready_ns"),)),
    LastHolder: TableSpec(
        ("network", "ordinal"), (("network", "owner", "key"), ("network", "until_ns"))
    ),
    GcCandidate: TableSpec(("network", "ordinal")),
    EndedLease: TableSpec(("number",), (("network", "ordinal"),)),
    Attachment: TableSpec(("network", "ordinal"), (("index",),)),
    Allowance: TableSpec(("network", "ordinal", "other"), (("network", "other"),)),
}
