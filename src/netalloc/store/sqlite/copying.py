"""A copy of a store's file as it was at one moment, while others go on with it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial

from netalloc.errors import StoreError
from netalloc.store.sqlite import place
from netalloc.store.sqlite.view import open_view

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.store.sqlite.place import StrPath
    from netalloc.store.sqlite.transaction import SqliteTransaction


def copy_of(path: StrPath, to: StrPath) -> None:
    """Copy what was committed last into a new file, its owner's alone.

    Needs a right to read. Raises StoreError where the file cannot be read, or the copy not be
    written; then there is none. 0.5 s a GB.
    """
    view = open_view(path)
    place.create(to)
    try:
        view.view(partial(_copy, to))
    except BaseException:
        place.remove(to)
        raise


def _copy(to: StrPath, tx: SqliteTransaction) -> None:
    try:
        with closing(sqlite3.connect(to, isolation_level=None)) as target:
            tx.copy_to(target)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{to} cannot be written: {error}") from error
