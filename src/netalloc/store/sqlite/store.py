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

from __future__ import annotations

import os
import sqlite3
from _thread import get_ident
from functools import partial

from netalloc._alloc import FileTurn
from netalloc.closing import Closing
from netalloc.errors import (
    ClosedError,
    ExhaustedError,
    InUseError,
    InvalidValueError,
    NetallocError,
    NotAllocatedError,
    StaleLeaseError,
    StoreError,
)
from netalloc.host.boot import boot_id
from netalloc.store.sqlite import file as files
from netalloc.store.sqlite import place
from netalloc.store.sqlite.connection import NO_ROOM
from netalloc.store.sqlite.opening import Opening
from netalloc.store.sqlite.session import Session
from netalloc.store.sqlite.transaction import SqliteTransaction
from netalloc.store.turn import in_the_middle
from netalloc.values import as_seconds, as_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from netalloc.store.protocol import Transaction

    T = TypeVar("T")

# What a change is refused with that cannot be; not what is wrong with the file, or the way to it.
_REFUSALS = (
    ExhaustedError,
    InUseError,
    InvalidValueError,
    NotAllocatedError,
    StaleLeaseError,
)


def _nothing(tx: Transaction) -> None:
    """What is done at the end of a boot, and after a migration, where nothing is said."""


class SqliteStore(FileTurn, Closing):
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
    _faults = sqlite3.Error
    _file: files.StoreFile

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
        try:
            self._file = files.enter(self.path, self)
            self._closed = False
            opening = Opening(self._file, self.timeout, self.boot, self._transaction)
            opening.prepare(migrated)
        except BaseException:
            self.close()
            raise

    def _undo(self, error: BaseException) -> None:
        """Undo the change that is under way, as far as it came before that error."""
        file = self._file
        tx = file.writing
        file.undo()
        if tx is not None and isinstance(error, _REFUSALS):
            tx.refused()
        if isinstance(error, StoreError) and NO_ROOM in str(error):
            file.make_room()

    def view(self, work: Callable[[SqliteTransaction], T]) -> T:
        """What `work` makes of what was committed last; never waits for a writer. See Store."""
        while True:
            found = self._view(work)
            if found:
                return found[0]
            self.run("end of boot", _nothing)  # the first one of this boot

    def _view(self, work: Callable[[SqliteTransaction], T]) -> tuple[T] | None:
        """The result; None where what ends with a boot has to end first."""
        file = self._file
        look, me = file.look, get_ident()
        mine = False
        self._check_open()
        try:
            if not look.acquire(True, self.timeout):
                raise self._waited("view")
            if self._closed or file.viewing:
                raise self._refusal("view")
            file.viewing, mine = me, True
            tx = self._snapshot()
            if tx.boot != self.boot:
                return None
            found = (work(tx),)
            tx.settle()
            return found
        finally:
            try:
                if mine:
                    file.end_view()
            finally:
                try:
                    if mine:
                        file.reading = None
                        file.abort_view()
                except sqlite3.Error:
                    pass
                finally:
                    try:
                        if mine:
                            file.viewing = 0
                        look.release()
                    except RuntimeError:
                        pass  # it did not come in time

    def survey(self, work: Callable[[SqliteTransaction], T]) -> T:
        """The same over a connection of its own, which holds up neither views nor changes."""
        self.view(_nothing)  # what ends with a boot has ended

        def look(connection: Session) -> T:
            tx = SqliteTransaction(self.path, connection, None, self)
            tx.state(self._file.lock.peek())
            return work(tx)

        return self._surveying("survey", look)

    def _surveying(self, operation: str, look: Callable[[Session], T]) -> T:
        self._check_open()
        work = partial(self._surveyed, look)
        return self._file.while_surveying(operation, self.timeout, work)

    def _surveyed(self, look: Callable[[Session], T]) -> T:
        """What `look` makes of one moment of the file. The caller has `round`."""
        file = self._file
        if self._closed:
            raise self._refusal("survey")
        try:
            file.surveying, file.surveyor_of = get_ident(), self
            connection = file.surveyor()
            connection.rollback()  # of one whose end was interrupted
            connection.execute("BEGIN")
            return look(connection)
        finally:
            try:
                file.end_survey()
            finally:
                try:
                    file.surveying = 0
                finally:
                    pass  # a `try` comes first: see locks.py

    def begin(self, operation: str, *, durable: bool = False) -> SqliteTransaction:
        """A change step by step; see Store."""
        file = self._file
        self._check_open()
        if not file.turn.acquire(True, self.timeout):
            raise self._waited(operation)
        try:
            if self._closed or file.changing:
                raise self._refusal(operation)
            file.changing = get_ident()
            try:
                tx: SqliteTransaction = self._start(operation, durable)
            except BaseException:
                file.undo()
                file.lock.give()
                file.changing = 0
                raise
        except BaseException:
            file.turn.release()
            raise
        tx.ended = self._end_change
        return tx

    def read(self) -> SqliteTransaction:
        """A view step by step; see Store."""
        self.view(_nothing)  # what ends with a boot has ended
        file = self._file
        self._check_open()
        if not file.look.acquire(True, self.timeout):
            raise self._waited("view")
        try:
            if self._closed or file.viewing:
                raise self._refusal("view")
            file.viewing = get_ident()
            try:
                tx = self._snapshot()
            except BaseException:
                file.end_view()
                file.viewing = 0
                raise
        except BaseException:
            file.look.release()
            raise
        tx.ended = self._end_view
        return tx

    def refuse_reentry(self, operation: str) -> None:
        """Raise StoreError where this thread is in the middle of a change of the file."""
        if self._file.changing == get_ident():
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

        def write_back() -> None:
            ((busy, _, _),) = self._file.writer().rows("PRAGMA wal_checkpoint(TRUNCATE)")
            if busy:
                raise StoreError(f"{self.path} is in use, so its log cannot be written back")

        self._file.while_changing("write back", self.timeout, write_back)

    def check(self) -> list[str]:
        """What is wrong with the file itself; O(file)."""
        from netalloc.store.sqlite.salvage import damage, damaged_rows

        return self._surveying("check", lambda session: damage(session) or damaged_rows(session))

    def close(self) -> None:
        """Close it, when what other threads are at is done; a second time is no error.

        Every later call is a ClosedError. Raises StoreError where another thread takes longer
        than `timeout` seconds, and within a change or view of this thread: the file stays open
        then, until it is closed again.
        """
        file = getattr(self, "_file", None)
        if file is None or id(self) not in file.users:
            return
        for at, tx in ((file.viewing, file.reading), (file.changing, file.writing)):
            if at == get_ident() and tx is not None and tx.owner is self:
                if tx.ended is None:
                    raise in_the_middle("close")
                tx.rollback()
        if file.surveying == get_ident() and file.surveyor_of is self:
            raise in_the_middle("close")
        self._closed = True
        leave = partial(files.leave, file, self)
        if get_ident() in (file.viewing, file.changing, file.surveying):
            leave()  # another store of the file is at it, and keeps the file open
        else:
            file.while_idle("close", self.timeout, leave)

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

    def _transaction(self, connection: Session) -> SqliteTransaction:
        return SqliteTransaction(self.path, connection, self._file.lock, self, self._end_of_boot)

    def _snapshot(self) -> SqliteTransaction:
        file = self._file
        connection = file.reader()
        connection.rollback()  # of a view whose end was interrupted
        connection.execute("BEGIN")
        tx = SqliteTransaction(self.path, connection, None, self)
        tx.state(file.lock.read())
        file.reading = tx
        return tx

    def _end_change(self) -> None:
        file = self._file
        file.writing = None
        file.lock.give()
        file.changing = 0
        file.turn.release()

    def _end_view(self) -> None:
        file = self._file
        file.reading = None
        file.viewing = 0
        file.look.release()
