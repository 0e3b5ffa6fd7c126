# IPAllocator: a Subnet with a Bitmap laid over its ordinals.
#
# What must not be given is set in `bits`. What of that is not taken either, because it is
# excluded or cools down, is set in `unavailable` too; without cool-down that is the Subnet's own
# `barred`. Between finding an ordinal and taking it no Python code may run, or it could come
# back here and take the same one: objects are made before, their numbers after.


# The collector must not take the bitmap away: `quick` leads into it.
@cython.final
@cython.no_gc_clear
cdef class IPAllocator(Subnet):
    """The free and taken addresses of a network, given in order, round and round.

    A Subnet, so `network` and `exclude` are what they are there, or `network` is one.
    `cooldown` keeps a released address out for so many seconds of `clock`; at each call the
    few that have cooled longest come back.

    Time and memory are those of Bitmap. It reads like a set of the addresses that are taken.
    Text, address objects and ints are accepted; address objects come back.

    Raises InvalidValueError and OutOfRangeError as Subnet does.

    >>> a = IPAllocator("10.0.0.1/29")
    >>> a.acquire(), a.acquire()
    (IPv4Address('10.0.0.2'), IPv4Address('10.0.0.3'))
    >>> "10.0.0.2" in a, len(a), a.available
    (True, 2, 3)
    >>> a.release("10.0.0.2")
    >>> [str(ip) for ip in a]
    ['10.0.0.3']
    """

    cdef Bitmap bits
    cdef Bitmap unavailable      # None, or what is set in `bits` and not taken
    cdef Queue *cooling          # NULL without cool-down
    cdef object clock
    cdef Tree *quick             # of `bits`; &NO_TREE where the short way does not lead there
    cdef double period           # the cool-down in seconds

    def __cinit__(self, network, *, exclude=(), cooldown=0.0, clock=monotonic):
        know()                                  # not in between searching and taking
        self.period = as_float(cooldown, "cooldown")
        if not 0.0 <= self.period < INFINITY:
            raise OutOfRangeError(f"a cooldown of {shown(cooldown)} s is not 0 or more, or endless")
        if not callable(clock):
            raise InvalidValueError(f"the clock {shown(clock)} cannot be called")
        self.clock = clock
        self.bits = Bitmap(self.size) if self.barred is None else copied(self.barred)
        self.bits.cursor = 0
        self.unavailable = self.barred
        if self.period:
            self.unavailable = Bitmap(self.size) if self.barred is None else copied(self.barred)
            self.cooling = <Queue *>PyMem_RawCalloc(1, sizeof(Queue))
            if self.cooling == NULL:
                raise MemoryError
        choose_way(self)

    def __dealloc__(self):
        if self.cooling != NULL:
            queue_free(self.cooling)
            PyMem_RawFree(self.cooling)

    # ---- one address

    def acquire(self, *, allow_cooling=False):
        """Take the next free address at or after the cursor, from the first on after the last.

        With `allow_cooling`, when nothing else is left, the one that has cooled longest.
        Raises ExhaustedError, which says how many are cooling.
        """
        cdef Section section
        enter(&section, <void *>self)
        cdef void *address = quick_address(self, allow_cooling)
        leave(&section)
        if unlikely(address == NULL):
            return acquire_any(self, allow_cooling, False)
        return owned(address)

    def acquire_int(self, *, allow_cooling=False):
        """The same as a number, at half the cost."""
        cdef Section section
        enter(&section, <void *>self)
        cdef void *number = quick_number(self, allow_cooling)
        leave(&section)
        if unlikely(number == NULL):
            return acquire_any(self, allow_cooling, True)
        return owned(number)

    @cython.critical_section
    def reserve(self, ip, /, *, allow_cooling=False):
        """Take this address and leave the cursor where it is; a cooling one if that is allowed.

        Raises InUseError, also where it still cools; OutOfRangeError for an address of another
        network and for one that is never given; InvalidValueError.
        """
        cdef word i
        if unlikely(allow_cooling is not False):
            as_flag(allow_cooling, "allow_cooling")
        ordinal_of(self, ip, &i)
        cdef Status status = tree_reserve(&self.bits.tree, i)
        if unlikely(status != OK):
            reserve_cooling(self, i, allow_cooling is True)

    @cython.critical_section
    def release(self, ip, /):
        """Give this address back; if all were taken, it is the next one given.

        Raises NotAllocatedError; OutOfRangeError and InvalidValueError as `reserve` does.
        """
        cdef word i
        cdef Status status
        ordinal_of(self, ip, &i)
        if self.cooling != NULL:
            status = release_to_cool(self, i)
        else:
            status = tree_release(&self.bits.tree, i)
        if unlikely(status != OK):
            refuse(status, address_of(self, i))

    def discard(self, ip, /):
        """Give this address back if it is taken, as set.discard does; tell whether it was."""
        try:
            self.release(ip)
        except NotAllocatedError:
            return False
        return True

    @cython.critical_section
    def __contains__(self, ip):
        cdef word i
        try:
            ordinal_of(self, ip, &i)
        except InvalidValueError:
            return False
        return contains(&self.bits.tree, i) and not is_unavailable(self, i)

    # ---- many

    @cython.critical_section
    def acquire_into(self, buffer, /):
        """Fill a writable buffer with addresses as numbers, in order; all or nothing.

        32- or 64-bit integers; for IPv6 64-bit ones, which get the host part. Returns their
        number. About 0.1 ns each where nothing is taken and 2 where half is.
        Raises ExhaustedError, InvalidValueError, OutOfRangeError.

        >>> from array import array
        >>> a = array("I", bytes(8))
        >>> IPAllocator("10.0.0.1/8").acquire_into(a), int_to_ip(a[1])
        (2, IPv4Address('10.0.0.3'))
        """
        if self.cooling != NULL:
            expire_for_items(self, buffer)
        return acquire_into(self.bits, buffer, self.offset)

    @cython.critical_section
    def acquire_many(self, n, /):
        """Take n addresses, as a list in the order given; all or nothing. Raises ExhaustedError."""
        cdef word count
        as_word(n, &count)
        cdef double now = now_if_cooling(self)
        cdef bint collector = PyGC_Disable()    # until they are taken no other code runs
        try:
            return acquire_many(self, count, now)
        finally:
            if collector:
                PyGC_Enable()

    @cython.critical_section
    def acquire_block(self, n, /):
        """Take n addresses in a row and return the first: first fit from the cursor on.

        Raises ExhaustedError.

        >>> IPAllocator("10.0.0.1/8").acquire_block(256)
        IPv4Address('10.0.0.2')
        """
        cdef word count
        as_count(n, &count)
        return acquire_block(self, count)

    @cython.critical_section
    def release_many(self, ips, /):
        """Give all of these back or none: what `acquire_into` filled, or any iterable.

        About 2 ns each for a sorted buffer. Raises NotAllocatedError, also where one is
        named twice, OutOfRangeError, InvalidValueError.
        """
        release_addresses(self, ips)

    # ---- looking

    @cython.critical_section
    def __len__(self):
        return taken(self)

    def __iter__(self):
        """Ascending; each step looks anew, so it starts at once and bears changes."""
        i = next_taken(self, 0)
        while i is not None:
            yield address_of(self, i)
            i = next_taken(self, i + 1)

    def runs(self):
        """The taken addresses as ascending (first, last), both included."""
        run = next_taken_run(self, 0)
        while run is not None:
            yield address_of(self, run[0]), address_of(self, run[1])
            run = next_taken_run(self, run[1] + 1)

    @property
    def cooldown(self):
        """How many seconds a released address is kept out."""
        return self.period

    @property
    def available(self):
        """How many are free now; those that cool down are not."""
        with cython.critical_section(self):
            now = now_if_cooling(self)
            n = size_of(&self.bits.tree) - used(&self.bits.tree)
            return n if self.cooling == NULL else n + queue_ready(self.cooling, now)

    @property
    def nbytes(self):
        """Memory in bytes: this object, its bitmaps and, while addresses cool, their times."""
        n = <Py_ssize_t>IPAllocator.__basicsize__ + self.bits.nbytes
        if self.unavailable is not None:
            n += self.unavailable.nbytes
        if self.cooling != NULL:
            n += sizeof(Queue) + queue_bytes(self.cooling)
            if self.barred is not None:
                n += self.barred.nbytes
        return n

    def __sizeof__(self):
        return self.nbytes

    def __repr__(self):
        return f"<IPAllocator {text_of(self)}: {taken(self)} of {capacity_of(self)} taken>"

    def __eq__(self, other):
        return self is other

    def __hash__(self):
        return <Py_hash_t>(<size_t><void *>self >> 4)

    # ---- as bytes

    @cython.critical_section
    def to_bytes(self):
        """The whole state: network, exclusions, cursor, what is taken, and how long what cools cools.

        Equal allocators give equal bytes.
        """
        from struct import pack

        parts = encoded_parts(self)
        body = b"NAIP" + pack("<HH5I", ALLOCATOR_VERSION, 0, *map(len, parts)) + b"".join(parts)
        return body + pack("<I", crc32(body))

    @classmethod
    def from_bytes(cls, data, /):
        """The allocator that `to_bytes` wrote, cursor and remaining cool-downs included.

        Raises StoreError for bytes that are truncated, corrupt, foreign, of another version or
        that contradict each other; InvalidValueError for what is not bytes.
        """
        return decoded_allocator(private_bytes(data))

    def __reduce__(self):
        return type(self).from_bytes, (self.to_bytes(),)

    @cython.critical_section
    def _check(self):
        """Assert every invariant; the message describes the state."""
        check_allocator(self)


# ---- taking

cdef Tree NO_TREE        # one that has nothing free, so that no flag need be looked at: 0.6 ns
tree_init(&NO_TREE, 0)

cdef inline void choose_way(IPAllocator self) noexcept:
    """The short way is for IPv4 without cool-down."""
    self.quick = &NO_TREE
    if self.v4 and quick_v4 and self.cooling == NULL:
        self.quick = &self.bits.tree

cdef inline void *quick_number(IPAllocator self, object allow_cooling) noexcept:
    """Take the next address; NULL, with nothing changed, asks for the long way."""
    cdef word i, before
    cdef void *number
    if unlikely(allow_cooling is not False):
        return NULL
    if unlikely(not take_within_word(self.quick, &i, &before)):
        return last_of_word(self.quick, self.offset)
    number = new_small_int(self.offset + i)
    if unlikely(number == NULL):
        PyErr_Clear()
        return_to_word(self.quick, i, before)
    return number

cdef inline void *quick_address(IPAllocator self, object allow_cooling) noexcept:
    """The same, as an object.

    Making it may run the collector, and with it code that comes back to this allocator; from
    finding the ordinal to taking it, nothing may.
    """
    cdef word i, before
    cdef void *address
    if unlikely(self.quick == &NO_TREE or allow_cooling is not False):
        return NULL
    address = new_blank_v4()
    if unlikely(address == NULL):
        PyErr_Clear()
        return NULL
    if unlikely(not take_within_word(self.quick, &i, &before)):
        return last_address_of_word(self, address)
    if unlikely(not number_raw(address, <uint32_t>(self.offset + i))):
        PyErr_Clear()
        drop(address)
        return_to_word(self.quick, i, before)
        return NULL
    return address

cdef void *last_address_of_word(IPAllocator self, void *address) noexcept:
    """Where a word ends, once for 64: give the address its number, or drop it and return NULL."""
    cdef Status status = OK
    cdef word i = tree_next(&self.bits.tree, &status)
    if status == OK:
        if number_raw(address, <uint32_t>(self.offset + i)):
            tree_take(&self.bits.tree, i)
            return address
        PyErr_Clear()
    drop(address)
    return NULL

cdef int find_next(IPAllocator self, double now, bint allow_cooling, word *i) except -1:
    """The next ordinal that is free, or is the longest cooling: 1 then, else 0; takes nothing."""
    cdef Status status = OK
    expire(self, now, STEP)
    i[0] = tree_next(&self.bits.tree, &status)
    if status == OK:
        return 0
    if status == NO_MEMORY:
        raise MemoryError
    if not allow_cooling or nothing_cools(self):
        refuse_exhausted(self)
    i[0] = self.cooling.at[queue_oldest(self.cooling)].ordinal
    return 1

@cython.critical_section
cdef object acquire_any(IPAllocator self, object allow_cooling, bint number):
    """Take the next address the long way: of IPv6, with cool-down, or when none is free."""
    cdef bint allowed = as_flag(allow_cooling, "allow_cooling")
    cdef double now = now_if_cooling(self)
    cdef word i, again
    cdef int cools
    address = None if number else blank_address(self.v4)
    cools = find_next(self, now, allowed, &i)
    while True:
        n = self.first + i
        if number:
            address = n
        elif address is not None:
            give_number(self.v4, address, n)
        else:
            address = (V4 if self.v4 else V6)(n)        # Python code: look again
            again = i
            cools = find_next(self, now, allowed, &i)
            if i != again:
                address = None
                continue
        break
    if not cools:
        tree_take(&self.bits.tree, i)
    elif cancel_cooldown(
        &self.unavailable.tree, self.cooling, queue_find(self.cooling, i)
    ) != OK:
        raise MemoryError
    return address

cdef int reserve_cooling(IPAllocator self, word i, bint allow_cooling) except -1:
    """Take what could not be taken at once: it may be cooling, and its time may have come."""
    cdef double now = now_if_cooling(self)
    cdef Status status = tree_reserve(&self.bits.tree, i)       # the clock may have changed it
    cdef uint32_t place = 0
    if status == FOUND_SET and self.cooling != NULL:
        place = queue_find(self.cooling, i)
    if place:
        wait = self.cooling.at[place].ready - now
        if wait > 0 and not allow_cooling:
            raise InUseError(
                f"{address_of(self, i)} cools down for {wait:.3f} s more; "
                "allow_cooling=True takes it all the same"
            )
        status = cancel_cooldown(&self.unavailable.tree, self.cooling, place)
    if status != OK:
        refuse(status, address_of(self, i))
    return 0

cdef int expire_for_items(IPAllocator self, object buffer) except -1:
    """Have as many free as the buffer has items, if enough have cooled."""
    cdef double now = now_if_cooling(self)
    cdef Py_buffer view
    cdef word limit
    open_items(buffer, &view, PyBUF_WRITABLE, &limit)
    try:
        expire_for(self, now, view.len // view.itemsize)
    finally:
        PyBuffer_Release(&view)
    return 0

cdef list acquire_many(IPAllocator self, word n, double now):
    """Take n addresses; the caller holds the collector off."""
    cdef Tree *t = &self.bits.tree
    cdef word ahead, final = 0, wrapped = 0, k
    cdef bytes found, again
    cdef word *numbers
    cdef list addresses
    expire_for(self, now, n)
    if n == 0:
        return []
    if n > <word>PY_SSIZE_T_MAX / 16:
        raise MemoryError
    found = PyBytes_FromStringAndSize(NULL, 8 * n)
    # A comprehension of Cython 3.3 drops its item twice when the list cannot grow.
    addresses = [None] * <Py_ssize_t>n
    if not preallocate_fill(t):
        raise MemoryError
    try:
        numbers = <word *>PyBytes_AS_STRING(found)
        ahead = peek_into(t, numbers, n, 0, &final, &wrapped)
        for k in range(n):
            addresses[k] = address_of(self, numbers[k])
        if not (quick_v4 if self.v4 else quick_v6):     # Python code has run: look again
            if not preallocate_fill(t) or not has_free(t, n):
                raise MemoryError
            again = PyBytes_FromStringAndSize(NULL, 8 * n)
            ahead = peek_into(t, <word *>PyBytes_AS_STRING(again), n, 0, &final, &wrapped)
            if again != found:
                return acquire_many(self, n, now)
    except BaseException:
        free_spares(t)
        raise
    take_through(t, ahead, final, wrapped, n)
    return addresses

cdef object acquire_block(IPAllocator self, word n):
    cdef double now = now_if_cooling(self)
    cdef word first
    cdef word more = STEP
    cdef Tree *t = &self.bits.tree
    address = blank_address(self.v4)
    while True:
        expire(self, now, STEP)
        while not next_run(t, n, &first):
            more *= 4               # as few as it takes, and few searches
            if not expire(self, now, more):
                raise ExhaustedError(
                    f"no {n} in a row are free, of the {capacity_of(self)} of {network_of(self)}"
                )
        number = self.first + first
        if address is None:
            address = (V4 if self.v4 else V6)(number)   # Python code: look again
            continue
        if quick_v4 if self.v4 else quick_v6:
            give_number(self.v4, address, number)
        elif int(address) != number:
            address = None
            continue
        if not preallocate_fill(t):
            raise MemoryError
        take_run(t, first, n)
        return address


# ---- releasing

cdef Status release_to_cool(IPAllocator self, word i) except *:
    cdef double ready = read_clock(self) + self.period
    return start_cooldown(&self.bits.tree, &self.unavailable.tree, self.cooling, i, ready)

cdef int release_addresses(IPAllocator self, object ips) except -1:
    """Free all of these, or none."""
    cdef double ready = 0.0
    cdef bytes ordinals
    cdef Status status
    cdef Refused refused
    cdef Py_ssize_t n
    cdef word *at
    if self.unavailable is None and PyObject_CheckBuffer(ips):
        return release_buffer(self, ips)
    ordinals = own_ordinals(self, ips)
    n = len(ordinals) // 8
    at = <word *>PyBytes_AS_STRING(ordinals)
    if self.cooling == NULL:
        status = release_all(&self.bits.tree, at, n, 0, self.last, &refused)
    else:
        ready = read_clock(self) + self.period
        status = start_cooldowns(
            &self.bits.tree, &self.unavailable.tree, self.cooling, at, n, ready, &refused
        )
    if status != OK:
        refuse_release(self, status, &refused, n)
    return 0

cdef int release_buffer(IPAllocator self, object buffer) except -1:
    """The short way, over a caller's own buffer, of which each item is read once."""
    cdef Py_buffer view
    cdef Refused refused
    cdef Status status
    cdef word limit
    cdef Py_ssize_t n
    open_items(buffer, &view, 0, &limit)
    n = view.len // view.itemsize
    status = release_items(&self.bits.tree, &view, self.offset, limit, &refused)
    number = raw_number(&view, refused.ordinal + self.offset, limit)
    PyBuffer_Release(&view)
    if status != OK:
        if status == FOUND_CLEAR and refused.ordinal > self.last:
            refuse_item(self, number, refused.at)
        refuse_release(self, status, &refused, n)
    return 0

cdef bytes own_ordinals(IPAllocator self, object ips):
    """The ordinals of a buffer or an iterable of addresses, checked, in a copy of our own."""
    cdef Py_buffer view
    cdef word i, limit
    cdef Py_ssize_t k, n
    cdef bytes copy
    cdef word *at
    if not PyObject_CheckBuffer(ips):
        from array import array

        numbers = array("Q")
        iterator = opened(ips, "addresses")
        while (ip := next_of(iterator, "addresses")) is not END:
            ordinal_of(self, ip, &i)
            numbers.append(from_word(i))
            check_length(&self.bits.tree, len(numbers))
        return numbers.tobytes()
    open_items(ips, &view, 0, &limit)
    try:
        n = view.len // view.itemsize
        copy = PyBytes_FromStringAndSize(NULL, 8 * n)
        at = <word *>PyBytes_AS_STRING(copy)
        for k in range(n):
            i = read32(<uint32_t *>view.buf + k) if view.itemsize == 4 else read64(
                <uint64_t *>view.buf + k
            )
            at[k] = i - self.offset
            if at[k] > self.last or i > limit:
                refuse_item(self, raw_number(&view, i, limit), k)
            if self.barred is not None and contains(&self.barred.tree, at[k]):
                refuse_address(self, self.first + at[k])
    finally:
        PyBuffer_Release(&view)
    return copy

cdef int refuse_item(IPAllocator self, object number, Py_ssize_t k) except -1:
    """Refuse a number that stands for no address which may be given."""
    n = number if self.v4 else lowest_of(self) + number
    if number >= 0 and n < <object>1 << (32 if self.v4 else 128):
        refuse_address(self, n)
    raise OutOfRangeError(f"{number} is no address of {network_of(self)}: item {k}")

cdef int refuse_release(
    IPAllocator self, Status status, Refused *refused, Py_ssize_t n
) except -1:
    if status == NO_MEMORY:
        raise MemoryError
    ip = address_of(self, refused.ordinal)
    raise NotAllocatedError(f"{ip}, item {refused.at} of {n}, is not allocated, or named twice")


# ---- looking

cdef inline bint is_unavailable(IPAllocator self, word i):
    return self.unavailable is not None and contains(&self.unavailable.tree, i)

cdef object taken(IPAllocator self):
    n = used(&self.bits.tree)
    return n if self.unavailable is None else n - used(&self.unavailable.tree)

cdef bint find_taken(IPAllocator self, word i, word *found):
    while i <= self.last and next_set(&self.bits.tree, i, &i):
        found[0] = i
        if not is_unavailable(self, i):
            return True
        if not next_free(&self.unavailable.tree, i, &i):
            return False
    return False

cdef object next_taken(IPAllocator self, object start):
    """The first ordinal at or after `start` that is taken, or None."""
    cdef word i
    return from_word(i) if start <= self.last and find_taken(self, start, &i) else None

cdef object next_taken_run(IPAllocator self, object start):
    """The next run of taken ordinals, (first, last), or None."""
    cdef word first, stop, last = self.last
    if start > self.last or not find_taken(self, start, &first):
        return None
    if next_free(&self.bits.tree, first, &stop):
        last = stop - 1
    if self.unavailable is not None and next_set(&self.unavailable.tree, first, &stop):
        last = min(last, stop - 1)
    return from_word(first), from_word(last)
