"""A bitmap that lives in a store, of which only the touched blocks are read and written.

It is cut into leaves of 4096 ordinals. A leaf that is neither empty nor full has a row of
its own; two small bitmaps over the leaves say which these are (`mixed`) and which are full.
So an allocation reads and writes two rows of some hundred bytes whether 0 or 50,000 ordinals
are held, and what a network weighs follows its mixed leaves alone. A row that is missing
where `mixed` has it is noticed: two places must be wrong before anything is given twice.
"""

from collections.abc import Callable

from netalloc._alloc import Bitmap
from netalloc.errors import ExhaustedError, InUseError, NotAllocatedError, OutOfRangeError

LEAF = 4096
_SHIFT = 12
_MASK = LEAF - 1


class LeafBitmap:
    """The same methods as netalloc.Bitmap over leaves that `load(number)` brings.

    `dirty` has the numbers of leaves that differ from the store; `changes` counts, before each
    is made, so that an interrupt cannot hide one, and `written` is how many the store has.
    """

    __slots__ = (
        "_cursor",
        "_leaves",
        "_load",
        "changes",
        "count",
        "dirty",
        "full",
        "mixed",
        "size",
        "written",
    )

    def __init__(self, size: int, load: Callable[[int], Bitmap]) -> None:
        self.size = size
        self.count = 0
        self.full = Bitmap((size - 1 >> _SHIFT) + 1)
        self.mixed = Bitmap(self.full.size)
        self.dirty: set[int] = set()
        self.changes = 0
        self.written = 0
        self._cursor = 0
        self._load = load
        self._leaves: dict[int, Bitmap] = {}

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
        number = ordinal >> _SHIFT
        if number in self.full:
            return True
        return number in self.mixed and ordinal & _MASK in self.leaf(number)

    def acquire(self) -> int:
        """The first free ordinal at or after the cursor, or else the first one."""
        ordinal = self.next_free(self._cursor)
        if ordinal is None:
            ordinal = self.next_free(0)
            if ordinal is None:
                raise ExhaustedError(f"all {self.size} ordinals are in use")
        self.reserve(ordinal)
        self._cursor = (ordinal + 1) % self.size
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
            number, low = found >> _SHIFT, found & _MASK
            leaf = self.leaf(number)
            end = leaf.next_set(low)
            taken = min(n, (leaf.size if end is None else end) - low)
            leaf.cursor = low
            leaf.acquire_ranges(taken)  # all of them free: the run itself
            self._grown(number, leaf, taken)
            if runs and runs[-1][1] == found:
                runs[-1] = runs[-1][0], found + taken
            else:
                runs.append((found, found + taken))
            start = found + taken
            n -= taken
            self._cursor = start % self.size
            if start == self.size:
                start = 0
        return runs

    def reserve(self, ordinal: int) -> None:
        """Take that ordinal; the cursor stays."""
        number = self._check(ordinal) >> _SHIFT
        leaf = self.leaf(number)
        low = ordinal & _MASK
        if low in leaf:
            raise InUseError(f"{ordinal} is in use")
        self.changes += 1
        leaf.reserve(low)
        self._grown(number, leaf, 1)

    def release(self, ordinal: int) -> None:
        """Give that ordinal back; if all were taken, it is the next one."""
        if ordinal not in self:
            raise NotAllocatedError(f"{self._check(ordinal)} is not in use")
        self.changes += 1
        if self.count == self.size:
            self._cursor = ordinal
        number = ordinal >> _SHIFT
        leaf = self.leaf(number)
        leaf.release(ordinal & _MASK)
        left = len(leaf)
        if left == leaf.size - 1:
            self.full.release(number)
            self.mixed.reserve(number)
        if not left:
            self.mixed.release(number)
        self.count -= 1
        self.dirty.add(number)

    def next_free(self, start: int) -> int | None:
        """The first free ordinal from start on."""
        number, low = start >> _SHIFT, start & _MASK
        while start < self.size:
            following = self.full.next_free(number)
            if following is None:
                return None
            if following != number:
                number, low = following, 0
            if number not in self.mixed:
                return number << _SHIFT | low
            found = self.leaf(number).next_free(low)
            if found is not None:
                return number << _SHIFT | found
            number, low = number + 1, 0
            start = number << _SHIFT
        return None

    def next_set(self, start: int) -> int | None:
        """The first ordinal in use from start on."""
        number, low = start >> _SHIFT, start & _MASK
        while start < self.size:
            candidates = [self.full.next_set(number), self.mixed.next_set(number)]
            following = min((n for n in candidates if n is not None), default=None)
            if following is None:
                return None
            if following != number:
                number, low = following, 0
            if number in self.full:
                return number << _SHIFT | low
            found = self.leaf(number).next_set(low)
            if found is not None:
                return number << _SHIFT | found
            number, low = number + 1, 0
            start = number << _SHIFT
        return None

    def leaf(self, number: int) -> Bitmap:
        """A leaf as it is now, read from the store if need be."""
        leaf = self._leaves.get(number)
        if leaf is None:
            if number in self.mixed:
                leaf = self._load(number)
            else:
                leaf = Bitmap(self.leaf_size(number))
                if number in self.full:
                    leaf.acquire_ranges(leaf.size)
            self._leaves[number] = leaf
        return leaf

    def leaf_size(self, number: int) -> int:
        """How many ordinals a leaf has: the last one may have fewer."""
        return min(LEAF, self.size - (number << _SHIFT))

    def _grown(self, number: int, leaf: Bitmap, taken: int) -> None:
        held = len(leaf)
        if held == taken:
            self.mixed.reserve(number)
        if held == leaf.size:
            self.mixed.release(number)
            self.full.reserve(number)
        self.count += taken
        self.dirty.add(number)

    def _check(self, ordinal: int) -> int:
        if not 0 <= ordinal < self.size:
            raise OutOfRangeError(f"{ordinal} is not in 0 to {self.size - 1}")
        return ordinal
