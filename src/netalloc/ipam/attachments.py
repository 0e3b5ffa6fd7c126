"""What of its leases a network has on the machine, as records: one at most of each lease.

The index, the name and the alias of an interface follow from the lease's generation, which no
other lease of the store ever has. So what a killed process left is told from what a successor of
its address has.
"""

from __future__ import annotations

from netalloc.errors import InUseError
from netalloc.light import NamedTuple
from netalloc.store.records import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from netalloc.store.protocol import Transaction
    from netalloc.store.records import Lease

_FIRST = 1 << 30  # the kernel numbers its own from 1 up
_GROUPS = 0x6E << 24  # interface groups, of which one is each network's


def index_of(generation: int) -> int:
    """The number of a lease's interface on the host; another's only 2^30 leases later.

    >>> index_of(7)
    1073741831
    """
    return _FIRST | generation & _FIRST - 1


def name_of(generation: int) -> str:
    """What it is called there, unless the caller names it; up to 2^52 leases.

    >>> name_of(255)
    'naff'
    """
    return f"na{generation:x}"


def alias_prefix(network: str) -> str:
    """What the aliases of a network's interfaces begin with."""
    return f"netalloc {network} "


def group_of(network: int) -> int:
    """The group that a network's routed interfaces are in; another's only 2^23 networks later.

    >>> hex(group_of(3))
    '0x6e000003'
    """
    return _GROUPS | network & 0x7FFFFF


class Entered(NamedTuple):
    """Whether an interface is to be made from the start, and the record that made room for it."""

    is_fresh: bool
    instead_of: tuple[Attachment, ...] = ()


def enter(
    tx: Transaction,
    lease: Lease,
    wanted: Attachment,
    is_there: Callable[[Attachment], bool],
    place: object,
) -> Entered:
    """Enter what a lease is to have, as not made yet.

    One that is not on the machine any more, as `is_there` says, makes room: a container took it
    along. So does one that was never made wholly. Raises InUseError where the lease has another,
    `place` names the address.
    """
    table = tx.table(Attachment)
    held = table.get(lease.network, lease.ordinal)
    instead_of = () if held is None else (held,)
    if held is not None:
        if held.made and is_there(held):
            if held._replace(made=0) == wanted:
                return Entered(is_fresh=False)
            raise InUseError(f"{place} is attached already, as {describe(held)}: detach it first")
        table.remove(instead_of)
    table.add((wanted,))
    return Entered(is_fresh=True, instead_of=instead_of)


def settle(tx: Transaction, entered: Sequence[Attachment]) -> list[int]:
    """Note of what was entered that it is made; the places of those that are gone by now."""
    table, lost = tx.table(Attachment), []
    for i, one in enumerate(entered):
        made = one._replace(made=1)
        if not table.replace(one, made) and table.get(one.network, one.ordinal) != made:
            lost.append(i)
    return lost


def drop(tx: Transaction, attachments: Iterable[Attachment]) -> list[Attachment]:
    """Take out those that are as given; which they were."""
    table = tx.table(Attachment)
    return [one for one in attachments if table.discard(one)]


def of_leases(tx: Transaction, leases: Sequence[Lease]) -> list[Attachment]:
    """Those of these leases."""
    table = tx.table(Attachment)
    if not table:
        return []
    found = [table.get(lease.network, lease.ordinal) for lease in leases]
    return [one for one in found if one is not None]


def of_network(tx: Transaction, number: int) -> list[Attachment]:
    """All of a network. O(found)."""
    table = tx.table(Attachment)
    return table.where("network", equal=(number,)) if table else []


def of_indexes(tx: Transaction, indexes: Iterable[int]) -> list[Attachment]:
    """Those with interfaces of these indexes."""
    table = tx.table(Attachment)
    if not table:
        return []
    return [one for index in indexes for one in table.where("index", equal=(index,))]


def describe(one: Attachment) -> str:
    """One in words: "eth0 in network namespace 4:4026532281", "tap tap0"."""
    if one.kind == "tap":
        return f"tap {one.interface}"
    return f"{one.peer} in network namespace {one.namespace}"
