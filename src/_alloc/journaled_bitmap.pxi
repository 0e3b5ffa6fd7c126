# JournaledBitmap: a Bitmap that notes in a journal what it changes, so that it can be undone.
#
# A note is (the bitmap, what was changed, whether that was taken before, the cursor before).
# What was changed is one ordinal, or runs of them. Changing and noting are one step, as no
# Python code runs in between that an interrupt could end; where the note finds no room, the
# change is undone at once.


@cython.final
cdef class JournaledBitmap:
    """A Bitmap whose changes are noted in a list, from which `restore` undoes them."""

    cdef Bitmap bits
    cdef list journal
    cdef readonly object next_free, next_set, previous_set, next_block, counts

    def __init__(self, size, list journal):
        self.bits = Bitmap(size)
        self.journal = journal
        self.next_free = self.bits.next_free
        self.next_set = self.bits.next_set
        self.previous_set = self.bits.previous_set
        self.next_block = self.bits.next_block
        self.counts = self.bits.counts

    @property
    def size(self):
        """How many ordinals there are."""
        return self.bits.size

    @property
    def cursor(self):
        """Where the next search begins."""
        return self.bits.cursor

    @cursor.setter
    def cursor(self, i):
        self.journal.append((self, (), False, self.bits.cursor))
        self.bits.cursor = i

    def acquire(self):
        """Take the first free ordinal from the cursor on. Raises ExhaustedError."""
        cdef Status status = OK
        cdef word i = tree_next(&self.bits.tree, &status)
        if unlikely(status != OK):
            refuse_acquire(self.bits, status)
        ordinal = from_word(i)
        self.journal.append((self, ordinal, False, from_word(self.bits.tree.cursor)))
        tree_take(&self.bits.tree, tree_next(&self.bits.tree, &status))
        return ordinal

    def acquire_ranges(self, n, /):
        """Take the n ordinals that `acquire` would give, as a list of (start, stop)."""
        cursor = self.bits.cursor
        runs = self.bits.acquire_ranges(n)
        note = (self, runs, False, cursor)
        try:
            self.journal.append(note)
        except MemoryError:
            self.restore(note)
            raise
        return runs

    def reserve(self, i, /):
        """Take this ordinal. Raises InUseError."""
        cdef word n
        as_ordinal(self.bits, i, &n)
        if not contains(&self.bits.tree, n):
            self.journal.append((self, from_word(n), False, from_word(self.bits.tree.cursor)))
        cdef Status status = tree_reserve(&self.bits.tree, n)
        if unlikely(status != OK):
            refuse(status, n)

    def release(self, i, /):
        """Free this ordinal. Raises NotAllocatedError."""
        cdef word n
        as_ordinal(self.bits, i, &n)
        if contains(&self.bits.tree, n):
            self.journal.append((self, from_word(n), True, from_word(self.bits.tree.cursor)))
        cdef Status status = tree_release(&self.bits.tree, n)
        if unlikely(status != OK):
            refuse(status, n)

    def restore(self, tuple note, /):
        """Bring what a note is of, and the cursor, back to what it was."""
        cdef Bitmap bits = self.bits
        _, changed, held, cursor = note
        for start, stop in ((changed, changed + 1),) if type(changed) is int else changed:
            while start < stop:
                if not held:
                    bits.discard(start)
                elif start not in bits:
                    bits.reserve(start)
                start += 1
        bits.cursor = cursor

    def to_bytes(self):
        """As the bitmap says it."""
        return self.bits.to_bytes()

    def __contains__(self, i):
        return i in self.bits

    def __len__(self):
        return used(&self.bits.tree)
