"""One change of a store file, or a view of it."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import RLock

from netalloc.errors import StoreError
from netalloc.store.protocol import Transaction
from netalloc.store.records import Network
from netalloc.store.sqlite.connection import REPAIR
from netalloc.store.sqlite.schema import checksum, counters_of, counters_text, write_state
from netalloc.store.sqlite.session import Session
from netalloc.store.sqlite.write_lock import WriteLock, WriterRecord


class SqliteTransaction:
    """One change of the file, or a view of it; made by SqliteStore."""

    def __init__(
        self,
        path: Path,
        connection: Session,
        turn: RLock,
        lock: WriteLock | None,
        end_of_boot: Callable[[Transaction], None],
    ) -> None:
        self._end_of_boot = end_of_boot
        self.dirty: frozenset[int] = frozenset()
        self._path = path
        self._connection = connection
        self._turn = turn
        self._lock = lock
        self._touched: set[int] = set()
        self.sequence = 0
        self._boot = ""
        self._counters: dict[str, int] = {}
        self._written = connection.version
        self._operation = ""
        self.bitmap = connection.bitmaps.bitmap
        self.names = connection.bitmaps.names
        self.drop = connection.bitmaps.drop
        self.table = connection.table

    def state(self, mark: WriterRecord | None) -> str:
        """Read the state row; the boot it belongs to. Raises StoreError for an old file."""
        rows = self._connection.rows("SELECT * FROM state")
        if len(rows) != 1 or checksum("state", rows[0][:-1]) != rows[0][-1]:
            raise StoreError(f"the state row is damaged; {REPAIR}")
        _, self.sequence, self._boot, counters, _ = rows[0]
        if mark is not None and mark.boot == self._boot and self.sequence < mark.sequence:
            raise StoreError(
                f"{self._path} has {self.sequence} changes, but {mark.sequence} were committed: "
                f"its log is damaged, or an old copy was put in its place; {REPAIR}"
            )
        self._counters = counters_of(counters)
        self._connection.at(self.sequence)
        self._connection.bitmaps.expected = self._counters.get("bitmaps", 0)
        self._written = self._connection.version
        return self._boot

    def start(self, operation: str, mark: WriterRecord | None, boot: str) -> None:
        """Read the state, say who is at it, and end the last boot if this is another one."""
        self.state(mark)
        self._operation = operation
        if mark is not None and mark.boot == boot:
            self.dirty = mark.dirty
        if self._boot != boot:
            self._boot = boot
            self._end_of_boot(self)
            self.dirty = frozenset(network.number for network in self.table(Network).all())
        self._mark(os.getpid(), self.dirty)

    def brought_over(self) -> None:
        """The file was one of an older version: there is a change, and no kernel part is known."""
        self._written = -1
        self.dirty = frozenset(network.number for network in self.table(Network).all())

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
        self._touched.add(network)
        self._mark(os.getpid(), self.dirty | self._touched)

    def mark_clean(self, network: int) -> None:
        self.dirty -= {network}
        self._touched.discard(network)

    def commit(self) -> None:
        connection = self._connection
        try:
            if connection.version == self._written:
                connection.end_unchanged()
            else:
                count = self._counters.get("bitmaps", 0) + connection.bitmaps.flush()
                self._counters["bitmaps"] = count
                text = counters_text(self._counters)
                write_state(connection, self.sequence + 1, self._boot, text)
                connection.execute("COMMIT")
                self.sequence += 1
                connection.sequence = self.sequence
            self._touched.clear()
        except BaseException:
            connection.rollback()
            raise
        self._leave()

    def rollback(self) -> None:
        try:
            if self._connection.version == self._written:
                self._connection.end_unchanged()
            else:
                self._connection.rollback()
        finally:
            self._leave()

    def _leave(self) -> None:
        try:
            if self._lock is not None:
                self._mark(0, self.dirty | self._touched)
                self._lock.leave()
        finally:
            self._turn.release()

    def _mark(self, pid: int, torn: Iterable[int]) -> None:
        if self._lock is not None:
            operation = self._operation if pid else ""
            self._lock.write(
                WriterRecord(pid, operation, self._boot, self.sequence, frozenset(torn))
            )
