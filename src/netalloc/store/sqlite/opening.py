"""Opening a store's file: what is there, whose it is, and its tables where they are to be made."""

from __future__ import annotations

import os
import sqlite3
from _thread import get_ident
from functools import partial

from netalloc.errors import StoreError
from netalloc.store.sqlite import place
from netalloc.store.sqlite.connection import check_length
from netalloc.store.sqlite.file import StoreFile
from netalloc.store.sqlite.schema import create, version_of
from netalloc.store.sqlite.session import Session
from netalloc.store.sqlite.transaction import SqliteTransaction
from netalloc.store.sqlite.versions import VERSION
from netalloc.store.sqlite.writer_record import WriterRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from netalloc.store.protocol import Transaction


class Opening:
    """One store's opening of a file; `transaction` makes a change over a connection."""

    def __init__(
        self,
        file: StoreFile,
        timeout: float,
        boot: str,
        transaction: Callable[[Session], SqliteTransaction],
    ) -> None:
        self._file = file
        self._path = file.path
        self._timeout = timeout
        self._boot = boot
        self._transaction = transaction

    def prepare(self, migrated: Callable[[Transaction], None]) -> None:
        """Make the tables, or bring them up to date; usually neither.

        `migrated` is called in the transaction that brings them up to date.
        """
        file = self._file
        place.check_folder(self._path)
        found = place.look_at(self._path)
        mark = file.lock.peek()
        if found is None or not found.st_size:
            self._check_new(mark)
        else:
            check_length(self._path, found.st_size)
            place.check_beside(self._path)
            version = file.while_viewing("open", self._timeout, lambda: version_of(file.reader()))
            place.tighten(self._path)  # not before it is known to be a store
            if version == VERSION:
                return
        file.while_idle("make tables", self._timeout, partial(self._make, migrated))

    def _check_new(self, mark: WriterRecord | None) -> None:
        """Raise StoreError where there is nothing in the file, but ought to be."""
        if mark is None or (mark.known and not mark.sequence):
            return
        changes = f"{mark.sequence} changes were" if mark.known else "something was"
        raise StoreError(
            f"{self._path} is empty or gone, but {changes} committed to it: put a copy back, with "
            f"its log, or remove {self._file.lock.path} as well to begin anew"
        )

    def _make(self, migrated: Callable[[Transaction], None]) -> None:
        file = self._file
        mark = file.lock.enter("make tables", self._timeout)
        try:
            made = place.look_at(self._path) is None
            try:
                if made:
                    place.create(self._path)
                else:
                    place.tighten(self._path)
                connection = file.writer()
                ((mode,),) = connection.rows("PRAGMA journal_mode = WAL")
                if mode != "wal":
                    raise StoreError(
                        f"{self._path}: its filesystem shares no memory between processes, which "
                        "SQLite's write-ahead log needs"
                    )
                connection.sync(full=True)
                connection.execute("BEGIN IMMEDIATE")
                try:
                    self._make_tables(connection, mark, migrated)
                except BaseException:
                    connection.rollback()
                    raise
            except BaseException:
                if made:  # nothing is left of what could not be made
                    file.close_connections()
                    place.remove(self._path)
                    if mark is None:
                        place.unlink(file.lock.path)
                raise
        finally:
            try:
                file.abort()
            except sqlite3.Error:
                pass
            finally:
                try:
                    file.lock.give()
                finally:
                    pass  # a `try` comes first: see locks.py

    def _make_tables(
        self,
        connection: Session,
        mark: WriterRecord | None,
        migrated: Callable[[Transaction], None],
    ) -> None:
        version = version_of(connection)
        identity = int.from_bytes(os.urandom(6), "big") + 1
        if version == VERSION:  # another process was first
            connection.rollback()
        elif not version:
            self._check_new(mark)
            create(connection, self._boot, identity)
            connection.execute("COMMIT")
            self._file.lock.write(WriterRecord(boot=self._boot, sequence=1, store=identity))
        else:
            from netalloc.store.sqlite.migrations import migrate

            migrate(connection)
            tx = self._transaction(connection)
            self._file.changing, self._file.writing = get_ident(), tx
            try:
                tx.start("make tables", mark, self._boot)
                tx.brought_over(identity)
                migrated(tx)
                tx.commit()
            finally:
                try:
                    self._file.undo()
                finally:
                    try:
                        self._file.writing = None
                        self._file.changing = 0
                    finally:
                        pass
