# StoredSpans: of a bitmap in a file, what every call does. The class on top of it, in Python
# (store/sqlite/spans.py, leaf_bitmap.py), has the rest: reading spans, dividing and joining them.
#
# The numbers here are objects, for a bitmap may have 2**64 ordinals; within a span they are words.

cdef enum:
    SPAN_SHIFT = 12
    SPAN_MASK = 4095


@cython.final
cdef class Span:
    """The leaves from `first` to before `stop`, and where the next span begins.

    One leaf, of which some ordinals are taken, has `bits`; all that are wholly taken have none.
    """

    cdef public object first, stop, following
    cdef public Bitmap bits

    def __init__(self, first, stop, following, bits=None):
        self.first = first
        self.stop = stop
        self.following = following      # the number of leaves where there is none
        self.bits = bits


cdef class StoredSpans:
    """Spans by their first leaf, how many ordinals they have, a cursor, and what has changed."""

    cdef public object name, size, count, _leaves, _load, _head, _cursor, changes, written
    cdef public dict _by_first
    cdef public set dirty
    cdef public list _starts
    # The journal: its text but for the last run, how many runs, and the last one.
    cdef public str _early
    cdef public Py_ssize_t _runs
    cdef public object _last

    def __len__(self):
        return self.count

    @property
    def cursor(self):
        """Where the next search begins."""
        return self._cursor

    @cursor.setter
    def cursor(self, ordinal):
        if ordinal != self._cursor:
            self._check(ordinal)
            self.changes += 1
            self._cursor = ordinal

    cdef Span at(self, number):
        """The span that begins with a leaf, or the last one before it."""
        span = self._by_first.get(number)
        return self._find(number) if span is None else span

    cdef bint holds(self, ordinal) except -1:
        cdef Span span
        if not 0 <= ordinal < self.size:
            return False
        number = ordinal >> SPAN_SHIFT
        span = self.at(number)
        if number >= span.stop:
            return False
        return span.bits is None or contains(&span.bits.tree, <word>(ordinal & SPAN_MASK))

    def __contains__(self, ordinal):
        return self.holds(ordinal)

    def acquire(self):
        """The first free ordinal at or after the cursor, or else the first one."""
        ordinal = self.next_free(self._cursor)
        if ordinal is None:
            ordinal = self.next_free(0)
            if ordinal is None:
                raise ExhaustedError(f"all {self.size} ordinals are in use")
        self.changes += 1
        following = ordinal + 1
        self.take_one(ordinal)
        self.note(True, ordinal, following)
        self._cursor = 0 if following == self.size else following
        return ordinal

    def reserve(self, ordinal, /):
        """Take that ordinal; the cursor stays."""
        if self.holds(self._check(ordinal)):
            raise InUseError(f"{ordinal} is in use")
        self.changes += 1
        self.take_one(ordinal)
        self.note(True, ordinal, ordinal + 1)

    def release(self, ordinal, /):
        """Give that ordinal back; if all were taken, it is the next one."""
        cdef Span span
        if not self.holds(ordinal):
            raise NotAllocatedError(f"{self._check(ordinal)} is not in use")
        self.changes += 1
        if self.count == self.size:
            self._cursor = ordinal
        number = ordinal >> SPAN_SHIFT
        span = self._by_first.get(number)
        if span is None or span.bits is None or used(&span.bits.tree) < 2:
            self._give(ordinal, 1)
        else:
            if tree_release(&span.bits.tree, <word>(ordinal & SPAN_MASK)) != OK:
                raise MemoryError
            self.count -= 1
            self.dirty.add(number)
        self.note(False, ordinal, ordinal + 1)

    def next_free(self, start, /):
        """The first free ordinal from start on."""
        cdef Span span
        cdef word low, found
        if start >= self.size:
            return None
        number, low = start >> SPAN_SHIFT, start & SPAN_MASK
        while number < self._leaves:
            span = self.at(number)
            if number >= span.stop:
                return number << SPAN_SHIFT | low
            if span.bits is None:
                number, low = span.stop, 0
                continue
            if next_free(&span.bits.tree, low, &found):
                return number << SPAN_SHIFT | found
            number, low = number + 1, 0
        return None

    def counts(self, first, cell, n, /):
        """How many are taken in each cell, as Bitmap.counts says it. O(spans and cells)."""
        cdef Span span
        cdef Tree whole
        first, cell, n = plain_int(first), plain_int(cell), plain_int(n)
        cdef bytes found = cells_of(first, cell, n)
        number, stop = max(first, 0) >> SPAN_SHIFT, first + cell * n
        while number < self._leaves and number << SPAN_SHIFT < stop:
            span = self.at(number)
            base = span.first << SPAN_SHIFT
            if span.bits is not None:
                count_part(&span.bits.tree, base, first, cell, n, found)
            elif number < span.stop:
                tree_init(&whole, min(span.stop << SPAN_SHIFT, self.size) - base - 1)
                whole.root = &FULL
                count_part(&whole, base, first, cell, n, found)
            number = span.following
        return found

    cdef int take_one(self, ordinal) except -1:
        """Take an ordinal that is free."""
        cdef Span span
        cdef Status status
        number = ordinal >> SPAN_SHIFT
        span = self._by_first.get(number)
        if span is None:
            self._take(ordinal, 1)
            return 0
        assert span.bits is not None
        status = tree_reserve(&span.bits.tree, <word>(ordinal & SPAN_MASK))
        if status != OK:
            refuse(status, ordinal)
        self.count += 1
        self.dirty.add(number)
        if used(&span.bits.tree) > span.bits.tree.last:
            self._fill(span)
        return 0

    def _note(self, taken, start, stop, /):
        self.note(taken, start, stop)

    cdef int note(self, bint taken, start, stop) except -1:
        cdef tuple last = self._last
        if last is not None:
            if <bint>last[0] == taken and last[2] == start:
                self._last = (taken, last[1], stop)
                return 0
            self._early += run_text(last)
        self._last = (taken, start, stop)
        self._runs += 1
        return 0

    @property
    def journal(self):
        """What was taken (+) and given back (-) since the spans were written, in its order."""
        return self._early if self._last is None else self._early + run_text(self._last)


cdef str run_text(tuple run):
    taken, start, stop = run
    sign = "+" if taken else "-"
    return f"{sign}{start} " if stop == start + 1 else f"{sign}{start}:{stop - 1} "
