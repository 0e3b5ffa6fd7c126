"""PortMapper: the desired mappings, and the kernel made to agree with them."""

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from threading import RLock
from types import TracebackType

from netalloc.address_values import as_mapped_ip
from netalloc.errors import InvalidValueError, NotAllocatedError
from netalloc.locks import locked
from netalloc.model import PortMapping, ReconcileResult
from netalloc.portmap.backend import Backend
from netalloc.portmap.choice import Networks
from netalloc.portmap.desired import MappingTable, describe
from netalloc.portmap.kernel import KernelMappings
from netalloc.portmap.link import Link
from netalloc.portmap.watch import Watch
from netalloc.values import as_each, as_port, as_protocol, shown


class PortMapper:
    """Leads host ports to containers; a context manager over `setup` and `cleanup`.

    `backend` is one of "auto" (nftables where kernel and privileges allow it, otherwise
    iptables), "nftables", "iptables", "null", or an object that follows the Backend
    protocol and serves no other mapper. With `bridge`, and its `network` (one, or one of each
    family; default: that of the bridge's IPv4 address), the containers also reach each other
    through host ports, and the host reaches them from 127.0.0.1 and ::1:
    netalloc.portmap.bridge_settings says what that changes on the host. `name` is what chains or
    tables are called after. With nftables the mappers of several networks share the table of a
    name, and each may lead into its own network alone; with iptables two mappers on a host need
    two names. `forward` also accepts the containers' packets in the FORWARD chain, for hosts
    where that drops by default; it takes iptables, whatever the backend. Safe for threads.
    Raises OutOfRangeError and InUseError for bad arguments.

    >>> mapper = PortMapper("null")
    >>> mapper.map(8080, ("10.0.0.2", 80))
    PortMapping(host_port=8080, dest=(IPv4Address('10.0.0.2'), 80), protocol='tcp', host_ip=None, \
count=1, owner=None)
    >>> mapper.map(8080, ("10.0.0.3", 80), host_ip="192.0.2.1")
    Traceback (most recent call last):
    ...
    netalloc.errors.InUseError: 192.0.2.1:8080/tcp -> 10.0.0.3:80 is held by \
0.0.0.0:8080/tcp -> 10.0.0.2:80
    >>> mapper.unmap(8080)
    """

    def __init__(
        self,
        backend: str | Backend = "auto",
        *,
        bridge: str | None = None,
        network: Networks | None = None,
        name: str = "netalloc",
        forward: bool = False,
    ) -> None:
        self._kernel = KernelMappings(
            backend, link=Link(bridge), network=network, name=name, forward=forward
        )
        self._table = MappingTable()
        self._lock = RLock()

    def __enter__(self) -> "PortMapper":
        self.setup()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.cleanup()
        finally:
            self.close()

    @property
    @locked
    def mappings(self) -> list[PortMapping]:
        """The desired mappings; O(n)."""
        return list(self._table)

    @property
    def backend(self) -> Backend:
        """What makes the kernel agree; for a look at `backend.mappings()`."""
        return self._kernel.backend

    @locked
    def setup(self, *, adopt: bool = False) -> ReconcileResult:
        """Make what the mappings need, and make the kernel agree with `mappings`.

        What a crashed predecessor of this name left behind is used again, and mappings of
        its that are not among ours are removed; with `adopt` they become ours instead.
        Returns what was there too much or missing.
        """
        self._kernel.setup()
        if adopt:
            self._table = MappingTable(self._kernel.present())
            return ReconcileResult()
        return self.reconcile()

    def cleanup(self) -> None:
        """Remove all that is ours from the kernel; what is missing already is no error.

        Goes on past failures and raises them together.
        """
        self._kernel.cleanup(self._emptied())  # not under the lock: a watch may wait for it

    @locked
    def _emptied(self) -> list[PortMapping]:
        gone, self._table = list(self._table), MappingTable()
        return gone

    def close(self) -> None:
        """Give back what the backend keeps open; the mappings stay in the kernel."""
        self._kernel.close()

    def map(
        self,
        port: int,
        dest: tuple[IPv4Address | IPv6Address | str, int],
        protocol: str = "tcp",
        host_ip: IPv4Address | IPv6Address | str | None = None,
        *,
        count: int = 1,
        owner: str | None = None,
    ) -> PortMapping:
        """Lead a host port, or a block of `count` from it, to (address, port).

        Raises OutOfRangeError for what is no port, protocol or address, InUseError when
        the port is mapped, both before anything has changed.
        """
        mapping = PortMapping(port, dest, protocol, host_ip, count, owner)
        lock = self._lock  # without a wrapper, which would be a tenth of all of it
        try:
            lock.acquire()
            self._table.add_one(mapping)
            try:
                self._kernel.apply((mapping,))
            except BaseException:
                self._table.remove((mapping,))
                raise
        finally:
            try:
                lock.release()
            except RuntimeError:
                pass  # the interrupt came while waiting
        return mapping

    @locked
    def unmap(
        self,
        port: int,
        protocol: str = "tcp",
        host_ip: IPv4Address | IPv6Address | str | None = None,
        *,
        missing_ok: bool = False,
    ) -> None:
        """Take a mapping away; a block goes by its first port and as a whole.

        Without `host_ip` it is that on every address, and those of both families go together;
        0.0.0.0 and :: mean the one of their own family. Raises NotAllocatedError when the port
        is not mapped, unless `missing_ok`.
        """
        port, protocol = as_port(port), as_protocol(protocol)
        versions: Sequence[int] = (4, 6)
        address, shown_ip = None, "0.0.0.0"
        if host_ip is not None:
            address = as_mapped_ip(host_ip, "host address")
            versions = (address.version,)
            shown_ip = str(address) if address.version == 4 else f"[{address}]"
            address = address if int(address) else None
        found = [self._table.find(port, protocol, address, version) for version in versions]
        batch = [mapping for mapping in found if mapping is not None]
        if batch:
            self._remove(batch, missing_ok=missing_ok)
        elif not missing_ok:
            raise NotAllocatedError(f"{shown_ip}:{port}/{protocol} is not mapped")

    def map_many(self, mappings: Iterable[PortMapping]) -> None:
        """Add all of them in one batch, or none; raises InUseError as `map` does."""
        self._add(as_each(mappings, "mappings", _as_mapping))

    @locked
    def _add(self, batch: list[PortMapping]) -> None:
        self._table.add(batch)
        try:
            self._kernel.apply(batch)
        except BaseException:
            self._table.remove(batch)
            raise

    @locked
    def unmap_many(self, mappings: Iterable[PortMapping], *, missing_ok: bool = False) -> None:
        """Remove all of them in one batch.

        Raises NotAllocatedError, before anything has changed, when one is not mapped as
        given, unless `missing_ok`.
        """
        asked = as_each(mappings, "mappings", _as_mapping)
        batch: dict[PortMapping, None] = {}
        for mapping in asked:
            found = self._table.find(
                mapping.host_port, mapping.protocol, mapping.host_ip, mapping.version
            )
            if found == mapping and found not in batch:
                batch[found] = None
            elif not missing_ok:
                raise NotAllocatedError(f"{describe(mapping)} is not mapped")
        self._remove(list(batch), missing_ok=missing_ok)

    def _remove(self, batch: Sequence[PortMapping], *, missing_ok: bool) -> None:
        lost: list[PortMapping] = []
        try:
            self._kernel.apply((), batch)
        except NotAllocatedError:
            # Another program took rules of ours away. The wish is that these are gone: take
            # away the rest, and say so when none is left.
            present = set(self._kernel.present())
            lost = [mapping for mapping in batch if mapping not in present]
            self._kernel.apply((), [mapping for mapping in batch if mapping in present])
        self._table.remove(batch)
        if lost and not missing_ok:
            raise NotAllocatedError(
                f"gone from the kernel before it was unmapped: {', '.join(map(describe, lost))}"
            )

    @locked
    def reconcile(self, desired: Iterable[PortMapping] | None = None) -> ReconcileResult:
        """Make the kernel agree with the mappings, touching only what differs.

        `desired` replaces `mappings` first. Returns what was wrong, false when nothing was.
        """
        wanted = None if desired is None else as_each(desired, "mappings", _as_mapping)
        table = self._table if wanted is None else MappingTable(wanted)
        repairs = self._kernel.reconcile(list(table))
        self._table = table
        return repairs

    def watch(self, on_repair: Callable[[ReconcileResult], None] | None = None) -> Watch:
        """Reconcile now, and whenever another program changes our rules, within a second.

        A thread waits for the kernel to say so, without polling, until the returned watch
        is closed, or `cleanup` or `close` end it. `on_repair` is called in that thread with
        what was found. Ends a watch that runs already. Raises NetallocError where the kernel
        does not tell: with iptables-legacy and with the null backend.
        """
        return self._kernel.watch(self.reconcile, on_repair)


def _as_mapping(value: object) -> PortMapping:
    if type(value) is not PortMapping:
        raise InvalidValueError(f"{shown(value)} is not a PortMapping")
    return value
