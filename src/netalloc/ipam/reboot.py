"""What ends with a boot of the machine: everything but reservations and configuration."""

import time

from netalloc.ipam.addresses import Addresses
from netalloc.ipam.history import remember
from netalloc.store.protocol import Transaction
from netalloc.store.records import (
    Cooldown,
    GcCandidate,
    Label,
    LastHolder,
    Lease,
    Network,
    Publication,
)


def end_of_boot(tx: Transaction) -> None:
    """End all leases: their holders went with the machine. O(held), once a boot.

    The clock since boot starts anew, so cool-down and stickiness end as well.
    """
    leases = tx.table(Lease)
    ended = leases.all()
    remember(tx, ended, time.time_ns())
    leases.remove(ended)
    for kind in (Label, Publication, Cooldown, LastHolder, GcCandidate):
        table = tx.table(kind)
        table.remove(table.all())
    for name in list(tx.names("ports")):
        tx.drop(name)
    for network in tx.table(Network).all():
        Addresses.of(network).rebuild(tx)
