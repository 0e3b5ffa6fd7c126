# Parsing, and the conversions. `ipaddress` knows every spelling; what it refuses is an
# InvalidValueError here, and plain IPv4 is read without it.

cdef int parse_v4(object text, uint32_t *ip, int *prefix) noexcept:
    """Read "a.b.c.d" or "a.b.c.d/p" in plain decimal; anything else is left to ipaddress.

    Returns 0 when it is neither, 1 for an address, 2 with a prefix. `ipaddress` takes 2 and
    10 us for them, more than all else that an allocator does with it, or costs to make.
    """
    cdef const char *s = ascii(text)
    cdef const char *end
    cdef uint32_t value
    cdef int part, digits
    if s == NULL or PyUnicode_GET_LENGTH(text) > TEXT:
        return 0
    end = s + PyUnicode_GET_LENGTH(text)
    ip[0] = 0
    prefix[0] = 32
    for part in range(5):
        value, digits = 0, 0
        while s < end and 48 <= s[0] <= 57 and digits < 3:
            if digits and value == 0:
                return 0                    # a leading zero: octal to some
            value = value * 10 + (s[0] - 48)
            digits += 1
            s += 1
        if digits == 0 or value > (255 if part < 4 else 32):
            return 0
        if part == 4:
            prefix[0] = value
            return 2 if s == end else 0
        ip[0] = ip[0] << 8 | value
        if part == 3 and s == end:
            return 1
        if s == end or s[0] != (46 if part < 3 else 47):
            return 0
        s += 1
    return 0

cdef object plain_text(object text):
    """An exact str, or an empty one where it is longer than anything that is meant."""
    return PyUnicode_FromObject(text) if PyUnicode_GET_LENGTH(text) <= TEXT else ""

cdef bint is_of(object o, object kinds) except -1:
    """isinstance(), where an object that will not say of which class it is, is of none."""
    try:
        return isinstance(o, kinds)
    except MemoryError:
        raise
    except Exception:
        return False

cdef bint is_address(object o) except -1:
    """Whether it is text, which may be an address, or an address object."""
    if isinstance(o, str):
        return True
    know()
    return is_of(o, Address)

cdef tuple number_of(object address):
    """(whether it is IPv4, the number) of an address object, None of anything else."""
    know()
    if isinstance(address, V4):
        n = plain_int(V4.__int__(address), "the number of an address")
        return (True, n) if 0 <= n < 2**32 else None
    if isinstance(address, V6):
        if address.scope_id is not None:
            raise InvalidValueError(f"{shown(address)} has a zone, which no network of ours has")
        n = plain_int(V6.__int__(address), "the number of an address")
        return (False, n) if 0 <= n < 2**128 else None
    return None

cdef tuple parse_address(object ip, str what="an IP address"):
    """(whether it is IPv4, the number) of an address as text or object."""
    cdef uint32_t number
    cdef int prefix
    cdef tuple found = None
    try:
        if isinstance(ip, str):
            if parse_v4(ip, &number, &prefix) == 1:
                return True, number
            know()
            found = number_of(ipaddress.ip_address(plain_text(ip)))
        else:
            found = number_of(ip)
    except (NetallocError, MemoryError):
        raise
    except Exception:                   # what ipaddress refuses, or the code of a subclass
        pass
    if found is None:
        raise InvalidValueError(f"{shown(ip)} is not {what}")
    return found

cdef tuple parse_network(object network):
    """(whether it is IPv4, the address part, the prefix length) of a network as text or object."""
    cdef uint32_t number
    cdef int length
    cdef tuple found = None
    try:
        one = network
        if isinstance(network, str):
            if parse_v4(network, &number, &length):
                return True, number, length
            know()
            one = ipaddress.ip_interface(plain_text(network))
        know()
        if isinstance(one, Interface):
            found, prefix = number_of(one), one.network.prefixlen
        elif isinstance(one, Network):
            found, prefix = number_of(one.network_address), one.prefixlen
        if found is not None:
            prefix = plain_int(prefix, "a prefix length")
            if 0 <= prefix <= (32 if found[0] else 128):
                return found + (prefix,)
    except (NetallocError, MemoryError):
        raise
    except Exception:
        pass
    raise InvalidValueError(f"{shown(network)} is not a network such as 10.0.0.1/8 or fd00::1/64")

cdef tuple parse_block(object item):
    """(whether it is IPv4, the lowest address, the prefix length) of an address or a network.

    An interface object is refused: it may be meant as either. So are host bits that are set.
    """
    if not isinstance(item, str):
        know()
    if V4 is not None and is_of(item, Interface):
        raise InvalidValueError(f"{shown(item)} is an address in a network: name either of them")
    if V4 is not None and is_of(item, Address):
        v4, number = parse_address(item)
        return v4, number, 32 if v4 else 128
    if isinstance(item, str) or is_of(item, Network):
        v4, number, prefix = parse_network(item)
        host_bits = (32 if v4 else 128) - prefix
        if number & (1 << host_bits) - 1:
            raise InvalidValueError(f"{shown(item)} has host bits set")
        return v4, number, prefix
    raise InvalidValueError(f"{shown(item)} is neither an address nor a network")

cdef object address_from(bint v4, object number):
    return v4_address(number) if v4 else v6_address(number)


# ---- the conversions

def ip_to_int(ip, /):
    """The 32-bit value of an IPv4Address, of its text or of its 4 bytes in network order.

    Raises InvalidValueError.

    >>> ip_to_int("128.0.0.0") == 2**31
    True
    """
    cdef word n
    if read_v4(ip, &n):
        return from_word(n)
    number = ip
    if isinstance(ip, (bytes, bytearray)):
        packed = private_bytes(ip)
        if len(packed) == 4:
            return int.from_bytes(packed, "big")
    elif is_address(ip) and not is_of(ip, V6):
        v4, number = parse_address(ip, "an IPv4 address")
        if v4:
            return number
    raise InvalidValueError(f"{shown(ip)} is not an IPv4 address")

def int_to_ip(n, /):
    """The IPv4Address of a 32-bit value. Raises InvalidValueError, OutOfRangeError.

    >>> int_to_ip(0xFFFFFFFF)
    IPv4Address('255.255.255.255')
    """
    n = plain_int(n)
    if not 0 <= n <= 0xFFFFFFFF:
        raise OutOfRangeError(f"{shown(n)} is not in 0 to 2**32 - 1")
    return v4_address(n)

def network_range(network, /):
    """The first and the last address of a network, the host bits of which may be set.

    Raises InvalidValueError.

    >>> network_range("10.1.2.3/26")
    (IPv4Address('10.1.2.0'), IPv4Address('10.1.2.63'))
    """
    v4, number, prefix = parse_network(network)
    others = (1 << (32 if v4 else 128) - prefix) - 1
    return address_from(v4, number & ~others), address_from(v4, number | others)

def network_size(mask, /):
    """How many addresses an IPv4 prefix length, a dotted mask or a network covers.

    Raises InvalidValueError, OutOfRangeError.

    >>> network_size(0), network_size("255.255.255.192"), network_size("10.0.0.0/8")
    (4294967296, 64, 16777216)
    """
    cdef uint32_t number
    cdef int length
    if isinstance(mask, str) and parse_v4(mask, &number, &length) == 1:
        bits = number ^ 0xFFFFFFFF
        if bits & bits + 1:
            raise InvalidValueError(f"mask {shown(mask)} is not contiguous")
        return bits + 1
    know()
    if isinstance(mask, str) or is_of(mask, Interface) or is_of(mask, Network):
        if isinstance(mask, str) and "/" not in plain_text(mask):
            raise InvalidValueError(f"{shown(mask)} is neither a mask nor a network")
        v4, number_, prefix = parse_network(mask)
        return 1 << (32 if v4 else 128) - prefix
    prefix = plain_int(mask, "a prefix length, a mask or a network")
    if not 0 <= prefix <= 32:
        raise OutOfRangeError(f"prefix length {shown(prefix)} is not in 0 to 32")
    return 1 << 32 - prefix
