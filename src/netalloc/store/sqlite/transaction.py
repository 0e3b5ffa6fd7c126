"""One change of a store file, or a view of it."""

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from netalloc.errors import ClosedError, StoreError
from netalloc.store.protocol import Transaction
from netalloc.store.records import Network
from netalloc.store.sqlite.connection import REPAIR
from netalloc.store.sqlite.schema import checksum, counters_of, counters_text, write_state
from netalloc.store.sqlite.session import Session
from netalloc.store.sqlite.write_lock import WriteLock
from netalloc.store.sqlite.writer_record import WriterRecord

log = logging.getLogger(__name__)


class SqliteTransaction:
    """One change of the file, or a view of it; made by SqliteStore and SqliteView.

    `owner` is the store that it belongs to; `ended` is called once, when it is over.
    """

    def __init__(
        self,
        path: Path,
        connection: Session,
        lock: WriteLock | None,
        owner: object,
        ended: Callable[[], None],
        end_of_boot: Callable[[Transaction], None] | None = None,
    ) -> None:
        self._end_of_boot = end_of_boot
        self.dirty: frozenset[int] = frozenset()
        self.operation = ""
        self._path = path
        self._connection = connection
        self._lock = lock
        self.owner = owner
        self._ended = ended
        self.step_by_step = False  # whether it is of begin() or read()
        self._over = False
        self._abandoned = False
        self._touched: set[int] = set()
        self._done: list[Any] = []
        self.sequence = 0
        self.boot = ""
        self._counters: dict[str, int] = {}
        self._written = connection.version
        self.bitmap = connection.bitmaps.bitmap
        self.names = connection.bitmaps.names
        self.drop = connection.bitmaps.drop
        self.table = connection.table

    @property
    def committed(self) -> bool:
        return bool(self._done)

    def state(self, mark: WriterRecord | None) -> str:
        """Read the state row; the boot it belongs to. Raises StoreError for an old file."""
        rows = self._connection.rows("SELECT * FROM state")
        if len(rows) != 1 or checksum("state", rows[0][:-1]) != rows[0][-1]:
            raise StoreError(f"the state row is damaged; {REPAIR}")
        _, self.sequence, self.boot, counters, _ = rows[0]
        self._counters = counters_of(counters)
        if mark is not None:
            self._compare(mark)
        self._connection.at(self.sequence)
        self._connection.bitmaps.expected = self._counters.get("bitmaps", 0)
        self._written = self._connection.version
        # From here on the bitmaps in memory may differ from the file, until the end says they
        # do not: an interrupt keeps it from saying so.
        self._connection.sequence = -1
        return self.boot

    def _compare(self, mark: WriterRecord) -> None:
        """Raise StoreError where the file is not the one that was written to last."""
        store = self._counters.get("store", 0)
        if mark.store and store and mark.store != store:
            raise StoreError(
                f"another store was put in the place of {self._path}: put the right one back, or "
                f"remove {self._path}.lock to go on with this one"
            )
        if mark.boot == self.boot and self.sequence < mark.sequence:
            raise StoreError(
                f"{self._path} has {self.sequence} changes, but {mark.sequence} were committed: "
                f"its log is damaged, or an old copy was put in its place; {REPAIR}"
            )

    def start(self, operation: str, mark: WriterRecord | None, boot: str) -> None:
        """Read the state, say who is at it, and end the last boot if this is another one."""
        self.state(mark)
        self.operation = operation
        if self.boot != boot:
            self.boot = boot
            self._written = -1  # which boot it is has to be written in any case
            if self._end_of_boot is not None:
                self._end_of_boot(self)
            self.dirty = self._all_networks()
        elif mark is None or not mark.known or mark.boot != boot:
            self.dirty = self._all_networks()  # nothing is known of the last writer
        else:
            self.dirty = mark.dirty
        self._mark(os.getpid(), self.dirty)

    def _all_networks(self) -> frozenset[int]:
        return frozenset(network.number for network in self.table(Network).all())

    def identify(self, store: int) -> int:
        """Go by that identity, 0 for the one it has; what it is then."""
        if store:
            self._counters["store"] = store
        return self._counters.get("store", 0)

    def brought_over(self, store: int) -> None:
        """The file was one of an older version: there is a change, and no kernel part is known."""
        self._written = -1
        self._counters.setdefault("store", store)
        self.dirty = self._all_networks()

    @property
    def version(self) -> int:
        """A number that grows with every change made so far."""
        return self._connection.version

    def next(self, counter: str, n: int = 1) -> int:
        first = self._counters.get(counter, 1)
        self._counters[counter] = first + n
        return first

    def last(self, counter: str) -> int:
        return self._counters.get(counter, 1) - 1

    def mark_dirty(self, network: int) -> None:
        self._check_under_way()
        self._touched.add(network)
        self._mark(os.getpid(), self.dirty | self._touched)

    def mark_clean(self, network: int) -> None:
        self.dirty -= {network}
        self._touched.discard(network)

    def commit(self) -> None:
        connection = self._connection
        self._check_under_way()
        try:
            if connection.version == self._written:
                connection.end_unchanged()
                self._done.append(None)
            else:
                count = self._counters.get("bitmaps", 0) + connection.bitmaps.flush()
                self._counters["bitmaps"] = count
                text = counters_text(self._counters)
                write_state(connection, self.sequence + 1, self.boot, text)
                connection.commit(self._done)
                self.sequence += 1
            connection.sequence = self.sequence
            self._touched = set()
        except BaseException:
            connection.rollback()
            raise
        try:
            self._leave()
        except StoreError as error:  # it is made: what was to be noted is found out instead
            log.error("%s was committed, but: %s", self.operation, error)

    def rollback(self) -> None:
        if self._over:
            return
        try:
            if self._abandoned:
                pass  # the connection is the parent's
            elif self._connection.version == self._written:
                self._connection.end_unchanged()
                self._connection.sequence = self.sequence
            else:
                self._connection.rollback()
        finally:
            self._leave()

    def abandon(self) -> Session:
        """In a forked child: it is the parent's, and nothing of it may be touched here."""
        self._abandoned = True
        return self._connection

    def _check_under_way(self) -> None:
        if self._over:
            raise ClosedError(f"{self.operation or 'this view'} has ended, or its store was closed")
        if self._abandoned:
            raise StoreError(f"{self.operation} is a change of the process that forked this one")

    def _leave(self) -> None:
        if self._over:
            return
        self._over = True
        try:
            if self._lock is not None and not self._abandoned:
                try:
                    self._mark(0, self.dirty | self._touched)
                finally:
                    self._lock.leave()
        finally:
            self._ended()

    def _mark(self, pid: int, dirty: Iterable[int]) -> None:
        if self._lock is not None:
            self._lock.write(
                WriterRecord(
                    pid,
                    self.operation if pid else "",
                    self.boot,
                    self.sequence,
                    frozenset(dirty),
                    self._counters.get("store", 0),
                )
            )
