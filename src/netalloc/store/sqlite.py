"""A store in a SQLite file that any number of processes of a host share.

The file is the truth: no process keeps leases of its own, and a transaction reads the few
rows it needs, so that a cold process pays the same with 0 and with 50,000 addresses held.
Rows that were read stay in memory until somebody else has written, which the sequence
number in the state row tells.

Writers queue at a lock file (see lock.py), whose line is also the crash marker of the pair
store and kernel. The order of a change is: rows, mark, kernel, commit, unmark. Whoever finds
a mark knows that the kernel's part of those networks may be ahead of the store, or behind,
and makes it agree first. No list of intentions is needed: the store's rows are what is
desired at every moment.

Dynamic leases outlive every process, since the page cache does (synchronous=NORMAL in WAL
mode writes at each commit and syncs at checkpoints); they end with the boot. Reservations
and networks outlive a power cut: their transactions sync.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from threading import RLock
from typing import Any

from netalloc.errors import StoreError
from netalloc.store.bitmaps import SqliteBitmaps
from netalloc.store.boot import boot_id, end_of_boot
from netalloc.store.connection import REPAIR, Connection, check_length
from netalloc.store.forks import guard
from netalloc.store.lock import Mark, WriteLock
from netalloc.store.protocol import R
from netalloc.store.records import Network
from netalloc.store.salvage import damage, damaged_rows
from netalloc.store.schema import VERSION, checksum, create, migrate, version_of
from netalloc.store.tables import SqliteTable


class Session(Connection):
    """A connection with the tables and bitmaps that were read over it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.sequence = -1  # of the change that `bitmaps` is as of
        self.bitmaps = SqliteBitmaps(self)
        self._tables: dict[type[Any], SqliteTable[Any]] = {}

    def table(self, kind: type[R]) -> SqliteTable[R]:
        """The records of a kind."""
        found = self._tables.get(kind)
        if found is None:
            found = self._tables[kind] = SqliteTable(kind, self)
        return found

    @property
    def version(self) -> int:
        """A number that grows with every change that is made here."""
        return self.changes + self.bitmaps.changes

    def at(self, sequence: int) -> None:
        """Keep what was read before only if nobody has written since."""
        if sequence != self.sequence:
            self.bitmaps.forget()
            self.sequence = sequence

    def rollback(self) -> None:
        """Undo what is not committed; nothing to undo is no error."""
        self.sequence = -1  # the bitmaps in memory may be ahead of the file
        super().rollback()

    def end_unchanged(self) -> None:
        """End a transaction in which nothing was changed."""
        super().rollback()


class SqliteStore:
    """The store in the file at `path`, made when there is none.

    A write waits at most `patience` seconds for its turn. `boot` names the boot of the
    machine that leases belong to. Safe for threads, and across fork. Raises StoreError for
    a file that is none of ours, damaged, or older than what was committed to it.
    """

    lasting = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        patience: float = 10.0,
        boot: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.boot = boot_id() if boot is None else boot
        self.patience = patience
        self._turn = RLock()
        self._look = RLock()
        self._lock = WriteLock(Path(f"{self.path}.lock"), patience)
        self._writer: Session | None = None
        self._reader: Session | None = None
        guard(self)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def begin(self, operation: str, *, durable: bool = False) -> "SqliteTransaction":
        """Start a change when those before are done; see Store."""
        if not self._turn.acquire(timeout=self.patience):
            raise StoreError(
                f"{operation}: waited {self.patience:g} s for another thread of this process"
            )
        try:
            return self._begin(operation, durable)
        except BaseException:
            self._turn.release()
            raise

    def read(self) -> "SqliteTransaction":
        """A view of what was committed last; never waits for a writer."""
        self._look.acquire()
        try:
            view = self._view()
            if view is None:  # the first one of this boot
                self.begin("end of boot").commit()
                view = self._view()
                assert view is not None
            return view
        except BaseException:
            self._look.release()
            raise

    def interrupted(self, network: int) -> bool:
        """Whether somebody died, or is right now, in the middle of a kernel change."""
        mark = self._lock.peek()
        return mark is not None and network in mark.torn

    def write_back(self) -> None:
        """Bring the log into the file, and sync: after that a copy of the file alone is whole.

        Raises StoreError while somebody reads.
        """
        with self._turn:
            connection = self._writer = self._session(self._writer)
            ((busy, _, _),) = connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")
            if busy:
                raise StoreError(f"{self.path} is in use, so its log cannot be written back")

    def fork_locks(self) -> tuple[RLock, RLock]:
        """In the order in which read() takes them."""
        return self._look, self._turn

    def after_fork(self) -> None:
        """In a forked child: neither use nor close what belongs to the parent."""
        _inherited.extend(c for c in (self._reader, self._writer) if c is not None)
        self._reader = self._writer = None
        self._lock.close()

    def __enter__(self) -> "SqliteStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> list[str]:
        """What is wrong with the file itself; O(file)."""
        with self._look:
            connection = self._reader = self._session(self._reader)
            return damage(connection) or damaged_rows(connection)

    def close(self) -> None:
        """Close the file."""
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close()
        self._reader = self._writer = None
        self._lock.close()

    def _begin(self, operation: str, durable: bool) -> "SqliteTransaction":
        mark = self._lock.enter(operation)
        try:
            connection = self._writer = self._session(self._writer)
            connection.sync(full=durable)
            connection.execute("BEGIN IMMEDIATE")
            try:
                tx = SqliteTransaction(self.path, connection, self._turn, self._lock)
                tx.start(operation, mark, self.boot)
            except BaseException:
                connection.rollback()
                raise
            return tx
        except BaseException:
            self._lock.leave()
            raise

    def _session(self, session: Session | None) -> Session:
        """An open session on the file that is at the path now."""
        if session is not None:
            if session.is_current:
                return session
            session.close()  # it was mended, and another file has taken its place
        if not self.path.exists():
            raise StoreError(
                f"{self.path} is gone: put a copy back, or remove {self._lock.path} as well to "
                "begin anew"
            )
        return Session(self.path)

    def _view(self) -> "SqliteTransaction | None":
        connection = self._reader = self._session(self._reader)
        connection.execute("BEGIN")
        try:
            tx = SqliteTransaction(self.path, connection, self._look, None)
            if tx.state(self._lock.peek()) == self.boot:
                return tx
        except BaseException:
            connection.rollback()
            raise
        connection.rollback()
        return None

    def _prepare(self) -> None:
        """Make the tables, or bring them up to date; usually neither."""
        check_length(self.path)
        mark = self._lock.peek()
        if not self.path.exists() or not self.path.stat().st_size:
            if mark is not None and mark.sequence:
                raise StoreError(
                    f"{self.path} is empty or gone, but {mark.sequence} changes were committed to "
                    f"it: put a copy back, or remove {self._lock.path} as well to begin anew"
                )
        else:
            self._reader = Session(self.path)
            if version_of(self._reader) == VERSION:
                return
            self._reader.close()
            self._reader = None
        mark = self._lock.enter("make tables")
        try:
            self._make_tables(mark)
        finally:
            self._lock.leave()

    def _make_tables(self, mark: Mark | None) -> None:
        connection = self._writer = Session(self.path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.sync(full=True)
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not version_of(connection):
                create(connection, self.boot)
                mark = Mark(boot=self.boot, sequence=1)
            else:
                migrate(connection)
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise
        if mark is not None:
            self._lock.write(mark)


class SqliteTransaction:
    """One change of the file, or a view of it; made by SqliteStore."""

    def __init__(
        self, path: Path, connection: Session, turn: RLock, lock: WriteLock | None
    ) -> None:
        self.torn: frozenset[int] = frozenset()
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

    def state(self, mark: Mark | None) -> str:
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
        pairs = (item.split("=") for item in counters.split())
        self._counters = {name: int(value) for name, value in pairs}
        self._connection.at(self.sequence)
        self._connection.bitmaps.expected = self._counters.get("bitmaps", 0)
        self._written = self._connection.version
        return self._boot

    def start(self, operation: str, mark: Mark | None, boot: str) -> None:
        """Read the state, say who is at it, and end the last boot if this is another one."""
        self.state(mark)
        self._operation = operation
        if mark is not None and mark.boot == boot:
            self.torn = mark.torn
        if self._boot != boot:
            self._boot = boot
            end_of_boot(self)
            self.torn = frozenset(network.number for network in self.table(Network).all())
        self._mark(os.getpid(), self.torn)

    @property
    def version(self) -> int:
        """A number that grows with every change made so far."""
        return self._connection.version

    def next(self, counter: str, n: int = 1) -> int:
        first = self._counters.get(counter, 1)
        self._counters[counter] = first + n
        return first

    def touch_kernel(self, network: int) -> None:
        self._touched.add(network)
        self._mark(os.getpid(), self.torn | self._touched)

    def mended(self, network: int) -> None:
        self.torn -= {network}
        self._touched.discard(network)

    def commit(self) -> None:
        connection = self._connection
        try:
            if connection.version == self._written:
                connection.end_unchanged()
            else:
                count = self._counters.get("bitmaps", 0) + connection.bitmaps.flush()
                self._counters["bitmaps"] = count
                counters = " ".join(f"{name}={value}" for name, value in self._counters.items())
                state = (0, self.sequence + 1, self._boot, counters)
                connection.execute(
                    "REPLACE INTO state VALUES (?, ?, ?, ?, ?)", (*state, checksum("state", state))
                )
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
                self._mark(0, self.torn | self._touched)
                self._lock.leave()
        finally:
            self._turn.release()

    def _mark(self, pid: int, torn: Iterable[int]) -> None:
        if self._lock is not None:
            operation = self._operation if pid else ""
            self._lock.write(Mark(pid, operation, self._boot, self.sequence, frozenset(torn)))


# Closing a file takes away the process's locks on it (fcntl(2)), and SQLite would write at
# that moment: a child leaves its parent's connections alone for ever.
_inherited: list[Session] = []
