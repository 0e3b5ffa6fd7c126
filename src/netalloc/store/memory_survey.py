"""One moment of a store in memory, copied, to be looked at in as long as it takes."""

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from netalloc._alloc import Bitmap
from netalloc.store.records import TABLES


class SurveyTable:
    """The records of one kind, as they were."""

    def __init__(self, kind: type[Any], records: list[Any]) -> None:
        self._kind = kind
        self._records = records
        self._by: dict[tuple[str, ...], dict[Any, list[Any]]] = {}

    def all(self) -> list[Any]:
        """Every record."""
        return self._records

    def where(self, *fields: str, equal: tuple[Any, ...], limit: int = -1) -> list[Any]:
        """Those whose fields have the values given, in no particular order."""
        by = self._by.get(fields)
        if by is None:
            by = self._by[fields] = {}
            value_of = attrgetter(*fields)
            for record in self._records:
                by.setdefault(value_of(record), []).append(record)
        found = by.get(equal if len(equal) > 1 else equal[0], [])
        return found if limit < 0 else found[:limit]

    def get(self, *key: Any) -> Any:
        """The record of that key."""
        found = self.where(*TABLES[self._kind].key, equal=key)
        return found[0] if found else None


class Survey:
    """A copy of all records and bitmaps of a transaction; 20 ns a record."""

    def __init__(self, tx: Any, bitmaps: dict[str, bytes]) -> None:
        self._tables = {kind: SurveyTable(kind, tx.table(kind).all()) for kind in TABLES}
        self._coded = bitmaps
        self._bitmaps: dict[str, Bitmap] = {}
        self._store: int = tx.last("store")
        self.dirty = tx.dirty

    def table(self, kind: type[Any]) -> SurveyTable:
        """The records of that kind."""
        return self._tables[kind]

    def last(self, counter: str) -> int:
        """The last number of the counter that tells stores apart, the only one that is copied."""
        return {"store": self._store}[counter]

    def bitmap(self, name: str, size: int) -> Bitmap:
        """The bitmap of that name; what is done to it, is done to the copy."""
        found = self._bitmaps.get(name)
        if found is None:
            coded = self._coded.get(name)
            found = Bitmap(size) if coded is None else Bitmap.from_bytes(coded)
            self._bitmaps[name] = found
        return found

    def names(self, prefix: str) -> Iterable[str]:
        """The names of bitmaps that begin with the prefix."""
        return [name for name in {**self._coded, **self._bitmaps} if name.startswith(prefix)]

    def known(self, name: str) -> bool:
        """Whether there is a bitmap of that name."""
        return name in self._coded or name in self._bitmaps

    def drop(self, name: str) -> None:
        """Forget the copy of a bitmap."""
        self._bitmaps.pop(name, None)
        self._coded.pop(name, None)
