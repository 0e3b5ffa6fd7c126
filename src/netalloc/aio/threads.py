"""The threads that make the calls of one manager, for the loop that it belongs to."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from netalloc.aio.call import CHANGE, GIVE, READ, Call, Manner
from netalloc.errors import ClosedError, InvalidValueError
from netalloc.logs import Log
from netalloc.manager.undo import raise_all

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence
    from typing import Any

T = TypeVar("T")

SIZE = 16  # threads at most for changes: as many of a file share a commit
READERS = 4  # and for reading: it waits for no change, and must not for the threads of some
log = Log(__name__)


class Threads:
    """A pool whose calls are awaited, and settled before it ends, in one loop.

    What is given here is called in a thread; see Manner for what a cancellation does.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.lost = 0  # of what cancelled calls took: how much could not be given back
        self._begin(_running())

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(SIZE, f"netalloc-aio {self._what}")
        self._readers = ThreadPoolExecutor(READERS, f"netalloc-aio {self._what} read")
        self._calls: set[Call[Any]] = set()
        self._last: dict[Hashable, Call[Any]] = {}
        self.closed = False
        self._closing: asyncio.Future[None] | None = None
        self._close: Callable[[], None] | None = None

    # ---- calls

    async def read(self, work: Callable[[], T]) -> T:
        """What changes nothing: a task that is cancelled does not wait for it."""
        return await self._made(work, READ)

    async def change(self, work: Callable[[], T]) -> T:
        """What is made wholly once it was begun."""
        return await self._made(work, CHANGE)

    async def give(self, work: Callable[[], T]) -> T:
        """What gives something back: it is made in any case."""
        return await self._made(work, GIVE)

    async def take(
        self,
        work: Callable[[], T],
        undo: Callable[[T], object],
        alone: Sequence[Hashable] = (),
    ) -> T:
        """What takes something, and `undo`, which gives back what no task took over.

        Those that may be given the same, as they have one of `alone` in common, are made one
        after the other: none is given what another is about to give back.
        """
        return await self._made(work, CHANGE, undo, alone)

    async def open(self, work: Callable[[], T], undo: Callable[[T], object]) -> T:
        """The first call, which opens what the others are about; the threads end if it fails."""
        try:
            return await self.take(work, undo)
        except GeneratorExit:  # nothing can be awaited
            raise
        except BaseException:
            await self.close(_nothing)
            raise

    async def _made(
        self,
        work: Callable[[], T],
        manner: Manner,
        undo: Callable[[T], object] | None = None,
        alone: Sequence[Hashable] = (),
    ) -> T:
        self.check_loop()
        if self.closed:
            raise ClosedError(f"{self._what} is closed")
        call = Call(work, manner, undo, self._say_lost)
        before = self._enter(call, alone)
        try:
            if before:
                await asyncio.wait(before)
            call.start(self._readers if manner is READ else self._pool)
            await call.answered
            return call.take()
        except asyncio.CancelledError:
            call.abandon()
            if manner.awaited:
                await asyncio.shield(call.settled)  # another cancellation waits no longer
            raise
        except BaseException:  # an interrupt; or the loop is gone, where nothing can be awaited
            call.abandon()
            raise

    def check_loop(self) -> None:
        """Raise InvalidValueError but in the loop that it belongs to; a forked child's own."""
        loop = _running()
        if self._process != os.getpid():
            self._begin(loop)  # none of the parent's threads is here
        if loop is not self._loop:
            raise InvalidValueError(f"{self._what} belongs to another event loop: open it in this")

    def _enter(self, call: Call[Any], alone: Sequence[Hashable]) -> list[asyncio.Future[None]]:
        """Know of a call until it is settled; what it has to wait for."""
        before = [self._last[one].settled for one in alone if one in self._last]
        self._calls.add(call)
        self._last.update(dict.fromkeys(alone, call))

        def leave(_: object) -> None:
            self._calls.discard(call)
            for one in alone:
                if self._last.get(one) is call:
                    del self._last[one]
            self._end_if_idle()

        call.settled.add_done_callback(leave)
        return before

    def _say_lost(self, error: BaseException) -> None:
        self.lost += 1
        log.error("what a cancelled call took, or was to give back, is still held: %r", error)

    # ---- the end

    def refuse(self) -> None:
        """Let no call in from now on."""
        self.closed = True

    async def close(self, close: Callable[[], None]) -> None:
        """Let no call in from now on, wait for all, end the threads, and call `close` then.

        A cancellation is raised when all of it is done. May be called again where that fails.
        """
        self.check_loop()
        self.refuse()
        if self._closing is None:
            self._closing = self._loop.create_future()
            self._close = close
            self._end_if_idle()
        await patiently(self._closing)

    def _end_if_idle(self) -> None:
        closing, close, self._close = self._closing, self._close, None
        if close is None or closing is None or self._calls:
            self._close = close
            return
        # Another thread, as the last of the pool's own cannot wait for itself.
        thread = threading.Thread(
            target=self._end, args=(close, closing), name=f"netalloc-aio {self._what} close"
        )
        thread.start()

    def _end(self, close: Callable[[], None], closing: asyncio.Future[None]) -> None:
        failure: BaseException | None = None
        try:
            self._readers.shutdown(wait=True)
            self._pool.shutdown(wait=True)
            close()
        except BaseException as error:
            failure = error
        me = threading.current_thread()
        with suppress(RuntimeError):  # the loop is closed: nothing waits
            self._loop.call_soon_threadsafe(self._over, closing, failure, me)

    def _over(
        self, closing: asyncio.Future[None], failure: BaseException | None, thread: threading.Thread
    ) -> None:
        thread.join()  # it has nothing left to do
        if failure is None:
            closing.set_result(None)
        else:
            closing.set_exception(failure)
            self._closing = None


async def patiently(future: asyncio.Future[T]) -> T:
    """What comes of it, waited for to the end: a cancellation is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as error:  # noqa: PERF203
            cancelled = error
    if cancelled is not None:
        failure = future.exception()
        if failure is not None:
            log.error("closing failed: %r", failure)
        raise cancelled
    return future.result()


async def each_closed(steps: Iterable[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Take steps that are patient all of them; raises their failures, or a cancellation."""
    cancelled: asyncio.CancelledError | None = None
    failures: list[Exception] = []
    for step in steps:
        try:
            await step()
        except asyncio.CancelledError as error:  # noqa: PERF203
            cancelled = error  # that step was taken all the same
        except Exception as error:
            failures.append(error)
    if cancelled is not None:
        raise cancelled
    raise_all("not all was closed", failures)


def _nothing() -> None:
    pass


def _running() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise InvalidValueError("there is no running event loop in this thread") from None
