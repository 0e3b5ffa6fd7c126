"""netalloc serve and cni: programs of their own, which take this process's place."""

from __future__ import annotations

import os
import sys

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve(arguments: tuple[str, ...]) -> None:
    """Run the daemon: the store kept open, its networks watched and repaired, two sockets."""
    _become("netalloc.server", arguments)


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def cni(arguments: tuple[str, ...]) -> None:
    """Put the CNI plugins where libcni looks, or take over what host-local has given."""
    _become("netalloc.cni", arguments)


def _become(module: str, arguments: tuple[str, ...]) -> None:
    store = click.get_current_context().find_root().params.get("store")
    if store is not None:
        os.environ["NETALLOC_STORE"] = os.fspath(store)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
