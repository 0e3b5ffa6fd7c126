"""Which host port is the next one, of those that nothing holds: see held_ports.py.

A pick is a search in one bitmap or in up to three, however many ports are held.
"""

from __future__ import annotations

from _thread import RLock
from collections.abc import Callable

from netalloc.address_values import IP, as_host_place
from netalloc.errors import ExhaustedError, InUseError, InvalidValueError, NotAllocatedError
from netalloc.held_ports import HeldPorts, words
from netalloc.locks import locked
from netalloc.port_bitmaps import (
    Bitmaps,
    Held,
    MemoryBitmaps,
    bitmap_of,
    next_free,
)
from netalloc.values import PORTS, as_int, as_port, as_protocol, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_REFUSALS = 8  # of the probe, from which a look at all that it refuses is cheaper: 2 µs each
Probe = Callable[[int, str, IP | None], bool]


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
    automatic picks, while `reserve` takes any port. `host_ip` None is every address of the host,
    0.0.0.0 and :: are every one of their family. `probe(port, protocol, host_ip)`, where given,
    is asked about each automatic pick, and those it answers with False are skipped.
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
        self._held = HeldPorts(self._bitmaps)
        self._lock = RLock()

    def acquire(self, protocol: str = "tcp", host_ip: IP | str | None = None) -> int:
        """The next free port: constant time, plus one probe for each port that is skipped.

        In a range with a step or a descending one, also a look at each held port that is
        skipped. Raises ExhaustedError when the range has no free port.
        """
        return self.acquire_many(1, protocol, host_ip)[0]

    @locked
    def acquire_many(
        self, n: int, protocol: str = "tcp", host_ip: IP | str | None = None
    ) -> list[int]:
        """The next n free ports, or none of them: ExhaustedError."""
        protocol, ip = as_protocol(protocol), as_host_place(host_ip)
        if n != 1 or type(n) is not int:
            n = as_int(n, "number of ports", 0, 65535)
        used = self._held.bitmap(protocol, "used")
        pools: list[Held] = [used] if ip is None else self._held.pools(protocol, ip)
        picked: list[int] = []
        asked = _Asked(self.probe, protocol, ip)
        first = self._first(pools, used.cursor) if n == 1 else None
        if first is not None and not asked.refuses(first, pools):
            picked.append(first)
        else:
            self._pick(picked, n, pools, used.cursor, asked)
        if len(picked) < n:
            foreign = asked.foreign(self.ports, self._held.pools(protocol, ip))
            raise self._exhausted("" if n == 1 else f"{n} ", protocol, ip, foreign)
        self._held.take(picked, protocol, ip, used)
        if picked:
            used.cursor = self._after(picked[-1])
        return picked

    @locked
    def acquire_block(
        self, n: int, protocol: str = "tcp", host_ip: IP | str | None = None
    ) -> range:
        """The first n ports in a row at or after the cursor, as a range with this one's step.

        Looks at 64 ports at a time, all of them at worst, and asks the probe about each of
        the block; on one address, gaps that are another's there are passed one by one, and in
        a range with a step or a descending one, blocks with a held port are. Raises
        ExhaustedError when no gap is that long, OutOfRangeError for n < 1 or more than the
        range has.

        >>> PortAllocator(range(8000, 8100)).acquire_block(10)
        range(8000, 8010)
        """
        protocol, ip = as_protocol(protocol), as_host_place(host_ip)
        n = as_int(n, "block of", 1, len(self.ports))
        pools = self._held.pools(protocol, ip)
        used = self._held.bitmap(protocol, "used")
        asked = _Asked(self.probe, protocol, ip)
        first = self.ports.index(self._clamp(used.cursor))
        index = self._gap(pools, first, n, asked)
        if index is None:
            index = self._gap(pools, 0, n, asked)
        if index is None:
            raise self._exhausted(f"{n} adjacent ", protocol, ip)
        block = self.ports[index : index + n]
        self._held.take(block, protocol, ip)
        used.cursor = self._after(block[-1])
        return block

    @locked
    def reserve(self, port: int, protocol: str = "tcp", host_ip: IP | str | None = None) -> None:
        """Take that very port, of the range or not; the cursor stays where it is.

        Raises InUseError when it is held on every address, on this one, or, where every
        address, or every one of a family, is asked for, on any of these.
        """
        port, protocol, ip = as_port(port), as_protocol(protocol), as_host_place(host_ip)
        if self._held.is_taken(port, protocol, ip):
            where = self._held.where(port, protocol, ip)
            raise InUseError(f"port {port}/{protocol} is held on {where}")
        self._held.take((port,), protocol, ip)

    @locked
    def release(self, port: int, protocol: str = "tcp", host_ip: IP | str | None = None) -> None:
        """Give a port back; where none of the range was free, it is the next one given.

        Raises NotAllocatedError when it is not held in that way: a port that is held on
        every address is not released by naming one.
        """
        port, protocol, ip = as_port(port), as_protocol(protocol), as_host_place(host_ip)
        held = self._held.on(protocol, ip)
        if held is None or port not in held:
            raise NotAllocatedError(f"port {port}/{protocol} is not held on {words(ip)}")
        used = self._held.bitmap(protocol, "used")
        full = port in self.ports and self._is_full(self._held.pools(protocol, ip), used.cursor)
        self._held.give_back(port, protocol, ip, held, used)
        if full:
            used.cursor = port

    @locked
    def held(self, port: int, protocol: str = "tcp", host_ip: IP | str | None = None) -> bool:
        """Whether asking for that port would be refused."""
        port, protocol, ip = as_port(port), as_protocol(protocol), as_host_place(host_ip)
        return self._held.is_taken(port, protocol, ip)

    def _first(self, pools: list[Held], cursor: int) -> int | None:
        """The first of the free ports, where one look can tell; else None."""
        if len(pools) > 1 or self.ports.step != 1:
            return None
        port = pools[0].next_free(self._clamp(cursor))
        return None if port is None or port >= self.ports.stop else port

    def _pick(
        self, picked: list[int], n: int, pools: list[Held], cursor: int, asked: _Asked
    ) -> None:
        """Add free ports that the probe has nothing against, up to n of them."""
        for port in self._free(pools, cursor) if n else ():
            if asked.refuses(port, pools):
                continue
            picked.append(port)
            if len(picked) == n:
                return

    def _free(self, pools: list[Held], cursor: int) -> Iterator[int]:
        """The free ports of the range, once round from the cursor."""
        start = self._clamp(cursor)
        if self.ports.step == 1:
            for begin, end in ((start, self.ports.stop), (self.ports[0], start)):
                port = next_free(pools, begin)
                while port is not None and port < end:
                    yield port
                    port = next_free(pools, port + 1)
            return
        index = self.ports.index(start)
        for part in (self.ports[index:], self.ports[:index]):
            for port in part:
                if not any(port in pool for pool in pools):
                    yield port

    def _gap(self, pools: list[Held], index: int, n: int, asked: _Asked) -> int | None:
        """Where in the range n ports in a row begin that are to be had, at or after an index."""
        while True:
            found = self._free_gap(pools, index, n)
            if found is None:
                return None
            block = self.ports[found : found + n]
            refused = next((port for port in reversed(block) if asked.refuses(port, pools)), None)
            if refused is None:
                return found
            index = self.ports.index(refused) + 1

    def _free_gap(self, pools: list[Held], index: int, n: int) -> int | None:
        """The same of ports that are free."""
        ports = self.ports
        if ports.step == 1 and index < len(ports):
            first = next_free(pools, ports[index], n)
            return None if first is None or first + n > ports.stop else ports.index(first)
        while index + n <= len(ports):
            block = reversed(ports[index : index + n])
            held = next((port for port in block if any(port in pool for pool in pools)), None)
            if held is None:
                return index
            index = ports.index(held) + 1
        return None

    def _clamp(self, cursor: int) -> int:
        # The cursor of another range, or from before the range was changed, may lie anywhere.
        return cursor if cursor in self.ports else self.ports[0]

    def _after(self, port: int) -> int:
        """The port of the range that follows, round and round."""
        ports = self.ports
        if ports.step == 1 and ports.start <= port < ports.stop - 1:
            return port + 1
        return ports[(ports.index(port) + 1) % len(ports)]

    def _is_full(self, pools: list[Held], cursor: int) -> bool:
        # Once round from the cursor, where as a rule the first look finds a free one.
        return next(self._free(pools, cursor), None) is None

    def _exhausted(
        self, what: str, protocol: str, ip: IP | None, foreign: int = 0
    ) -> ExhaustedError:
        ports = self.ports
        span = f"{ports[0]}-{ports[-1]}" + (f" step {ports.step}" if ports.step != 1 else "")
        others = f" ({foreign} more are in use by other programs or reserved)" if foreign else ""
        return ExhaustedError(
            f"no {what}free {protocol} port on {words(ip)} is left in {span}{others}"
        )


class _Asked:
    """What the probe says of one call's candidates.

    One that has `refused` (see HostProbe) is not asked about every port that the host has in use:
    from some refusals on these are looked up at once, and passed over like ports that are held.
    """

    def __init__(self, probe: Probe | None, protocol: str, ip: IP | None) -> None:
        self._probe, self._protocol, self._ip = probe, protocol, ip
        self._refused: set[int] = set()
        self._known: frozenset[int] = frozenset()

    def refuses(self, port: int, pools: list[Held]) -> bool:
        """Whether the port is not to be had; the pools get what else is not."""
        if self._probe is None:
            return False
        if port in self._refused:
            return True
        if self._probe(port, self._protocol, self._ip):
            return False
        self._refused.add(port)
        look = getattr(self._probe, "refused", None)
        if look is not None and len(self._refused) == _REFUSALS:
            self._known = look(self._protocol, self._ip)
            pools.append(bitmap_of(self._known))
        return True

    def foreign(self, ports: range, pools: list[Held]) -> int:
        """How many ports of the range are free but for the probe, as far as it was asked."""
        known = [port for port in self._known - self._refused if port in ports]
        return len(self._refused) + sum(not any(port in pool for pool in pools) for port in known)
