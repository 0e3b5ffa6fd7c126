"""Which leases of a guarded network reach each other: a record for each two of them."""

from __future__ import annotations

from netalloc.store.records import Allowance

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from netalloc.store.protocol import Transaction

_TOP = 1 << 63  # only a record's `ordinal` may be as large as a store's integers are not


def pair(network: int, one: int, other: int) -> Allowance:
    """The record of two ordinals, whichever is named first.

    >>> pair(1, 9, 7) == pair(1, 7, 9)
    True
    """
    first, second = sorted((one, other))
    return Allowance(network, first, second - 2 * _TOP if second >= _TOP else second)


def ordinals(allowed: Allowance) -> tuple[int, int]:
    """The two ordinals of a record, the smaller one first."""
    other = allowed.other
    return allowed.ordinal, other + 2 * _TOP if other < 0 else other


def ends(allowed: Allowance) -> tuple[tuple[int, int], tuple[int, int]]:
    """The network and the ordinal of either of the two."""
    one, other = ordinals(allowed)
    return (allowed.network, one), (allowed.network, other)


def enter(tx: Transaction, allowed: Allowance) -> bool:
    """Enter a pair; whether it is new."""
    table = tx.table(Allowance)
    if table and table.get(*allowed) is not None:
        return False
    table.add((allowed,))
    return True


def drop(tx: Transaction, allowed: Allowance) -> bool:
    """Take a pair out; whether it was there."""
    table = tx.table(Allowance)
    return bool(table) and table.discard(allowed)


def of(tx: Transaction, network: int, ordinal: int) -> list[Allowance]:
    """Those that one ordinal has part in. O(found)."""
    table = tx.table(Allowance)
    if not table:
        return []
    other = ordinal - 2 * _TOP if ordinal >= _TOP else ordinal
    found = table.where("network", "ordinal", equal=(network, ordinal))
    return found + table.where("network", "other", equal=(network, other))


def of_ordinals(tx: Transaction, network: int, some: Iterable[int]) -> list[Allowance]:
    """Those that any of these has part in, each once. O(found)."""
    if not tx.table(Allowance):
        return []
    return list(dict.fromkeys(found for ordinal in some for found in of(tx, network, ordinal)))


def of_network(tx: Transaction, network: int) -> list[Allowance]:
    """All of a network. O(found)."""
    table = tx.table(Allowance)
    return table.where("network", equal=(network,)) if table else []
