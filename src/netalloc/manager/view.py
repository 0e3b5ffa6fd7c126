"""Looking at a store: what is held, by what, and why something cannot be had.

Needs no privilege but to read the file, no kernel and no set-up, and never makes a writer wait.
"""

import os
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import NamedTuple, TypeVar

from netalloc.address_values import IP, as_ip
from netalloc.closing import Closing
from netalloc.errors import InvalidValueError
from netalloc.ipam import cells
from netalloc.ipam.addresses import Addresses
from netalloc.ipam.history import PastLease, as_moment, history, moment
from netalloc.ipam.lookup import containing_text, labels_of, leases_of
from netalloc.ipam.networks import (
    NetworkInfo,
    as_network_name,
    get,
    info,
    networks,
    ports_of,
    subnets_of,
)
from netalloc.ipam.publications import Publications
from netalloc.ipam.reasons import holders, place_of_address, why, why_port
from netalloc.ipam.reboot import AfterReboot
from netalloc.model import PortMapping
from netalloc.store.protocol import Store, Transaction
from netalloc.store.records import Attachment, Cooldown, EndedLease, Lease, Network, Reservation
from netalloc.values import as_int, as_optional_text, as_port, as_protocol, as_text, shown

T = TypeVar("T")


class Held(NamedTuple):
    """An address that is held: by what, since when (UTC), and what it publishes.

    `ips` has the address of each family, of which `ip` is the first. `attached` is what it is on
    the machine: a pair of interfaces or a tap, None where it is not attached.
    """

    network: str
    ip: IP
    owner: str | None
    key: str | None
    generation: int
    since: datetime
    labels: dict[str, str]
    ports: tuple[PortMapping, ...]
    ips: tuple[IP, ...]
    attached: Attachment | None


class Kept(NamedTuple):
    """An address that is reserved: for which owner, None for no one, and since when (UTC).

    `ips` has the address of each family, of which `ip` is the first.
    """

    network: str
    ip: IP
    owner: str | None
    since: datetime
    ips: tuple[IP, ...]


class Usage(NamedTuple):
    """How much of a network is in use; an address may be reserved and held, or cooling, too."""

    network: str
    capacity: int
    held: int
    free: int
    reserved: int
    cooling: int
    ports: int


class NetworkView(Closing):
    """What is in a store, read without disturbing anything.

    `store` is the path of a file, or a store that is open. Each call sees one moment. A context
    manager. Raises StoreError for a file that cannot be read.
    """

    def __init__(self, store: "str | os.PathLike[str] | Store") -> None:
        self._owned = isinstance(store, str | os.PathLike | bytes)
        if self._owned:
            from netalloc.store.sqlite.view import open_view

            store = open_view(store)  # type: ignore[arg-type, assignment]
        elif not callable(getattr(store, "read", None)):
            raise InvalidValueError(f"store {shown(store)} is neither a path nor a store")
        self._store: Store = store  # type: ignore[assignment]

    def networks(self) -> list[NetworkInfo]:
        """How each network is configured, by name."""
        return self.read(lambda tx: [info(network) for network in networks(tx)])

    def find(
        self,
        owner: str | None = None,
        *,
        network: str | None = None,
        label: str | None = None,
        containing: str | None = None,
        limit: int | None = None,
    ) -> list[Held]:
        """What is held: by an owner, in a network, with a label ("app=shop"), or all of it.

        By network and address. With `containing` those whose owner or address has that text in
        it, and no more than `limit`. O(found) for an owner or a label, else O(held).
        """
        owner = as_optional_text(owner, "owner")
        part = as_optional_text(containing, "text")
        most = None if limit is None else as_int(limit, "limit", 0, 1 << 32)
        pair: tuple[str, str] | None = None
        if label is not None:
            name, equals, value = (as_optional_text(label, "label", 5000) or "").partition("=")
            if not equals:
                raise InvalidValueError(f"label {shown(label)} is not name=value")
            pair = name, value
        name_of = None if network is None else as_network_name(network)

        def view(tx: Transaction) -> list[Held]:
            found: list[Held] = []
            for one in networks(tx) if name_of is None else [get(tx, name_of)]:
                leases = leases_of(tx, one.number, owner, pair)
                if part is not None:
                    leases = containing_text(subnets_of(one), leases, part)
                room = len(leases) if most is None else most - len(found)
                found += [_held(tx, one, lease) for lease in leases[:room]]
            return found

        return self.read(view)

    def who(self, what: IP | str) -> list[Held]:
        """What holds an address, or a host port ("tcp/8080"): empty where nothing does.

        O(what is found, with its labels and ports, and the networks there are).
        """
        port = _port(what)
        if port is None:
            ip = as_ip(what)

            def view(tx: Transaction) -> list[Held]:
                network, ordinal = place_of_address(tx, ip)
                lease = None if network is None else tx.table(Lease).get(network.number, ordinal)
                return [] if network is None or lease is None else [_held(tx, network, lease)]
        else:

            def view(tx: Transaction) -> list[Held]:
                return [_held(tx, *where) for where in holders(tx, *port)]

        return self.read(view)

    def lease_of(self, network: str, ip: IP, generation: int) -> tuple[Held, NetworkInfo] | None:
        """One lease, and how its network is configured; None where it has ended."""

        def view(tx: Transaction) -> tuple[Held, NetworkInfo] | None:
            one = get(tx, network)
            lease = tx.table(Lease).get(one.number, subnets_of(one).ordinal(ip))
            if lease is None or lease.generation != generation:
                return None
            return _held(tx, one, lease), info(one)

        return self.read(view)

    def why(self, what: IP | str) -> str:
        """Why an address or a host port ("tcp/8080") can be had now, or cannot, in a sentence.

        What the host's own sockets hold is not known here.
        """
        port = _port(what)
        if port is not None:
            return self.read(lambda tx: why_port(tx, *port))
        ip = as_ip(what)
        return self.read(lambda tx: why(tx, ip))

    def reserved(self, network: str | None = None) -> list[Kept]:
        """The reservations, of one network or of all; by network and address."""
        name_of = None if network is None else as_network_name(network)

        def view(tx: Transaction) -> list[Kept]:
            chosen = networks(tx) if name_of is None else [get(tx, name_of)]
            return [kept for one in chosen for kept in _kept(tx, one)]

        return self.read(view)

    def ended(self, owner: str) -> list[tuple[str, IP, PastLease]]:
        """What an owner held before: network, address and when, oldest first.

        O(what is remembered): the last 10,000 leases that ended, for 30 days.
        """
        plain = as_text(owner, "owner")
        return self.read(lambda tx: list(_ended(tx, plain)))

    def is_free(self, ip: IP | str) -> bool:
        """Whether an address can be had now by any owner: neither held, cooling nor reserved."""
        plain = as_ip(ip)

        def view(tx: Transaction) -> bool:
            network, ordinal = place_of_address(tx, plain)
            return (
                network is not None
                and tx.table(Lease).get(network.number, ordinal) is None
                and tx.table(Reservation).get(network.number, ordinal) is None
                and not Addresses.of(network).cooling_for(tx, ordinal)
            )

        return self.read(view)

    def network_of(self, ip: IP | str) -> str | None:
        """The name of the network that can give an address; None where none does."""
        plain = as_ip(ip)

        def view(tx: Transaction) -> str | None:
            network, _ = place_of_address(tx, plain)
            return None if network is None else network.name

        return self.read(view)

    def counters(self) -> tuple[int, int]:
        """How many leases were ever given, and how many have ended: constant time."""
        return self.read(lambda tx: (tx.last("generation"), tx.last("past")))

    def busiest(self, most: int) -> list[tuple[str, tuple[int, int]]]:
        """The owners that hold most addresses, and how many, with how many ports. O(held)."""
        return self.read(lambda tx: _busiest(tx, most))

    def newest(self) -> datetime | None:
        """When the newest lease began, by the wall clock; None without leases. O(held)."""

        def view(tx: Transaction) -> datetime | None:
            since = max((lease.since_ns for lease in tx.table(Lease).all()), default=None)
            return None if since is None else moment(since)

        return self.read(view)

    def usage(self) -> list[Usage]:
        """How much of each network is in use, by name. O(held)."""
        return self.read(lambda tx: [_usage(tx, network) for network in networks(tx)])

    def cells(
        self, network: str, first: int = 0, count: int | None = None, *, most: int = 1 << 16
    ) -> cells.Cells:
        """How many addresses are in each state, part by part, for a network to be drawn.

        See ipam/cells.py. Raises NotAllocatedError for a network that is not there,
        InvalidValueError for a part that is none. 1 ms for a /8 in memory, 40 in a file.
        """
        name = as_network_name(network)
        return self.read(lambda tx: cells.cells(tx, get(tx, name), first, count, most))

    def history(self, ip: IP | str, at: datetime | None = None) -> list[PastLease]:
        """What held an address, oldest first; with `at`, what did at that moment."""
        plain, at = as_ip(ip), None if at is None else as_moment(at, "at")

        def view(tx: Transaction) -> list[PastLease]:
            network, ordinal = place_of_address(tx, plain)
            return [] if network is None else history(tx, network.number, ordinal, at)

        return self.read(view)

    def close(self) -> None:
        """Close the file; twice is no error."""
        if self._owned:
            self._store.close()

    def read(self, view: Callable[[Transaction], T]) -> T:
        """What a function makes of one moment of the store."""

        def seen(tx: Transaction) -> T:
            # A file that was not written to since the machine came up says what was before.
            boot = getattr(self._store, "boot", None)
            ended = boot is not None and getattr(tx, "boot", boot) != boot
            return view(AfterReboot(tx) if ended else tx)

        return self._store.view(seen)


def _port(what: object) -> tuple[str, int] | None:
    """The protocol and number of "tcp/8080"; None for what is no port."""
    if not isinstance(what, str) or "/" not in what or len(what) > 100:
        return None
    protocol, _, number = str.__str__(what).partition("/")
    return as_protocol(protocol), as_port(
        int(number) if number.isascii() and number.isdigit() else number
    )


def _held(tx: Transaction, network: Network, lease: Lease) -> Held:
    subnets = subnets_of(network)
    publications = Publications(network.number, subnets, ports_of(network))
    rows = publications.of(tx, lease)
    return Held(
        network.name,
        subnets.address(lease.ordinal),
        lease.owner,
        lease.key,
        lease.generation,
        moment(lease.since_ns),
        labels_of(tx, lease),
        tuple([one for row in rows for one in publications.mappings(row, lease.owner)]),
        subnets.addresses(lease.ordinal),
        tx.table(Attachment).get(lease.network, lease.ordinal),
    )


def _kept(tx: Transaction, network: Network) -> list[Kept]:
    subnets = subnets_of(network)
    rows = tx.table(Reservation).where("network", equal=(network.number,))
    return [
        Kept(
            network.name,
            subnets.address(row.ordinal),
            row.owner,
            moment(row.since_ns),
            subnets.addresses(row.ordinal),
        )
        for row in sorted(rows, key=lambda row: row.ordinal)
    ]


def _busiest(tx: Transaction, most: int) -> list[tuple[str, tuple[int, int]]]:
    found: dict[str, tuple[int, int]] = {}
    for lease in tx.table(Lease).all():
        if lease.owner is not None:
            held, ports = found.get(lease.owner, (0, 0))
            found[lease.owner] = (held + 1, ports + lease.publications)
    return sorted(found.items(), key=lambda pair: (-pair[1][0], -pair[1][1], pair[0]))[:most]


def _ended(tx: Transaction, owner: str) -> Iterator[tuple[str, IP, PastLease]]:
    by_number = {network.number: network for network in networks(tx)}
    for row in sorted(tx.table(EndedLease).all()):
        network = by_number.get(row.network)
        if row.owner == owner and network is not None:
            past = PastLease(row.owner, row.key, moment(row.start_ns), moment(row.end_ns))
            yield network.name, subnets_of(network).address(row.ordinal), past


def _usage(tx: Transaction, network: Network) -> Usage:
    addresses = Addresses.of(network)
    number = (network.number,)
    leases = tx.table(Lease).where("network", equal=number)
    reserved = len(tx.table(Reservation).where("network", equal=number))
    now = addresses.clock()
    cooling = [
        one for one in tx.table(Cooldown).where("network", equal=number) if one.ready_ns > now
    ]
    held = {lease.ordinal for lease in leases}
    kept = {one.ordinal for one in tx.table(Reservation).where("network", equal=number)}
    taken = held | kept | {one.ordinal for one in cooling}
    capacity = addresses.subnets.capacity
    return Usage(
        network.name,
        capacity,
        len(held),
        capacity - len(taken),
        reserved,
        len(cooling),
        sum(lease.publications for lease in leases),
    )
