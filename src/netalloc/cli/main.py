"""The commands by name; the module of one is loaded when it is called, or its help is asked for."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

import click

from netalloc.operations.outcomes import INTERRUPTED

# Each command: its module, the name there, and its line in the list of all.
COMMANDS = {
    "allocate": ("leases", "Give an owner an address, ports, and an interface."),
    "attach": ("leases", "Put an address into a network namespace, or make a tap."),
    "check": ("upkeep", "Say what is wrong with the store and the kernel."),
    "completion": ("completion", "Print what a shell needs to complete commands."),
    "detach": ("leases", "Take an address off the machine; it stays held."),
    "doctor": ("health", "Say which limit of this host is near."),
    "export": ("documents", "Write networks, leases and reservations as JSON."),
    "gc": ("upkeep", "Give back what belongs to owners that are not alive."),
    "history": ("looking", "Say what held an address, and when."),
    "import": ("documents", "Make what an export says, all or nothing."),
    "ls": ("looking", "List the networks, or what is held in one."),
    "map": ("drawing", "Draw how a network is used."),
    "network": ("networks", "Make, list, show and remove networks."),
    "publish": ("leases", "Lead host ports to what an owner holds."),
    "reconcile": ("upkeep", "Make the kernel agree with the store."),
    "release": ("leases", "Give back what an owner holds."),
    "repair": ("upkeep", "Mend the store, and the kernel after it."),
    "reserve": ("leases", "Keep an address for an owner, or from everyone."),
    "serve": ("serving", "Run the daemon."),
    "top": ("live", "Watch networks, rates and the busiest owners."),
    "unpublish": ("leases", "Lead host ports there no longer."),
    "unreserve": ("leases", "Keep an address no longer."),
    "who": ("looking", "Say what holds an address or a port, or what an owner holds."),
    "why": ("looking", "Say why something can be had, or cannot."),
}

_EPILOG = """\b
Exit status: 0 done; 1 refused, or a check found something; 2 bad usage or value;
3 nothing left; 4 in use; 5 not there; 6 stale; 7 quota; 8 a command failed;
9 interface; 10 out of range; 11 store; 12 closed; 13 not permitted."""


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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list, without loading any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in sorted(COMMANDS.items())])

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
        import netalloc

        click.echo(f"netalloc {netalloc.__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    epilog=_EPILOG,
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
def cli() -> None:
    """Addresses, host ports and port mappings of this host's containers.

    What is held is in $NETALLOC_STORE, or /var/lib/netalloc/host.db for root and
    ~/.local/state/netalloc/host.db for others; --store names another one.
    """


def run() -> None:
    """Run it; an interrupt exits as shells expect, a closed pipe is the reader's wish."""
    try:
        status = cli(prog_name="netalloc", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        status = error.exit_code
        click.echo(f"netalloc: {_on_one_line(error)}", err=True)
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("\n")
        status = INTERRUPTED
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
