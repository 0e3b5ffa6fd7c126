# Parsing and the conversions. `ipaddress` knows every spelling; what it refuses is an
# OutOfRangeError here.

# ---- parsing

cdef object as_v4(object ip):
    if isinstance(ip, IPv4Address):
        return ip
    try:
        if isinstance(ip, (bytes, bytearray)) and len(ip) != 4:
            raise AddressValueError
        if isinstance(ip, (str, bytes, bytearray)):
            return IPv4Address(bytes(ip) if isinstance(ip, bytearray) else ip)
    except AddressValueError:
        pass
    raise OutOfRangeError(f"{ip!r} is not an IPv4 address")

cdef bint quick_v4(object text, uint32_t *ip, int *prefix) except -1:
    """Read "a.b.c.d/p" in plain decimal; anything else is left to ipaddress.

    `ipaddress` takes 10 us for it, more than all else that an allocator costs to make.
    """
    cdef Py_ssize_t size
    cdef const char *s = PyUnicode_AsUTF8AndSize(text, &size)
    cdef const char *end = s + size
    cdef uint32_t value
    cdef int part, digits
    ip[0] = 0
    for part in range(5):
        value, digits = 0, 0
        while s < end and 48 <= s[0] <= 57 and digits < 3:
            if digits and value == 0:
                return False                # a leading zero: octal to some
            value = value * 10 + (s[0] - 48)
            digits += 1
            s += 1
        if digits == 0 or value > (255 if part < 4 else 32):
            return False
        if part == 4:
            prefix[0] = value
            return s == end
        ip[0] = ip[0] << 8 | value
        if s == end or s[0] != (46 if part < 3 else 47):
            return False
        s += 1
    return False

cdef object as_interface(object network):
    """An IPv4Interface or IPv6Interface, of which the address part may be the gateway's."""
    if isinstance(network, (IPv4Interface, IPv6Interface)):
        return network
    try:
        if isinstance(network, (str, IPv4Network, IPv6Network)):
            return ip_interface(str(network))
    except (AddressValueError, NetmaskValueError, ValueError):
        pass
    raise OutOfRangeError(f"{network!r} is not a network such as 10.0.0.1/8 or fd00::1/64")


# ---- the seed's conversions

def ip_to_int(ip, /):
    """The 32-bit value of an IPv4Address, of its text or of its 4 bytes in network order.

    Raises OutOfRangeError.

    >>> ip_to_int("128.0.0.0") == 2**31
    True
    """
    return int(as_v4(ip))

def int_to_ip(n, /):
    """The IPv4Address of a 32-bit value. Raises OutOfRangeError.

    >>> int_to_ip(0xFFFFFFFF)
    IPv4Address('255.255.255.255')
    """
    n = index(n)
    if not 0 <= n <= 0xFFFFFFFF:
        raise OutOfRangeError(f"{n} is not in 0 to 2**32 - 1")
    return v4_address(n)

def network_range(network, /):
    """The first and the last address of a network, the host bits of which may be set.

    Raises OutOfRangeError.

    >>> network_range("10.1.2.3/26")
    (IPv4Address('10.1.2.0'), IPv4Address('10.1.2.63'))
    """
    net = as_interface(network).network
    return net.network_address, net.broadcast_address

def network_size(mask, /):
    """How many addresses an IPv4 prefix length, a dotted mask or a network covers.

    Raises OutOfRangeError.

    >>> network_size(0), network_size("255.255.255.192"), network_size("10.0.0.0/8")
    (4294967296, 64, 16777216)
    """
    if isinstance(mask, str) and "/" not in mask:
        bits = ~ip_to_int(mask) & 0xFFFFFFFF
        if bits & bits + 1:
            raise OutOfRangeError(f"mask {mask} is not contiguous")
        return bits + 1
    if isinstance(mask, int):
        if not 0 <= mask <= 32:
            raise OutOfRangeError(f"prefix length {mask} is not in 0 to 32")
        return 1 << 32 - mask
    return as_interface(mask).network.num_addresses
