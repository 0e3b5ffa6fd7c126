# Cooling down: a released address stays set in `bits` and in `unavailable` until its time has
# come. The caller's clock is Python code that may come back to this allocator, so it is asked
# before anything is looked at, and once for each call.

cdef enum:
    STEP = 8             # cooled ones taken back at each call: more than one, so that it keeps up

cdef double INFINITY = float("inf")

cdef inline bint nothing_cools(IPAllocator self) noexcept:
    return self.cooling == NULL or self.cooling.count == 0

cdef double read_clock(IPAllocator self) except? -1:
    """The time by the caller's clock, which may do anything."""
    cdef double now
    try:
        now = as_float(self.clock(), "the clock's time")
    except (NetallocError, MemoryError):
        raise
    except Exception as error:
        raise InvalidValueError(f"the clock {shown(self.clock)} raised {shown(error)}") from error
    if not -INFINITY < now < INFINITY:
        raise InvalidValueError(f"the clock {shown(self.clock)} says it is {now}")
    return now

cdef inline double now_if_cooling(IPAllocator self) except? -1:
    """The time; before all times when nothing cools, for what may begin to in between."""
    return -INFINITY if nothing_cools(self) else read_clock(self)

cdef bint expire(IPAllocator self, double now, word most) except -1:
    """Take back up to `most` of those that are ready; whether there was one."""
    cdef uint32_t count
    if nothing_cools(self):
        return False
    count = self.cooling.count
    if expire_cooldowns(
        &self.bits.tree, &self.unavailable.tree, self.cooling, now, most
    ) != OK:
        raise MemoryError
    return self.cooling.count != count

cdef int expire_for(IPAllocator self, double now, word n) except -1:
    """Take back a few, and as many more as n free addresses need; refuse if that is too few."""
    cdef Tree *t = &self.bits.tree
    expire(self, now, STEP)
    if has_free(t, n):
        return 0
    if not nothing_cools(self):
        expire(self, now, n if t.root == &FULL else n - (t.last - t.used + 1))
    if not has_free(t, n):
        refuse_count_of(self, n)
    return 0

cdef int refuse_count_of(IPAllocator self, word n) except -1:
    available = size_of(&self.bits.tree) - used(&self.bits.tree)
    raise ExhaustedError(
        f"{n} asked for, {available} of the {capacity_of(self)} addresses of "
        f"{network_of(self)} are free"
    )

cdef int refuse_exhausted(IPAllocator self) except -1:
    """Nothing is free; say how much of that is cooling."""
    cdef uint32_t place = 0 if self.cooling == NULL else queue_oldest(self.cooling)
    cdef double wait
    capacity = capacity_of(self)
    if place == 0:
        raise ExhaustedError(f"all {capacity} addresses of {network_of(self)} are taken")
    count, held, wait = self.cooling.count, taken(self), self.cooling.at[place].ready
    wait = max(wait - read_clock(self), 0.0)
    raise ExhaustedError(
        f"no address of {network_of(self)} is free: {held} of {capacity} are "
        f"taken and {count} cool down, the first for {wait:.3f} s more"
    )
