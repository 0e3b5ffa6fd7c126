"""What one process has open of a store's file: one set of connections for all who ask.

The locks that keep SQLite's processes apart are the process's (fcntl(2)): closing any
descriptor of the file takes all of them away. So all stores of a process over one file share
a StoreFile, and what reads the file otherwise, to copy or to repair it, does so while no
connection is open (see alone.py).

A forked child must have none of it: what SQLite keeps in memory about a file would say that
locks are held which the child does not have. So connections are closed before a fork, and
opened again, by both sides, when they are next needed.
"""

from __future__ import annotations

import os
from _thread import RLock, get_ident
from functools import partial

from netalloc.errors import StoreError
from netalloc.forks import guard
from netalloc.locks import holding
from netalloc.store.sqlite.session import Session
from netalloc.store.sqlite.write_lock import WriteLock
from netalloc.store.turn import in_the_middle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

    from netalloc.store.sqlite.place import StrPath
    from netalloc.store.sqlite.transaction import SqliteTransaction


# Pages of the log, 32 MB, after which it is written back into the file, by the commit that makes
# it so long. After 1,000, SQLite's own choice, one allocation in 300 pays for that, and waits for
# the disk; so it is one in 2,600. Of a small filesystem it takes a sixteenth of what is free.
_LOG = 8_000
_SHORT_LOG = 250


class StoreFile:
    """A file, its write lock, and the connections of this process: one to write, one to read.

    `turn` is held by the thread that writes, `look` by the one that reads; who needs both
    takes `look` first. `round` is held, before both, by the one that looks at all there is, over
    a connection of its own, for `surveyor_of`. `changing`, `viewing` and `surveying` are the
    threads that are at it, 0 where none is, `writing` and `reading` their transactions once
    there is one. `abort` and `abort_view` roll back whatever a connection is at, each in one
    call of a function in C.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.lock = WriteLock(f"{path}.lock")
        self.turn = RLock()
        self.look = RLock()
        self.round = RLock()
        self.surveying = 0
        self.surveyor_of: object = None
        self.changing = self.viewing = 0
        self.abort: Callable[[], object] = int
        self.abort_view: Callable[[], object] = int
        self.writing: SqliteTransaction | None = None
        self.reading: SqliteTransaction | None = None
        self.users: set[int] = set()
        self._writer: Session | None = None
        self._reader: Session | None = None
        self._surveyor: Session | None = None
        self._forked_inside = False
        guard(self)

    def writer(self) -> Session:
        """The connection for changes, to the file that is at the path now."""
        known = self._writer
        if known is not None and known.is_current:
            return known
        session = self._current(known if known is not None else self._idle_reader())
        try:
            session.execute(f"PRAGMA wal_autocheckpoint = {_log_pages(self.path)}")
        except BaseException:  # it is not ours yet, and nothing else would close it
            session.close()
            raise
        abort = session.abort
        self._writer = session
        self.abort = abort
        return session

    def _idle_reader(self) -> Session | None:
        """The connection for reading, where no thread reads: it becomes the one for changes.

        A process that opens a store, changes it once and ends has no need of a second one, which
        costs it 0.3 ms; another one opens it with its next view.
        """
        look = self.look
        try:
            if not look.acquire(False):
                return None
            if self.viewing:
                return None
            session, self._reader, self.abort_view = self._reader, None, int
            return session
        finally:
            try:
                look.release()
            except RuntimeError:
                pass  # another thread reads

    def reader(self) -> Session:
        """The connection for reading. The caller has `look`."""
        session = self._current(self._reader)
        abort = session.abort
        self._reader = session
        self.abort_view = abort
        return session

    def surveyor(self) -> Session:
        """The connection for looking at all there is. The caller has `round`."""
        session = self._surveyor = self._current(self._surveyor)
        return session

    def _current(self, session: Session | None) -> Session:
        if self._forked_inside:
            raise StoreError(
                f"this process was forked in the middle of a change of {self.path} by the same "
                "thread, and cannot use it: fork before or after"
            )
        if session is not None and session.is_current:
            return session
        self.check_there()  # before anything is closed: it may be put back
        if session is not None:
            session.close()  # it was repaired, and another file has taken its place
        return Session(self.path)

    def check_there(self) -> None:
        """Raise StoreError where there is no file."""
        if not os.path.exists(self.path):
            raise StoreError(
                f"{self.path} is gone: put a copy back, or remove {self.lock.path} as well to "
                "begin anew"
            )

    def undo(self) -> None:
        """Undo the change that is under way, as far as it came. The caller has `turn`."""
        transaction, writer = self.writing, self._writer
        if transaction is not None:
            transaction.rollback()
            self.writing = None
        elif writer is not None:
            writer.rollback()

    def make_room(self) -> None:
        """Give back what the log takes of a disk that is full. The caller has `turn`."""
        if self._writer is not None:
            try:
                self._writer.rows("PRAGMA wal_checkpoint(TRUNCATE)")
            except StoreError:
                pass  # it is as full as it was

    def end_view(self) -> None:
        """End what is being viewed, as far as it came. The caller has `look`."""
        transaction, reader = self.reading, self._reader
        if transaction is not None:
            transaction.rollback()
            self.reading = None
        elif reader is not None:
            reader.rollback()

    def end_survey(self) -> None:
        """Close the connection for it: what it has read of the store is all of it."""
        session, self._surveyor = self._surveyor, None
        if session is not None:
            session.close()

    def close_connections(self) -> None:
        """Close all. The caller has `round`, `look` and `turn`."""
        self.abort = self.abort_view = int
        sessions = self._surveyor, self._reader, self._writer
        self._surveyor = self._reader = self._writer = None
        _close_all([session for session in sessions if session is not None])

    def close(self) -> None:
        """Close everything; no thread is at it any more."""
        try:
            self.close_connections()
        finally:
            self.lock.close()

    def while_viewing(self, operation: str, timeout: float, work: Callable[[], T]) -> T:
        """What `work` returns, while no other thread reads, and this one only here."""

        def viewing() -> T:
            if self.viewing:
                raise in_the_middle(operation)
            return work()

        return holding(self.look, timeout, self._late(operation, timeout), viewing)

    def while_changing(self, operation: str, timeout: float, work: Callable[[], T]) -> T:
        """What `work` returns, while no other thread writes, and this one only here."""

        def changing() -> T:
            if self.changing:
                raise in_the_middle(operation)
            return work()

        return holding(self.turn, timeout, self._late(operation, timeout), changing)

    def while_idle(self, operation: str, timeout: float, work: Callable[[], T]) -> T:
        """What `work` returns, while no other thread reads or writes."""
        changing = partial(self.while_changing, operation, timeout, work)
        viewing = partial(self.while_viewing, operation, timeout, changing)
        return self.while_surveying(operation, timeout, viewing)

    def while_surveying(self, operation: str, timeout: float, work: Callable[[], T]) -> T:
        """What `work` returns, while no other thread surveys, and this one only here."""

        def surveying() -> T:
            if self.surveying or get_ident() in (self.viewing, self.changing):
                raise in_the_middle(operation)
            return work()

        return holding(self.round, timeout, self._late(operation, timeout), surveying)

    def _late(self, operation: str, timeout: float) -> str:
        return f"{operation}: waited {timeout:g} s for another thread of this process"

    def fork_locks(self) -> tuple[RLock, RLock, RLock]:
        """A fork waits for other threads' changes; in the order in which read() takes them."""
        return self.round, self.look, self.turn

    def before_fork(self) -> None:
        """Leave nothing to inherit, unless this very thread is in the middle of something."""
        if not self.changing and not self.viewing and not self.surveying:
            self.close_connections()

    def after_fork(self) -> None:
        """In a forked child: neither use nor close what belongs to the parent."""
        sessions = {self._surveyor, self._reader, self._writer}
        for transaction in (self.writing, self.reading):
            if transaction is not None:
                sessions.add(transaction.abandon())
        for session in sessions - {None}:
            assert session is not None
            session.inherited = self._forked_inside = True
            _inherited.append(session)
        self.abort = self.abort_view = int
        self._surveyor = self._reader = self._writer = None
        self.surveying = 0
        self.lock.close()


def _close_all(sessions: list[Session]) -> None:
    """Close each, whatever becomes of the others."""
    if sessions:
        try:
            sessions[0].close()
        finally:
            _close_all(sessions[1:])


def _log_pages(path: str) -> int:
    try:
        found = os.statvfs(path)
    except OSError:
        return _SHORT_LOG  # it is gone, as what uses it next will say
    free = found.f_bavail * found.f_frsize // 4096
    return max(_SHORT_LOG, min(_LOG, free // 16))


class _Registry:
    """The files that this process has open, by path."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._files: dict[str, StoreFile] = {}
        guard(self)

    def enter(self, path: StrPath, user: object) -> StoreFile:
        """The file at a resolved path, which one more uses from now on."""

        name = os.fspath(path)

        def entered() -> StoreFile:
            found = self._files.get(name)
            if found is None:
                self._check_other_names(name)
                found = self._files[name] = StoreFile(name)
            found.users.add(id(user))
            return found

        return holding(self._lock, -1, "", entered)

    def leave(self, file: StoreFile, user: object) -> None:
        """The file is used by one less; the last one closes it. Twice is no error."""

        def left() -> None:
            file.users.discard(id(user))
            if not file.users and self._files.get(file.path) is file:
                file.close()
                del self._files[file.path]

        holding(self._lock, -1, "", left)

    def _check_other_names(self, path: str) -> None:
        """A mount may give one file two names, of which each would have a log of its own."""
        try:
            mine = os.stat(path)
        except OSError:
            return
        for other in self._files.values():
            try:
                same = os.path.samestat(mine, os.stat(other.path))
            except OSError:
                continue
            if same:
                raise StoreError(f"{path} is open in this process already, as {other.path}")

    def fork_locks(self) -> tuple[RLock]:
        return (self._lock,)

    def after_fork(self) -> None:
        """The child has the same stores, each to open its file anew."""


_inherited: list[Session] = []  # of a fork in the middle of a change: never to be closed
_registry = _Registry()
enter = _registry.enter
leave = _registry.leave
