"""The command line; the module of a command is loaded when that is called."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path

import click

from netalloc.cli.command import STORE
from netalloc.cli.commands import COMMANDS, help_text

_INTERRUPTED = 130  # 128 and SIGINT, as shells have it


class LazyGroup(click.Group):
    """A group whose commands are loaded one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"netalloc.cli.{COMMANDS[cmd_name][0]}")
        found = getattr(module, f"{cmd_name}_command", None) or getattr(module, cmd_name)
        assert isinstance(found, click.Command)
        return found

    def get_help(self, ctx: click.Context) -> str:
        """The list, without loading any of them."""
        return help_text()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; a slip of the pen is told what is near."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, 1)
            meant = f": is {near[0]} meant?" if near else ""
            raise click.UsageError(f"{error.message.rstrip('.')}{meant}", ctx) from None


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"netalloc {version('netalloc')}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version.",
)
@STORE
def cli(store: Path | None) -> None:
    """Addresses, host ports and port mappings of this host's containers."""


def run() -> None:
    """Run it; an interrupt exits as shells expect, a closed pipe is the reader's wish."""
    try:
        status = cli(prog_name="netalloc", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.message, err=True)
        status = error.exit_code
    except click.ClickException as error:
        status = error.exit_code
        click.echo(f"netalloc: {_on_one_line(error)}", err=True)
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("\n")
        status = _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still to be flushed
        status = 128 + signal.SIGPIPE
    sys.exit(status if isinstance(status, int) else 0)


def _on_one_line(error: click.ClickException) -> str:
    """What is wrong with how it was called, and where to read how it is."""
    text = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    path = "netalloc" if context is None else context.command_path
    return f"{text} ({path} --help says more)"
