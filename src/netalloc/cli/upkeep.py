"""Commands that keep store, kernel and containers in agreement."""

from __future__ import annotations

import click

from netalloc.cli.command import changing, looking
from netalloc.cli.words import NETWORK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

    from netalloc.operations import answers
    from netalloc.operations.host import HostOperations


@click.command()
@click.argument("alive", nargs=-1, metavar="[OWNER]...")
@click.option(
    "--alive-from", type=click.File("r"), metavar="FILE", help="Owners, a line each; - is stdin."
)
@click.option(
    "--grace",
    type=float,
    default=30.0,
    show_default=True,
    metavar="S",
    help="Seconds between two looks.",
)
@click.option("--none-alive", is_flag=True, help="Nothing is alive: all that has an owner goes.")
@NETWORK
@changing
def gc(
    host: HostOperations,
    alive: tuple[str, ...],
    alive_from: TextIO | None,
    grace: float,
    none_alive: bool,
    network: str | None,
) -> answers.Collected:
    """Give back what belongs to owners that are not among those named.

    A first call notes them, and a later one, --grace seconds or more after, gives back those
    that are still not alive. What has no owner is never given back.
    """
    living = list(alive)
    if alive_from is not None:
        living += [line.strip() for line in alive_from if line.strip()]
    if not living and not none_alive:
        raise click.UsageError("name those that are alive, or say --none-alive")
    return host.gc(living, grace=grace, network=network)


@click.command()
@looking
def check(host: HostOperations) -> answers.Findings:
    """Say what is wrong with the store, and where the kernel differs; exits with 1 if anything is.

    Nothing is changed. Without root the records alone are looked at.
    """
    return host.check()


@click.command()
@changing
def repair(host: HostOperations) -> answers.Done:
    """Mend the store, and make the kernel agree with it; a copy of the file is kept first."""
    return host.repair()


@click.command()
@NETWORK
@changing
def reconcile(host: HostOperations, network: str | None) -> answers.Done:
    """Make the kernel agree with what is held and published."""
    return host.reconcile(network=network)
