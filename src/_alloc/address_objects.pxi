# Address objects: made without the constructor's cost, read without a method call. Where
# `ipaddress` is not laid out as expected, its constructors are called after all.

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
    static void na_give_v4(PyObject *o, PyObject *n)
    {
        Py_INCREF(n);
        NA_SLOT(o, na_v4.number) = n;
    }
    static void na_give_v6(PyObject *o, PyObject *n)
    {
        Py_INCREF(n);
        NA_SLOT(o, na_v6.number) = n;
        Py_INCREF(Py_None);
        NA_SLOT(o, na_v6.scope) = Py_None;
    }

    /* What an object holds that is exactly an IPv4Address, if that is a number. */
    static inline int na_read_v4(PyObject *o, uint64_t *out)
    {
        return Py_TYPE(o) == na_v4.type && na_v4.number && NA_SLOT(o, na_v4.number) != NULL
            && na_plain_word(NA_SLOT(o, na_v4.number), out);
    }

    /* Whether it is exactly an IPv6Address without a zone, and its number. */
    static inline int na_read_v6(PyObject *o)
    {
        return Py_TYPE(o) == na_v6.type && na_v6.number && NA_SLOT(o, na_v6.number) != NULL
            && PyLong_CheckExact(NA_SLOT(o, na_v6.number)) && NA_SLOT(o, na_v6.scope) == Py_None;
    }
    static inline PyObject *na_number_of_v6(PyObject *o)
    {
        Py_INCREF(NA_SLOT(o, na_v6.number));
        return NA_SLOT(o, na_v6.number);
    }
    #define na_quick_v4 (na_v4.number != 0)
    #define na_quick_v6 (na_v6.number != 0)
    """
    void learn "na_learn"(object v4, object v6)
    bint quick_v4 "na_quick_v4", quick_v6 "na_quick_v6"
    object blank_v4 "na_blank_v4"()
    void *new_blank_v4 "na_blank_v4"() noexcept
    void drop "Py_XDECREF"(void *)
    object blank_v6 "na_blank_v6"()
    int number_v4 "na_number_v4"(object address, uint32_t n) except -1
    bint number_raw "!na_number_v4"(void *address, uint32_t n) noexcept
    void give_v4 "na_give_v4"(object address, object n)
    void give_v6 "na_give_v6"(object address, object n)
    bint read_v4 "na_read_v4"(object o, word *number) noexcept
    bint read_v6 "na_read_v6"(object o) noexcept
    object number_v6 "na_number_of_v6"(object o)

cdef object V4, V6                                  # the classes; None until they are needed
cdef object Address, Interface, Network, ipaddress  # pairs of classes, and the module

cdef int know() except -1:
    """Load `ipaddress`, at the first need: one that only opens and allocates has none.

    With what it loads itself it takes a tenth of such a process's time. Where this is called,
    any code may run.
    """
    global V4, V6, Address, Interface, Network, ipaddress
    if V4 is None:
        import ipaddress
        Address = (ipaddress.IPv4Address, ipaddress.IPv6Address)
        Interface = (ipaddress.IPv4Interface, ipaddress.IPv6Interface)
        Network = (ipaddress.IPv4Network, ipaddress.IPv6Network)
        learn(ipaddress.IPv4Address, ipaddress.IPv6Address)
        V6 = ipaddress.IPv6Address
        V4 = ipaddress.IPv4Address              # the last one, as it says that all are there
    return 0

cdef inline object v4_address(uint32_t n):
    """IPv4Address(n), at a third of the price."""
    if not quick_v4:
        know()
    if not quick_v4:
        return V4(n)
    address = blank_v4()
    number_v4(address, n)
    return address

cdef inline object v6_address(object n):
    if not quick_v6:
        know()
    if not quick_v6:
        return V6(n)
    address = blank_v6()
    give_v6(address, n)
    return address

cdef inline object blank_address(bint v4):
    """An address without its number, or None where that has to be made with it: for allocators.

    Making it may run the collector, and with it any code; giving it its number runs none.
    """
    if v4:
        return blank_v4() if quick_v4 else None
    return blank_v6() if quick_v6 else None

cdef inline int give_number(bint v4, object address, object n) except -1:
    if v4:
        give_v4(address, n)
    else:
        give_v6(address, n)
    return 0
