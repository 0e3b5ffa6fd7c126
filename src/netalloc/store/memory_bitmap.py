"""A bitmap in memory whose changes are noted before they are made."""

from typing import Any

from netalloc._alloc import Bitmap

Note = tuple[Any, ...]  # what has the method `restore`, and how it was


class JournaledBitmap:
    """A Bitmap that notes in the journal what it is about to change.

    A note: the ordinals, as runs, whether they were set, and the cursor.
    """

    __slots__ = ("_bitmap", "_journal", "next_free", "next_set", "size")

    def __init__(self, size: int, journal: list[Note]) -> None:
        self._bitmap = Bitmap(size)
        self._journal = journal
        self.size = size
        self.next_free = self._bitmap.next_free
        self.next_set = self._bitmap.next_set

    @property
    def cursor(self) -> int:
        return self._bitmap.cursor

    @cursor.setter
    def cursor(self, ordinal: int) -> None:
        self._journal.append((self, (), False, self._bitmap.cursor))
        self._bitmap.cursor = ordinal

    def acquire(self) -> int:
        bitmap = self._bitmap
        cursor = bitmap.cursor
        # The same that acquire() will find: its answer may be lost on the way back.
        ordinal = self.next_free(cursor)
        if ordinal is None:
            ordinal = self.next_free(0)
        if ordinal is not None:
            self._journal.append((self, ((ordinal, ordinal + 1),), False, cursor))
        return bitmap.acquire()

    def acquire_ranges(self, n: int) -> list[tuple[int, int]]:
        if n <= self.size - len(self._bitmap):
            cursor = self._bitmap.cursor
            self._journal.append((self, self._free_runs(cursor, n), False, cursor))
        return self._bitmap.acquire_ranges(n)

    def _free_runs(self, start: int, n: int) -> list[tuple[int, int]]:
        """The first n free ordinals from there on, and round."""
        runs = []
        while n > 0:
            first = self.next_free(start)
            if first is None:
                first = self.next_free(0)
                assert first is not None
            end = self.next_set(first)
            end = min(first + n, self.size if end is None else end)
            runs.append((first, end))
            n -= end - first
            start = end if end < self.size else 0
        return runs

    def reserve(self, ordinal: int) -> None:
        bitmap = self._bitmap
        if ordinal not in bitmap:
            self._journal.append((self, ((ordinal, ordinal + 1),), False, bitmap.cursor))
        bitmap.reserve(ordinal)

    def release(self, ordinal: int) -> None:
        bitmap = self._bitmap
        if ordinal in bitmap:
            self._journal.append((self, ((ordinal, ordinal + 1),), True, bitmap.cursor))
        bitmap.release(ordinal)

    def to_bytes(self) -> bytes:
        """As the bitmap says it."""
        return self._bitmap.to_bytes()

    def restore(self, note: Note) -> None:
        """Bring the ordinals, and the cursor, back to what they were."""
        _, runs, held, cursor = note
        bitmap = self._bitmap
        for start, stop in runs:
            for ordinal in range(start, stop):
                if not held:
                    bitmap.discard(ordinal)
                elif ordinal not in bitmap:
                    bitmap.reserve(ordinal)
        bitmap.cursor = cursor

    def __contains__(self, ordinal: int) -> bool:
        return ordinal in self._bitmap

    def __len__(self) -> int:
        return len(self._bitmap)
