"""A connection to the HTTP socket: it knows its peer, and gives way when it is slow."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from netalloc.server.app import PEER
from netalloc.server.peer import Peer, peer_of

MOST = 2048  # connections at once


class Connection(HttpToolsProtocol):
    """uvicorn's, with the peer's credentials in each request's scope."""

    peer: Peer | None = None
    patience = 10.0  # seconds for a request to come whole, from the connection or its first byte on
    _slow: asyncio.TimerHandle | None = None

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
        """It is gone, and so is the wait for it."""
        self._done()
        super().connection_lost(exc)

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
        super().on_message_complete()

    def _wait(self) -> None:
        self._done()
        self._slow = self.loop.call_later(self.patience, self._give_up)

    def _done(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _give_up(self) -> None:
        self._slow = None
        self.transport.abort()
