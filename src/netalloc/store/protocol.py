"""What is asked of a store: transactions over bitmaps and tables of records.

The contract between a store and what uses it:

- A change is a function of a transaction that the store runs, and so is a view. There is no
  other way, in this package, to have a transaction: only the frame that took the locks can
  give them back whatever comes (locks.py has the rules).
- What the function leaves uncommitted is committed when it returns, and rolled back when it
  raises. An interrupt is an error like any other; so that rolling back may be interrupted
  too, every change begins by finishing that of an interrupted one.
- A transaction belongs to the thread and the time of that one function. Within it the thread
  may view the same store where it lasts (it sees what was committed before), and may change
  or view another store; a change within a change, or anything within a view or a change of a
  memory store, is a StoreError. The locks are taken in the order: a manager's queue, the
  right to view, the right to change, the lock file. Never wait for another thread within.
- Between `mark_dirty` and the commit the kernel may be ahead of the records or behind them.
  The mark outlives the change that is cut off there, whether by an interrupt or by death, and
  `dirty` shows it to every later transaction until one of them has made the kernel agree and
  calls `mark_clean`.
- `committed` is true from the very moment of the commit. Nothing is undone after that.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from netalloc.store.records import Record, Value

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class StoredBitmap(Protocol):
    """A netalloc.Bitmap whose changes belong to a transaction."""

    cursor: int

    @property
    def size(self) -> int: ...
    def acquire(self) -> int: ...
    def acquire_ranges(self, n: int, /) -> list[tuple[int, int]]: ...
    def reserve(self, ordinal: int, /) -> None: ...
    def release(self, ordinal: int, /) -> None: ...
    def next_free(self, start: int, /) -> int | None: ...
    def next_set(self, start: int, /) -> int | None: ...
    def previous_set(self, start: int, /) -> int | None: ...
    def next_block(self, n: int, start: int, /) -> int | None: ...
    def counts(self, first: int, cell: int, n: int, /) -> bytes: ...
    def __contains__(self, ordinal: int, /) -> bool: ...
    def __len__(self) -> int: ...


class Table(Protocol[R]):
    """All records of one kind. One that is false is empty; one that is true may be."""

    def get(self, *key: Value) -> R | None:
        """The record of that key."""

    def where(self, *fields: str, equal: tuple[Value, ...], limit: int = -1) -> list[R]:
        """Those whose fields, the first of a key or of an index, have the values given.

        In the order of that index: an index that goes on with a time gives the oldest first.
        """

    def up_to(self, *fields: str, equal: tuple[Value, ...], limit: int) -> list[R]:
        """Those with the first value given, and the second or a smaller one; the greatest first.

        The fields are an index that TABLES says is gone through downward.
        """

    def oldest(self, limit: int) -> list[R]:
        """The first ones by key."""

    def all(self) -> list[R]:
        """Every record, in no particular order."""

    def add(self, records: Iterable[R]) -> None:
        """Put new records in. Raises StoreError where one of that key is there."""

    def remove(self, records: Iterable[R]) -> None:
        """Take records out. Raises StoreError where one is not there."""

    def discard(self, record: R, /) -> bool:
        """Take a record out that is there as given; False where it is not, and nothing changed.

        That is found out by the change itself: it need not have been read before.
        """

    def replace(self, old: R, new: R, /) -> bool:
        """Put another record in the place of one that is there as given, as discard() does."""

    def clear(self) -> None:
        """Take all records out, readable or not."""


class Transaction(Protocol):
    """One change of the store, all of it or nothing; nothing else writes meanwhile."""

    @property
    def dirty(self) -> frozenset[int]:
        """Networks whose kernel part was cut off in the middle of a change."""

    @property
    def committed(self) -> bool:
        """Whether the change is made for good, even where commit() was interrupted after."""

    @property
    def kept(self) -> dict[str, Any]:
        """What views have made of what they saw, for later ones: it is committed, and true of
        what they see as well as far as it says so. Empty again when another file is at the path.
        """

    @property
    def version(self) -> int:
        """A number that grows with every change made so far."""

    def bitmap(self, name: str, size: int) -> StoredBitmap:
        """The bitmap of that name, made empty when there is none."""

    def names(self, prefix: str) -> Iterable[str]:
        """The names of bitmaps that begin with the prefix."""

    def known(self, name: str) -> bool:
        """Whether there is a bitmap of that name."""

    def drop(self, name: str) -> None:
        """Forget the bitmap of that name."""

    def table(self, kind: type[R]) -> Table[R]:
        """The records of that kind."""

    def next(self, counter: str, n: int = 1) -> int:
        """The first of n numbers, from 1 up, that this counter never gave before.

        A change that is rolled back may leave its numbers out.
        """

    def last(self, counter: str) -> int:
        """The last number that this counter gave, 0 before the first; of this transaction too."""

    def mark_dirty(self, network: int) -> None:
        """Note, so that it outlives this change, that the kernel is about to be changed.

        Raises StoreError in a child that was forked within the change.
        """

    def mark_clean(self, network: int) -> None:
        """The kernel's part of that network agrees with the store again."""

    def commit(self) -> None:
        """Make the change last, and clean what it marked. On an error nothing of it is there."""

    def rollback(self) -> None:
        """Undo all of it; what it marked stays dirty. Nothing to undo is no error."""


class Store(Protocol):
    """Who holds what. Two of them over one place see each other's changes."""

    @property
    def persistent(self) -> bool:
        """Whether it outlives the process."""

    def run(self, operation: str, work: Callable[[Any], T], *, durable: bool = False) -> T:
        """Make a change, when all that came before are done: `work(tx)`, and what it returns.

        `durable`: it outlives a power cut. Raises StoreError, naming who is at it and with
        which operation, when its turn takes too long to come, and within another change of
        the same thread; ClosedError.
        """

    def view(self, work: Callable[[Any], T]) -> T:
        """What `work(tx)` makes of a view that changes no more. Never waits for a writer that
        lasts. Raises ClosedError, and StoreError within another view of the same thread.
        """

    def survey(self, work: Callable[[Any], T]) -> T:
        """The same as view(), of what takes long: no other call waits for it, but a fork, a
        repair, closing and another survey.
        """

    def begin(self, operation: str, *, durable: bool = False) -> Transaction:
        """The same as run(), step by step, for tests: it is this thread's turn until commit()
        or rollback(), and an interrupt in between may keep it for ever.
        """

    def read(self) -> Transaction:
        """The same as view(), step by step; end it by rollback()."""

    def refuse_reentry(self, operation: str) -> None:
        """Raise StoreError where this thread is in the middle of a change of this store."""

    def needs_recovery(self, network: int) -> bool:
        """Whether a change of the kernel was cut off, or is under way right now."""

    def check(self) -> list[str]:
        """What is damaged in it, in words."""

    def close(self) -> None:
        """Give everything back, when the changes and views under way are done.

        Later calls raise ClosedError. Twice is no error; StoreError within a change.
        """
