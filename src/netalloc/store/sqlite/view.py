"""Reading a store's file without a right to write, and without a trace.

A reader of a write-ahead log needs the index of it that the processes share, the file -shm;
SQLite would make it where it is missing. So there are two ways to look at a file, and at each
call the one is taken that leaves nothing behind:

- log and index are there: both are opened to read alone (`readonly_shm`), and what was
  committed last is seen while writers go on;
- there is no log, or nothing in it: the file alone is the whole store, and is read as it is
  (`immutable`). Should a writer come and roll a log into it meanwhile, the view notices at its
  end, and says so.

What cannot be read is a log whose index is missing: the next process that opens the store to
write makes it (sqlite.org/wal.html, "Read-Only Databases").
"""

from __future__ import annotations

import os
from functools import partial
from threading import get_ident
from urllib.parse import quote

from netalloc.closing import Closing
from netalloc.errors import ClosedError, StoreError
from netalloc.host.boot import boot_id
from netalloc.store.sqlite import file as files
from netalloc.store.sqlite import place
from netalloc.store.sqlite.file import StoreFile
from netalloc.store.sqlite.schema import version_of
from netalloc.store.sqlite.session import Session
from netalloc.store.sqlite.transaction import SqliteTransaction
from netalloc.store.sqlite.versions import VERSION
from netalloc.store.turn import in_the_middle
from netalloc.values import as_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")


_TRIES = 100  # at a file that other processes open and close all the time


class _Moved(StoreError):
    """The file that was read without its log has changed meanwhile."""


class SqliteView(Closing):
    """The store in the file at `path`, to read alone; each read() is one consistent state.

    Needs the right to read the file, and its -wal and -shm while they are there; nothing is
    written, made or locked against writers. Nothing is kept between two reads, so a file
    that was replaced, or is not there yet, is no reason to make a new view.

    A store whose boot is over still says what was leased then: `boot` of what read() returns
    differs from `boot` here. Safe for threads, and across fork.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        self.timeout = as_seconds(timeout, "timeout")
        self.path = place.resolved(path)
        self.boot = boot_id()
        self._closed = False

    def view(self, work: Callable[[SqliteTransaction], T]) -> T:
        """What `work` makes of what was committed last. Costs some 0.3 ms to open the file.

        Raises StoreError for a file that is not there, cannot be read, is damaged or of
        another version, and within another view of the same thread. Where a writer comes in the
        middle, `work` is called again.
        """
        for _ in range(_TRIES):
            try:
                return self._viewed(work)
            except _Moved:  # noqa: PERF203
                continue
        return self._viewed(work)

    def _viewed(self, work: Callable[[SqliteTransaction], T]) -> T:
        tx = self.read()
        try:
            return work(tx)
        finally:
            tx.rollback()

    def read(self) -> SqliteTransaction:
        """The same step by step; end it by rollback()."""
        if self._closed:
            raise ClosedError(f"the view of {self.path} was closed")
        user = object()
        file = files.enter(self.path, user)
        if not file.look.acquire(True, self.timeout):
            files.leave(file, user)
            raise StoreError(f"view: waited {self.timeout:g} s for another thread of this process")
        try:
            if file.viewing:
                raise in_the_middle("view")
            file.viewing = get_ident()
            try:
                return self._open(file, user)
            except BaseException:
                file.viewing = 0
                raise
        except BaseException:
            file.look.release()
            files.leave(file, user)
            raise

    def close(self) -> None:
        """Every later read is a ClosedError; one that is under way goes on."""
        self._closed = True

    def _open(self, file: StoreFile, user: object) -> SqliteTransaction:
        """What is there is looked at, then opened: the last writer may take the log away between.

        So where that went or came meanwhile, it is done again.
        """
        for _ in range(_TRIES):
            before = _files(self.path)
            try:
                return self._open_once(file, user)
            except StoreError:
                if _files(self.path) == before:
                    raise
        return self._open_once(file, user)

    def _open_once(self, file: StoreFile, user: object) -> SqliteTransaction:
        found = place.look_at(self.path, owner=False)
        if found is None:
            raise StoreError(f"{self.path} is not there: no store was made yet, or it is gone")
        if not _readable(self.path):
            raise StoreError(f"{self.path} may not be read by user {os.geteuid()}")
        if not found.st_size:
            raise StoreError(f"{self.path} is empty: no store was made yet")
        place.check_beside(self.path, owner=False)
        immutable = _is_whole(self.path)
        connection = Session(self.path, _uri(self.path, immutable))
        try:
            connection.execute("BEGIN")
            version = version_of(connection)
            if version != VERSION:
                raise StoreError(
                    f"{self.path} is of version {version}, and {VERSION} can be read: opening it "
                    "with a NetworkManager brings it up to date"
                )
            tx = SqliteTransaction(self.path, connection, None, self)
            tx.state(None)
            tx.ended = partial(self._end, file, user, connection, found if immutable else None)
            file.reading = tx
            return tx
        except BaseException:
            connection.close()
            raise

    def _end(
        self,
        file: StoreFile,
        user: object,
        connection: Session,
        before: os.stat_result | None,
    ) -> None:
        file.reading = None
        file.viewing = 0
        try:
            connection.close()
            if before is not None and _fingerprint(os.stat(self.path)) != _fingerprint(before):
                raise _Moved(f"{self.path} was written to while it was read: read it again")
        finally:
            file.look.release()
            files.leave(file, user)


def open_view(path: str | os.PathLike[str], *, timeout: float = 10.0) -> SqliteView:
    """A view of the store in the file at `path`; see SqliteView."""
    return SqliteView(path, timeout=timeout)


def _uri(path: str, immutable: bool) -> str:
    options = "immutable=1" if immutable else "readonly_shm=1"
    return f"file:{quote(os.fsencode(path))}?mode=ro&{options}"


def _is_whole(path: str) -> bool:
    """Whether nothing of the store is in a log. Raises StoreError for one that is out of reach."""
    try:
        log = os.stat(f"{path}-wal").st_size
    except FileNotFoundError:
        return True
    except OSError as error:
        raise StoreError(f"{path}-wal: {error.strerror}") from error
    if _readable(f"{path}-shm"):
        return False
    if not log:
        return True
    raise StoreError(
        f"{path} has a log whose index {path}-shm is missing or may not be read by user "
        f"{os.geteuid()}: opening the store to write makes it"
    )


def _files(path: str) -> list[tuple[int, int] | None]:
    """What tells the store's file, and those that SQLite has beside it, from later ones."""
    return [_file(f"{path}{suffix}") for suffix in ("", *place.SIDE_FILES)]


def _file(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns  # a number may be given again at once


def _readable(path: str) -> bool:
    return os.access(path, os.R_OK, effective_ids=True)


def _fingerprint(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns
