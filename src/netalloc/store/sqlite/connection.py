"""One connection to the store file; what goes wrong there is a StoreError with a way out."""

from __future__ import annotations

import os
import sqlite3
import sys

from netalloc._alloc import FilePlace, SqlRunner
from netalloc.errors import StoreError
from netalloc.store.sqlite.refusals import is_refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from netalloc.store.sqlite.place import StrPath

REPAIR = "netalloc.manager.repair.repair(path) mends what can be mended and keeps a copy"
_BUSY = 5.0  # seconds: only programs that do not queue at the lock file are waited for here

_LONG_LOG = 1 << 20  # bytes: some 35 changes, among which the write-back and sync is shared

_PAGE = 4096  # what a store is made with: SQLite's own choice since 2016
NO_ROOM = "no room left on the disk"

# SQLite's messages (sqlite3ErrStr in its source) that say nothing of the file's contents.
_MEANINGS = (
    ("is full", NO_ROOM + " ({text}); nothing was changed"),
    ("I/O error", "{text}: is the disk full, or failing? Nothing was changed"),
    ("UNIQUE constraint", "a record of that key is there already ({text})"),
    ("unable to open", "{text}: are folder and file there, and writable?"),
    ("readonly", "{text}: are folder and file writable?"),
    ("locked", "{text} by a program that does not queue at {path}.lock"),
    ("not a database", "this is no SQLite database ({text}); if it was a store, " + REPAIR),
)

_FAULTS = (sqlite3.Error, UnicodeError)  # the latter where SQLite quotes what it cannot read


class Connection(SqlRunner):
    """Runs SQL, and says in our words what went wrong.

    `uri` is how SQLite is to open the path, where that is not to read and write.
    """

    def __init__(self, path: StrPath, uri: str | None = None) -> None:
        self.path = path
        self._name = str(path)  # pathlib's stat() takes twice the time
        self.inherited = False  # by a forked child: then it is the parent's to close
        self._closed = False
        self._place = _place_of(path)
        try:
            # check_same_thread: the store's own lock lets one thread in at a time.
            raw = sqlite3.connect(
                path if uri is None else uri,
                timeout=_BUSY,
                isolation_level=None,
                check_same_thread=False,
                uri=uri is not None,
            )
        except _FAULTS as error:
            raise _translated(error, path) from error
        try:
            self._begin(raw, _FAULTS)
            self._keep_log(True)
        except BaseException:  # the file was opened, and its log perhaps not
            raw.close()
            raise
        # Rolls back what is under way, if anything is: a function in C.
        self.abort: Callable[[], object] = self._raw.rollback

    def _translated(self, error: Exception) -> StoreError:
        return _translated(error, self.path)

    def copy_to(self, target: sqlite3.Connection) -> None:
        """Copy the whole store, as this connection's transaction sees it."""
        self._raw.backup(target)

    def rows_until_damage(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query up to the first that cannot be read."""
        found: list[tuple[Any, ...]] = []
        try:
            found.extend(self._raw.execute(sql))
        except _FAULTS as error:
            if is_refusal(error, self.path):
                raise _translated(error, self.path) from error
            return found  # extend() keeps what came before
        return found

    @property
    def is_current(self) -> bool:
        """Whether the file at the path is still the one that was opened."""
        if self._place is None:  # it was made by opening it
            self._place = _place_of(self.path)
        return self._place is not None and self._place.is_there()

    @property
    def in_transaction(self) -> bool:
        """Whether something is under way that was neither committed nor undone."""
        return not self._closed and self._raw.in_transaction

    @property
    def changes(self) -> int:
        """How many rows were changed so far."""
        return self._raw.total_changes

    def sync(self, *, full: bool) -> None:
        """Whether the commits to come outlive a power cut."""
        if full is not self.full:
            self.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self.full = full

    def rollback(self) -> None:
        """Undo what is not committed; nothing to undo is no error."""
        if self.in_transaction:
            self.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file."""
        if self.inherited:
            return
        self._closed = True
        try:
            if self._log_size() > _LONG_LOG:
                self._keep_log(False)
            self._cursor.close()  # or a statement that failed would keep the file open
        except sqlite3.ProgrammingError:
            pass  # it is closed already
        finally:
            self._close_raw()

    def _close_raw(self) -> None:
        try:
            self._raw.close()
        except _FAULTS as error:
            raise _translated(error, self.path) from error

    def _keep_log(self, keep: bool) -> None:
        """Whether the last connection to close leaves the log where it is.

        Otherwise SQLite writes it back and syncs then, which makes a process that does one
        thing three times as slow. But who opens the file next reads the log to its end: 4 MB of
        it cost more than all the rest (1.6 times in all), so a long one is written back.
        """
        if sys.version_info >= (3, 12):  # before, sqlite3 cannot tell SQLite
            self._raw.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep)

    def _log_size(self) -> int:
        try:
            return os.stat(f"{self._name}-wal").st_size
        except OSError:
            return 0


def _place_of(path: StrPath) -> FilePlace | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return FilePlace(os.fsencode(path), found.st_dev, found.st_ino)


def check_length(path: StrPath, size: int) -> None:
    """Raise StoreError for a file that was cut off within a page; SQLite finds the others."""
    if size % _PAGE:
        raise StoreError(f"{path} is cut off: {size} bytes are no whole pages; {REPAIR}")


def _translated(error: Exception, path: StrPath) -> StoreError:
    text = str(error)
    for found, meaning in _MEANINGS:
        if found in text:
            return StoreError(f"{path}: {meaning.format(text=text, path=path)}")
    return StoreError(f"{path} is damaged ({text}); {REPAIR}")
