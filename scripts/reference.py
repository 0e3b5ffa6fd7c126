"""Writes docs/reference-*.md from the code: commands, the API, metrics, errors, configuration.

python scripts/reference.py           writes them
python scripts/reference.py --check   says which are not current, and exits with 1
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

DOCS = Path(__file__).resolve().parents[1] / "docs"
_NOTE = "<!-- Made by scripts/reference.py from the code: change that. -->\n"


def commands() -> str:
    """Every command with its arguments and options, and what exit statuses mean."""
    from netalloc.cli.commands import COMMANDS
    from netalloc.cli.main import cli
    from netalloc.operations.outcomes import OUTCOMES

    lines = ["# Commands", "", _NOTE]
    lines += [
        "`netalloc` works on the store in `$NETALLOC_STORE`, or `/var/lib/netalloc/host.db` for",
        "root and `$XDG_STATE_HOME/netalloc/host.db` (`~/.local/state` where that is not set) for",
        "others; `--store PATH` names another. `--json` prints JSON, `--dry-run` says what would",
        "happen and touches nothing. Colours heed `NO_COLOR`, tables the width of the terminal or",
        "`$COLUMNS`.",
        "",
    ]
    context = click.Context(cli, info_name="netalloc")
    for name in sorted(COMMANDS):
        command = cli.get_command(context, name)
        assert command is not None
        lines += _command(command, click.Context(command, info_name=name, parent=context))
    lines += ["## Exit statuses", "", "| status | kind | |", "|---|---|---|", "| 0 | | done |"]
    lines.append("| 1 | | `check` found something, or `doctor` a limit that is near |")
    lines.append("| 2 | | bad usage |")
    for error, one in OUTCOMES.items():
        text = (inspect.getdoc(error) or "").partition("\n")[0]
        if error.__module__ == "builtins":
            text = {"PermissionError": "The kernel, or the daemon, does not permit it."}.get(
                error.__name__, "The operating system refuses it."
            )
        lines.append(f"| {one.exit_status} | `{one.kind}` | {text} |")
    lines.append("| 130 | | interrupted |")
    lines += ["", "`doctor` exits with 3 where something is at its limit or in the way.", ""]
    return "\n".join(lines)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"## {context.command_path}"
    yield ""
    if isinstance(command, click.Group):
        yield f"{command.help}"
        yield ""
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _command(inner, click.Context(inner, info_name=name, parent=context))
        return
    from inspect import cleandoc

    rows: list[tuple[str, str]]
    if context.info_name in ("serve", "cni"):
        from importlib import import_module

        name = {"serve": "server"}.get(context.info_name, context.info_name)
        made = import_module(f"netalloc.{name}.__main__").parser()
        usage = "[OPTIONS]" if context.info_name == "serve" else "install [FOLDER] | import CONFIG"
        text = str(made.description)
        rows = [
            (
                f"{' '.join(one.option_strings)} {one.metavar or _choices(one.choices)}",
                one.help or "",
            )
            for one in made._actions
            if one.dest not in ("help", "command")
        ]
    else:
        taken = [one for one in command.params if isinstance(one, click.Argument)]
        usage = " ".join(["[OPTIONS]", *[_argument(one) for one in taken]])
        text = cleandoc(command.help or "").replace("\b\n", "")
        rows = [_option(one) for one in command.params if isinstance(one, click.Option)]
    yield f"    {context.command_path} {usage}"
    yield ""
    for part in text.split("\n\n"):
        examples = all(
            line.startswith(("netalloc ", "bash:", "zsh:", "fish:")) for line in part.split("\n")
        )
        yield "\n".join(f"    {line}" for line in part.split("\n")) if examples else part
        yield ""
    if rows:
        yield "| option | |"
        yield "|---|---|"
        for option, what in rows:
            yield f"| `{option.strip()}` | {what.replace('|', chr(92) + '|')} |"
        yield ""


def _argument(one: click.Argument) -> str:
    name = one.metavar or (one.name or "").upper()
    if one.required:
        return name if one.nargs == 1 or one.metavar else f"{name}..."
    return name if name.startswith("[") else f"[{name}]"


def _option(one: click.Option) -> tuple[str, str]:
    names = ", ".join([*one.opts, *one.secondary_opts])
    if one.is_flag:
        return names, one.help or ""
    metavar = one.metavar
    if metavar is None:
        choices = getattr(one.type, "choices", None)
        metavar = _choices(choices) if choices else one.type.name.upper().replace(" RANGE", "")
    shown = f" ({one.default} unless given)" if one.show_default else ""
    return f"{names} {metavar}", f"{one.help or ''}{shown}"


def _choices(choices: Any) -> str:
    return "" if choices is None else "/".join(map(str, choices))


def api() -> str:
    """Every path of the daemon's API, and the line protocol."""
    from netalloc.server.openapi import document

    found = document()
    lines = ["# API", "", _NOTE]
    lines += [
        "`netalloc serve` answers HTTP on a unix socket. What looks is `GET` with a query, what",
        "changes is `POST` with a JSON body, and `?dry_run=true` has it done to a copy. `GET",
        "/v1/openapi.json` is the whole of it for programs; errors are",
        '`{"error": {"kind", "message", "status"}}`, where `status` is the exit status of the',
        "[command line](reference-commands.md#exit-statuses).",
        "",
        "On the line socket the same calls are a line each, without HTTP, and answers are a line",
        "that begins with `ok` or `error`:",
        "",
        "```text",
        'allocate {"owner":"web","publish":["8080:80"]}',
        'ok {"network":"lab","owner":"web","key":null,"generation":1,"ip":"10.88.0.2",...}',
        "```",
        "",
    ]
    for path, verbs in found["paths"].items():
        for verb, one in verbs.items():
            lines += [f"## {verb.upper()} {path}", "", one["summary"], ""]
            rest = one.get("description", "").partition("\n")[2].strip()
            if rest:
                lines += [rest, ""]
            rows = list(_fields(one, found["components"]["schemas"]))
            if rows:
                lines += ["| | type | default |", "|---|---|---|", *rows, ""]
            lines += [f"Gives {_given(one)}.", ""]
    lines += _answers(found["components"]["schemas"])
    return "\n".join(lines)


def _fields(one: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    for parameter in one.get("parameters", ()):
        default = "" if parameter.get("required") else _default(parameter["schema"])
        yield f"| `{parameter['name']}` | {_type(parameter['schema'])} | {default} |"
    if "requestBody" in one:
        reference = one["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = schemas[reference.rpartition("/")[2]]
        for name, field in schema["properties"].items():
            default = "" if name in schema.get("required", ()) else _default(field)
            yield f"| `{name}` | {_type(field)} | {default} |"


def _default(schema: dict[str, Any]) -> str:
    import json

    return f"`{json.dumps(schema['default'])}`" if "default" in schema else "none"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{one}`" for one in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and "additionalProperties" in schema:
        inner = schema["additionalProperties"]
        return f"object of {_type(inner) if isinstance(inner, dict) else 'anything'}"
    return str(kind)


def _given(one: dict[str, Any]) -> str:
    (_, content), *_ = one["responses"]["200"]["content"].items()
    schema = content["schema"]
    if "anyOf" in schema and "Planned" in str(schema["anyOf"][-1]):  # of a dry run
        schema = schema["anyOf"][0]
    return _type(schema)


def _answers(schemas: dict[str, Any]) -> Iterator[str]:
    from netalloc.operations import answers

    for name, schema in sorted(schemas.items()):
        kind = getattr(answers, name, None)
        if kind is None:
            continue
        yield f"## {name}"
        yield ""
        yield inspect.getdoc(kind) or ""
        yield ""
        yield "| field | type |"
        yield "|---|---|"
        for field, one in schema["properties"].items():
            yield f"| `{field}` | {_type(one)} |"
        yield ""


def metrics() -> str:
    """Every metric of the daemon."""
    from netalloc.server.metrics import Metrics, StoreMetrics

    class _Empty:
        class host:
            path = Path("/nonexistent")

            @staticmethod
            def networks() -> list[Any]:
                return []

        class events:
            listeners = 0

        @staticmethod
        def group_sizes() -> tuple[int, int]:
            return 0, 0

    made = Metrics()
    lines = ["# Metrics", "", _NOTE, "`GET /metrics` of the daemon, in Prometheus' text format."]
    lines += ["", "| metric | type | labels | |", "|---|---|---|---|"]
    families = [*made.registry.collect(), *StoreMetrics(_Empty()).collect()]  # type: ignore[arg-type]
    labels = {one._name: one._labelnames for one in made.registry._collector_to_names}  # type: ignore[attr-defined]
    for one in sorted(families, key=lambda one: one.name):
        names = labels.get(one.name) or getattr(one, "_labelnames", ()) or ()
        name = f"{one.name}_total" if one.type == "counter" else one.name
        shown = ", ".join(f"`{label}`" for label in names)
        lines.append(f"| `{name}` | {one.type} | {shown} | {one.documentation} |")
    lines += [
        "",
        "Capacity, held, free, cooling and reserved are counted each by itself: an address may be",
        "reserved and held, so none follows from the others.",
        "",
    ]
    return "\n".join(lines)


def configuration() -> str:
    """What a network is configured with, and the environment."""
    from netalloc import NetworkManager

    lines = ["# Configuration", "", _NOTE, "## A network", ""]
    lines += [inspect.getdoc(NetworkManager).split("    >>>")[0].split(">>>")[0].rstrip(), ""]
    lines += ["## The environment", "", "| variable | |", "|---|---|"]
    lines += [
        "| `NETALLOC_STORE` | the store that commands and the daemon use |",
        "| `XDG_STATE_HOME` | where the store of users other than root is |",
        "| `XDG_RUNTIME_DIR` | where the daemon's sockets of users other than root are |",
        "| `NETALLOC_RUNTIME_DIR` | where claims and turns are kept, instead of `/run/netalloc` |",
        "| `NO_COLOR` | no colours, whatever the terminal can do |",
        "| `COLUMNS` | how wide tables may be where there is no terminal |",
        "| `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `LISTEN_FDS` | systemd's, see the units |",
        "",
        "## Who may use the daemon",
        "",
    ]
    from netalloc.server import access

    lines += [inspect.getdoc(access) or "", ""]
    return "\n".join(lines)


PAGES = {
    "reference-commands.md": commands,
    "reference-api.md": api,
    "reference-metrics.md": metrics,
    "reference-configuration.md": configuration,
}


def main() -> int:
    """Write the pages, or say which are not current."""
    stale = 0
    for name, make in PAGES.items():
        text, path = make(), DOCS / name
        if "--check" in sys.argv[1:]:
            if not path.exists() or path.read_text() != text:
                sys.stderr.write(f"{name} is not current: python scripts/reference.py\n")
                stale = 1
        else:
            path.write_text(text)
    return stale


if __name__ == "__main__":
    sys.exit(main())
