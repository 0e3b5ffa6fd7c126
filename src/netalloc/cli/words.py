"""Arguments and options that several commands have, and what completes them."""

from __future__ import annotations

import click

from netalloc.errors import NetallocError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from netalloc.operations.looking import StoreView

_MOST = 200  # names that a shell is offered


def _view(ctx: click.Context) -> StoreView:
    from netalloc.operations.looking import StoreView
    from netalloc.operations.place import default_store

    return StoreView(ctx.params.get("store") or default_store())


def _completes(names: Callable[[StoreView], list[str]]) -> Callable[..., list[str]]:
    """What a shell is offered: nothing where the store cannot be read."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        try:
            found = sorted(set(names(_view(ctx))))
        except (NetallocError, OSError):
            return []
        return [name for name in found if name.startswith(incomplete)][:_MOST]

    return complete


network_names = _completes(lambda view: [info.name for info in view.view().networks()])
owner_names = _completes(lambda view: [held.owner for held in view.view().find() if held.owner])

OWNER = click.argument("owner", shell_complete=owner_names)
NETWORK = click.option(
    "--network", "-n", metavar="NAME", shell_complete=network_names,
    help="The network; may be left out where there is one.",
)  # fmt: skip
CHECK_HOST = click.option(
    "--no-check-host", "check_host", is_flag=True, flag_value=False, default=True,
    help="Publish a port whatever listens on the host.",
)  # fmt: skip


def which(work: Any) -> Any:
    """The options that tell apart what an owner holds."""
    for option in (
        click.option("--key", metavar="KEY", help="Of several, the one of this key."),
        click.option("--ip", metavar="ADDRESS", help="Of several, the one with this address."),
        NETWORK,
    ):
        work = option(work)
    return work


def on_machine(work: Any) -> Any:
    """The options that say how it is put on the machine."""
    for option in (
        click.option("--gid", type=int, help="The group that may open the tap."),
        click.option("--uid", type=int, help="The user that may open the tap."),
        click.option("--mtu", type=int, help="Its MTU, the bridge's or uplink's unless given."),
        click.option(
            "--ifname",
            default="eth0",
            show_default=True,
            help="What it is called in the container.",
        ),
        click.option("--tap", metavar="NAME", help="Make a tap for a virtual machine instead."),
    ):
        work = option(work)
    return work


def labels(pairs: tuple[str, ...]) -> dict[str, str]:
    """name=value pairs as a dict. Raises UsageError."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"label {pair!r} is not NAME=VALUE")
        found[name] = value
    return found
