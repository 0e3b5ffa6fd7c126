"""A store in a SQLite file that any number of processes of a host share.

The file is the truth: no process keeps leases of its own, and a transaction reads the few
rows it needs, so that a cold process pays the same with 0 and with 50,000 addresses held.
Rows that were read stay in memory until another process has written, which the sequence
number in the state row tells.

Writers queue at a lock file (see write_lock.py), whose record is also the crash marker of
the pair store and kernel. The order of a change is: rows, mark, kernel, commit, unmark. A
process that finds a mark knows that the kernel's part of those networks may be ahead of the
store, or behind, and makes it agree first. No list of intentions is needed: the store's rows
are what is desired at every moment.

Dynamic leases outlive every process, since the page cache does (synchronous=NORMAL in WAL
mode writes at each commit and syncs at checkpoints); they end with the boot. Reservations
and networks outlive a power cut: their transactions sync.
"""

import os
from collections.abc import Callable
from threading import get_ident
from typing import TypeVar

from netalloc.errors import ClosedError, NetallocError, StoreError
from netalloc.host.boot import boot_id
from netalloc.store.protocol import Transaction
from netalloc.store.sqlite import file as files
from netalloc.store.sqlite import place
from netalloc.store.sqlite.connection import check_length
from netalloc.store.sqlite.file import taken
from netalloc.store.sqlite.migrations import migrate
from netalloc.store.sqlite.salvage import damage, damaged_rows
from netalloc.store.sqlite.schema import create, version_of
from netalloc.store.sqlite.session import Session
from netalloc.store.sqlite.transaction import SqliteTransaction
from netalloc.store.sqlite.versions import VERSION
from netalloc.store.sqlite.writer_record import WriterRecord
from netalloc.store.turn import in_the_middle
from netalloc.values import as_seconds, as_text

T = TypeVar("T")


def _nothing(tx: Transaction) -> None:
    """What is done at the end of a boot, and after a migration, where nothing is said."""


class SqliteStore:
    """The store in the file at `path`, made when there is none.

    A write waits at most `timeout` seconds for its turn. `boot` names the boot of the
    machine that leases belong to; in another one `end_of_boot` is called first. `migrated`
    is called, in the same transaction, when a file of an older version was brought up to
    date: bitmaps whose layout changed are gone, and to be made from the records.

    The path is resolved once: a later chdir, or another target of a symbolic link, changes
    nothing. The file is made for its owner alone (mode 600); the group may be given the
    right to read it.

    Safe for threads, and across fork. Raises StoreError for a file that is none of ours,
    damaged, or older than what was committed to it, and InvalidValueError for values that
    cannot be; what was not opened has changed nothing.
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
        self._left = self._closed = True
        self.timeout = as_seconds(timeout, "timeout")
        self.boot = boot_id() if boot is None else as_text(boot, "boot")
        self.path = place.resolved(path)
        self._end_of_boot = end_of_boot
        self._migrated = migrated
        self._file = files.enter(self.path)
        self._left = self._closed = False
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def run(
        self, operation: str, work: Callable[[SqliteTransaction], T], *, durable: bool = False
    ) -> T:
        """Make a change, when those before are done; see Store."""
        file = self._file
        turn = file.turn
        mine = False
        try:
            if not turn.acquire(True, self.timeout):
                raise self._waited(operation)
            if self._closed or file.changing:
                raise self._refusal(operation)
            file.changing = mine = True
            tx = self._start(operation, durable)
            result = work(tx)
            if not tx.over:
                tx.commit()
            file.writing = None
            return result
        except BaseException:
            if mine:
                try:
                    file.undo()
                finally:
                    file.undo()  # where an interrupt ended the first one; otherwise nothing
            raise
        finally:
            try:
                if mine:
                    file.lock.give()
            finally:
                try:
                    if mine:
                        file.changing = False
                    turn.release()
                except RuntimeError:
                    pass  # it did not come in time

    def view(self, work: Callable[[SqliteTransaction], T]) -> T:
        """What `work` makes of what was committed last; never waits for a writer. See Store."""
        file = self._file
        look = file.look
        mine = False
        try:
            if not look.acquire(True, self.timeout):
                raise self._waited("view")
            if self._closed or file.viewing:
                raise self._refusal("view")
            file.viewing = mine = True
            return work(self._look())
        finally:
            try:
                if mine:
                    file.end_view()
            finally:
                try:
                    if mine:
                        file.viewing = False
                    look.release()
                except RuntimeError:
                    pass  # it did not come in time

    def begin(self, operation: str, *, durable: bool = False) -> SqliteTransaction:
        """A change step by step; see Store."""
        file = self._file
        if not file.turn.acquire(True, self.timeout):
            raise self._waited(operation)
        try:
            if self._closed or file.changing:
                raise self._refusal(operation)
            file.changing = True
            try:
                tx = self._start(operation, durable)
            except BaseException:
                file.undo()
                file.lock.give()
                file.changing = False
                raise
        except BaseException:
            file.turn.release()
            raise
        tx.ended = self._end_change
        return tx

    def read(self) -> SqliteTransaction:
        """A view step by step; see Store."""
        file = self._file
        if not file.look.acquire(True, self.timeout):
            raise self._waited("view")
        try:
            if self._closed or file.viewing:
                raise self._refusal("view")
            file.viewing = True
            try:
                tx = self._look()
            except BaseException:
                file.end_view()
                file.viewing = False
                raise
        except BaseException:
            file.look.release()
            raise
        tx.ended = self._end_view
        return tx

    def refuse_reentry(self, operation: str) -> None:
        """Raise StoreError where this thread is in the middle of a change of the file."""
        file = self._file
        if file.changing and file.writing is not None and file.writing.thread == get_ident():
            raise in_the_middle(operation)

    def needs_recovery(self, network: int) -> bool:
        """Whether a process died, or is right now, in the middle of a kernel change."""
        self._check_open()
        mark = self._file.lock.peek()
        return mark is None or not mark.known or network in mark.dirty

    def write_back(self) -> None:
        """Bring the log into the file, and sync: after that a copy of the file alone is whole.

        Raises StoreError while another connection reads.
        """
        self._check_open()
        with taken(self._file.turn, self.timeout, self.path):
            ((busy, _, _),) = self._file.writer().rows("PRAGMA wal_checkpoint(TRUNCATE)")
            if busy:
                raise StoreError(f"{self.path} is in use, so its log cannot be written back")

    def check(self) -> list[str]:
        """What is wrong with the file itself; O(file)."""
        self._check_open()
        with taken(self._file.look, self.timeout, self.path):
            connection = self._file.reader()
            return damage(connection) or damaged_rows(connection)

    def close(self) -> None:
        """Close it, when what other threads are at is done; a second time is no error.

        Every later call is a ClosedError. Raises StoreError where another thread takes longer
        than `timeout` seconds, and within a change or view of this thread: the file stays open
        then, until it is closed again.
        """
        if self._left:
            return
        self._closed = True
        file = self._file
        with file.held(self.timeout):
            if self._left:
                return
            for transaction in (file.reading, file.writing):
                if transaction is not None and transaction.owner is self:
                    if transaction.ended is None:
                        raise in_the_middle("close")
                    transaction.rollback()
            self._left = True
        files.leave(file)

    def __enter__(self) -> "SqliteStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the store {self.path} was closed")

    def _refusal(self, operation: str) -> NetallocError:
        if self._closed:
            return ClosedError(f"{operation}: the store {self.path} was closed")
        return in_the_middle(operation)

    def _waited(self, operation: str) -> StoreError:
        return StoreError(
            f"{operation}: waited {self.timeout:g} s for another thread of this process"
        )

    def _start(self, operation: str, durable: bool) -> SqliteTransaction:
        file = self._file
        if not self.path.exists():
            raise file.gone()  # before a lock file is made anew for nothing
        mark = file.lock.enter(operation, self.timeout)
        connection = file.writer()
        connection.rollback()  # of a change whose undoing was interrupted
        connection.sync(full=durable)
        connection.execute("BEGIN IMMEDIATE")
        tx = file.writing = self._transaction(connection)
        tx.start(operation, mark, self.boot)
        return tx

    def _transaction(self, connection: Session) -> SqliteTransaction:
        return SqliteTransaction(self.path, connection, self._file.lock, self, self._end_of_boot)

    def _look(self) -> SqliteTransaction:
        tx = self._snapshot()
        if tx.boot != self.boot:  # the first one of this boot
            self._file.end_view()
            self.run("end of boot", lambda tx: None)
            tx = self._snapshot()
        return tx

    def _snapshot(self) -> SqliteTransaction:
        file = self._file
        connection = file.reader()
        connection.rollback()  # of a view whose end was interrupted
        connection.execute("BEGIN")
        tx = SqliteTransaction(self.path, connection, None, self)
        tx.state(file.lock.peek())
        file.reading = tx
        return tx

    def _end_change(self) -> None:
        file = self._file
        file.writing = None
        file.lock.give()
        file.changing = False
        file.turn.release()

    def _end_view(self) -> None:
        file = self._file
        file.reading = None
        file.viewing = False
        file.look.release()

    def _prepare(self) -> None:
        """Make the tables, or bring them up to date; usually neither."""
        place.check_folder(self.path)
        found = place.look_at(self.path)
        mark = self._file.lock.peek()
        if found is None or not found.st_size:
            if mark is not None and (mark.sequence or not mark.known):
                changes = f"{mark.sequence} changes were" if mark.known else "something was"
                raise StoreError(
                    f"{self.path} is empty or gone, but {changes} committed to it: put a copy "
                    f"back, or remove {self._file.lock.path} as well to begin anew"
                )
        else:
            check_length(self.path, found.st_size)
            place.check_beside(self.path)
            with taken(self._file.look, self.timeout, self.path):
                version = version_of(self._file.reader())
            place.tighten(self.path)  # not before it is known to be a store
            if version == VERSION:
                return
        with self._file.held(self.timeout):
            self._make()

    def _make(self) -> None:
        file = self._file
        mark = file.lock.enter("make tables", self.timeout)
        try:
            made = place.look_at(self.path) is None
            try:
                if made:
                    place.create(self.path)
                else:
                    place.tighten(self.path)
                connection = file.writer()
                ((mode,),) = connection.rows("PRAGMA journal_mode = WAL")
                if mode != "wal":
                    raise StoreError(
                        f"{self.path}: its filesystem shares no memory between processes, which "
                        "SQLite's write-ahead log needs"
                    )
                connection.sync(full=True)
                connection.execute("BEGIN IMMEDIATE")
                try:
                    self._make_tables(connection, mark)
                except BaseException:
                    connection.rollback()
                    raise
            except BaseException:
                if made:  # nothing is left of what could not be made
                    file.close_connections()
                    place.remove(self.path)
                    if mark is None:
                        file.lock.path.unlink(missing_ok=True)
                raise
        finally:
            file.lock.leave()

    def _make_tables(self, connection: Session, mark: WriterRecord | None) -> None:
        version = version_of(connection)
        identity = int.from_bytes(os.urandom(6), "big") + 1
        if version == VERSION:  # another process was first
            connection.rollback()
        elif not version:
            create(connection, self.boot, identity)
            connection.execute("COMMIT")
            self._file.lock.write(WriterRecord(boot=self.boot, sequence=1, store=identity))
        else:
            migrate(connection)
            tx = self._transaction(connection)
            self._file.changing, self._file.writing = True, tx
            try:
                tx.start("make tables", mark, self.boot)
                tx.brought_over(identity)
                self._migrated(tx)
                tx.commit()
            finally:
                try:
                    self._file.undo()
                finally:
                    self._file.changing = False
