"""netalloc network: networks made, listed, shown and removed."""

from __future__ import annotations

import click

from netalloc.cli.command import changing, looking
from netalloc.cli.words import network_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.operations import answers
    from netalloc.operations.host import HostOperations


@click.group()
def network() -> None:
    """Make, list, show and remove networks."""


@network.command()
@click.argument("name")
@click.argument("subnets", nargs=-1, required=True, metavar="SUBNET [SUBNET6]")
@click.option("--bridge", metavar="BR", help="Its bridge, made where there is none of that name.")
@click.option("--mode", type=click.Choice(["bridge", "routed"]), help="routed has no bridge.")
@click.option(
    "--backend",
    type=click.Choice(["auto", "nftables", "iptables", "null"]),
    default="auto",
    show_default=True,
    help="What makes the port mappings.",
)
@click.option("--exclude", multiple=True, metavar="IP|NET", help="Never given; may be repeated.")
@click.option("--ports", metavar="FIRST-LAST", help="Host ports that are picked from.")
@click.option("--cooldown", type=float, metavar="S", help="Seconds a released address stays out.")
@click.option(
    "--sticky", type=float, metavar="S", help="Seconds an owner may come back to its own."
)
@click.option("--forward/--no-forward", default=None, help="Accept its packets in FORWARD.")
@click.option("--isolation", type=click.Choice(["open", "guarded"]), help="guarded keeps apart.")
@click.option("--service", "services", multiple=True, metavar="PORT/PROTO", help="Of the host.")
@changing
def create(
    host: HostOperations, name: str, subnets: tuple[str, ...], **stated: object
) -> answers.Network:
    """Register a network.

    A SUBNET is written as its gateway: 10.88.0.1/16, and fd00:88::1/64 beside it for both families.

    \b
    netalloc network create web 10.88.0.1/16 --bridge br0
    netalloc network create lab 10.89.0.1/16 fd00:89::1/64 --mode routed
    """
    return host.create_network(name, subnets, **stated)  # type: ignore[arg-type]


@network.command("ls")
@looking
def list_networks(host: HostOperations) -> list[answers.Network]:
    """List the networks, and how much of each is in use."""
    return host.networks()


@network.command()
@click.argument("name", shell_complete=network_names)
@looking
def show(host: HostOperations, name: str) -> answers.Network:
    """Show how a network is configured, and how much of it is in use."""
    return host.network(name)


@network.command()
@click.argument("name", shell_complete=network_names)
@changing
def rm(host: HostOperations, name: str) -> str:
    """Remove a network of which nothing is held or reserved, and its bridge if it was made here."""
    host.remove_network(name)
    return f"removed network {name}"
