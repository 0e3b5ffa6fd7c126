# The ordinals that cool down, in the order of their release, each with the time when it is ready:
# a linked list laid out in an array, and a hash table from ordinal to place. No Python in here.
#
# Each operation is a few steps however many cool, also the first of a list from which many have
# gone, and taking one out of its middle. One weighs 32 bytes, up to twice that after a growth.

cdef struct Cooling:
    word ordinal
    double ready
    uint32_t after       # the next to be ready; free places are chained through it
    uint32_t before

cdef struct Queue:
    Cooling *at          # place 0 is the list's head: `after` leads to the oldest
    uint32_t *table      # a place, or 0; twice as many slots as places, a power of two
    uint32_t room        # places but for the head
    uint32_t count
    uint32_t free        # a chain of places, ended by 0
    uint32_t ready       # the last place of those known to be ready, or 0, ...
    uint32_t known       # how many they are, from the oldest on, ...
    double at_time       # and when that was: so no call walks over one again
    bint backward        # whether the clock ran so since it was empty: nothing is known then

cdef double BEFORE_ALL = -1.7976931348623157e308

cdef enum:
    QUEUE_FIRST = 32             # places of the first growth
    QUEUE_MOST = 1073741824      # places in all

cdef inline uint32_t queue_slot(Queue *q, word ordinal) noexcept nogil:
    """Where the table's search for an ordinal begins: the top bits of a product, all mixed in.

    Sixteen neighbours share a cache line: where a million cool that halves a release, as what
    is released together lies together.
    """
    cdef word line = ordinal >> 4
    cdef word mixed = (line ^ line >> 32) * <word>0x9E3779B97F4A7C15
    return <uint32_t>(mixed >> (clz(2 * <word>q.room) + 5) << 4 | (ordinal & 15))

cdef inline uint32_t queue_next(Queue *q, uint32_t slot) noexcept nogil:
    return (slot + 1) & (2 * q.room - 1)

cdef uint32_t queue_find(Queue *q, word ordinal) noexcept nogil:
    """The place of an ordinal, or 0."""
    cdef uint32_t slot
    if q.count == 0:
        return 0
    slot = queue_slot(q, ordinal)
    while q.table[slot] and q.at[q.table[slot]].ordinal != ordinal:
        slot = queue_next(q, slot)
    return q.table[slot]

cdef void queue_enter(Queue *q, uint32_t place) noexcept nogil:
    """Put a place into the table."""
    cdef uint32_t slot = queue_slot(q, q.at[place].ordinal)
    while q.table[slot]:
        slot = queue_next(q, slot)
    q.table[slot] = place

cdef bint queue_preallocate(Queue *q, Py_ssize_t more) noexcept nogil:
    """Have room for so many more, so that queue_add cannot fail; else nothing has changed."""
    cdef word room = q.room, k
    cdef Cooling *at
    cdef uint32_t *table
    if more <= <Py_ssize_t>(q.room - q.count):
        return True
    room = QUEUE_FIRST if room == 0 else room
    while room < q.count + <word>more and room < QUEUE_MOST:
        room *= 2
    if room < q.count + <word>more:
        return False
    table = <uint32_t *>PyMem_RawCalloc(2 * room, sizeof(uint32_t))
    if table == NULL:
        return False
    at = <Cooling *>PyMem_RawRealloc(q.at, (room + 1) * sizeof(Cooling))
    if at == NULL:
        PyMem_RawFree(table)
        return False
    if q.room == 0:
        memset(at, 0, sizeof(Cooling))
    PyMem_RawFree(q.table)
    k = room
    while k > q.room:
        at[k].after = q.free
        q.free = <uint32_t>k
        k -= 1
    q.at, q.table, q.room = at, table, <uint32_t>room
    k = at[0].after
    while k:
        queue_enter(q, <uint32_t>k)
        k = at[k].after
    return True

cdef void queue_add(Queue *q, word ordinal, double ready) noexcept nogil:
    """Append one that is not in it; the caller has preallocated."""
    cdef uint32_t place = q.free
    cdef Cooling *entry = q.at + place
    q.free = entry.after
    entry.ordinal, entry.ready = ordinal, ready
    entry.after, entry.before = 0, q.at[0].before
    if q.count == 0:
        q.ready = q.known = 0
        q.at_time, q.backward = BEFORE_ALL, False
    elif ready <= q.at_time or ready < q.at[entry.before].ready:
        q.backward = True
    q.at[entry.before].after = place
    q.at[0].before = place
    q.count += 1
    queue_enter(q, place)

cdef void queue_remove(Queue *q, uint32_t place) noexcept nogil:
    """Take one out, and all of the memory back with the last."""
    cdef Cooling *entry = q.at + place
    cdef uint32_t hole = queue_slot(q, entry.ordinal), slot, home, mask = 2 * q.room - 1
    if q.known and entry.ready <= q.at_time:
        q.known -= 1
        if place == q.ready:
            q.ready = entry.before
    q.at[entry.before].after = entry.after
    q.at[entry.after].before = entry.before
    while q.table[hole] != place:
        hole = queue_next(q, hole)
    slot = hole
    while True:                          # draw the others nearer, so that no search ends too soon
        slot = queue_next(q, slot)
        if q.table[slot] == 0:
            break
        home = queue_slot(q, q.at[q.table[slot]].ordinal)
        if ((slot - home) & mask) >= ((slot - hole) & mask):
            q.table[hole] = q.table[slot]
            hole = slot
    q.table[hole] = 0
    entry.after = q.free
    q.free = place
    q.count -= 1
    if q.count == 0 and q.room > QUEUE_FIRST:
        queue_free(q)

cdef void queue_free(Queue *q) noexcept nogil:
    PyMem_RawFree(q.at)
    PyMem_RawFree(q.table)
    memset(q, 0, sizeof(Queue))

cdef inline uint32_t queue_oldest(Queue *q) noexcept nogil:
    """The place of the one that has cooled longest, or 0."""
    return q.at[0].after if q.count else 0

cdef word queue_ready(Queue *q, double now) noexcept nogil:
    """How many at the front are ready; a step for each that has become so since the last call."""
    cdef uint32_t place
    if q.backward or now < q.at_time:
        q.ready = q.known = 0
    q.at_time = now
    place = q.at[q.ready].after if q.count else 0
    while place and q.at[place].ready <= now:
        q.known += 1
        q.ready = place
        place = q.at[place].after
    return q.known

cdef Py_ssize_t queue_bytes(Queue *q) noexcept nogil:
    return <Py_ssize_t>q.room * (sizeof(Cooling) + 2 * sizeof(uint32_t))


# ---- with the bitmaps: cooling is set in both, free in neither, taken in `bits` alone

cdef Status start_cooldown(
    Tree *bits, Tree *unavailable, Queue *q, word i, double ready
) noexcept nogil:
    """Let a taken ordinal cool until `ready`."""
    cdef Status status
    if not contains(bits, i) or contains(unavailable, i):
        return FOUND_CLEAR
    if not queue_preallocate(q, 1):
        return NO_MEMORY
    status = tree_reserve(unavailable, i)
    if status == OK:
        queue_add(q, i, ready)
    return status

cdef Status start_cooldowns(
    Tree *bits, Tree *unavailable, Queue *q, word *ordinals, Py_ssize_t n, double ready,
    Refused *refused
) noexcept nogil:
    """Let each of these cool, which are taken, or none."""
    cdef Py_ssize_t j
    cdef Status status
    for j in range(n):
        if not contains(bits, ordinals[j]):
            refused.at, refused.ordinal = j, ordinals[j]
            return FOUND_CLEAR
    if not queue_preallocate(q, n):
        return NO_MEMORY
    status = reserve_all(unavailable, ordinals, n, refused)
    if status == OK:
        for j in range(n):
            queue_add(q, ordinals[j], ready)
    return FOUND_CLEAR if status == FOUND_SET else status

cdef Status cancel_cooldown(Tree *unavailable, Queue *q, uint32_t place) noexcept nogil:
    """End the cooling of one, which is taken from now on."""
    cdef Status status = tree_release(unavailable, q.at[place].ordinal)
    if status == OK:
        queue_remove(q, place)
    return status

cdef Status expire_cooldowns(
    Tree *bits, Tree *unavailable, Queue *q, double now, word most
) noexcept nogil:
    """Free up to `most` of those that are ready, in the order of their release."""
    cdef word i
    cdef uint32_t place
    while most > 0:
        place = queue_oldest(q)
        if place == 0 or q.at[place].ready > now:
            return OK
        i = q.at[place].ordinal
        if not releasable(unavailable, i):              # so that the second release cannot fail
            return NO_MEMORY
        if tree_release(bits, i) != OK:
            collapse(unavailable, i)
            return NO_MEMORY
        tree_release(unavailable, i)
        queue_remove(q, place)
        most -= 1
    return OK
