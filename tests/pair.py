"""The core and its oracle side by side: each step is done to both, and they must agree."""

import pickle
import random
from array import array
from collections.abc import Callable, Iterable
from typing import Any

import netalloc
import reference
from netalloc import NetallocError


def outcome(step: Callable[[], Any]) -> Any:
    """What a step returns, or the type of the error that it raises."""
    try:
        return step()
    except NetallocError as error:
        return type(error)


def expand(ranges: Iterable[tuple[int, int]]) -> list[int]:
    return [i for start, stop in ranges for i in range(start, stop)]


class Pair:
    """A netalloc.Bitmap and a reference.Bitmap of one size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.core = netalloc.Bitmap(size)
        self.oracle = reference.Bitmap(size)

    def agree(self, ours: Callable[[], Any], theirs: Callable[[], Any]) -> Any:
        got, expected = outcome(ours), outcome(theirs)
        assert got == expected, f"{got}, the oracle says {expected}: {self.core!r}"
        assert self.core.cursor == self.oracle.cursor
        assert self.core.available == self.oracle.available
        return got

    def acquire(self) -> Any:
        return self.agree(self.core.acquire, self.oracle.acquire)

    def reserve(self, i: int) -> Any:
        return self.agree(lambda: self.core.reserve(i), lambda: self.oracle.reserve(i))

    def release(self, i: int) -> Any:
        return self.agree(lambda: self.core.release(i), lambda: self.oracle.release(i))

    def acquire_ranges(self, n: int) -> Any:
        return self.agree(
            lambda: expand(self.core.acquire_ranges(n)), lambda: self.oracle.acquire_many(n)
        )

    def acquire_into(self, n: int, code: str = "Q") -> Any:
        target = array(code, [7]) * n

        def ours() -> list[int]:
            assert self.core.acquire_into(target) == n
            return target.tolist()

        return self.agree(ours, lambda: self.oracle.acquire_many(n))

    def acquire_block(self, n: int) -> Any:
        return self.agree(lambda: self.core.acquire_block(n), lambda: self.oracle.acquire_block(n))

    def next_block(self, n: int, start: int) -> Any:
        return self.agree(
            lambda: self.core.next_block(n, start), lambda: self.oracle.next_block(n, start)
        )

    def previous_set(self, start: int) -> Any:
        return self.agree(
            lambda: self.core.previous_set(start), lambda: self.oracle.previous_set(start)
        )

    def counts(self, first: int, cell: int, n: int) -> Any:
        return self.agree(
            lambda: memoryview(self.core.counts(first, cell, n)).cast("Q").tolist(),
            lambda: self.oracle.counts(first, cell, n),
        )

    def release_many(self, ordinals: list[int], code: str | None = None) -> Any:
        given = array(code, ordinals) if code else ordinals
        return self.agree(
            lambda: self.core.release_many(given), lambda: self.oracle.release_many(ordinals)
        )

    def move_cursor(self, i: int) -> None:
        self.core.cursor = self.oracle.cursor = i

    def through_bytes(self) -> None:
        data = self.core.to_bytes()
        self.core = pickle.loads(pickle.dumps(self.core))
        assert self.core.to_bytes() == data

    def check(self) -> None:
        """Every invariant, and that both hold the same."""
        self.core._check()
        assert list(self.core.runs()) == self.oracle.runs()
        for i in (0, self.core.cursor, self.size - 1):
            assert (i in self.core) == (i in self.oracle.taken)


class Walk:
    """Random steps over a pair; some crowd around the places where blocks begin and end.

    At most `most` ordinals are held, so that the oracle stays fast enough for a million steps.
    """

    def __init__(self, size: int, seed: int, most: int = 5_000) -> None:
        self.pair = Pair(size)
        self.random = random.Random(seed)
        self.most = min(most, size)
        self.rising = True
        self.held: list[int] = []
        edges = [0, 64, 4096, 2**18, size // 2, size - 64, size - 1]
        self.edges = [edge for edge in edges if 0 <= edge < size]

    def somewhere(self) -> int:
        near = self.random.choice(self.edges) + self.random.randrange(-70, 70)
        return near if 0 <= near < self.pair.size else self.random.randrange(self.pair.size)

    def step(self) -> None:
        """Mostly one acquire or release; of a thousand, a dozen do more."""
        count = len(self.pair.oracle.taken)
        if count >= self.most:
            self.rising = False
        elif count == 0:
            self.rising = True
        dice = self.random.random()
        if dice < 0.01:
            self.unusual_step(dice * 100)
        elif dice < (0.6 if self.rising else 0.4):
            self.took([self.pair.acquire()])
        elif dice < (0.7 if self.rising else 0.43):
            i = self.somewhere()
            if self.pair.reserve(i) is None:
                self.held.append(i)
        elif self.held:
            k = self.random.randrange(len(self.held))
            self.held[k], self.held[-1] = self.held[-1], self.held[k]
            assert self.pair.release(self.held.pop()) is None
        else:
            self.pair.release(self.somewhere())

    def unusual_step(self, dice: float) -> None:
        room = min(self.pair.core.available, self.most) if self.rising else 20
        n = self.random.randrange(room + 2) if dice < 0.01 else self.random.randrange(150)
        if dice < 0.2:
            self.took(self.pair.acquire_ranges(n))
        elif dice < 0.4:
            self.took(self.pair.acquire_into(n, "Q" if self.pair.size > 2**32 else "I"))
        elif dice < 0.5:
            start = self.pair.acquire_block(n + 1)
            self.took(range(start, start + n + 1) if isinstance(start, int) else start)
        elif dice < 0.7:
            self.random.shuffle(self.held)
            given = self.held[:n] if dice < 0.6 else sorted(self.held[:n])
            if dice < 0.52 and given:
                self.pair.release_many([*given, given[0]])
            assert self.pair.release_many(given, "Q" if dice < 0.65 else None) is None
            del self.held[:n]
        elif dice < 0.8:
            self.pair.move_cursor(self.somewhere())
        elif dice < 0.9:
            self.pair.through_bytes()
        else:
            self.pair.release(self.pair.size + n)

    def took(self, got: Any) -> None:
        if isinstance(got, (list, range)):
            self.held.extend(i for i in got if isinstance(i, int))
