"""Commands that only look: what there is, who holds it, why something cannot be had."""

from __future__ import annotations

from datetime import datetime

import click

from netalloc.cli.command import looking
from netalloc.cli.words import network_names, owner_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.operations import answers
    from netalloc.operations.host import HostOperations


@click.command()
@click.argument("network", required=False, shell_complete=network_names)
@click.option("--leases", "-l", is_flag=True, help="What is held, in every network.")
@click.option("--owner", metavar="OWNER", shell_complete=owner_names, help="What it holds.")
@click.option("--label", metavar="NAME=VALUE", help="What has this label.")
@click.option("--search", "containing", metavar="TEXT", help="What has this in owner or address.")
@click.option("--limit", type=int, metavar="N", help="So many at most.")
@click.option("--reserved", is_flag=True, help="The reservations instead.")
@looking
def ls(
    host: HostOperations,
    network: str | None,
    leases: bool,
    owner: str | None,
    label: str | None,
    containing: str | None,
    limit: int | None,
    reserved: bool,
) -> list[answers.Network] | list[answers.Lease] | list[answers.Reservation]:
    """List the networks; with NETWORK, or an option, what is held."""
    if reserved:
        return host.reservations(network)
    if leases or network or owner or label or containing or limit is not None:
        return host.leases(network, owner, label, containing, limit)
    return host.networks()


@click.command()
@click.argument("what")
@looking
def who(host: HostOperations, what: str) -> answers.Who:
    """Say what holds WHAT: an address, or a host port such as tcp/8080; or what an owner holds."""
    return host.who(what, kernel=True)


@click.command()
@click.argument("what")
@looking
def why(host: HostOperations, what: str) -> answers.Why:
    """Say why WHAT can be had now, or cannot: an address, a host port (tcp/8080), or an owner."""
    return host.why(what)


@click.command()
@click.argument("ip")
@click.option("--at", metavar="TIME", help="What held it then: 2026-05-01T12:30 by this clock.")
@looking
def history(host: HostOperations, ip: str, at: str | None) -> list[answers.Past]:
    """Say what held an address, oldest first."""
    when = None
    if at is not None:
        try:
            when = datetime.fromisoformat(at.replace("Z", "+00:00"))
        except ValueError as error:
            raise click.UsageError(f"--at {at!r}: {error}") from None
    return host.history(ip, when)
