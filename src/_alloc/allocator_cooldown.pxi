# Cooling down: a released address stays set in `bits` and is unavailable until its time has come.

cdef inline bint is_cooling(IPAllocator self, object i):
    return self.cooling is not None and i in self.cooling

cdef object next_cooling(IPAllocator self, object start):
    return min((i for i in self.cooling or () if i >= start), default=self.size)

cdef Status start_cooldown(IPAllocator self, word i) except *:
    """Withhold a taken ordinal until its time has come."""
    cdef Status status
    if not contains(&self.bits.tree, i):
        return FOUND_CLEAR
    cdef tuple entry = (i, self.clock() + self.cooldown)
    status = tree_reserve(&self.unavailable.tree, i)
    if status == FOUND_SET:
        return FOUND_CLEAR              # it cools already
    if status == OK:
        try:
            self.cooling[entry[0]] = entry[1]
            self.queue.append(entry)
        except MemoryError:
            cancel_cooldown(self, entry[0])        # not i: an int could not be made of it
            raise
    return status

cdef int cool_all(IPAllocator self, list ordinals) except -1:
    """Cool each of these, which are taken, or none."""
    cdef Py_ssize_t done = 0, k
    try:
        for i in ordinals:
            if start_cooldown(self, i) != OK:
                raise MemoryError
            done += 1
    except MemoryError:
        for k in range(done):           # without a slice: there is no memory
            cancel_cooldown(self, ordinals[k])
        raise
    return 0

cdef int cancel_cooldown(IPAllocator self, object i) except -1:
    """End the cooling of an ordinal, which is then taken; its place in the queue is stale."""
    if tree_release(&self.unavailable.tree, i) == NO_MEMORY:
        raise MemoryError
    self.cooling.pop(i, None)
    return 0

cdef tuple oldest(IPAllocator self):
    """(ordinal, when it is ready) of the longest cooling, or None; drops stale entries."""
    while self.queue:
        entry = self.queue[0]
        if self.cooling.get(entry[0]) == entry[1]:
            return entry
        self.queue.popleft()
    return None

cdef int expire_cooldowns(IPAllocator self) except -1:
    """Free what has cooled long enough; each costs a step once."""
    cdef word i
    if not self.queue:
        return 0
    now = self.clock()
    while (entry := oldest(self)) is not None and entry[1] <= now:
        i = entry[0]
        if not preallocate(&self.unavailable.tree, self.unavailable.tree.top + 1):
            raise MemoryError
        if tree_release(&self.bits.tree, i) == NO_MEMORY:
            free_spares(&self.unavailable.tree)
            raise MemoryError
        cancel_cooldown(self, entry[0])
        free_spares(&self.unavailable.tree)
    return 0

cdef object longest_cooling(IPAllocator self, bint early):
    """What is left when nothing is free: the ordinal that has cooled longest, or an error."""
    entry = None if self.cooling is None else oldest(self)
    if entry is None:
        raise ExhaustedError(f"all {self.capacity} addresses of {network_of(self)} are taken")
    if not early:
        wait = max(entry[1] - self.clock(), 0)
        raise ExhaustedError(
            f"no address of {network_of(self)} is free: {taken(self)} of {self.capacity} are "
            f"taken and {len(self.cooling)} cool down, the first for {wait:.3f} s more"
        )
    return entry[0]
