"""The bitmaps that say which host ports are held: what is asked of them, and those in memory.

netalloc/ports.py says which there are.
"""

from __future__ import annotations

from itertools import islice

from netalloc._alloc import Bitmap
from netalloc.light import Protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SIZE = 65536  # of each bitmap but `more` and `more6`
DIGITS = 32  # of a port in `more`: more addresses than that can count, no host has
ANY_V4, ANY_V6 = "0.0.0.0", "::"  # every address of a family, in names of bitmaps
NAMED = 4  # host addresses that an error names at most


class Held(Protocol):
    """What ports are to be kept clear of."""

    def next_free(self, start: int, /) -> int | None: ...
    def next_block(self, n: int, start: int, /) -> int | None: ...
    def __contains__(self, ordinal: int, /) -> bool: ...


class Ordinals(Held, Protocol):
    """What is asked of a bitmap; netalloc.Bitmap has it, and so has one that lives in a store."""

    cursor: int

    def reserve(self, ordinal: int, /) -> None: ...
    def release(self, ordinal: int, /) -> None: ...
    def next_set(self, start: int, /) -> int | None: ...
    def __len__(self) -> int: ...


class NamedBitmaps(Protocol):
    """Bitmaps by name."""

    def bitmap(self, name: str, size: int) -> Ordinals:
        """The bitmap of that name, made empty when there is none."""

    def known(self, name: str) -> bool:
        """Whether there is a bitmap of that name."""


class Bitmaps(NamedBitmaps, Protocol):
    """Where bitmaps are kept by name."""

    def holders(self, port: int, protocol: str) -> Iterable[str]:
        """Addresses of the host that hold a port, as text; for an error, so a few will do."""

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

    def names(self, prefix: str) -> Iterator[str]:
        return (name for name in self._bitmaps if name.startswith(prefix))

    def holders(self, port: int, protocol: str) -> list[str]:
        """None where there are many addresses with ports: each has a bitmap of its own."""
        prefix = f"ports/{protocol}/on/"
        names = list(islice(self.names(prefix), NAMED + 1))
        if len(names) > NAMED:
            return []
        return [name[len(prefix) :] for name in names if port in self._bitmaps[name]]

    def known(self, name: str) -> bool:
        return name in self._bitmaps

    def drop(self, name: str) -> None:
        del self._bitmaps[name]


def bitmap_size(name: str) -> int:
    """How many ordinals the bitmap of that name has."""
    return SIZE * DIGITS if name.endswith(("/more", "/more6")) else SIZE


def addresses_with(bitmaps: NamedBitmaps, port: int, protocol: str, more_of: str = "more") -> int:
    """How many addresses of the host hold a port, which one at least does.

    Each of 0.0.0.0 and :: counts as one. With `more6` those of IPv6 alone.
    """
    name = f"ports/{protocol}/{more_of}"
    if not bitmaps.known(name):
        return 1
    more, first = bitmaps.bitmap(name, SIZE * DIGITS), port * DIGITS
    found, digit = 1, more.next_set(first)
    while digit is not None and digit < first + DIGITS:
        found += 1 << digit - first
        digit = more.next_set(digit + 1)
    return found


def next_free(pools: list[Held], start: int, n: int = 1) -> int | None:
    """The first of n numbers in a row, from start on, that are free in all of the bitmaps.

    A step for each gap that one of them has and another has not.
    """
    while start < SIZE:
        found = start
        for pool in pools:
            free = pool.next_free(found) if n == 1 else pool.next_block(n, found)
            if free is None:
                return None
            found = free
        if len(pools) == 1 or found == start:
            return found
        start = found
    return None


class InUseOfIPv4:
    """The ports that are held on some address of IPv4: all that are used but those of IPv6 alone.

    Asked for as a bitmap is. A step for each run of ports that are held on IPv6 alone.
    """

    def __init__(self, used: Ordinals, only6: Ordinals) -> None:
        self._used, self._only6 = used, only6

    def __contains__(self, port: int, /) -> bool:
        return port in self._used and port not in self._only6

    def next_free(self, start: int, /) -> int | None:
        """The first port from start on that is not held."""
        found = [self._used.next_free(start), self._only6.next_set(start)]
        return min([port for port in found if port is not None], default=None)

    def next_set(self, start: int, /) -> int | None:
        """The first port from start on that is held."""
        port = self._used.next_set(start)
        while port is not None and port in self._only6:
            free = self._only6.next_free(port)
            port = None if free is None else self._used.next_set(free)
        return port

    def next_block(self, n: int, start: int, /) -> int | None:
        """The first of n ports in a row, from start on, that are not held."""
        begin = self.next_free(start)
        while begin is not None and begin + n <= SIZE:
            end = self.next_set(begin)
            if end is None or end - begin >= n:
                return begin
            begin = self.next_free(end)
        return None


def bitmap_of(ports: Iterable[int]) -> Bitmap:
    found = Bitmap(SIZE)
    for port in ports:
        found.reserve(port)
    return found
