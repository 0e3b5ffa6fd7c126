# Bitmap: the tree as a Python set of ordinals. Every method checks its arguments, calls one
# tree function and turns its status into an error.
#
# Making an int runs no Python code; making anything that the collector knows may run it, and
# with it code that comes back to this very bitmap. So what is to be returned is made before
# the search, or with the collector held off.

cdef Py_ssize_t NODE_BYTES = sizeof(Node) + 8       # with the C allocator's own header


# ---- arguments

cdef int refuse_ordinal(Bitmap self, word i) except -1:
    raise OutOfRangeError(f"{i} is not in 0 to {self.tree.last}")

cdef inline int as_ordinal(Bitmap self, object n, word *out) except -1:
    as_word(n, out)
    if unlikely(out[0] > self.tree.last):
        return refuse_ordinal(self, out[0])
    return 0


# ---- errors

cdef int refuse(Status status, object what) except -1:
    if status == NO_MEMORY:
        raise MemoryError
    if status == FOUND_SET:
        raise InUseError(f"{what} is taken already")
    raise NotAllocatedError(f"{what} is not allocated")

cdef int refuse_acquire(Bitmap self, Status status) except -1:
    if status == NO_MEMORY:
        raise MemoryError
    raise ExhaustedError(f"all {self.size} are taken")


# ---- taking

cdef inline void *quick_ordinal(Bitmap self) noexcept:
    """Take the next ordinal; NULL, with nothing changed, asks for the long way."""
    cdef word i, before
    cdef void *ordinal
    if unlikely(not take_within_word(&self.tree, &i, &before)):
        return last_of_word(&self.tree, 0)
    ordinal = new_int(i)
    if unlikely(ordinal == NULL):
        PyErr_Clear()
        return_to_word(&self.tree, i, before)
    return ordinal

cdef void *last_of_word(Tree *t, word offset) noexcept:
    """The same where a word ends, once for 64: kept out of the quick way."""
    cdef Status status = OK
    cdef void *number
    cdef word i
    if t == &NO_TREE:
        return NULL
    i = tree_next(t, &status)
    if status != OK:
        return NULL
    number = new_int(offset + i)
    if unlikely(number == NULL):
        PyErr_Clear()
    else:
        tree_take(t, i)
    return number

@cython.critical_section
cdef object acquire_next(Bitmap self):
    """Take the next ordinal, wherever it is."""
    cdef Status status = OK
    cdef word i = tree_next(&self.tree, &status)
    if status != OK:
        refuse_acquire(self, status)
    ordinal = from_word(i)
    tree_take(&self.tree, i)
    return ordinal


@cython.final
cdef class Bitmap:
    """A set of ordinals 0..size-1 that hands out the next free one; size up to 2**64.

    A cursor walks the ordinals once round: `acquire` takes the first free one at or after
    it and moves it past. Every operation on one ordinal costs at most a step down and up
    per level of 64: 2 levels for 2**16 ordinals, 3 for 2**24, 10 for 2**64. Memory follows
    the number of blocks of 4096 that are neither empty nor full: 0.53 KiB for each, and some
    30 bytes for an ordinal that is reserved far from all others.

    Raises OutOfRangeError for a size or an ordinal that is none. Threads may share one;
    after a fork, parent and child have one each.

    >>> b = Bitmap(3)
    >>> b.acquire(), b.acquire()
    (0, 1)
    >>> b.release(0)
    >>> b.acquire(), b.acquire()
    (2, 0)
    >>> 1 in b, len(b), b.available
    (True, 3, 0)
    """

    cdef Tree tree
    cdef object __weakref__

    def __cinit__(self, size):
        size = plain_int(size)
        if not 1 <= size <= 2**64:
            raise OutOfRangeError(f"size {shown(size)} is not in 1 to 2**64")
        tree_init(&self.tree, size - 1)

    def __dealloc__(self):
        tree_free(&self.tree)

    # ---- one ordinal

    def acquire(self):
        """Take the first free ordinal at or after the cursor, from 0 on after the last.

        Raises ExhaustedError.
        """
        cdef Section section
        enter(&section, <void *>self)
        cdef void *ordinal = quick_ordinal(self)
        leave(&section)
        if unlikely(ordinal == NULL):
            return acquire_next(self)
        return owned(ordinal)

    @cython.critical_section
    def reserve(self, i, /):
        """Take this ordinal and leave the cursor where it is. Raises InUseError."""
        cdef word n
        as_ordinal(self, i, &n)
        cdef Status status = tree_reserve(&self.tree, n)
        if unlikely(status != OK):
            refuse(status, n)

    @cython.critical_section
    def release(self, i, /):
        """Free this ordinal; if all were taken, it is the next one given.

        Raises NotAllocatedError.
        """
        cdef word n
        as_ordinal(self, i, &n)
        cdef Status status = tree_release(&self.tree, n)
        if unlikely(status != OK):
            refuse(status, n)

    @cython.critical_section
    def discard(self, i, /):
        """Free this ordinal if it is taken, as set.discard does; tell whether it was."""
        cdef word n
        as_ordinal(self, i, &n)
        cdef Status status = tree_release(&self.tree, n)
        if status == NO_MEMORY:
            raise MemoryError
        return status == OK

    @cython.critical_section
    def __contains__(self, i):
        cdef word n
        try:
            as_word(i, &n)
        except InvalidValueError:
            return False
        return n <= self.tree.last and contains(&self.tree, n)

    # ---- many

    @cython.critical_section
    def acquire_into(self, buffer, /):
        """Fill a writable buffer of 32- or 64-bit integers with ordinals; all or nothing.

        The same ordinals in the same order as from so many calls of `acquire`, at about
        0.1 ns each where nothing is taken and 2 where half is. Returns their number.
        Raises ExhaustedError, and OutOfRangeError where an item could not hold them.

        >>> from array import array
        >>> a = array("Q", bytes(24))
        >>> Bitmap(10).acquire_into(a), a.tolist()
        (3, [0, 1, 2])
        """
        return acquire_into(self, buffer, 0)

    @cython.critical_section
    def acquire_ranges(self, n, /):
        """Take the n ordinals that `acquire` would give, as a list of (start, stop).

        Costs a few steps a range, whatever its length. Raises ExhaustedError.

        >>> Bitmap(2**64).acquire_ranges(2**40)
        [(0, 1099511627776)]
        """
        return acquire_ranges(self, n)

    @cython.critical_section
    def acquire_block(self, n, /):
        """Take n ordinals in a row, the first fit from the cursor on, and return the first.

        Looks at every word at worst: about 1 ms for 2**24 ordinals. Raises ExhaustedError.

        >>> b = Bitmap(100)
        >>> b.reserve(5)
        >>> b.acquire_block(8)
        6
        """
        cdef word count, first
        as_count(n, &count)
        first = find_block(self, count)
        cdef void *ordinal = new_int(first)
        if unlikely(ordinal == NULL):
            free_spares(&self.tree)
            raise MemoryError
        take_run(&self.tree, first, count)
        return owned(ordinal)

    @cython.critical_section
    def release_many(self, ordinals, /):
        """Free all of these or none: a buffer of 32- or 64-bit integers, or any iterable.

        About 2 ns each in sorted order. If all were taken, the first is the next one given.
        Raises NotAllocatedError, also where one is named twice.

        >>> b = Bitmap(10)
        >>> b.acquire_ranges(4)
        [(0, 4)]
        >>> b.release_many([1, 2])
        >>> list(b)
        [0, 3]
        """
        release_many(self, ordinals if PyObject_CheckBuffer(ordinals) else words_of(self, ordinals))

    # ---- looking

    @cython.critical_section
    def __len__(self):
        return used(&self.tree)

    def __iter__(self):
        """Ascending; each step looks anew, so it starts at once and bears changes."""
        i = self.next_set(0)
        while i is not None:
            yield i
            i = self.next_set(i + 1) if i < self.tree.last else None

    def runs(self):
        """The taken ordinals as ascending (start, stop), each as long as possible."""
        stop = 0
        while stop is not None and (start := self.next_set(stop)) is not None:
            stop = self.next_free(start)        # None where the run reaches the end
            yield start, self.size if stop is None else stop

    @cython.critical_section
    def next_free(self, start, /):
        """The first free ordinal at or after `start`, or None."""
        cdef word i
        as_word(start, &i)
        if i <= self.tree.last and next_free(&self.tree, i, &i):
            return from_word(i)
        return None

    @cython.critical_section
    def next_set(self, start, /):
        """The first taken ordinal at or after `start`, or None."""
        cdef word i
        as_word(start, &i)
        if i <= self.tree.last and next_set(&self.tree, i, &i):
            return from_word(i)
        return None

    @cython.critical_section
    def previous_set(self, start, /):
        """The last taken ordinal at or before `start`, or None."""
        cdef word i
        as_word(start, &i)
        if previous_set(&self.tree, min(i, self.tree.last), &i):
            return from_word(i)
        return None

    @cython.critical_section
    def next_block(self, n, start, /):
        """Where the first n free ordinals in a row at or after `start` begin, or None.

        Looks at every word at worst, as acquire_block does, and takes nothing.

        >>> b = Bitmap(100)
        >>> b.reserve(5)
        >>> b.next_block(8, 0), b.next_block(2, 0), b.next_block(95, 0)
        (6, 0, None)
        """
        cdef word count, i
        as_count(n, &count)
        as_word(start, &i)
        if i <= self.tree.last and find_run(&self.tree, i, self.tree.last, count, &i):
            return from_word(i)
        return None

    @cython.critical_section
    def counts(self, first, cell, n, /):
        """How many are taken in each of n cells of `cell` ordinals, from `first` on.

        As n native 64-bit words. What a cell has of numbers that are no ordinals is not counted,
        so `first` may be negative. About 1 ms for 2**24 ordinals in cells of 256.

        >>> b = Bitmap(100)
        >>> b.acquire_ranges(10)
        [(0, 10)]
        >>> memoryview(b.counts(-2, 8, 3)).cast("Q").tolist()
        [6, 4, 0]
        """
        first, cell, n = plain_int(first), plain_int(cell), plain_int(n)
        cdef bytes found = cells_of(first, cell, n)
        count_part(&self.tree, 0, first, cell, n, found)
        return found

    @property
    def size(self):
        """How many ordinals there are."""
        return size_of(&self.tree)

    @property
    def available(self):
        """How many are free."""
        with cython.critical_section(self):
            return size_of(&self.tree) - used(&self.tree)

    @property
    def cursor(self):
        """Where the next search begins."""
        return self.tree.cursor

    @cursor.setter
    def cursor(self, i):
        cdef word n
        as_ordinal(self, i, &n)
        with cython.critical_section(self):
            drop_cached_leaf(&self.tree)
            self.tree.cursor = n

    @property
    def nbytes(self):
        """Memory in bytes: this object and its nodes."""
        return <Py_ssize_t>Bitmap.__basicsize__ + self.tree.nodes * NODE_BYTES + self.tree.few

    def __sizeof__(self):
        return self.nbytes

    def __repr__(self):
        return f"<{type(self).__name__}: {used(&self.tree)} of {self.size} taken>"

    # ---- as bytes

    @cython.critical_section
    def to_bytes(self):
        """The whole state, cursor included: 40 bytes and 0.51 KiB a mixed block of 4096.

        Equal bitmaps with equal cursors give equal bytes.

        >>> b = Bitmap(2**24)
        >>> len(b.to_bytes())
        36
        """
        cdef Tree *t = &self.tree
        cdef Py_ssize_t size = HEADER
        drop_cached_leaf(t)         # from here on nothing runs Python code but the checksum
        if t.root != &EMPTY and t.root != &FULL:
            size += encoded_size(t.root, t.top)
        cdef bytes data = PyBytes_FromStringAndSize(NULL, size + TRAILER)
        cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(data)
        tree_encode(t, out)
        put_crc(out + size, crc32(memoryview(data)[:size]))
        return data

    @classmethod
    def from_bytes(cls, data, /):
        """The bitmap that `to_bytes` wrote.

        Raises StoreError for bytes that are truncated, corrupt, foreign or of a newer version.
        """
        return decoded(private_bytes(data))

    def __reduce__(self):
        return type(self).from_bytes, (self.to_bytes(),)

    # ---- invariants

    @cython.critical_section
    def _check(self):
        """Assert every invariant of the tree; the message describes the state."""
        cdef Tree *t = &self.tree
        cdef Py_ssize_t nodes = t.spares, few = 0
        cdef int level
        state = f"{self!r}, cursor {t.cursor}, {t.nodes} nodes, {t.spares} kept"
        assert t.cursor <= t.last, state
        assert t.spares <= KEPT, state
        if t.root == &FULL or t.root == &EMPTY:
            assert t.used == (t.last + 1 if t.root == &FULL else 0), state
        else:
            assert check_node(t, t.root, t.top, 0, &nodes, &few) == t.used, state
        assert nodes == t.nodes, f"{nodes} nodes found: {state}"
        assert few == t.few and t.pool == NULL, f"{few} bytes of lists, not {t.few}: {state}"
        if t.leaf != &FULL:
            assert t.base == t.cursor & ~<word>LEAF_MASK, state
            assert t.leaf == locate(t, t.base, &level), state
        if t.last_released != &EMPTY:
            assert t.last_released == locate(t, t.last_released_base, &level), state


# ---- counting

cdef enum:
    CELLS = 1 << 24      # at most: 128 MiB of counts

cdef bytes cells_of(object first, object cell, object n):
    """Room for the counts of so many cells, all 0; these are exact ints."""
    if not -(2**64) <= first < 2**64:
        raise OutOfRangeError(f"first {shown(first)} is not in -2**64 to 2**64 - 1")
    if not 1 <= cell <= 2**63:
        raise OutOfRangeError(f"cell {shown(cell)} is not in 1 to 2**63")
    if not 1 <= n <= CELLS:
        raise OutOfRangeError(f"{shown(n)} cells are not in 1 to {CELLS}")
    cdef Py_ssize_t size = 8 * <Py_ssize_t>n
    cdef bytes counts = PyBytes_FromStringAndSize(NULL, size)
    memset(PyBytes_AS_STRING(counts), 0, size)
    return counts

cdef int count_part(
    Tree *t, object base, object first, object cell, object n, bytes counts
) except -1:
    """Add what is set in a tree, whose ordinal 0 is the number `base`, to the cells it is in."""
    start, stop = max(first, base), min(first + cell * n, base + t.last + <object>1)
    if start < stop:
        which, skip = divmod(start - first, cell)
        tree_counts(
            t, start - base, stop - base - 1, cell, skip,
            <word *>PyBytes_AS_STRING(counts) + <Py_ssize_t>which,
        )
    return 0


cdef Bitmap decoded(bytes data):
    """The bitmap of these bytes, which nothing can change meanwhile."""
    cdef Py_ssize_t size = checked_size(data)
    cdef Bitmap self = Bitmap(1)
    cdef Status status = tree_decode(&self.tree, <const uint8_t *>PyBytes_AS_STRING(data), size)
    if status == NO_MEMORY:
        raise MemoryError
    if status != OK:
        raise StoreError("a bitmap whose parts contradict each other")
    return self


cdef word check_node(
    Tree *t, Node *node, int level, word base, Py_ssize_t *nodes, Py_ssize_t *few
) except? 0:
    """Assert the invariants of a node and all beneath; how many real ordinals it has set."""
    cdef word count = 0, bit, start, pad
    cdef int k
    nodes[0] += 1
    where = f"level {level} at {base}: full {node.full:#x}, mixed {node.mixed:#x}"
    assert base <= t.last, where
    assert node.full != ALL, where
    if level == 0:
        for k in range(WORDS):
            assert (node.full >> k & 1) == (node.at.words[k] == ALL), where
            for bit in range(64):
                start = base | <word>k << 6 | bit
                if start > t.last or start < base:
                    assert node.at.words[k] >> bit & 1, where
                else:
                    count += node.at.words[k] >> bit & 1
        assert count == node.mixed, where
        assert count or node == t.leaf, where
        return count
    pad = padding(t, level, base)
    assert node.full & node.mixed == 0 and node.few & (node.full | node.mixed) == 0, where
    assert pad & ~node.full == 0, where
    assert node.mixed or node.few or node.full != pad, where
    for k in range(WORDS):
        bit = <word>1 << k
        start = base | <word>k << child_shift(level)
        if node.mixed & bit:
            count += check_node(t, node.at.child[k], level - 1, start, nodes, few)
        elif node.few & bit:
            count += check_few(t, <Few *>node.at.child[k], start, span_mask(level - 1), few)
        elif node.full & ~pad & bit:
            count += block_size(t, level - 1, start)
    return count

cdef word check_few(Tree *t, Few *few, word start, word span, Py_ssize_t *size) except? 0:
    """The same of a list."""
    cdef word j
    where = f"a list of {few.count} at {start}"
    assert 1 <= few.count <= FEW_MOST, where
    assert t.last - start >= span, where
    for j in range(few.count):
        assert few.at[j] & ~span == start, where
        assert j == 0 or few.at[j - 1] < few.at[j], where
    size[0] += few_bytes(few.count) + FEW_HEADER
    return few.count
