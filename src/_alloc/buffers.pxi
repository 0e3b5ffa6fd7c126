# What a Bitmap does with a buffer, a count or an iterable, and IPAllocator as well: there an
# `offset` stands between an ordinal and the number of its address.

cdef inline object size_of(Tree *t):
    return t.last + <object>1

cdef inline object used(Tree *t):
    return size_of(t) if t.root == &FULL else t.used

cdef inline bint has_free(Tree *t, word n) noexcept nogil:
    """At least n are free; no subtraction that 2**64 would spoil."""
    if t.root == &FULL:
        return n == 0
    return n == 0 or t.last - t.used >= n - 1

cdef int refuse_count(Bitmap self, word n, object available) except -1:
    raise ExhaustedError(f"{n} asked for, {available} of {self.size} are free")

cdef int check_available(Bitmap self, word n) except -1:
    if not has_free(&self.tree, n):
        refuse_count(self, n, self.size - used(&self.tree))
    return 0

cdef inline int as_count(object n, word *out) except -1:
    as_word(n, out)
    if out[0] == 0:
        raise OutOfRangeError("a block of 0 has no first")
    return 0


# ---- a caller's buffer

cdef tuple NATIVE = (b"@", b"=", b"<" if _byteorder == "little" else b">")

cdef int open_items(object target, Py_buffer *view, int flags, word *limit) except -1:
    """A buffer of 32- or 64-bit integers, and the highest number that an item of it holds."""
    try:
        PyObject_GetBuffer(target, view, flags | PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    except MemoryError:
        raise
    except Exception as error:
        kind = "writable, contiguous" if flags & PyBUF_WRITABLE else "contiguous"
        raise InvalidValueError(f"{shown(target)} is no {kind} buffer") from error
    try:
        check_items(view, limit)
    except BaseException:
        PyBuffer_Release(view)
        raise
    return 0

cdef int check_items(Py_buffer *view, word *limit) except -1:
    cdef bytes code = view.format if view.format != NULL else b"B"
    cdef bytes kind = code[1:] if code[:1] in NATIVE else code
    if kind not in (b"I", b"L", b"Q", b"i", b"l", b"q") or view.itemsize not in (4, 8):
        name = shown(code.decode("ascii", "replace"))
        raise InvalidValueError(f"buffer items of type {name} are no 32- or 64-bit integers")
    if view.len and <size_t>view.buf % <size_t>view.itemsize:
        raise InvalidValueError("a buffer that begins in the middle of an item")
    limit[0] = ALL if view.itemsize == 8 else <word>0xFFFFFFFF
    if kind.islower():
        limit[0] >>= 1
    return 0

cdef object acquire_into(Bitmap self, object target, word offset):
    """Fill a writable buffer with ordinals plus `offset`."""
    cdef Py_buffer view
    cdef Status status = OK
    cdef word n, limit
    cdef object count               # made before anything is taken
    open_items(target, &view, PyBUF_WRITABLE, &limit)
    try:
        if offset + self.tree.last > limit:
            refuse_width(&view, offset + self.tree.last)
        count = view.len // view.itemsize
        n = view.len // view.itemsize
        check_available(self, n)
        if n and view.itemsize == 4:
            status = take_into(&self.tree, <uint32_t *>view.buf, n, offset)
        elif n:
            status = take_into(&self.tree, <uint64_t *>view.buf, n, offset)
        if status != OK:
            raise MemoryError
        return count
    finally:
        PyBuffer_Release(&view)

cdef int refuse_width(Py_buffer *view, word highest) except -1:
    sign = "signed " if (<bytes>view.format).islower() else ""
    raise OutOfRangeError(f"{sign}{8 * view.itemsize}-bit items cannot hold {highest}")


# ---- ranges and blocks

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
    cdef word n, ahead, final = 0, wrapped = 0
    cdef list ranges = []
    as_word(count, &n)
    cdef bint collector = PyGC_Disable()        # until they are taken no other code runs
    try:
        check_available(self, n)
        if n == 0:
            return ranges
        ahead = scan_ranges(t, t.cursor, t.last, n, ranges, &final)
        if ahead < n:
            scan_ranges(t, 0, t.cursor - 1, n - ahead, ranges, &wrapped)
        if not preallocate_fill(t):
            raise MemoryError
        take_through(t, ahead, final, wrapped, n)
        return ranges
    finally:
        if collector:
            PyGC_Enable()

cdef word find_block(Bitmap self, word n) except? 0:
    """The start of n in a row, with the nodes to take them."""
    cdef word first
    if not next_run(&self.tree, n, &first):
        raise ExhaustedError(f"no {n} in a row are free, of {self.size}")
    if not preallocate_fill(&self.tree):
        raise MemoryError
    return first


# ---- releasing many

cdef object words_of(Bitmap self, object values):
    """An iterable of integers as a buffer of 64-bit ones."""
    cdef word i
    from array import array

    out = array("Q")
    iterator = opened(values, "ordinals")
    while (value := next_of(iterator, "ordinals")) is not END:
        as_word(value, &i)
        out.append(from_word(i))
        check_length(&self.tree, len(out))
    return out

cdef inline int check_length(Tree *t, Py_ssize_t n) except -1:
    """Refuse more items than are taken: an iterator may have no end."""
    if unlikely(t.root != &FULL and <word>n > t.used) or unlikely(<word>(n - 1) > t.last):
        raise NotAllocatedError(f"the first {n} items are more than are allocated")
    return 0

cdef int release_many(Bitmap self, object values) except -1:
    """Free a buffer of ordinals, or none of them."""
    cdef Py_buffer view
    cdef Refused refused
    cdef Status status = OK
    cdef word limit
    cdef Py_ssize_t n
    open_items(values, &view, 0, &limit)
    n = view.len // view.itemsize
    status = release_items(&self.tree, &view, 0, limit, &refused)
    number = raw_number(&view, refused.ordinal, limit)
    PyBuffer_Release(&view)
    if status == OK:
        return 0
    if status == NO_MEMORY:
        raise MemoryError
    if refused.ordinal > min(self.tree.last, limit):
        raise OutOfRangeError(f"{number} is not in 0 to {self.tree.last}: item {refused.at}")
    raise NotAllocatedError(
        f"ordinal {number}, item {refused.at} of {n}, is not allocated, or named twice"
    )

cdef Status release_items(
    Tree *t, Py_buffer *view, word offset, word limit, Refused *refused
) noexcept nogil:
    """release_all of what a caller's buffer holds; items past `limit` are negative."""
    cdef Py_ssize_t n = view.len // view.itemsize
    cdef word last = t.last
    refused.at, refused.ordinal = 0, 0
    if n == 0:
        return OK
    if limit < offset:                  # no item reaches the first ordinal
        refused.ordinal = ALL - offset
        return FOUND_CLEAR
    last = min(last, limit - offset)
    if view.itemsize == 4:
        return release_all(t, <uint32_t *>view.buf, n, offset, last, refused)
    return release_all(t, <uint64_t *>view.buf, n, offset, last, refused)

cdef object raw_number(Py_buffer *view, word raw, word limit):
    """An item as the caller sees it: one past `limit` is negative."""
    if raw > limit:
        return raw - (<object>1 << 8 * view.itemsize)
    return raw
