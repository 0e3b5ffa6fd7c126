"""The daemon where the machine, or a client, gives it trouble."""

import asyncio
import http.client
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from command_line import CommandLine
from daemon import Daemon
from netalloc.manager.networks import Networks
from netalloc.server import errors
from netalloc.server.events import Events
from netalloc.server.peer import peer_of
from netalloc.server.service import Service


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    CommandLine(tmp_path / "host.db").well(
        "network", "create", "web", "10.88.0.1/16", "--backend", "null"
    )
    return tmp_path


@pytest.fixture
def daemon(folder: Path) -> Iterator[Daemon]:
    with Daemon(folder) as daemon:
        yield daemon


def refused(daemon: Daemon, *more: str) -> tuple[int, str]:
    """The exit status of a daemon that cannot start, and what it says."""
    done = subprocess.run(
        [*daemon.command(), *more], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def test_a_store_that_cannot_be_opened_is_told_in_a_line(folder: Path) -> None:
    broken = folder / "broken.db"
    broken.write_bytes(b"garbage" * 1000)
    status, said = refused(Daemon(folder, store=broken))
    assert status == 11
    assert str(broken) in said


def test_the_line_socket_accepts_again_when_there_are_descriptors(daemon: Daemon) -> None:
    assert daemon.process is not None
    number = daemon.process.pid, resource.RLIMIT_NOFILE
    limits = resource.prlimit(*number)
    resource.prlimit(*number, (0, limits[1]))  # what it has it keeps
    with daemon.connect(daemon.line) as one:
        one.settimeout(0.05)
        end = time.monotonic() + 20
        while "accepts none for now" not in daemon.errors.read_text():
            assert time.monotonic() < end, daemon.errors.read_text()
            with suppress(TimeoutError):
                one.recv(1)
        resource.prlimit(*number, limits)
        one.settimeout(10)
        one.sendall(b"ping\n")
        assert one.recv(100) == b"ok {}\n"
    assert daemon.errors.read_text().count("accepts none for now") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--group", "99999999999"),
        ("--group", "4294967295"),
        ("--group", "nope"),
        ("--page", "127.0.0.1:\u00b2"),
        ("--page", "127.0.0.1:" + "9" * 5000),
        ("--patience", "nan"),
        ("--patience", "0"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_no_socket(
    folder: Path, arguments: tuple[str, str]
) -> None:
    daemon = Daemon(folder)
    assert refused(daemon, *arguments)[0] == 2
    assert not daemon.api.exists()


@pytest.mark.parametrize("text", ["user a\0b read", "user " + "9" * 5000 + " read"])
def test_rules_that_no_name_can_be_stay_as_they_were(folder: Path, text: str) -> None:
    rules = folder / "rules"
    rules.write_text("user 1 read\n")
    with Daemon(folder, "--rules", str(rules)) as daemon:
        assert daemon.process is not None
        rules.write_text(text)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("READY=1")
        assert "the rules stay as they were" in daemon.errors.read_text()
        assert daemon.get("networks")[0] == 200


def test_a_head_without_an_end_is_not_kept(daemon: Daemon) -> None:
    with daemon.connect() as one:
        one.sendall(b"GET /v1/networks HTTP/1.1\r\nhost: x\r\nx: ")
        sent = 0
        with pytest.raises(OSError):
            while sent < 4 << 20:
                sent += one.send(b"a" * 65536)
    assert daemon.get("networks")[0] == 200


def test_a_client_that_does_not_read_its_answer_is_let_go(folder: Path) -> None:
    with Daemon(folder, "--patience", "0.5") as daemon:
        for owner in range(5):
            daemon.post("allocate_many", owner=f"o{owner}", count=1000)
        with daemon.connect() as one:
            one.sendall(b"GET /v1/leases HTTP/1.1\r\nhost: x\r\n\r\n")
            hung_up = select_hang_up(one)
        assert hung_up
        slow = daemon.connect()
        slow.sendall(b"GET /v1/leases HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert len(b"".join(iter(lambda: slow.recv(65536), b""))) > 1 << 20
        slow.close()


def select_hang_up(one: socket.socket) -> bool:
    """Wait, without reading, until the other end is closed."""
    asked = select.poll()
    asked.register(one, 0)  # POLLHUP is told in any case
    return bool(asked.poll(20_000))


def test_health_does_not_wait_behind_changes_that_wait(daemon: Daemon) -> None:
    code = (
        "import os, signal, sys\n"
        "from netalloc.manager.networks import Networks\n"
        "stop = lambda tx: os.kill(os.getpid(), signal.SIGSTOP)\n"
        "Networks(sys.argv[1]).store.run('x', stop, durable=True)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(daemon.store)])
    os.waitpid(holder.pid, os.WUNTRACED)
    waiting = []
    for _ in range(80):
        one = daemon.connect()
        one.sendall(b"POST /v1/allocate HTTP/1.1\r\nhost: x\r\ncontent-length: 13\r\n\r\n")
        one.sendall(b'{"owner":"z"}')
        waiting.append(one)
    try:
        with daemon.connect() as health:
            health.settimeout(5)  # a change waits 10 seconds
            health.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b'{"well":true}' in health.recv(65536)
    finally:
        holder.send_signal(signal.SIGCONT)
        holder.wait()
        for one in waiting:
            one.close()


def test_events_of_an_earlier_daemon_are_no_later_than_these(daemon: Daemon) -> None:
    daemon.post("allocate", owner="a")
    for after in ("777", "9" * 5000):
        with daemon.connect() as one:
            one.sendall(f"GET /v1/events?after={after} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            data = b""
            while b"event: allocated" not in data:
                data += one.recv(65536)


def test_the_head_of_events_ends(daemon: Daemon) -> None:
    with daemon.connect() as one:
        one.sendall(b"HEAD /v1/events HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        data = b"".join(iter(lambda: one.recv(65536), b""))
    assert data.startswith(b"HTTP/1.1 200")
    assert data.endswith(b"\r\n\r\n")


def test_who_listens_after_the_end_is_told_so() -> None:
    async def listen() -> object:
        events = Events()
        events.close()
        return await asyncio.wait_for(events.listen()[0].next(), 5)

    assert asyncio.run(listen()) is None


def test_json_that_is_nested_too_deep_is_refused_and_logs_no_defect(daemon: Daemon) -> None:
    body = b'{"document":' + b"[" * 20000 + b"]" * 20000 + b"}"
    status, answer = daemon.ask("POST", "/v1/import", body)
    assert (status, answer["error"]["kind"]) == (400, "invalid-value")
    with daemon.connect(daemon.line) as one:
        one.sendall(b"import " + body + b"\n")
        assert one.recv(65536).startswith(b'error {"kind":"invalid-value"')


def test_a_defect_is_logged_once_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    status, told = errors.told(ZeroDivisionError("secret"))
    assert status == 500
    assert "secret" not in str(told)
    assert [one.exc_info is not None for one in caplog.records] == [True]


def test_a_change_that_is_made_is_not_refused_as_it_cannot_be_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from netalloc.server.calls import CALLS

    service = Service(folder / "host.db")
    service.start()

    def fail() -> None:
        raise RuntimeError

    monkeypatch.setattr(service, "_look", fail)
    arguments = {"name": "n", "subnets": ["10.1.0.1/24"], "backend": "null"}
    assert service.call(CALLS["create_network"], arguments).name == "n"
    service.close()


def test_a_network_that_was_made_anew_is_opened_anew(folder: Path) -> None:
    service = Service(folder / "host.db")
    service.start()
    before = service._managers["web"]
    with Networks(folder / "host.db") as other:
        other.remove("web")
        other.create("web", "10.99.0.1/24", backend="null")
    service._look()
    assert service._managers["web"] is not before
    assert service._managers["web"].registered
    service.close()


def test_more_groups_than_a_kilobyte_holds_are_read(tmp_path: Path) -> None:
    path = tmp_path / "s"
    code = (
        "import os, socket, sys\n"
        "os.setgroups(range(5000, 5400))\n"
        "one = socket.socket(socket.AF_UNIX)\n"
        "one.connect(sys.argv[1])\n"
        "one.recv(1)\n"
    )
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        client = subprocess.Popen([sys.executable, "-c", code, str(path)])
        with listening.accept()[0] as one:
            assert set(range(5000, 5400)) <= peer_of(one).groups
        client.wait()


def test_a_peer_that_has_ended_is_outside(tmp_path: Path) -> None:
    path = tmp_path / "s"
    code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)
        with listening.accept()[0] as one:
            assert peer_of(one).outside is not None


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("localhost", 200), ("[::1]", 200), ("[::1]:80", 200),
        ("127.0.0.2:80", 200), ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("", 403),
        ("::1]:80", 403), ("localhost:80:80", 403),
    ],
)  # fmt: skip
def test_the_page_takes_each_name_of_this_machine_and_no_other(
    paged: tuple[int, str], host: str, status: int
) -> None:
    port, token = paged
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/v1/networks", headers={"cookie": f"netalloc={token}", "host": host})
    assert connection.getresponse().status == status
    connection.close()


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """The port and the token of a page."""
    folder = tmp_path_factory.mktemp("page")
    CommandLine(folder / "host.db").well(
        "network", "create", "web", "10.88.0.1/24", "--backend", "null"
    )
    with Daemon(folder, "--page", "127.0.0.1:0") as daemon:
        found = re.search(r":(\d+)/\?token=(\S+)", daemon.out.read_text())
        assert found is not None
        yield int(found[1]), found[2]


def test_sockets_of_another_name_are_refused(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.bind(str(folder / "given.sock"))
        one.listen()
        code = (
            f"import os, sys; os.dup2({one.fileno()}, 3); os.set_inheritable(3, True); "
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
            "os.environ.update(LISTEN_FDNAMES='http'); "
            "os.execv(sys.executable, [sys.executable, '-m', 'netalloc.server', *sys.argv[1:]])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "--store", str(folder / "host.db")],
            capture_output=True, text=True, timeout=60, check=False, pass_fds=[one.fileno()],
        )  # fmt: skip
    assert done.returncode == 2
    assert "handed over as http, not as api and line" in done.stderr


def test_a_daemon_is_ready_when_it_serves(daemon: Daemon) -> None:
    assert daemon.get("networks")[0] == 200  # at once: nothing is waited for
    assert "stopping" not in daemon.errors.read_text()
