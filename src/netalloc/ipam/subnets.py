"""The subnets of a network, one of a family or one of each, as one row of ordinals."""

from __future__ import annotations

from netalloc._alloc import Subnet
from netalloc.errors import InvalidValueError, OutOfRangeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from netalloc.address_values import IP
    from netalloc.family import NetworkPair


class Subnets:
    """What a network gives out: an ordinal is an address of each of its subnets.

    The same ordinal in both: with "10.88.0.1/16" and "fd00:88::1/64" 10.88.0.2 goes with
    fd00:88::2. So there are as many ordinals as the smaller one has, and what is never given
    of one is not given of the other either. Immutable. Raises InvalidValueError for two of one
    family, for more than two and for none, OutOfRangeError where nothing is left to give.

    >>> both = Subnets([Subnet("fd00:88::1/64"), Subnet("10.88.0.1/24", exclude="10.88.0.4")])
    >>> str(both), both.size, both.excluded()
    ('10.88.0.1/24 and fd00:88::1/64', 253, ((2, 3),))
    >>> both.ordinal("10.88.0.3"), both.ordinal("fd00:88::3"), str(both.addresses(1)[1])
    (1, 1, 'fd00:88::3')
    """

    __slots__ = ("_never", "_starts", "address", "capacity", "each", "first", "ordinal", "size")

    address: Callable[[int], IP]  # of an ordinal: the IPv4 one where there is one
    ordinal: Callable[[object], int]  # of an address that may be given, of either family: O(log n)

    def __init__(self, subnets: Iterable[Subnet]) -> None:
        self.each = tuple(sorted(subnets, key=lambda subnet: subnet.version))
        versions = [subnet.version for subnet in self.each]
        if versions not in ([4], [6], [4, 6]):
            raise InvalidValueError(
                "a network has one subnet, or one of IPv4 and one of IPv6, not "
                f"{' and '.join(map(str, self.each)) or 'none'}"
            )
        self.first = self.each[0]
        self.size: int = min([subnet.size for subnet in self.each])
        self.address = self.first.address
        if len(self.each) == 1:
            self.ordinal = self.first.ordinal  # type: ignore[assignment]  # it refuses all else
            self._never = self.first.excluded()
        else:
            self.ordinal = self._ordinal
            self._never = _union(self.each, self.size)
        self._starts = [start for start, _ in self._never]
        # How many may be given.
        self.capacity: int = self.size - sum([stop - start for start, stop in self._never])
        if self.capacity <= 0:
            raise OutOfRangeError(f"{self} have no addresses to give that go together")

    def excluded(self) -> tuple[tuple[int, int], ...]:
        """The ordinals that are never given: (start, stop), ascending."""
        return self._never

    def gives(self, ordinal: int) -> bool:
        """Whether there is that ordinal, and it may be given. O(log n), whatever is excluded."""
        if not 0 <= ordinal < self.size or not self._never:
            return 0 <= ordinal < self.size
        from bisect import bisect_right

        at = bisect_right(self._starts, ordinal) - 1
        return at < 0 or ordinal >= self._never[at][1]

    def addresses(self, ordinal: int) -> tuple[IP, ...]:
        """The addresses of an ordinal, the IPv4 one first."""
        return tuple([subnet.address(ordinal) for subnet in self.each])

    def of_version(self, version: int) -> Subnet | None:
        """The subnet of a family, 4 or 6; None where there is none."""
        return next((subnet for subnet in self.each if subnet.version == version), None)

    @property
    def gateways(self) -> tuple[IP, ...]:
        """The gateways that the subnets name, the IPv4 one first."""
        return tuple([ip for subnet in self.each if (ip := subnet.gateway) is not None])

    @property
    def networks(self) -> str:
        """The networks without their gateways, as text."""
        return " and ".join([str(subnet.network) for subnet in self.each])

    @property
    def pair(self) -> NetworkPair:
        """The networks by family, as backends are told of them."""
        from netalloc.family import NetworkPair

        v4, v6 = self.of_version(4), self.of_version(6)
        return NetworkPair(v4 and v4.network, v6 and v6.network)  # type: ignore[arg-type]

    def without(self, exclude: Iterable[Any]) -> Subnets:
        """The same with more excluded: each item of its own family's subnet.

        Raises InvalidValueError, and OutOfRangeError for what lies outside.
        """
        if len(self.each) == 1:
            return Subnets([Subnet(self.first, exclude=tuple(exclude))])
        items: tuple[list[Any], list[Any]] = [], []
        for item in exclude:
            items[_version(item) == 6].append(item)
        pairs = zip(self.each, items, strict=True)
        return Subnets([Subnet(subnet, exclude=own) if own else subnet for subnet, own in pairs])

    @property
    def exclude(self) -> tuple[str, ...]:
        """The fewest blocks, as text, that exclude the same: of each subnet its own."""
        return tuple([block for subnet in self.each for block in subnet.exclude])

    def _ordinal(self, ip: object) -> int:
        """The ordinal of an address of either family that may be given."""
        from netalloc.address_values import as_ip

        plain = as_ip(ip)
        own, other = self.each[::-1] if plain.version == 6 else self.each
        ordinal = own.ordinal(plain)
        if ordinal >= self.size:
            raise OutOfRangeError(
                f"{plain} has no counterpart in {other.network}, which has fewer addresses: "
                f"{other.size}"
            )
        if not self.gives(ordinal):
            try:
                other.ordinal(other.address(ordinal))
            except OutOfRangeError as error:
                raise OutOfRangeError(f"{plain} is not given, as {error}") from None
        return ordinal

    def __contains__(self, ip: object) -> bool:
        """Whether this address may be given."""
        try:
            self.ordinal(ip)
        except InvalidValueError:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Subnets) and self.each == other.each

    def __hash__(self) -> int:
        return hash(self.each)

    def __str__(self) -> str:
        return " and ".join(map(str, self.each))

    def __repr__(self) -> str:
        return f"Subnets({list(self.each)})"


def _version(item: object) -> int:
    """Of which family something excluded is; what is none is refused by the IPv4 subnet."""
    from ipaddress import IPv6Address, IPv6Network

    if isinstance(item, str):
        return 6 if ":" in str.__str__(item) else 4
    return 6 if isinstance(item, IPv6Address | IPv6Network) else 4


def _union(subnets: tuple[Subnet, ...], size: int) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for start, stop in sorted([run for subnet in subnets for run in subnet.excluded()]):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], stop)
        else:
            found.append((start, stop))
    return tuple([(start, min(stop, size)) for start, stop in found if start < size])
