# The tree as bytes, little endian:
#
#   "NABM" version:u16 mark:u16 last:u64 cursor:u64 used:u64 [node] crc32:u32
#
# `mark` says whether the root is EMPTY, FULL or a node. An inner node is full:u64 mixed:u64
# and its mixed children in order, a leaf its 64 words; levels follow from `last`.

cdef extern from *:
    """
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define na_little(x) __builtin_bswap64(x)
    #else
    #define na_little(x) (x)
    #endif
    /* The 64 words of a leaf, wherever they lie, from the one order to the other. */
    static inline void na_swap_leaf(void *words)
    {
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        for (char *at = words, *end = at + 512; at < end; at += 8) {
            uint64_t word;
            memcpy(&word, at, 8);
            word = na_little(word);
            memcpy(at, &word, 8);
        }
    #else
        (void)words;
    #endif
    }
    """
    word little "na_little"(word) noexcept nogil
    void swap_leaf "na_swap_leaf"(void *words) noexcept nogil

cdef extern from *:
    """
    /* How many bits are set in a leaf. x86 of before 2008 has no instruction for it, so that none
       is used unless asked for; there byte by byte, which vectorises, at a third of the speed. */
    static int na_count_bytes(const uint64_t *words)
    {
        uint64_t low = 0, high = 0;
        for (int k = 0; k < 64; k++) {
            uint64_t x = words[k];
            x = x - (x >> 1 & 0x5555555555555555u);
            x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
            x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0Fu;
            low += x & 0x00FF00FF00FF00FFu;
            high += x >> 8 & 0x00FF00FF00FF00FFu;
        }
        return (int)(((low + high) * 0x0001000100010001u) >> 48);
    }
    #if defined(__x86_64__) && defined(__GNUC__)
    __attribute__((target("popcnt"))) static int na_count_words(const uint64_t *words)
    {
        int count = 0;
        for (int k = 0; k < 64; k++)
            count += __builtin_popcountll(words[k]);
        return count;
    }
    static int na_count_bits(const uint64_t *words)
    {
        return __builtin_cpu_supports("popcnt") ? na_count_words(words) : na_count_bytes(words);
    }
    #else
    #define na_count_bits na_count_bytes
    #endif
    """
    int count_bits "na_count_bits"(const uint64_t *words) noexcept nogil

cdef enum:
    FORMAT_VERSION = 1
    HEADER = 32
    TRAILER = 4

cdef struct Reader:
    const uint8_t *at
    Py_ssize_t left
    word used
    Status status        # FOUND_CLEAR: the bytes make no tree

cdef Py_ssize_t encoded_size(Node *node, int level) noexcept nogil:
    cdef Py_ssize_t size = 16
    cdef word left
    cdef Few *few
    if level == 0:
        return sizeof(node.at.words)
    left = node.mixed
    while left:
        size += encoded_size(node.at.child[ctz(left)], level - 1)
        left &= left - 1
    left = node.few
    while left:
        few = <Few *>node.at.child[ctz(left)]
        size += few_encoded_size(few.at, few.count, level - 1)
        left &= left - 1
    return size

cdef inline uint8_t *put(uint8_t *out, word value) noexcept nogil:
    value = little(value)
    memcpy(out, &value, 8)
    return out + 8

cdef uint8_t *encode(Node *node, int level, uint8_t *out) noexcept nogil:
    cdef word left
    cdef Few *few
    cdef int k
    if level == 0:
        memcpy(out, node.at.words, sizeof(node.at.words))
        swap_leaf(out)
        return out + sizeof(node.at.words)
    out = put(out, node.full)
    left = node.mixed | node.few
    out = put(out, left)
    while left:
        k = ctz(left)
        if node.few >> k & 1:
            few = <Few *>node.at.child[k]
            out = few_encode(few.at, few.count, level - 1, out)
        else:
            out = encode(node.at.child[k], level - 1, out)
        left &= left - 1
    return out

cdef inline word get(Reader *r) noexcept nogil:
    cdef word value = 0
    if r.left < 8:
        r.status = FOUND_CLEAR
        return 0
    memcpy(&value, r.at, 8)
    r.at += 8
    r.left -= 8
    return little(value)

cdef word block_size(Tree *t, int level, word base) noexcept nogil:
    """How many ordinals a block has, modulo 2**64."""
    return min(span_mask(level), t.last - base) + 1

cdef Node *decode_leaf(Tree *t, Reader *r, word base) noexcept nogil:
    """A leaf out of the spare ones; its padding must be as in an empty one."""
    cdef Node *leaf
    cdef int k, pad = 0
    cdef word wrong = 0, whole = 0, bits
    cdef word words[64]
    if t.last - base < LEAF_MASK:
        pad = <int>(base + LEAF_MASK - t.last)
        leaf = make_node(t, 0, base, False)
        memcpy(words, leaf.at.words, sizeof(words))
    else:
        leaf = spare_node(t)
        leaf.full = 0
    if r.left < <Py_ssize_t>sizeof(words):
        r.status = FOUND_CLEAR
        return leaf
    memcpy(leaf.at.words, r.at, sizeof(words))
    r.at += sizeof(words)
    r.left -= sizeof(words)
    swap_leaf(leaf.at.words)
    for k in range(WORDS):
        bits = leaf.at.words[k]
        whole |= (~bits - 1) & bits                     # its top bit is set by a full word only
    if whole >> 63:
        for k in range(WORDS):
            if leaf.at.words[k] == ALL:
                leaf.full |= <word>1 << k
    if pad:
        for k in range(WORDS):
            wrong |= words[k] & ~leaf.at.words[k]
    leaf.mixed = count_bits(leaf.at.words) - pad
    r.used += leaf.mixed
    if wrong or leaf.mixed == 0 or leaf.full == ALL:
        r.status = FOUND_CLEAR
    return leaf

cdef Node *decode(Tree *t, Reader *r, int level, word base) noexcept nogil:
    """A node and all beneath it; NULL, owning nothing, when the bytes make none."""
    cdef Node *node
    cdef Node *child
    cdef Few *few
    cdef word full, mixed, pad, bit, start
    cdef int k
    if not preallocate(t, 1):
        r.status = NO_MEMORY
        return NULL
    if level == 0:
        node = decode_leaf(t, r, base)
    else:
        node = make_node(t, level, base, False)
        pad = node.full
        full = get(r)
        mixed = get(r)
        if full & mixed or pad & ~full or mixed == 0:
            r.status = FOUND_CLEAR
        for k in range(WORDS):
            bit = <word>1 << k
            start = base | <word>k << child_shift(level)
            if r.status != OK:
                break
            if mixed & bit:
                child = decode(t, r, level - 1, start)
                if child != NULL:
                    few = few_of(t, child, level - 1, start)
                    if few == NULL:
                        node.at.child[k] = child
                        node.mixed |= bit
                    else:
                        node.at.child[k] = <Node *>few
                        node.few |= bit
            elif full & ~pad & bit:
                r.used += block_size(t, level - 1, start)
                node.full |= bit
    if r.status != OK:
        free_below(t, node, level)
        return NULL
    return node

cdef void tree_encode(Tree *t, uint8_t *out) noexcept nogil:
    """Everything but the trailer."""
    memcpy(out, b"NABM", 4)
    out[4] = FORMAT_VERSION
    out[5] = 0
    out[6] = 0 if t.root == &EMPTY else 1 if t.root == &FULL else 2
    out[7] = 0
    out = put(put(put(out + 8, t.last), t.cursor), t.used)
    if t.root != &EMPTY and t.root != &FULL:
        encode(t.root, t.top, out)

cdef Status tree_decode(Tree *t, const uint8_t *data, Py_ssize_t size) noexcept nogil:
    """Read a header and nodes whose checksum has been verified into a tree to be initialised."""
    cdef Reader r
    cdef int mark = data[6]
    r.at, r.left, r.used, r.status = data + 8, size - 8, 0, OK
    tree_init(t, get(&r))
    t.cursor = get(&r)
    t.used = get(&r)
    if mark == 2:
        t.root = decode(t, &r, t.top, 0)
        if t.root == NULL:
            t.root = &EMPTY
    elif mark == 1:
        t.root = &FULL
        r.used = t.last + 1
    elif mark != 0:
        r.status = FOUND_CLEAR
    if r.status == OK and (r.left or r.used != t.used or t.cursor > t.last):
        r.status = FOUND_CLEAR
    free_spares(t)
    return r.status

cdef void put_crc(uint8_t *out, uint32_t crc) noexcept nogil:
    cdef int k
    for k in range(4):
        out[k] = crc >> 8 * k & 0xFF

cdef Py_ssize_t checked_size(bytes data) except -1:
    """How many bytes precede the checksum, once magic, version and checksum are right."""
    cdef Py_ssize_t size = len(data) - TRAILER
    if size < HEADER or data[:4] != b"NABM":
        raise StoreError(f"{len(data)} bytes that are no bitmap, or only its beginning")
    version = int.from_bytes(data[4:6], "little")
    if version != FORMAT_VERSION:
        raise StoreError(f"a bitmap of version {version}; this is version {FORMAT_VERSION}")
    if crc32(memoryview(data)[:size]) != int.from_bytes(data[size:], "little"):
        raise StoreError(f"a bitmap of {len(data)} bytes that is corrupt or cut: wrong checksum")
    return size
