# A record as a row of a table: its values, and a checksum over them behind. A row is read and
# written for every record, and in Python its checksum and the look at each value cost as much
# as SQLite does for it.
#
# The checksum is over what ascii() says of the values as a tuple (schema.py has why). That text is
# put together here where all values are ints of 64 bits, None and text without anything that has
# to be escaped; whatever else there is takes the long way.

cdef enum:
    ROW_TEXT = 512           # characters of a row's text; longer ones take the long way
    ROW_WORD = 24            # at most, of a number with what is between it and the next one

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object, int *overflow) except? -1
    object PyObject_ASCII(object)

cdef inline char *put_number(char *at, long long n) noexcept:
    cdef char digits[20]
    cdef int i = 0
    cdef uint64_t left = <uint64_t>n
    if n < 0:
        at[0] = b"-"
        at += 1
        left = 0 - left
    while True:
        digits[i] = <char>(48 + left % 10)
        i += 1
        left //= 10
        if not left:
            break
    while i:
        i -= 1
        at[0] = digits[i]
        at += 1
    return at

cdef char *put_text(char *at, char *end, object text) noexcept:
    """A text in quotes; NULL where it is no such text, or there is no room for it."""
    cdef const char *from_ = ascii(text)
    cdef Py_ssize_t i, n = PyUnicode_GET_LENGTH(text)
    if from_ == NULL or end - at < n + ROW_WORD:
        return NULL
    at[0] = b"'"
    for i in range(n):
        if not 32 <= from_[i] < 127 or from_[i] == 39 or from_[i] == 92:
            return NULL
        at[i + 1] = from_[i]
    at[n + 1] = b"'"
    return at + n + 2

cdef Py_ssize_t put_row(char *buffer, tuple values, Py_ssize_t n) except -1:
    """The text of the first n values; 0 where it takes the long way."""
    cdef char *at = buffer
    cdef char *end = buffer + ROW_TEXT
    cdef int overflow
    cdef long long number
    cdef Py_ssize_t i
    if not n:
        return 0
    at[0] = b"("
    at += 1
    for i in range(n):
        value = values[i]
        if end - at < ROW_WORD:
            return 0
        if type(value) is int:
            number = PyLong_AsLongLongAndOverflow(value, &overflow)
            if overflow:
                return 0
            at = put_number(at, number)
        elif value is None:
            memcpy(at, <const char *>b"None", 4)
            at += 4
        elif type(value) is str:
            at = put_text(at, end, value)
            if at == NULL:
                return 0
        else:
            return 0
        at[0] = b","
        at[1] = b" "
        at += 2
    if n > 1:
        at -= 2
    else:
        at -= 1              # (1,) is a tuple of one
    at[0] = b")"
    return at + 1 - buffer

cdef object row_crc(tuple values, Py_ssize_t n, seed):
    """The checksum of the first n values; None where it takes the long way."""
    cdef char buffer[ROW_TEXT + ROW_WORD]
    cdef Py_ssize_t length = put_row(buffer, values, n)
    if not length:
        return None
    return crc32(PyBytes_FromStringAndSize(buffer, length), seed)

def row_checksum(tuple values not None, seed, /):
    """The CRC-32 of ascii(values), begun with `seed`."""
    crc = row_crc(values, len(values), seed)
    if crc is None:
        crc = crc32(ascii_bytes(values), seed)
    return crc

cdef bytes ascii_bytes(tuple values):
    return PyObject_ASCII(values).encode()


@cython.final
cdef class RowMaker:
    """Makes rows of a kind of records, and records of its rows, where that is a plain matter.

    Each method says None where it is not, or where the row is damaged, and nothing of it is wrong
    for sure: then the long way finds out.
    """

    cdef type kind
    cdef Py_ssize_t width, ordinal
    cdef object seed

    def __init__(self, type kind, seed):
        fields = kind._fields
        self.kind = kind
        self.width = len(fields)
        self.ordinal = fields.index("ordinal") if "ordinal" in fields else -1
        self.seed = seed

    def row(self, record, /):
        """The values of a record and their checksum, as the table has them; or None."""
        if not isinstance(record, tuple) or len(<tuple>record) != self.width:
            return None
        crc = row_crc(<tuple>record, self.width, self.seed)
        return None if crc is None else (*<tuple>record, crc)

    def rows(self, list records not None, /):
        """The rows of records; None where not all are plain."""
        cdef list made = []
        for record in records:
            row = self.row(record)
            if row is None:
                return None
            made.append(row)
        return made

    def change(self, old, new, /):
        """At which places the rows of two records differ; the new values there and the old row."""
        cdef Py_ssize_t i
        cdef tuple before, after
        cdef list places = [], values = []
        before, after = self.row(old), self.row(new)
        if before is None or after is None:
            return None
        for i in range(self.width + 1):
            value = after[i]
            if value is not before[i] and value != before[i]:
                places.append(i)
                values.append(value)
        if not places:
            places.append(self.width)
            values.append(after[self.width])
        values.extend(before)
        return tuple(places), tuple(values)

    def record(self, tuple row not None, /):
        """The record of a row whose checksum is right; or None."""
        if len(row) != self.width + 1:
            return None
        crc = row_crc(row, self.width, self.seed)
        if crc is None or crc != row[self.width]:
            return None
        if self.ordinal >= 0 and type(row[self.ordinal]) is int and row[self.ordinal] < 0:
            return None
        return na_record(self.kind, row[:self.width])
