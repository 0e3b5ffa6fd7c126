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
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from netalloc.errors import ClosedError, StoreError
from netalloc.host.boot import boot_id
from netalloc.store.protocol import Transaction
from netalloc.store.sqlite import file as files
from netalloc.store.sqlite import place
from netalloc.store.sqlite.connection import check_length
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
_NOTHING = partial(bool)


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
        self._closed = True
        self.timeout = as_seconds(timeout, "timeout")
        self.boot = boot_id() if boot is None else as_text(boot, "boot")
        self.path = place.resolved(path)
        self._end_of_boot = end_of_boot
        self._migrated = migrated
        try:
            self._file = files.enter(self.path, self)
            self._closed = False
            self._prepare()
        except BaseException:
            self._closed = False
            self.close()
            raise

    def run(
        self,
        operation: str,
        work: Callable[[SqliteTransaction], T],
        *,
        durable: bool = False,
    ) -> T:
        """Make a change when those before are done; see Store."""
        self._check_open(operation)
        return self._file.turn.run(
            operation, self.timeout, partial(self._run, operation, work, durable)
        )

    def _run(self, operation: str, work: Callable[[SqliteTransaction], T], durable: bool) -> T:
        file = self._file
        self._check_open(operation)
        try:
            tx = self._begin(operation, durable, _NOTHING)
            result = work(tx)
            if not tx.committed:
                tx.commit()
            return result
        finally:
            # What rollback() does in good order the two functions in C do in any case.
            try:
                if file.writing is not None:
                    file.writing.rollback()
            finally:
                try:
                    file.abort()
                except sqlite3.Error:
                    pass  # the connection is of no use any more: the next change has another
                finally:
                    try:
                        file.writing = None
                        file.lock.free()
                    except OSError:
                        pass  # a forked child has given the lock file back

    def view(self, work: Callable[[SqliteTransaction], T]) -> T:
        """See what was committed last; never waits for a writer."""
        look = self._file.look
        self._check_open("view")
        if look.is_mine:
            return self._view_within(work)
        while True:
            found = look.run("view", self.timeout, partial(self._view, work))
            if found:
                return found[0]
            self.run("end of boot", _nothing)  # the first one of this boot

    def _view(self, work: Callable[[SqliteTransaction], T]) -> "tuple[T] | None":
        """What it returns; None where the file is still of another boot."""
        file = self._file
        self._check_open("view")
        try:
            connection = file.reader()
            tx = SqliteTransaction(self.path, connection, None, self, _NOTHING)
            connection.execute("BEGIN")
            if tx.state(file.lock.peek()) != self.boot:
                return None
            file.reading = tx
            return (work(tx),)
        finally:
            try:
                if file.reading is not None:
                    file.reading.rollback()
            finally:
                try:
                    file.reading = None
                    file.abort_reading()
                except sqlite3.Error:
                    pass

    def _view_within(self, work: Callable[[SqliteTransaction], T]) -> T:
        """A view within a view of the same thread, from a signal handler, say."""
        connection = Session(self.path)
        try:
            connection.execute("BEGIN")
            tx = SqliteTransaction(self.path, connection, None, self, _NOTHING)
            if tx.state(self._file.lock.peek()) != self.boot:
                raise in_the_middle("view", self._file.look.what)
            return work(tx)
        finally:
            connection.close()

    def begin(self, operation: str, *, durable: bool = False) -> SqliteTransaction:
        """A change step by step; see Store."""
        file = self._file
        self._check_open(operation)
        file.turn.enter(operation, self.timeout)
        try:
            self._check_open(operation)
            tx = self._begin(operation, durable, self._end_writing)
            tx.step_by_step = True
            return tx
        except BaseException:
            file.turn.leave()
            raise

    def read(self) -> SqliteTransaction:
        """A view step by step."""
        file = self._file
        self._check_open("view")
        self.view(lambda tx: None)  # what ends with a boot has ended
        file.look.enter("view", self.timeout)
        try:
            self._check_open("view")
            connection = file.reader()
            tx = SqliteTransaction(self.path, connection, None, self, self._end_reading)
            connection.execute("BEGIN")
            tx.state(file.lock.peek())
            tx.step_by_step = True
            file.reading = tx
            return tx
        except BaseException:
            file.abort_reading()
            file.look.leave()
            raise

    def refuse_reentry(self, operation: str) -> None:
        """Raise StoreError where this thread is in the middle of a change of this file."""
        if self._file.turn.is_mine:
            raise in_the_middle(operation, self._file.turn.what)

    def needs_recovery(self, network: int) -> bool:
        """Whether a process died, or is right now, in the middle of a kernel change."""
        self._check_open("look")
        mark = self._file.lock.peek()
        return mark is None or not mark.known or network in mark.dirty

    def write_back(self) -> None:
        """Bring the log into the file, and sync: after that a copy of the file alone is whole.

        Raises StoreError while another connection reads.
        """
        self._check_open("write back")

        def roll() -> None:
            ((busy, _, _),) = self._file.writer().rows("PRAGMA wal_checkpoint(TRUNCATE)")
            if busy:
                raise StoreError(f"{self.path} is in use, so its log cannot be written back")

        self._file.turn.run("write back", self.timeout, roll)

    def check(self) -> list[str]:
        """What is wrong with the file itself; O(file)."""
        self._check_open("check")

        def look() -> list[str]:
            connection = self._file.reader()
            return damage(connection) or damaged_rows(connection)

        return self._file.look.run("check", self.timeout, look)

    def close(self) -> None:
        """Close it, when what other threads are at is done; a second time is no error.

        Every later call is a ClosedError. A change that this very thread has not ended is
        undone. Raises StoreError where another thread takes longer than `timeout` seconds:
        the file stays open then, until it is closed again.
        """
        file = getattr(self, "_file", None)
        if file is None:
            return
        for turn, tx in ((file.look, file.reading), (file.turn, file.writing)):
            if turn.is_mine and tx is not None and tx.owner is self and tx.step_by_step:
                tx.rollback()
        if file.look.is_mine or file.turn.is_mine:
            raise in_the_middle("close", file.look.what if file.look.is_mine else file.turn.what)
        self._closed = True
        leave = partial(files.leave, file, self)
        file.look.run("close", self.timeout, partial(file.turn.run, "close", self.timeout, leave))

    def __enter__(self) -> "SqliteStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self, operation: str) -> None:
        if self._closed:
            raise ClosedError(f"{operation}: the store {self.path} was closed")

    def _begin(self, operation: str, durable: bool, ended: Callable[[], Any]) -> SqliteTransaction:
        file = self._file
        if not self.path.exists():
            raise file.gone()  # before a lock file is made anew for nothing
        mark = file.lock.enter(operation, self.timeout)
        try:
            connection = file.writer()
            connection.sync(full=durable)
            connection.execute("BEGIN IMMEDIATE")
            try:
                tx = self._transaction(connection, ended)
                tx.start(operation, mark, self.boot)
            except BaseException:
                connection.rollback()
                raise
            file.writing = tx
            return tx
        except BaseException:
            file.lock.leave()
            raise

    def _transaction(self, connection: Session, ended: Callable[[], Any]) -> SqliteTransaction:
        return SqliteTransaction(
            self.path, connection, self._file.lock, self, ended, self._end_of_boot
        )

    def _end_writing(self) -> None:
        self._file.writing = None
        self._file.turn.leave()

    def _end_reading(self) -> None:
        self._file.reading = None
        self._file.look.leave()

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
            place.tighten(self.path)
            if self._file.look.run("open", self.timeout, self._version) == VERSION:
                return
        make = partial(self._file.turn.run, "make tables", self.timeout, self._make)
        self._file.look.run("make tables", self.timeout, make)

    def _version(self) -> int:
        return version_of(self._file.reader())

    def _make(self) -> None:
        file = self._file
        mark = file.lock.enter("make tables", self.timeout)
        try:
            made = place.look_at(self.path) is None
            try:
                if made:
                    place.create(self.path)
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
            try:
                file.abort()
            except sqlite3.Error:
                pass
            finally:
                try:
                    file.lock.free()
                except OSError:
                    pass

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
            tx = self._transaction(connection, _NOTHING)
            try:
                tx.start("make tables", mark, self.boot)
                tx.brought_over(identity)
                self._migrated(tx)
            except BaseException:
                tx.rollback()
                raise
            tx.commit()
