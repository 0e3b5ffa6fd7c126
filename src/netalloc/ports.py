"""Which host ports are held, on which of the host's addresses, and which one is next.

A port is held either on every address of the host (the wildcard) or on one. As with sockets,
the wildcard conflicts with everything of the same protocol and number, and two different
addresses do not conflict. Per protocol there are four kinds of bitmaps, in which the ordinal
of a port is its number, whatever the range that it was taken from:

    every     ports held on every address
    used      ports held on any address: what a wildcard must keep clear of
    on/<ip>   ports held on that address; one that is taken there must keep clear of `every` too
    more/<i>  ports of which the number of addresses that hold them, less one, has the binary
              digit i: so releasing one of a thousand looks at ten bitmaps, not at a thousand

so that a pick is a search in one bitmap or in two, however many ports are held.
"""

from __future__ import annotations

from _thread import RLock
from collections.abc import Callable
from ipaddress import IPv4Address

from netalloc._alloc import Bitmap
from netalloc.errors import ExhaustedError, InUseError, InvalidValueError, NotAllocatedError
from netalloc.light import Protocol
from netalloc.locks import locked
from netalloc.values import as_host_ip, as_int, as_port, as_protocol, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PORTS = range(49153, 65536)
SIZE = 65536  # of each bitmap
_NAMED = 8  # host addresses with ports, of which an error looks for the one that it names
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

    def known(self, name: str) -> bool:
        """Whether there is a bitmap of that name."""

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

    def known(self, name: str) -> bool:
        return name in self._bitmaps

    def drop(self, name: str) -> None:
        del self._bitmaps[name]


def as_ports(ports: object) -> range:
    """A range of ports, in either direction and with any step, that is not empty."""
    if not isinstance(ports, range):
        raise InvalidValueError(f"ports {shown(ports)} are not a range")
    if not ports:
        raise InvalidValueError(f"{shown(ports)} has no port in it")
    as_port(ports[0])
    as_port(ports[-1])
    return ports


class PortAllocator:
    """Hands out the ports of a range, the one released longest ago first.

    `ports` is any range within 1 to 65535, with a step or descending too; it bounds the
    automatic picks, while `reserve` takes any port. `probe(port, protocol, host_ip)`, where
    given, is asked about each automatic pick, and those it answers with False are skipped.
    `bitmaps` keeps the state, in memory unless something else is given. Thread-safe. Raises
    InvalidValueError and OutOfRangeError for values that are none of these.

    >>> ports = PortAllocator(range(8000, 8003))
    >>> ports.acquire(), ports.acquire(), ports.acquire("udp")
    (8000, 8001, 8000)
    >>> ports.release(8000); ports.acquire(), ports.acquire()
    (8002, 8000)
    """

    def __init__(
        self, ports: range = PORTS, *, probe: Probe | None = None, bitmaps: Bitmaps | None = None
    ) -> None:
        if probe is not None and not callable(probe):
            raise InvalidValueError(f"probe {shown(probe)} cannot be called")
        self.ports = as_ports(ports)
        self.probe = probe
        self._bitmaps: Bitmaps = MemoryBitmaps() if bitmaps is None else bitmaps
        self._lock = RLock()

    def acquire(self, protocol: str = "tcp", host_ip: IPv4Address | str | None = None) -> int:
        """The next free port: constant time, plus one probe for each port that is skipped.

        In a range with a step or a descending one, also a look at each held port that is
        skipped. Raises ExhaustedError when the range has no free port.
        """
        return self.acquire_many(1, protocol, host_ip)[0]

    @locked
    def acquire_many(
        self, n: int, protocol: str = "tcp", host_ip: IPv4Address | str | None = None
    ) -> list[int]:
        """The next n free ports, or none of them: ExhaustedError."""
        protocol, ip = as_protocol(protocol), as_host_ip(host_ip)
        n = as_int(n, "number of ports", 0, 65535)
        pools = self._pools(protocol, ip)
        used = self._bitmap(protocol, "used")
        picked: list[int] = []
        foreign = 0
        for port in self._free(pools, used.cursor) if n else ():
            if self.probe is not None and not self.probe(port, protocol, ip):
                foreign += 1
                continue
            picked.append(port)
            if len(picked) == n:
                break
        if len(picked) < n:
            raise self._exhausted("" if n == 1 else f"{n} ", protocol, ip, foreign)
        self._hold(picked, protocol, ip)
        if picked:
            used.cursor = self._after(picked[-1])
        return picked

    @locked
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
        protocol, ip = as_protocol(protocol), as_host_ip(host_ip)
        n = as_int(n, "block of", 1, len(self.ports))
        pools = self._pools(protocol, ip)
        used = self._bitmap(protocol, "used")
        first = self.ports.index(self._clamp(used.cursor))
        index = self._gap(pools, first, n, protocol, ip)
        if index is None:
            index = self._gap(pools, 0, n, protocol, ip)
        if index is None:
            raise self._exhausted(f"{n} adjacent ", protocol, ip)
        block = self.ports[index : index + n]
        self._hold(block, protocol, ip)
        used.cursor = self._after(block[-1])
        return block

    @locked
    def reserve(
        self, port: int, protocol: str = "tcp", host_ip: IPv4Address | str | None = None
    ) -> None:
        """Take that very port, of the range or not; the cursor stays where it is.

        Raises InUseError when it is held on every address, on this one, or, where every
        address is asked for, on any.
        """
        port, protocol, ip = as_port(port), as_protocol(protocol), as_host_ip(host_ip)
        if self._is_taken(port, protocol, ip):
            where = self._where(port, protocol, ip)
            raise InUseError(f"port {port}/{protocol} is held on {where}")
        self._hold((port,), protocol, ip)

    @locked
    def release(
        self, port: int, protocol: str = "tcp", host_ip: IPv4Address | str | None = None
    ) -> None:
        """Give a port back; where none of the range was free, it is the next one given.

        Raises NotAllocatedError when it is not held in that way: a port that is held on
        every address is not released by naming one.
        """
        port, protocol, ip = as_port(port), as_protocol(protocol), as_host_ip(host_ip)
        held = self._bitmap(protocol, "every") if ip is None else self._on(protocol, ip)
        if held is None or port not in held:
            where = "every address" if ip is None else str(ip)
            raise NotAllocatedError(f"port {port}/{protocol} is not held on {where}")
        full = port in self.ports and self._is_full(self._pools(protocol, ip))
        used = self._bitmap(protocol, "used")
        held.release(port)
        if ip is None or not self._one_less(port, protocol):
            used.release(port)
        if ip is not None and not len(held):
            self._bitmaps.drop(f"ports/{protocol}/on/{ip}")
        if full:
            used.cursor = port

    @locked
    def held(
        self, port: int, protocol: str = "tcp", host_ip: IPv4Address | str | None = None
    ) -> bool:
        """Whether asking for that port would be refused."""
        port, protocol, ip = as_port(port), as_protocol(protocol), as_host_ip(host_ip)
        return self._is_taken(port, protocol, ip)

    def _is_taken(self, port: int, protocol: str, ip: IPv4Address | None) -> bool:
        """Whether the port is held so that it cannot be had."""
        if port not in self._bitmap(protocol, "used"):
            return False
        if ip is None or port in self._bitmap(protocol, "every"):
            return True
        own = self._on(protocol, ip)
        return own is not None and port in own

    def _where(self, port: int, protocol: str, ip: IPv4Address | None) -> str:
        """Where a port that cannot be had is held, in words."""
        if port in self._bitmap(protocol, "every"):
            return "every address"
        if ip is not None:
            return str(ip)
        prefix = f"ports/{protocol}/on/"
        names = list(self._bitmaps.names(prefix))
        if len(names) > _NAMED:
            return "single addresses of the host, so every address cannot be had"
        on = [name for name in names if port in self._bitmaps.bitmap(name, SIZE)]
        return f"{', '.join(name[len(prefix) :] for name in on)}, so every address cannot be had"

    def _free(self, pools: list[Ordinals], cursor: int) -> Iterator[int]:
        """The free ports of the range, once round from the cursor."""
        start = self._clamp(cursor)
        if self.ports.step == 1:
            for begin, end in ((start, self.ports.stop), (self.ports[0], start)):
                port = _next_free(pools, begin)
                while port is not None and port < end:
                    yield port
                    port = _next_free(pools, port + 1)
            return
        index = self.ports.index(start)
        for part in (self.ports[index:], self.ports[:index]):
            for port in part:
                if not any(port in pool for pool in pools):
                    yield port

    def _gap(
        self, pools: list[Ordinals], index: int, n: int, protocol: str, ip: IPv4Address | None
    ) -> int | None:
        """Where in the range n free ports in a row begin, at or after an index."""
        while index + n <= len(self.ports):
            block = self.ports[index : index + n]
            last = self._last_held(pools, block)
            if last is None:
                last = self._last_refused(block, protocol, ip)
                if last is None:
                    return index
            index = self.ports.index(last) + 1
            if self.ports.step == 1:  # over all that is held, in one step
                free = _next_free(pools, last + 1)
                if free is None or free not in self.ports:
                    return None
                index = self.ports.index(free)
        return None

    def _last_held(self, pools: list[Ordinals], block: range) -> int | None:
        if block.step == 1:
            held = [pool.next_set(block[0]) for pool in pools]
            first = min([port for port in held if port is not None], default=SIZE)
            return first if first <= block[-1] else None
        return next((port for port in reversed(block) if any(port in pool for pool in pools)), None)

    def _last_refused(self, block: range, protocol: str, ip: IPv4Address | None) -> int | None:
        """The last port that the probe refuses: the next gap begins behind it."""
        if self.probe is not None:
            for port in reversed(block):
                if not self.probe(port, protocol, ip):
                    return port
        return None

    def _hold(self, ports: Iterable[int], protocol: str, ip: IPv4Address | None) -> None:
        used = self._bitmap(protocol, "used")
        held = self._bitmap(protocol, "every" if ip is None else f"on/{ip}")
        for port in ports:
            held.reserve(port)
            if port in used:
                self._one_more(port, protocol)
            else:
                used.reserve(port)

    def _one_more(self, port: int, protocol: str) -> None:
        """Count one more of the addresses that hold a port: a binary counter, carry and all."""
        digit = self._bitmap(protocol, "more/0")
        i = 0
        while port in digit:
            digit.release(port)
            i += 1
            digit = self._bitmap(protocol, f"more/{i}")
        digit.reserve(port)

    def _one_less(self, port: int, protocol: str) -> bool:
        """Count one less; False where that was the only one."""
        lower: list[Ordinals] = []
        while self._bitmaps.known(name := f"ports/{protocol}/more/{len(lower)}"):
            digit = self._bitmaps.bitmap(name, SIZE)
            if port in digit:
                digit.release(port)
                for each in lower:  # a borrow
                    each.reserve(port)
                return True
            lower.append(digit)
        return False

    def _pools(self, protocol: str, ip: IPv4Address | None) -> list[Ordinals]:
        """What a port must be clear of to be taken there."""
        if ip is None:
            return [self._bitmap(protocol, "used")]
        every, own = self._bitmap(protocol, "every"), self._on(protocol, ip)
        return [every] if own is None else [every, own]

    def _clamp(self, cursor: int) -> int:
        # The cursor of another range, or from before the range was changed, may lie anywhere.
        return cursor if cursor in self.ports else self.ports[0]

    def _after(self, port: int) -> int:
        """The port of the range that follows, round and round."""
        return self.ports[(self.ports.index(port) + 1) % len(self.ports)]

    def _is_full(self, pools: list[Ordinals]) -> bool:
        return next(self._free(pools, self.ports[0]), None) is None

    def _bitmap(self, protocol: str, kind: str) -> Ordinals:
        return self._bitmaps.bitmap(f"ports/{protocol}/{kind}", SIZE)

    def _on(self, protocol: str, ip: IPv4Address) -> Ordinals | None:
        """The ports held on one address; None where there are none: such a bitmap is dropped."""
        name = f"ports/{protocol}/on/{ip}"
        return self._bitmaps.bitmap(name, SIZE) if self._bitmaps.known(name) else None

    def _exhausted(
        self, what: str, protocol: str, ip: IPv4Address | None, foreign: int = 0
    ) -> ExhaustedError:
        where = "every address" if ip is None else str(ip)
        ports = self.ports
        span = f"{ports[0]}-{ports[-1]}" + (f" step {ports.step}" if ports.step != 1 else "")
        others = f" ({foreign} more are in use by other programs or reserved)" if foreign else ""
        return ExhaustedError(f"no {what}free {protocol} port on {where} is left in {span}{others}")


def _next_free(pools: list[Ordinals], start: int) -> int | None:
    """The first number from start on that is free in all of the bitmaps."""
    while start < SIZE:
        found = start
        for pool in pools:
            free = pool.next_free(found)
            if free is None:
                return None
            found = free
        if len(pools) == 1 or found == start:
            return found
        start = found
    return None
