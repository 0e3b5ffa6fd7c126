"""Host ports for leases: which ones, and the mappings that follow."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address

from netalloc.address_values import as_ipv4
from netalloc.errors import (
    InUseError,
    InvalidValueError,
    NotAllocatedError,
    OutOfRangeError,
    StoreError,
)
from netalloc.ipam.change import Change
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
HostCheck = Callable[[int, str, IPv4Address | None], str | None]


class _InTransaction:
    """The store's bitmaps, as they are in the transaction that is under way."""

    tx: Transaction
    bitmap: Callable[[str, int], Ordinals]

    def enter(self, tx: Transaction) -> None:
        self.tx = tx
        self.bitmap = tx.bitmap  # asked for several times a port

    def holders(self, port: int, protocol: str) -> Iterator[str]:
        rows = holding(self.tx, port, protocol, limit=NAMED + 1)
        return (str(IPv4Address(row.host_ip)) for row in rows)

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
        subnet: Subnets,
        ports: range,
        probe: Probe | None = None,
        host_check: HostCheck | None = None,
    ) -> None:
        self._number = number
        self._subnet = subnet
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

        The leases must have counted them. Ports asked for by number come first, then the
        adjacent ones, and what is picked automatically last, so that no pick takes what a
        later request names.
        """
        self._bitmaps.enter(change.tx)
        host: list[int] = [0] * len(requests)
        picks: dict[tuple[str, IPv4Address | None], list[int]] = {}
        blocks: list[int] = []
        for i, (_, request) in enumerate(requests):
            first = request.host_port
            if first is not None:
                host[i] = first
                self._reserve(change, request, first, check_host)
                continue
            if request.host_ip is not None:
                self._ask_host(0, request, check_host)
            if request.count > 1:
                blocks.append(i)
            else:
                picks.setdefault((request.protocol, request.host_ip), []).append(i)
        for i in blocks:
            host[i] = self._block(requests[i][1])
        for (protocol, ip), indexes in picks.items():
            for i, port in zip(
                indexes, self.ports.acquire_many(len(indexes), protocol, ip), strict=True
            ):
                host[i] = port
        rows, mappings = [], []
        for (lease, request), port in zip(requests, host, strict=True):
            row = new_publication(
                (
                    lease.network,
                    lease.ordinal,
                    int(request.host_ip) if request.host_ip else 0,
                    request.protocol,
                    port,
                    request.count,
                    request.container_port or port,
                )
            )
            rows.append(row)
            mappings.append(self.mapping(row, lease.owner))
        change.tx.table(Publication).add(rows)
        change.add += mappings
        return mappings

    def unpublish(self, change: Change, publications: Iterable[Publication]) -> list[PortMapping]:
        """Take the ports back, which must be published; the mappings that go."""
        self._bitmaps.enter(change.tx)
        rows = list(publications)
        change.tx.table(Publication).remove(rows)
        gone = [self.mapping(row) for row in rows]
        change.remove += gone
        for row, mapping in zip(rows, gone, strict=True):
            for port in mapping.ports:
                self.ports.release(port, row.protocol, mapping.host_ip)
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

    def mapping(self, row: Publication, owner: str | None = None) -> PortMapping:
        """What the kernel is told of a publication."""
        _, ordinal, host_ip, protocol, host_port, port_count, container_port = row
        return PortMapping(
            host_port,
            (as_ipv4(self._subnet.address(ordinal), "destination"), container_port),
            protocol,
            IPv4Address(host_ip) if host_ip else None,
            port_count,
            owner,
        )

    def of(self, tx: Transaction, lease: Lease) -> list[Publication]:
        """The publications of a lease, by host port. Raises StoreError when one is missing."""
        return self.of_current(tx, tx.table(Lease).get(lease.network, lease.ordinal) or lease)

    def of_current(self, tx: Transaction, lease: Lease) -> list[Publication]:
        """The same of a lease that was read in this transaction, and is as it is now."""
        where = (lease.network, lease.ordinal)
        rows = tx.table(Publication).where("network", "ordinal", equal=where)
        if lease.publications != len(rows):
            raise StoreError(
                f"{self._subnet.address(lease.ordinal)} publishes {lease.publications} times, but "
                f"{len(rows)} can be read: check() says what else is wrong, repair() mends it"
            )
        if not rows:
            return rows
        return sorted(rows, key=lambda row: (row.host_port, row.protocol, row.host_ip))

    def find_own(
        self, tx: Transaction, lease: Lease, host_port: int, protocol: str, ip: IPv4Address | None
    ) -> Publication:
        """The publication of a lease that begins with that port; without `ip` on any address.

        O(1) where it is on every address or `ip` is given. Raises NotAllocatedError, and
        InvalidValueError where it is on several addresses.
        """
        table, own = tx.table(Publication), (lease.network, lease.ordinal)
        row = table.get(*own, int(ip) if ip else 0, protocol, host_port)
        if row is not None:
            return row
        begin = table.where("protocol", "host_port", equal=(protocol, host_port))
        found = [row for row in begin if row[:2] == own and ip is None]
        if not found:
            self.of(tx, lease)  # raises where it may be one that cannot be read
            where = self._subnet.address(lease.ordinal)
            raise NotAllocatedError(f"{where} does not publish port {host_port}/{protocol}")
        if len(found) > 1:
            on = ", ".join(str(IPv4Address(row.host_ip)) for row in found)
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
            return list(map(self.mapping, rows))
        leases = tx.table(Lease).where("network", equal=number)
        owner_of = {lease.ordinal: lease.owner for lease in leases}
        return [self.mapping(row, owner_of.get(row.ordinal)) for row in rows]

    def check_same(self, tx: Transaction, lease: Lease, requests: Sequence[PortRequest]) -> None:
        """Raise InUseError where a lease publishes something else than is requested."""
        left = rows = self.of(tx, lease)
        for request in sorted(requests, key=lambda one: one.host_port is None):
            met = next((row for row in left if _meets(row, request)), None)
            if met is None:
                break
            left = [row for row in left if row is not met]
        if len(rows) != len(requests) or left:
            has = ", ".join(_words(row) for row in rows) or "no ports"
            asked = ", ".join(map(_asked, requests))
            raise InUseError(
                f"{lease.owner} holds {self._subnet.address(lease.ordinal)} as {lease.key} with "
                f"{has}, and asks for it with {asked}: publish and release_port change ports",
                lease.owner,
            )

    def _reserve(self, change: Change, request: PortRequest, first: int, check_host: bool) -> None:
        if first + request.count > 65536:
            raise OutOfRangeError(f"{request.count} ports from {first} do not end by 65535")
        for port in range(first, first + request.count):
            try:
                self.ports.reserve(port, request.protocol, request.host_ip)
            except InUseError as error:
                holder = self._holder(change.tx, port, request.protocol)
                raise InUseError(
                    f"{error}, by {holder}" if holder else str(error), holder
                ) from None
            self._ask_host(port, request, check_host)

    def _ask_host(self, port: int, request: PortRequest, check_host: bool) -> None:
        """Raise InUseError for a port, or an address alone (port 0), that the host cannot publish.

        Where the caller has asked for no check, it is logged.
        """
        if self._host_check is None:
            return
        reason = self._host_check(port, request.protocol, request.host_ip)
        if reason is None:
            return
        if check_host:
            raise InUseError(f"{reason} (check_host=False publishes it all the same)", reason)
        log.warning("published all the same: %s", reason)

    def _block(self, request: PortRequest) -> int:
        if abs(self.ports.ports.step) != 1:
            raise OutOfRangeError(
                f"{request.count} adjacent ports are not to be had from {self.ports.ports}"
            )
        block = self.ports.acquire_block(request.count, request.protocol, request.host_ip)
        return min(block[0], block[-1])

    def _holder(self, tx: Transaction, port: int, protocol: str) -> str | None:
        """What holds a port, on whatever address; looked up only to name it in an error."""
        for limit in (1, NAMED):  # as a rule the first one has a name
            for row in holding(tx, port, protocol, limit):
                lease = tx.table(Lease).get(row.network, row.ordinal)
                if lease is not None and lease.owner is not None:
                    return lease.owner
                if row.network == self._number:
                    return f"the holder of {self._subnet.address(row.ordinal)}"
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
    found.sort(key=lambda row: (-row.host_port, row))
    return found


def _meets(row: Publication, request: PortRequest) -> bool:
    """Whether a publication is what was requested, whichever port was picked for it."""
    return (
        row.protocol == request.protocol
        and row.port_count == request.count
        and row.host_ip == (int(request.host_ip) if request.host_ip else 0)
        and row.host_port == (request.host_port or row.host_port)
        and row.container_port == (request.container_port or row.host_port)
    )


def _words(row: Publication) -> str:
    count = f" ({row.port_count} ports)" if row.port_count > 1 else ""
    return f"{row.host_port}/{row.protocol} -> {row.container_port}{count}"


def _asked(request: PortRequest) -> str:
    count = f" ({request.count} ports)" if request.count > 1 else ""
    return f"{request.host_port or 'any'}/{request.protocol} -> {request.container_port}{count}"
