"""A bitmap that lives in a store, of which only the touched parts are read and written.

Beside its spans (spans.py) it has a *journal* of what has changed, which the transaction writes
into the state row instead of the spans, until it is long: so an allocation writes none of this
bitmap's own rows, and a cold process follows a few runs.
"""

from __future__ import annotations

from netalloc._alloc import Span
from netalloc.errors import (
    ExhaustedError,
    NetallocError,
    OutOfRangeError,
    StoreError,
)
from netalloc.store.sqlite.connection import REPAIR
from netalloc.store.sqlite.spans import LEAF, MASK, SHIFT, Spans, leaves_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LEAF", "LeafBitmap"]

_LONG = 64  # runs in a journal: some 1 KB of text
_MANY = 4  # spans that a cold process has to read to follow a journal: 10 microseconds each


class LeafBitmap(Spans):
    """The same methods as netalloc.Bitmap.

    `changes` counts, before each is made, so that an interrupt cannot hide one, and `written` is
    how many the store has. After an error in the middle of a method it is to be read anew.
    """

    __slots__ = ()

    def __init__(
        self,
        size: int,
        load: Callable[[int], Span | None],
        *,
        name: str = "",
        first: int | None = None,
        count: int = 0,
        cursor: int = 0,
    ) -> None:
        super().__init__(name, size, load, leaves_of(size) if first is None else first, count)
        self.changes = 0
        self.written = 0
        self._cursor = cursor
        self._early = ""  # the journal but for its last run
        self._runs = 0
        self._last = None

    @property
    def changed(self) -> bool:
        """Whether the store has to be written to."""
        return self.changes != self.written

    def acquire_ranges(self, n: int) -> list[tuple[int, int]]:
        """The next n free ordinals as runs (start, stop), or none of them."""
        if n > self.size - self.count:
            raise ExhaustedError(f"{self.size - self.count} ordinals are free, not {n}")
        self.changes += n > 0
        runs: list[tuple[int, int]] = []
        start = self._cursor
        while n:
            found = self.next_free(start)
            if found is None:
                start = 0
                continue
            taken = self._take(found, n)
            start = found + taken
            self._note(True, found, start)
            if runs and runs[-1][1] == found:
                runs[-1] = runs[-1][0], start
            else:
                runs.append((found, start))
            n -= taken
            self._cursor = start % self.size
            if start == self.size:
                start = 0
        return runs

    def next_set(self, start: int) -> int | None:
        """The first ordinal in use from start on."""
        if start >= self.size:
            return None
        number, low = start >> SHIFT, start & MASK
        while number < self._leaves:
            span = self._by_first.get(number) or self._find(number)
            if number >= span.stop:
                number, low = span.following, 0
                continue
            found = low if span.bits is None else span.bits.next_set(low)
            if found is not None:
                return number << SHIFT | found
            number, low = number + 1, 0
        return None

    def previous_set(self, start: int) -> int | None:
        """The last ordinal in use up to start."""
        start = min(start, self.size - 1)
        number, low = start >> SHIFT, start & MASK
        while True:
            span = self._find(number)
            if span.bits is None:
                last = min(number, span.stop - 1)
                if last < 0:  # the head
                    return None
                return start if last == start >> SHIFT else (last << SHIFT | MASK)
            found = span.bits.previous_set(low if span.first == start >> SHIFT else MASK)
            if found is not None:
                return span.first << SHIFT | found
            number = span.first - 1

    def next_block(self, n: int, start: int) -> int | None:
        """Where the first n free ordinals in a row from start on begin. O(mixed leaves)."""
        if not 0 <= start <= self.size - n:
            return None
        begin, number = start, start >> SHIFT  # all from begin to the leaf are free
        while number < self._leaves:
            span = self._by_first.get(number) or self._find(number)
            first = number << SHIFT
            if number >= span.stop:
                number = span.following
            elif span.bits is None:
                number = span.stop
                begin = number << SHIFT
            else:
                bits = span.bits
                if begin < first:
                    end = bits.next_set(0)
                    assert end is not None  # or there would be no span
                    if first + end - begin >= n:
                        return begin
                found = bits.next_block(n, begin - first if begin > first else 0)
                if found is not None:
                    return first + found
                last = bits.previous_set(MASK)
                assert last is not None
                number += 1
                begin = max(begin, first + last + 1)
            if number < self._leaves and (number << SHIFT) - begin >= n:
                return begin
        return begin if self.size - begin >= n else None

    @property
    def entry(self) -> str:
        """Cursor and journal, as the state row has them.

        Empty where the spans are to be written, and the journal begun anew.
        """
        if self._runs >= _LONG or len(self.dirty) > _MANY:
            return ""
        return f"{self._cursor} {self.journal}"

    def stored(self) -> None:
        """The spans were written: the journal begins anew."""
        self.dirty.clear()
        self._early, self._runs, self._last = "", 0, None

    def follow(self, cursor: int, journal: str) -> None:
        """Make the changes of a journal, of which the spans know nothing. 2 us a run."""
        self._cursor = cursor
        runs = _runs(journal)
        try:
            for run in runs:
                self._follow(*run)
        except NetallocError as error:
            raise StoreError(
                f"bitmap {self.name} and its journal disagree: {error}; {REPAIR}"
            ) from error
        if runs:
            self._last = runs[-1]
            self._runs = len(runs)
            self._early = "".join([f"{run} " for run in journal.split()[:-1]])

    def catch_up(self, entry: str) -> bool:
        """Make the changes by which an entry goes on from this one's own.

        False where it does not, or what it says cannot be: then this is to be read anew.
        """
        cursor, _, journal = entry.partition(" ")
        if not journal.startswith(self._early):
            return False
        runs = _runs(journal[len(self._early) :])
        last = self._last
        if last is not None:  # the run that may have become longer
            if not runs or runs[0][:2] != last[:2] or runs[0][2] < last[2]:
                return False
            runs[0] = last[0], last[2], runs[0][2]
        try:
            for taken, start, stop in runs:
                self._follow(taken, start, stop)
                if start < stop:
                    self._note(taken, start, stop)
        except NetallocError:
            return False
        if cursor:
            self._cursor = int(cursor)
        return True

    def _follow(self, taken: bool, start: int, stop: int) -> None:
        at, change = start, self._take if taken else self._give
        while at < stop:
            if (at in self) is taken:
                raise StoreError(f"{at} is so already")
            at += change(at, stop - at)

    def _check(self, ordinal: int) -> int:
        if not 0 <= ordinal < self.size:
            raise OutOfRangeError(f"{ordinal} is not in 0 to {self.size - 1}")
        return ordinal


def _runs(journal: str) -> list[tuple[bool, int, int]]:
    """Whether they were taken, the first ordinal and the one behind the last."""
    parts = [(text[0] == "+", *text[1:].partition(":")) for text in journal.split()]
    return [(taken, int(first), int(last or first) + 1) for taken, first, _, last in parts]
