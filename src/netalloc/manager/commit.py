"""One change of store and kernel together: all of it or nothing, and many callers at once.

A store in a file is written in groups: while one thread commits, those that come meanwhile
queue up, and the first of them takes the whole queue into one transaction, one kernel batch
and one commit. Each of the others sleeps until its change is made: they would be in each
other's way at a common lock, and groups would stay small. A caller alone pays for itself
alone, and waits for no other.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from functools import partial

from netalloc import forks
from netalloc._alloc import MemoryTurn, run_alone
from netalloc.errors import (
    ClosedError,
    CommandError,
    InUseError,
    NetallocError,
    NotAllocatedError,
)
from netalloc.ipam.change import Change
from netalloc.logs import Log
from netalloc.manager.calls import Calls
from netalloc.manager.mappings import ExclusiveMappings, NoMappings
from netalloc.manager.queue import Queue, Waiter
from netalloc.manager.undo import attempt, undo

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    from netalloc.model import PortMapping, ReconcileResult
    from netalloc.store.protocol import Store, Transaction

    T = TypeVar("T")

log = Log(__name__)

# What a backend raises that has changed nothing. After anything else, which may have come out
# of a signal handler, the kernel is looked at.
REFUSALS = (CommandError, InUseError, NotAllocatedError)


class Committer:
    """Makes the changes of one network.

    The order is: records, kernel, commit. A kernel that refuses undoes the records; a commit
    that fails undoes the kernel. `desired(tx)` is what the kernel should have: it is made so
    at once after an interrupt between the two, and before the next change where that was not
    to be.
    """

    def __init__(
        self,
        store: Store,
        kernel: ExclusiveMappings,
        network: int,
        desired: Callable[[Transaction], list[PortMapping]],
    ) -> None:
        self.store = store
        self._memory = store if isinstance(store, MemoryTurn) else None
        self._kernel = kernel
        self._has_kernel = not isinstance(kernel, NoMappings)  # else there is nothing to mark
        self._network = network
        self._desired = desired
        self.guard: Callable[[Transaction], tuple[str, ...]] | None = None
        self.commits = self.changes = 0  # made by one caller for those that waited, and of theirs
        self._calls = Calls("the manager")
        self._queue = Queue(self._calls)
        self._process = forks.process
        forks.guard(self)

    def fork_locks(self) -> tuple[()]:
        """The store's are enough."""
        return ()

    def after_fork(self) -> None:
        """In a forked child no other thread is in the queue, and none leads."""
        self._calls.after_fork()

    @property
    def inherited(self) -> bool:
        """Whether it came by a fork and its store belongs to the parent alone, as does all that
        the kernel has of it.
        """
        return not self.store.persistent and self._process != forks.process

    def run(self, operation: str, change: Callable[[Change], T], *, durable: bool = False) -> T:
        """Run the operation; whatever it raises, nothing of it remains.

        After an interrupt it was made wholly or not at all. It may be run again, in a
        transaction of its own, when it shared one that failed. Raises ClosedError, and
        StoreError within another change of the same thread.
        """
        memory = self._memory
        if memory is not None:
            # A store in memory has no commit that is worth sharing.
            return memory.run_change(operation, change, self, self._calls)
        if self._calls.inside:
            return self._run_queued(Waiter(operation, change, durable))  # type: ignore[no-any-return]
        # Those that come meanwhile queue up behind it, as the store lets one in at a time.
        return run_alone(self, self._calls, self.store.run, operation, change, durable)

    def read(self, view: Callable[[Transaction], T]) -> T:
        """Read, without waiting for a change that is under way in a file."""
        if self._memory is not None:
            return self._memory.run_view(view, self._calls)
        return self._calls.run(object(), partial(self.store.view, view))

    def survey(self, view: Callable[[Transaction], T]) -> T:
        """Read all there is, one moment of it, while others read and change the store."""
        return self._calls.run(object(), partial(self.store.survey, view))

    def reconcile(self) -> ReconcileResult:
        """Make the kernel agree with the store; what was repaired."""

        def change(made: Change) -> ReconcileResult:
            made.tx.mark_dirty(self._network)
            repairs = self._repairs(made.tx)
            made.tx.mark_clean(self._network)
            return repairs

        return self.run("reconcile", change)

    def recover(self) -> None:
        """Reconcile if a change was cut off in the middle."""
        if self.store.needs_recovery(self._network):
            self.run("recover", lambda made: None)

    @property
    def closed(self) -> bool:
        """Whether close() was called: every later call is a ClosedError."""
        return self._calls.closed

    def close(self) -> None:
        """Let no call in from now on, and wait for those under way. May be called again.

        Raises StoreError within a call of the same thread.
        """
        memory, calls = self._memory, self._calls
        if memory is None or memory.foreign:
            calls.close()
            return
        # A change in memory is among the calls only where there is more to it than its turn.
        self.store.refuse_reentry("close")
        calls.close()
        memory.wait()
        calls.close()

    def _run_queued(self, caller: Waiter) -> Any:
        """Have the operation made by the thread that leads: another, or this one."""
        self.store.refuse_reentry(caller.operation)
        calls = self._calls
        try:
            calls.inside[caller] = get_ident()
            if calls.closed:
                raise ClosedError("the manager is closed")
            return self._made(caller)
        except BaseException:
            if caller.done and caller.error is None:  # what is to be done after it has to be
                self.cut_off(_changes([caller]), True)
            raise
        finally:
            try:
                calls.inside.pop(caller, None)
            finally:
                if calls.closed:
                    calls.report()

    def _made(self, caller: Waiter) -> Any:
        """What came of the operation."""
        while not caller.done:
            if self._queue.leads(caller):
                self._lead(caller)
            else:
                self._queue.wait(caller)
        if caller.error is not None:
            raise caller.error
        _finish(caller.after())
        return caller.result

    def _lead(self, leader: Waiter) -> None:
        """Make the changes of all that are in the queue by now, and hand on the lead."""
        group: list[Waiter] = []
        waiting: list[Waiter] = []
        try:
            waiting = self._queue.waiting()
            durable = any(caller.durable for caller in waiting)
            work = partial(self._make, group, leader, durable)
            self.store.run(leader.operation, work, durable=durable)
        except Exception as error:
            if not group:  # it was not to be begun, for any of them
                self._queue.refuse(leader, waiting, error)
                raise
            self.cut_off(_changes(group), leader.done)
            if leader.done or not _shared(error, group):
                raise
            _separate(group)
        except BaseException:
            self.cut_off(_changes(group), leader.done)
            raise
        finally:
            try:
                self._queue.leader = None
            finally:
                self._queue.hand_on(leader, group)

    def _make(self, group: list[Waiter], leader: Waiter, durable: bool, tx: Transaction) -> None:
        """One transaction for all of them; `error` or `result` is set in each."""
        if self._network in tx.dirty:
            self.repair(tx)
        group += self._queue.group(leader, durable)
        self.commits, self.changes = self.commits + 1, self.changes + len(group)
        made: list[Change] = []
        try:
            self._run_all(group, made, tx)
        except BaseException as error:
            self.undo(tx, made, error)
            raise

    def _run_all(self, group: list[Waiter], made: list[Change], tx: Transaction) -> None:
        for caller in group:
            caller.error = None
            change = caller.made = Change(tx)
            made.append(change)
            _run_one(caller, change, len(group) == 1)
        remove = [mapping for change in made for mapping in change.remove]
        add = [mapping for change in made for mapping in change.add]
        self.seal(tx, remove, add)

    def seal(self, tx: Transaction, remove: list[PortMapping], add: list[PortMapping]) -> None:
        """The kernel's part, and the commit. What fails leaves the kernel as it was, or dirty."""
        if not (remove or add) or not self._has_kernel:
            tx.commit()
            return
        tx.mark_dirty(self._network)
        try:
            self._kernel.apply(remove, add)
        except REFUSALS:
            tx.mark_clean(self._network)
            raise
        try:
            tx.commit()
        except Exception as error:
            if not tx.committed:
                undo([partial(self._kernel.apply, add, remove)], error)
                tx.mark_clean(self._network)
            raise

    def repair(self, tx: Transaction) -> None:
        """Make the kernel agree, where a change was cut off between kernel and commit."""
        if self._network not in tx.dirty:
            return
        repairs = self._repairs(tx)
        tx.mark_clean(self._network)
        if repairs:
            log.warning("a change was cut off in the middle; repaired: %s", repairs)

    def _repairs(self, tx: Transaction) -> ReconcileResult:
        """Make the kernel agree: the mappings, and who is kept apart from whom."""
        repairs = self._kernel.reconcile(self._desired(tx))
        guarded = () if self.guard is None else self.guard(tx)
        if not guarded:
            return repairs
        structure = (*repairs.structure, *guarded)
        return type(repairs)(repairs.added, repairs.removed, structure)

    def undo(self, tx: Transaction, made: Sequence[Change], error: BaseException) -> None:
        """Take the steps back that lie outside of store and kernel."""
        if not tx.committed:
            undo([step for change in reversed(made) for step in reversed(change.undo)], error)

    def cut_off(self, made: Sequence[Change], committed: bool) -> None:
        """After an error: finish what was committed, or make the kernel agree at once."""
        if committed:
            for change in made:
                for step in change.after:
                    attempt(step)
        if self.inherited or not any(change.add or change.remove for change in made):
            return
        if self.store.needs_recovery(self._network):
            failure = attempt(partial(self.store.run, "recover", self.repair))
            if failure is not None:
                log.error("the next change has to repair the kernel: %s", failure)


def _finish(steps: Sequence[Callable[[], Any]]) -> None:
    for step in steps:
        step()


def _changes(group: list[Waiter]) -> list[Change]:
    return [caller.made for caller in group if caller.made is not None]


def _separate(group: list[Waiter]) -> None:
    """Each is to be made by itself, in the thread that called."""
    for caller in group:
        caller.alone = True


def _run_one(caller: Waiter, made: Change, alone: bool) -> None:
    before = made.tx.version
    try:
        caller.result = caller.change(made)
    except NetallocError as error:
        if alone or made.undo or made.add or made.remove or made.tx.version != before:
            raise
        caller.error = error  # refused before anything changed: the others go on


def _shared(error: Exception, group: list[Waiter]) -> bool:
    """Whether the error may be another caller's, so that each is to be run by itself.

    In the main thread what is no error of ours may have come out of a signal handler, and is
    for this thread alone.
    """
    from threading import main_thread

    ours = isinstance(error, (NetallocError, ExceptionGroup))
    return len(group) > 1 and (ours or get_ident() != main_thread().ident)
