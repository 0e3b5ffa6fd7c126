# What every change of a file needs: statements run over one cursor, the state of a transaction,
# and the texts that are written at its end.

cdef class SqlRunner:
    """Statements over one cursor of a connection; what goes wrong is raised in our own words.

    `_faults` are the errors that are translated, by `_translated(error)`.
    """

    cdef readonly object _raw, _cursor
    cdef public object full     # whether commits sync, once that was said
    cdef object run, run_many, fetch
    cdef public tuple _faults

    def _begin(self, raw, tuple faults):
        """Begin to use a connection of sqlite3's."""
        self._raw = raw
        self._cursor = raw.cursor()     # one for all: to make one costs 0.3 microseconds
        self.run = self._cursor.execute
        self.run_many = self._cursor.executemany
        self.fetch = self._cursor.fetchall
        self._faults = faults

    def execute(self, sql, values=(), /):
        """Run a statement that answers nothing."""
        try:
            self.run(sql, values)
        except self._faults as error:
            raise self._translated(error) from error

    def change(self, sql, values, /):
        """Run a statement; how many rows it changed."""
        try:
            self.run(sql, values)
            return self._cursor.rowcount
        except self._faults as error:
            raise self._translated(error) from error

    def many(self, sql, values, /):
        """Run a statement for each of the values; how many rows changed."""
        try:
            self.run_many(sql, values)
            return self._cursor.rowcount
        except self._faults as error:
            raise self._translated(error) from error

    def rows(self, sql, values=(), /):
        """All rows of a query."""
        try:
            self.run(sql, values)
            return self.fetch()
        except self._faults as error:
            raise self._translated(error) from error

    def commit(self, list done not None, /):
        """Commit, and put something into `done`: one step, which no interrupt divides."""
        try:
            self.run("COMMIT")
        except self._faults as error:
            raise self._translated(error) from error
        done.append(None)


cdef class FileChangeState:
    """What a transaction of a file knows; see store/sqlite/transaction.py."""

    cdef public object owner, ended, operation, boot, thread
    cdef public object dirty, sequence
    cdef public object bitmap, names, known, drop, table
    cdef public bint over, _abandoned, _said
    cdef public list _done      # has something in it from the very moment of the commit
    cdef public object _connection, _end_of_boot, _lock, _path, _target, _touched, _written
    cdef dict counters

    def __cinit__(self, path, connection, lock, owner, end_of_boot=None):
        bitmaps = connection.bitmaps
        self._path = path
        self._connection = connection
        self._lock = lock
        self.owner = owner
        self._end_of_boot = end_of_boot
        self.thread = PyThread_get_thread_ident()
        self.dirty = self._touched = NONE_OF_THEM
        self.operation = self.boot = ""
        self.sequence = self._target = self._written = 0
        self._done = []
        self.bitmap = bitmaps.bitmap
        self.names = bitmaps.names
        self.known = bitmaps.known
        self.drop = bitmaps.drop
        self.table = connection.table
        self.counters = connection.counters

    def next(self, counter, n=1):
        """The first of n numbers that this counter never gave before."""
        first = self.counters.get(counter, 1)
        self.counters[counter] = first + n
        return first

    def last(self, counter, /):
        """The last number that this counter gave, 0 before the first."""
        return self.counters.get(counter, 1) - 1

    @property
    def committed(self):
        """Whether the change is in the file, even where commit() was interrupted after."""
        return len(self._done) > 0

    def state(self, mark, /):
        """Read the state row; the boot it belongs to. Raises StoreError for an old file."""
        connection = self._connection
        self.sequence = connection.begin()
        self.boot = connection.boot
        if mark is not None and (
            self.sequence < mark.sequence or mark.store != self.counters.get("store", 0)
        ):
            self._compare(mark)
        self._written = connection.version
        return self.boot

    def start(self, operation, mark, boot, /):
        """Read the state, say who is at it, and end the last boot if this is another one."""
        self.state(mark)
        self.operation = operation
        said = self._lock.says_who
        if self.boot != boot:
            self.boot = boot
            self._written = -1
            if self._end_of_boot is not None:
                self._end_of_boot(self)
            self.dirty = self._all_networks()
            said = False
        elif mark is None or not mark.known or mark.boot != boot:
            self.dirty = self._all_networks()   # nothing is known of the last writer
            said = False
        else:
            self.dirty = mark.dirty
        self._said = True    # from here on: a file that was refused has said nothing new
        if not said:
            self._mark(getpid(), self.dirty)

    def commit(self):
        """Make the change last; on an error nothing of it is there."""
        if self.over or self._abandoned:
            self._check_under_way()
        connection = self._connection
        try:
            if connection.version == self._written:
                connection.end_unchanged()
                self._done.append(None)
            else:
                self._target = self.sequence + 1
                connection.write(self._target, self.boot, self._done)
                self.sequence = self._target
        except BaseException:
            if self.ended is not None:
                self.rollback()
            raise
        self._touched = NONE_OF_THEM
        try:
            self._finish()
        except StoreError as error:
            self._not_said(error)
        if self.ended is not None:
            self.ended()

    def _finish(self):
        """Say that nothing is going on any more, and what is left to be looked at."""
        if self._said:
            self._mark(0, self.dirty | self._touched if self._touched else self.dirty)
        self.over = True

cdef object NONE_OF_THEM = frozenset()


cdef class FileTurn:
    """A change of a file in its turn: the thread's, then the process's; see SqliteStore.run."""

    cdef public object timeout, boot, path, _file, _end_of_boot
    cdef public bint _closed

    def _start(self, operation, durable):
        """A transaction of a change, begun. The caller has the thread's turn."""
        cdef SqlRunner connection
        file = self._file
        mark = file.lock.enter(operation, self.timeout, file.check_there)
        connection = file.writer()
        if connection._raw.in_transaction:
            connection.rollback()       # a change whose undoing was interrupted
        if durable is not connection.full:
            connection.sync(full=durable)
        connection.execute("BEGIN IMMEDIATE")
        tx = file.writing = self._transaction(connection)
        tx.start(operation, mark, self.boot)
        return tx

    def run(self, operation, work, *, durable=False):
        """Make a change, when those before are done; see Store."""
        file = self._file
        if self._closed:
            self._check_open()
        turn = file.turn
        if not turn.acquire(True, self.timeout):
            raise self._waited(operation)
        try:
            if self._closed or file.changing:
                raise self._refusal(operation)
            file.changing = PyThread_get_thread_ident()
            try:
                tx = self._start(operation, durable)
                result = work(tx)
                if not tx.over:
                    tx.commit()
                return result
            except BaseException as error:
                self._undo(error)
                raise
            finally:
                # What undo() does in good order, and may be interrupted in, happens in any case.
                try:
                    file.abort()
                except self._faults:
                    pass         # the next change finds out what is wrong with the connection
                finally:
                    file.writing = None
                    try:
                        file.lock.give()
                    finally:
                        file.changing = 0
        finally:
            turn.release()


def checked_line(str text not None, Py_ssize_t length, /):
    """A text with its checksum behind it, and spaces up to `length`: a line of bytes."""
    cdef bytes data = text.encode()
    cdef Py_ssize_t i, n = len(data), size = max(length, n + 10)
    cdef uint32_t crc = crc32(data)
    cdef bytes line = PyBytes_FromStringAndSize(NULL, size)
    cdef char *at = PyBytes_AS_STRING(line)
    memcpy(at, PyBytes_AS_STRING(data), n)
    memset(at + n, 32, size - n)
    at[n] = b"|"
    for i in range(8):
        at[n + 1 + i] = b"0123456789abcdef"[crc >> (28 - 4 * i) & 15]
    at[size - 1] = b"\n"
    return line

def counters_text(dict counters not None, /):
    """Counters as the state row has them."""
    return " ".join([f"{name}={value}" for name, value in counters.items()])

def journals_text(dict journals not None, /):
    """Journals as the state row has them."""
    return ";".join([f"{name} {text}" for name, text in journals.items()])


@cython.final
cdef class _Alone:
    """A change of records and kernel as the work of a file's transaction, made by itself."""

    cdef object committer, change
    cdef Change made
    cdef bint committed

    def __call__(self, tx):
        cdef Change made
        if tx.dirty:
            self.committer.repair(tx)
        made = self.made = Change(tx)
        try:
            result = self.change(made)
            if made.additions or made.removals:
                self.committer.seal(tx, made.remove, made.add)
            else:
                tx.commit()
            self.committed = True
        except BaseException as error:
            self.committed = tx.committed
            self.committer.undo(tx, (made,), error)
            raise
        return result


def run_alone(committer, calls, run, operation, change, durable, /):
    """What `change(made)` returns, in a transaction of its own that the store's `run` makes.

    It is in `calls.inside` meanwhile, and until what is to be done after it is done. Raises
    ClosedError where calls are closed.
    """
    cdef _Alone work = _Alone()
    cdef dict inside = calls.inside
    work.committer = committer
    work.change = change
    try:
        inside[work] = PyThread_get_thread_ident()
        if calls.closed:
            calls.refuse()
        result = run(operation, work, durable=durable)
        if work.made.finishing:
            for step in work.made.finishing:
                step()
        return result
    except BaseException:
        if work.made is not None:
            committer.cut_off((work.made,), work.committed)
        raise
    finally:
        inside.pop(work, None)
        if calls.closed:
            calls.report()
