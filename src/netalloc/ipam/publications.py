"""Host ports for leases: which ones, and the mappings that follow."""

from __future__ import annotations

from collections.abc import Callable

from netalloc.address_values import IP
from netalloc.errors import (
    InUseError,
    InvalidValueError,
    NotAllocatedError,
    OutOfRangeError,
    StoreError,
)
from netalloc.ipam.change import Change
from netalloc.ipam.places import by_place, conflict, entry_of, in_order, place_of
from netalloc.logs import Log
from netalloc.model import PortMapping, PortRequest
from netalloc.port_bitmaps import NAMED, SIZE, Ordinals, addresses_with
from netalloc.ports import PortAllocator, Probe
from netalloc.store.records import Lease, Publication, new_lease, new_publication

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from netalloc.ipam.subnets import Subnets
    from netalloc.store.protocol import Transaction

log = Log(__name__)

# Says why the host cannot publish that port there, or None: (port, protocol, host address).
HostCheck = Callable[[int, str, IP | None], str | None]


class _InTransaction:
    """The store's bitmaps, as they are in the transaction that is under way."""

    tx: Transaction
    bitmap: Callable[[str, int], Ordinals]

    def enter(self, tx: Transaction) -> None:
        self.tx = tx
        self.bitmap = tx.bitmap  # asked for several times a port

    def holders(self, port: int, protocol: str) -> Iterator[str]:
        rows = holding(self.tx, port, protocol, limit=NAMED + 1)
        return (str(place_of(row.host_ip)) for row in rows)

    def known(self, name: str) -> bool:
        return self.tx.known(name)

    def drop(self, name: str) -> None:
        self.tx.drop(name)


class Publications:
    """The published ports of one network's leases. Ports are the host's: all networks share them.

    `probe` is asked about each automatic pick, `host_check` about what is asked for by number.
    """

    def __init__(
        self,
        number: int,
        subnets: Subnets,
        ports: range,
        probe: Probe | None = None,
        host_check: HostCheck | None = None,
    ) -> None:
        self._number = number
        self._subnets = subnets
        self._address = subnets.address
        self._family = subnets.first.version if len(subnets.each) == 1 else 0  # 0: both
        self._host_check = host_check
        self._bitmaps = _InTransaction()
        self.ports = PortAllocator(ports, probe=probe, bitmaps=self._bitmaps)

    def publish(
        self,
        change: Change,
        requests: Sequence[tuple[Lease, PortRequest]],
        *,
        check_host: bool = True,
    ) -> list[PortMapping]:
        """Host ports for all the requests, or for none; the mappings in the same order.

        A request has a mapping in each family that it is of, the IPv4 one first, with one
        number. Raises InvalidValueError where it names an address of a family that the network
        does not have. The leases must have counted them. Ports asked for by number come first,
        then the adjacent ones, and what is picked automatically last, so that no pick takes what
        a later request names.
        """
        self._bitmaps.enter(change.tx)
        host: list[int] = [0] * len(requests)
        places = [request.host_ip and self.place(request.host_ip) for _, request in requests]
        picks: dict[tuple[str, IP | None], list[int]] = {}
        blocks: list[int] = []
        for i, (_, request) in enumerate(requests):
            first, place = request.host_port, places[i]
            if first is not None:
                host[i] = first
                self._reserve(change, request, first, place, check_host)
                continue
            if place is not None:
                self._ask_host(0, request.protocol, place, check_host)
            if request.count > 1:
                blocks.append(i)
            else:
                picks.setdefault((request.protocol, place), []).append(i)
        for i in blocks:
            host[i] = self._block(requests[i][1], places[i])
        for (protocol, ip), indexes in picks.items():
            for i, port in zip(
                indexes, self.ports.acquire_many(len(indexes), protocol, ip), strict=True
            ):
                host[i] = port
        rows: list[Publication] = []
        mappings: list[PortMapping] = []
        for (lease, request), place, port in zip(requests, places, host, strict=True):
            row = new_publication(
                (
                    lease.network,
                    lease.ordinal,
                    0 if place is None else entry_of(place),
                    request.protocol,
                    port,
                    request.count,
                    request.container_port or port,
                )
            )
            rows.append(row)
            mappings += self.mappings(row, lease.owner)
        change.tx.table(Publication).add(rows)
        change.add += mappings
        return mappings

    def unpublish(self, change: Change, publications: Iterable[Publication]) -> list[PortMapping]:
        """Take the ports back, which must be published; the mappings that go."""
        self._bitmaps.enter(change.tx)
        rows = list(publications)
        change.tx.table(Publication).remove(rows)
        gone: list[PortMapping] = []
        for row in rows:
            gone += self.mappings(row)
        change.remove += gone
        for row in rows:
            _, _, host_ip, protocol, first, count, _ = row
            place = place_of(host_ip) if host_ip else None
            for port in range(first, first + count):
                self.ports.release(port, protocol, place)
        return gone

    def count(self, change: Change, lease: Lease, more: int) -> Lease | None:
        """Enter in a lease that it has so many publications more; the lease as it is then.

        None, with nothing entered, where it is another one by now, or as it was not known.
        """
        network, ordinal, generation, publications, owner, key, since_ns = lease
        counted = new_lease(
            (network, ordinal, generation, publications + more, owner, key, since_ns)
        )
        return counted if change.tx.table(Lease).replace(lease, counted) else None

    def mappings(self, row: Publication, owner: str | None = None) -> list[PortMapping]:
        """What the kernel is told of a publication: one of each family that it is in, IPv4 first.

        Where it is on every address of a family, the host address of its mapping is None.
        """
        _, ordinal, host_ip, protocol, host_port, count, container_port = row
        at = place_of(host_ip) if host_ip else None
        if self._family:
            to = self._address(ordinal), container_port
            return [PortMapping(host_port, to, protocol, at, count, owner)]
        ips = self._subnets.addresses(ordinal)
        if at is not None:
            ips, at = (ips[at.version == 6],), at if int(at) else None
        return [
            PortMapping(host_port, (ip, container_port), protocol, at, count, owner) for ip in ips
        ]

    def place(self, host_ip: IP) -> IP | None:
        """Where a port of this network is published that is asked for at a host address.

        None, as for no address, where it is every one of the family that the network has.
        Raises InvalidValueError where the network has none of the address's family.
        """
        if self._family:
            if host_ip.version != self._family:
                raise InvalidValueError(
                    f"host address {host_ip} is of IPv{host_ip.version}, and {self._subnets} has "
                    f"addresses of IPv{self._family} alone"
                )
            if not int(host_ip):
                return None
        return host_ip

    def of(self, tx: Transaction, lease: Lease) -> list[Publication]:
        """The publications of a lease, by host port. Raises StoreError when one is missing."""
        return self.of_current(tx, tx.table(Lease).get(lease.network, lease.ordinal) or lease)

    def of_current(self, tx: Transaction, lease: Lease) -> list[Publication]:
        """The same of a lease that was read in this transaction, and is as it is now."""
        where = (lease.network, lease.ordinal)
        rows = tx.table(Publication).where("network", "ordinal", equal=where)
        if lease.publications != len(rows):
            raise StoreError(
                f"{self._address(lease.ordinal)} publishes {lease.publications} times, but "
                f"{len(rows)} can be read: check() says what else is wrong, repair() mends it"
            )
        if not rows:
            return rows
        if len(rows) > 1:
            rows = sorted(rows, key=lambda row: (row.host_port, row.protocol, by_place(row)))
        return rows

    def find_own(
        self, tx: Transaction, lease: Lease, host_port: int, protocol: str, ip: IP | None
    ) -> Publication:
        """The publication of a lease that begins with that port; without `ip` on any address.

        O(1) where it is on every address or `ip` is given. Raises NotAllocatedError, and
        InvalidValueError where it is on several addresses, or `ip` cannot be one of them.
        """
        table, own = tx.table(Publication), (lease.network, lease.ordinal)
        place = None if ip is None else self.place(ip)
        row = table.get(*own, entry_of(place), protocol, host_port)
        if row is not None:
            return row
        begin = table.where("protocol", "host_port", equal=(protocol, host_port))
        found = [row for row in begin if row[:2] == own and ip is None]
        if not found:
            self.of(tx, lease)  # raises where it may be one that cannot be read
            where = self._address(lease.ordinal)
            raise NotAllocatedError(f"{where} does not publish port {host_port}/{protocol}")
        if len(found) > 1:
            on = ", ".join(str(place_of(row.host_ip)) for row in found)
            raise InvalidValueError(
                f"port {host_port}/{protocol} is published on {on}: name the host address"
            )
        return found[0]

    def desired(self, tx: Transaction, *, owners: bool = True) -> list[PortMapping]:
        """All that the kernel should have for this network, with the owners if they are wanted."""
        number = (self._number,)
        rows = tx.table(Publication).where("network", equal=number)
        if not rows:
            return []
        if not owners:
            return [mapping for row in rows for mapping in self.mappings(row)]
        leases = tx.table(Lease).where("network", equal=number)
        owner_of = {lease.ordinal: lease.owner for lease in leases}
        return [
            mapping for row in rows for mapping in self.mappings(row, owner_of.get(row.ordinal))
        ]

    def check_same(self, tx: Transaction, lease: Lease, requests: Sequence[PortRequest]) -> None:
        """Raise InUseError where a lease publishes something else than is requested."""
        left = rows = self.of(tx, lease)
        for request in sorted(requests, key=lambda one: one.host_port is None):
            place = request.host_ip and self.place(request.host_ip)
            host_ip = entry_of(place)
            met = next((row for row in left if _meets(row, request, host_ip)), None)
            if met is None:
                break
            left = [row for row in left if row is not met]
        if len(rows) != len(requests) or left:
            has = ", ".join(_words(row) for row in rows) or "no ports"
            asked = ", ".join(map(_asked, requests))
            raise InUseError(
                f"{lease.owner} holds {self._address(lease.ordinal)} as {lease.key} with "
                f"{has}, and asks for it with {asked}: publish and release_port change ports",
                lease.owner,
            )

    def _reserve(
        self,
        change: Change,
        request: PortRequest,
        first: int,
        place: IP | None,
        check_host: bool,
    ) -> None:
        if first + request.count > 65536:
            raise OutOfRangeError(f"{request.count} ports from {first} do not end by 65535")
        for port in range(first, first + request.count):
            try:
                self.ports.reserve(port, request.protocol, place)
            except InUseError as error:
                holder = self._holder(change.tx, port, request.protocol, place)
                raise InUseError(
                    f"{error}, by {holder}" if holder else str(error), holder
                ) from None
            self._ask_host(port, request.protocol, place, check_host)

    def _ask_host(self, port: int, protocol: str, place: IP | None, check_host: bool) -> None:
        """Raise InUseError for a port, or an address alone (port 0), that the host cannot publish.

        Where the caller has asked for no check, it is logged.
        """
        if self._host_check is None:
            return
        reason = self._host_check(port, protocol, place)
        if reason is None:
            return
        if check_host:
            raise InUseError(f"{reason} (check_host=False publishes it all the same)", reason)
        log.warning("published all the same: %s", reason)

    def _block(self, request: PortRequest, place: IP | None) -> int:
        if abs(self.ports.ports.step) != 1:
            raise OutOfRangeError(
                f"{request.count} adjacent ports are not to be had from {self.ports.ports}"
            )
        block = self.ports.acquire_block(request.count, request.protocol, place)
        return min(block[0], block[-1])

    def _holder(self, tx: Transaction, port: int, protocol: str, place: IP | None) -> str | None:
        """What keeps a port from that place; looked up only to name it in an error.

        None where what was found first, of the many that there may be, is elsewhere.
        """
        for limit in (1, NAMED):  # as a rule the first one has a name
            for row in holding(tx, port, protocol, limit):
                if not conflict(place_of(row.host_ip), place):
                    continue
                lease = tx.table(Lease).get(row.network, row.ordinal)
                if lease is not None and lease.owner is not None:
                    return lease.owner
                if row.network == self._number:
                    return f"the holder of {self._address(row.ordinal)}"
        return None


def holding(tx: Transaction, port: int, protocol: str, limit: int = -1) -> list[Publication]:
    """The publications of a host port, on whatever address of the host and by any network.

    At most `limit` of them, unless that is -1. Those that begin with it come first, then the
    blocks that it is in the middle of: these begin further down. All between is in use, no
    block reaches over a publication on every address, and how many addresses hold a port is
    known. So the look downward ends as soon as there can be no more: O(found, and publications
    on other single addresses that begin within the blocks found).
    """
    name, table = f"ports/{protocol}/used", tx.table(Publication)
    if not tx.known(name) or port not in (used := tx.bitmap(name, SIZE)):
        return []
    wanted, n = 0, 1
    while True:
        rows = table.up_to("protocol", "host_port", equal=(protocol, port), limit=n)
        found = [row for row in rows if port < row.host_port + row.port_count]
        if len(found) == limit or len(rows) < n or not all(row.host_ip for row in rows):
            break
        if not wanted:
            wanted = addresses_with(tx, port, protocol)
            if limit >= 0:
                wanted = min(wanted, limit)
        free = used.next_free(rows[-1].host_port)
        if len(found) >= wanted or (free is not None and free < port):
            break
        n = max(wanted, 4 * n)
    found.sort(key=lambda row: (-row.host_port, in_order(row)))
    return found


def _meets(row: Publication, request: PortRequest, host_ip: int | str) -> bool:
    """Whether a publication is what was requested, whichever port was picked for it."""
    return (
        row.protocol == request.protocol
        and row.port_count == request.count
        and row.host_ip == host_ip
        and row.host_port == (request.host_port or row.host_port)
        and row.container_port == (request.container_port or row.host_port)
    )


def _words(row: Publication) -> str:
    count = f" ({row.port_count} ports)" if row.port_count > 1 else ""
    return f"{row.host_port}/{row.protocol} -> {row.container_port}{count}"


def _asked(request: PortRequest) -> str:
    count = f" ({request.count} ports)" if request.count > 1 else ""
    return f"{request.host_port or 'any'}/{request.protocol} -> {request.container_port}{count}"
