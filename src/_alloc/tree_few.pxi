# Blocks in which few ordinals are set: a short ascending list instead of a path of nodes.
#
# An address reserved by itself in a /64 would own a path of up to eight nodes of 0.5 KiB. A
# block of any level that lies wholly within the size, and in which no more than FEW_MOST
# ordinals are set, one at a time, is such a list in its parent's slot, marked in `few`: 16 to
# 128 bytes. It becomes a node when it has more, or when an ordinal of it comes under the
# cursor; one level at a time, so that what lies elsewhere in it stays a list.

cdef enum:
    FEW_MOST = 15
    FEW_POOL = 48        # lists that fill() may make: for each end one a level, and FEW_MOST

cdef struct Few:
    word count
    word at[15]          # ascending; there is room for as many as few_bytes says

cdef struct Place:       # where a list hangs
    Node *parent
    int k
    int level            # of its block

cdef inline Py_ssize_t few_bytes(word count) noexcept nogil:
    """A power of two: 16 for one, 32 for three, 64 for seven, 128 for fifteen."""
    return <Py_ssize_t>8 << (64 - clz(count))

cdef Few *few_make(Tree *t, word count) noexcept nogil:
    """A list for so many; from the pool, or NULL when memory is short."""
    cdef Few *few = t.pool
    cdef Few *smaller
    if few != NULL:
        t.pool = (<Few **>few)[0]
        smaller = <Few *>PyMem_RawRealloc(few, few_bytes(count))
        if smaller != NULL:
            few = smaller
    else:
        few = <Few *>PyMem_RawMalloc(few_bytes(count))
    if few != NULL:
        few.count = count
        t.few += few_bytes(count) + FEW_HEADER
    return few

cdef void few_free(Tree *t, Few *few) noexcept nogil:
    t.few -= few_bytes(few.count) + FEW_HEADER
    PyMem_RawFree(few)

cdef bint few_preallocate(Tree *t) noexcept nogil:
    """Hold a pool, if there are any lists that fill() could come upon."""
    cdef Few *few
    cdef int n
    if t.few and t.pool == NULL:
        for n in range(FEW_POOL):
            few = <Few *>PyMem_RawMalloc(sizeof(Few))
            if few == NULL:
                return False
            (<Few **>few)[0] = t.pool
            t.pool = few
    return True

cdef void few_free_pool(Tree *t) noexcept nogil:
    cdef Few *few
    while t.pool != NULL:
        few = t.pool
        t.pool = (<Few **>few)[0]
        PyMem_RawFree(few)

cdef inline word few_search(Few *few, word i) noexcept nogil:
    """How many of them are less than i."""
    cdef word j = 0
    while j < few.count and few.at[j] < i:
        j += 1
    return j

cdef inline bint few_has(Few *few, word i) noexcept nogil:
    cdef word j = few_search(few, i)
    return j < few.count and few.at[j] == i

cdef Few *few_at(Tree *t, word i, Place *place) noexcept nogil:
    """The list around i, where locate says &FEW."""
    cdef Node *node = t.root
    cdef int level = t.top, k = index_at(i, level)
    while node.mixed >> k & 1:
        node = node.at.child[k]
        level -= 1
        k = index_at(i, level)
    place.parent, place.k, place.level = node, k, level - 1
    return <Few *>node.at.child[k]

cdef inline bint few_next_free(Few *few, word i, word stop, word *found) noexcept nogil:
    """The first ordinal of i..stop that is not in the list."""
    cdef word j = few_search(few, i)
    while j < few.count and few.at[j] == i:
        if i == stop:
            return False
        i += 1
        j += 1
    found[0] = i
    return True

cdef bint few_split(Tree *t, Place *place, Few *few) noexcept nogil:
    """Make a node of a list, and lists of what lies in its children; else nothing changes."""
    cdef int level = place.level, k
    cdef word bit = <word>1 << place.k, j = 0, n
    cdef Few *part
    cdef Node *node
    if not preallocate(t, 1):
        return False
    node = make_node(t, level, few.at[0] & ~span_mask(level), False)
    while j < few.count:
        n = 1
        if level == 0:
            leaf_set(node, few.at[j])
        else:
            k = index_at(few.at[j], level)
            while j + n < few.count and index_at(few.at[j + n], level) == k:
                n += 1
            part = few_make(t, n)
            if part == NULL:
                free_below(t, node, level)
                return False
            memcpy(part.at, &few.at[j], n * sizeof(word))
            node.at.child[k] = <Node *>part
            node.few |= <word>1 << k
        j += n
    place.parent.at.child[place.k] = node
    place.parent.few &= ~bit
    place.parent.mixed |= bit
    few_free(t, few)
    return True

cdef bint few_open(Tree *t, word i) noexcept nogil:
    """Have no list around i."""
    cdef int level
    cdef Place place
    cdef Few *few
    while locate(t, i, &level) == &FEW:
        few = few_at(t, i, &place)
        if not few_split(t, &place, few):
            return False
    return True

cdef Status few_insert(Tree *t, word i) noexcept nogil:
    """Set i in the list around it; FOUND_CLEAR where it has no room and was made a node."""
    cdef Place place
    cdef Few *few = few_at(t, i, &place)
    cdef word j = few_search(few, i), k = few.count
    if j < few.count and few.at[j] == i:
        return FOUND_SET
    if few.count == FEW_MOST:
        return FOUND_CLEAR if few_split(t, &place, few) else NO_MEMORY
    if few_bytes(few.count + 1) != few_bytes(few.count):
        few = <Few *>PyMem_RawRealloc(few, few_bytes(few.count + 1))
        if few == NULL:
            return NO_MEMORY
        t.few += few_bytes(few.count + 1) - few_bytes(few.count)
        place.parent.at.child[place.k] = <Node *>few
    while k > j:
        few.at[k] = few.at[k - 1]
        k -= 1
    few.at[j] = i
    few.count += 1
    t.used += 1
    return OK

cdef Status few_remove(Tree *t, word i) noexcept nogil:
    """Clear i in the list around it; needs no memory."""
    cdef Place place
    cdef Few *few = few_at(t, i, &place)
    cdef Few *smaller
    cdef word j = few_search(few, i)
    cdef Py_ssize_t before = few_bytes(few.count)
    if j == few.count or few.at[j] != i:
        return FOUND_CLEAR
    t.used -= 1
    if few.count == 1:
        few_free(t, few)
        place.parent.few &= ~(<word>1 << place.k)
        collapse(t, i)
        return OK
    few.count -= 1
    while j < few.count:
        few.at[j] = few.at[j + 1]
        j += 1
    if few_bytes(few.count) != before:
        t.few -= before - few_bytes(few.count)
        smaller = <Few *>PyMem_RawRealloc(few, few_bytes(few.count))
        if smaller != NULL:
            place.parent.at.child[place.k] = <Node *>smaller
    return OK

cdef Status few_begin(Tree *t, word i) noexcept nogil:
    """Set i, around which nothing is set, as a list; FOUND_CLEAR where it has to be a node."""
    cdef int level
    cdef Place place
    cdef Few *few
    if t.top == 0:
        return FOUND_CLEAR
    if t.root == &EMPTY:
        if not preallocate(t, 1):
            return NO_MEMORY
        t.root = make_node(t, t.top, 0, False)
    locate(t, i, &level)
    few = NULL
    if t.last - (i & ~span_mask(level)) >= span_mask(level):
        few_at(t, i, &place)
        few = few_make(t, 1)
        if few == NULL:
            collapse(t, i)
            return NO_MEMORY
        few.at[0] = i
        place.parent.at.child[place.k] = <Node *>few
        place.parent.few |= <word>1 << place.k
        t.used += 1
        return OK
    return FOUND_CLEAR              # where the size ends

cdef Node *piece_at(Tree *t, word i, word *stop) noexcept nogil:
    """The piece that begins with i, to `stop`: all set, all clear, or what is left of a leaf."""
    cdef int level
    cdef word j
    cdef Place place
    cdef Few *few
    cdef Node *node = locate(t, i, &level)
    stop[0] = i | span_mask(level)
    if node != &FEW:
        return node
    few = few_at(t, i, &place)
    j = few_search(few, i)
    if j == few.count:
        return &EMPTY
    if few.at[j] > i:
        stop[0] = few.at[j] - 1
        return &EMPTY
    stop[0] = i
    return &FULL


# ---- as bytes, which tell nothing of lists

cdef Py_ssize_t few_encoded_size(const word *at, word count, int level) noexcept nogil:
    cdef Py_ssize_t size = 16
    cdef word j = 0, n
    if level == 0:
        return 8 * WORDS
    while j < count:
        n = few_part(at + j, count - j, level)
        size += few_encoded_size(at + j, n, level - 1)
        j += n
    return size

cdef inline word few_part(const word *at, word count, int level) noexcept nogil:
    """How many of them, from the first on, lie in one child of their block."""
    cdef word n = 1
    while n < count and index_at(at[n], level) == index_at(at[0], level):
        n += 1
    return n

cdef uint8_t *few_encode(const word *at, word count, int level, uint8_t *out) noexcept nogil:
    cdef word words[64]
    cdef word j, n, mixed = 0
    cdef int k
    if level == 0:
        memset(words, 0, sizeof(words))
        for j in range(count):
            words[(at[j] >> 6) & 63] |= <word>1 << (at[j] & 63)
        for k in range(WORDS):
            out = put(out, words[k])
        return out
    for j in range(count):
        mixed |= <word>1 << index_at(at[j], level)
    out = put(put(out, 0), mixed)
    j = 0
    while j < count:
        n = few_part(at + j, count - j, level)
        out = few_encode(at + j, n, level - 1, out)
        j += n
    return out

cdef Few *few_of(Tree *t, Node *node, int level, word base) noexcept nogil:
    """A list of what is set in a node, where that will do; else NULL, and the node is as it was."""
    cdef Few few
    cdef Few *made
    cdef word left = node.few, bits
    cdef int k
    few.count = 0
    if t.last - base < span_mask(level):
        return NULL
    if level == 0:
        if node.mixed > FEW_MOST:
            return NULL
        for k in range(WORDS):
            bits = node.at.words[k]
            while bits:
                few.at[few.count] = base | <word>k << 6 | <word>ctz(bits)
                few.count += 1
                bits &= bits - 1
    else:
        if node.mixed or node.full:
            return NULL
        while left:
            made = <Few *>node.at.child[ctz(left)]
            if few.count + made.count > FEW_MOST:
                return NULL
            memcpy(&few.at[few.count], made.at, made.count * sizeof(word))
            few.count += made.count
            left &= left - 1
    made = few_make(t, few.count)
    if made != NULL:
        memcpy(made.at, few.at, few.count * sizeof(word))
        free_below(t, node, level)
    return made
