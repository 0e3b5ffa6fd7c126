# An IPAllocator as bytes:
#
#   "NAIP" version:u16 0:u16 5 lengths:u32 network exclusions cooldown:f64 bits times crc32:u32
#
# `network` is text as the gateway would write it, `exclusions` are its blocks as text, with
# blanks between; `bits` is a bitmap, `times` an ordinal:u64 and the seconds left:f64 for each
# address that cools down, in the order of release. What is cooling or excluded is told once.

cdef enum:
    ALLOCATOR_VERSION = 2

cdef tuple encoded_parts(IPAllocator self):
    """The state at one moment: no other code runs between looking at its parts."""
    cdef double now
    cdef uint32_t place
    from struct import pack     # which may run any code: before the first look

    now = now_if_cooling(self)
    network, exclusions = text_of(self).encode(), " ".join(self.exclude).encode()
    times = bytearray()
    cdef bint collector = PyGC_Disable()
    try:
        bits = self.bits.to_bytes()
        place = 0 if self.cooling == NULL else queue_oldest(self.cooling)
        while place:
            left = min(max(0.0, self.cooling.at[place].ready - now), self.period)
            times += pack("<Qd", self.cooling.at[place].ordinal, left)
            place = self.cooling.at[place].after
    finally:
        if collector:
            PyGC_Enable()
    return network, exclusions, pack("<d", self.period), bits, bytes(times)

cdef list allocator_parts(bytes data):
    """The five parts, once magic, version, lengths and checksum are right."""
    cdef Py_ssize_t head = 8 + 5 * 4, end
    from struct import unpack

    if len(data) < head + TRAILER or data[:4] != b"NAIP":
        raise StoreError(f"{len(data)} bytes that are no allocator, or only its beginning")
    version, _, *sizes = unpack("<HH5I", data[4:head])
    if version != ALLOCATOR_VERSION:
        raise StoreError(f"an allocator of version {version}; this is version {ALLOCATOR_VERSION}")
    if head + sum(sizes) + TRAILER != len(data):
        raise StoreError(f"an allocator that is cut: {len(data)} bytes")
    if crc32(memoryview(data)[:-TRAILER]) != unpack("<I", data[-TRAILER:])[0]:
        raise StoreError(f"an allocator of {len(data)} bytes that is corrupt: wrong checksum")
    parts = []
    for size in sizes:
        end = head + size
        parts.append(data[head:end])
        head = end
    return parts

cdef object decoded_allocator(bytes data):
    from struct import error as StructError, unpack

    network, exclusions, cooldown, bits, times = allocator_parts(data)
    try:
        self = IPAllocator(
            network.decode("ascii"),
            exclude=exclusions.decode("ascii").split(" ") if exclusions else (),
            cooldown=unpack("<d", cooldown)[0],
        )
        restore(self, decoded(bits), times)
    except (InvalidValueError, ValueError, StructError) as error:
        raise StoreError(f"an allocator whose parts contradict each other: {error}") from None
    return self

cdef int restore(IPAllocator self, Bitmap bits, bytes times) except -1:
    """Put the saved bits in place of the new ones, and let cool what cooled."""
    cdef Status status
    cdef double now
    cdef word i
    from struct import iter_unpack

    if bits.tree.last != self.last:
        raise ValueError(f"bits for {bits.size} addresses of {self.size}")
    for start, stop in self.excluded():
        free = bits.next_free(start)
        if free is not None and free < stop:
            raise ValueError(f"{self.address(free)} is free, and never given")
    if times and self.cooling == NULL:
        raise ValueError("addresses cool down although there is no cool-down")
    self.bits = bits
    choose_way(self)
    if not times:
        return 0
    now = read_clock(self)
    for i, left in iter_unpack("<Qd", times):
        if i > self.last or not 0.0 <= left <= self.period:
            raise ValueError(f"ordinal {i} cools down for {left} s")
        status = start_cooldown(
            &bits.tree, &self.unavailable.tree, self.cooling, i, now + left
        )
        if status == NO_MEMORY:
            raise MemoryError
        if status != OK:
            raise ValueError(f"ordinal {i} cools down, and is free, excluded or named twice")
    return 0

cdef int check_allocator(IPAllocator self) except -1:
    """Assert what holds between the parts."""
    cdef Py_ssize_t n = 0
    cdef uint32_t place = 0, before = 0
    cdef word last
    self.bits._check()
    state = f"{self!r}"
    for start, stop in self.excluded():
        free = self.bits.next_free(start)
        assert free is None or free >= stop, f"{free} is excluded and free: {state}"
    if self.cooling == NULL:
        assert self.unavailable is self.barred, state
        return 0
    self.unavailable._check()
    for start, stop in self.unavailable.runs():
        free = self.bits.next_free(start)
        assert free is None or free >= stop, f"{free} is unavailable and free: {state}"
    if self.cooling.count:
        place = self.cooling.at[0].after
    while place:
        entry = self.cooling.at[place].ordinal
        assert entry in self.unavailable, f"{entry} cools and is not unavailable: {state}"
        assert self.barred is None or entry not in self.barred, f"{entry} cools, excluded: {state}"
        assert self.cooling.at[place].before == before, f"{entry} hangs wrong: {state}"
        last = self.cooling.at[place].ordinal
        assert queue_find(self.cooling, last) == place, f"{entry} is not found: {state}"
        n += 1
        if n == self.cooling.known and not self.cooling.backward:
            assert self.cooling.ready == place, f"{entry} is not the last one ready: {state}"
        before, place = place, self.cooling.at[place].after
    assert n == self.cooling.count, f"{n} are cooling: {state}"
    excluded = self.size - capacity_of(self)
    assert n + excluded == len(self.unavailable), f"{n} cooling, {excluded} excluded: {state}"
    return 0
