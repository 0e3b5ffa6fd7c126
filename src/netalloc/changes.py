"""One change of store and kernel together: all of it or nothing."""

import logging
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from netalloc.model import Mapping
from netalloc.store.protocol import Store, Transaction

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

log = logging.getLogger(__name__)
T = TypeVar("T")


@runtime_checkable
class Mapper(Protocol):
    """What is asked of a PortMapper."""

    def map_many(self, mappings: list[Mapping], /) -> None: ...
    def unmap_many(self, mappings: list[Mapping], /) -> None: ...


def attempt(step: Callable[[], Any]) -> Exception | None:
    """What went wrong, for those who go on and report all of it at the end."""
    try:
        step()
    except Exception as failure:
        return failure
    return None


class Change:
    """What one operation does: records in `tx`, the kernel's part in `add` and `remove`.

    `undo` is called when the change is not made after all, `after` when it is.
    """

    __slots__ = ("add", "after", "remove", "tx", "undo")

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx
        self.add: list[Mapping] = []
        self.remove: list[Mapping] = []
        self.undo: list[Callable[[], Any]] = []
        self.after: list[Callable[[], Any]] = []


class Changes:
    """Makes changes of one network, each in a transaction of the store.

    The order is: records, kernel, commit. A kernel that refuses undoes the records; a
    commit that fails undoes the kernel.
    """

    def __init__(self, store: Store, mapper: Mapper, network: int) -> None:
        self._store = store
        self._mapper = mapper
        self._network = network

    def make(self, operation: str, change: Callable[[Change], T], *, durable: bool = False) -> T:
        """Run the operation; whatever it raises, nothing of it remains."""
        tx = self._store.begin(operation, durable=durable)
        made = Change(tx)
        try:
            result = change(made)
            if made.add or made.remove:
                tx.touch_kernel(self._network)
                self._to_kernel(made.remove, made.add)
        except BaseException as error:
            self._undo(tx, made, error)
            raise
        try:
            tx.commit()
        except BaseException as error:
            made.undo += [lambda: self._to_kernel(made.add, made.remove)]
            self._undo(tx, made, error, rollback=False)
            raise
        for step in made.after:
            step()
        return result

    def look(self, view: Callable[[Transaction], T]) -> T:
        """Read, without waiting for a change that somebody is making."""
        tx = self._store.read()
        try:
            return view(tx)
        finally:
            tx.rollback()

    def _to_kernel(self, remove: list[Mapping], add: list[Mapping]) -> None:
        if remove:
            self._mapper.unmap_many(remove)
        if add:
            try:
                self._mapper.map_many(add)
            except BaseException as error:
                if remove:
                    self._attempt([lambda: self._mapper.map_many(remove)], error)
                raise

    def _undo(
        self, tx: Transaction, made: Change, error: BaseException, rollback: bool = True
    ) -> None:
        steps = list(reversed(made.undo))
        if rollback:
            steps.append(tx.rollback)
        self._attempt(steps, error)

    def _attempt(self, steps: list[Callable[[], Any]], error: BaseException) -> None:
        """Do every step; when some fail, raise them together with what led here."""
        failures = [failure for step in steps if (failure := attempt(step))]
        if failures:
            if not isinstance(error, Exception):
                log.error("undoing an interrupted change failed: %s", failures)
                return
            raise ExceptionGroup("failed, and so did undoing it", [error, *failures]) from None
