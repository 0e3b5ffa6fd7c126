"""What is asked of a store: transactions over bitmaps and tables of records."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

from netalloc.store.records import Record, Value

R = TypeVar("R", bound=Record)


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
    def __contains__(self, ordinal: int, /) -> bool: ...
    def __len__(self) -> int: ...


class Table(Protocol[R]):
    """All records of one kind."""

    def get(self, *key: Value) -> R | None:
        """The record of that key."""

    def where(self, *fields: str, equal: tuple[Value, ...], limit: int = -1) -> list[R]:
        """Those whose fields, the first of a key or of an index, have the values given.

        In the order of that index: an index that goes on with a time gives the oldest first.
        """

    def oldest(self, limit: int) -> list[R]:
        """The first ones by key."""

    def all(self) -> list[R]:
        """Every record, in no particular order."""

    def add(self, records: Iterable[R]) -> None:
        """Put new records in. Raises StoreError where one of that key is there."""

    def remove(self, records: Iterable[R]) -> None:
        """Take records out. Raises StoreError where one is not there."""


class Transaction(Protocol):
    """One change of the store, all of it or nothing; nobody else writes meanwhile."""

    dirty: frozenset[int]  # networks whose kernel part was cut off in the middle of a change

    @property
    def version(self) -> int:
        """A number that grows with every change made so far."""

    def bitmap(self, name: str, size: int) -> StoredBitmap:
        """The bitmap of that name, made empty when there is none."""

    def names(self, prefix: str) -> Iterable[str]:
        """The names of bitmaps that begin with the prefix."""

    def drop(self, name: str) -> None:
        """Forget the bitmap of that name."""

    def table(self, kind: type[R]) -> Table[R]:
        """The records of that kind."""

    def next(self, counter: str, n: int = 1) -> int:
        """The first of n numbers, from 1 up, that this counter never gave before."""

    def last(self, counter: str) -> int:
        """The last number that this counter gave, 0 before the first; of this transaction too."""

    def mark_dirty(self, network: int) -> None:
        """Note, so that it outlives this process, that the kernel is about to be changed."""

    def mark_clean(self, network: int) -> None:
        """The kernel's part of that network agrees with the store again."""

    def commit(self) -> None:
        """Make the change last. On an error nothing of it is there."""

    def rollback(self) -> None:
        """Undo all of it."""


class Store(Protocol):
    """Who holds what. Two of them over one place see each other's changes."""

    @property
    def persistent(self) -> bool:
        """Whether it outlives the process."""

    def begin(self, operation: str, *, durable: bool = False) -> Transaction:
        """Start a change, when all that came before are done; `durable` outlives a power cut.

        Raises StoreError, naming who is at it and with which operation, when that takes
        too long.
        """

    def read(self) -> Transaction:
        """A view that changes no more; end it by rollback(). Never waits for a writer."""

    def needs_recovery(self, network: int) -> bool:
        """Whether somebody died, or is right now, in the middle of a kernel change."""

    def check(self) -> list[str]:
        """What is damaged in it, in words."""

    def close(self) -> None:
        """Give everything back; a store that lasts can be opened again."""
