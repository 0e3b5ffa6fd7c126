# An IPAllocator as bytes:
#
#   "NAIP" version:u16 0:u16 5 lengths:u32 network cooldown:f64 bits unavailable times crc32:u32
#
# `network` is text as the gateway would write it, `bits` and `unavailable` are bitmaps, `times`
# an ordinal:u64 and the seconds left:f64 for each address that cools down, oldest first.

cdef list encoded_parts(IPAllocator self):
    now = self.clock()
    times = bytearray()
    for i, ready in (self.cooling or {}).items():
        times += pack("<Qd", i, max(0.0, ready - now))
    return [
        str(interface_of(self)).encode(),
        pack("<d", self.cooldown),
        self.bits.to_bytes(),
        b"" if self.unavailable is None else self.unavailable.to_bytes(),
        bytes(times),
    ]

cdef list allocator_parts(bytes data):
    """The five parts, once magic, version, lengths and checksum are right."""
    cdef Py_ssize_t head = 8 + 5 * 4, end
    if len(data) < head + TRAILER or data[:4] != b"NAIP":
        raise StoreError(f"{len(data)} bytes that are no allocator, or only its beginning")
    version, _, *sizes = unpack("<HH5I", data[4:head])
    if version != FORMAT_VERSION:
        raise StoreError(f"an allocator of version {version}; this is version {FORMAT_VERSION}")
    if head + sum(sizes) + TRAILER != len(data):
        raise StoreError(f"an allocator that is cut: {len(data)} bytes")
    if crc32(data[:-TRAILER]) != unpack("<I", data[-TRAILER:])[0]:
        raise StoreError(f"an allocator of {len(data)} bytes that is corrupt: wrong checksum")
    parts = []
    for size in sizes:
        end = head + size
        parts.append(data[head:end])
        head = end
    return parts

cdef int restore(IPAllocator self, bytes bits, bytes unavailable, bytes cooling) except -1:
    """Put the saved bitmaps and times in place of the new ones."""
    taken_bits = Bitmap.from_bytes(bits)
    held_bits = Bitmap.from_bytes(unavailable) if unavailable else None
    times = list(iter_unpack("<Qd", cooling))
    if taken_bits.size != self.size or (held_bits is not None and held_bits.size != self.size):
        raise OutOfRangeError("a bitmap of another size")
    if (times or self.cooling is not None) and held_bits is None:
        raise OutOfRangeError("cooling addresses that are not unavailable")
    self.bits, self.unavailable = taken_bits, held_bits
    now = self.clock()
    if self.cooling is not None:
        self.queue.extend((i, now + left) for i, left in times)
        self.cooling.update(self.queue)
    excluded = 0 if held_bits is None else used(&self.unavailable.tree) - len(self.cooling or ())
    self.capacity = self.size - excluded
    return 0

cdef int check_allocator(IPAllocator self) except -1:
    self.bits._check()
    if self.unavailable is None:
        return 0
    self.unavailable._check()
    for i in self.unavailable:
        assert i in self.bits, f"{i} is unavailable but not set: {self!r}"
    for i in self.cooling or ():
        assert i in self.unavailable, f"{i} cools but is not unavailable: {self!r}"
    excluded = len(self.unavailable) - len(self.cooling or ())
    assert self.capacity == self.bits.size - excluded, f"{excluded} excluded: {self!r}"
    return 0
