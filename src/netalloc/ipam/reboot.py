"""What ends with a boot of the machine: everything but reservations and configuration."""

from __future__ import annotations

import time

from netalloc.ipam.addresses import Addresses
from netalloc.ipam.ended import HISTORY, remember
from netalloc.store.records import (
    Allowance,
    Attachment,
    Cooldown,
    GcCandidate,
    Label,
    LastHolder,
    Lease,
    Network,
    Publication,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from netalloc.store.protocol import Transaction

ENDING = (Lease, Label, Publication, Cooldown, LastHolder, GcCandidate, Attachment, Allowance)


class AfterReboot:
    """A view of a store whose boot is over, without what has ended with it."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx

    def table(self, kind: type[Any]) -> Any:
        """The records of that kind; none of a kind that ends with a boot."""
        return _EMPTY if kind in ENDING else self._tx.table(kind)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)


class _Empty:
    def get(self, *key: Any) -> None:
        return None

    def where(self, *fields: str, equal: tuple[Any, ...], limit: int = -1) -> list[Any]:
        return []

    def up_to(self, *fields: str, equal: tuple[Any, ...], limit: int) -> list[Any]:
        return []

    def all(self) -> list[Any]:
        return []


_EMPTY = _Empty()


def end_of_boot(tx: Transaction) -> None:
    """End all leases: their holders went with the machine. Once a boot, 1 us a lease.

    The clock since boot starts anew, so cool-down and stickiness end as well. Of the leases,
    which have all ended at one moment, as many are remembered as the history has room for.
    """
    remember(tx, tx.table(Lease).oldest(HISTORY), time.time_ns())
    kind: type[Any]
    for kind in ENDING:
        tx.table(kind).clear()
    for name in list(tx.names("ports")):
        tx.drop(name)
    for network in tx.table(Network).all():
        Addresses.of(network).rebuild(tx)
