"""The slow, obvious twin of the core: same names, a set and a loop."""

from collections.abc import Iterable
from ipaddress import IPv4Address, ip_interface

from netalloc import ExhaustedError, InUseError, NotAllocatedError, OutOfRangeError


class Bitmap:
    """What netalloc.Bitmap promises, by trying one ordinal after the other."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.cursor = 0
        self.taken: set[int] = set()

    @property
    def available(self) -> int:
        return self.size - len(self.taken)

    def acquire(self) -> int:
        if not self.available:
            raise ExhaustedError
        i = self.cursor
        while i in self.taken:
            i = (i + 1) % self.size
        self.taken.add(i)
        self.cursor = (i + 1) % self.size
        return i

    def reserve(self, i: int) -> None:
        self._check_range(i)
        if i in self.taken:
            raise InUseError("taken")
        self.taken.add(i)

    def release(self, i: int) -> None:
        self._check_range(i)
        if i not in self.taken:
            raise NotAllocatedError
        if not self.available:
            self.cursor = i
        self.taken.remove(i)

    def acquire_many(self, n: int) -> list[int]:
        if n > self.available:
            raise ExhaustedError
        return [self.acquire() for _ in range(n)]

    def acquire_block(self, n: int) -> int:
        for start in [*self._starts(self.cursor, self.size), *self._starts(0, self.cursor)]:
            if start + n <= self.size and self.taken.isdisjoint(range(start, start + n)):
                self.taken.update(range(start, start + n))
                self.cursor = (start + n) % self.size
                return start
        raise ExhaustedError

    def release_many(self, ordinals: Iterable[int]) -> None:
        ordinals = list(ordinals)
        for i in ordinals:
            self._check_range(i)
        if len(set(ordinals)) < len(ordinals) or not self.taken.issuperset(ordinals):
            raise NotAllocatedError
        if ordinals and not self.available:
            self.cursor = ordinals[0]
        self.taken.difference_update(ordinals)

    def runs(self) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for i in sorted(self.taken):
            if runs and runs[-1][1] == i:
                runs[-1] = (runs[-1][0], i + 1)
            else:
                runs.append((i, i + 1))
        return runs

    def _starts(self, first: int, stop: int) -> list[int]:
        """Where a free run may begin: at `first`, and after each that is taken."""
        after = sorted(i + 1 for i in self.taken if first < i + 1 < stop)
        return [first, *after] if first < stop else []

    def _check_range(self, i: int) -> None:
        if not 0 <= i < self.size:
            raise OutOfRangeError


class IPAllocator:
    """What netalloc.IPAllocator promises for IPv4, by trying one address after the other."""

    def __init__(self, network: str) -> None:
        interface = ip_interface(network)
        first, last = interface.network[0], interface.network[-1]
        self.never = {first, last} if interface.network.prefixlen < 31 else set()
        if interface.ip != first:
            self.never.add(interface.ip)
        self.first, self.last = int(first), int(last)
        self.cursor = self.first
        self.taken: set[IPv4Address] = set()

    @property
    def available(self) -> int:
        return self.last - self.first + 1 - len(self.never) - len(self.taken)

    def acquire(self) -> IPv4Address:
        if not self.available:
            raise ExhaustedError
        while True:
            ip = IPv4Address(self.cursor)
            self.cursor = self.first if self.cursor == self.last else self.cursor + 1
            if ip not in self.taken and ip not in self.never:
                self.taken.add(ip)
                return ip

    def reserve(self, ip: IPv4Address) -> None:
        self._check_range(ip)
        if ip in self.taken:
            raise InUseError("taken")
        self.taken.add(ip)

    def release(self, ip: IPv4Address) -> None:
        self._check_range(ip)
        if ip not in self.taken:
            raise NotAllocatedError
        if not self.available:
            self.cursor = int(ip)
        self.taken.remove(ip)

    def _check_range(self, ip: IPv4Address) -> None:
        if not self.first <= int(ip) <= self.last or ip in self.never:
            raise OutOfRangeError
