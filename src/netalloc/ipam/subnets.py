"""The subnets of a network, one of a family or one of each, as one row of ordinals."""

from __future__ import annotations

from netalloc.errors import InvalidValueError, OutOfRangeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from netalloc._alloc import Subnet
    from netalloc.address_values import IP


class Subnets:
    """What a network gives out: an ordinal is an address of each of its subnets.

    The same ordinal in both: with "10.88.0.1/16" and "fd00:88::1/64" 10.88.0.2 goes with
    fd00:88::2. So there are as many ordinals as the smaller one has, and what is never given
    of one is not given of the other either.
    """

    __slots__ = ("_never", "address", "each", "first", "ordinal", "size")

    address: Callable[[int], IP]
    ordinal: Callable[[object], int]

    def __init__(self, subnets: Iterable[Subnet]) -> None:
        self.each = tuple(sorted(subnets, key=lambda subnet: subnet.version))
        versions = [subnet.version for subnet in self.each]
        if versions not in ([4], [6], [4, 6]):
            raise InvalidValueError(
                f"a network has one subnet, or one of IPv4 and one of IPv6, not "
                f"{' and '.join(map(str, self.each)) or 'none'}"
            )
        self.first = self.each[0]
        self.size = min(subnet.size for subnet in self.each)
        self.address = self.first.address
        if len(self.each) == 1:
            self.ordinal = self.first.ordinal
            self._never = self.first.excluded()
        else:
            self.ordinal = self._ordinal
            self._never = _union(self.each, self.size)
            if self.capacity <= 0:
                raise InvalidValueError(f"{self} has no address to give")

    @property
    def capacity(self) -> int:
        """How many may be given."""
        return self.size - sum(stop - start for start, stop in self._never)

    def excluded(self) -> tuple[tuple[int, int], ...]:
        """The ordinals that are never given: (start, stop), ascending."""
        return self._never

    def addresses(self, ordinal: int) -> tuple[IP, ...]:
        """The addresses of an ordinal, the IPv4 one first."""
        return tuple([subnet.address(ordinal) for subnet in self.each])

    def _ordinal(self, ip: object) -> int:
        """The ordinal of an address of either family that may be given."""
        from netalloc.address_values import as_ip

        plain = as_ip(ip)
        subnet = self.each[plain.version == 6]
        ordinal = subnet.ordinal(plain)
        if ordinal >= self.size:
            other = self.each[plain.version == 4]
            raise OutOfRangeError(
                f"{plain} has no counterpart in {other.network}, which gives {self.size} addresses"
            )
        for start, stop in self._never:
            if start <= ordinal < stop:
                other = self.each[plain.version == 4]
                raise OutOfRangeError(
                    f"{plain} is not given, for {other.address(ordinal)} of {other.network} is not"
                )
        return ordinal

    def __contains__(self, ip: object) -> bool:
        """Whether this address may be given."""
        try:
            self.ordinal(ip)
        except InvalidValueError:
            return False
        return True

    def __str__(self) -> str:
        return " and ".join(map(str, self.each))


def _union(subnets: tuple[Subnet, ...], size: int) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for start, stop in sorted(run for subnet in subnets for run in subnet.excluded()):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], stop)
        else:
            found.append((start, stop))
    return tuple([(start, min(stop, size)) for start, stop in found if start < size])
