# Addresses: made without the constructor's cost, read without a method call, and the
# conversions. `ipaddress` does the parsing; what it refuses is an OutOfRangeError here.

cdef extern from *:
    """
    #include <structmember.h>
    #include <string.h>

    /* The byte offset of a slot if `type.name` is one that holds an object, else 0. */
    static Py_ssize_t na_slot_offset(PyObject *type, const char *name)
    {
        Py_ssize_t offset = 0;
        PyObject *member = PyObject_GetAttrString(type, name);
        if (member == NULL) {
            PyErr_Clear();
            return 0;
        }
        if (Py_TYPE(member) == &PyMemberDescr_Type) {
            PyMemberDef *def = ((PyMemberDescrObject *)member)->d_member;
            if (def->type == T_OBJECT_EX && !(def->flags & READONLY))
                offset = def->offset;
        }
        Py_DECREF(member);
        return offset;
    }

    /* Instances made by na_blank() have nothing but slots: no dict, no items, and the header
       that the collector's own allocation makes. */
    static int na_only_slots(PyObject *o)
    {
        PyTypeObject *type = (PyTypeObject *)o;
        return PyType_IS_GC(type) && type->tp_itemsize == 0 && type->tp_dictoffset == 0
            && (type->tp_flags & Py_TPFLAGS_HEAPTYPE);
    }

    /* The two types and their slots; an offset of 0 where ipaddress is not as expected. */
    static struct na_layout { PyTypeObject *type; Py_ssize_t number, scope; } na_v4, na_v6;

    static void na_learn(PyObject *v4, PyObject *v6)
    {
        na_v4.type = (PyTypeObject *)v4;
        na_v6.type = (PyTypeObject *)v6;
        if (na_only_slots(v4))
            na_v4.number = na_slot_offset(v4, "_ip");
        if (na_only_slots(v6) && (na_v6.scope = na_slot_offset(v6, "_scope_id")) != 0)
            na_v6.number = na_slot_offset(v6, "_ip");
    }

    /* An instance whose slots are all empty; NULL with an error set when memory is short. It
       is not tracked by the collector: it will hold an int and its type, so it can be in no
       cycle that the type is not in for other reasons. That is worth half of the constructor,
       and a million of them cost the collector nothing. */
    static inline PyObject *na_blank(struct na_layout *layout)
    {
        PyObject *o = PyObject_GC_New(PyObject, layout->type);
        if (o != NULL) {
            PyObject **slot = (PyObject **)(o + 1);
            PyObject **stop = (PyObject **)((char *)o + layout->type->tp_basicsize);
            while (slot < stop)
                *slot++ = NULL;
        }
        return o;
    }
    static inline PyObject *na_blank_v4(void) { return na_blank(&na_v4); }
    static PyObject *na_blank_v6(void) { return na_blank(&na_v6); }
    #define NA_SLOT(o, offset) (*(PyObject **)((char *)(o) + (offset)))

    static inline int na_number_v4(PyObject *o, uint32_t n)
    {
        return (NA_SLOT(o, na_v4.number) = PyLong_FromLong((long)n)) == NULL ? -1 : 0;
    }
    static inline void na_number_v6(PyObject *o, PyObject *n)
    {
        Py_INCREF(n);
        NA_SLOT(o, na_v6.number) = n;
        Py_INCREF(Py_None);
        NA_SLOT(o, na_v6.scope) = Py_None;
    }

    static inline int na_is_v4(PyObject *o)
    {
        return Py_TYPE(o) == na_v4.type && na_v4.number && NA_SLOT(o, na_v4.number) != NULL;
    }
    static inline void *na_number_of_v4(PyObject *o) { return NA_SLOT(o, na_v4.number); }
    #define na_quick_v4 (na_v4.number != 0)
    #define na_quick_v6 (na_v6.number != 0)
    """
    void learn "na_learn"(object v4, object v6)
    bint quick_v4_made "na_quick_v4", quick_v6_made "na_quick_v6"
    object blank_v4 "na_blank_v4"()
    void *new_blank_v4 "na_blank_v4"() noexcept
    void drop "Py_XDECREF"(void *)
    object blank_v6 "na_blank_v6"()
    int number_v4 "na_number_v4"(object address, uint32_t n) except -1
    bint number_raw "!na_number_v4"(void *address, uint32_t n) noexcept
    void number_v6 "na_number_v6"(object address, object n)
    bint is_v4 "na_is_v4"(object o)             # exactly an IPv4Address that can be read here
    void *number_of_v4 "na_number_of_v4"(object address)

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *) except NULL

learn(IPv4Address, IPv6Address)

cdef inline object v4_address(uint32_t n):
    """IPv4Address(n), at a third of the price."""
    if not quick_v4_made:
        return IPv4Address(n)
    address = blank_v4()
    number_v4(address, n)
    return address

cdef inline object v6_address(object n):
    if not quick_v6_made:
        return IPv6Address(n)
    address = blank_v6()
    number_v6(address, n)
    return address


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
