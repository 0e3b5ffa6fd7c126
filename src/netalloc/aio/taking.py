"""Calls that take something, told apart from those that found it there, and giving it back.

All of this runs in threads of the pool.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from netalloc.errors import NotAllocatedError, StaleLeaseError
from netalloc.manager.interface import NetworkInterface, as_address
from netalloc.manager.manager import NetworkManager
from netalloc.manager.undo import attempt
from netalloc.store.records import Reservation
from netalloc.values import as_optional_text

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netalloc.address_values import IP
    from netalloc.ipam.change import Change
    from netalloc.manager.leases import LeaseService
    from netalloc.model import PortMapping, PortRequest
    from netalloc.store.records import Lease


class _Noting:
    """The leases of a manager, in one call of its `allocate`: notes whether that made the lease."""

    def __init__(self, leases: LeaseService) -> None:
        self._leases = leases
        self.calls_back = leases.calls_back
        self.is_new = False

    def allocate(
        self,
        owner: str | None,
        key: str | None,
        ip: IP | None,
        labels: dict[str, str] | None,
        ports: Sequence[PortRequest],
        cooling: bool,
        check_host: bool,
    ) -> Lease:
        """As LeaseService.allocate."""
        leases = self._leases
        if ports:
            _ = leases.publications  # loaded before the store is locked

        def change(made: Change) -> Lease:
            last = made.tx.last("generation")
            lease = leases._allocate(owner, key, ip, labels, ports, cooling, check_host, made)
            self.is_new = lease.generation > last
            return lease

        return leases.committer.run("allocate", change)


class _NotingManager(NetworkManager):
    """A manager as far as its `allocate` goes."""

    def __init__(self, noting: _Noting) -> None:
        self._leases = cast("LeaseService", noting)


def allocate(
    manager: NetworkManager, key: str | None, arguments: dict[str, Any]
) -> tuple[NetworkInterface, bool]:
    """An interface, and whether this very call made it: one of a known key was there."""
    if key is None:
        return manager.allocate(**arguments), True
    noting = _Noting(manager._leases)
    found = _NotingManager(noting).allocate(key=key, **arguments)
    return NetworkInterface(manager._leases, found._lease), noting.is_new


def give_back_new(made: tuple[NetworkInterface, bool]) -> None:
    """Release what was not there before."""
    interface, is_new = made
    if is_new:
        interface.release()


def unpublish(
    interface: NetworkInterface, requests: Sequence[PortRequest], mappings: Sequence[PortMapping]
) -> None:
    """Release the ports that these requests were given, all that can be."""
    each = iter(mappings)
    failures = []
    for request in requests:
        first = next(each)
        if request.host_ip is None:  # a mapping of each family
            for _ in interface.ips[1:]:
                next(each)
        release = partial(interface.release_port, first.host_port, first.protocol, request.host_ip)
        failure = attempt(release)
        if failure is not None and not isinstance(failure, (NotAllocatedError, StaleLeaseError)):
            failures.append(failure)
    if failures:
        raise ExceptionGroup("not all ports were released", failures)


def reserve(manager: NetworkManager, ip: Any, owner: str | None) -> Reservation | None:
    """As NetworkManager.reserve; the reservation, if it was not there before."""
    plain, owner = as_address(ip), as_optional_text(owner, "owner")
    addresses = manager._leases.addresses

    def change(made: Change) -> Reservation | None:
        where = addresses.number, addresses.subnets.ordinal(plain)
        before = made.tx.table(Reservation).get(*where)
        kept = addresses.reserve(made.tx, plain, owner)
        return kept if before is None else None

    return manager._leases.run("reserve", change, True)


def unreserve(manager: NetworkManager, kept: Reservation | None) -> None:
    """Keep an address no longer, if it is kept by that very reservation."""
    if kept is None:
        return
    addresses = manager._leases.addresses

    def change(made: Change) -> None:
        if made.tx.table(Reservation).get(kept.network, kept.ordinal) == kept:
            addresses.unreserve(made.tx, addresses.subnets.address(kept.ordinal))

    manager._leases.run("unreserve", change, True)


def detach(manager: NetworkManager, leases: Sequence[Lease]) -> None:
    """Take those off the machine that a call has put on it."""
    if leases:
        manager._leases.attaching.detach(leases)
