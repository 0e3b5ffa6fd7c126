"""Telling what the operating system refuses apart from what is wrong with a store's file.

Without descriptors, memory, rights or room a file cannot be read, and nothing is known of what
is in it: to take that for damage would throw away what is whole. Every StoreError names in its
`__cause__` what it was made of, and that is asked here.
"""

from __future__ import annotations

import os
import sqlite3

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.store.sqlite.place import StrPath

# SQLite's messages (sqlite3ErrStr in its source) for what it was refused, as they begin.
_REFUSED = (
    "unable to open database file",
    "access permission denied",
    "database or disk is full",
    "database is locked",
    "database table is locked",
    "locking protocol",
)
_READ_ONLY, _IO_ERROR = "attempt to write a readonly database", "disk I/O error"
# Of the latter, those that are of the contents (SQLite names them since Python 3.11): the file
# ends too early, or its filesystem says that it is damaged.
_OF_CONTENTS = ("SQLITE_IOERR_SHORT_READ", "SQLITE_IOERR_CORRUPTFS", "SQLITE_IOERR_DATA")


def is_refusal(error: BaseException, path: StrPath) -> bool:
    """Whether the operating system refused something, which says nothing of what is in the file."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (OSError, MemoryError)):
            return True
        if isinstance(cause, sqlite3.Error):
            return _is_refused(cause, path)
        cause = cause.__cause__
    return False


def raise_refusal(error: Exception, path: StrPath) -> None:
    """Raise the error again if it is a refusal; what is damaged is for the caller to mend."""
    if is_refusal(error, path):
        raise error


def _is_refused(error: sqlite3.Error, path: StrPath) -> bool:
    text = str(error)
    name = getattr(error, "sqlite_errorname", "")
    if text.startswith(_IO_ERROR):
        return name not in _OF_CONTENTS
    if text.startswith(_READ_ONLY):
        # A damaged header asks for that as well, of a file that could be written to.
        may_write = os.access(path, os.R_OK | os.W_OK, effective_ids=True)
        return not may_write or name not in ("", "SQLITE_READONLY")
    return text.startswith(_REFUSED)
