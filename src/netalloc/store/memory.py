"""A store for one process that ends with it: tables of the core, and a journal of how they were.

The journal is physical, and written first: before a record, a bit or a bitmap changes, what
was there is noted, so that undoing asks nothing of how far the change came. It brings each
noted thing back to what it was, from the last to the first, and takes a note away only when
that is done. So it may be cut off anywhere and begun again: the next change does that.
"""

from __future__ import annotations

from threading import RLock

from netalloc import forks
from netalloc._alloc import MemoryState, MemoryTurn, RecordTable
from netalloc.errors import ClosedError, NetallocError, StoreError
from netalloc.store.memory_survey import Survey
from netalloc.store.records import TABLES
from netalloc.store.turn import in_the_middle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")


class MemoryStore(MemoryTurn):
    """Everything in memory; a write costs a fraction of a microsecond more than the change.

    It belongs to the process that made it: in a forked child every call is a ClosedError, for
    parent and child would give the same addresses.
    """

    persistent = False

    def __init__(self) -> None:
        self.process = forks.process
        self._transaction = MemoryTransaction(self)
        super().__init__(RLock(), self._transaction)
        forks.guard(self)

    def fork_locks(self) -> tuple[Any]:
        """A child gets a state between two changes."""
        return (self._turn,)

    def after_fork(self) -> None:
        """Nothing: the count of forks says it."""

    def survey(self, work: Callable[[Any], T]) -> T:
        """What is there is copied in a turn, and looked at without one."""
        return work(self.view(lambda tx: Survey(tx, tx.coded())))

    def begin(self, operation: str, *, durable: bool = False) -> MemoryTransaction:
        """A change step by step; see Store."""
        self._turn.acquire()
        if self._taken or self._closed or self.foreign:
            self._turn.release()
            raise self._refusal(operation)
        self._taken = True
        tx = self._transaction
        tx.rollback()
        tx._committing = False
        tx.ends_turn = True
        return tx

    def read(self) -> MemoryTransaction:
        """A view step by step."""
        return self.begin("read")

    def end_turn(self) -> None:
        """What begin() took is given back."""
        self._taken = self._transaction.ends_turn = False
        self._turn.release()

    def refuse_reentry(self, operation: str) -> None:
        """Of use to those that change nothing: run() finds that out by itself."""
        if self._turn._is_owned():
            raise in_the_middle(operation)

    def needs_recovery(self, network: int) -> bool:
        """Whether a change of the kernel was cut off by an interrupt."""
        return self._transaction.is_dirty(network)

    def check(self) -> list[str]:
        """Nothing: there is no file that could be damaged."""
        return []

    def close(self) -> None:
        """Refuse every later call; those under way end first."""
        if not self._closed and not self.foreign:
            self.run("close", lambda tx: setattr(self, "_closed", True))

    def _refusal(self, operation: str) -> NetallocError:
        if self.foreign:
            return ClosedError(
                f"{operation}: this manager in memory belongs to process {self.process}, and a "
                "fork has no part in it: open another one, or give both a store in a file"
            )
        if self._closed:
            return ClosedError(f"{operation}: the store in memory is closed")
        return in_the_middle(operation)


class MemoryTransaction(MemoryState):
    """The state itself, and how it was when the turn began."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.kept: dict[str, Any] = {}
        for kind, spec in TABLES.items():
            self._tables[kind] = RecordTable(
                kind, spec.key, spec.indexes, self._journal, spec.descending
            )

    def is_dirty(self, network: int) -> bool:
        """Whether the kernel's part of a network has to be looked at before the next change."""
        return network in self.dirty or network in self._touched

    def coded(self) -> dict[str, bytes]:
        """All bitmaps, as bytes."""
        return {name: bitmap.to_bytes() for name, bitmap in self._bitmaps.items()}

    def mark_dirty(self, network: int) -> None:
        if self._store.foreign:
            raise StoreError("this process was forked in the middle of a change of its parent's")
        self._touched |= {network}

    def mark_clean(self, network: int) -> None:
        self._touched -= {network}
        self.dirty -= {network}
