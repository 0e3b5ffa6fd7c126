"""A bitmap that lives in a store, of which only the touched parts are read and written.

Beside its spans (spans.py) it has a *journal* of what has changed, which the transaction writes
into the state row instead of the spans, until it is long: so an allocation writes none of this
bitmap's own rows, and a cold process follows a few runs.
"""

from __future__ import annotations

from netalloc.errors import (
    ExhaustedError,
    InUseError,
    NetallocError,
    NotAllocatedError,
    OutOfRangeError,
    StoreError,
)
from netalloc.store.sqlite.connection import REPAIR
from netalloc.store.sqlite.spans import LEAF, MASK, SHIFT, Span, Spans, leaves_of

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

    __slots__ = ("_cursor", "_early", "_last", "_runs", "changes", "written")

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
        self._last: tuple[bool, int, int] | None = None

    @property
    def changed(self) -> bool:
        """Whether the store has to be written to."""
        return self.changes != self.written

    @property
    def cursor(self) -> int:
        return self._cursor

    @cursor.setter
    def cursor(self, ordinal: int) -> None:
        if ordinal != self._cursor:
            self._check(ordinal)
            self.changes += 1
            self._cursor = ordinal

    def __len__(self) -> int:
        return self.count

    def __contains__(self, ordinal: int) -> bool:
        if not 0 <= ordinal < self.size:
            return False
        number = ordinal >> SHIFT
        span = self._by_first.get(number) or self._find(number)
        if number >= span.stop:
            return False
        return span.bits is None or ordinal & MASK in span.bits

    def acquire(self) -> int:
        """The first free ordinal at or after the cursor, or else the first one."""
        ordinal = self.next_free(self._cursor)
        if ordinal is None:
            ordinal = self.next_free(0)
            if ordinal is None:
                raise ExhaustedError(f"all {self.size} ordinals are in use")
        self.changes += 1
        following = ordinal + 1
        self._take(ordinal, 1)
        self._note(True, ordinal, following)
        self._cursor = 0 if following == self.size else following
        return ordinal

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

    def reserve(self, ordinal: int) -> None:
        """Take that ordinal; the cursor stays."""
        if self._check(ordinal) in self:
            raise InUseError(f"{ordinal} is in use")
        self.changes += 1
        self._take(ordinal, 1)
        self._note(True, ordinal, ordinal + 1)

    def release(self, ordinal: int) -> None:
        """Give that ordinal back; if all were taken, it is the next one."""
        if ordinal not in self:
            raise NotAllocatedError(f"{self._check(ordinal)} is not in use")
        self.changes += 1
        if self.count == self.size:
            self._cursor = ordinal
        self._give(ordinal)
        self._note(False, ordinal, ordinal + 1)

    def next_free(self, start: int) -> int | None:
        """The first free ordinal from start on."""
        if start >= self.size:
            return None
        number, low = start >> SHIFT, start & MASK
        while number < self._leaves:
            span = self._by_first.get(number) or self._find(number)
            if number >= span.stop:
                found: int | None = low
            elif span.bits is None:
                number, low = span.stop, 0
                continue
            else:
                found = span.bits.next_free(low)
            if found is not None:
                return number << SHIFT | found
            number, low = number + 1, 0
        return None

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

    @property
    def entry(self) -> str:
        """Cursor and journal, as the state row has them.

        Empty where the spans are to be written, and the journal begun anew.
        """
        if self._runs >= _LONG or len(self.dirty) > _MANY:
            return ""
        last = self._last
        return (
            f"{self._cursor} {self._early}"
            if last is None
            else (f"{self._cursor} {self._early}{_text(*last)}")
        )

    @property
    def journal(self) -> str:
        """What was taken (+) and given back (-) since the spans were written, in its order."""
        return self._early if self._last is None else self._early + _text(*self._last)

    def stored(self) -> None:
        """The spans were written: the journal begins anew."""
        self.dirty.clear()
        self._early, self._runs, self._last = "", 0, None

    def follow(self, cursor: int, journal: str) -> None:
        """Make the changes of a journal, of which the spans know nothing."""
        self._cursor = cursor
        runs = _runs(journal)
        try:
            for run in runs:
                self._follow(*run)
        except NetallocError as error:
            raise StoreError(
                f"bitmap {self.name} and its journal disagree: {error}; {REPAIR}"
            ) from error

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
            for run in runs:
                self._follow(*run)
        except NetallocError:
            return False
        if cursor:
            self._cursor = int(cursor)
        return True

    def _follow(self, taken: bool, start: int, stop: int) -> None:
        at = start
        while at < stop:
            if (at in self) is taken:
                raise StoreError(f"{at} is so already")
            if taken:
                at += self._take(at, stop - at)
            else:
                self._give(at)
                at += 1
        if start < stop:
            self._note(taken, start, stop)

    def _note(self, taken: bool, start: int, stop: int) -> None:
        last = self._last
        if last is not None:
            if last[0] is taken and last[2] == start:
                self._last = taken, last[1], stop
                return
            self._early += _text(*last)
        self._last = taken, start, stop
        self._runs += 1

    def _check(self, ordinal: int) -> int:
        if not 0 <= ordinal < self.size:
            raise OutOfRangeError(f"{ordinal} is not in 0 to {self.size - 1}")
        return ordinal


def _runs(journal: str) -> list[tuple[bool, int, int]]:
    """Whether they were taken, the first ordinal and the one behind the last."""
    parts = [(text[0] == "+", *text[1:].partition(":")) for text in journal.split()]
    return [(taken, int(first), int(last or first) + 1) for taken, first, _, last in parts]


def _text(taken: bool, start: int, stop: int) -> str:
    sign = "+" if taken else "-"
    return f"{sign}{start} " if stop == start + 1 else f"{sign}{start}:{stop - 1} "
