"""Which host ports are held, on which of the host's addresses, and which one is next.

A port is held either on every address of the host (the wildcard) or on one. As with
sockets, the wildcard conflicts with everything of the same protocol and number, and two
different addresses do not conflict. Per protocol there are three kinds of bitmaps:

    every     ports held on every address
    used      ports held on any address: what a wildcard must keep clear of
    on/<ip>   ports that a holder on <ip> must keep clear of: those held there, and `every`

so that each pick is one search in one bitmap, however many ports are held. PastLease a port
on every address costs one more step per *address* that has ports of its own.
"""

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address
from threading import RLock
from typing import Protocol

from netalloc._alloc import Bitmap
from netalloc.errors import ExhaustedError, InUseError, NotAllocatedError, OutOfRangeError
from netalloc.values import as_host_ip, as_port, as_protocol

PORTS = range(49153, 65536)
Probe = Callable[[int, str, IPv4Address | None], bool]


class Ordinals(Protocol):
    """What is asked of a bitmap; netalloc.Bitmap has it, and so has one that lives in a store."""

    cursor: int

    def reserve(self, ordinal: int, /) -> None: ...
    def release(self, ordinal: int, /) -> None: ...
    def next_free(self, start: int, /) -> int | None: ...
    def next_set(self, start: int, /) -> int | None: ...
    def __contains__(self, ordinal: int, /) -> bool: ...
    def __len__(self) -> int: ...


class Bitmaps(Protocol):
    """Where bitmaps are kept by name."""

    def bitmap(self, name: str, size: int) -> Ordinals:
        """The bitmap of that name, made empty when there is none."""

    def names(self, prefix: str) -> Iterable[str]:
        """The names that begin with the prefix."""

    def drop(self, name: str) -> None:
        """Forget the bitmap of that name."""


class MemoryBitmaps:
    """Bitmaps in a dict."""

    def __init__(self) -> None:
        self._bitmaps: dict[str, Bitmap] = {}

    def bitmap(self, name: str, size: int) -> Bitmap:
        found = self._bitmaps.get(name)
        if found is None:
            found = self._bitmaps[name] = Bitmap(size)
        return found

    def names(self, prefix: str) -> list[str]:
        return [name for name in self._bitmaps if name.startswith(prefix)]

    def drop(self, name: str) -> None:
        del self._bitmaps[name]


class PortAllocator:
    """Hands out the ports of a range, the one released longest ago first.

    `ports` is any range within 1 to 65535, with a step or descending too; it bounds the
    automatic picks, while `reserve` takes any port. `probe(port, protocol, host_ip)`, where
    given, is asked about each automatic pick, and those it answers with False are skipped.
    `bitmaps` keeps the state, in memory unless something else is given. Thread-safe.

    >>> ports = PortAllocator(range(8000, 8003))
    >>> ports.acquire(), ports.acquire(), ports.acquire("udp")
    (8000, 8001, 8000)
    >>> ports.release(8000); ports.acquire(), ports.acquire()
    (8002, 8000)
    """

    def __init__(
        self, ports: range = PORTS, *, probe: Probe | None = None, bitmaps: Bitmaps | None = None
    ) -> None:
        if not isinstance(ports, range):
            raise OutOfRangeError(f"ports {ports!r} is not a range")
        if not ports:
            raise OutOfRangeError(f"{ports!r} has no port in it")
        as_port(ports[0])
        as_port(ports[-1])
        self.ports = ports
        self.probe = probe
        self._bitmaps: Bitmaps = MemoryBitmaps() if bitmaps is None else bitmaps
        self._lock = RLock()
        # The ports of a range with a step are made neighbours: numbers are laid out by
        # their remainder, so that every range is one window of ordinals.
        step = ports.step
        self._step = abs(step)
        self._mirror = 65535 if step < 0 else 0
        self._row = 65535 // self._step + 1
        self.size = self._step * self._row
        self._first = self._ordinal(ports[0])
        self._end = self._first + len(ports)
        self._prefix = "ports" if step == 1 else f"ports,{step}"

    def acquire(self, protocol: str = "tcp", host_ip: IPv4Address | str | None = None) -> int:
        """The next free port: constant time, plus one probe for each port that is skipped.

        Raises ExhaustedError when the range has no free port.
        """
        return self.acquire_many(1, protocol, host_ip)[0]

    def acquire_many(
        self, n: int, protocol: str = "tcp", host_ip: IPv4Address | str | None = None
    ) -> list[int]:
        """The next n free ports, or none of them: ExhaustedError."""
        as_protocol(protocol)
        ip = as_host_ip(host_ip)
        if n < 0:
            raise OutOfRangeError(f"{n} ports cannot be had")
        with self._lock:
            used = self._bitmap(protocol, "used")
            pool = used if ip is None else self._on(protocol, ip)
            picked: list[int] = []
            foreign = 0
            for ordinal in self._free(pool, used.cursor):
                if len(picked) == n:
                    break
                port = self._port(ordinal)
                if self.probe is None or self.probe(port, protocol, ip):
                    picked.append(ordinal)
                else:
                    foreign += 1
            if len(picked) < n:
                self._forget_unused(protocol, ip)
                raise self._exhausted("" if n == 1 else f"{n} ", protocol, ip, foreign)
            self._hold(picked, protocol, ip)
            if picked:
                used.cursor = (picked[-1] + 1) % self.size
            return [self._port(ordinal) for ordinal in picked]

    def acquire_block(
        self, n: int, protocol: str = "tcp", host_ip: IPv4Address | str | None = None
    ) -> range:
        """The first n ports in a row at or after the cursor, as a range with this one's step.

        O(held ports) at worst, as gaps that are too small are passed over one by one.
        Raises ExhaustedError when no gap is that long, OutOfRangeError for n < 1 or more
        than the range has.

        >>> PortAllocator(range(8000, 8100)).acquire_block(10)
        range(8000, 8010)
        """
        as_protocol(protocol)
        ip = as_host_ip(host_ip)
        if not 1 <= n <= len(self.ports):
            raise OutOfRangeError(f"a block of {n} ports is not within 1 to {len(self.ports)}")
        with self._lock:
            used = self._bitmap(protocol, "used")
            pool = used if ip is None else self._on(protocol, ip)
            start = self._gap(pool, self._clamp(used.cursor), n, protocol, ip)
            if start is None:
                start = self._gap(pool, self._first, n, protocol, ip)
            if start is None:
                self._forget_unused(protocol, ip)
                raise self._exhausted(f"{n} adjacent ", protocol, ip)
            self._hold(range(start, start + n), protocol, ip)
            used.cursor = (start + n) % self.size
            index = start - self._first
            return self.ports[index : index + n]

    def reserve(
        self, port: int, protocol: str = "tcp", host_ip: IPv4Address | str | None = None
    ) -> None:
        """Take that very port, of the range or not; the cursor stays where it is.

        Raises InUseError when it is held on every address, on this one, or, where every
        address is asked for, on any.
        """
        as_protocol(protocol)
        ip = as_host_ip(host_ip)
        ordinal = self._ordinal(as_port(port))
        with self._lock:
            if ordinal in self._bitmap(protocol, "every"):
                raise InUseError(f"port {port}/{protocol} is held on every address")
            if ip is None:
                if ordinal in self._bitmap(protocol, "used"):
                    where = ", ".join(
                        str(other) for other, pool in self._each_on(protocol) if ordinal in pool
                    )
                    raise InUseError(
                        f"port {port}/{protocol} is held on {where}, so every address cannot be had"
                    )
            elif self._held_on(ordinal, protocol, ip):
                raise InUseError(f"port {port}/{protocol} is held on {ip}")
            self._hold((ordinal,), protocol, ip)

    def release(
        self, port: int, protocol: str = "tcp", host_ip: IPv4Address | str | None = None
    ) -> None:
        """Give a port back.

        Raises NotAllocatedError when it is not held in that way: a port that is held on
        every address is not released by naming one.
        """
        as_protocol(protocol)
        ip = as_host_ip(host_ip)
        ordinal = self._ordinal(as_port(port))
        with self._lock:
            every = self._bitmap(protocol, "every")
            used = self._bitmap(protocol, "used")
            if ip is None:
                if ordinal not in every:
                    raise NotAllocatedError(f"port {port}/{protocol} is not held on every address")
                full = self._is_full(used)
                every.release(ordinal)
                used.release(ordinal)
                for _, pool in self._each_on(protocol):
                    pool.release(ordinal)
            else:
                if ordinal in every or not self._held_on(ordinal, protocol, ip):
                    raise NotAllocatedError(f"port {port}/{protocol} is not held on {ip}")
                own = self._on(protocol, ip)
                full = self._is_full(own)
                own.release(ordinal)
                if not any(ordinal in pool for _, pool in self._each_on(protocol)):
                    used.release(ordinal)
                self._forget_unused(protocol, ip)
            if full and self._first <= ordinal < self._end:
                used.cursor = ordinal  # the first one released is the next one given

    def held(
        self, port: int, protocol: str = "tcp", host_ip: IPv4Address | str | None = None
    ) -> bool:
        """Whether asking for that port would be refused."""
        as_protocol(protocol)
        ip = as_host_ip(host_ip)
        ordinal = self._ordinal(as_port(port))
        with self._lock:
            if ip is None:
                return ordinal in self._bitmap(protocol, "used")
            return ordinal in self._bitmap(protocol, "every") or self._held_on(
                ordinal, protocol, ip
            )

    def _ordinal(self, port: int) -> int:
        quotient, remainder = divmod(abs(self._mirror - port), self._step)
        return remainder * self._row + quotient

    def _port(self, ordinal: int) -> int:
        remainder, quotient = divmod(ordinal, self._row)
        return abs(self._mirror - (quotient * self._step + remainder))

    def _clamp(self, cursor: int) -> int:
        # A cursor from before the range was changed may lie anywhere.
        return cursor if self._first <= cursor < self._end else self._first

    def _free(self, pool: Ordinals, cursor: int) -> Iterator[int]:
        """The free ordinals of the window, once round from the cursor."""
        cursor = self._clamp(cursor)
        for start, end in ((cursor, self._end), (self._first, cursor)):
            ordinal = pool.next_free(start)
            while ordinal is not None and ordinal < end:
                yield ordinal
                ordinal = pool.next_free(ordinal + 1)

    def _gap(
        self, pool: Ordinals, start: int, n: int, protocol: str, ip: IPv4Address | None
    ) -> int | None:
        """Where n free ordinals in a row begin, at or after start."""
        found = pool.next_free(start)
        while found is not None and found + n <= self._end:
            held = pool.next_set(found)
            if held is not None and held < found + n:
                found = pool.next_free(held)
                continue
            refused = self._refused(range(found, found + n), protocol, ip)
            if refused is None:
                return found
            found = pool.next_free(refused + 1)
        return None

    def _refused(self, ordinals: range, protocol: str, ip: IPv4Address | None) -> int | None:
        """The last of the ordinals that the probe refuses: the next gap begins behind it."""
        if self.probe is not None:
            for ordinal in reversed(ordinals):
                if not self.probe(self._port(ordinal), protocol, ip):
                    return ordinal
        return None

    def _hold(self, ordinals: Iterable[int], protocol: str, ip: IPv4Address | None) -> None:
        used = self._bitmap(protocol, "used")
        if ip is None:
            every = self._bitmap(protocol, "every")
            pools = [every, used, *(pool for _, pool in self._each_on(protocol))]
            for ordinal in ordinals:
                for pool in pools:
                    pool.reserve(ordinal)
        else:
            own = self._on(protocol, ip)
            for ordinal in ordinals:
                own.reserve(ordinal)
                if ordinal not in used:
                    used.reserve(ordinal)

    def _is_full(self, pool: Ordinals) -> bool:
        free = pool.next_free(self._first)
        return free is None or free >= self._end

    def _bitmap(self, protocol: str, kind: str) -> Ordinals:
        return self._bitmaps.bitmap(f"{self._prefix}/{protocol}/{kind}", self.size)

    def _each_on(self, protocol: str) -> list[tuple[IPv4Address, Ordinals]]:
        prefix = f"{self._prefix}/{protocol}/on/"
        return [
            (IPv4Address(name[len(prefix) :]), self._bitmaps.bitmap(name, self.size))
            for name in self._bitmaps.names(prefix)
        ]

    def _held_on(self, ordinal: int, protocol: str, ip: IPv4Address) -> bool:
        return any(other == ip and ordinal in pool for other, pool in self._each_on(protocol))

    def _on(self, protocol: str, ip: IPv4Address) -> Ordinals:
        pool = self._bitmap(protocol, f"on/{ip}")
        if not len(pool):
            every = self._bitmap(protocol, "every")
            ordinal = every.next_set(0)
            while ordinal is not None:
                pool.reserve(ordinal)
                ordinal = every.next_set(ordinal + 1)
        return pool

    def _forget_unused(self, protocol: str, ip: IPv4Address | None) -> None:
        if ip is not None and len(self._on(protocol, ip)) == len(self._bitmap(protocol, "every")):
            self._bitmaps.drop(f"{self._prefix}/{protocol}/on/{ip}")

    def _exhausted(
        self, what: str, protocol: str, ip: IPv4Address | None, foreign: int = 0
    ) -> ExhaustedError:
        where = "every address" if ip is None else str(ip)
        ports = self.ports
        span = f"{ports[0]}-{ports[-1]}" + (f" step {ports.step}" if ports.step != 1 else "")
        others = f" ({foreign} more are in use by other programs or reserved)" if foreign else ""
        return ExhaustedError(f"no {what}free {protocol} port on {where} is left in {span}{others}")
