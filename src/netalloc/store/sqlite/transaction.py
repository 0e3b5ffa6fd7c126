"""One change of a store file, or a view of it."""

from __future__ import annotations

import os

from netalloc._alloc import FileChangeState
from netalloc.errors import ClosedError, StoreError
from netalloc.logs import Log
from netalloc.store.records import Network
from netalloc.store.sqlite.connection import REPAIR
from netalloc.store.sqlite.writer_record import WriterRecord, new_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection as Database
    from typing import Any

    from netalloc.store.sqlite.session import Session
    from netalloc.store.sqlite.write_lock import WriteLock


_NONE: frozenset[int] = frozenset()
log = Log(__name__)


class SqliteTransaction(FileChangeState):
    """One change of the file, or a view of it; made by SqliteStore and SqliteView.

    `owner` is the store that it belongs to. Where it is made step by step, `ended` is called
    when it is over.
    """

    __slots__ = ()

    _connection: Session
    _lock: WriteLock | None

    def _compare(self, mark: WriterRecord) -> None:
        """Raise StoreError where the file is not the one that was written to last."""
        store = self._connection.counters.get("store", 0)
        if mark.store != store and mark.store and store:
            raise StoreError(
                f"another store was put in the place of {self._path}: put the right one back, or "
                f"remove {self._path}.lock to go on with this one"
            )
        if self.sequence < mark.sequence and mark.boot == self.boot:
            raise StoreError(
                f"{self._path} has {self.sequence} changes, but {mark.sequence} were committed: "
                f"its log is damaged, or an old copy was put in its place; {REPAIR}"
            )

    def settle(self) -> None:
        """A view has come to its end: what it read stands."""
        self._connection.settle()

    def refused(self) -> None:
        """It was rolled back as what it was to do cannot be: what it only read stands.

        An error of another kind, an interrupt among them, may have come in the middle of a look.
        """
        if not self._done:
            self._connection.refused(self._connection.version != self._written)

    def _all_networks(self) -> frozenset[int]:
        return frozenset([network.number for network in self.table(Network).all()])

    def succeed(self, store: int, sequence: int) -> int:
        """Go on as the store of that identity, 0 for one of its own, after so many changes.

        Returns the identity.
        """
        self.sequence = max(self.sequence, sequence)
        if store:
            self._connection.counters["store"] = store
        return self._connection.counters.get("store", 0)

    def brought_over(self, store: int) -> None:
        """The file was one of an older version: there is a change, and no kernel part is known."""
        self._written = -1
        self._connection.counters.setdefault("store", store)
        self.dirty = self._all_networks()

    @property
    def kept(self) -> dict[str, Any]:
        """What views over this connection have kept."""
        return self._connection.kept

    @property
    def version(self) -> int:
        """A number that grows with every change made so far."""
        return self._connection.version

    def mark_dirty(self, network: int) -> None:
        self._check_under_way()
        self._touched |= {network}
        self._mark(os.getpid(), self.dirty | self._touched)

    def mark_all_dirty(self) -> None:
        """Note that the kernel's part of every network is to be looked at after this change."""
        self._check_under_way()
        self.dirty = self._all_networks()
        self._mark(os.getpid(), self.dirty)

    def mark_clean(self, network: int) -> None:
        self.dirty -= {network}
        self._touched -= {network}

    def rollback(self) -> None:
        if self.over:
            return
        try:
            if self._abandoned:
                self.over = True
            else:
                self._undo()
                self._finish()
        finally:
            if self.ended is not None:
                self.over = True
                self.ended()

    def copy_to(self, target: Database) -> None:
        """Copy the whole store, as it is seen here, into another database."""
        self._connection.copy_to(target)

    def abandon(self) -> Session:
        """In a forked child: it is the parent's, and nothing of it may be touched here."""
        self._abandoned = True
        return self._connection

    def _undo(self) -> None:
        if self.committed:
            self.sequence = max(self.sequence, self._target)
            self._touched = _NONE
        else:
            self._connection.rollback()

    def _not_said(self, error: StoreError) -> None:
        # It is made, and the next writer looks at more than it has to.
        log.warning("%s was committed, but: %s", self.operation, error)

    def _check_under_way(self) -> None:
        if self.over:
            raise ClosedError(f"{self.operation or 'this view'} has ended, or its store was closed")
        if self._abandoned:
            raise StoreError(
                f"{self.operation}: this process was forked in the middle of a change of its "
                "parent's"
            )

    def _mark(self, pid: int, dirty: frozenset[int]) -> None:
        lock = self._lock
        if lock is not None:
            operation = self.operation if pid else ""
            store = self._connection.counters.get("store", 0)
            record = (pid, operation, self.boot, self.sequence, dirty, store, True)
            lock.write(new_record(record))
