# RecordTable: records found by their key, or by the first fields of an index, in memory.
#
# A record is a tuple of exact ints, texts and None, so that it is part of no cycle and needs
# no collector: what is kept here is taken off its list, or half a million records would be
# gone through at each full collection. For the same reason the dicts here are off it.
#
# A path is the fields of a key; or those of an index, and after them what is left of the
# key's: no two records have the same. Along each path the records stand in dicts, one level a
# field, but where there is only one record it stands for all the levels beneath. So an index
# by owner and key costs one entry of a dict for an owner that has one record, and one level
# more for an owner that has more of them: finding, entering and removing is O(fields).
#
# Records that time goes by are in a chain besides, in that order. A link that is taken out
# remembers its neighbours: changes are undone from the last to the first, so that it finds
# them as it left them.
#
# Of an index that is gone through downward as well, the numbers that its last field has are in a
# Bitmap besides, for dicts know no order.
#
# A change is noted in the journal before it is made. No Python code runs in between, for the
# values are of exact types, and so no interrupt comes either.

cdef extern from "Python.h":
    void PyObject_GC_UnTrack(void *)
    void *PyDict_GetItemWithError(object, object) except? NULL

cdef enum:
    DEEPEST = 8              # fields of a path
    SPARSE = 300             # bytes of a dict for each of its entries: eight times what it needs


@cython.final
@cython.no_gc
cdef class _Branch:           # records with the same values so far, by the next one
    cdef dict at             # value -> _Branch, _Link or record

    def __cinit__(self):
        self.at = {}


@cython.final
@cython.no_gc
cdef class _Link:             # a record in a chain
    cdef object record
    cdef void *before        # _Link or NULL; what is in a chain is held by the dicts
    cdef void *after
    cdef bint linked


@cython.final
@cython.no_gc
cdef class _Chain:
    cdef void *first
    cdef void *last


@cython.final
@cython.no_gc
cdef class _Order:
    cdef _Path path          # of an index of two fields
    cdef dict at             # value of the first -> Bitmap of the numbers of the second

    def __cinit__(self, _Path path):
        self.path = path
        self.at = {}


@cython.final
@cython.no_gc
cdef class _Path:
    cdef int fields[DEEPEST]
    cdef int n
    cdef _Branch root

    def __cinit__(self, fields):
        self.n = len(fields)
        assert 0 < self.n <= DEEPEST
        for i, field in enumerate(fields):
            self.fields[i] = field
        self.root = _Branch()


cdef inline object record_of(object entry):
    return (<_Link>entry).record if type(entry) is _Link else entry

cdef inline object item(object record, int i):
    return (<tuple>record)[i]

cdef inline int hang(_Branch branch, object value, object entry) except -1:
    branch.at[value] = entry
    PyObject_GC_UnTrack(<void *>branch.at)
    return 0

cdef bint enter_path(_Path path, object entry) except -1:
    """Put an entry in; False where another has its path. One that is there stays."""
    record = record_of(entry)
    cdef _Branch branch = path.root, deeper
    cdef int depth = 0
    while True:
        value = item(record, path.fields[depth])
        found = PyDict_GetItemWithError(branch.at, value)
        if found == NULL:
            hang(branch, value, entry)
            return True
        one = <object>found
        depth += 1
        if type(one) is _Branch:
            branch = <_Branch>one
        elif one is entry:
            return True
        elif depth == path.n:
            return False
        else:
            deeper = _Branch()
            hang(deeper, item(record_of(one), path.fields[depth]), one)
            hang(branch, value, deeper)
            branch = deeper

cdef int leave_path(_Path path, object entry) except -1:
    """Take an entry out, and the levels that get empty; one that is not there is no error."""
    record = record_of(entry)
    cdef void *above[DEEPEST]
    cdef _Branch branch = path.root
    cdef int depth = 0
    while True:
        value = item(record, path.fields[depth])
        found = PyDict_GetItemWithError(branch.at, value)
        if found == NULL:
            return 0
        above[depth] = <void *>branch
        if type(<object>found) is not _Branch:
            break
        branch = <_Branch>found
        depth += 1
    if <object>found is not entry:
        return 0
    del branch.at[value]
    while depth and not branch.at:
        depth -= 1
        branch = <_Branch>above[depth]
        del branch.at[item(record, path.fields[depth])]
    cdef Py_ssize_t n = len(branch.at)
    if n >= 64 and n & (n - 1) == 0:
        shrink(branch)
    return 0

cdef int shrink(_Branch branch) except -1:
    """A dict keeps the room it once needed, and going through it costs as much as then."""
    try:
        if branch.at.__sizeof__() > SPARSE * len(branch.at):
            branch.at = dict(branch.at)
            PyObject_GC_UnTrack(<void *>branch.at)
    except MemoryError:
        pass                 # it stays large
    return 0

cdef object find_first(_Path path, tuple values, int n):
    """What has these first n values: a _Branch with all of them, one entry, or None."""
    cdef _Branch branch = path.root
    cdef int depth = 0, i
    while True:
        found = PyDict_GetItemWithError(branch.at, values[depth])
        if found == NULL:
            return None
        one = <object>found
        depth += 1
        if type(one) is not _Branch:
            record = record_of(one)
            for i in range(depth, n):
                if item(record, path.fields[i]) != values[i]:
                    return None
            return one
        if depth == n:
            return one
        branch = <_Branch>one

cdef inline object same_path(_Path path, object record):
    """The entry whose path has the same values as that of a record, or None."""
    return same_start(path, record, path.n)

cdef object same_start(_Path path, object record, int n):
    """What has the same first n values as a record: a _Branch, the one entry, or None."""
    cdef _Branch branch = path.root
    cdef int depth = 0, i
    while True:
        found = PyDict_GetItemWithError(branch.at, item(record, path.fields[depth]))
        if found == NULL:
            return None
        one = <object>found
        depth += 1
        if type(one) is _Branch:
            if depth == n:
                return one
            branch = <_Branch>one
            continue
        other = record_of(one)
        for i in range(depth, n):
            if item(other, path.fields[i]) != item(record, path.fields[i]):
                return None
        return one

cdef int put_in_order(_Order order, object record) except -1:
    """Make the numbers agree with the path, to which a record has come or which it has left."""
    cdef Bitmap numbers = order.at.get(item(record, order.path.fields[0]))
    cdef Status status = OK
    cdef word i
    as_word(item(record, order.path.fields[1]), &i)
    if same_start(order.path, record, 2) is None:
        if numbers is not None:
            status = tree_release(&numbers.tree, i)
    else:
        if numbers is None:
            numbers = order.at[item(record, order.path.fields[0])] = Bitmap(2**64)
        status = tree_reserve(&numbers.tree, i)
    if status == NO_MEMORY:
        raise MemoryError
    return 0

cdef bint gather_records(_Branch branch, list into, Py_ssize_t limit) except -1:
    """Add the records of a branch to a list, until it has as many; whether there is room."""
    for one in branch.at.values():
        if type(one) is _Branch:
            if not gather_records(<_Branch>one, into, limit):
                return False
        else:
            into.append(record_of(one))
            if len(into) == limit:
                return False
    return True


@cython.final
cdef class RecordTable:
    """Records of one kind, each a named tuple of ints, texts and None."""

    cdef object kind
    cdef Py_ssize_t width
    cdef list journal
    cdef list paths          # that of the key first
    cdef dict by             # names of fields -> (path, how many of its fields), or a field's place
    cdef dict downward       # names of fields -> _Order
    cdef list orders         # all of these
    cdef int time            # the field that the chains are ordered by, or -1
    cdef int group           # the field that tells the chains apart; -1 for one of all records
    cdef dict chains

    def __init__(self, kind, tuple key, tuple indexes, list journal, tuple descending=()):
        fields = kind._fields
        self.kind = kind
        self.width = len(fields)
        self.journal = journal
        self.paths = []
        self.by = {}
        self.downward = {}
        self.orders = []
        self.chains = {}
        self.time = fields.index(key[0]) if len(key) == 1 else -1
        self.group = -1
        for index in (key, *indexes):
            if index[len(index) - 1].endswith("_ns"):
                self.group, self.time = map(fields.index, index)
                self.by[index[:1]] = None
                continue
            whole = (*index, *[name for name in key if name not in index])
            path = _Path([fields.index(name) for name in whole])
            self.paths.append(path)
            for n in range(1, len(index) + 1):
                self.by.setdefault(index[:n], (path, n))
            if index in descending:
                assert len(index) == 2
                self.downward[index] = _Order(path)
                self.orders.append(self.downward[index])

    # ---- looking

    def __len__(self):
        """How many there are on the first level: 0 where there are none."""
        return len((<_Path>self.paths[0]).root.at)

    def get(self, *key):
        """The record of that key, or None."""
        cdef _Path path = self.paths[0]
        if len(key) != path.n:
            raise TypeError(f"a key of {self.kind.__name__} has {path.n} values, not {len(key)}")
        return record_of(find_first(path, key, path.n))

    def where(self, *fields, tuple equal, Py_ssize_t limit=-1):
        """Those whose first fields of the key, or of an index, have these values. O(found)."""
        cdef list found = []
        place = self.by[fields]
        if len(equal) != len(fields):
            raise TypeError(f"{len(equal)} values for {len(fields)} fields")
        if limit == 0:
            return found
        if place is None:
            return self.chained(self.chains.get(equal[0]), limit)
        path, n = <tuple>place
        one = find_first(<_Path>path, equal, n)
        if type(one) is _Branch:
            gather_records(<_Branch>one, found, limit)
        elif one is not None:
            found.append(record_of(one))
        return found

    def up_to(self, *fields, tuple equal, Py_ssize_t limit):
        """Those with the first value, and the other at most; the greatest first. O(found)."""
        cdef _Order order = self.downward[fields]
        cdef Bitmap numbers
        cdef list found = []
        cdef word i
        first, number = equal
        numbers = order.at.get(first)
        as_word(number, &i)
        if numbers is None:
            return found
        while len(found) < limit and previous_set(&numbers.tree, i, &i):
            one = find_first(order.path, (first, from_word(i)), 2)
            if type(one) is _Branch:
                gather_records(<_Branch>one, found, limit)
            else:
                found.append(record_of(one))
            if i == 0:
                break
            i -= 1
        return found

    def oldest(self, Py_ssize_t limit):
        """The first ones by key."""
        if self.time >= 0 and self.group < 0:
            return self.chained(self.chains.get(None), limit) if limit else []
        cdef _Path path = self.paths[0]
        order = [path.fields[i] for i in range(path.n)]
        return sorted(self.all(), key=lambda record: [record[i] for i in order])[:limit]

    def all(self):
        """Every record."""
        cdef list found = []
        gather_records((<_Path>self.paths[0]).root, found, -1)
        return found

    cdef list chained(self, chain, Py_ssize_t limit):
        cdef list found = []
        cdef void *at = NULL if chain is None else (<_Chain>chain).first
        while at != NULL and len(found) != limit:
            found.append((<_Link>at).record)
            at = (<_Link>at).after
        return found

    # ---- changing

    def add(self, records):
        """Put new records in. Raises StoreError where one of that key is there."""
        for record in records:
            self.add_one(record)

    cdef int add_one(self, record) except -1:
        cdef _Path path = self.paths[0]
        cdef _Link link
        self.check(record)
        entry = record
        if self.time >= 0:
            entry = link = _Link()
            link.record = record
        PyObject_GC_UnTrack(<void *>record)
        self.journal.append((self, entry, True))
        if not enter_path(path, entry):
            self.journal.pop()
            key = tuple([item(record, path.fields[i]) for i in range(path.n)])
            raise StoreError(f"there is a {self.kind.__name__} {key} already")
        self.enter_everywhere(entry, 1)
        return 0

    def remove(self, records):
        """Take records out. Raises StoreError where one is not there."""
        for record in records:
            if not self.discard_one(record):
                raise StoreError(f"there is no {record}")

    def discard(self, record, /):
        """Take a record out that is there as given; whether it was."""
        return self.discard_one(record)

    def replace(self, old, new, /):
        """Put another record in the place of one that is there as given; whether it was."""
        self.check(new)
        if not self.discard_one(old):
            return False
        self.add_one(new)
        return True

    def clear(self):
        """Take all records out. O(records)."""
        self.remove(self.all())

    cdef bint discard_one(self, record) except -1:
        self.check_shape(record)
        entry = same_path(self.paths[0], record)
        if entry is None or (record_of(entry) is not record and record_of(entry) != record):
            return False
        self.journal.append((self, entry, False))
        self.leave_everywhere(entry)
        return True

    def restore(self, tuple note, /):
        """Undo what a note is of, as far as it was done: nothing of it is no error."""
        if note[2]:
            self.leave_everywhere(note[1])
        else:
            self.enter_everywhere(note[1], 0)

    cdef int check_shape(self, record) except -1:
        if not isinstance(record, tuple) or len(<tuple>record) != self.width:
            raise TypeError(f"{shown(record)} is no {self.kind.__name__}")
        return 0

    cdef int check(self, record) except -1:
        self.check_shape(record)
        for value in <tuple>record:
            if value is not None and type(value) is not int and type(value) is not str:
                raise TypeError(f"{shown(value)} in a {self.kind.__name__} is not int, str or None")
        cdef word number
        for order in self.orders:
            as_word(item(record, (<_Order>order).path.fields[1]), &number)
        return 0

    cdef int enter_everywhere(self, entry, Py_ssize_t first) except -1:
        for i in range(first, len(self.paths)):
            enter_path(<_Path>self.paths[i], entry)
        for order in self.orders:
            put_in_order(<_Order>order, record_of(entry))
        if self.time >= 0:
            self.link(<_Link>entry)
        return 0

    cdef int leave_everywhere(self, entry) except -1:
        cdef _Link link
        if self.time >= 0:
            link = <_Link>entry
            if link.linked:
                self.unlink(link)
        for path in self.paths:
            leave_path(<_Path>path, entry)
        for order in self.orders:
            put_in_order(<_Order>order, record_of(entry))
        return 0

    # ---- in order

    cdef _Chain chain_of(self, record):
        group = None if self.group < 0 else item(record, self.group)
        chain = self.chains.get(group)
        if chain is None:
            chain = self.chains[group] = _Chain()
        return chain

    cdef int link(self, _Link link) except -1:
        """Where it was, if it was taken out before; else the last of its moment."""
        cdef _Chain chain = self.chain_of(link.record)
        cdef void *before
        if link.linked:
            return 0
        if link.before == NULL and link.after == NULL:
            time = item(link.record, self.time)
            before = chain.last
            while before != NULL and item((<_Link>before).record, self.time) > time:
                before = (<_Link>before).before
            link.before = before
            link.after = chain.first if before == NULL else (<_Link>before).after
        if link.before == NULL:
            chain.first = <void *>link
        else:
            (<_Link>link.before).after = <void *>link
        if link.after == NULL:
            chain.last = <void *>link
        else:
            (<_Link>link.after).before = <void *>link
        link.linked = True
        return 0

    cdef int unlink(self, _Link link) except -1:
        """Take it out; it keeps its neighbours."""
        cdef _Chain chain = self.chain_of(link.record)
        if link.before == NULL:
            chain.first = link.after
        else:
            (<_Link>link.before).after = link.after
        if link.after == NULL:
            chain.last = link.before
        else:
            (<_Link>link.after).before = link.before
        link.linked = False
        return 0
