"""The daemon's life: sockets, signals, readiness, and an end that drops no call."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import uvicorn
import uvloop

from netalloc.errors import InvalidValueError, NetallocError
from netalloc.server import listening, systemd
from netalloc.server.access import Access, Rule
from netalloc.server.app import Api
from netalloc.server.connection import Connection
from netalloc.server.line import LineServer
from netalloc.server.service import Service

log = logging.getLogger(__name__)
_CALLS = 64  # calls of the HTTP API that are made at once
_STACK = 16 << 20  # bytes of a thread, of which what is used counts: nested JSON takes 3 MB
_LOOKS = 8  # that look, beside them
_GRACE = 10  # seconds that calls under way have at the end
_LONGEST = 3600  # seconds of patience
_IDLE = 75  # seconds that a connection may be idle between two requests


@dataclass
class Settings:
    """How the daemon is to run. `page` is an address and port of loopback for the page alone.

    `patience` is seconds for a request to come whole.
    """

    store: Path | None = None
    socket: Path | None = None
    line: Path | None = None
    group: str | None = None
    rules: Path | None = None
    page: str | None = None
    patience: float = 10.0


class _Server(uvicorn.Server):
    """uvicorn's, which leaves signals to this process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Daemon:
    """One service with its two sockets."""

    def __init__(self, settings: Settings) -> None:
        if not 0 < settings.patience <= _LONGEST:
            raise InvalidValueError(
                f"patience {settings.patience:g} is not above 0 and at most {_LONGEST:,} s"
            )
        given = (
            [Rule("group", listening.group_number(settings.group), "change", False)]
            if settings.group
            else []
        )
        self._access = Access(given, settings.rules)
        self._settings = settings
        self._made: list[tuple[Path, os.stat_result]] = []
        self._sockets: list[socket.socket] = []

    def run(self) -> None:
        """Serve until a signal ends it: SIGTERM and SIGINT; SIGHUP has the rules read anew."""
        _raise_limit()
        threading.stack_size(_STACK)  # whatever `ulimit -s` says
        try:
            uvloop.run(self._run())
        finally:
            for path, made in self._made:
                listening.remove(path, made)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        service = Service(self._settings.store)
        pool = ThreadPoolExecutor(_CALLS, thread_name_prefix="netalloc-call")
        looks = ThreadPoolExecutor(_LOOKS, thread_name_prefix="netalloc-look-call")
        api, line, page, token = self._listen()
        config = uvicorn.Config(
            Api(service, self._access, pool, looks, token).app(),
            http=type("Connection", (Connection,), {"patience": self._settings.patience}),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=_IDLE,
            timeout_graceful_shutdown=_GRACE,
        )
        server = _Server(config)
        lines = LineServer(line, service, self._access, self._settings.patience)
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            await loop.run_in_executor(pool, service.start)
            lines.start()
            sockets = [api] if page is None else [api, page]
            serving = asyncio.create_task(server.serve(sockets=sockets))
            await _started(server, serving)
            watchdog = asyncio.create_task(_watchdog(service, looks))
            waiting = asyncio.create_task(ended.wait())
            log.info("ready at %s and %s", api.getsockname(), line.getsockname())
            if page is not None:
                host, port = page.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                print(f"page: http://{shown}:{port}/?token={token}", flush=True)  # noqa: T201
            systemd.notify("READY=1")
            await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
            systemd.notify("STOPPING=1")
            log.info("stopping")
            watchdog.cancel()
            waiting.cancel()
            service.events.close()  # or their streams would be waited for
            server.should_exit = True
            await serving
        finally:
            await loop.run_in_executor(None, lines.close)
            await loop.run_in_executor(None, pool.shutdown)
            await loop.run_in_executor(None, looks.shutdown)
            await loop.run_in_executor(None, service.close)
            for one in self._sockets:
                one.close()
        log.info("stopped")

    def _listen(self) -> tuple[socket.socket, socket.socket, socket.socket | None, str | None]:
        """The sockets of the API and the line protocol, and of the page with its token."""
        handed, settings = systemd.inherited(), self._settings
        unknown = set(handed) - {"api", "line", "0", "1"}
        if unknown:
            raise InvalidValueError(
                f"sockets were handed over as {', '.join(sorted(unknown))[:80]}, not as api and "
                "line: FileDescriptorName= in the .socket unit says it"
            )
        api = handed.get("api") or handed.get("0")
        line = handed.get("line") or handed.get("1")
        api = api or self._make(settings.socket or listening.default_folder() / "netalloc.sock")
        line = line or self._make(
            settings.line or listening.default_folder() / "netalloc-line.sock"
        )
        page, token = None, None
        if settings.page is not None:
            page, token = _page_socket(settings.page), secrets.token_urlsafe(18)
            self._sockets.append(page)
        self._sockets += [api, line]
        return api, line, page, token

    def _make(self, path: Path) -> socket.socket:
        made = listening.listen(path, self._settings.group)
        self._made.append((path, path.lstat()))
        return made

    def _reload(self) -> None:
        systemd.notify("RELOADING=1")
        try:
            self._access.reload()
            log.info("read the rules anew")
        except Exception as error:  # or the service manager would wait for READY=1
            log.error("the rules stay as they were: %s", error)  # noqa: TRY400
        systemd.notify("READY=1")


async def _started(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    """Wait until it serves. Raises what kept it from that."""
    while not server.started:
        done, _ = await asyncio.wait((serving,), timeout=0.01)
        if done:
            serving.result()
            raise NetallocError("the API's socket could not be served")


async def _watchdog(service: Service, looks: ThreadPoolExecutor) -> None:
    """Signs of life as long as the store can be looked at: not where changes wait for its lock."""
    interval = systemd.watchdog_interval()
    while interval is not None:
        if await asyncio.get_running_loop().run_in_executor(looks, service.is_well):
            systemd.notify("WATCHDOG=1")
        await asyncio.sleep(interval)


def _page_socket(where: str) -> socket.socket:
    host, colon, port = where.rpartition(":")
    try:
        ip = ip_address(host.strip("[]"))
    except ValueError:
        ip = None
    if not colon or ip is None or not ip.is_loopback or not _is_port(port):
        raise InvalidValueError(f"page {where!r} is not an address of loopback and a port")
    return socket.create_server(
        (str(ip), int(port)), family=socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    )


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535


def _raise_limit() -> None:
    """As many open files as may be: one for each connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
