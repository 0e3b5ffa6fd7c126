"""What every command has in common: its store, --json, --dry-run, and errors on one line."""

from __future__ import annotations

import functools
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import click

from netalloc.cli import output
from netalloc.cli.progress import waiting
from netalloc.operations.outcomes import is_expected, message, outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from netalloc.operations.host import HostOperations

    F = TypeVar("F", bound=Callable[..., Any])

STORE = click.option(
    "--store", type=click.Path(path_type=Path), metavar="PATH", help="The store's file."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would happen, and touch nothing.")


_SHOWS_PROGRESS = ("import",)  # its own

# What messages say where the right to do it is missing.
_REFUSED = ("not permitted", "ermission", "may not be read", "writable?", "CAP_", "belongs to user")


def looking(work: F) -> F:
    """A command that only looks: it needs no right but to read the store's file."""
    return _options(work, _JSON, STORE)


def changing(work: F) -> F:
    """A command that changes something; with --dry-run it is done to a copy of the store."""
    return _options(work, _DRY_RUN, _JSON, STORE)


def host_of(store: Path | None, dry_run: bool = False) -> HostOperations:
    """What the commands are of."""
    if dry_run:
        from netalloc.operations.rehearsal import Rehearsal

        return Rehearsal(store)
    from netalloc.operations.host import HostOperations

    return HostOperations(store)


def telling_errors(work: F) -> F:
    """What is refused is told on one line, with the way out, and as the exit status."""

    @functools.wraps(work)
    def told(*arguments: Any, **options: Any) -> Any:
        try:
            return work(*arguments, **options)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if not is_expected(error):
                raise
            found = outcome(error)
            if options.get("as_json"):
                told = {"kind": found.kind, "message": message(error), "status": found.exit_status}
                output.write_json({"error": told}, to=sys.stderr)
            else:
                click.echo(f"netalloc: {message(error)}{_way_out(error)}", err=True)
            raise click.exceptions.Exit(found.exit_status) from None

    return told  # type: ignore[return-value]


def _options(work: F, *options: Any) -> F:
    @functools.wraps(work)
    def run(
        *arguments: Any,
        store: Path | None,
        as_json: bool,
        dry_run: bool = False,
        **rest: Any,
    ) -> None:
        _prepare()
        context = click.get_current_context()
        store = store or context.find_root().params.get("store")
        name = context.info_name or ""
        with host_of(store, dry_run) as host:
            with nullcontext() if name in _SHOWS_PROGRESS else waiting(f"{name} ..."):
                answer = work(host, *arguments, **rest)
            status = output.show(answer, as_json=as_json, dry_run=dry_run)
        if status:
            raise click.exceptions.Exit(status)

    made: Any = telling_errors(run)
    for option in options:
        made = option(made)
    return made  # type: ignore[no-any-return]


def _prepare() -> None:
    """Warnings of the library as lines of ours, and on the error stream.

    That the range of a network overlaps the host's own is of the host, not of the call: doctor
    says it.
    """
    import logging

    logging.basicConfig(format="netalloc: %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("netalloc.host.sockets").setLevel(logging.ERROR)


def _way_out(error: BaseException) -> str:
    """What to do about it, where that is not in the message."""
    from netalloc.errors import StoreError

    text = str(error)
    if isinstance(error, StoreError) and "no store was made yet" in text:
        return ": netalloc network create NAME SUBNET makes one, --store PATH names another"
    if os.geteuid() and (
        isinstance(error, PermissionError) or any(one in text for one in _REFUSED)
    ):
        return " (try it as root, with sudo)"
    return ""
