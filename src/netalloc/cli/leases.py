"""Addresses and ports: given out, given back, put on the machine and kept."""

from __future__ import annotations

import click

from netalloc.cli import words
from netalloc.cli.command import changing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from netalloc.operations import answers
    from netalloc.operations.host import HostOperations


@click.command()
@words.OWNER
@words.NETWORK
@click.option("--ip", metavar="ADDRESS", help="This address, or none.")
@click.option("--key", metavar="KEY", help="Asked again with the same key, the same address.")
@click.option("--label", "pairs", multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.option(
    "--publish", "-p", multiple=True, metavar="[IP:][HOST:]PORT[/PROTO]", help="May be repeated."
)
@click.option("--attach", metavar="NETNS", help="Put it into this network namespace.")
@words.on_machine
@click.option("--count", type=int, metavar="N", help="So many addresses at once.")
@click.option("--allow-cooling", is_flag=True, help="One that cools down, if no other is left.")
@words.CHECK_HOST
@changing
def allocate(
    host: HostOperations,
    owner: str,
    pairs: tuple[str, ...],
    count: int | None,
    **rest: Any,
) -> answers.Lease | list[answers.Lease]:
    """Give OWNER an address, with ports and an interface if asked for: all of it or nothing.

    \b
    netalloc allocate web --attach web --publish 8080:80
    netalloc allocate vm1 --tap tap0 --uid 1000
    """
    labels = words.labels(pairs) or None
    if count is None:
        return host.allocate(owner, labels=labels, **rest)
    given = click.get_current_context()
    one_alone = ("ip", "key", "attach", "tap", "allow_cooling")
    for name in one_alone:
        if rest.get(name):
            raise click.UsageError(
                f"--count and --{name.replace('_', '-')} exclude each other", given
            )
    return host.allocate_many(
        owner,
        count,
        network=rest["network"],
        labels=labels,
        publish=rest["publish"],
        check_host=rest["check_host"],
    )


@click.command()
@words.OWNER
@words.which
@changing
def release(host: HostOperations, owner: str, **which: Any) -> answers.Released:
    """Give back all that OWNER holds, or what of it is named: addresses, ports, interfaces."""
    return host.release(owner, **which)


@click.command()
@words.OWNER
@click.argument("netns", required=False)
@words.on_machine
@words.which
@changing
def attach(host: HostOperations, owner: str, netns: str | None, **rest: Any) -> answers.Lease:
    """Put what OWNER holds into NETNS: a name of `ip netns`, a path, or a process.

    With --tap it becomes a tap for a virtual machine instead.
    """
    if (netns is None) == (rest["tap"] is None):
        raise click.UsageError("name a NETNS, or a --tap")
    return host.attach(owner, netns=netns, **rest)


@click.command()
@words.OWNER
@words.which
@changing
def detach(host: HostOperations, owner: str, **which: Any) -> answers.Lease:
    """Take what OWNER holds off the machine; the address stays its own."""
    return host.detach(owner, **which)


@click.command()
@words.OWNER
@click.argument("ports", nargs=-1, required=True, metavar="[IP:][HOST:]PORT[/PROTO]...")
@words.CHECK_HOST
@words.which
@changing
def publish(
    host: HostOperations, owner: str, ports: tuple[str, ...], **rest: Any
) -> list[answers.Port]:
    """Lead host ports to what OWNER holds, all or none; without HOST the next free one.

    \b
    netalloc publish web 8080:80 53:53/udp 127.0.0.1:9000:9000 7000-7009:7000-7009
    """
    return host.publish(owner, ports, **rest)


@click.command()
@words.OWNER
@click.argument("ports", nargs=-1, required=True, metavar="[IP:]HOST[/PROTO]...")
@words.which
@changing
def unpublish(
    host: HostOperations, owner: str, ports: tuple[str, ...], **which: Any
) -> answers.Lease:
    """Lead host ports to OWNER no longer."""
    return host.unpublish(owner, ports, **which)


@click.command()
@click.argument("ip")
@click.argument("owner", required=False)
@words.NETWORK
@changing
def reserve(
    host: HostOperations, ip: str, owner: str | None, network: str | None
) -> answers.Reservation:
    """Keep an address for OWNER, or from everyone; over boots and power cuts too."""
    return host.reserve(ip, owner, network=network)


@click.command()
@click.argument("ip")
@words.NETWORK
@changing
def unreserve(host: HostOperations, ip: str, network: str | None) -> str:
    """Keep an address no longer; what holds it goes on."""
    host.unreserve(ip, network=network)
    return f"{ip} is kept no longer"
