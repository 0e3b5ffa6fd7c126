"""A connection to the HTTP socket: it knows its peer, and gives way when it is slow."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from netalloc.server.app import PEER
from netalloc.server.peer import Peer, peer_of

MOST = 2048  # connections at once
MAX_HEAD = 64 << 10  # bytes of a request line and its headers


class Connection(HttpToolsProtocol):
    """uvicorn's, with the peer's credentials in each request's scope."""

    peer: Peer | None = None
    patience = 10.0  # seconds for a request to come whole, from the connection or its first byte on
    _slow: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _head = 0  # bytes since a head began; -1 within a body

    def connection_made(self, transport: Any) -> None:
        """A peer connected: who is it?"""
        super().connection_made(transport)
        if len(self.connections) > MOST:
            transport.abort()
            return
        found = transport.get_extra_info("socket")
        if found is not None and found.family == socket.AF_UNIX:
            try:
                with socket.fromfd(found.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as copy:
                    self.peer = peer_of(copy)
            except OSError:  # it is gone already, or no descriptor is left
                transport.abort()
                return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, and so are the waits for it."""
        self._done()
        self._read()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes came. A head that does not end is not kept."""
        if self._head >= 0:
            self._head += len(data)
        super().data_received(data)
        if self._head > MAX_HEAD and not self.transport.is_closing():
            self.transport.abort()

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._head = -1
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """The peer does not read as fast as it is answered."""
        super().pause_writing()
        self._watch_reading(self._left())

    def resume_writing(self) -> None:
        """It has read nearly all."""
        self._read()
        super().resume_writing()

    def on_message_begin(self) -> None:
        """A request begins, which has to come whole within a time."""
        super().on_message_begin()
        scope: Any = self.scope
        scope[PEER] = self.peer
        if self._slow is None:
            self._wait()

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._done()
        self._head = 0
        super().on_message_complete()

    def _wait(self) -> None:
        self._done()
        self._slow = self.loop.call_later(self.patience, self._give_up)

    def _done(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _left(self) -> int:
        return int(self.transport.get_write_buffer_size())

    def _watch_reading(self, before: int) -> None:
        """Look again in a while: a peer that has read nothing by then is let go."""
        self._read()
        self._unread = self.loop.call_later(self.patience, self._still_unread, before)

    def _still_unread(self, before: int) -> None:
        left = self._left()
        if left >= before:
            self.transport.abort()
        else:
            self._watch_reading(left)

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _give_up(self) -> None:
        self._slow = None
        self.transport.abort()
