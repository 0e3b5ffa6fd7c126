"""One connection to the store file; what goes wrong there is a StoreError with a way out."""

import os
import sqlite3
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from netalloc.errors import StoreError

REPAIR = "netalloc.manager.repair.repair(path) mends what can be mended and keeps a copy"
_BUSY = 5.0  # seconds: only programs that do not queue at the lock file are waited for here

_FAULTS = (sqlite3.Error, UnicodeError)  # the latter where SQLite quotes what it cannot read


class Connection:
    """Runs SQL, and says in our words what went wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._full: bool | None = None
        try:
            self._file: os.stat_result | None = path.stat()
        except FileNotFoundError:
            self._file = None
        try:
            # check_same_thread: the store's own lock lets one thread in at a time.
            self._raw = sqlite3.connect(
                path, timeout=_BUSY, isolation_level=None, check_same_thread=False
            )
        except _FAULTS as error:
            raise _translated(error, path) from error
        if sys.version_info >= (3, 12):
            # The last one to close would write the log back and sync, which makes a process
            # that does one thing three times as slow. Whoever fills the log does it instead.
            self._raw.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> None:
        """Run a statement that answers nothing."""
        try:
            self._raw.execute(sql, values)
        except _FAULTS as error:
            raise _translated(error, self.path) from error

    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        try:
            return self._raw.execute(sql, values).fetchall()
        except _FAULTS as error:
            raise _translated(error, self.path) from error

    def rows_until_damage(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query up to the first that cannot be read."""
        found: list[tuple[Any, ...]] = []
        try:
            found.extend(self._raw.execute(sql))
        except _FAULTS:
            return found  # extend() keeps what came before
        return found

    def many(self, sql: str, values: Iterable[tuple[Any, ...]]) -> int:
        """Run a statement for each of the values; how many rows changed."""
        try:
            return self._raw.executemany(sql, values).rowcount
        except _FAULTS as error:
            raise _translated(error, self.path) from error

    @property
    def is_current(self) -> bool:
        """Whether the file at the path is still the one that was opened."""
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return False
        if self._file is None:  # it was made by opening it
            self._file = now
        return os.path.samestat(now, self._file)

    @property
    def changes(self) -> int:
        """How many rows were changed so far."""
        return self._raw.total_changes

    def sync(self, *, full: bool) -> None:
        """Whether the commits to come outlive a power cut."""
        if full is not self._full:
            self.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self._full = full

    def rollback(self) -> None:
        """Undo what is not committed; nothing to undo is no error."""
        if self._raw.in_transaction:
            self.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file."""
        try:
            self._raw.close()
        except _FAULTS as error:
            raise _translated(error, self.path) from error


def check_length(path: Path) -> None:
    """Raise StoreError for a file that is shorter than its own header says.

    SQLite would find out only where it reads behind the end. With a write-ahead log the
    header on disk may be an older one, so then nothing is known.
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
            size = file.seek(0, 2)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    log = path.with_name(path.name + "-wal")
    if not size or (log.exists() and log.stat().st_size):
        return
    # The database header: page size at 16 (1 means 65536), number of pages at 28.
    page = int.from_bytes(header[16:18], "big")
    length = int.from_bytes(header[28:32], "big") * (65536 if page == 1 else page)
    if size < length or size < 100:
        raise StoreError(f"{path} is cut off: {size} bytes of {length}; {REPAIR}")


def _translated(error: Exception, path: Path) -> StoreError:
    text = str(error)
    if "full" in text:
        return StoreError(f"{path}: no room left on the disk ({text}); nothing was changed")
    if "UNIQUE" in text:
        return StoreError(f"{path}: a record of that key is there already ({text})")
    if "unable to open" in text or "readonly" in text:
        return StoreError(f"{path}: {text}: are folder and file there, and writable?")
    if "locked" in text:
        return StoreError(f"{path}: {text} by a program that does not queue at {path}.lock")
    return StoreError(f"{path} is damaged ({text}); {REPAIR}")
