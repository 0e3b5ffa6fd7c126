"""Answers printed: as JSON for programs, as text for people, in colour on a terminal."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys

import click

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

    from netalloc.cli.text import Part


def plain(answer: object) -> Any:
    """An answer as what JSON has."""
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        return dataclasses.asdict(answer)
    if isinstance(answer, list | tuple):
        return [plain(one) for one in answer]
    return answer


def write_json(value: object, to: IO[str] | None = None) -> None:
    """One JSON document."""
    click.echo(json.dumps(plain(value), ensure_ascii=False, indent=2), file=to)


def show(answer: object, *, as_json: bool, dry_run: bool = False) -> int:
    """Print an answer; the exit status that it means."""
    from netalloc.cli import text

    if as_json:
        value = plain(answer)
        write_json({"dry_run": True, "answer": value} if dry_run else value)
    else:
        if dry_run:
            click.echo("dry run, nothing is changed:")
        write(text.parts(answer))
    return text.status(answer)


def write(parts: list[Part]) -> None:
    """Print lines and tables, as wide as the terminal is."""
    from netalloc.cli.text import Table

    for part in parts:
        if isinstance(part, str):
            click.echo(part)
        elif isinstance(part, Table) and sys.stdout.isatty():
            click.echo(_styled(part))
        else:
            click.echo(part.fitted(width()))


def width() -> int:
    """Columns of the terminal, or $COLUMNS; where there is neither, as many as are needed."""
    return shutil.get_terminal_size((1 << 20, 24)).columns


def _styled(table: Any) -> str:
    """The same by rich, which knows colours and what a terminal can do."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    plainly = bool(os.environ.get("NO_COLOR"))
    header = "" if plainly else "bold"
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=header)
    for name, right in zip(table.headers, table.right, strict=True):
        made.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row, style in zip(table.rows, table.styles, strict=True):
        made.add_row(*[Text(cell) for cell in row], style="" if plainly else style)
    written = StringIO()
    Console(width=width(), file=written, force_terminal=True, highlight=False).print(made)
    text = written.getvalue()
    return "\n".join([line.rstrip() for line in text.rstrip("\n").split("\n")])
