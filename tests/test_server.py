"""The daemon: both sockets answer the same, refuse what they should, and come and go cleanly."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from command_line import CommandLine
from daemon import Daemon, LineClient, UnixConnection
from netalloc.host import namespaces
from netalloc.server.calls import CALLS, CHANGE, LOOK
from netalloc.server.openapi import document


def made_in(folder: Path) -> Path:
    CommandLine(folder / "host.db").well(
        "network", "create", "web", "10.88.0.1/16", "fd00:88::1/64", "--backend", "null"
    )
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made_in(tmp_path)


@pytest.fixture
def daemon(folder: Path) -> Iterator[Daemon]:
    with Daemon(folder) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all calls that change nothing."""
    with Daemon(made_in(tmp_path_factory.mktemp("unchanged"))) as daemon:
        yield daemon


@pytest.fixture
def line(daemon: Daemon) -> Iterator[LineClient]:
    client = LineClient(daemon.line)
    yield client
    client.close()


SESSION: list[tuple[str, dict[str, Any]]] = [
    ("create_network", {"name": "n", "subnets": ["10.1.0.1/24"], "backend": "null"}),
    ("networks", {}),
    ("network", {"name": "n"}),
    ("allocate", {"owner": "a", "network": "n", "publish": ["8080:80"], "labels": {"x": "y"}}),
    ("allocate", {"owner": "a", "network": "n", "key": "k"}),
    ("allocate", {"owner": "a", "network": "n", "ip": "10.1.0.2"}),
    ("allocate_many", {"owner": "b", "count": 3, "network": "n"}),
    ("leases", {"network": "n"}),
    ("leases", {"containing": "0.3", "limit": 1}),
    ("who", {"what": "tcp/8080"}),
    ("who", {"what": "a"}),
    ("why", {"what": "10.1.0.2"}),
    ("why", {"what": "not an address or a port"}),
    ("publish", {"owner": "a", "ports": ["9000:90"], "key": "k"}),
    ("unpublish", {"owner": "a", "ports": ["9000"], "key": "k"}),
    ("unpublish", {"owner": "a", "ports": ["9000"], "key": "k"}),
    ("reserve", {"ip": "10.1.0.50", "owner": "c"}),
    ("reservations", {}),
    ("unreserve", {"ip": "10.1.0.50"}),
    ("history", {"ip": "10.1.0.2"}),
    ("gc", {"alive": ["a"], "grace": 0}),
    ("gc", {"alive": ["a"], "grace": 0}),
    ("check", {}),
    ("reconcile", {}),
    ("activity", {"owners": 2}),
    ("attach", {"owner": "a", "key": "k", "netns": "nosuch"}),
    ("detach", {"owner": "a"}),
    ("release", {"owner": "a"}),
    ("release", {"owner": "a"}),
    ("remove_network", {"name": "n"}),
    ("remove_network", {"name": "n"}),
]
CHANGES_ALWAYS = ("since", "at", "start", "end", "generation", "allocated", "released")


def without_moments(value: Any) -> Any:
    if isinstance(value, list):
        return [without_moments(one) for one in value]
    if isinstance(value, dict):
        return {k: without_moments(v) for k, v in value.items() if k not in CHANGES_ALWAYS}
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "", value) if isinstance(value, str) else value


def test_both_sockets_answer_the_same_as_the_document_says(
    daemon: Daemon, line: LineClient
) -> None:
    components = document()["components"]
    by_http, by_line = [], []
    for name, arguments in SESSION:
        call = CALLS[name]
        if call.right == LOOK:
            status, answer = daemon.get(name, **arguments)
        else:
            status, answer = daemon.post(name, **arguments)
        said = document()["paths"][f"/v1/{name}"][call.verb.lower()]["responses"]
        schema = said[str(status)]["content"]["application/json"]["schema"]
        jsonschema.validate(answer, {**schema, "components": components})
        by_http.append((status == 200, answer.get("error", answer) if status != 200 else answer))
    for name, arguments in SESSION:
        outcome, answer = line.call(name, **arguments)
        by_line.append((outcome == "ok", answer))
    for (name, _), left, right in zip(SESSION, by_http, by_line, strict=True):
        assert without_moments(list(left)) == without_moments(list(right)), name
    assert sum(not well for well, _ in by_http) == 6


def test_every_call_is_in_the_session_or_tested_elsewhere() -> None:
    elsewhere = {"doctor", "export", "import", "repair"}
    assert {name for name, _ in SESSION} | elsewhere == set(CALLS)


def test_export_import_doctor_and_repair(daemon: Daemon, line: LineClient) -> None:
    daemon.post("allocate", owner="a", publish=["8080:80"])
    status, exported = daemon.get("export")
    assert status == 200
    assert line.call("export") == ("ok", exported)
    assert daemon.post("import", document=exported) == (200, {"done": []})
    daemon.post("release", owner="a")
    assert daemon.post("import", document=exported) == (200, {"done": ["10.88.0.2 of a"]})
    assert daemon.get("doctor")[0] == 200
    status, done = daemon.post("repair")
    assert status == 200
    assert "a copy of the file as it was" in done["done"][0]
    assert daemon.get("who", what="a")[1]["leases"][0]["ip"] == "10.88.0.2"


def test_a_dry_run_touches_nothing(daemon: Daemon) -> None:
    before = daemon.get("export")
    status, planned = daemon.post("allocate", dry_run=True, owner="a", publish=["80:80"])
    assert status == 200
    assert planned["answer"]["ip"] == "10.88.0.2"
    assert daemon.get("export") == before


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "kind"),
    [
        ("GET", "/v1/nosuch", None, 404, "not-found"),
        ("DELETE", "/v1/networks", None, 405, "not-allowed"),
        ("GET", "/v1/allocate", None, 405, "not-allowed"),
        ("POST", "/v1/allocate", b"{", 400, "invalid-value"),
        ("POST", "/v1/allocate", b"[]", 400, "invalid-value"),
        ("POST", "/v1/allocate", b"", 400, "invalid-value"),
        ("POST", "/v1/allocate", b'{"owner": 5}', 400, "invalid-value"),
        ("POST", "/v1/allocate", b'{"owner": "a", "nosuch": 1}', 400, "invalid-value"),
        ("POST", "/v1/allocate", b"[" * 100_000, 400, "invalid-value"),
        ("POST", "/v1/allocate", b'{"owner": "\xff"}', 400, "invalid-value"),
        ("POST", "/v1/allocate", b'{"owner": "a\\u0000"}', 400, "invalid-value"),
        ("POST", "/v1/allocate", b'{"owner": "a", "ip": "1.2.3.4"}', 400, "out-of-range"),
        ("POST", "/v1/allocate?dry_run=maybe", b'{"owner": "a"}', 400, "invalid-value"),
        ("POST", "/v1/allocate_many", b'{"owner": "a", "count": 65537}', 400, "out-of-range"),
        ("POST", "/v1/release", b'{"owner": "nothing"}', 404, "not-allocated"),
        ("POST", "/v1/gc", b'{"alive": [], "grace": -1}', 400, "out-of-range"),
        ("GET", "/v1/who", None, 400, "invalid-value"),
        ("GET", "/v1/who?what=a&what=b", None, 400, "invalid-value"),
        ("GET", "/v1/leases?limit=many", None, 400, "invalid-value"),
        ("GET", "/v1/history?ip=10.88.0.2&at=yesterday", None, 400, "invalid-value"),
        ("GET", "/v1/map?network=nosuch", None, 404, "not-allocated"),
        ("GET", "/v1/map?network=web&form=gif", None, 400, "out-of-range"),
        ("GET", "/v1/map?network=web&size=1000000", None, 400, "out-of-range"),
        ("GET", "/v1/map?network=web&form=png&theme=pink", None, 400, "invalid-value"),
    ],
)
def test_what_is_wrong_is_refused_and_changes_nothing(
    unchanged: Daemon, verb: str, path: str, body: bytes | None, status: int, kind: str
) -> None:
    daemon = unchanged
    before = daemon.get("export")
    found, answer = daemon.ask(verb, path, body)
    assert (found, answer["error"]["kind"]) == (status, kind), answer
    assert answer["error"]["message"]
    assert daemon.get("export") == before
    assert "Traceback" not in daemon.errors.read_text()


@pytest.mark.parametrize(
    "sent",
    [b"nosuch {}\n", b"\n", b"allocate {\n", b"allocate []\n", b"\xff\xfe\n", b"who\n",
     b'allocate {"owner":"a","nosuch":1}\n'],
)  # fmt: skip
def test_a_line_that_is_wrong_is_refused_and_the_next_one_served(
    unchanged: Daemon, sent: bytes
) -> None:
    with unchanged.connect(unchanged.line) as one:
        one.sendall(sent + b"ping\n")
        with one.makefile("rb") as lines:
            assert lines.readline().startswith(b"error {")
            assert lines.readline() == b"ok {}\n"


# ---- big, slow and dying clients


def test_a_body_of_100_megabytes_is_refused_and_not_kept(daemon: Daemon) -> None:
    daemon.get("networks")
    before = daemon.memory()
    status, answer = daemon.ask(
        "POST", "/v1/allocate", b"x" * 10, **{"content-length": "100000000"}
    )
    assert (status, answer["error"]["kind"]) == (413, "too-large")

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1_000_000

    with suppress(OSError):  # it may close before all of it is sent
        status, answer = daemon.ask(
            "POST", "/v1/allocate", chunks(), **{"transfer-encoding": "chunked"}
        )
        assert status == 413
    with daemon.connect(daemon.line) as one, suppress(OSError):
        for _ in range(100):
            one.sendall(b"x" * 1_000_000)
    assert daemon.memory() - before < 30_000_000
    assert daemon.get("networks")[0] == 200


def test_slow_clients_are_let_go(folder: Path) -> None:
    with Daemon(folder, "--patience", "0.5") as daemon:
        slow = [
            (daemon.api, b""),
            (daemon.api, b"POST /v1/allocate HTTP/1.1\r\n"),
            (daemon.api, b"POST /v1/allocate HTTP/1.1\r\ncontent-length: 100\r\n\r\n{"),
            (daemon.line, b""),
            (daemon.line, b"allocate "),
        ]
        for path, begun in slow:
            with daemon.connect(path) as one:
                one.sendall(begun)
                with suppress(ConnectionResetError):
                    assert one.recv(100) == b"", begun
        assert daemon.get("networks")[0] == 200
        assert daemon.get("leases") == (200, [])
        # One that keeps its connection between two requests, or two lines, is not slow.
        keeping, client = UnixConnection(daemon.api), LineClient(daemon.line)
        for _ in range(2):
            assert keeping.call("GET", "/v1/networks")[0] == 200
            assert client.call("ping") == ("ok", {})
            time.sleep(0.8)  # longer than its patience
        keeping.close()
        client.close()


def test_a_thousand_half_open_connections_do_no_harm(folder: Path) -> None:
    with Daemon(folder, "--patience", "5") as daemon:
        opened = [daemon.connect(path) for path in (daemon.api, daemon.line) for _ in range(500)]
        for one in opened[::2]:
            one.sendall(b"POST /v1/")
        client = LineClient(daemon.line)
        for number in range(20):
            assert daemon.post("allocate", owner=f"h{number}")[0] == 200
            assert client.call("allocate", owner=f"l{number}")[0] == "ok"
        client.close()
        for one in opened:
            one.close()
        assert len(daemon.get("leases")[1]) == 40


def test_a_client_that_dies_in_a_call_leaves_the_daemon_well(daemon: Daemon) -> None:
    for number in range(50):
        one = daemon.connect()
        body = json.dumps({"owner": f"dead{number}"}).encode()
        one.sendall(
            b"POST /v1/allocate HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        one.close()
        other = daemon.connect(daemon.line)
        other.sendall(b'allocate {"owner":"line%d"}\n' % number)
        other.close()
    assert daemon.get("check")[1]["findings"] == []
    assert daemon.post("allocate", owner="alive")[0] == 200


# ---- rights


def call_as(daemon: Daemon, uid: int, gid: int, *prefix: str) -> tuple[list[int], list[str]]:
    """Statuses and outcomes of reading and changing, as another user, or in other namespaces."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from daemon import UnixConnection, LineClient
found, lines = [], []
for verb, path, body in (("GET", "/v1/networks", None), ("POST", "/v1/allocate", dict(owner="x"))):
    found.append(UnixConnection(Path({str(daemon.api)!r})).call(verb, path, body)[0])
for name, given in (("networks", dict()), ("allocate", dict(owner="x"))):
    try:
        lines.append(LineClient(Path({str(daemon.line)!r})).call(name, **given)[0])
    except (ConnectionError, OSError):
        lines.append("refused")
print(found, lines, sep="|")
"""
    user = ["setpriv", "--reuid", str(uid), "--regid", str(gid), "--clear-groups", "--"]
    command = [*prefix, *(user if uid else []), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    statuses, outcomes = done.stdout.strip().split("|")
    return json.loads(statuses), json.loads(outcomes.replace("'", '"'))


def open_sockets(daemon: Daemon) -> None:
    """Let every user reach the sockets, so that the daemon alone decides."""
    for path in (daemon.folder, *daemon.folder.parents):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o755)
    for path in (daemon.api, daemon.line):
        path.chmod(0o666)


@pytest.mark.root
def test_users_and_groups_have_the_rights_that_the_rules_give(folder: Path) -> None:
    rules = folder / "rules"
    rules.write_text("user 1000 read  # a comment\ngroup 2000 change\n\n")
    with Daemon(folder, "--rules", str(rules)) as daemon:
        open_sockets(daemon)
        nothing = ([403, 403], ["error", "error"])
        assert call_as(daemon, 0, 0) == ([200, 200], ["ok", "ok"])
        assert call_as(daemon, 1000, 1000) == ([200, 403], ["ok", "error"])
        assert call_as(daemon, 1001, 2000) == ([200, 200], ["ok", "ok"])
        statuses, lines = call_as(daemon, 1002, 1002)
        assert statuses == nothing[0]
        assert set(lines) <= {"error", "refused"}
        rules.write_text("user 1002 read\n")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("RELOADING=1")
        daemon.wait_for("READY=1")
        assert call_as(daemon, 1002, 1002)[0] == [200, 403]
        assert call_as(daemon, 1000, 1000)[0] == nothing[0]
        rules.write_text("user 1000 everything\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("RELOADING=1")
        daemon.wait_for("READY=1")
        assert call_as(daemon, 1002, 1002)[0] == [200, 403], "what was in force stays"


@pytest.mark.root
@pytest.mark.parametrize(
    "kind", [["--user", "--map-root-user"], ["--net"], ["--pid", "--fork"]], ids=lambda k: k[0][2:]
)
def test_a_containers_process_gets_nothing_unless_a_rule_lets_it(
    folder: Path, kind: list[str]
) -> None:
    rules = folder / "rules"
    rules.write_text("")
    with Daemon(folder, "--rules", str(rules)) as daemon:
        open_sockets(daemon)
        statuses, lines = call_as(daemon, 0, 0, "unshare", *kind)
        assert statuses == [403, 403]
        assert set(lines) <= {"error", "refused"}
        rules.write_text("user 0 read\n")  # root of a container is not meant by that
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("RELOADING=1")
        daemon.wait_for("READY=1")
        assert call_as(daemon, 0, 0, "unshare", *kind)[0] == [403, 403]
        rules.write_text("user 0 read container\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("RELOADING=1")
        daemon.wait_for("READY=1")
        assert call_as(daemon, 0, 0, "unshare", *kind)[0] == [200, 403]


@pytest.mark.parametrize(
    "text",
    [
        "user",
        "user 0",
        "user 0 everything",
        "process 1 read",
        "user nosuchuser read",
        "user 0 read x",
    ],
)
def test_rules_that_cannot_be_are_refused_naming_the_line(folder: Path, text: str) -> None:
    rules = folder / "rules"
    rules.write_text(f"# first\n{text}\n")
    refused = subprocess.run(
        [*Daemon(folder).command(), "--rules", str(rules)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert f"{rules}:2" in refused.stderr


def test_rules_that_others_may_write_are_refused(folder: Path) -> None:
    rules = folder / "rules"
    rules.write_text("")
    rules.chmod(0o666)
    refused = subprocess.run(
        [*Daemon(folder).command(), "--rules", str(rules)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "may be written by others" in refused.stderr


# ---- coming and going


def test_it_ends_when_calls_under_way_are_done(folder: Path) -> None:
    with Daemon(folder) as daemon:
        given: list[str] = []
        stop = threading.Event()

        def client(number: int) -> None:
            connection = LineClient(daemon.line)
            with suppress(OSError):
                while not stop.is_set():
                    outcome, answer = connection.call("allocate", owner=f"c{number}")
                    if outcome == "ok":
                        given.append(answer["ip"])
            connection.close()

        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        while len(given) < 100:
            stop.wait(0.01)
        events = daemon.connect()
        events.sendall(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")
        assert daemon.stop() == 0
        stop.set()
        for thread in threads:
            thread.join()
        events.close()
        assert not daemon.api.exists()
        assert not daemon.line.exists()
        held = [one["ip"] for one in CommandLine(daemon.store).json("ls", "web")]
        assert sorted(held) == sorted(given), "an answer for each, and nothing besides"


def test_what_a_killed_daemon_left_is_replaced_and_a_live_one_is_not(folder: Path) -> None:
    with Daemon(folder) as daemon:
        second = subprocess.run(
            daemon.command(), capture_output=True, text=True, timeout=60, check=False
        )
        assert second.returncode == 4
        assert "is served by another process" in second.stderr
        assert daemon.get("networks")[0] == 200
        daemon.kill()
        assert daemon.api.exists()
        daemon.start()
        assert daemon.get("networks")[0] == 200
        daemon.stop()
        daemon.api.write_text("not a socket")
        third = subprocess.run(
            daemon.command(), capture_output=True, text=True, timeout=60, check=False
        )
        assert third.returncode == 1
        assert "is no socket" in third.stderr
        assert daemon.api.read_text() == "not a socket"


def test_systemd_hands_over_sockets_and_hears_signs_of_life(folder: Path) -> None:
    with Daemon(folder) as first:
        first.stop()
    daemon = Daemon(folder)
    api, line = (socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2))
    api.bind(str(folder / "given-api.sock"))
    line.bind(str(folder / "given-line.sock"))
    for one in (api, line):
        one.listen()
    code = (
        "import os, sys; "
        f"os.dup2({api.fileno()}, 203); os.dup2({line.fileno()}, 204); "
        "os.dup2(203, 3); os.dup2(204, 4); "
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2'); "
        "os.environ.update(LISTEN_FDNAMES='api:line'); "
        "serve = [sys.executable, '-m', 'netalloc.server']; "
        f"os.execv(sys.executable, [*serve, '--store', {str(daemon.store)!r}])"
    )
    daemon.command = lambda: [sys.executable, "-c", code]  # type: ignore[method-assign]
    daemon.environment = {"WATCHDOG_USEC": "400000"}
    daemon.inherited = (api.fileno(), line.fileno())
    with daemon:
        daemon.api, daemon.line = folder / "given-api.sock", folder / "given-line.sock"
        assert daemon.get("networks")[0] == 200
        client = LineClient(daemon.line)
        assert client.call("ping") == ("ok", {})
        client.close()
        for _ in range(2):
            daemon.wait_for("WATCHDOG=1")
        daemon.stop()
        daemon.wait_for("STOPPING=1")
        assert daemon.api.exists(), "systemd's own"
    for one in (api, line):
        one.close()


def test_it_logs_lines_of_json(daemon: Daemon) -> None:
    daemon.post("release", owner="nothing")
    lines = [json.loads(line) for line in daemon.errors.read_text().splitlines()]
    assert {"at", "level", "logger", "message"} <= set(lines[0])
    assert any("release refused: nothing holds nothing" in line["message"] for line in lines)


# ---- kill -9


@pytest.mark.parametrize("how", ["http", "line"])
def test_killed_under_load_nothing_is_twice_and_nothing_lost(folder: Path, how: str) -> None:
    with Daemon(folder) as daemon:
        given: dict[str, str] = {}
        stop, lock = threading.Event(), threading.Lock()
        wrong: list[str] = []

        def connect() -> Any:
            while not stop.is_set():
                try:
                    return UnixConnection(daemon.api) if how == "http" else LineClient(daemon.line)
                except OSError:
                    stop.wait(0.01)  # it is being started again
            return None

        def client(number: int) -> None:
            connection, asked = connect(), 0
            while connection is not None and not stop.is_set():
                owner, key = f"c{number}", f"k{asked}"
                try:
                    if how == "http":
                        body = {"owner": owner, "key": key}
                        status, answer = connection.call("POST", "/v1/allocate", body)
                        well = status == 200
                    else:
                        outcome, answer = connection.call("allocate", owner=owner, key=key)
                        well = outcome == "ok"
                except (OSError, ValueError, http_errors()):
                    connection.close()
                    connection = connect()
                    continue  # asked again with the same key: the same address
                if not well:
                    wrong.append(str(answer))
                    return
                with lock:
                    given[f"{owner}/{key}"] = answer["ip"]
                asked += 1
            if connection is not None:
                connection.close()

        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for round_ in range(1, 4):
            while len(given) < 150 * round_ and not wrong:
                stop.wait(0.005)
            daemon.kill()
            daemon.start()
        while len(given) < 600 and not wrong:
            stop.wait(0.005)
        stop.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(set(given.values())) == len(given), "no address twice"
        held = {f"{one['owner']}/{one['key']}": one["ip"] for one in daemon.get("leases")[1]}
        assert {name: held.get(name) for name in given} == given, "nothing lost"
        assert len(held) - len(given) <= 8, "at most what each client was asking for"
        assert daemon.get("check")[1]["findings"] == []


def http_errors() -> type[Exception]:
    import http.client

    return http.client.HTTPException


# ---- events, metrics, map, page


def read_events(one: socket.socket, wanted: int) -> list[dict[str, Any]]:
    found, data = [], b""
    while len(found) < wanted:
        data += one.recv(65536)
        *whole, data = data.split(b"\n\n")
        for part in whole:
            lines = dict(
                line.split(b": ", 1)
                for line in part.splitlines()
                if b": " in line and line[:1] != b":"
            )
            if b"data" in lines:
                found.append({"id": int(lines[b"id"]), **json.loads(lines[b"data"])})
    return found


def test_events_are_told_live_and_what_was_missed_as_well(daemon: Daemon, line: LineClient) -> None:
    with daemon.connect() as one:
        one.sendall(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")
        head = one.recv(65536)
        assert b"text/event-stream" in head
        daemon.post("allocate", owner="a", publish=["8080:80"])
        line.call("allocate", owner="b")
        daemon.post("release", owner="a")
        told = read_events(one, 3)
    assert [(e["what"], e["owner"]) for e in told] == [
        ("allocated", "a"), ("allocated", "b"), ("released", "a"),
    ]  # fmt: skip
    assert (told[0]["ip"], told[0]["ports"]) == ("10.88.0.2", [8080, 8080])
    with daemon.connect() as one:
        after = str(told[0]["id"]).encode()
        one.sendall(b"GET /v1/events HTTP/1.1\r\nhost: x\r\nlast-event-id: " + after + b"\r\n\r\n")
        assert read_events(one, 2) == told[1:]


def test_a_listener_that_does_not_read_is_let_go(daemon: Daemon, line: LineClient) -> None:
    with daemon.connect() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.sendall(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")
        one.recv(100)
        for _ in range(40):
            assert line.call("allocate_many", owner="many", count=100)[0] == "ok"
        metrics = daemon.ask("GET", "/metrics")[1].decode()
        assert 'netalloc_allocations_total{network="web"} 4000.0' in metrics


def test_metrics_say_what_is_held_and_what_was_refused(daemon: Daemon) -> None:
    daemon.post("allocate", owner="a", publish=["8080:80"])
    daemon.post("allocate", owner="a", ip="10.88.0.2")
    daemon.post("reserve", ip="10.88.0.9")
    deadline = time.monotonic() + 30
    while True:  # what is counted in the store is some seconds old
        text = daemon.ask("GET", "/metrics")[1].decode()
        if 'state="reserved"} 1.0' in text or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    for expected in (
        'netalloc_addresses{family="4",network="web",state="held"} 1.0',
        'netalloc_addresses{family="6",network="web",state="held"} 1.0',
        'netalloc_addresses{family="4",network="web",state="reserved"} 1.0',
        'netalloc_addresses{family="4",network="web",state="free"} 65531.0',
        'netalloc_published_ports{network="web"} 1.0',
        'netalloc_allocations_total{network="web"} 1.0',
        'netalloc_failures_total{call="allocate",kind="in-use"} 1.0',
        'netalloc_call_seconds_count{call="allocate"} 2.0',
        'netalloc_store_bytes{part="file"}',
        "netalloc_commit_group_size_count",
    ):
        assert expected in text, text


def test_the_map_in_each_form(daemon: Daemon) -> None:
    daemon.post("allocate_many", owner="a", count=300)
    status, found = daemon.get("map", network="web", order=4)
    assert status == 200
    assert (found["cell"], found["count"], len(found["used"])) == ("256", "65536", 256)
    assert found["used"][:3] == [100, 18, 0]
    assert found["totals"]["used"] == 300
    part = daemon.get("map", network="web", first=256, count=256)[1]
    assert part["part"] == "10.88.1.0/24"
    assert daemon.get("map", network="web", form="png")[1][:4] == b"\x89PNG"
    assert b"<svg" in daemon.get("map", network="web", form="svg")[1][:200]


def test_the_page_over_tcp_looks_alone_and_with_its_token(folder: Path) -> None:
    import http.client

    with Daemon(folder, "--page", "127.0.0.1:0") as daemon:
        found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", daemon.out.read_text())
        assert found is not None
        port, token = int(found[1]), found[2]

        def ask(verb: str, path: str, body: str | None = None, **headers: str) -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request(verb, path, body, headers)
            response = connection.getresponse()
            response.read()
            connection.close()
            return response

        assert ask("GET", "/").status == 403
        assert ask("GET", "/v1/networks").status == 403
        assert ask("GET", f"/?token={token}x").status == 403
        assert ask("GET", f"/?token={token}", host="evil.example:80").status == 403
        entered = ask("GET", f"/?token={token}")
        assert entered.status == 303
        cookie = entered.headers["set-cookie"].partition(";")[0]
        assert "HttpOnly" in entered.headers["set-cookie"]
        assert "samesite=strict" in entered.headers["set-cookie"].lower()
        page = ask("GET", "/", cookie=cookie)
        assert page.status == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy
        assert ask("GET", "/v1/networks", cookie=cookie).status == 200
        for call in CALLS.values():
            if call.right == CHANGE:
                assert ask("POST", f"/v1/{call.name}", "{}", cookie=cookie).status == 403
        assert ask("GET", "/v1/networks", cookie=cookie, host="evil.example").status == 403
    for wrong in ("0.0.0.0:80", "192.0.2.1:80", "nonsense", "127.0.0.1:99999"):
        refused = subprocess.run(
            [*daemon.command(), "--page", wrong], capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert refused.returncode == 2
        assert wrong in refused.stderr


# ---- with a kernel


@pytest.mark.root
def test_it_watches_repairs_and_tells_of_it_and_of_other_processes_networks() -> None:
    from lab import Lab

    with Lab("nft", containers=0) as lab:
        folder = Path("/run/daemon")
        folder.mkdir()
        na = CommandLine(folder / "host.db")
        na.well(
            "network", "create", "web", "10.77.0.1/24", "--bridge", "web0", "--backend", "nftables"
        )
        namespaces.create("shop")
        with Daemon(folder) as daemon, daemon.connect() as events:
            events.sendall(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")
            events.recv(65536)
            status, lease = daemon.post(
                "allocate", owner="shop", attach="shop", publish=["8080:80"]
            )
            assert (status, lease["attachment"]["ifname"]) == (200, "eth0")
            assert daemon.get("who", what="tcp/8080")[1]["leases"][0]["owner"] == "shop"
            lab.run("nft", "flush", "map", "inet", "netalloc-networks", "dnat_any")
            told = read_events(events, 2)
            assert [one["what"] for one in told] == ["allocated", "repaired"]
            assert "8080" in str(told[1]["what"]) or "8080" in json.dumps(told[1])
            assert daemon.get("check")[1] == {"findings": [], "compared": True}
            # The command line works on the same store meanwhile.
            assert na.well("release", "shop") == "released 10.77.0.2 of shop\n"
            assert daemon.get("leases") == (200, [])
            assert daemon.post("remove_network", name="web")[0] == 200
            assert "web0" not in {name for _, name in socket.if_nameindex()}


def test_nothing_of_the_extras_is_loaded_by_the_library() -> None:
    code = (
        "import netalloc, sys\n"
        "for name in netalloc.__all__: getattr(netalloc, name)\n"
        "m = netalloc.NetworkManager('br0', network='10.0.0.1/24', backend='null')\n"
        "m.allocate('a', ports=[80]).release(); m.close()\n"
        "bad = {'click', 'rich', 'uvicorn', 'starlette', 'uvloop', 'httptools', 'msgspec',\n"
        "       'prometheus_client', 'numpy', 'PIL'} & set(sys.modules)\n"
        "ours = [n for n in sys.modules if n.startswith(('netalloc.cli', 'netalloc.server',\n"
        "        'netalloc.operations', 'netalloc.pictures'))]\n"
        "print(sorted(bad), ours)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[] []\n"


def test_the_reference_pages_are_current() -> None:
    script = Path(__file__).resolve().parents[1] / "scripts" / "reference.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_environment_of_tests_is_private() -> None:
    assert "NETALLOC_STORE" not in os.environ
