"""The slow, obvious twin of the core: same names, a set and a loop."""

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_interface, ip_network

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

    def next_block(self, n: int, start: int) -> int | None:
        for first, stop in [*self.runs(), (self.size, self.size)]:
            if first - start >= n:
                return start
            start = max(start, stop)
        return None

    def previous_set(self, start: int) -> int | None:
        return max((i for i in self.taken if i <= start), default=None)

    def counts(self, first: int, cell: int, n: int) -> list[int]:
        counts = [0] * n
        for i in self.taken:
            if 0 <= (i - first) // cell < n:
                counts[(i - first) // cell] += 1
        return counts

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


class Subnet:
    """What netalloc.Subnet promises, by trying one address after the other."""

    def __init__(self, network: str, exclude: Iterable[str] = ()) -> None:
        interface = ip_interface(network)
        self.network = interface.network
        self.kind = type(self.network.network_address)
        lowest, highest = interface.network[0], interface.network[-1]
        special = set()
        if interface.network.num_addresses > 2:
            special.add(lowest)
            if interface.version == 4:
                special.add(highest)
        self.gateway = None if interface.ip == lowest else interface.ip
        ends = {*special, self.gateway}
        self.lowest, self.highest = int(lowest), int(highest)
        self.first, self.last = self.lowest, self.highest
        while self.kind(self.first) in ends:
            self.first += 1
        while self.kind(self.last) in ends:
            self.last -= 1
        self.never = special if self.gateway is None else {*special, self.gateway}
        self.blocks = [ip_network(block) for block in exclude]

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    @property
    def capacity(self) -> int:
        return sum(self.gives(n) for n in range(self.first, self.last + 1))

    def gives(self, number: int) -> bool:
        ip = self.kind(number)
        if not self.lowest <= number <= self.highest or ip in self.never:
            return False
        return not any(ip in block for block in self.blocks)

    def excluded(self) -> tuple[tuple[int, int], ...]:
        bitmap = Bitmap(self.size)
        bitmap.taken = {i for i in range(self.size) if not self.gives(self.first + i)}
        return tuple(bitmap.runs())

    def exclude(self) -> tuple[str, ...]:
        """Halve the network until a part can be excluded as a whole."""
        return tuple(self._cover(self.network))

    def _cover(self, block: IPv4Network | IPv6Network) -> list[str]:
        numbers = range(int(block[0]), int(block[-1]) + 1)
        named = [n for n in numbers if not self.gives(n) and self.kind(n) not in self.never]
        if not named:
            return []
        if any(self.gives(n) for n in numbers):
            return [text for half in block.subnets() for text in self._cover(half)]
        while block.prefixlen < block.max_prefixlen:
            halves = [half for half in block.subnets() if any(self.kind(n) in half for n in named)]
            if len(halves) == 2:
                return [str(block)]
            (block,) = halves
        return [str(block[0])]


STEP = 8  # cooled ones that come back at each call


class IPAllocator(Subnet):
    """What netalloc.IPAllocator promises for IPv4, by trying one address after the other."""

    def __init__(
        self,
        network: str,
        exclude: Iterable[str] = (),
        cooldown: float = 0.0,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        super().__init__(network, exclude)
        self.cursor = self.first
        self.taken: set[IPv4Address] = set()
        self.cooling: dict[IPv4Address, float] = {}  # in the order of release
        self.cooldown = cooldown
        self.clock = clock
        self.most = self.size - sum(stop - start for start, stop in self._excluded_quickly())

    def _excluded_quickly(self) -> Iterable[tuple[int, int]]:
        if self.blocks:
            return self.excluded()
        middle = self.gateway is not None and self.first < int(self.gateway) < self.last
        return [(0, 1)] if middle else []

    @property
    def free(self) -> int:
        return self.most - len(self.taken) - len(self.cooling)

    @property
    def available(self) -> int:
        return self.free + sum(ready <= self.clock() for ready in self.cooling.values())

    def _give_back(self, ip: IPv4Address) -> None:
        if not self.free:
            self.cursor = int(ip)

    def _expire(self, most: int) -> None:
        for ip in list(self.cooling)[:most]:
            if self.cooling[ip] > self.clock():
                break
            self._give_back(ip)
            del self.cooling[ip]

    def acquire(self, allow_cooling: bool = False) -> IPv4Address:
        self._expire(STEP)
        if self.free:
            return self._next()
        if not allow_cooling or not self.cooling:
            raise ExhaustedError
        ip = next(iter(self.cooling))
        del self.cooling[ip]
        self.taken.add(ip)
        return ip

    def _next(self) -> IPv4Address:
        while True:
            ip = IPv4Address(self.cursor)
            self.cursor = self.first if self.cursor == self.last else self.cursor + 1
            if ip not in self.taken and ip not in self.cooling and self.gives(int(ip)):
                self.taken.add(ip)
                return ip

    def acquire_many(self, n: int) -> list[IPv4Address]:
        self._expire(STEP)
        self._expire(max(n - self.free, 0))
        if n > self.free:
            raise ExhaustedError
        return [self._next() for _ in range(n)]

    def reserve(self, ip: IPv4Address, allow_cooling: bool = False) -> None:
        self._check_range(ip)
        if ip in self.taken:
            raise InUseError("taken")
        if ip in self.cooling:
            if self.cooling[ip] > self.clock() and not allow_cooling:
                raise InUseError("cooling")
            del self.cooling[ip]
        self.taken.add(ip)

    def release(self, ip: IPv4Address) -> None:
        self._check_range(ip)
        if ip not in self.taken:
            raise NotAllocatedError
        if self.cooldown:
            self.cooling[ip] = self.clock() + self.cooldown
        else:
            self._give_back(ip)
        self.taken.remove(ip)

    def release_many(self, ips: Iterable[IPv4Address]) -> None:
        ips = list(ips)
        for ip in ips:
            self._check_range(ip)
        if len(set(ips)) < len(ips) or not self.taken.issuperset(ips):
            raise NotAllocatedError
        full = not self.free
        for ip in ips:
            self.release(ip)
        if full and ips and not self.cooldown:
            self.cursor = int(ips[0])

    def _check_range(self, ip: IPv4Address) -> None:
        if not self.gives(int(ip)):
            raise OutOfRangeError
