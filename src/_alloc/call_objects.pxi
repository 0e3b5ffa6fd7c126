# What every allocation makes: a record, the state of a change, that of an interface. Made in C
# they cost a third, and what is kept of them is off the collector's list.

cdef extern from *:
    """
    static PyObject *na_record(PyObject *kind, PyObject *values)
    {
        Py_ssize_t n = PyTuple_GET_SIZE(values);
        PyObject *record = ((PyTypeObject *)kind)->tp_alloc((PyTypeObject *)kind, n);
        if (record != NULL) {
            PyObject_GC_UnTrack(record);
            for (Py_ssize_t i = 0; i < n; i++) {
                PyObject *value = PyTuple_GET_ITEM(values, i);
                Py_INCREF(value);
                PyTuple_SET_ITEM(record, i, value);
            }
        }
        return record;
    }
    """
    object na_record(object kind, tuple values)


@cython.final
cdef class RecordMaker:
    """Makes the records of a named tuple's class, which the collector need not know."""

    cdef type kind
    cdef Py_ssize_t width

    def __init__(self, type kind):
        if not issubclass(kind, tuple):
            raise TypeError(f"{kind.__name__} is no class of tuples")
        self.kind = kind
        self.width = len(kind._fields)

    def make(self, tuple values not None, /):
        """The record with these values."""
        if len(values) != self.width:
            raise TypeError(f"{len(values)} values for a {self.kind.__name__}")
        return na_record(self.kind, values)


cdef class InterfaceState:
    """A lease and the service that it is of, unknown to the collector where there is no need.

    Half a million objects would be gone through at each full collection, which takes 0.3 s.
    There is need where `leases.calls_back`: a caller's object stands behind the service, and
    may lead back to this one.
    """

    cdef public object _leases, _lease, _labels
    cdef public bint _released
    cdef object __weakref__

    def __cinit__(self, leases, lease, labels=None):
        self._leases = leases
        self._lease = lease
        self._labels = labels
        PyObject_GC_UnTrack(<void *>lease)
        if not leases.calls_back:
            PyObject_GC_UnTrack(<void *>self)


@cython.final
@cython.freelist(8)
cdef class Change:
    """What one operation does: records in `tx`, the kernel's part in `add` and `remove`.

    `undo` is called when the change is not made after all, `after` when it is. Each list is
    made when it is asked for: most changes need none.
    """

    cdef public object tx
    cdef bint committed, is_among_calls
    cdef readonly list additions, removals, finishing   # None until they are asked for
    cdef list undoing

    def __cinit__(self, tx=None):
        self.tx = tx

    @property
    def add(self):
        """What the kernel is to get."""
        if self.additions is None:
            self.additions = []
        return self.additions

    @add.setter
    def add(self, list mappings):
        self.additions = mappings

    @property
    def remove(self):
        """What the kernel is to lose."""
        if self.removals is None:
            self.removals = []
        return self.removals

    @remove.setter
    def remove(self, list mappings):
        self.removals = mappings

    @property
    def undo(self):
        """What is called when the change is not made after all."""
        if self.undoing is None:
            self.undoing = []
        return self.undoing

    @property
    def after(self):
        """What is called when the change is made."""
        if self.finishing is None:
            self.finishing = []
        return self.finishing
