"""A store for one process that ends with it: dicts, and a journal of how they were.

The journal is physical, and written first: before a record, a bit or a bitmap changes, what
was there is noted, so that undoing asks nothing of how far the change came. It brings each
noted thing back to what it was, from the last to the first, and takes a note away only when
that is done. So it may be cut off anywhere and begun again: the next change does that.
"""

from collections.abc import Callable
from threading import RLock
from typing import Any, TypeVar

from netalloc.errors import ClosedError, NetallocError, StoreError
from netalloc.store import fork
from netalloc.store.memory_bitmap import JournaledBitmap, Note
from netalloc.store.memory_survey import Survey
from netalloc.store.memory_table import MemoryTable
from netalloc.store.protocol import R, Table
from netalloc.store.records import TABLES
from netalloc.store.turn import in_the_middle

T = TypeVar("T")
_NONE: frozenset[int] = frozenset()


class MemoryStore:
    """Everything in memory; a write costs a microsecond or two more than the change.

    It belongs to the process that made it: in a forked child every call is a ClosedError, for
    parent and child would give the same addresses.
    """

    persistent = False

    def __init__(self) -> None:
        self._turn = RLock()
        self._taken = False
        self._closed = False
        self.process = fork.process
        self._transaction = MemoryTransaction(self)
        fork.guard(self)

    def fork_locks(self) -> tuple[Any]:
        """A child gets a state between two changes."""
        return (self._turn,)

    def after_fork(self) -> None:
        """Nothing: the process's number says it."""

    def run(
        self, operation: str, work: "Callable[[MemoryTransaction], T]", *, durable: bool = False
    ) -> T:
        """Make a change as soon as no other thread is in the middle of one; see Store."""
        turn, tx = self._turn, self._transaction
        mine = False
        try:
            turn.acquire()
            if self._taken or self._closed or self.process != fork.process:
                raise self._refusal(operation)
            self._taken = mine = True
            tx.begin()
            result = work(tx)
            if tx._journal or tx._touched:
                tx.commit()
            return result
        except BaseException:
            if mine:
                tx.rollback()
            raise
        finally:
            try:
                if mine:
                    self._taken = False
                turn.release()
            except RuntimeError:
                pass  # the interrupt came while waiting

    def view(self, work: "Callable[[MemoryTransaction], T]") -> T:
        """A turn as any other: in memory it is over at once."""

        def viewed(tx: MemoryTransaction) -> T:
            result = work(tx)
            if tx._journal or tx._touched:
                tx.rollback()
            return result

        return self.run("view", viewed)

    def survey(self, work: Callable[[Any], T]) -> T:
        """What is there is copied in a turn, and looked at without one."""
        return work(self.view(lambda tx: Survey(tx, tx.coded())))

    def begin(self, operation: str, *, durable: bool = False) -> "MemoryTransaction":
        """A change step by step; see Store."""
        self._turn.acquire()
        if self._taken or self._closed or self.process != fork.process:
            self._turn.release()
            raise self._refusal(operation)
        self._taken = True
        self._transaction.begin()
        self._transaction.ends_turn = True
        return self._transaction

    def read(self) -> "MemoryTransaction":
        """A view step by step."""
        return self.begin("read")

    def end_turn(self) -> None:
        """What begin() took is given back."""
        self._taken = self._transaction.ends_turn = False
        self._turn.release()

    def refuse_reentry(self, operation: str) -> None:
        """run() finds that out by itself."""

    def needs_recovery(self, network: int) -> bool:
        """Whether a change of the kernel was cut off by an interrupt."""
        return self._transaction.is_dirty(network)

    def check(self) -> list[str]:
        """Nothing: there is no file that could be damaged."""
        return []

    def close(self) -> None:
        """Refuse every later call; those under way end first."""
        if not self._closed and self.process == fork.process:
            self.run("close", lambda tx: setattr(self, "_closed", True))

    def _refusal(self, operation: str) -> NetallocError:
        if self.process != fork.process:
            return ClosedError(
                f"{operation}: this manager in memory belongs to process {self.process}, and a "
                "fork has no part in it: open another one, or give both a store in a file"
            )
        if self._closed:
            return ClosedError(f"{operation}: the store in memory is closed")
        return in_the_middle(operation)


class MemoryTransaction:
    """The state itself, and how it was when the turn began."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.ends_turn = False
        self.dirty: frozenset[int] = frozenset()
        self._touched: frozenset[int] = frozenset()
        self._committing = False
        self._journal: list[Note] = []
        self._bitmaps: dict[str, JournaledBitmap] = {}
        self._counters: dict[str, int] = {}
        self._tables: dict[type[Any], MemoryTable[Any]] = {
            kind: MemoryTable(kind, self._journal) for kind in TABLES
        }

    @property
    def version(self) -> int:
        return len(self._journal)

    @property
    def committed(self) -> bool:
        return self._committing and not self._journal

    def begin(self) -> None:
        """Finish what an interrupt left of the last change."""
        if self._journal or self._touched:
            self.rollback()
        self._committing = False

    def is_dirty(self, network: int) -> bool:
        """Whether the kernel's part of a network has to be looked at before the next change."""
        return network in self.dirty or network in self._touched

    def bitmap(self, name: str, size: int) -> "JournaledBitmap":
        found = self._bitmaps.get(name)
        if found is None:
            found = JournaledBitmap(size, self._journal)
            self._journal.append((self, name, None))
            self._bitmaps[name] = found
        return found

    def coded(self) -> dict[str, bytes]:
        """All bitmaps, as bytes."""
        return {name: bitmap.to_bytes() for name, bitmap in self._bitmaps.items()}

    def names(self, prefix: str) -> list[str]:
        return [name for name in self._bitmaps if name.startswith(prefix)]

    def known(self, name: str) -> bool:
        return name in self._bitmaps

    def drop(self, name: str) -> None:
        self._journal.append((self, name, self._bitmaps[name]))
        del self._bitmaps[name]

    def restore(self, note: Note) -> None:
        """Bring back, or take away, a bitmap."""
        _, name, bitmap = note
        if bitmap is None:
            self._bitmaps.pop(name, None)
        else:
            self._bitmaps[name] = bitmap

    def table(self, kind: type[R]) -> Table[R]:
        return self._tables[kind]

    def next(self, counter: str, n: int = 1) -> int:
        # Not undone: a number that is left out does no harm, one that was seen and is given
        # again does.
        first = self._counters.get(counter, 1)
        self._counters[counter] = first + n
        return first

    def last(self, counter: str) -> int:
        return self._counters.get(counter, 1) - 1

    def mark_dirty(self, network: int) -> None:
        if self._store.process != fork.process:
            raise StoreError("this process was forked in the middle of a change of its parent's")
        self._touched |= {network}

    def mark_clean(self, network: int) -> None:
        self._touched -= {network}
        self.dirty -= {network}

    def commit(self) -> None:
        self._committing = True
        self._journal.clear()
        self._touched = _NONE
        if self.ends_turn:
            self._store.end_turn()

    def rollback(self) -> None:
        journal = self._journal
        if journal:
            self._committing = False
        while journal:
            note = journal[-1]
            note[0].restore(note)
            del journal[-1]
        self.dirty |= self._touched
        self._touched = _NONE
        if self.ends_turn:
            self._store.end_turn()
