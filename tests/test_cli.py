"""The command line over a store that touches no kernel: words, JSON, exit statuses, dry runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import jsonschema
import msgspec
import pexpect
import pytest

from command_line import RUN, CommandLine
from netalloc.cli.commands import COMMANDS
from netalloc.cli.main import cli
from netalloc.operations import answers
from netalloc.operations.outcomes import OUTCOMES


@pytest.fixture
def na(tmp_path: Path) -> CommandLine:
    """A store with a network of both families, of which nothing is held."""
    made = CommandLine(tmp_path / "state" / "host.db")
    made.well("network", "create", "web", "10.88.0.1/24", "fd00:88::1/64", "--backend", "null")
    return made


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[CommandLine, str]:
    """One of which something is, for calls that change nothing; and its export."""
    made = CommandLine(tmp_path_factory.mktemp("held") / "state" / "host.db")
    made.well("network", "create", "web", "10.88.0.1/24", "fd00:88::1/64", "--backend", "null")
    made.well("allocate", "shop", "-p", "8080:80")
    made.well("allocate", "twice", "--count", "2")
    return made, made.well("export")


def check_schema(value: Any, kind: Any) -> None:
    """JSON is what the answer's type says, with nothing else in it."""
    schema = msgspec.json.schema(kind)
    for definition in schema.get("$defs", {}).values():
        if definition.get("type") == "object" and "properties" in definition:
            definition["additionalProperties"] = False
    jsonschema.validate(value, schema)


# ---- each command


def test_an_address_with_ports_is_given_shown_and_given_back(na: CommandLine) -> None:
    out = na.well("allocate", "shop", "-p", "8080:80", "-p", "53/udp", "--label", "app=x")
    assert out.startswith("10.88.0.2/24  web  held by shop since ")
    assert ", generation 1, app=x\n              also fd00:88::2/64\n" in out
    assert out.endswith("tcp 8080 → 80; udp 49153 → 53\n")
    assert "10.88.0.2 fd00:88::2  shop   web" in na.well("ls", "web")
    assert na.well("who", "tcp/8080") == (
        "tcp/8080  held by shop (10.88.0.2:80, [fd00:88::2]:80)\n"
    )
    assert na.well("release", "shop") == "released 10.88.0.2 of shop\n"
    assert "nothing" in na.well("ls", "web")
    assert "before: shop until " in na.well("who", "10.88.0.2")


def test_every_command_answers_json_as_its_schema_says(na: CommandLine) -> None:
    check_schema(na.json("allocate", "shop", "-p", "8080:80", "--key", "eth0"), answers.Lease)
    check_schema(na.json("allocate", "many", "--count", "3"), list[answers.Lease])
    check_schema(na.json("publish", "shop", "127.0.0.1:9000-9003:90-93"), list[answers.Port])
    check_schema(na.json("unpublish", "shop", "8080"), answers.Lease)
    check_schema(na.json("reserve", "10.88.0.20", "db"), answers.Reservation)
    check_schema(na.json("ls"), list[answers.Network])
    check_schema(na.json("network", "ls"), list[answers.Network])
    check_schema(na.json("network", "show", "web"), answers.Network)
    check_schema(na.json("ls", "web"), list[answers.Lease])
    check_schema(na.json("ls", "--reserved"), list[answers.Reservation])
    for what in ("10.88.0.2", "10.88.0.99", "fd00:88::2", "tcp/9001", "9001/tcp", "shop", "none"):
        check_schema(na.json("who", what), answers.Who)
        check_schema(na.json("why", what), answers.Why)
    check_schema(na.json("history", "10.88.0.2"), list[answers.Past])
    check_schema(na.json("gc", "shop", "--grace", "0"), answers.Collected)
    check_schema(na.json("check"), answers.Findings)
    check_schema(na.json("reconcile"), answers.Done)
    check_schema(na.json("repair"), answers.Done)
    health = na("doctor", "--json")
    assert health.status in (0, 1, 3)
    check_schema(health.json, answers.Health)
    check_schema(na.json("release", "shop"), answers.Released)
    assert na.json("unreserve", "10.88.0.20") == "10.88.0.20 is kept no longer"
    na.well("release", "many")
    assert na.json("network", "rm", "web") == "removed network web"


def test_why_says_what_is_in_the_way(na: CommandLine) -> None:
    na.well("allocate", "shop", "-p", "8080:80")
    na.well("reserve", "10.88.0.20", "db")
    assert "is held by shop" in na.well("why", "10.88.0.2")
    assert "is held by shop" in na.well("why", "fd00:88::2")
    assert "reserved for db" in na.well("why", "10.88.0.20")
    assert "is free" in na.well("why", "10.88.0.99")
    assert "is the gateway" in na.well("why", "10.88.0.1")
    assert "of no network" in na.well("why", "192.0.2.1")
    assert "is published by shop" in na.well("why", "tcp/8080")
    assert "shop holds 10.88.0.2" in na.well("why", "shop")
    na.well("release", "shop")
    assert "shop holds nothing; it held 10.88.0.2" in na.well("why", "shop")


def test_a_lease_that_publishes_a_port_twice_is_told_once(na: CommandLine) -> None:
    na.well("allocate", "shop", "-p", "127.0.0.1:81:81", "-p", "[::1]:81:81")
    assert na.well("who", "tcp/81") == "tcp/81  held by shop (10.88.0.2:81, [fd00:88::2]:81)\n"


def test_gc_gives_back_what_is_not_alive_at_two_looks(na: CommandLine) -> None:
    na.well("allocate", "alive")
    na.well("allocate", "dead")
    assert "nothing to give back" in na.well("gc", "--alive-from", "-", input="alive\n")
    assert na.well("gc", "alive", "--grace", "0") == "web: 10.88.0.3\n"
    assert [one["owner"] for one in na.json("ls", "web")] == ["alive"]
    assert na("gc").status == 2, "nothing named is not 'nothing is alive'"
    na.well("gc", "--none-alive", "--grace", "0")
    assert na.well("gc", "--none-alive", "--grace", "0") == "web: 10.88.0.2\n"


def test_history_says_what_held_an_address_when(na: CommandLine) -> None:
    na.well("allocate", "first", "--ip", "10.88.0.9")
    na.well("release", "first")
    na.well("allocate", "second", "--ip", "10.88.0.9")
    rows = na.json("history", "10.88.0.9")
    assert [(row["owner"], row["end"] is None) for row in rows] == [
        ("first", False),
        ("second", True),
    ]
    assert [row["owner"] for row in na.json("history", "10.88.0.9", "--at", rows[0]["start"])] == [
        "first"
    ]
    assert na.json("history", "10.88.0.9", "--at", "2000-01-01") == []
    assert na("history", "10.88.0.9", "--at", "yesterday").status == 2


def test_an_export_is_imported_elsewhere_and_again(na: CommandLine, tmp_path: Path) -> None:
    na.well("allocate", "shop", "-p", "127.0.0.1:8080:80", "-p", "7000-7003:7000-7003/udp")
    na.well("allocate", "keyed", "--key", "k", "--label", "a=b", "-p", "[::1]:53:53")
    na.well("reserve", "10.88.0.20")
    document = na.well("export")
    other = CommandLine(tmp_path / "other.db")
    assert "network web" in other.well("import", input=document)
    assert json.loads(other.well("export")) == json.loads(document)
    assert other.well("import", input=document) == "nothing to do\n"


def test_an_import_is_all_or_nothing(na: CommandLine, tmp_path: Path) -> None:
    na.well("allocate", "one")
    na.well("allocate", "two", "--ip", "10.88.0.9")
    document = na.well("export")
    other = CommandLine(tmp_path / "other.db")
    other.well("network", "create", "web", "10.88.0.1/24", "fd00:88::1/64", "--backend", "null")
    other.well("allocate", "holder", "--ip", "10.88.0.9")
    before = other.well("export")
    refused = other("import", input=document)
    assert refused.status == 4
    assert "10.88.0.9 is held by holder" in refused.err
    assert other.well("export") == before
    for bad in ("{", "[]", '{"format": 2}', '{"format": 1, "networks": [{}]}', "[" * 100000):
        assert other("import", input=bad).status == 2
    assert other.well("export") == before


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["alocate"], 2, "is allocate meant?"),
        (["allocate"], 2, "Missing argument"),
        (["allocate", "a", "--ip", "10.88.0.999"], 2, "10.88.0.999"),
        (["allocate", "a", "-p", "99999:80"], 10, "99999"),
        (["allocate", "a", "-p", "nonsense"], 2, "[IP:][HOST:]CONTAINER"),
        (["allocate", "a", "--label", "x"], 2, "NAME=VALUE"),
        (["allocate", "a", "--network", "nosuch"], 5, "there are: web"),
        (["allocate", "a", "--ip", "10.88.0.2"], 4, "held by shop"),
        (["allocate", "a", "--ip", "192.0.2.1"], 10, "of no network"),
        (["allocate", "a", "-p", "8080:80"], 4, "shop"),
        (["allocate", "a", "--count", "2", "--ip", "10.88.0.9"], 2, "exclude each other"),
        (["allocate", "a", "--count", "500"], 3, "500"),
        (["allocate", "a", "--attach", "nosuch"], 2, "backend null"),
        (["detach", "shop"], 2, "backend null"),
        (["release", "nothing"], 5, "holds nothing"),
        (["release", "shop", "--ip", "10.88.0.9"], 5, "but 10.88.0.2"),
        (["publish", "nothing", "80:80"], 5, "holds nothing"),
        (["publish", "twice", "80:80"], 2, "name one by"),
        (["unpublish", "shop", "81"], 5, "does not publish 81/tcp"),
        (["unreserve", "10.88.0.50"], 5, "is not reserved"),
        (["reserve", "10.88.0.2", "other"], 4, "held by shop"),
        (["network", "rm", "web"], 4, "release them first"),
        (["network", "rm", "nosuch"], 5, "nosuch"),
        (["network", "create", "web", "10.1.0.1/24", "--backend", "null"], 4, "registered already"),
        (["network", "create", "x", "10.88.0.129/25", "--backend", "null"], 4, "overlaps"),
        (["network", "create", "x", "nonsense", "--backend", "null"], 2, "nonsense"),
        (
            ["network", "create", "x", "10.1.0.1/24", "10.2.0.1/24", "--backend", "null"],
            2,
            "one of IPv6",
        ),
        (["who", "tcp/port"], 2, "tcp/8080"),
        (["history", "192.0.2.300"], 2, "192.0.2.300"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_refused_says_why_on_one_line(
    held: tuple[CommandLine, str], arguments: list[str], status: int, says: str
) -> None:
    na, before = held
    answer = na(*arguments)
    assert (answer.status, answer.out) == (status, "")
    assert says in answer.err
    assert answer.err.startswith("netalloc: ")
    assert answer.err.count("\n") == 1, answer.err
    assert na.well("export") == before


def test_an_error_is_json_where_json_is_asked_for(na: CommandLine) -> None:
    answer = na("allocate", "a", "--ip", "10.88.0.1", "--json")
    assert answer.status == answer.error["status"] == 10
    assert answer.error["kind"] == "out-of-range"
    assert "10.88.0.1" in answer.error["message"]


def test_each_kind_of_refusal_has_a_number_of_its_own() -> None:
    kinds = [one.kind for one in OUTCOMES.values()]
    numbers = [one.exit_status for one in OUTCOMES.values() if one.exit_status > 2]
    assert len(set(kinds)) == len(kinds)
    assert len(set(numbers)) == len(numbers)
    page = (Path(__file__).resolve().parents[1] / "docs" / "reference-commands.md").read_text()
    for one in OUTCOMES.values():
        assert f"| {one.exit_status} | `{one.kind}`" in page


def test_no_store_is_made_by_looking_or_by_a_mistake(tmp_path: Path) -> None:
    na = CommandLine(tmp_path / "nowhere" / "host.db")
    for arguments in (["ls"], ["allocate", "a"], ["who", "a"], ["check"], ["release", "a"]):
        answer = na(*arguments)
        assert answer.status == 11
        assert "netalloc network create NAME SUBNET makes one" in answer.err
    assert na("network", "create", "x", "bad", "--backend", "null").status == 2
    na.well("network", "create", "x", "10.1.0.1/24", "--backend", "null", "--dry-run")
    assert not na.store.parent.exists()


def test_the_only_network_need_not_be_named_and_several_do(na: CommandLine) -> None:
    na.well("network", "create", "db", "10.89.0.1/24", "--backend", "null")
    answer = na("allocate", "a")
    assert answer.status == 2
    assert "there are 2 networks, db, web: name one" in answer.err
    assert na.well("allocate", "a", "-n", "db").startswith("10.89.0.2/24")
    assert na.well("allocate", "a", "--ip", "10.88.0.7").startswith("10.88.0.7/24")
    assert na.well("reserve", "10.89.0.50").startswith("10.89.0.50 of db is kept from everyone")
    assert na.well("release", "a") == "released 10.89.0.2, 10.88.0.7 of a\n"


# ---- dry runs


@pytest.mark.parametrize(
    "arguments",
    [
        ["allocate", "new", "-p", "80:80", "--label", "a=b"],
        ["allocate", "new", "--count", "3"],
        ["release", "shop"],
        ["publish", "shop", "90:90"],
        ["unpublish", "shop", "8080"],
        ["reserve", "10.88.0.9", "db"],
        ["unreserve", "10.88.0.20"],
        ["network", "create", "n", "10.90.0.1/24", "--backend", "null"],
        ["network", "rm", "empty"],
        ["gc", "nothing", "--grace", "0"],
        ["reconcile"],
        ["repair"],
    ],
    ids=" ".join,
)
def test_a_dry_run_says_the_same_and_touches_nothing(na: CommandLine, arguments: list[str]) -> None:
    na.well("network", "create", "empty", "10.89.0.1/24", "--backend", "null")
    na.well("allocate", "shop", "-n", "web", "-p", "8080:80")
    na.well("reserve", "10.88.0.20", "db")
    if arguments[0] == "allocate":
        arguments = [*arguments, "-n", "web"]
    names = sorted(path.name for path in na.store.parent.iterdir())
    before, stored = na.well("export"), na.store.read_bytes()
    dry = na.json(*arguments, "--dry-run")
    assert dry["dry_run"] is True
    text = na.well(*arguments, "--dry-run")
    assert text.startswith("dry run, nothing is changed:\n")
    assert (na.well("export"), na.store.read_bytes()) == (before, stored)
    assert sorted(path.name for path in na.store.parent.iterdir()) == names
    real = na.json(*arguments)
    if arguments[0] not in ("repair", "reconcile"):
        assert without_moments(dry["answer"]) == without_moments(real)


def test_a_dry_run_is_refused_as_the_call_would_be(na: CommandLine) -> None:
    na.well("allocate", "shop", "-p", "8080:80")
    for arguments in (
        ["allocate", "a", "--ip", "10.88.0.2"],
        ["allocate", "a", "-p", "8080:80"],
        ["allocate", "a", "--attach", "nosuch"],
        ["network", "rm", "web"],
        ["release", "nothing"],
    ):
        assert na(*arguments, "--dry-run").status == na(*arguments).status >= 2


def without_moments(value: Any) -> Any:
    if isinstance(value, list):
        return [without_moments(one) for one in value]
    if isinstance(value, dict):
        return {k: without_moments(v) for k, v in value.items() if k not in ("since",)}
    return value


# ---- terminals, pipes and shells


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(na: CommandLine, columns: int) -> None:
    na.columns = columns
    for number in range(3):
        ports = [f"{8000 + number * 10 + i}:{80 + i}" for i in range(6)]
        na.well("allocate", f"sandbox-with-a-long-name-{number}", *[f"-p{port}" for port in ports])
    for arguments in (["ls"], ["ls", "web"], ["doctor"], ["history", "10.88.0.2"]):
        answer = na(*arguments)
        lines = answer.out.splitlines()
        assert max(map(len, lines)) <= columns, lines
        assert len(lines) > 1
    for name in COMMANDS:
        lines = na.well(name, "--help").splitlines()
        assert max(map(len, lines)) <= max(columns, 80)


def test_on_a_terminal_there_is_colour_and_no_color_is_heeded(na: CommandLine) -> None:
    na.well("allocate", "shop")
    for setting, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        child = pexpect.spawn(
            RUN[0],
            [*RUN[1:], "ls"],
            env={
                **os.environ,
                "NETALLOC_STORE": str(na.store),
                "TERM": "xterm-256color",
                **setting,
            },
            dimensions=(24, 80),
            timeout=30,
        )
        out = child.read().decode()
        child.close()
        assert "web" in out
        assert ("\x1b[" in out) is coloured, out


def test_a_closed_pipe_is_no_traceback(na: CommandLine) -> None:
    na.well("allocate", "many", "--count", "200")
    done = subprocess.run(
        f"{RUN[0]} -c '{RUN[2]}' ls web --json | head -1",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "NETALLOC_STORE": str(na.store)},
        check=True,
        timeout=60,
    )
    assert done.stdout == "[\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_each_shell(na: CommandLine, shell: str) -> None:
    assert "_NETALLOC_COMPLETE" in na.well("completion", shell)
    na.well("allocate", "shop")
    for words, word, found in (
        ("netalloc all", "all", "allocate"),
        ("netalloc release sh", "sh", "shop"),
    ):
        asked = {
            "_NETALLOC_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": {"fish": word}.get(shell, str(words.count(" "))),
        }
        other = CommandLine(na.store, environment=asked)
        assert found in other.well()


def test_every_command_is_listed_and_loads() -> None:
    context = click.Context(cli, info_name="netalloc")
    for name, (_, line) in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help
        assert line.endswith(".")
    assert set(cli.list_commands(context)) == set(COMMANDS)


def test_without_click_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['click'] = None; sys.argv = ['netalloc', 'ls']; " + RUN[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 1
    assert done.stderr == (
        "netalloc: the command line needs click and rich: pip install 'netalloc[cli]'\n"
    )


def test_the_store_is_found_where_the_documentation_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from netalloc.operations.place import default_store

    monkeypatch.setenv("NETALLOC_STORE", "/somewhere/host.db")
    assert str(default_store()) == "/somewhere/host.db"
    monkeypatch.delenv("NETALLOC_STORE")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(default_store()) == "/var/lib/netalloc/host.db"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_store() == tmp_path / "netalloc" / "host.db"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # is to be ignored, says the specification
    monkeypatch.setenv("HOME", "/home/user")
    assert str(default_store()) == "/home/user/.local/state/netalloc/host.db"


def test_what_takes_longer_than_a_second_says_so_on_a_terminal_alone() -> None:
    code = (
        "import time\nfrom netalloc.cli.progress import waiting\n"
        "with waiting('mending'):\n    time.sleep({})\n"
    )
    for seconds, shown in ((1.5, True), (0.2, False)):
        child = pexpect.spawn(sys.executable, ["-c", code.format(seconds)], timeout=30)
        out = child.read().decode()
        child.close()
        assert ("mending" in out) is shown
    done = subprocess.run(
        [sys.executable, "-c", code.format(1.2)], capture_output=True, check=True, timeout=30
    )
    assert done.stderr == b""
