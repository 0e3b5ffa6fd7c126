# Many ordinals at a time, over the tree: each search reads only, and what it found is then
# set by filling one or two ranges, which costs a step per node and cannot fail.

ctypedef fused element:
    uint32_t
    uint64_t

# fill() makes at most one path of nodes at each of its two ends
cdef enum:
    FILL_PATHS = 2
    RAMP = 1 << 30       # ordinals written at once, so that 32 bits can count them


# ---- filling a range

cdef void leaf_fill(Node *leaf, word lo, word hi) noexcept nogil:
    cdef int k, first = <int>((lo >> 6) & 63), final = <int>((hi >> 6) & 63)
    cdef word mask
    for k in range(first, final + 1):
        mask = ALL
        if k == first:
            mask &= ALL << (lo & 63)
        if k == final:
            mask &= ~above(<int>(hi & 63))
        leaf.mixed += popcount(mask & ~leaf.at.words[k])
        leaf.at.words[k] |= mask
        if leaf.at.words[k] == ALL:
            leaf.full |= <word>1 << k

cdef void fill_below(Tree *t, Node *node, int level, word lo, word hi) noexcept nogil:
    cdef int k, shift = child_shift(level)
    cdef word span = span_mask(level - 1), base = lo & ~span_mask(level), start, stop, bit
    cdef Node *child
    cdef Place place
    for k in range(index_at(lo, level), index_at(hi, level) + 1):
        bit = <word>1 << k
        if node.full & bit:
            continue
        start = base | <word>k << shift
        stop = min(start | span, t.last)
        if lo <= start and stop <= hi:
            if node.mixed & bit:
                free_below(t, node.at.child[k], level - 1)
            elif node.few & bit:
                few_free(t, <Few *>node.at.child[k])
        else:
            if node.few & bit:
                place.parent, place.k, place.level = node, k, level - 1
                few_split(t, &place, <Few *>node.at.child[k])       # out of the pool
            elif not node.mixed & bit:
                node.at.child[k] = make_node(t, level - 1, start, False)
                node.mixed |= bit
            child = node.at.child[k]
            if level == 1:
                leaf_fill(child, max(lo, start), min(hi, stop))
            else:
                fill_below(t, child, level - 1, max(lo, start), min(hi, stop))
            if child.full != ALL:
                continue
            recycle(t, child)
        node.mixed &= ~bit
        node.few &= ~bit
        node.full |= bit

cdef void fill(Tree *t, word lo, word hi) noexcept nogil:
    """Set lo..hi, both included; the caller has preallocated and counts `used`."""
    drop_cached_leaf(t)
    if t.root == &FULL:
        return
    if lo == 0 and hi == t.last:
        if t.root != &EMPTY:
            free_below(t, t.root, t.top)
        t.root = &FULL
        return
    if t.root == &EMPTY:
        t.root = make_node(t, t.top, 0, False)
    if t.top == 0:
        leaf_fill(t.root, lo, hi)
    else:
        fill_below(t, t.root, t.top, lo, hi)
    if t.root.full == ALL:
        recycle(t, t.root)
        t.root = &FULL

cdef inline bint preallocate_fill(Tree *t) noexcept nogil:
    if preallocate(t, FILL_PATHS * (t.top + 1)) and few_preallocate(t):
        return True
    free_spares(t)
    return False


# ---- taking n ordinals from the cursor on

cdef extern from *:
    """
    /* first, first + 1, ...; counted in the width of an item and kept out of its callers, or
       the compiler does not see that it vectorises, and it costs three times as much. */
    #define NA_RAMP(bits)                                                                       \
        static __attribute__((noinline)) void na_ramp##bits(                                    \
            uint##bits##_t *restrict out, uint##bits##_t first, uint##bits##_t n)               \
        {                                                                                       \
            for (uint##bits##_t j = 0; j < n; j++)                                              \
                out[j] = first + j;                                                             \
        }
    NA_RAMP(32)
    NA_RAMP(64)
    """
    void ramp32 "na_ramp32"(uint32_t *out, uint32_t first, uint32_t n) noexcept nogil
    void ramp64 "na_ramp64"(uint64_t *out, uint64_t first, uint64_t n) noexcept nogil

cdef inline void ramp(element *out, word first, word n) noexcept nogil:
    if element is uint32_t:
        ramp32(out, <uint32_t>first, <uint32_t>n)
    else:
        ramp64(out, first, n)

cdef word scan_free(
    Tree *t, word lo, word hi, element *out, word room, word offset, word *final
) noexcept nogil:
    """Write the free ordinals of lo..hi, plus `offset`, until `room` is used up.

    Returns how many were written and sets `final` to the last. A word with nothing set
    costs about 0.1 ns an ordinal, a mixed one 1.5.
    """
    cdef Node *node
    cdef int k
    cdef word done = 0, stop, end, n, bits
    while True:
        node = piece_at(t, lo, &stop)
        stop = min(stop, hi)
        if node == &EMPTY:
            if stop - lo > RAMP:
                stop = lo + RAMP
            n = min(stop - lo, room - done - 1) + 1
            ramp(out + done, offset + lo, n)
            done += n
            final[0] = lo + n - 1
        elif node != &FULL:
            while True:
                k = <int>((lo >> 6) & 63)
                bits = ~node.at.words[k] & (ALL << (lo & 63))
                end = lo | 63
                if end > stop:
                    end = stop
                    bits &= ~above(<int>(stop & 63))
                if bits == ALL and room - done >= 64:
                    ramp(out + done, offset + lo, 64)
                    done += 64
                    final[0] = lo + 63
                else:
                    lo &= ~<word>63
                    while bits and done < room:
                        final[0] = lo | <word>ctz(bits)
                        out[done] = <element>(offset + final[0])
                        done += 1
                        bits &= bits - 1
                if end == stop or done == room:
                    break
                lo = end + 1
        if stop == hi or done == room:
            return done
        lo = stop + 1

cdef inline void take_through(Tree *t, word ahead, word final, word wrapped, word n) noexcept nogil:
    """Take the n free ordinals from the cursor on.

    `ahead` of them lie between the cursor and `final`, the others between 0 and `wrapped`.
    """
    cdef word begin = t.cursor
    if ahead:
        fill(t, begin, final)
    if ahead < n:
        fill(t, 0, wrapped)
        final = wrapped
    t.used += n
    free_spares(t)
    move_cursor(t, final)

cdef word peek_into(
    Tree *t, element *out, word n, word offset, word *final, word *wrapped
) noexcept nogil:
    """Write the next n free ordinals, of which there are enough, and take none.

    Returns how many lie ahead of the cursor, as take_through wants it.
    """
    cdef word ahead = scan_free(t, t.cursor, t.last, out, n, offset, final)
    if ahead < n:
        scan_free(t, 0, t.cursor - 1, out + ahead, n - ahead, offset, wrapped)
    return ahead

cdef Status take_into(Tree *t, element *out, word n, word offset) noexcept nogil:
    """Take n ordinals, of which at least n are free, and write them, plus `offset`."""
    cdef word ahead, final = 0, wrapped = 0
    if not preallocate_fill(t):
        return NO_MEMORY
    ahead = peek_into(t, out, n, offset, &final, &wrapped)
    take_through(t, ahead, final, wrapped, n)
    return OK


# ---- a contiguous run

cdef inline word fold(word free, word n) noexcept nogil:
    """The positions in a word of free bits where n of them begin in a row; n up to 64."""
    cdef word step = 1, left = n - 1
    while left and free:
        if step > left:
            step = left
        free &= free >> step
        left -= step
        step <<= 1
    return free

# A run of n >= 2 * w - 1 free bits covers an aligned lane of w. Where no word of a leaf has
# a free lane, nothing in it needs a closer look: 0.7 ns a word instead of 4.
cdef struct Lanes:
    word ones            # the lowest bit of each lane; 0: look at every word
    word tops            # the highest

cdef Lanes lanes_for(word n) noexcept nogil:
    cdef Lanes lanes
    lanes.ones = lanes.tops = 0
    if n >= 31:
        lanes.ones, lanes.tops = <word>0x0001000100010001, <word>0x8000800080008000
    elif n >= 15:
        lanes.ones, lanes.tops = <word>0x0101010101010101, <word>0x8080808080808080
    return lanes

cdef inline word free_lanes(word bits, Lanes lanes) noexcept nogil:
    """Not 0 where a lane of these bits is 0 (Mycroft's test)."""
    return (bits - lanes.ones) & ~bits & lanes.tops

cdef bint leaf_has_free_lane(Node *leaf, Lanes lanes) noexcept nogil:
    cdef word any = 0
    cdef int k
    for k in range(WORDS):
        any |= free_lanes(leaf.at.words[k], lanes)
    return any != 0

cdef bint run_in_leaf(Node *leaf, word i, word stop, word n, Lanes lanes, word *begin) noexcept nogil:
    """Look for the run in i..stop; `begin` is where the free run that reaches i began."""
    cdef word bits, start, fit
    cdef bint close = True, was_close
    if lanes.ones and not i & LEAF_MASK and not leaf_has_free_lane(leaf, lanes):
        bits = leaf.at.words[0]
        if i + <word>(ctz(bits) if bits else 64) - begin[0] >= n:
            return True
        bits = leaf.at.words[63]
        begin[0] = i + 4096 - <word>(clz(bits) if bits else 64)
        return False
    while True:
        start = i & ~<word>63
        bits = leaf.at.words[(i >> 6) & 63] | ~(ALL << (i & 63))
        was_close = close
        close = lanes.ones == 0 or free_lanes(bits, lanes)
        if bits == ALL:
            begin[0] = start + 64
        elif bits == 0:
            if start + 63 - begin[0] >= n - 1:
                return True
        else:
            if close or was_close:
                # what is carried into this word ends in it, or a run lies within it
                if begin[0] < start and start + <word>ctz(bits) - begin[0] >= n:
                    return True
                if n < 64:
                    fit = fold(~bits, n)
                    if fit:
                        begin[0] = start + <word>ctz(fit)
                        return True
            begin[0] = start + 64 - <word>clz(bits)
        if start + 63 >= stop:
            return False
        i = start + 64

cdef bint find_run(Tree *t, word lo, word hi, word n, word *found) noexcept nogil:
    """The lowest start of n free ordinals in a row within lo..hi."""
    cdef Node *node
    cdef word begin = lo, i = lo, stop
    cdef Lanes lanes = lanes_for(n)
    while hi >= lo and hi - lo >= n - 1:
        node = piece_at(t, i, &stop)
        stop = min(stop, hi)
        if node == &FULL:
            begin = stop + 1
        elif stop - begin >= n - 1 if node == &EMPTY else run_in_leaf(
            node, i, stop, n, lanes, &begin
        ):
            found[0] = begin
            return hi - begin >= n - 1
        if stop == hi:
            return False
        i = stop + 1
    return False

cdef bint next_run(Tree *t, word n, word *found) noexcept nogil:
    """The start of n free ordinals in a row, the first at or after the cursor, then from 0 on."""
    cdef word room = n - 1
    if room > t.last:
        return False
    if find_run(t, t.cursor, t.last, n, found):
        return True
    # one may begin before the cursor and reach past it
    return t.cursor > 0 and find_run(
        t, 0, t.cursor - 1 + min(room, t.last - t.cursor + 1), n, found
    )

cdef inline void take_run(Tree *t, word first, word n) noexcept nogil:
    """Take what next_run found; the caller has preallocated."""
    fill(t, first, first + (n - 1))
    t.used += n
    free_spares(t)
    move_cursor(t, first + (n - 1))


# ---- releasing and reserving many

cdef extern from *:
    """
    /* A caller's buffer may be written by another thread meanwhile, so each item is read once. */
    #define na_read32(p) (*(const volatile uint32_t *)(p))
    #define na_read64(p) (*(const volatile uint64_t *)(p))
    """
    uint32_t read32 "na_read32"(uint32_t *p) noexcept nogil
    uint64_t read64 "na_read64"(uint64_t *p) noexcept nogil

cdef inline word read_once(element *p) noexcept nogil:
    if element is uint32_t:
        return read32(p)
    else:
        return read64(p)

cdef struct Refused:
    Py_ssize_t at        # which of the items
    word ordinal

cdef struct Bits:        # of one word, of which `base` is the first ordinal
    word base
    word bits

cdef struct Journal:     # what has been changed so far, one entry for each run within a word
    Bits *at
    Py_ssize_t n
    Py_ssize_t room
    Bits here[64]        # short calls ask for no memory

cdef bint note(Journal *journal, word base, word bits) noexcept nogil:
    cdef Bits *more
    if journal.n == journal.room:
        more = <Bits *>PyMem_RawMalloc(2 * journal.room * sizeof(Bits))
        if more == NULL:
            return False
        memcpy(more, journal.at, journal.n * sizeof(Bits))
        close_journal(journal)
        journal.at = more
        journal.room *= 2
    journal.at[journal.n].base = base
    journal.at[journal.n].bits = bits
    journal.n += 1
    return True

cdef inline void open_journal(Journal *journal) noexcept nogil:
    journal.at, journal.n, journal.room = journal.here, 0, 64

cdef inline void close_journal(Journal *journal) noexcept nogil:
    if journal.at != journal.here:
        PyMem_RawFree(journal.at)

cdef inline void leaf_put(Node *leaf, word base, word bits, bint on) noexcept nogil:
    """Set or clear these bits, all of which are otherwise."""
    cdef int k = <int>((base >> 6) & 63)
    if on:
        leaf.at.words[k] |= bits
        leaf.mixed += popcount(bits)
        if leaf.at.words[k] == ALL:
            leaf.full |= <word>1 << k
    else:
        leaf.at.words[k] &= ~bits
        leaf.full &= ~(<word>1 << k)
        leaf.mixed -= popcount(bits)

cdef void undo(Tree *t, Journal *journal, bint on) noexcept nogil:
    """Set again, or clear again, what was changed; needs no memory."""
    cdef Py_ssize_t j = journal.n
    cdef int level
    while j > 0:
        j -= 1
        leaf_put(locate(t, journal.at[j].base, &level), journal.at[j].base, journal.at[j].bits, on)
    collapse_changed(t, journal)

cdef void collapse_changed(Tree *t, Journal *journal) noexcept nogil:
    """Give up the leaves that have become uniform."""
    cdef Node *leaf = NULL
    cdef word i, base = 0
    cdef Py_ssize_t j
    cdef int level
    for j in range(journal.n):
        i = journal.at[j].base
        if leaf == NULL or (i ^ base) > LEAF_MASK:
            leaf = locate(t, i, &level)
            base = i & ~<word>LEAF_MASK
            if leaf != &EMPTY and leaf != &FULL and leaf != &FEW:
                if leaf.full == ALL or (leaf.mixed == 0 and leaf != t.leaf):
                    collapse(t, i)
                    leaf = NULL
    free_spares(t)

cdef inline Py_ssize_t first_wrong(
    element *values, Py_ssize_t j, Py_ssize_t stop, word offset, word bits, word *ordinal
) noexcept nogil:
    """Which of these values of one word has no bit of its own in it."""
    cdef word bit
    while j < stop:
        ordinal[0] = read_once(values + j) - offset
        bit = <word>1 << (ordinal[0] & 63)
        if not bits & bit:
            return j
        bits &= ~bit
        j += 1
    return stop

cdef Status change_all(
    Tree *t, element *values, Py_ssize_t n, word offset, word last, bint on, Refused *refused
) noexcept nogil:
    """Set or clear every ordinal, given plus `offset`, or none; `last` is the highest allowed.

    Neighbours in one word change together: 1 ns an ordinal in sorted order, 5 shuffled. One
    that is named twice shows in the word's count, or as changed already. No leaf is given up
    before all are changed, so that undoing needs no memory. `used` and cursor are the caller's.
    """
    cdef Node *leaf = NULL
    cdef word base = 0, i = 0, start, room, bits, free
    cdef int level, k, count
    cdef bint uniform = False
    cdef Status status = OK
    cdef Status wrong = FOUND_SET if on else FOUND_CLEAR
    cdef Py_ssize_t j = 0, begin = 0
    cdef Journal journal
    open_journal(&journal)
    if n:
        i = read_once(values) - offset
    while j < n:
        begin = j
        if i > last:
            status = wrong
            refused.ordinal = i
            break
        if leaf == NULL or (i ^ base) > LEAF_MASK:
            leaf = locate(t, i, &level)
            base = i & ~<word>LEAF_MASK
            if leaf == &EMPTY or leaf == &FULL or leaf == &FEW:
                if leaf != &FEW and (leaf == &FULL) == on:
                    status = wrong
                    refused.ordinal = i
                    break
                leaf = materialize(t, i)
                if leaf == NULL:
                    status = NO_MEMORY
                    break
                uniform = True
        k = <int>((i >> 6) & 63)
        start = i & ~<word>63
        room = min(<word>63, last - start)
        bits = 0
        while True:                 # all that fall into this word
            bits |= <word>1 << (i & 63)
            j += 1
            if j == n:
                break
            i = read_once(values + j) - offset
            if i - start > room:
                break
        count = <int>(j - begin)
        free = leaf.at.words[k] if on else ~leaf.at.words[k]
        if bits & free or (count > 1 and popcount(bits) != count):
            status = wrong
            j = begin = first_wrong(values, begin, j, offset, ~free, &refused.ordinal)
            break
        if not note(&journal, start, bits):
            status = NO_MEMORY
            break
        leaf_put(leaf, start, bits, on)
        uniform |= leaf.mixed == 0 or leaf.full == ALL
    refused.at = begin
    if status != OK:
        undo(t, &journal, not on)
        if leaf != NULL and leaf != &EMPTY and leaf != &FULL:
            collapse(t, base)       # made for one that was refused
            free_spares(t)
    elif uniform:
        collapse_changed(t, &journal)
    close_journal(&journal)
    return status

cdef Status release_all(
    Tree *t, element *values, Py_ssize_t n, word offset, word last, Refused *refused
) noexcept nogil:
    """Clear every ordinal, or none; if all were set, the first is the next one given."""
    cdef word first
    cdef Status status
    if n == 0:
        return OK
    first = read_once(values) - offset
    status = change_all(t, values, n, offset, last, False, refused)
    if status == OK:
        if t.used == t.last + 1:
            drop_cached_leaf(t)
            t.cursor = min(first, t.last)
        t.used -= n
    return status

cdef Status reserve_all(Tree *t, word *values, Py_ssize_t n, Refused *refused) noexcept nogil:
    """Set every ordinal, or none."""
    cdef Status status = change_all(t, values, n, 0, t.last, True, refused)
    if status == OK:
        t.used += n
    return status


# ---- counting

cdef word leaf_count(Node *leaf, word i, word stop) noexcept nogil:
    """How many of the ordinals i..stop of a leaf are set."""
    cdef int k = <int>((i >> 6) & 63), end = <int>((stop >> 6) & 63)
    cdef word bits = leaf.at.words[k] & ALL << (i & 63), count = 0
    while k < end:
        count += popcount(bits)
        k += 1
        bits = leaf.at.words[k]
    return count + popcount(bits & ALL >> (63 - (stop & 63)))

cdef void tree_counts(
    Tree *t, word i, word stop, word cell, word skip, word *out
) noexcept nogil:
    """Add to `out` how many of i..stop are set in each cell, of which i lies `skip` into the first.

    A step for each piece and each cell, and a popcount a word.
    """
    cdef Node *node
    cdef word edge = i + min(stop - i, cell - skip - 1)     # the last one of the cell
    cdef word end, until
    while True:
        node = piece_at(t, i, &end)
        end = min(end, stop)
        while True:
            until = min(edge, end)
            if node == &FULL:
                out[0] += until - i + 1
            elif node != &EMPTY:
                out[0] += leaf_count(node, i, until)
            if until == stop:
                return
            i = until + 1
            if until == edge:
                out += 1
                edge = stop if stop - edge < cell else edge + cell
            if until == end:
                break
