"""One change of store and kernel together: all of it or nothing, and many callers at once.

A lasting store is written in groups: while one thread commits, those who come meanwhile
queue up, and the first of them takes the whole queue into one transaction, one kernel batch
and one commit. Each of the others sleeps until his change is made: they would be in each
other's way at a common lock, and groups would stay small. A caller alone pays for itself
alone, and waits for nobody.
"""

import logging
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar, cast

from netalloc.errors import ClosedError
from netalloc.ipam.change import Change
from netalloc.manager.mappings import ExclusiveMappings
from netalloc.manager.undo import undo
from netalloc.model import PortMapping, ReconcileResult
from netalloc.store.fork import guard
from netalloc.store.protocol import Store, Transaction

log = logging.getLogger(__name__)
T = TypeVar("T")


class Waiter:
    """A caller in the queue, and what came of his operation."""

    __slots__ = ("after", "change", "done", "durable", "error", "operation", "result", "wake")

    def __init__(self, operation: str, change: Callable[[Change], Any], durable: bool) -> None:
        self.operation = operation
        self.change = change
        self.durable = durable
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None
        self.after: list[Callable[[], Any]] = []
        self.wake = Lock()  # released when he is done, or to lead
        self.wake.acquire()


class _SeparatelyError(Exception):
    """A group cannot be made as one: somebody in it failed half-way."""


class Committer:
    """Makes the changes of one network.

    The order is: records, kernel, commit. A kernel that refuses undoes the records; a
    commit that fails undoes the kernel. `desired(tx)` is what the kernel should have: it is
    made so before the next change where somebody died between the two.
    """

    def __init__(
        self,
        store: Store,
        kernel: ExclusiveMappings,
        network: int,
        desired: Callable[[Transaction], list[PortMapping]],
    ) -> None:
        self.store = store
        self._kernel = kernel
        self._network = network
        self._desired = desired
        self.closed = False
        self.after_fork()
        guard(self)

    def fork_locks(self) -> tuple[()]:
        """The store's are enough."""
        return ()

    def after_fork(self) -> None:
        """In a forked child nobody else is in the queue, and no leader is at work."""
        self._queue: list[Waiter] = []
        self._door = Lock()  # of the queue, and of these two
        self._led = False
        self._heir: Waiter | None = None

    def run(self, operation: str, change: Callable[[Change], T], *, durable: bool = False) -> T:
        """Run the operation; whatever it raises, nothing of it remains.

        It may be run again, in a transaction of its own, when it shared one that failed.
        """
        if self.closed:
            raise ClosedError(f"{operation}: the manager is closed")
        if not self.store.persistent:
            return self._run_alone(operation, change)
        caller = Waiter(operation, change, durable)
        with self._door:
            self._queue.append(caller)
            leads, self._led = not self._led, True
        if not leads:
            try:
                caller.wake.acquire()
            except BaseException:
                self._desert(caller)
                raise
        if not caller.done:
            self._lead(caller)
        if caller.error is not None:
            raise caller.error
        for step in caller.after:
            step()
        return cast(T, caller.result)

    def read(self, view: Callable[[Transaction], T]) -> T:
        """Read, without waiting for a change that somebody is making."""
        if self.closed:
            raise ClosedError("the manager is closed")
        tx = self.store.read()
        try:
            return view(tx)
        finally:
            tx.rollback()

    def reconcile(self) -> ReconcileResult:
        """Make the kernel agree with the store; what was repaired."""

        def change(made: Change) -> ReconcileResult:
            made.tx.mark_dirty(self._network)
            repairs = self._kernel.reconcile(self._desired(made.tx))
            made.tx.mark_clean(self._network)
            return repairs

        return self.run("reconcile", change)

    def close(self) -> None:
        """Make no change from now on."""
        self.closed = True

    def recover(self) -> None:
        """Reconcile if somebody died in the middle of a change."""
        if self.store.needs_recovery(self._network):
            self.run("recover", lambda made: None)

    def _run_alone(self, operation: str, change: Callable[[Change], T]) -> T:
        """The same without a queue: a store in memory has no commit worth sharing."""
        tx = self.store.begin(operation)
        made = Change(tx)
        batch = None
        try:
            result = change(made)
            if made.remove or made.add:
                self._kernel.apply(made.remove, made.add)
                batch = made.remove, made.add
            tx.commit()
        except BaseException as error:
            failure = self._unmake(tx, [made], batch, error)
            if failure is error:
                raise
            raise failure from None
        for step in made.after:
            step()
        return result

    def _lead(self, leader: Waiter) -> None:
        """Make the changes of everybody who is in the queue by now, and hand on the lead."""
        with self._door:
            group, self._queue = self._queue, []
            self._heir = None
        try:
            try:
                self._make(group)
            except _SeparatelyError:
                for caller in group:
                    self._make([caller])
        finally:
            for caller in group:
                if caller.done and caller is not leader:
                    caller.wake.release()
            with self._door:
                # Some are left where the leader was interrupted.
                left = [one for one in group if not one.done and one is not leader]
                self._queue = left + self._queue
                self._hand_on()

    def _hand_on(self) -> None:
        """Let the first in the queue lead; at the door."""
        self._heir = self._queue[0] if self._queue else None
        self._led = self._heir is not None
        if self._heir is not None:
            self._heir.wake.release()

    def _desert(self, caller: Waiter) -> None:
        """An interrupted caller leaves the queue, and hands on the lead if it is his."""
        with self._door:
            if caller in self._queue:
                self._queue.remove(caller)
            if self._heir is caller:
                self._hand_on()

    def _make(self, group: list[Waiter]) -> None:
        """One transaction for all of them; `error` or `result` and `done` are set in each."""
        try:
            durable = any(caller.durable for caller in group)
            tx = self.store.begin(group[0].operation, durable=durable)
        except Exception as error:
            for caller in group:
                caller.error, caller.done = error, True
            return
        made: list[Change] = []
        batch: tuple[list[PortMapping], list[PortMapping]] | None = None
        try:
            if self._network in tx.dirty:
                self._mend(tx)
            for caller in group:
                made.append(Change(tx))
                self._run(caller, made[-1], len(group) == 1)
            remove = [mapping for change in made for mapping in change.remove]
            add = [mapping for change in made for mapping in change.add]
            if remove or add:
                tx.mark_dirty(self._network)
                self._apply(tx, remove, add)
                batch = remove, add
            tx.commit()
        except BaseException as error:
            failure = self._unmake(tx, made, batch, error)
            if not isinstance(failure, Exception):
                raise
            if len(group) > 1:
                raise _SeparatelyError from failure
            group[0].error, group[0].done = failure, True
            return
        for caller, change in zip(group, made, strict=True):
            caller.after = change.after
            caller.done = True

    def _run(self, caller: Waiter, change: Change, alone: bool) -> None:
        before = change.tx.version
        try:
            caller.result = caller.change(change)
        except Exception as error:
            if alone or change.undo or change.tx.version != before:
                raise
            caller.error = error  # refused before anything changed: the others go on

    def _apply(self, tx: Transaction, remove: list[PortMapping], add: list[PortMapping]) -> None:
        try:
            self._kernel.apply(remove, add)
        except Exception:
            tx.mark_clean(self._network)  # a batch that fails leaves nothing of it
            raise

    def _mend(self, tx: Transaction) -> None:
        repairs = self._kernel.reconcile(self._desired(tx))
        tx.mark_clean(self._network)
        if repairs:
            log.warning("a change was cut off in the middle; repaired: %s", repairs)

    def _unmake(
        self,
        tx: Transaction,
        made: list[Change],
        batch: tuple[list[PortMapping], list[PortMapping]] | None,
        error: BaseException,
    ) -> BaseException:
        """Undo all of it; what to raise: the error, with what went wrong here as well."""
        try:
            try:
                undo([step for change in reversed(made) for step in reversed(change.undo)], error)
            finally:
                if batch is not None:
                    remove, add = batch
                    undo([lambda: self._kernel.apply(add, remove)], error)
                    tx.mark_clean(self._network)
        except Exception as group:
            error = group
        finally:
            tx.rollback()
        return error
