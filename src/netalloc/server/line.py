"""The line protocol: a call and a JSON object on a line, an answer on a line.

    allocate {"owner":"web","publish":["8080:80"]}
    ok {"network":"lab","owner":"web","ip":"10.88.0.2",...}
    who {"what":"tcp/80"}
    error {"kind":"invalid-value","message":"...","status":2}

A thread for each connection, so that nothing stands between a caller and its call: no event
loop, no hand-over. The calls are those of the HTTP API, with the same names, arguments, answers
and rights, and `ping`.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import msgspec

from netalloc.server import errors
from netalloc.server.access import Access, refusal
from netalloc.server.calls import CALLS, arguments_of, as_keywords
from netalloc.server.peer import Peer, peer_of
from netalloc.server.service import Service

log = logging.getLogger(__name__)
MOST = 1024  # connections at once
MAX_LINE = 1 << 20  # bytes
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)  # of what others may give back
_PAUSE = 0.05  # seconds until it is asked for again
_encode = msgspec.json.Encoder().encode


class LineServer:
    """Serves a listening unix socket until it is closed.

    `patience` is seconds for the first line, for the rest of any that has begun, and for an answer
    to be read.
    """

    def __init__(
        self,
        listening: socket.socket,
        service: Service,
        access: Access,
        patience: float = 10.0,
    ) -> None:
        self._patience = patience
        self._listening = listening
        self._service = service
        self._access = access
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._short = False  # of descriptors or memory
        self._closed = threading.Event()
        self._decoders = {
            name: (call, msgspec.json.Decoder(arguments_of(call))) for name, call in CALLS.items()
        }
        self._thread = threading.Thread(target=self._accept, name="netalloc-line", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def close(self, patience: float = 5.0) -> None:
        """Accept no more, let calls under way end, and end the connections."""
        self._closing = True
        self._closed.set()
        _shut(self._listening, socket.SHUT_RDWR)
        if self._thread.ident is not None:  # else it was never started
            self._thread.join()
        with self._lock:
            left = dict(self._connections)
        for connection in left:
            _shut(connection, socket.SHUT_RD)  # a call under way still gets its answer
        end = time.monotonic() + patience  # for all of them together
        for thread in left.values():
            thread.join(max(0.0, end - time.monotonic()))

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listening.accept()
            except OSError as error:
                if self._closing:
                    return
                if error.errno in _SHORT:
                    self._wait_for_more(error)
                    continue
                if error.errno == errno.ECONNABORTED:
                    continue  # that one went away before its turn
                log.error("the line socket accepts no more: %s", error)  # noqa: TRY400
                return
            try:
                self._begin(connection)
            except Exception:
                log.exception("a connection could not be served")
                connection.close()

    def _peer_of(self, connection: socket.socket) -> Peer:
        """Who connected, as soon as there is what it takes to tell."""
        while True:
            try:
                return peer_of(connection)
            except OSError as error:  # noqa: PERF203
                if error.errno not in _SHORT or self._closing:
                    raise
                self._wait_for_more(error)

    def _wait_for_more(self, error: OSError) -> None:
        if not self._short:
            log.error("the line socket accepts none for now: %s", error)
        self._short = True
        self._closed.wait(_PAUSE)

    def _begin(self, connection: socket.socket) -> None:
        try:
            peer = self._peer_of(connection)
        except OSError:
            connection.close()
            return
        self._short = False
        right = self._access.right_of(peer)
        with self._lock:
            full = len(self._connections) >= MOST
        if right is None or full:
            if right is None:
                self._service.metrics.refusals.labels("read").inc()
            text = refusal(peer, "read") if right is None else f"{MOST} connections are open"
            with suppress(OSError):
                connection.setblocking(False)
                connection.send(_failure(errors.as_json("not-permitted", text, 13)))
            connection.close()
            return
        thread = threading.Thread(
            target=self._serve, args=(connection, peer), name="netalloc-line-call", daemon=True
        )
        with self._lock:
            self._connections[connection] = thread
        try:
            thread.start()
        except RuntimeError:  # no more threads
            with self._lock:
                del self._connections[connection]
            connection.close()

    def _serve(self, connection: socket.socket, peer: Peer) -> None:
        rest = b""
        try:
            connection.settimeout(self._patience)
            while True:
                line, newline, more = rest.partition(b"\n")
                if newline:
                    rest = more
                    if not self._send(connection, self._answer(line, peer)):
                        return
                    continue
                if len(rest) > MAX_LINE:
                    told = errors.as_json("too-large", f"a line may have {MAX_LINE:,} bytes", 2)
                    self._send(connection, _failure(told))
                    return
                if rest:
                    connection.settimeout(self._patience)
                data = connection.recv(65536)
                if not data:
                    return
                rest += data
                connection.settimeout(None)  # between two lines it may wait as long as it likes
        except OSError:
            pass  # it is gone, or too slow
        finally:
            connection.close()
            with self._lock:
                self._connections.pop(connection, None)

    def _send(self, connection: socket.socket, data: bytes) -> bool:
        """Send all of it, or give up where the peer does not read; whether it was sent."""
        try:
            connection.settimeout(self._patience)
            connection.sendall(data)
            connection.settimeout(None)
        except OSError:
            return False
        return True

    def _answer(self, line: bytes, peer: Peer) -> bytes:
        name, _, given = line.strip().partition(b" ")
        found = self._decoders.get(name.decode("ascii", "replace"))
        if found is None:
            if name == b"ping":
                return b"ok {}\n"
            text = f"there is no call {name[:40].decode('ascii', 'replace')!r}"
            return _failure(errors.as_json("not-found", text, 2))
        call, decoder = found
        if not self._access.may(peer, call.right):
            self._service.metrics.refusals.labels(call.right).inc()
            return _failure(errors.as_json("not-permitted", refusal(peer, call.right), 13))
        try:
            answer = self._service.call(call, as_keywords(errors.decoded(given or b"{}", decoder)))
            return b"ok " + _encode(answer) + b"\n"
        except Exception as error:
            return _failure(errors.told(error)[1])


def _failure(told: dict[str, Any]) -> bytes:
    return b"error " + _encode(told["error"]) + b"\n"


def _shut(one: socket.socket, how: int) -> None:
    with suppress(OSError):
        one.shutdown(how)
