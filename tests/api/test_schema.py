"""The daemon's API against its OpenAPI document: schemathesis makes requests, good and bad."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from daemon import Daemon, UnixConnection

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
EXAMPLES = os.environ.get("EXAMPLES", "12")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    na = CommandLine(tmp_path / "host.db")
    na.well("network", "create", "web", "10.88.0.1/16", "fd00:88::1/64", "--backend", "null")
    na.well("allocate", "shop", "-p", "8080:80")
    with Daemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def port(daemon: Daemon) -> Iterator[int]:
    """A loopback port that leads to the daemon's socket: schemathesis speaks TCP alone."""

    class Gate(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            length = self.headers.get("content-length", "0")
            body = self.rfile.read(int(length)) if length.isdigit() else b""
            inner = UnixConnection(daemon.api)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                inner.request(self.command, self.path, body or None, headers)
                answer = inner.getresponse()
                data = answer.read(1 << 20)
            finally:
                inner.close()
            self.send_response(answer.status)
            for name in ("content-type", "allow"):
                if answer.headers.get(name):
                    self.send_header(name, answer.headers[name])
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_HEAD = serve
        do_TRACE = do_QUERY = serve

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_api_is_as_its_document_says(daemon: Daemon, port: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run"]
    command += [f"http://127.0.0.1:{port}/v1/openapi.json", "--phases", "examples,coverage,fuzzing"]
    command += ["--max-examples", EXAMPLES, "--seed", "1", "--checks", ",".join(CHECKS)]
    command += ["--exclude-path", "/v1/events", "--request-timeout", "30", "--no-color"]
    command += ["--generation-database", "none"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    errors = [json.loads(line) for line in daemon.errors.read_text().splitlines()]
    assert not [one for one in errors if "traceback" in one], "a defect in the daemon"
    assert daemon.get("check")[1]["findings"] == []
