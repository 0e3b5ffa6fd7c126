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
from collections.abc import Callable
from pathlib import Path
from threading import RLock

from netalloc.errors import StoreError
from netalloc.host.boot import boot_id
from netalloc.store.fork import guard
from netalloc.store.protocol import Transaction
from netalloc.store.sqlite.connection import check_length
from netalloc.store.sqlite.migrations import migrate
from netalloc.store.sqlite.salvage import damage, damaged_rows
from netalloc.store.sqlite.schema import create, version_of
from netalloc.store.sqlite.session import Session
from netalloc.store.sqlite.transaction import SqliteTransaction
from netalloc.store.sqlite.versions import VERSION
from netalloc.store.sqlite.write_lock import WriteLock, WriterRecord


def _nothing(tx: Transaction) -> None:
    """What is done at the end of a boot, and after a migration, where nothing is said."""


class SqliteStore:
    """The store in the file at `path`, made when there is none.

    A write waits at most `timeout` seconds for its turn. `boot` names the boot of the
    machine that leases belong to; in another one `end_of_boot` is called first. `migrated`
    is called, in the same transaction, when a file of an older version was brought up to
    date: bitmaps whose layout changed are gone, and to be made from the records.

    Safe for threads, and across fork. Raises StoreError for a file that is none of ours,
    damaged, or older than what was committed to it.
    """

    persistent = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 10.0,
        boot: str | None = None,
        end_of_boot: Callable[[Transaction], None] = _nothing,
        migrated: Callable[[Transaction], None] = _nothing,
    ) -> None:
        self._end_of_boot = end_of_boot
        self._migrated = migrated
        self.path = Path(path)
        self.boot = boot_id() if boot is None else boot
        self.timeout = timeout
        self._turn = RLock()
        self._look = RLock()
        self._lock = WriteLock(Path(f"{self.path}.lock"), timeout)
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
        if not self._turn.acquire(timeout=self.timeout):
            raise StoreError(
                f"{operation}: waited {self.timeout:g} s for another thread of this process"
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

    def needs_recovery(self, network: int) -> bool:
        """Whether somebody died, or is right now, in the middle of a kernel change."""
        mark = self._lock.peek()
        return mark is not None and network in mark.dirty

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
                tx = SqliteTransaction(
                    self.path, connection, self._turn, self._lock, self._end_of_boot
                )
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
            tx = SqliteTransaction(self.path, connection, self._look, None, self._end_of_boot)
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
            connection = self._writer = Session(self.path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.sync(full=True)
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._make_tables(connection, mark)
            except BaseException:
                connection.rollback()
                raise
        finally:
            self._lock.leave()

    def _make_tables(self, connection: Session, mark: WriterRecord | None) -> None:
        version = version_of(connection)
        if version == VERSION:  # another process was first
            connection.rollback()
        elif not version:
            create(connection, self.boot)
            connection.execute("COMMIT")
            self._lock.write(WriterRecord(boot=self.boot, sequence=1))
        else:
            migrate(connection)
            self._turn.acquire()  # the transaction gives it back
            tx = SqliteTransaction(self.path, connection, self._turn, self._lock, self._end_of_boot)
            try:
                tx.start("make tables", mark, self.boot)
                tx.brought_over()
                self._migrated(tx)
            except BaseException:
                tx.rollback()
                raise
            tx.commit()


# Closing a file takes away the process's locks on it (fcntl(2)), and SQLite would write at
# that moment: a child leaves its parent's connections alone for ever.
_inherited: list[Session] = []
