# IPAllocator: a Bitmap laid over the addresses of a network that may be given.
#
# Ordinal 0 is the first such address, so the network and broadcast addresses, and a gateway
# at either end, are not even in the bitmap: an empty network of any size owns no node. What
# lies in between and is not to be given (a gateway there, `reserved`, addresses that are
# cooling down) is set in the bitmap and also in a second one, `unavailable`.

cdef object V4 = IPv4Address
cdef object V6 = IPv6Address
cdef double INFINITY = float("inf")


@cython.final
cdef class IPAllocator:
    """The free and taken addresses of a network, given in order, round and round.

    `network` is written as the gateway would: in "10.0.0.1/8" the gateway is 10.0.0.1, which
    is never given; where the address part is the network's own there is none. Network and
    broadcast addresses are never given, but in a /31 both are (RFC 3021); IPv6 has no
    broadcast, and its lowest address is the routers' anycast (RFC 4291, 2.6.1) unless the
    prefix is a /127 (RFC 6164) or /128. `reserved` names addresses and networks that are
    never given either; `cooldown` keeps a released address out for so many seconds.

    Time and memory are those of Bitmap. It reads like a set of the addresses that are taken.
    Text, address objects and ints are accepted; address objects come back.

    Raises OutOfRangeError for what is no network, for IPv6 prefixes shorter than /64, and
    where no address is left to give.

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
    cdef Bitmap unavailable         # None, or ordinals that are set in `bits` but are not taken
    cdef dict cooling            # None, or {ordinal: when it is ready}
    cdef object queue            # deque of (ordinal, ready), oldest first; stale where they differ
    cdef object clock
    cdef bint v4
    cdef bint plain              # IPv4 without cool-down: the short way
    cdef word offset             # ordinal 0 as a number: of 32 bits, in IPv6 the host part
    cdef object first            # ordinal 0 as an address of IPv6, an int
    cdef readonly object capacity  # how many can be taken at a time: size less the excluded
    cdef object lowest           # the network's own address, an int
    cdef object ip               # the address part of `network`, an int: the gateway's, or lowest
    cdef int prefix
    cdef object __weakref__
    cdef readonly double cooldown

    def __cinit__(self, network, *, reserved=(), cooldown=0.0, clock=monotonic):
        parse_network(self, network)
        if not 0.0 <= cooldown < INFINITY:
            raise OutOfRangeError(f"a cool-down of {cooldown} seconds is not 0 or more")
        self.cooldown = cooldown
        self.clock = clock
        if self.cooldown:
            self.cooling, self.queue = {}, deque()
        lay_out(self)
        self.plain = self.v4 and quick_v4_made and self.cooling is None
        for item in (reserved,) if isinstance(reserved, str) else reserved:
            exclude(self, item)
        if self.cooling is not None and self.unavailable is None:
            self.unavailable = Bitmap(self.size)
        if self.capacity <= 0:
            raise OutOfRangeError(f"{interface_of(self)} has no address to give")

    # ---- one address

    @cython.critical_section
    def acquire(self, *, bint early=False):
        """Take the next free address at or after the cursor, from the first on after the last.

        With `early`, when only cooling addresses are left, the one that has cooled longest.
        Raises ExhaustedError, which says how many are cooling.
        """
        cdef Status status = OK
        cdef word i
        cdef void *address
        if unlikely(not self.plain):
            return acquire_any(self, early)
        # The collector may run here, and with it code that comes back to this allocator;
        # from finding the ordinal to taking it, nothing may.
        address = new_blank_v4()
        if unlikely(address == NULL):
            raise MemoryError
        i = tree_next(&self.bits.tree, &status)
        if unlikely(status != OK):
            drop(address)
            return acquire_any(self, early)
        if unlikely(not number_raw(address, <uint32_t>(self.offset + i))):
            drop(address)
            raise MemoryError
        tree_take(&self.bits.tree, i)
        return owned(address)

    @cython.critical_section
    def acquire_int(self, *, bint early=False):
        """The same as a number, at half the cost."""
        cdef Status status = OK
        cdef word i
        cdef void *result
        if unlikely(not self.plain):
            return int(acquire_any(self, early))
        i = tree_next(&self.bits.tree, &status)
        if unlikely(status != OK):
            return int(acquire_any(self, early))
        result = new_int(self.offset + i)
        if unlikely(result == NULL):
            raise MemoryError
        tree_take(&self.bits.tree, i)
        return owned(result)

    @cython.critical_section
    def reserve(self, ip, /):
        """Take this address, also while it cools down, and leave the cursor where it is.

        Raises InUseError; OutOfRangeError for an address of another network and for one
        that is never given.
        """
        cdef word i
        ordinal_of(self, ip, &i)
        cdef Status status = tree_reserve(&self.bits.tree, i)
        if status == FOUND_SET and self.cooling is not None and i in self.cooling:
            cancel_cooldown(self, i)
        elif status != OK:
            refuse(status, ip)

    @cython.critical_section
    def release(self, ip, /):
        """Give this address back; if all were taken, it is the next one given.

        Raises NotAllocatedError; OutOfRangeError as `reserve` does.
        """
        cdef word i
        cdef Status status
        ordinal_of(self, ip, &i)
        if self.cooling is not None:
            status = start_cooldown(self, i)
        else:
            status = tree_release(&self.bits.tree, i)
        if unlikely(status != OK):
            refuse(status, ip)

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
        except (OutOfRangeError, TypeError):
            return False
        return contains(&self.bits.tree, i) and not is_withheld(self, i)

    # ---- many

    @cython.critical_section
    def acquire_into(self, buffer, /):
        """Fill a writable buffer with addresses as numbers, in order; all or nothing.

        32- or 64-bit integers; for IPv6 64-bit ones, which get the host part. Returns their
        number. About 0.1 ns each where nothing is taken and 2 where half is.
        Raises ExhaustedError, OutOfRangeError.

        >>> from array import array
        >>> a = array("I", bytes(8))
        >>> IPAllocator("10.0.0.1/8").acquire_into(a), int_to_ip(a[1])
        (2, IPv4Address('10.0.0.3'))
        """
        if self.cooling is not None:
            expire_cooldowns(self)
        return acquire_into(self.bits, buffer, self.offset)

    @cython.critical_section
    def acquire_many(self, n, /):
        """Take n addresses, as a list in the order given; all or nothing. Raises ExhaustedError."""
        if self.cooling is not None:
            expire_cooldowns(self)
        if check_available(self.bits, n) == 0:
            return []
        numbers = array("Q", bytes(8 * n))
        taken = array("Q", bytes(8 * n))
        # A comprehension of Cython 3.3 drops its item twice when the list cannot grow.
        cdef list addresses = [None] * len(numbers)
        while True:
            peek(self.bits, numbers)
            for k, i in enumerate(numbers):
                addresses[k] = address_of(self, i)
            # The collector may have run, and with it code that took some of them.
            peek(self.bits, taken)
            if taken == numbers:
                acquire_into(self.bits, taken, 0)
                return addresses

    @cython.critical_section
    def acquire_block(self, n, /):
        """Take n addresses in a row and return the first: first fit from the cursor on.

        Raises ExhaustedError.

        >>> IPAllocator("10.0.0.1/8").acquire_block(256)
        IPv4Address('10.0.0.2')
        """
        if self.cooling is not None:
            expire_cooldowns(self)
        cdef word count, first = find_block(self.bits, n, &count)
        try:
            address = address_of(self, first)
        except MemoryError:
            free_spares(&self.bits.tree)
            raise
        take_run(&self.bits.tree, first, count)
        return address

    @cython.critical_section
    def release_many(self, ips, /):
        """Give all of these back or none: what `acquire_into` filled, or any iterable.

        About 2 ns each for a sorted buffer. Raises NotAllocatedError, also where one is
        named twice, and OutOfRangeError.
        """
        cdef word i
        offset = self.offset
        if not PyObject_CheckBuffer(ips):
            numbers = array("Q")
            for ip in ips:
                ordinal_of(self, ip, &i)
                numbers.append(i)
            ips, offset = numbers, 0
        if self.unavailable is None:
            release_many(self.bits, ips, offset)
            return
        cdef list ordinals = []
        for n in memoryview(ips):
            n -= offset
            check_given(self, n)
            ordinals.append(n)
        for n in ordinals:
            if not contains(&self.bits.tree, n) or is_withheld(self, n):
                refuse(FOUND_CLEAR, address_of(self, n))
        if len(set(ordinals)) < len(ordinals):
            raise NotAllocatedError("an address is named twice")
        if self.cooling is None:
            release_many(self.bits, as_array(ordinals), 0)
            return
        cool_all(self, ordinals)

    # ---- looking

    @cython.critical_section
    def __len__(self):
        return taken(self)

    def __iter__(self):
        """Ascending; each step looks anew, so it starts at once and bears changes."""
        i = next_taken(self, 0)
        while i is not None:
            yield address_of(self, i)
            i = next_taken(self, i + 1) if i + 1 < self.bits.size else None

    def runs(self):
        """The taken addresses as ascending (first, last), both included."""
        i = next_taken(self, 0)
        while i is not None:
            stop = next_not_taken(self, i)
            yield address_of(self, i), address_of(self, stop - 1)
            i = next_taken(self, stop) if stop < self.bits.size else None

    @property
    def network(self):
        """The IPv4Network or IPv6Network."""
        return network_of(self)

    @property
    def gateway(self):
        """The gateway's address, or None."""
        return None if self.ip == self.lowest else interface_of(self).ip

    @property
    def available(self):
        """How many are free now; those that cool down are not."""
        with cython.critical_section(self):
            if self.cooling is not None:
                expire_cooldowns(self)
            return size_of(&self.bits.tree) - used(&self.bits.tree)

    @property
    def nbytes(self):
        """Memory in bytes: this object, its bitmaps and, while addresses cool, their times."""
        n = <Py_ssize_t>IPAllocator.__basicsize__ + self.bits.nbytes
        if self.unavailable is not None:
            n += self.unavailable.nbytes
        return n + 200 * len(self.cooling or ())

    def __sizeof__(self):
        return self.nbytes

    def __repr__(self):
        return f"<{type(self).__name__} {interface_of(self)}: {taken(self)} of {self.capacity} taken>"

    # ---- ordinals, for whoever keeps the bits elsewhere

    @property
    def size(self):
        """How many ordinals there are; ordinal 0 is the lowest address that may be given."""
        return self.bits.size

    def ordinal(self, ip, /):
        """The ordinal of an address. Raises OutOfRangeError as `reserve` does."""
        cdef word i
        ordinal_of(self, ip, &i)
        return i

    def address(self, i, /):
        """The address of an ordinal. Raises OutOfRangeError."""
        cdef word n
        as_ordinal(self.bits, i, &n)
        return address_of(self, n)

    def excluded(self):
        """The ordinals that are never given, as ascending (start, stop)."""
        if self.unavailable is None:
            return
        stop = 0
        while (start := self.unavailable.next_set(stop)) is not None:
            stop = start
            while stop < self.size and stop in self.unavailable and not is_cooling(self, stop):
                stop = min(self.unavailable.next_free(stop) or self.size, next_cooling(self, stop))
            if stop > start:
                yield start, stop
            stop += 1

    # ---- as bytes

    def to_bytes(self):
        """The whole state: network, cursor, what is taken, and how long the cooling ones still cool.

        Equal allocators give equal bytes.
        """
        with cython.critical_section(self):
            parts = encoded_parts(self)
        body = b"NAIP" + pack("<HH5I", FORMAT_VERSION, 0, *map(len, parts)) + b"".join(parts)
        return body + pack("<I", crc32(body))

    @classmethod
    def from_bytes(cls, data, /):
        """The allocator that `to_bytes` wrote, cursor and remaining cool-downs included.

        Raises StoreError for bytes that are truncated, corrupt, foreign or of a newer version.
        """
        network, cooldown, bits, unavailable, cooling = allocator_parts(bytes(data))
        try:
            self = cls(network.decode(), cooldown=unpack("<d", cooldown)[0])
            restore(self, bits, unavailable, cooling)
        except (OutOfRangeError, ValueError, StructError) as error:
            raise StoreError(f"an allocator whose parts contradict each other: {error}") from None
        return self

    def __reduce__(self):
        return type(self).from_bytes, (self.to_bytes(),)

    @cython.critical_section
    def _check(self):
        """Assert every invariant; the message describes the state."""
        check_allocator(self)
