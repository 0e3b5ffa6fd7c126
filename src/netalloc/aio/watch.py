"""The repairs of a watch, one after the other, for the loop."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from netalloc.aio.threads import Threads
    from netalloc.model import ReconcileResult
    from netalloc.portmap.watch import Watch

_KEPT = 1000  # repairs, at most two a second, that nothing has taken yet


class AsyncWatch:
    """An async iterator of what was repaired, which ends when it, or its manager, is closed.

    The last thousand wait for whatever iterates. A context manager.
    """

    def __init__(
        self, threads: Threads, on_repair: Callable[[ReconcileResult], None] | None
    ) -> None:
        self._threads = threads
        self._on_repair = on_repair
        self._loop = asyncio.get_running_loop()
        self._found: deque[ReconcileResult] = deque(maxlen=_KEPT)
        self._waiting: set[asyncio.Future[None]] = set()
        self._watch: Watch | None = None
        self._ended = False

    def _begun(self, watch: Watch) -> AsyncWatch:
        self._watch = watch
        return self

    def _tell(self, repairs: ReconcileResult) -> None:
        """Called in the thread that repairs."""
        with suppress(RuntimeError):  # the loop is closed: nothing is told of it any more
            self._loop.call_soon_threadsafe(self._add, repairs)

    def _add(self, repairs: ReconcileResult) -> None:
        self._found.append(repairs)
        self._wake()
        if self._on_repair is not None and not self._ended:
            self._on_repair(repairs)

    def _end(self) -> None:
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        for one in self._waiting:
            if not one.done():
                one.set_result(None)

    def __aiter__(self) -> AsyncWatch:
        return self

    async def __anext__(self) -> ReconcileResult:
        self._threads.check_loop()
        while not self._found:
            if self._ended:
                raise StopAsyncIteration
            told: asyncio.Future[None] = self._loop.create_future()
            self._waiting.add(told)
            try:
                await told
            finally:
                self._waiting.discard(told)
        return self._found.popleft()

    async def close(self) -> None:
        """End the watch, after the repair that runs now if one does; twice is no error."""
        self._threads.check_loop()
        watch, self._watch = self._watch, None
        if watch is not None and not self._ended:
            await self._threads.give(watch.close)
        self._end()

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
