# Subnet: which addresses of a network may be given, and which ordinal each has.
#
# Ordinal 0 is the first address that may be given, so the network and broadcast addresses, and
# a gateway at either end, have none, and a network without exclusions owns no bitmap. A gateway
# in between, and what is excluded, keep their ordinals and are set in `barred`: ordinals stay
# what they are when exclusions change.
#
# An ordinal is a word: of an IPv6 prefix shorter than /64 the first 2**64 addresses are given,
# and a gateway or an exclusion beyond these has no ordinal.

cdef class Subnet:
    """The addresses of a network that may be given, each with its ordinal; holds no state.

    `network` is written as the gateway would: in "10.0.0.1/8" the gateway is 10.0.0.1, which
    is never given; where the address part is the network's own there is none. Network and
    broadcast addresses are never given, but in a /31 both are (RFC 3021); IPv6 has no
    broadcast, and its lowest address is the routers' anycast (RFC 4291, 2.6.1) unless the
    prefix is a /127 (RFC 6164) or /128. Of a prefix shorter than /64 the first 2**64 addresses
    are given. `exclude` names addresses and networks that are never given either. Another
    Subnet is taken as it is, with `exclude` on top.

    Immutable; equal where network, gateway and exclusions are, and hashable.

    Raises InvalidValueError for what is no network; OutOfRangeError for exclusions that lie
    outside, and where no address is left to give.

    >>> s = Subnet("10.0.0.1/24", exclude=["10.0.0.128/25"])
    >>> s.gateway, s.capacity, "10.0.0.2" in s, "10.0.0.200" in s
    (IPv4Address('10.0.0.1'), 126, True, False)
    >>> s.ordinal("10.0.0.2"), s.address(1), s.excluded()
    (0, IPv4Address('10.0.0.3'), ((126, 253),))
    """

    cdef word offset             # ordinal 0 as a number: of 32 bits, in IPv6 the host part
    cdef word last               # the highest ordinal
    cdef object first            # ordinal 0 as an address, an int
    cdef object ip               # the address part of `network`, an int: the gateway's, or lowest
    cdef Bitmap barred           # None, or which ordinals are never given; shared, so never changed
    cdef uint8_t v4
    cdef uint8_t prefix
    cdef object __weakref__

    def __cinit__(self, network, *, exclude=(), **others):
        if others and type(self) is not IPAllocator:
            raise TypeError(f"Subnet takes no argument {next(iter(others))!r}")
        if isinstance(network, Subnet):
            copy_geometry(self, network)
        else:
            v4, self.ip, prefix = parse_network(network)
            self.v4, self.prefix = v4, prefix
            lay_out(self)
        exclude_all(self, exclude)
        if capacity_of(self) <= 0:
            raise OutOfRangeError(f"{text_of(self)} has no address to give")

    # ---- the network

    @property
    def network(self):
        """The IPv4Network or IPv6Network."""
        return network_of(self)

    @property
    def gateway(self):
        """The gateway's address, or None."""
        return None if self.ip == lowest_of(self) else address_from(self.v4, self.ip)

    @property
    def prefixlen(self):
        """The length of the prefix, 0 to 32, or to 128 in IPv6."""
        return self.prefix

    @property
    def version(self):
        """4 or 6."""
        return 4 if self.v4 else 6

    # ---- addresses and ordinals

    @property
    def size(self):
        """How many ordinals there are; ordinal 0 is the lowest address that may be given."""
        return self.last + <object>1

    @property
    def capacity(self):
        """How many addresses may be given: the size less what is excluded."""
        return capacity_of(self)

    def __contains__(self, ip):
        """Whether this address may be given."""
        cdef word i
        try:
            ordinal_of(self, ip, &i)
        except InvalidValueError:
            return False
        return True

    def ordinal(self, ip, /, *, allow_excluded=False):
        """The ordinal of an address; of one that is never given only with `allow_excluded`.

        Raises InvalidValueError, and OutOfRangeError that says why it is never given. The
        network's own address, broadcast, and a gateway at either end have no ordinal at all.
        """
        cdef word i
        if as_flag(allow_excluded, "allow_excluded"):
            n = number_in(self, ip) - self.first
            if 0 <= n <= self.last:
                return n
        ordinal_of(self, ip, &i)
        return from_word(i)

    def address(self, i, /):
        """The address of an ordinal, be it excluded or not. Raises OutOfRangeError."""
        cdef word n
        as_word(i, &n)
        if n > self.last:
            raise OutOfRangeError(f"{n} is not in 0 to {self.last}")
        return address_of(self, n)

    # ---- exclusions

    def excluded(self):
        """The ordinals that are never given, a gateway's included: (start, stop), ascending.

        >>> Subnet("10.0.0.5/24", exclude="10.0.0.8/30").excluded()
        ((4, 5), (7, 11))
        """
        return () if self.barred is None else tuple(self.barred.runs())

    @property
    def exclude(self):
        """The fewest addresses and networks, as text, that exclude the same from this network.

        >>> Subnet("10.0.0.1/24", exclude=["10.0.0.8/31", "10.0.0.10", "10.0.0.11"]).exclude
        ('10.0.0.8/30',)
        """
        cdef list blocks = []
        for start, stop in self.excluded():
            cover(self, self.first + start, self.first + stop - 1, blocks)
        return tuple(blocks)

    # ---- as a value

    def __eq__(self, other):
        if not isinstance(other, Subnet) or type(other) is IPAllocator:
            return NotImplemented
        return same_geometry(self, other)

    def __hash__(self):
        return hash((self.ip, self.prefix, self.v4, self.excluded()))

    def __str__(self):
        return text_of(self)

    def __repr__(self):
        cdef tuple blocks = self.exclude
        if not blocks:
            return f"Subnet({text_of(self)!r})"
        dots = ", ..." if len(blocks) > 4 else ""
        return f"Subnet({text_of(self)!r}, exclude=[{', '.join(map(repr, blocks[:4]))}{dots}])"

    def __reduce__(self):
        from copyreg import __newobj_ex__

        return __newobj_ex__, (type(self), (text_of(self),), {"exclude": self.exclude})

    def __sizeof__(self):
        return Subnet.__basicsize__ + (0 if self.barred is None else self.barred.nbytes)


# ---- geometry

cdef inline int host_bits_of(Subnet self):
    return (32 if self.v4 else 128) - self.prefix

cdef inline int given_bits_of(Subnet self):
    """The bits in which the addresses that may be given differ."""
    return min(host_bits_of(self), 64)

cdef inline object lowest_of(Subnet self):
    cdef int host_bits = host_bits_of(self)
    return self.ip >> host_bits << host_bits

cdef inline object capacity_of(Subnet self):
    size = self.last + <object>1
    return size if self.barred is None else size - used(&self.barred.tree)

cdef object network_of(Subnet self):
    know()
    return Network[0 if self.v4 else 1]((lowest_of(self), self.prefix))

cdef object text_of(Subnet self):
    """The network as its gateway would write it."""
    return f"{address_from(self.v4, self.ip)}/{self.prefix}"

cdef bint same_geometry(Subnet a, Subnet b):
    return (a.v4, a.prefix, a.ip) == (b.v4, b.prefix, b.ip) and (
        a.barred is b.barred or a.excluded() == b.excluded()
    )

cdef int copy_geometry(Subnet self, Subnet other) except -1:
    self.v4, self.prefix, self.ip, self.first = other.v4, other.prefix, other.ip, other.first
    self.offset, self.last, self.barred = other.offset, other.last, other.barred
    return 0

cdef int lay_out(Subnet self) except -1:
    """Find the addresses that may be given."""
    cdef int host_bits = given_bits_of(self)
    lowest, gateway = lowest_of(self), self.ip
    first, last = lowest, lowest + (<object>1 << host_bits) - 1
    if self.v4 and host_bits > 1 and gateway == last:
        raise OutOfRangeError(f"gateway {text_of(self)} is the broadcast address")
    if host_bits > 1:
        first += 1
        last -= self.v4
    if gateway == lowest or gateway > last:
        gateway = None
    elif gateway == first:
        first, gateway = first + 1, None
    elif gateway == last:
        last, gateway = last - 1, None
    if first > last:
        raise OutOfRangeError(f"{text_of(self)} has no address to give")
    self.first = first
    self.offset = first if self.v4 else first - lowest
    self.last = last - first
    if gateway is not None:
        self.barred = Bitmap(last - first + 1)
        self.barred.reserve(gateway - first)
    return 0


# ---- exclusions

cdef int exclude_all(Subnet self, object items) except -1:
    """Bar addresses and networks, by runs: a /9 costs what an address does."""
    cdef Bitmap barred
    if type(items) is not tuple and type(items) is not list:
        know()
    if isinstance(items, str) or V4 is not None and (is_of(items, Address) or is_of(items, Network)):
        items = (items,)
    iterator = opened(items, "exclude")
    barred = None
    while (item := next_of(iterator, "exclude")) is not END:
        lo, hi = ordinals_of(self, item)
        if lo <= hi:
            if barred is None:          # a copy: another Subnet may have this one
                barred = Bitmap(self.size) if self.barred is None else copied(self.barred)
            set_range(&barred.tree, lo, hi)
    if barred is not None:
        self.barred = barred
    return 0

cdef tuple ordinals_of(Subnet self, object item):
    """The lowest and the highest ordinal of an address or a network that lies in this one."""
    cdef tuple block
    try:
        block = parse_block(item)
    except InvalidValueError as error:
        raise InvalidValueError(f"exclude: {error}") from None
    v4, lo, prefix = block
    if v4 != self.v4 or prefix < self.prefix or (lo ^ self.ip) >> host_bits_of(self):
        raise OutOfRangeError(f"exclude: {block_text(v4, lo, prefix)} is not of {network_of(self)}")
    hi = lo | (<object>1 << (32 if v4 else 128) - prefix) - 1
    return max(lo - self.first, 0), min(hi - self.first, self.last)

cdef str block_text(bint v4, object lowest, int prefix):
    """An address, or a network, as short as it is written."""
    text = str(address_from(v4, lowest))
    return text if prefix == (32 if v4 else 128) else f"{text}/{prefix}"

cdef int set_range(Tree *t, word lo, word hi) except -1:
    """Set lo..hi; some of them may be set already."""
    cdef word i = lo, stop, count = 0
    while next_free(t, i, &i) and i <= hi:
        stop = hi
        if next_set(t, i, &stop) and stop <= hi:
            count += stop - i
        else:
            count += hi - i + 1
            break
        i = stop
    if count:
        if not preallocate_fill(t):
            raise MemoryError
        fill(t, lo, hi)
        free_spares(t)
        t.used += count
    return 0

cdef Bitmap copied(Bitmap bitmap):
    return decoded(bitmap.to_bytes())

cdef int cover(Subnet self, object first, object last, list out) except -1:
    """Append the fewest blocks that exclude first..last, a run of addresses, each the smallest.

    A block may reach over addresses that are never given in any case: that is what makes
    10.128.0.0/9 of 10.0.0.1/8 one block and not 23.
    """
    cdef int total = 32 if self.v4 else 128, bits
    lowest, gateway = lowest_of(self), None if self.ip == lowest_of(self) else self.ip
    lo = lowest if first == self.first else first
    stop = last + 1
    if last == self.first + self.last:
        stop = lowest + (<object>1 << given_bits_of(self))
    while lo < stop:
        bits = (stop - lo).bit_length() - 1                 # the largest block that begins at lo
        if lo:
            bits = min(bits, (lo & -lo).bit_length() - 1)
        end = lo + (<object>1 << bits)
        a, b = max(lo, first), min(end - 1, last)
        if a == gateway:
            a += 1
        if b == gateway:
            b -= 1
        if a <= b:
            bits = (a ^ b).bit_length()
            out.append(block_text(self.v4, a >> bits << bits, total - bits))
        lo = end
    return 0


# ---- an address's ordinal

cdef inline object address_of(Subnet self, word i):
    return v4_address(<uint32_t>(self.offset + i)) if self.v4 else v6_address(self.first + i)

cdef inline int ordinal_of(Subnet self, object ip, word *out) except -1:
    """The ordinal of an address that may be given; the usual type is read without a call."""
    if self.v4 and read_v4(ip, out):
        out[0] -= self.offset
        if out[0] <= self.last and self.barred is None:
            return 0
    return parse_ordinal(self, ip, out)

cdef int parse_ordinal(Subnet self, object ip, word *out) except -1:
    n = number_in(self, ip)
    if not 0 <= n - self.first <= self.last:
        refuse_address(self, n)
    out[0] = n - self.first
    if self.barred is not None and contains(&self.barred.tree, out[0]):
        refuse_address(self, n)
    return 0

cdef object number_in(Subnet self, object ip):
    """The number of an address, which is at least of the right version."""
    if is_address(ip):
        v4, n = parse_address(ip)
        if v4 != self.v4:
            raise OutOfRangeError(f"{shown(ip)} is not of {network_of(self)}")
        return n
    n = plain_int(ip, "an IP address")
    if not 0 <= n < <object>1 << (32 if self.v4 else 128):
        raise OutOfRangeError(f"{shown(n)} is no address of IPv{4 if self.v4 else 6}")
    return n

cdef int refuse_address(Subnet self, object n) except -1:
    """Say why this address is never given."""
    ip, network, lowest = address_from(self.v4, n), network_of(self), lowest_of(self)
    if (n ^ lowest) >> host_bits_of(self):
        raise OutOfRangeError(f"{ip} is not of {network}")
    if n == self.ip and n != lowest:
        raise OutOfRangeError(f"{ip} is the gateway of {network}")
    if 0 <= n - self.first <= self.last:
        raise OutOfRangeError(f"{ip} is excluded from {network}")
    if self.v4:
        part = "network" if n == lowest else "broadcast"
        raise OutOfRangeError(f"{ip} is the {part} address of {network}")
    if n > lowest:
        raise OutOfRangeError(f"{ip} is beyond the first 2**64 addresses of {network}, all it gives")
    raise OutOfRangeError(f"{ip} is the routers' anycast address of {network}")
