"""One change of a store file, or a view of it."""

from __future__ import annotations

import os
from _thread import get_ident

from netalloc.errors import ClosedError, StoreError
from netalloc.logs import Log
from netalloc.store.records import Network
from netalloc.store.sqlite.connection import REPAIR
from netalloc.store.sqlite.writer_record import WriterRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from netalloc.store.protocol import Transaction
    from netalloc.store.sqlite.place import StrPath
    from netalloc.store.sqlite.session import Session
    from netalloc.store.sqlite.write_lock import WriteLock


_NONE: frozenset[int] = frozenset()
log = Log(__name__)


class SqliteTransaction:
    """One change of the file, or a view of it; made by SqliteStore and SqliteView.

    `owner` is the store that it belongs to. Where it is made step by step, `ended` is called
    when it is over.
    """

    __slots__ = (
        "_abandoned",
        "_connection",
        "_done",
        "_end_of_boot",
        "_lock",
        "_path",
        "_said",
        "_target",
        "_touched",
        "_written",
        "bitmap",
        "boot",
        "dirty",
        "drop",
        "ended",
        "known",
        "names",
        "operation",
        "over",
        "owner",
        "sequence",
        "table",
        "thread",
    )

    def __init__(
        self,
        path: StrPath,
        connection: Session,
        lock: WriteLock | None,
        owner: object,
        end_of_boot: Callable[[Transaction], None] | None = None,
    ) -> None:
        self.owner = owner
        self.thread = get_ident()
        self.ended: Callable[[], None] | None = None
        self.dirty = _NONE
        self.operation = ""
        self.sequence = 0
        self.boot = ""
        self._end_of_boot = end_of_boot
        self._path = path
        self._connection = connection
        self._lock = lock
        self.over = self._abandoned = self._said = False
        self._target = 0  # the sequence number of what is being committed
        self._done: list[Any] = []  # has something in it from the very moment of the commit
        self._touched = _NONE
        self._written = 0
        bitmaps = connection.bitmaps
        self.bitmap = bitmaps.bitmap
        self.names = bitmaps.names
        self.known = bitmaps.known
        self.drop = bitmaps.drop
        self.table = connection.table

    def state(self, mark: WriterRecord | None) -> str:
        """Read the state row; the boot it belongs to. Raises StoreError for an old file."""
        connection = self._connection
        self.sequence = connection.begin()
        self.boot = connection.boot
        if mark is not None:
            self._compare(mark)
        self._written = connection.version
        return self.boot

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

    def start(self, operation: str, mark: WriterRecord | None, boot: str) -> None:
        """Read the state, say who is at it, and end the last boot if this is another one."""
        self.state(mark)
        self.operation = operation
        lock = self._lock
        assert lock is not None
        said = lock.says_who
        if self.boot != boot:
            self.boot = boot
            self._written = -1
            if self._end_of_boot is not None:
                self._end_of_boot(self)
            self.dirty = self._all_networks()
            said = False
        elif mark is None or not mark.known or mark.boot != boot:
            self.dirty = self._all_networks()  # nothing is known of the last writer
            said = False
        else:
            self.dirty = mark.dirty
        self._said = True  # from here on: a file that was refused has said nothing new
        if not said:
            self._mark(os.getpid(), self.dirty)

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

    def next(self, counter: str, n: int = 1) -> int:
        counters = self._connection.counters
        first = counters.get(counter, 1)
        counters[counter] = first + n
        return first

    def last(self, counter: str) -> int:
        return self._connection.counters.get(counter, 1) - 1

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

    @property
    def committed(self) -> bool:
        """Whether the change is in the file, even where commit() was interrupted after."""
        return bool(self._done)

    def commit(self) -> None:
        if self.over or self._abandoned:
            self._check_under_way()
        try:
            connection = self._connection
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
        self._touched = _NONE
        try:
            self._finish()
        except StoreError as error:  # it is made, and the next writer looks at more than it has to
            log.warning("%s was committed, but: %s", self.operation, error)
        if self.ended is not None:
            self.ended()

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

    def _finish(self) -> None:
        """Say that nothing is going on any more, and what is left to be looked at."""
        if self._said:
            self._mark(0, self.dirty | self._touched if self._touched else self.dirty)
        self.over = True

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
            operation, store = (
                self.operation if pid else "",
                self._connection.counters.get("store", 0),
            )
            lock.write(WriterRecord(pid, operation, self.boot, self.sequence, dirty, store))
