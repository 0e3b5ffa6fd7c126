# The radix tree of bits beneath Bitmap and IPAllocator. No Python in here: every
# function is `noexcept nogil`, so the compiler refuses a call that could raise.
#
#   level 0   a leaf: 64 words of 64 bits, 4096 ordinals
#   level n   64 children of level n - 1
#   a list    of a block of any level in which few are set (tree_few.pxi)
#
# Only a mixed block owns a node or a list. A block with nothing set is EMPTY and one with nothing
# free is FULL: for a child that is one bit in its parent's masks, for the root it is a
# sentinel, so an empty and a full tree of any size own no node at all.
#
# Ordinals past `last` (padding) count as set: padded children are FULL, padded bits are 1.
# So no search ever has to compare with the size.
#
# Between two public calls:
#   - a leaf is neither full nor empty, but for the one under the cursor, which may be
#     empty, so that acquiring and releasing one address does not make and free a path;
#   - an inner node has at least one mixed child, or a list;
#   - `used` counts the bits that are set, without padding, modulo 2**64.

ctypedef uint64_t word

cdef extern from *:
    """
    #define na_ctz(x) ((unsigned)__builtin_ctzll(x))     /* zero-extended for nothing */
    #define na_clz(x) __builtin_clzll(x)
    #define na_popcount(x) __builtin_popcountll(x)
    #define NA_ALL (~(uint64_t)0)
    """
    unsigned int ctz "na_ctz"(word) noexcept nogil
    int clz "na_clz"(word) noexcept nogil
    int popcount "na_popcount"(word) noexcept nogil
    word ALL "NA_ALL"            # a macro: the compiler folds it, a module variable it must load
    bint unlikely(bint) noexcept nogil      # Cython's own; keeps slow ways out of the fast ones

cdef enum:
    WORDS = 64           # words in a leaf, children in an inner node
    LEAF_SHIFT = 12      # log2 of the ordinals in a leaf
    LEAF_MASK = 4095
    HEIGHT = 10          # levels in a tree of 2**64 ordinals
    FEW_HEADER = 16      # the C allocator's own
    KEPT = 1             # nodes kept for the next path: one saves a malloc, two a promise

cdef enum Status:
    OK
    FOUND_SET            # reserve: it is taken already
    FOUND_CLEAR          # release: it is not taken
    NO_MEMORY            # nothing was changed

cdef union Slots:
    word words[64]
    Node *child[64]      # valid where `mixed` has the bit

cdef struct Node:
    word full            # words or children with nothing free
    word mixed           # inner: children that own a node; leaf: how many bits are set
    Slots at
    word few             # inner: children that are a list

cdef struct Tree:
    word last            # the highest ordinal
    word cursor          # where the next search begins, 0..last
    word used
    Node *leaf           # the leaf under the cursor, or &FULL: in either the search is the same
    word base            # its first ordinal
    word stop            # its last one
    Node *last_released  # the leaf last released in, or &EMPTY: 3 ns where releases are near
    word last_released_base
    Node *root           # &EMPTY, &FULL or a node of level `top`
    int top
    int spares
    Node *spare          # kept nodes, chained through at.child[0]
    Py_ssize_t nodes     # all nodes owned, the kept ones included
    Py_ssize_t few       # bytes of all lists
    Few *pool            # lists for fill(), chained through their first word

cdef Node EMPTY, FULL    # compared by address; as leaves, all clear and all set
cdef Node FEW            # compared by address: what locate finds of a list
memset(&FULL, 0xFF, sizeof(Node))


# ---- geometry

cdef inline int child_shift(int level) noexcept nogil:
    return LEAF_SHIFT + 6 * (level - 1)

cdef inline int index_at(word i, int level) noexcept nogil:
    """Which child of its level-n node leads to ordinal i (level >= 1)."""
    return <int>((i >> child_shift(level)) & 63)

cdef inline word span_mask(int level) noexcept nogil:
    """The bits of an ordinal that lie below a block of this level."""
    cdef int shift = child_shift(level + 1)
    return ALL if shift >= 64 else (<word>1 << shift) - 1

cdef inline word above(int index) noexcept nogil:
    """A mask of the 63 - index bits above this one."""
    return (ALL << 1) << index

cdef inline word padding(Tree *t, int level, word base) noexcept nogil:
    """Which children of the inner node at `base` lie wholly past the last ordinal."""
    if t.last - base >= span_mask(level) and level < HEIGHT - 1:
        return 0                        # the highest level has 64 children for 4 bits
    return above(index_at(t.last, level))

cdef inline bint is_empty(Tree *t, Node *node, int level, word base) noexcept nogil:
    if level == 0:
        return node.mixed == 0
    return node.mixed == 0 and node.few == 0 and node.full == padding(t, level, base)


# ---- nodes

cdef bint preallocate(Tree *t, Py_ssize_t count) noexcept nogil:
    """Hold `count` spare nodes, so that what follows cannot fail."""
    cdef Node *node
    while t.spares < count:
        node = <Node *>PyMem_RawMalloc(sizeof(Node))
        if node == NULL:
            return False
        node.at.child[0] = t.spare
        t.spare = node
        t.spares += 1
        t.nodes += 1
    return True

cdef void free_spares(Tree *t) noexcept nogil:
    """Free all spare nodes, and spare lists."""
    cdef Node *node
    if unlikely(t.pool != NULL):
        few_free_pool(t)
    while t.spares > 0:
        node = t.spare
        t.spare = node.at.child[0]
        t.spares -= 1
        t.nodes -= 1
        PyMem_RawFree(node)

cdef inline void recycle(Tree *t, Node *node) noexcept nogil:
    if node == t.last_released:
        t.last_released = &EMPTY
    if t.spares < KEPT:
        node.at.child[0] = t.spare
        t.spare = node
        t.spares += 1
    else:
        t.nodes -= 1
        PyMem_RawFree(node)

cdef inline Node *spare_node(Tree *t) noexcept nogil:
    """One of the spare ones, of which there must be one; with anything in it."""
    cdef Node *node = t.spare
    t.spare = node.at.child[0]
    t.spares -= 1
    return node

cdef Node *make_node(Tree *t, int level, word base, bint full) noexcept nogil:
    """A uniform node out of the spare ones, for the block of this level at `base`."""
    cdef Node *node = spare_node(t)
    cdef int k, bit
    if level > 0:
        node.full = ALL if full else padding(t, level, base)
        node.mixed = node.few = 0
        return node
    memset(node.at.words, 0xFF if full else 0, sizeof(node.at.words))
    node.full = ALL if full else 0
    node.mixed = 4096 if full else 0
    if t.last - base < LEAF_MASK:
        k = <int>((t.last - base) >> 6)
        bit = <int>(t.last & 63)
        if full:
            node.mixed = t.last - base + 1
        else:
            node.at.words[k] = above(bit)
            memset(&node.at.words[k] + 1, 0xFF, 8 * (63 - k))
            node.full = above(k)
    return node

cdef void free_below(Tree *t, Node *node, int level) noexcept nogil:
    """Free a node and all beneath it."""
    cdef word left
    if level > 0:
        left = node.mixed
        while left:
            free_below(t, node.at.child[ctz(left)], level - 1)
            left &= left - 1
        left = node.few
        while left:
            few_free(t, <Few *>node.at.child[ctz(left)])
            left &= left - 1
    recycle(t, node)

cdef void tree_init(Tree *t, word last) noexcept nogil:
    memset(t, 0, sizeof(Tree))
    t.last = last
    t.root = t.last_released = &EMPTY
    t.leaf = &FULL
    while t.top < HEIGHT - 1 and last > span_mask(t.top):
        t.top += 1

cdef void tree_free(Tree *t) noexcept nogil:
    cdef Node *node
    if t.root != NULL and t.root != &EMPTY and t.root != &FULL:
        free_below(t, t.root, t.top)
    t.root = NULL
    few_free_pool(t)
    while t.spare != NULL:
        node = t.spare
        t.spare = node.at.child[0]
        PyMem_RawFree(node)
    t.spares = t.nodes = 0


# ---- paths

cdef inline Node *locate(Tree *t, word i, int *level) noexcept nogil:
    """The smallest block with a mark of its own around i: &EMPTY, &FULL, &FEW or its leaf."""
    cdef Node *node = t.root
    cdef int at = t.top, k
    if node != &EMPTY and node != &FULL:
        while at > 0:
            k = index_at(i, at)
            at -= 1
            if not (node.mixed >> k & 1):
                level[0] = at
                return &FULL if node.full >> k & 1 else &FEW if node.few >> k & 1 else &EMPTY
            node = node.at.child[k]
    level[0] = at
    return node

cdef Node *materialize(Tree *t, word i) noexcept nogil:
    """The leaf around i, made if the block has none; NULL when memory is short.

    A leaf made here may be uniform: the caller sets or clears a bit in it at once, or makes it
    the leaf under the cursor.
    """
    cdef int level, k
    cdef bint full
    cdef Node *node
    cdef Node *child = locate(t, i, &level)
    if unlikely(child == &FEW):
        if not few_open(t, i):
            free_spares(t)
            return NULL
        child = locate(t, i, &level)
    if child != &EMPTY and child != &FULL:
        return child
    full = child == &FULL
    if not preallocate(t, level + 1):
        free_spares(t)
        return NULL
    if t.root == child:
        t.root = make_node(t, t.top, 0, full)
    node = t.root
    level = t.top
    while level > 0:
        k = index_at(i, level)
        level -= 1
        if not (node.mixed >> k & 1):
            child = make_node(t, level, i & ~span_mask(level), full)
            node.at.child[k] = child
            node.mixed |= <word>1 << k
            node.full &= ~(<word>1 << k)
        node = node.at.child[k]
    return node

cdef void collapse(Tree *t, word i) noexcept nogil:
    """Replace the blocks around i that have become uniform by their mark, bottom up."""
    cdef Node *path[10]
    cdef Node *node = t.root
    cdef int level = t.top, k
    cdef bint full
    if node == &EMPTY or node == &FULL:
        return
    while level > 0:
        path[level] = node
        k = index_at(i, level)
        if not (node.mixed >> k & 1):
            break
        node = node.at.child[k]
        level -= 1
    else:
        path[0] = node
    while True:
        node = path[level]
        full = node.full == ALL
        if not full and not is_empty(t, node, level, i & ~span_mask(level)):
            return
        if node == t.leaf:
            t.leaf = &FULL
        recycle(t, node)
        if level == t.top:
            t.root = &FULL if full else &EMPTY
            return
        level += 1
        k = index_at(i, level)
        path[level].mixed &= ~(<word>1 << k)
        if full:
            path[level].full |= <word>1 << k

cdef inline void cache_leaf(Tree *t, Node *leaf, word i) noexcept nogil:
    """Make the leaf around i the one under the cursor."""
    t.leaf = leaf
    t.base = i & ~<word>LEAF_MASK
    t.stop = min(i | LEAF_MASK, t.last)

cdef void drop_cached_leaf(Tree *t) noexcept nogil:
    """Forget the leaf under the cursor, and the leaf itself if nothing is set in it."""
    cdef Node *leaf = t.leaf
    t.leaf = &FULL
    if leaf.mixed == 0:
        collapse(t, t.base)


# ---- one ordinal

cdef inline bint contains(Tree *t, word i) noexcept nogil:
    cdef int level
    cdef Node *node = locate(t, i, &level)
    cdef Place place
    if node == &EMPTY or node == &FULL:
        return node == &FULL
    if unlikely(node == &FEW):
        return few_has(few_at(t, i, &place), i)
    return node.at.words[(i >> 6) & 63] >> (i & 63) & 1

cdef inline void leaf_set(Node *leaf, word i) noexcept nogil:
    cdef int k = <int>((i >> 6) & 63)
    cdef word bits = leaf.at.words[k] | <word>1 << (i & 63)
    leaf.at.words[k] = bits
    leaf.mixed += 1
    if bits == ALL:
        leaf.full |= <word>1 << k

cdef Status tree_reserve(Tree *t, word i) noexcept nogil:
    cdef int level
    cdef Status status
    cdef Node *leaf = locate(t, i, &level)
    while leaf == &EMPTY or leaf == &FEW:
        status = few_begin(t, i) if leaf == &EMPTY else few_insert(t, i)
        if status != FOUND_CLEAR:
            return status
        if leaf == &EMPTY:
            leaf = materialize(t, i)
            if leaf == NULL:
                collapse(t, i)      # the root may have been made
                return NO_MEMORY
        else:
            leaf = locate(t, i, &level)
    if leaf == &FULL or leaf.at.words[(i >> 6) & 63] >> (i & 63) & 1:
        return FOUND_SET
    leaf_set(leaf, i)
    t.used += 1
    if leaf.full == ALL:
        collapse(t, i)
    return OK

cdef Node *release_slow(Tree *t, word i, Status *status) noexcept nogil:
    """The leaf to release i in, which becomes the last released in; NULL when that cannot be.

    Or when it is done already, which `status` tells.
    """
    cdef int level
    cdef bint first = t.root == &FULL
    cdef Node *leaf = locate(t, i, &level)
    if leaf == &FULL:
        leaf = materialize(t, i)
        if leaf == NULL:
            status[0] = NO_MEMORY
            return NULL
    elif unlikely(leaf == &FEW):
        status[0] = few_remove(t, i)
        return NULL
    elif not (leaf.at.words[(i >> 6) & 63] >> (i & 63) & 1):
        status[0] = FOUND_CLEAR
        return NULL
    t.last_released = leaf
    t.last_released_base = i & ~<word>LEAF_MASK
    if first:                # all was taken, so none was known: this one is given next
        drop_cached_leaf(t)
        t.cursor = i
        cache_leaf(t, leaf, i)
    return leaf

cdef inline Status tree_release(Tree *t, word i) noexcept nogil:
    cdef Node *leaf = t.last_released
    cdef int k = <int>((i >> 6) & 63)
    cdef word bit = <word>1 << (i & 63), bits
    cdef Status status = OK
    if (i ^ t.last_released_base) > LEAF_MASK or not leaf.at.words[k] & bit:
        leaf = release_slow(t, i, &status)
        if unlikely(leaf == NULL):
            return status
    bits = leaf.at.words[k]
    leaf.at.words[k] = bits & ~bit
    if bits == ALL:
        leaf.full &= ~(<word>1 << k)
    leaf.mixed -= 1
    t.used -= 1
    if unlikely(leaf.mixed == 0) and leaf != t.leaf:
        collapse(t, i)
    return OK

cdef inline bint releasable(Tree *t, word i) noexcept nogil:
    """Have what a release of i takes; False when memory is short."""
    cdef int level
    return locate(t, i, &level) == &FEW or materialize(t, i) != NULL


# ---- searching

cdef bint next_free(Tree *t, word i, word *found) noexcept nogil:
    """The first free ordinal at or after i; one step down and up per level at worst."""
    cdef Node *path[10]
    cdef Node *node = t.root
    cdef int level = t.top, k
    cdef word free
    if node == &EMPTY or node == &FULL:
        found[0] = i
        return node == &EMPTY
    while True:
        while level > 0:                        # down, along i
            path[level] = node
            k = index_at(i, level)
            if node.full >> k & 1:
                break
            if not (node.mixed >> k & 1):
                if unlikely(node.few >> k & 1):
                    if not few_next_free(
                        <Few *>node.at.child[k], i, i | span_mask(level - 1), found
                    ):
                        break
                    return True
                found[0] = i
                return True
            node = node.at.child[k]
            level -= 1
        else:
            k = <int>((i >> 6) & 63)
            free = ~node.at.words[k] & (ALL << (i & 63))
            if free == 0 and ~node.full & above(k):
                k = ctz(~node.full & above(k))
                free = ~node.at.words[k]
            if free:
                found[0] = (i & ~<word>LEAF_MASK) | <word>k << 6 | <word>ctz(free)
                return True
            level = 1
        while True:                             # up, until something to the right is free
            if level > t.top:
                return False
            node = path[level]
            k = index_at(i, level)
            if ~node.full & above(k):
                break
            level += 1
        k = ctz(~node.full & above(k))
        i = (i & ~span_mask(level)) | <word>k << child_shift(level)

cdef bint next_set(Tree *t, word i, word *found) noexcept nogil:
    """The first ordinal at or after i that is set."""
    cdef Few *few
    cdef Node *path[10]
    cdef Node *node = t.root
    cdef int level = t.top, k
    cdef word bits
    if node == &EMPTY or node == &FULL:
        found[0] = i
        return node == &FULL
    while True:
        while level > 0:
            path[level] = node
            k = index_at(i, level)
            if node.full >> k & 1:
                found[0] = i
                return i <= t.last
            if not (node.mixed >> k & 1):
                if node.few >> k & 1:
                    few = <Few *>node.at.child[k]
                    bits = few_search(few, i)
                    if bits < few.count:
                        found[0] = few.at[bits]
                        return True
                break
            node = node.at.child[k]
            level -= 1
        else:
            k = <int>((i >> 6) & 63)
            bits = node.at.words[k] & (ALL << (i & 63))
            while bits == 0 and k < WORDS - 1:
                k += 1
                bits = node.at.words[k]
            if bits:
                found[0] = (i & ~<word>LEAF_MASK) | <word>k << 6 | <word>ctz(bits)
                return found[0] <= t.last
            level = 1
        while True:
            if level > t.top:
                return False
            node = path[level]
            k = index_at(i, level)
            # padded children are full, and past 2**64 their ordinals would begin anew
            bits = (node.full | node.mixed | node.few) & above(k)
            bits &= ~padding(t, level, i & ~span_mask(level))
            if bits:
                break
            level += 1
        k = ctz(bits)
        i = (i & ~span_mask(level)) | <word>k << child_shift(level)

cdef bint previous_set(Tree *t, word i, word *found) noexcept nogil:
    """The last ordinal at or before i that is set; i is none of the padding."""
    cdef Few *few
    cdef Node *path[10]
    cdef Node *node = t.root
    cdef int level = t.top, k
    cdef word bits
    if node == &EMPTY or node == &FULL:
        found[0] = i
        return node == &FULL
    while True:
        while level > 0:
            path[level] = node
            k = index_at(i, level)
            if node.full >> k & 1:
                found[0] = i
                return True
            if not (node.mixed >> k & 1):
                if node.few >> k & 1:
                    few = <Few *>node.at.child[k]
                    if few_has(few, i):
                        found[0] = i
                        return True
                    bits = few_search(few, i)
                    if bits:
                        found[0] = few.at[bits - 1]
                        return True
                break
            node = node.at.child[k]
            level -= 1
        else:
            k = <int>((i >> 6) & 63)
            bits = node.at.words[k] & ~above(<int>(i & 63))
            while bits == 0 and k > 0:
                k -= 1
                bits = node.at.words[k]
            if bits:
                found[0] = (i & ~<word>LEAF_MASK) | <word>k << 6 | <word>(63 - clz(bits))
                return True
            level = 1
        while True:                             # up, until something to the left is set
            if level > t.top:
                return False
            node = path[level]
            k = index_at(i, level)
            bits = (node.full | node.mixed | node.few) & ((<word>1 << k) - 1)
            if bits:
                break
            level += 1
        k = 63 - clz(bits)
        i = (i & ~span_mask(level)) | <word>k << child_shift(level) | span_mask(level - 1)

cdef void move_cursor(Tree *t, word taken) noexcept nogil:
    """Past what was just taken, round the end."""
    if taken == t.last:
        drop_cached_leaf(t)
        t.cursor = 0
    else:
        t.cursor = taken + 1
        if (taken & LEAF_MASK) == LEAF_MASK:
            drop_cached_leaf(t)

cdef word next_slow(Tree *t, Status *status) noexcept nogil:
    """Bring the leaf of the next free ordinal under the cursor."""
    cdef Node *leaf
    cdef word i = 0
    if not next_free(t, t.cursor, &i) and not next_free(t, 0, &i):
        status[0] = FOUND_SET
    elif t.leaf == &FULL or (i ^ t.base) > LEAF_MASK:
        leaf = materialize(t, i)
        if leaf == NULL:
            status[0] = NO_MEMORY
        else:
            drop_cached_leaf(t)
            cache_leaf(t, leaf, i)
    return i

cdef inline word tree_next(Tree *t, Status *status) noexcept nogil:
    """Find the first free ordinal at or after the cursor; one ctz in the usual case.

    Its leaf is then the one under the cursor, so that tree_take cannot fail. In between the
    caller makes what it returns, which can. `status` is set when there is none.
    """
    cdef Node *leaf = t.leaf
    cdef word i = t.cursor
    cdef int k = <int>((i >> 6) & 63)
    cdef word free = ~leaf.at.words[k] & (ALL << (i & 63))
    if free:
        return (i & ~<word>63) | <word>ctz(free)
    if not ~leaf.full & above(k):
        return next_slow(t, status)
    k = ctz(~leaf.full & above(k))
    return t.base | <word>k << 6 | <word>ctz(~leaf.at.words[k])

cdef inline void tree_take(Tree *t, word i) noexcept nogil:
    """Take what tree_next found, and move the cursor past it."""
    cdef Node *leaf = t.leaf
    cdef int k = <int>((i >> 6) & 63)
    cdef word bits = leaf.at.words[k] | <word>1 << (i & 63)
    leaf.at.words[k] = bits
    leaf.mixed += 1
    t.used += 1
    t.cursor = i + 1
    if unlikely(bits == ALL):
        leaf.full |= <word>1 << k
        if leaf.full == ALL:
            collapse(t, i)
    if unlikely(i == t.stop):
        move_cursor(t, i)


# ---- the quick way: a word in which more than one is left has no end to look after

cdef inline bint take_within_word(Tree *t, word *taken, word *before) noexcept nogil:
    """Take the next ordinal if another one is free behind it in its word; 2 ns.

    `before` is where the cursor was, so that return_to_word can undo it.
    """
    cdef Node *leaf = t.leaf
    cdef word i = t.cursor
    cdef word *at = &leaf.at.words[(i >> 6) & 63]
    cdef word free = ~at[0] & (ALL << (i & 63))
    cdef word left = free & (free - 1)
    if unlikely(left == 0):
        return False
    before[0] = i
    i = (i & ~<word>63) | <word>ctz(free)
    at[0] |= free ^ left
    leaf.mixed += 1
    t.used += 1
    t.cursor = i + 1
    taken[0] = i
    return True

cdef void return_to_word(Tree *t, word taken, word before) noexcept nogil:
    """As it was before take_within_word."""
    t.leaf.at.words[(taken >> 6) & 63] &= ~(<word>1 << (taken & 63))
    t.leaf.mixed -= 1
    t.used -= 1
    t.cursor = before
