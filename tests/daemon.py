"""The daemon as a process of its own, and clients of both its sockets."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode


class Daemon(AbstractContextManager["Daemon"]):
    """`netalloc serve` in a folder, ready when the block is entered, ended by SIGTERM after it."""

    def __init__(self, folder: Path, *arguments: str, store: Path | None = None) -> None:
        self.folder = folder
        self.api, self.line = folder / "api.sock", folder / "line.sock"
        self.store = store or folder / "host.db"
        self._arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}
        self.inherited: Sequence[int] = ()
        self.errors = folder / "errors"
        self.out = folder / "out"

    def __enter__(self) -> "Daemon":
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(self.folder / "notify.sock"))
        self._notified.settimeout(30)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.process is not None and self.process.poll() is None:
                self.stop()
            elif self.process is not None:
                self.process.wait()
        finally:
            self._notified.close()
            (self.folder / "notify.sock").unlink()

    def command(self) -> list[str]:
        """How it is started."""
        sockets = ["--socket", str(self.api), "--line", str(self.line)]
        store = ["--store", str(self.store)]
        return [sys.executable, "-m", "netalloc.server", *store, *sockets, *self._arguments]

    def start(self) -> None:
        """Start it, and wait until it says that it is ready."""
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self.folder / "notify.sock"),
            **self.environment,
        }
        with self.errors.open("ab") as errors, self.out.open("ab") as out:
            self.process = subprocess.Popen(
                self.command(), env=environment, stdout=out, stderr=errors,
                pass_fds=self.inherited,
            )  # fmt: skip
        self.wait_for("READY=1")

    def wait_for(self, state: str) -> None:
        """Wait until it tells that."""
        while True:
            try:
                told = self._notified.recv(4096).decode()
            except TimeoutError:
                raise AssertionError(f"it did not say {state}: {self.errors.read_text()}") from None
            if state in told.splitlines():
                return

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"it did not end: {self.errors.read_text()}") from None
        self.process = None
        return status

    def kill(self) -> None:
        """End it as the kernel would, out of memory."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def memory(self) -> int:
        """Its resident memory, in bytes."""
        assert self.process is not None
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    # ---- clients

    def get(self, call: str, /, **query: Any) -> tuple[int, Any]:
        """A call that looks."""
        path = f"/v1/{call}?{urlencode(query, doseq=True)}" if query else f"/v1/{call}"
        return self.ask("GET", path)

    def post(self, call: str, /, *, dry_run: bool = False, **arguments: Any) -> tuple[int, Any]:
        """A call that changes."""
        path = f"/v1/{call}" + ("?dry_run=true" if dry_run else "")
        return self.ask("POST", path, json.dumps(arguments).encode())

    def ask(self, verb: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """A request over a connection of its own; what is JSON is read."""
        connection = UnixConnection(self.api)
        try:
            connection.request(verb, path, body, headers)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        kind = response.headers.get("content-type", "")
        return response.status, json.loads(data) if kind == "application/json" else data

    def connect(self, path: Path | None = None) -> socket.socket:
        """A bare connection, to the API unless named."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(30)
        made.connect(str(path or self.api))
        return made


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket; it stays open between requests."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(self.timeout)
        try:
            made.connect(str(self._path))
        except BaseException:
            made.close()
            raise
        self.sock = made

    def call(self, verb: str, path: str, body: Any = None) -> tuple[int, Any]:
        """A request and its answer."""
        self.request(verb, path, None if body is None else json.dumps(body).encode())
        response = self.getresponse()
        return response.status, json.loads(response.read())


class LineClient:
    """The line protocol: a call and its answer."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(60)
        try:
            self._socket.connect(str(path))
        except BaseException:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rwb")

    def call(self, name: str, /, **arguments: Any) -> tuple[str, Any]:
        """("ok", answer) or ("error", what). Raises ConnectionError where the daemon is gone."""
        self._file.write(f"{name} {json.dumps(arguments)}\n".encode())
        self._file.flush()
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the daemon is gone")
        outcome, _, rest = line.partition(b" ")
        return outcome.decode(), json.loads(rest)

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()
        self._socket.close()
