"""Leases by their owner and labels."""

from __future__ import annotations

from netalloc.errors import InUseError
from netalloc.store.records import Label, Lease

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.ipam.subnets import Subnets
    from netalloc.store.protocol import Transaction


def leases_of(
    tx: Transaction, number: int, owner: str | None, label: tuple[str, str] | None
) -> list[Lease]:
    """The leases of a network with that owner, with that label, or all; by address. O(found)."""
    leases = tx.table(Lease)
    if label is not None:
        rows = tx.table(Label).where("network", "name", "value", equal=(number, *label))
        some = [leases.get(number, row.ordinal) for row in rows]
        found = [lease for lease in some if lease and owner in (None, lease.owner)]
    elif owner is not None:
        found = leases.where("network", "owner", equal=(number, owner))
    else:
        found = leases.where("network", equal=(number,))
    return sorted(found, key=lambda lease: lease.ordinal) if len(found) > 1 else found


def containing_text(subnets: Subnets, leases: list[Lease], part: str) -> list[Lease]:
    """Those whose owner or key, or an address of whom, has that text in it."""
    return [
        lease
        for lease in leases
        if part in (lease.owner or "")
        or part in (lease.key or "")
        or any(part in str(ip) for ip in subnets.addresses(lease.ordinal))
    ]


def labels_of(tx: Transaction, lease: Lease) -> dict[str, str]:
    """The labels of a lease."""
    where = (lease.network, lease.ordinal)
    return {row.name: row.value for row in tx.table(Label).where("network", "ordinal", equal=where)}


def check_labels(tx: Transaction, lease: Lease, labels: dict[str, str], name: str) -> None:
    """Raise InUseError where a lease, whose address is `name`, has other labels than these."""
    held = labels_of(tx, lease)
    if held != labels:
        raise InUseError(
            f"{lease.owner} holds {name} as {lease.key} with labels {held}, and asks for it with "
            f"{labels}",
            lease.owner,
        )
