"""Host ports for leases: which ones, and the mappings that follow."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from ipaddress import IPv4Address

from netalloc._alloc import IPAllocator
from netalloc.errors import InUseError, OutOfRangeError, StoreError
from netalloc.ipam.change import Change
from netalloc.model import PortMapping, PortRequest
from netalloc.ports import PORTS, Ordinals, PortAllocator, Probe
from netalloc.store.protocol import Transaction
from netalloc.store.records import Lease, Publication


class _InTransaction:
    """The store's bitmaps, as they are in the transaction that is under way."""

    tx: Transaction

    def bitmap(self, name: str, size: int) -> Ordinals:
        return self.tx.bitmap(name, size)

    def names(self, prefix: str) -> Iterable[str]:
        return self.tx.names(prefix)

    def drop(self, name: str) -> None:
        self.tx.drop(name)


class Publications:
    """The published ports of one network's leases.

    Ports are the host's: all networks of a store share them. A PortAllocator that is given
    instead of a range keeps its own state, and may be shared as well.
    """

    def __init__(
        self,
        number: int,
        plan: IPAllocator,
        ports: range | PortAllocator = PORTS,
        probe: Probe | None = None,
    ) -> None:
        self._number = number
        self._plan = plan
        self._bitmaps = _InTransaction()
        self._own = not isinstance(ports, PortAllocator)
        self.ports = (
            ports
            if isinstance(ports, PortAllocator)
            else PortAllocator(ports, probe=probe, bitmaps=self._bitmaps)
        )

    def publish(
        self, change: Change, requests: Sequence[tuple[Lease, PortRequest]]
    ) -> list[PortMapping]:
        """Host ports for all the requests, or for none; the mappings in the same order.

        The leases must have counted them. Ports asked for by number come first, then the
        adjacent ones, and what is picked automatically last, so that no pick takes what a
        later request names.
        """
        self._bitmaps.tx = change.tx
        host: list[int] = [0] * len(requests)
        picks: dict[tuple[str, IPv4Address | None], list[int]] = {}
        blocks: list[int] = []
        for i, (_, request) in enumerate(requests):
            if request.host_port is not None or (request.count > 1 and request.container_port):
                host[i] = request.host_port or request.container_port or 0
                self._fixed(change, request, host[i])
            elif request.count > 1:
                blocks.append(i)
            else:
                assert request.host_ip is None or isinstance(request.host_ip, IPv4Address)
                picks.setdefault((request.protocol, request.host_ip), []).append(i)
        for i in blocks:
            host[i] = self._block(change, requests[i][1])
        for (protocol, ip), indexes in picks.items():
            ports = self.ports.acquire_many(len(indexes), protocol, ip)
            self._undo_by_release(change, ports, protocol, ip)
            for i, port in zip(indexes, ports, strict=True):
                host[i] = port
        rows, mappings = [], []
        for (lease, request), port in zip(requests, host, strict=True):
            row = Publication(
                lease.network,
                lease.ordinal,
                int(request.host_ip) if request.host_ip else 0,
                request.protocol,
                port,
                request.count,
                request.container_port or port,
            )
            rows.append(row)
            mappings.append(self.mapping(row, lease.owner))
        change.tx.table(Publication).add(rows)
        change.add += mappings
        return mappings

    def unpublish(self, change: Change, publications: Iterable[Publication]) -> list[PortMapping]:
        """Take the ports back, which must be published; the mappings that go."""
        self._bitmaps.tx = change.tx
        rows = list(publications)
        change.tx.table(Publication).remove(rows)
        gone = [self.mapping(row) for row in rows]
        change.remove += gone
        for row, mapping in zip(rows, gone, strict=True):
            for port in mapping.ports:
                held = (port, row.protocol, mapping.host_ip)
                if self._own:
                    self.ports.release(*held)
                else:
                    change.after.append(partial(self.ports.release, *held))
        return gone

    def count(self, change: Change, lease: Lease, more: int) -> None:
        """Enter in a lease that it has so many publications more."""
        leases = change.tx.table(Lease)
        held = leases.get(lease.network, lease.ordinal)
        if held is not None:
            leases.remove((held,))
            leases.add((held._replace(publications=held.publications + more),))

    def mapping(self, row: Publication, owner: str | None = None) -> PortMapping:
        """What the kernel is told of a publication; it refuses an IPv6 address itself."""
        return PortMapping(
            row.host_port,
            (self._plan.address(row.ordinal), row.container_port),  # type: ignore[arg-type]
            row.protocol,
            IPv4Address(row.host_ip) if row.host_ip else None,
            row.port_count,
            owner,
        )

    def of(self, tx: Transaction, lease: Lease) -> list[Publication]:
        """The publications of a lease, by host port. Raises StoreError when one is missing."""
        where = (lease.network, lease.ordinal)
        rows = tx.table(Publication).where("network", "ordinal", equal=where)
        held = tx.table(Lease).get(*where)
        if held is not None and held.publications != len(rows):
            raise StoreError(
                f"{self._plan.address(lease.ordinal)} publishes {held.publications} times, but "
                f"{len(rows)} can be read: check() says what else is wrong, repair() mends it"
            )
        return sorted(rows, key=lambda row: (row.host_port, row.protocol, row.host_ip))

    def desired(self, tx: Transaction) -> list[PortMapping]:
        """All that the kernel should have for this network."""
        owners = {
            lease.ordinal: lease.owner
            for lease in tx.table(Lease).where("network", equal=(self._number,))
        }
        return [
            self.mapping(row, owners.get(row.ordinal))
            for row in tx.table(Publication).where("network", equal=(self._number,))
        ]

    def _fixed(self, change: Change, request: PortRequest, first: int) -> None:
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
            self._undo_by_release(change, [port], request.protocol, request.host_ip)

    def _block(self, change: Change, request: PortRequest) -> int:
        if abs(self.ports.ports.step) != 1:
            raise OutOfRangeError(
                f"{request.count} adjacent ports are not to be had from {self.ports.ports}"
            )
        block = self.ports.acquire_block(request.count, request.protocol, request.host_ip)
        self._undo_by_release(change, block, request.protocol, request.host_ip)
        return min(block[0], block[-1])

    def _undo_by_release(
        self,
        change: Change,
        ports: Iterable[int],
        protocol: str,
        ip: IPv4Address | str | None,
    ) -> None:
        if not self._own:  # the store's own bitmaps go back by themselves
            change.undo += [partial(self.ports.release, port, protocol, ip) for port in ports]

    def _holder(self, tx: Transaction, port: int, protocol: str) -> str | None:
        """Who holds a port, on whatever address; looked up only to name him in an error."""
        for row in self._holding(tx, port, protocol):
            lease = tx.table(Lease).get(row.network, row.ordinal)
            if lease is not None:
                return lease.owner or f"the holder of {self.mapping(row).dest[0]}"
        return None

    def _holding(self, tx: Transaction, port: int, protocol: str) -> Iterator[Publication]:
        for row in tx.table(Publication).all():
            if row.protocol == protocol and row.host_port <= port < row.host_port + row.port_count:
                yield row
