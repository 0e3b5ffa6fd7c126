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
    """
    word little "na_little"(word) noexcept nogil

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
    cdef word words[64]
    cdef Few *few
    cdef int k
    if level == 0:
        for k in range(WORDS):
            words[k] = little(node.at.words[k])
        memcpy(out, words, sizeof(words))
        return out + sizeof(words)
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

cdef int count_bits(const word *words) noexcept nogil:
    """How many bits are set in a leaf; byte by byte, which vectorises without a popcnt."""
    cdef word x, low = 0, high = 0
    cdef int k
    for k in range(WORDS):
        x = words[k]
        x = x - (x >> 1 & <word>0x5555555555555555)
        x = (x & <word>0x3333333333333333) + (x >> 2 & <word>0x3333333333333333)
        x = (x + (x >> 4)) & <word>0x0F0F0F0F0F0F0F0F
        low += x & <word>0x00FF00FF00FF00FF
        high += x >> 8 & <word>0x00FF00FF00FF00FF
    low += high
    return <int>((low * <word>0x0001000100010001) >> 48)

cdef void decode_leaf(Tree *t, Reader *r, Node *leaf, word base) noexcept nogil:
    """Fill an empty leaf; its padding must be as it was."""
    cdef int k, pad = 0
    cdef word wrong = 0, whole = 0
    cdef word words[64]
    if r.left < <Py_ssize_t>sizeof(words):
        r.status = FOUND_CLEAR
        return
    memcpy(words, r.at, sizeof(words))
    r.at += sizeof(words)
    r.left -= sizeof(words)
    if t.last - base < LEAF_MASK:
        pad = <int>(base + LEAF_MASK - t.last)
    for k in range(WORDS):
        words[k] = little(words[k])
        wrong |= leaf.at.words[k] & ~words[k]
        whole |= (~words[k] - 1) & words[k]         # its top bit is set by a full word only
    if whole >> 63:
        for k in range(WORDS):
            if words[k] == ALL:
                leaf.full |= <word>1 << k
    memcpy(leaf.at.words, words, sizeof(words))
    leaf.mixed = count_bits(words) - pad
    r.used += leaf.mixed
    if wrong or leaf.mixed == 0 or leaf.full == ALL:
        r.status = FOUND_CLEAR

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
    node = make_node(t, level, base, False)
    if level == 0:
        decode_leaf(t, r, node, base)
    else:
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
