# What a caller gives, checked and converted to plain words, numbers and text before anything
# is changed. A value of the wrong kind is an InvalidValueError, also where a caller's own
# __index__, iterator or clock raises; KeyboardInterrupt and MemoryError pass as they are.
#
# Nothing after a conversion may run a caller's code: what was looked up would be stale.

cdef extern from *:
    """
    #if PY_VERSION_HEX >= 0x030C0000
    #define NA_DIGITS(o) ((o)->long_value.lv_tag)
    #define NA_DIGIT(o, k) ((uint64_t)(o)->long_value.ob_digit[k])
    #define NA_ONE_DIGIT (1 << _PyLong_NON_SIZE_BITS)
    #define NA_TWO_DIGITS (2 << _PyLong_NON_SIZE_BITS)
    #else
    #define NA_DIGITS(o) Py_SIZE(o)
    #define NA_DIGIT(o, k) ((uint64_t)(o)->ob_digit[k])
    #define NA_ONE_DIGIT 1
    #define NA_TWO_DIGITS 2
    #endif

    static int na_wide_word(PyObject *n, uint64_t *out)
    {
        *out = PyLong_AsUnsignedLongLong(n);
        if (*out != (uint64_t)-1 || !PyErr_Occurred())
            return 1;
        PyErr_Clear();
        return 0;
    }

    /* PyLong_AsUnsignedLongLong, inline for what is positive and has at most two digits: every
       IPv4 address. The call alone costs 3 ns, a seventh of a release. 0 for all but an exact
       int of 64 bits. */
    static inline int na_plain_word(PyObject *n, uint64_t *out)
    {
        if (PyLong_CheckExact(n)) {
            PyLongObject *o = (PyLongObject *)n;
            if (NA_DIGITS(o) == NA_ONE_DIGIT) {
                *out = NA_DIGIT(o, 0);
                return 1;
            }
            if (NA_DIGITS(o) == NA_TWO_DIGITS) {
                *out = NA_DIGIT(o, 0) | NA_DIGIT(o, 1) << PyLong_SHIFT;
                return 1;
            }
            return na_wide_word(n, out);
        }
        return 0;
    }

    /* PyLong_FromLong has a short way for small numbers; PyLong_FromUnsignedLongLong has none
       before Python 3.12 and costs 10 ns more. */
    static inline PyObject *na_from_uint64(uint64_t n)
    {
        return n <= LONG_MAX ? PyLong_FromLong((long)n) : PyLong_FromUnsignedLongLong(n);
    }

    #define na_from_uint32(n) PyLong_FromLong((long)(n))

    /* An object that is returned as it is: a Python variable would cost a count up and down. */
    #define na_owned(o) ((PyObject *)(o))

    /* The characters of a text that is pure ASCII, else NULL. */
    #define na_ascii(o) \
        (PyUnicode_IS_COMPACT_ASCII(o) ? (const char *)PyUnicode_1BYTE_DATA(o) : NULL)
    """
    bint plain_word "na_plain_word"(object n, word *out) noexcept
    bint plain_word_at "na_plain_word"(void *n, word *out) noexcept
    object from_word "na_from_uint64"(word)
    void *new_int "na_from_uint64"(word) noexcept
    void *new_small_int "na_from_uint32"(word) noexcept     # of 32 bits
    object owned "na_owned"(void *)
    const char *ascii "na_ascii"(object text) noexcept

cdef extern from "Python.h":
    object PyUnicode_FromObject(object)         # an exact str of a subclass's instance
    Py_ssize_t PyUnicode_GET_LENGTH(object) noexcept
    Py_ssize_t PY_SSIZE_T_MAX
    void PyErr_Clear() noexcept
    int PyGC_Disable() noexcept
    int PyGC_Enable() noexcept

cdef enum:
    TEXT = 64            # characters: the longest text of a network has 49
    SHOWN = 80           # characters of a value that an error shows

cdef object short_repr = Repr()
short_repr.maxstring = short_repr.maxother = short_repr.maxlong = SHOWN


# ---- the short ways

cdef extern from *:
    """
    /* What @cython.critical_section does, without the reference to the object that it takes and
       drops also where there is nothing to lock: 1 ns, of the 3 that an acquire is above an
       empty method. The caller of a method holds a reference already. */
    #ifdef Py_GIL_DISABLED
    typedef PyCriticalSection na_section;
    #define na_enter(section, o) PyCriticalSection_Begin(section, (PyObject *)(o))
    #define na_leave(section) PyCriticalSection_End(section)
    #else
    typedef char na_section;
    #define na_enter(section, o) ((void)(section))
    #define na_leave(section) ((void)(section))
    #endif
    """
    ctypedef struct Section "na_section":
        pass
    void enter "na_enter"(Section *section, void *o) noexcept
    void leave "na_leave"(Section *section) noexcept


# ---- in errors

cdef str shown(object value):
    """A value as an error shows it: its repr, or the beginning of it."""
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            bits = index(value).bit_length()
            if bits > 256:                      # Python refuses to print very long ones
                return f"an integer of {bits} bits"
        text = short_repr.repr(value)
    except Exception:                           # the caller's own __repr__
        text = f"<{type(value).__name__}>"
    return text if len(text) <= SHOWN else text[:SHOWN - 3] + "..."


# ---- text

def is_plain_text(text, Py_ssize_t limit, /):
    """Whether it is an exact str of 1 to `limit` characters, all of ASCII and printable."""
    cdef const char *at
    cdef Py_ssize_t i, n
    if type(text) is not str:
        return False
    at = ascii(text)
    n = PyUnicode_GET_LENGTH(text)
    if at == NULL or not 1 <= n <= limit:
        return False
    for i in range(n):
        if not 32 <= at[i] < 127:
            return False
    return True


# ---- numbers

cdef object plain_int(object n, str what="an integer"):
    """An exact int of whatever stands for one: an enum's member, one of numpy's. A bool is none."""
    if type(n) is int:
        return n
    try:
        if not isinstance(n, bool) and hasattr(type(n), "__index__"):
            return index(n)
    except MemoryError:
        raise
    except Exception as error:
        raise InvalidValueError(f"{shown(n)} is not {what}") from error
    raise InvalidValueError(f"{shown(n)} is not {what}")

cdef int word_from(object n, word *out) except -1:
    n = plain_int(n)
    if not 0 <= n <= ALL:
        raise OutOfRangeError(f"{shown(n)} is not in 0 to 2**64 - 1")
    out[0] = n
    return 0

cdef inline int as_word(object n, word *out) except -1:
    """Any integer of 64 bits; only what is no plain int pays for a second look."""
    if plain_word(n, out):
        return 0
    return word_from(n, out)

cdef bint as_flag(object value, str name) except -1:
    if value is True or value is False:
        return value is True
    raise InvalidValueError(f"{name}={shown(value)} is neither True nor False")

cdef double as_float(object value, str what) except? -1:
    """A number as a C double, be it infinite or none (nan); text and bool are no numbers."""
    if type(value) is float:
        return value
    try:
        if not isinstance(value, (bool, str, bytes)) and (
            hasattr(type(value), "__float__") or hasattr(type(value), "__index__")
        ):
            return float(value)
    except MemoryError:
        raise
    except OverflowError:
        raise OutOfRangeError(f"{what}: {shown(value)} is too large") from None
    except Exception as error:
        raise InvalidValueError(f"{what}: {shown(value)} is not a number") from error
    raise InvalidValueError(f"{what}: {shown(value)} is not a number")


# ---- many

cdef object END = object()

cdef object opened(object items, str what):
    """The iterator of a caller's iterable, for next_of."""
    try:
        return iter(items)
    except (NetallocError, MemoryError):
        raise
    except Exception as error:
        raise InvalidValueError(f"{what}: {shown(items)} cannot be iterated over") from error

cdef object next_of(object iterator, str what):
    """What a caller's iterator yields next, or END; its code may raise anything."""
    try:
        return next(iterator, END)
    except (NetallocError, MemoryError):
        raise
    except Exception as error:
        raise InvalidValueError(f"{what}: iterating raised {shown(error)}") from error

cdef bytes private_bytes(object data):
    """A caller's bytes, copied once unless nothing can change them."""
    if type(data) is bytes:
        return data
    try:
        if PyObject_CheckBuffer(data):
            return memoryview(data).tobytes()
    except MemoryError:
        raise
    except Exception as error:
        raise InvalidValueError(f"{shown(data)} cannot be read as bytes") from error
    raise InvalidValueError(f"{shown(data)} is not bytes")
