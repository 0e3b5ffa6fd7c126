# Cooling down: a released address stays set in `bits` and is withheld until its time has come.

cdef inline bint is_cooling(IPAllocator self, object i):
    return self.cooling is not None and i in self.cooling

cdef object next_cooling(IPAllocator self, object start):
    return min((i for i in self.cooling or () if i >= start), default=self.size)

cdef Status cool(IPAllocator self, word i) except *:
    """Withhold a taken ordinal until its time has come."""
    cdef Status status
    if not contains(&self.bits.tree, i):
        return FOUND_CLEAR
    status = tree_reserve(&self.withheld.tree, i)
    if status == FOUND_SET:
        return FOUND_CLEAR              # it cools already
    if status == OK:
        try:
            self.cooling[i] = self.clock() + self.cooldown
        except:
            tree_release(&self.withheld.tree, i)
            raise
    return status

cdef int cool_all(IPAllocator self, list ordinals) except -1:
    """Cool each of these, which are taken, or none."""
    cdef Py_ssize_t done = 0, k
    try:
        for i in ordinals:
            if cool(self, i) != OK:
                raise MemoryError
            done += 1
    except MemoryError:
        for k in range(done):           # without a slice: there is no memory
            i = ordinals[k]
            tree_release(&self.withheld.tree, i)
            del self.cooling[i]
        raise
    return 0

cdef int thaw(IPAllocator self) except -1:
    """Free what has cooled long enough; each costs a step once."""
    cdef word i
    if not self.cooling:
        return 0
    now = self.clock()
    while self.cooling:
        oldest, ready = next(iter(self.cooling.items()))
        if ready > now:
            break
        i = oldest
        if not ensure(&self.withheld.tree, self.withheld.tree.top + 1):
            raise MemoryError
        if tree_release(&self.bits.tree, i) == NO_MEMORY:
            raise MemoryError
        tree_release(&self.withheld.tree, i)
        trim(&self.withheld.tree)
        del self.cooling[oldest]
    return 0

cdef object acquire_cooling(IPAllocator self, bint early):
    """What is left when nothing is free: the ordinal that has cooled longest, or an error."""
    if size_of(&self.bits.tree) > used(&self.bits.tree):
        raise MemoryError
    if not self.cooling:
        raise ExhaustedError(f"all {self.reach} addresses of {network_of(self)} are taken")
    if not early:
        wait = next(iter(self.cooling.values())) - self.clock()
        raise ExhaustedError(
            f"no address of {network_of(self)} is free: {taken(self)} of {self.reach} are "
            f"taken and {len(self.cooling)} cool down, the first for {max(wait, 0):.3f} s more"
        )
    i = next(iter(self.cooling))
    if tree_release(&self.withheld.tree, i) == NO_MEMORY:
        raise MemoryError
    del self.cooling[i]
    return i
