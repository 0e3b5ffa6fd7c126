"""Calls about many interfaces of a network at once."""

from __future__ import annotations

from functools import partial

from netalloc.errors import InvalidValueError
from netalloc.logs import Log
from netalloc.manager.interface import NetworkInterface, as_requests
from netalloc.manager.leases import FAILURES, LeaseService
from netalloc.store.records import Lease
from netalloc.values import as_flag, as_int, as_items, as_labels, as_optional_text, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence
    from typing import Any

    from netalloc.ipam.change import Change
    from netalloc.model import PortRequest

log = Log(__name__)

MANY = 1 << 24  # interfaces in one call: all addresses of a /8
_PART = 256  # leases that end in one change: some 10 ms, for which others wait


class ManyInterfaces:
    """What a manager does with many at once, in a part of the time that one by one would take."""

    _leases: LeaseService

    def allocate_many(
        self,
        n: int,
        ports: Iterable[int | PortRequest] = (),
        owner: str | None = None,
        *,
        labels: dict[str, str] | None = None,
        check_host: bool = True,
    ) -> list[NetworkInterface]:
        """n interfaces, each with `ports` published, in one transaction: all or none."""
        leases = self._leases.allocate_many(
            as_int(n, "number of interfaces", 0, MANY),
            as_optional_text(owner, "owner"),
            as_labels(labels),
            as_requests(ports),
            as_flag(check_host, "check_host"),
        )
        return self._interfaces(leases)

    def attach_many(
        self,
        pairs: Iterable[tuple[NetworkInterface, str | int | os.PathLike[str]]],
        *,
        ifname: str = "eth0",
        mtu: int | None = None,
    ) -> None:
        """Put many interfaces into their network namespaces, all or none; see their `attach`.

        Half a millisecond each. Raises InvalidValueError for an interface of another network,
        and what `attach` raises.
        """
        self._attach_many(pairs, ifname, mtu)

    def _attach_many(self, pairs: object, ifname: Any, mtu: Any) -> list[Lease]:
        """Those that were not attached before."""
        from netalloc.host.netns import current
        from netalloc.manager.attach_targets import Target, as_target, close_targets

        home = current()

        targets: list[tuple[Lease, Target]] = []
        try:
            for pair in as_items(pairs, "pairs"):
                items = as_items(pair, "pair")
                if len(items) != 2:
                    raise InvalidValueError(f"pair {shown(pair)} is not an interface and a netns")
                lease = self._own(items[0])
                target = as_target(items[1], None, ifname, None, mtu, None, None, home)
                targets.append((lease, target))
            fresh = self._leases.attaching.attach(targets) if targets else []
            new = {one.ordinal for one in fresh}
            return [lease for lease, _ in targets if lease.ordinal in new]
        finally:
            close_targets(target for _, target in targets)

    def detach_many(self, interfaces: Iterable[NetworkInterface]) -> None:
        """Take many off the machine, whose leases go on; see `detach`.

        The kernel takes them away together: 0.5 ms each of hundreds, where one takes some 20.
        """
        leases = [self._own(one) for one in as_items(interfaces, "interfaces")]
        for part in _parts(leases):
            self._leases.attaching.detach(part)

    def release_many(self, interfaces: Iterable[NetworkInterface]) -> int:
        """Release many, some hundred in a change; how many of them were still in force.

        Goes on past failures and raises them together, as an ExceptionGroup; what has ended
        already, by another process, is counted as a stale release. Raises NotAllocatedError
        for one that was released here, before anything has changed.
        """
        given = as_items(interfaces, "interfaces")
        leases = [self._own(one) for one in given]
        ended = sum([self._release_part(part) for part in _parts(leases)])
        for one in given:
            one._released = True
        return ended

    def _release_part(self, leases: Sequence[Lease]) -> int:
        service = self._leases

        def change(made: Change) -> int:
            held = [service.addresses.in_force(made.tx, lease) for lease in leases]
            current = {lease.ordinal: lease for lease in held if lease is not None}
            service.expire(made, list(current.values()))
            return len(current)

        try:
            ended = service.run("release", change)
        except FAILURES as error:
            from netalloc.manager.piecemeal import release_each

            log.warning("released one by one, for together it failed: %s", error)
            release_each(service, leases)
            return len(leases)
        service.stale_releases += len(leases) - ended
        return ended

    def _own(self, interface: object) -> Lease:
        """The lease of an interface of this network that was not released here."""
        if not isinstance(interface, NetworkInterface):
            raise InvalidValueError(f"{shown(interface)} is not an interface")
        lease, leases = interface._in_force(), interface._leases
        if leases.place != self._leases.place or lease.network != self._leases.addresses.number:
            raise InvalidValueError(f"{interface!r} is of another network")
        return lease

    def _interfaces(self, leases: list[Lease]) -> list[NetworkInterface]:
        return list(map(partial(NetworkInterface, self._leases), leases))


def _parts(leases: Sequence[Lease]) -> list[Sequence[Lease]]:
    return [leases[first : first + _PART] for first in range(0, len(leases), _PART)]
