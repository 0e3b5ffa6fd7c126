# What a Bitmap does with a buffer, a count or an iterable, and IPAllocator as well: there an
# `offset` stands between an ordinal and the number of its address.

cdef inline object size_of(Tree *t):
    return t.last + <object>1

cdef inline object used(Tree *t):
    return size_of(t) if t.root == &FULL else t.used

cdef word check_available(Bitmap self, object count) except? 0:
    cdef word n
    as_word(count, &n)
    available = self.size - used(&self.tree)
    if n > available:
        raise ExhaustedError(f"{n} asked for, {available} of {self.size} are free")
    return n

cdef object acquire_into(Bitmap self, object target, word offset):
    """Fill a writable buffer with ordinals plus `offset`."""
    cdef Py_buffer view
    cdef Status status = OK
    cdef word n
    cdef object count               # made before anything is taken
    PyObject_GetBuffer(target, &view, PyBUF_WRITABLE | PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    try:
        check_items(&view, offset + self.tree.last)
        count = view.len // view.itemsize
        n = check_available(self, count)
        if n and view.itemsize == 4:
            status = take_into(&self.tree, <uint32_t *>view.buf, n, offset)
        elif n:
            status = take_into(&self.tree, <uint64_t *>view.buf, n, offset)
        if status != OK:
            raise MemoryError
        return count
    finally:
        PyBuffer_Release(&view)

cdef int peek(Bitmap self, object target) except -1:
    """Fill an array of 64-bit integers with the next ordinals, and take none."""
    cdef Py_buffer view
    cdef word final, wrapped, n
    n = check_available(self, len(target))
    PyObject_GetBuffer(target, &view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS)
    peek_into(&self.tree, <uint64_t *>view.buf, n, 0, &final, &wrapped)
    PyBuffer_Release(&view)
    return 0

cdef word scan_ranges(Tree *t, word lo, word hi, word room, list out, word *final) except? 0:
    """Append the free ranges of lo..hi until `room` ordinals are found; returns how many."""
    cdef word done = 0, stop
    while done < room and next_free(t, lo, &lo) and lo <= hi:
        if next_set(t, lo, &stop) and stop <= hi:
            stop -= 1
        else:
            stop = hi
        if stop - lo >= room - done:
            stop = lo + (room - done - 1)
        out.append((lo, stop + <object>1))
        done += stop - lo + 1
        final[0] = stop
        if stop == hi:
            break
        lo = stop + 1
    return done

cdef list acquire_ranges(Bitmap self, object count):
    """n ordinals as ranges; nothing is changed before the list is complete."""
    cdef Tree *t = &self.tree
    cdef word n = check_available(self, count), ahead, final = 0, wrapped = 0
    cdef list ranges = []
    if n == 0:
        return ranges
    ahead = scan_ranges(t, t.cursor, t.last, n, ranges, &final)
    if ahead < n:
        scan_ranges(t, 0, t.cursor - 1, n - ahead, ranges, &wrapped)
    if not preallocate_fill(t):
        raise MemoryError
    take_through(t, ahead, final, wrapped, n)
    return ranges

cdef word find_block(Bitmap self, object count, word *n) except? 0:
    """The start of `count` in a row, with the nodes to take them."""
    cdef word first
    as_word(count, n)
    if n[0] == 0:
        raise OutOfRangeError("a block of 0 has no first")
    if not next_run(&self.tree, n[0], &first):
        raise ExhaustedError(f"no {count} in a row are free, of {self.size}")
    if not preallocate_fill(&self.tree):
        raise MemoryError
    return first

cdef int release_many(Bitmap self, object values, word offset) except -1:
    """Free a buffer of ordinals plus `offset`, or none of them."""
    cdef Py_buffer view
    cdef Status status
    cdef Py_ssize_t n, failed = 0
    cdef word i
    PyObject_GetBuffer(values, &view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    try:
        check_items(&view, 0)
        n = view.len // view.itemsize
        if view.itemsize == 4:
            status = release_all(&self.tree, <uint32_t *>view.buf, n, offset, &failed)
        else:
            status = release_all(&self.tree, <uint64_t *>view.buf, n, offset, &failed)
        if status == OK:
            return 0
        if status == NO_MEMORY:
            raise MemoryError
        i = (<uint32_t *>view.buf)[failed] if view.itemsize == 4 else (<uint64_t *>view.buf)[failed]
    finally:
        PyBuffer_Release(&view)
    i -= offset
    if i > self.tree.last:
        refuse_ordinal(self, i)
    raise NotAllocatedError(f"ordinal {i}, item {failed} of {n}, is not allocated, or named twice")

cdef object as_array(object values):
    """An iterable of integers as an array of 64-bit ones."""
    cdef word i
    out = array("Q")
    for value in values:
        as_word(value, &i)
        out.append(i)
    return out
