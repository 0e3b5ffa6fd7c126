# MemoryState and MemoryTurn: a store in memory, and changing it in turns.
#
# Each method is one step for an interrupt: it comes before or after, or out of the function
# that a turn runs. So a turn that was begun is ended, whatever that function raises.

cdef extern from *:
    """
    #include <pthread.h>
    static unsigned long na_forks;
    static void na_forked(void) { na_forks++; }
    static int na_count_forks(void) { return pthread_atfork(NULL, NULL, na_forked); }
    """
    unsigned long na_forks      # how often this process, and those before it, came by a fork
    int na_count_forks()

if na_count_forks():
    raise MemoryError


cdef class MemoryState:
    """Tables, bitmaps and counters, and a journal of how they were."""

    cdef readonly list _journal
    cdef readonly dict _tables, _bitmaps
    cdef dict counters
    cdef public object dirty, _touched, _store
    cdef public bint _committing, ends_turn

    def __cinit__(self, *_):
        self._journal = []
        self._tables = {}
        self._bitmaps = {}
        self.counters = {}
        self.dirty = self._touched = frozenset()

    @property
    def version(self):
        """A number that grows with every change made so far."""
        return len(self._journal)

    @property
    def committed(self):
        """Whether the change is made for good."""
        return self._committing and not self._journal

    def table(self, kind, /):
        """The records of that kind."""
        return self._tables[kind]

    def bitmap(self, name, size, /):
        """The bitmap of that name, made empty when there is none."""
        found = self._bitmaps.get(name)
        if found is None:
            found = JournaledBitmap(size, self._journal)
            self._journal.append((self, name, None))
            self._bitmaps[name] = found
        return found

    def known(self, name, /):
        """Whether there is a bitmap of that name."""
        return name in self._bitmaps

    def names(self, prefix, /):
        """The names of bitmaps that begin with the prefix."""
        return [name for name in self._bitmaps if name.startswith(prefix)]

    def drop(self, name, /):
        """Forget the bitmap of that name."""
        bitmap = self._bitmaps[name]
        self._journal.append((self, name, bitmap))
        del self._bitmaps[name]

    def restore(self, tuple note, /):
        """Bring back, or take away, a bitmap."""
        _, name, bitmap = note
        if bitmap is None:
            self._bitmaps.pop(name, None)
        else:
            self._bitmaps[name] = bitmap

    def next(self, counter, n=1):
        """The first of n numbers that this counter never gave before."""
        # Not undone: a number that is left out does no harm, one that was seen and is given
        # again does.
        first = self.counters.get(counter, 1)
        self.counters[counter] = first + n
        return first

    def last(self, counter, /):
        """The last number that this counter gave, 0 before the first."""
        return self.counters.get(counter, 1) - 1

    def commit(self):
        """Nothing is undone after that."""
        self._committing = True
        self._journal.clear()
        self._touched = frozenset()
        if self.ends_turn:
            self._store.end_turn()

    def rollback(self):
        """Undo all of it, from the last change to the first; what it marked stays dirty."""
        cdef list journal = self._journal
        if journal:
            self._committing = False
        while journal:
            note = journal[len(journal) - 1]
            note[0].restore(note)
            journal.pop()       # only now: it may be undone again, where memory was short
        if self._touched:
            self.dirty |= self._touched
            self._touched = frozenset()
        if self.ends_turn:
            self._store.end_turn()


cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()


cdef class MemoryTurn:
    """Who changes a MemoryState now, and the change as a function."""

    cdef readonly object _turn
    cdef object acquire, release
    cdef MemoryState state
    cdef public bint _taken, _closed
    cdef unsigned long forks

    def __init__(self, lock, MemoryState state):
        self._turn = lock
        self.acquire = lock.acquire
        self.release = lock.release
        self.state = state
        self.forks = na_forks

    @property
    def foreign(self):
        """Whether this process has it by a fork."""
        return self.forks != na_forks

    def wait(self):
        """Until the turn that is under way, if there is one, is over."""
        self.acquire()
        self.release()

    def run(self, operation, work, *, durable=False):
        """Make a change as soon as no other thread is in the middle of one; see Store."""
        cdef MemoryState state = self.state
        self.acquire()
        try:
            if self._taken or self._closed or self.forks != na_forks:
                raise self._refusal(operation)
            self._taken = True
            try:
                if state._journal or state._touched:        # an interrupt left it
                    state.rollback()
                state._committing = False
                result = work(state)
                if state._journal or state._touched:
                    state.commit()
                return result
            except BaseException:
                state.rollback()
                raise
            finally:
                self._taken = False
        finally:
            self.release()

    def view(self, work, /):
        """What `work(tx)` makes of it; what it changes is undone."""
        return self.viewed(work, None)

    def run_view(self, work, calls, /):
        """The same for a manager: its closing waits for the turn. Raises ClosedError."""
        if calls.closed:
            calls.refuse()
        return self.viewed(work, calls)

    cdef object viewed(self, work, calls):
        cdef MemoryState state = self.state
        self.acquire()
        try:
            if self._taken or self._closed or self.forks != na_forks:
                raise self._refusal("view")
            if calls is not None and calls.closed:      # while it waited
                calls.refuse()
            self._taken = True
            try:
                if state._journal or state._touched:        # an interrupt left it
                    state.rollback()
                state._committing = False
                return work(state)
            finally:
                try:
                    if state._journal or state._touched:
                        state.rollback()
                finally:
                    self._taken = False
        finally:
            self.release()

    def run_change(self, operation, change, committer, calls, /):
        """What `change(made)` returns, in a turn: records, then the kernel, then the commit.

        What is more than records is in `calls.inside` from before its turn ends until it is
        over, whether it was made or not. Raises ClosedError where calls are closed.
        """
        cdef Change made = Change()
        if calls.closed:
            calls.refuse()
        try:
            try:
                result = self.changed(operation, change, made, committer, calls)
                if made.finishing:
                    for step in made.finishing:
                        step()
                return result
            except BaseException:
                committer.cut_off((made,), made.committed)
                raise
        finally:
            if made.is_among_calls:
                calls.inside.pop(made, None)
                if calls.closed:
                    calls.report()

    cdef object changed(self, operation, change, Change made, committer, calls):
        cdef MemoryState state = self.state
        self.acquire()
        try:
            if self._taken or self._closed or self.forks != na_forks:
                raise self._refusal(operation)
            if calls.closed:        # while it waited
                calls.refuse()
            self._taken = True
            try:
                if state._journal or state._touched:        # an interrupt left it
                    state.rollback()
                state._committing = False
                made.tx = state
                if state.dirty:
                    committer.repair(state)
                result = change(made)
                if made.additions or made.removals:
                    committer.seal(state, made.remove, made.add)
                else:
                    state.commit()
                made.committed = True
                return result
            except BaseException as error:
                made.committed = state.committed
                try:
                    committer.undo(state, (made,), error)
                finally:
                    state.rollback()
                raise
            finally:
                self._taken = False
                if made.additions or made.removals or made.finishing:
                    calls.inside[made] = PyThread_get_thread_ident()
                    made.is_among_calls = True
        finally:
            self.release()
