"""The HTTP API: a path for each call, metrics, events, pictures and the page."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from ipaddress import ip_address
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from netalloc.server import errors
from netalloc.server.access import Access, refusal
from netalloc.server.calls import CALLS, CHANGE, LOOK, Call, arguments_of, as_keywords, list_names
from netalloc.server.openapi import document
from netalloc.server.page import page
from netalloc.server.peer import Peer
from netalloc.server.service import Service

MAX_BODY = 1 << 20  # bytes
MAX_IMPORT = 16 << 20  # of a document, some 100,000 leases
_ALIVE = 15.0  # seconds between two signs of life of an event stream
_COOKIE = "netalloc"
PEER = "netalloc.peer"  # where the connection puts it; None over TCP

_encode = msgspec.json.Encoder().encode
Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """The paths, over one service. `token` opens the page over TCP, to look alone.

    Changes are made in `pool`, where all may wait for the store's lock, and the rest in `looks`.
    """

    def __init__(
        self,
        service: Service,
        access: Access,
        pool: Executor,
        looks: Executor,
        token: str | None = None,
    ) -> None:
        self._service = service
        self._access = access
        self._pool = pool
        self._looks = looks
        self._token = token

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route(f"/v1/{call.name}", self._call(call), methods=[call.verb])
            for call in CALLS.values()
        ]
        routes += [
            Route("/", self._page, methods=["GET"]),
            Route("/healthz", self._health, methods=["GET"]),
            Route("/metrics", self._guarded(LOOK, self._metrics), methods=["GET"]),
            Route("/v1/openapi.json", self._guarded(LOOK, self._openapi), methods=["GET"]),
            Route("/v1/events", self._guarded(LOOK, self._events), methods=["GET"]),
            Route("/v1/usage", self._guarded(LOOK, self._usage), methods=["GET"]),
            Route("/v1/map", self._guarded(LOOK, self._map), methods=["GET"]),
        ]
        handlers: dict[Any, Any] = {HTTPException: _refused, Exception: _failed}
        return Starlette(routes=routes, exception_handlers=handlers)

    def _call(self, call: Call) -> Handler:
        async def handle(request: Request) -> Response:
            return await self._made(call, request)

        return self._guarded(call.right, handle)

    async def _made(self, call: Call, request: Request) -> Response:
        kind = arguments_of(call)
        if call.right == LOOK:
            arguments = _of_query(call, kind, request)
        else:
            limit = MAX_IMPORT if call.name == "import" else MAX_BODY
            body = await _body(request, limit)
            arguments = errors.decoded(body or b"{}", msgspec.json.Decoder(kind))
        dry_run = call.right == CHANGE and _flag(request, "dry_run")
        work = partial(self._service.call, call, as_keywords(arguments), dry_run=dry_run)
        pool = self._looks if call.right == LOOK else self._pool
        answer = await asyncio.get_running_loop().run_in_executor(pool, work)
        return _json(answer)

    def _guarded(self, right: str, handler: Handler) -> Handler:
        """The handler, for callers who may; what goes wrong is told as JSON."""

        async def handle(request: Request) -> Response:
            peer: Peer | None = request.scope.get(PEER)
            if peer is not None and not self._access.may(peer, right):
                self._service.metrics.refusals.labels(right).inc()
                return _json(errors.as_json("not-permitted", refusal(peer, right), 13), 403)
            if peer is None and (right != LOOK or not self._has_token(request)):
                text = "over TCP one looks alone, with the token that netalloc serve has printed"
                return _json(errors.as_json("not-permitted", text, 13), 403)
            try:
                return await handler(request)
            except (HTTPException, ClientDisconnect):
                raise
            except Exception as error:
                status, told = errors.told(error)
                return _json(told, status)

        return handle

    def _has_token(self, request: Request) -> bool:
        if not _is_loopback(request.headers.get("host", "")):
            return False  # another name that leads here: some page's, not the operator's
        given = request.cookies.get(_COOKIE, ""), request.query_params.get("token", "")
        token = self._token
        # Either: a cookie may be of an earlier daemon.
        return token is not None and any(
            hmac.compare_digest(one.encode(), token.encode()) for one in given
        )

    # ---- what is no call

    async def _page(self, request: Request) -> Response:
        peer: Peer | None = request.scope.get(PEER)
        if peer is None and request.query_params.get("token") and self._has_token(request):
            response: Response = RedirectResponse("/", 303)
            response.set_cookie(
                _COOKIE, request.query_params["token"], httponly=True, samesite="strict"
            )
            return response
        return await self._guarded(LOOK, _page)(request)

    async def _health(self, _: Request) -> Response:
        well = await asyncio.get_running_loop().run_in_executor(self._looks, self._service.is_well)
        return _json({"well": well}, 200 if well else 503)

    async def _metrics(self, _: Request) -> Response:
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(self._looks, self._service.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _openapi(self, _: Request) -> Response:
        return _json(document())

    async def _usage(self, _: Request) -> Response:
        return _json([one._asdict() for one in list(self._service.samples)])

    async def _map(self, request: Request) -> Response:
        from netalloc.server.maps import draw

        query = dict(request.query_params)
        query.pop("token", None)
        work = partial(draw, self._service.host.view(), query)
        body, media_type = await asyncio.get_running_loop().run_in_executor(self._looks, work)
        return Response(body, media_type=media_type)

    async def _events(self, request: Request) -> Response:
        given = request.headers.get("last-event-id") or request.query_params.get("after")
        number = given is not None and given.isascii() and given.isdigit()
        after = int(given[:20]) if given and number else None
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        if request.method == "HEAD":  # its stream would never end, unseen
            return Response(headers=headers, media_type="text/event-stream")
        return StreamingResponse(
            self._stream(after),
            media_type="text/event-stream",
            headers=headers,
        )

    async def _stream(self, after: int | None) -> AsyncIterator[bytes]:
        events = self._service.events
        listener, missed = events.listen(after)
        try:
            yield b": netalloc\n\n"
            for event in missed:
                yield _event(event)
            while True:
                try:
                    told = await asyncio.wait_for(listener.next(), _ALIVE)
                except asyncio.TimeoutError:
                    yield b": alive\n\n"
                    continue
                if told is None:
                    return
                yield _event(told)
        finally:
            events.leave(listener)


def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine, with a port or, as of port 80, without."""
    name = re.sub(r":[0-9]*$", "", host) if not host.endswith("]") else host
    if name.lower() == "localhost":
        return True
    try:
        return ip_address(name[1:-1] if name[:1] == "[" else name).is_loopback
    except ValueError:
        return False


def _event(event: Any) -> bytes:
    data = _encode({"at": event.at, "what": event.what, **event.about})
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.what.encode(), data)


async def _page(_: Request) -> Response:
    body, policy = page()
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return Response(body, media_type="text/html; charset=utf-8", headers=headers)


async def _refused(_: Request, error: Any) -> Response:
    kind = {404: "not-found", 405: "not-allowed", 413: "too-large"}.get(
        error.status_code, "refused"
    )
    return _json(errors.as_json(kind, str(error.detail), 2), error.status_code, error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    status, told = errors.told(error)
    return _json(told, status)


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(_encode(value), status, headers, "application/json")


async def _body(request: Request, limit: int) -> bytes:
    """The body of a request, of which no more than the limit is ever kept."""
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
    return b"".join(parts)


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"a body may have {limit:,} bytes", headers={"connection": "close"})


def _of_query(call: Call, kind: type[msgspec.Struct], request: Request) -> msgspec.Struct:
    """The arguments of a call that looks; a list's may be repeated."""
    lists, found = list_names(call), dict[str, Any]()
    for name, value in request.query_params.multi_items():
        if name in lists:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise msgspec.ValidationError(f"{name} is given twice")
        elif name != "token":
            found[name] = value
    return msgspec.convert(found, kind, strict=False)


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false")
    if value not in ("true", "false", "1", "0"):
        raise msgspec.ValidationError(f"{name} is true or false, not {value[:40]!r}")
    return value in ("true", "1")
