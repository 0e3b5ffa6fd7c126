"""What was allocated, released and repaired, told live to who listens."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from datetime import datetime, timezone
from typing import Any, NamedTuple

from netalloc.operations.describe import moment

_KEPT = 1000  # events that one who comes late, or anew, still gets
_BEHIND = 1000  # events that one may be behind before it is let go


class Event(NamedTuple):
    """Something that happened: numbered from 1, at a moment in UTC."""

    number: int
    at: str
    what: str
    about: dict[str, Any]


class Listener:
    """One who listens, in an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue(_BEHIND)
        self.lost = False

    async def next(self) -> Event | None:
        """The next event; None when there will be none any more."""
        return await self._queue.get()

    def tell(self, event: Event | None) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._put, event)

    def _put(self, event: Event | None) -> None:
        if self.lost:
            return
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:  # it does not read: it is let go rather than waited for
            self.lost = True
            self._queue.get_nowait()
            self._queue.put_nowait(None)


class Events:
    """The last events, and who listens. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[Event] = deque(maxlen=_KEPT)
        self._listeners: set[Listener] = set()
        self._number = 0
        self._closed = False

    def tell(self, what: str, about: dict[str, Any]) -> None:
        """Something happened."""
        at = moment(datetime.now(timezone.utc))
        with self._lock:
            self._number += 1
            event = Event(self._number, at, what, about)
            self._kept.append(event)
            for one in self._listeners:
                one.tell(event)

    def listen(self, after: int | None = None) -> tuple[Listener, list[Event]]:
        """A listener, and what it has missed since the event of that number."""
        listener = Listener(asyncio.get_running_loop())
        with self._lock:
            self._listeners.add(listener)
            if self._closed:
                listener.tell(None)
            if after is not None and after > self._number:
                after = 0  # it counts the events of an earlier daemon: all of these are new to it
            missed = [] if after is None else [one for one in self._kept if one.number > after]
        return listener, missed

    def leave(self, listener: Listener) -> None:
        """It listens no more."""
        with self._lock:
            self._listeners.discard(listener)

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    def close(self) -> None:
        """There will be none any more."""
        with self._lock:
            self._closed = True
            for one in self._listeners:
                one.tell(None)
