# Which addresses of a network may be given, and which ordinal each has.

cdef int parse_network(IPAllocator self, object network) except -1:
    cdef uint32_t ip
    cdef int prefix
    if isinstance(network, str) and quick_v4(network, &ip, &prefix):
        self.v4, self.ip, self.prefix = True, ip, prefix
    else:
        interface = as_interface(network)
        self.v4 = interface.version == 4
        self.ip = int(interface.ip)
        self.prefix = interface.network.prefixlen
    host_bits = (32 if self.v4 else 128) - self.prefix
    self.lowest = self.ip >> host_bits << host_bits
    return 0

cdef object interface_of(IPAllocator self):
    return (IPv4Interface if self.v4 else IPv6Interface)((self.ip, self.prefix))

cdef object network_of(IPAllocator self):
    return (IPv4Network if self.v4 else IPv6Network)((self.lowest, self.prefix))

cdef int lay_out(IPAllocator self) except -1:
    """Find the addresses that may be given, and make the bitmap over them."""
    cdef int host_bits = (32 if self.v4 else 128) - self.prefix
    if host_bits > 64:
        raise OutOfRangeError(f"{network_of(self)} has {host_bits} host bits; 64 are the limit")
    first, gateway = self.lowest, self.ip
    last = first + (<object>1 << host_bits) - 1
    if self.v4 and host_bits > 1 and gateway == last:
        raise OutOfRangeError(f"gateway {interface_of(self)} is the broadcast address")
    if host_bits > 1:
        first += 1
        last -= self.v4
    if gateway == self.lowest:
        gateway = None
    elif gateway == first:
        first, gateway = first + 1, None
    elif gateway == last:
        last, gateway = last - 1, None
    if first > last:
        raise OutOfRangeError(f"{interface_of(self)} has no address to give")
    self.bits = Bitmap(last - first + 1)
    self.capacity = self.bits.size
    self.first = first
    self.offset = first if self.v4 else first - self.lowest
    if gateway is not None:
        withhold(self, gateway - first, gateway - first)
    return 0

cdef int withhold(IPAllocator self, word lo, word hi) except -1:
    """Exclude lo..hi for good; some of them may be already."""
    cdef word i, stop
    cdef Tree *t
    if self.unavailable is None:
        self.unavailable = Bitmap(self.size)
    while next_free(&self.unavailable.tree, lo, &i) and i <= hi:
        stop = hi
        if next_set(&self.unavailable.tree, i, &lo) and lo <= hi:
            stop = lo - 1
        for bitmap in (self.bits, self.unavailable):
            t = &(<Bitmap>bitmap).tree
            if not preallocate_fill(t):
                raise MemoryError
            fill(t, i, stop)
            t.used += stop - i + 1
            free_spares(t)
        self.capacity -= stop - i + <object>1
        if stop == hi:
            break
        lo = stop + 1
    return 0

cdef int exclude(IPAllocator self, object item) except -1:
    """Withhold an address or a network, as text or object, which lies in this network."""
    try:
        block = ip_network(item if isinstance(item, (str, IPv4Network, IPv6Network)) else str(item))
    except ValueError:
        raise OutOfRangeError(f"reserved {item!r} is no address and no network") from None
    if block.version != (4 if self.v4 else 6) or not block.subnet_of(network_of(self)):
        raise OutOfRangeError(f"reserved {item} is not of {network_of(self)}")
    lo = max(int(block.network_address) - self.first, 0)
    hi = min(int(block.broadcast_address) - self.first, self.size - 1)
    if lo <= hi:
        withhold(self, lo, hi)
    return 0


# ---- ordinals and addresses

cdef object acquire_any(IPAllocator self, bint early):
    """Take the next address the long way: of IPv6, with cool-down, or when none is free."""
    cdef Status status = OK
    cdef word i
    if self.cooling is not None:
        expire_cooldowns(self)
    while True:
        i = tree_next(&self.bits.tree, &status)
        if status == NO_MEMORY:
            raise MemoryError
        if status != OK:
            ordinal = longest_cooling(self, early)
            address = address_of(self, ordinal)
            cancel_cooldown(self, ordinal)
            return address
        address = address_of(self, i)
        # The collector may have run, and with it code that took this very one.
        if i == tree_next(&self.bits.tree, &status) and status == OK:
            tree_take(&self.bits.tree, i)
            return address

cdef inline object address_of(IPAllocator self, object i):
    return v4_address(self.first + i) if self.v4 else v6_address(self.first + i)

cdef inline int ordinal_of(IPAllocator self, object ip, word *out) except -1:
    """The ordinal of an address that may be given; the usual type is read without a call."""
    if self.v4 and is_v4(ip):
        out[0] = as_uint64(<object>number_of_v4(ip)) - self.offset
        if out[0] <= self.bits.tree.last and self.unavailable is None:
            return 0
    return parse_ordinal(self, ip, out)

cdef int parse_ordinal(IPAllocator self, object ip, word *out) except -1:
    if isinstance(ip, str):
        try:
            ip = ip_address(ip)
        except ValueError:
            raise OutOfRangeError(f"{ip!r} is not an IP address") from None
    if isinstance(ip, (V4, V6)):
        if self.v4 != isinstance(ip, V4):
            raise OutOfRangeError(f"{ip} is not of {network_of(self)}")
        n = int(ip)
    else:
        n = index(ip)
    n -= self.first
    check_given(self, n)
    out[0] = n
    return 0

cdef int check_given(IPAllocator self, object n) except -1:
    """Refuse an ordinal that is none, and one that is never given; say which it is."""
    if 0 <= n < self.size and not (is_withheld(self, n) and not is_cooling(self, n)):
        return 0
    network = network_of(self)
    n += self.first
    if not 0 <= n < 2 ** network.max_prefixlen:
        raise OutOfRangeError(f"{n} is no address of IPv{network.version}")
    ip = (V4 if self.v4 else V6)(n)
    if ip not in network:
        raise OutOfRangeError(f"{ip} is not of {network}")
    if n == self.ip and n != self.lowest:
        raise OutOfRangeError(f"{ip} is the gateway of {network}")
    if 0 <= n - self.first < self.size:
        raise OutOfRangeError(f"{ip} is excluded from {network}")
    if self.v4:
        part = "network" if ip == network.network_address else "broadcast"
        raise OutOfRangeError(f"{ip} is the {part} address of {network}")
    raise OutOfRangeError(f"{ip} is the routers' anycast address of {network}")

cdef inline bint is_withheld(IPAllocator self, word i):
    return self.unavailable is not None and contains(&self.unavailable.tree, i)

cdef object taken(IPAllocator self):
    n = used(&self.bits.tree)
    return n if self.unavailable is None else n - used(&self.unavailable.tree)

cdef object next_taken(IPAllocator self, object start):
    """The first ordinal at or after `start` that is taken, or None."""
    cdef object held
    i = self.bits.next_set(start)
    while i is not None and self.unavailable is not None and i in self.unavailable:
        held = self.unavailable.next_free(i)
        i = None if held is None else self.bits.next_set(held)
    return i

cdef object next_not_taken(IPAllocator self, object start):
    """The first ordinal at or after `start` that is not taken, or the size."""
    stop = self.bits.next_free(start)
    if self.unavailable is not None:
        held = self.unavailable.next_set(start)
        if held is not None and (stop is None or held < stop):
            stop = held
    return self.size if stop is None else stop
