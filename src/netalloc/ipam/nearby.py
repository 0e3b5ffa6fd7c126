"""Which networks a new one may be in the way of, found without reading all there are.

What the records of networks say of bridges and subnets is kept over the views of a store. A
record is read once, as its number is never given again: new are those since the last look. A
view sees nothing but what was committed, so that no rollback makes it wrong; and one that was
removed is noticed when it is found, by looking for its record.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from netalloc.ipam.networks import CONFIGURED, REPLACED, Nearby, prefixes_of
from netalloc.store.records import Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Network, IPv6Network

    from netalloc.store.protocol import Transaction

_KEPT = "networks"
_FEW = 64  # networks that are gone, besides as many as are there, before all is read anew


def nearby(tx: Transaction, network: Network) -> Nearby:
    """The networks that have this one's bridge or overlap it, as a view sees them.

    O(found, and entered since the last look).
    """
    known = tx.kept.pop(_KEPT, None)  # what an interrupt leaves half done is not put back
    if known is None or not known.is_of(tx):
        known = _Known(tx)
    known.catch_up(tx)
    found = known.near(tx, network)
    tx.kept[_KEPT] = known
    return Nearby(tx.last(CONFIGURED), found)


class _Known:
    """Numbers of networks by bridge and by subnet; some of them may be gone.

    A subnet is a text, of its family and the bits of its prefix: one contains another where its
    text begins the other's.
    """

    def __init__(self, tx: Transaction) -> None:
        self._bridges: dict[str | None, set[int]] = {}
        self._subnets: dict[str, set[int]] = {}
        self._sorted: list[str] = []  # the subnets
        self._entered: dict[int, Network] = {}
        self._replaced = tx.last(REPLACED)
        self._upto = tx.last("network")
        for network in tx.table(Network).all():
            self._enter(network)
        self._most = 2 * len(self._entered) + _FEW

    def is_of(self, tx: Transaction) -> bool:
        """Whether it goes on from here: no known record was changed, and few are gone."""
        continued = self._replaced == tx.last(REPLACED) and self._upto <= tx.last("network")
        return continued and len(self._entered) <= self._most

    def catch_up(self, tx: Transaction) -> None:
        """Enter those that are new."""
        while self._upto < tx.last("network"):
            network = tx.table(Network).get(self._upto + 1)
            if network is not None:
                self._enter(network)
            self._upto += 1

    def near(self, tx: Transaction, network: Network) -> tuple[int, ...]:
        """The numbers of those that are there and in the way."""
        numbers = set() if network.bridge is None else {*self._bridges.get(network.bridge, ())}
        for subnet in map(_text, prefixes_of(network)):
            for place in (*_containing(subnet), *self._within(subnet)):
                numbers |= self._subnets.get(place, set())
        gone = {number for number in numbers if tx.table(Network).get(number) is None}
        for number in gone:
            self._leave(self._entered.pop(number))
        return tuple(sorted(numbers - gone))

    def _within(self, subnet: str) -> Iterator[str]:
        at = bisect_left(self._sorted, subnet)
        while at < len(self._sorted) and self._sorted[at].startswith(subnet):
            yield self._sorted[at]
            at += 1

    def _enter(self, network: Network) -> None:
        self._entered[network.number] = network
        self._bridges.setdefault(network.bridge, set()).add(network.number)
        for subnet in map(_text, prefixes_of(network)):
            if subnet not in self._subnets:
                insort(self._sorted, subnet)
                self._subnets[subnet] = set()
            self._subnets[subnet].add(network.number)

    def _leave(self, network: Network) -> None:
        self._bridges[network.bridge].discard(network.number)
        if not self._bridges[network.bridge]:
            del self._bridges[network.bridge]
        for subnet in map(_text, prefixes_of(network)):
            self._subnets[subnet].discard(network.number)
            if not self._subnets[subnet]:
                del self._subnets[subnet]
                del self._sorted[bisect_left(self._sorted, subnet)]


def _text(subnet: IPv4Network | IPv6Network) -> str:
    bits = f"{int(subnet.network_address):0{subnet.max_prefixlen}b}"
    return f"{subnet.version}{bits[: subnet.prefixlen]}"


def _containing(subnet: str) -> Iterator[str]:
    for length in range(1, len(subnet)):
        yield subnet[:length]
