"""One call in a thread, and what becomes of what it took when the task that called has gone."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor, Future
from contextvars import copy_context
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, cast

from netalloc.errors import NetallocError, NotAllocatedError, StaleLeaseError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_MADE, _GONE = "made", "gone"


class Manner(NamedTuple):
    """What a cancellation does to a call of some kind.

    `withdrawn`: one that no thread has begun is not made at all. `awaited`: one that was begun
    is over, and what it took given back, before the task goes on its way. `reported`: its own
    failure is told, as there is still something held that the caller meant to be rid of.
    """

    withdrawn: bool
    awaited: bool
    reported: bool = False


READ = Manner(withdrawn=True, awaited=False)
CHANGE = Manner(withdrawn=True, awaited=True)
GIVE = Manner(withdrawn=False, awaited=True, reported=True)


class Call(Generic[T]):
    """Some work in a thread, and how what it took is given back: `undo(result)`.

    Either the task takes the result, or the call gives it back, whatever becomes of the task and
    of the loop. Which of the two is settled by one step of a dict, as thread and task come to it
    at once, and the loop must not wait for a lock. `answered` is done when there is a result,
    `settled` when nothing is left to be done. `lost` is told of what could not be given back.
    """

    def __init__(
        self,
        work: Callable[[], T],
        manner: Manner,
        undo: Callable[[T], object] | None,
        lost: Callable[[BaseException], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._work = work
        self.manner = manner
        self._undo = undo
        self._lost = lost
        self._pool: Executor | None = None
        self._job: Future[None] | None = None
        self._withdrawn = False
        self._first: dict[None, str] = {}
        self._given_back: dict[None, object] = {}
        self._result: T | None = None
        self._error: BaseException | None = None
        self.answered: asyncio.Future[None] = self._loop.create_future()
        self.settled: asyncio.Future[None] = self._loop.create_future()

    # ---- in the loop

    def start(self, pool: Executor) -> None:
        """Queue it for a thread of the pool."""
        self._pool = pool
        self._job = pool.submit(self._run)

    def take(self) -> T:
        """The result, which is the caller's from now on, or the error."""
        self._given_back.setdefault(None, self)
        _done(self.settled)
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # or its traceback would lead back to it
        return cast("T", self._result)

    def abandon(self) -> None:
        """The task has gone: withdraw the call, or give back what it takes; never waits."""
        job, pool = self._job, self._pool
        if self._given_back:
            return  # or it was taken, and raised its error
        if job is None or pool is None or (self.manner.withdrawn and job.cancel()):
            self._withdrawn = True
            self._tell(self.settled)
        elif self._first.setdefault(None, _GONE) == _MADE:
            if self._undo is None or self._error is not None:
                self._end()
                return
            try:
                pool.submit(self._end)
            except RuntimeError:  # the interpreter ends: there is no loop any more to hold up
                self._end()

    # ---- in a thread

    def _run(self) -> None:
        if self._withdrawn:
            return  # the pool has kept a job that it could not take
        try:
            self._result = self._context.run(self._work)
        except BaseException as error:
            self._error = error
        if self._first.setdefault(None, _MADE) == _GONE or not self._tell(self.answered):
            self._end()

    def _end(self) -> None:
        """Give back what nothing takes; once, for a loop that is closed may tell of it late."""
        me = object()
        if self._given_back.setdefault(None, me) is not me:
            return
        try:
            self._context.copy().run(self._give_back)
        except (NotAllocatedError, StaleLeaseError):
            pass  # it has ended meanwhile
        except BaseException as error:
            self._lost(error)
        finally:
            self._tell(self.settled)

    def _give_back(self) -> None:
        error, self._error = self._error, None
        if error is None:
            if self._undo is not None:
                self._undo(cast("T", self._result))
        elif self.manner.reported or not isinstance(error, NetallocError):
            raise error

    def _tell(self, future: asyncio.Future[None]) -> bool:
        """Whether the loop will know that it is done; not where it is closed."""
        try:
            self._loop.call_soon_threadsafe(_done, future)
        except RuntimeError:
            return False
        return True


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
