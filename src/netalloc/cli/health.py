"""netalloc doctor: which limit of this host is near."""

from __future__ import annotations

import click

from netalloc.cli.command import looking

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.operations import answers
    from netalloc.operations.host import HostOperations


@click.command()
@looking
def doctor(host: HostOperations) -> answers.Health:
    """Say each limit of this host that bites at density, and the command that raises it.

    Exits with 0 where all is well, 1 where something is near its limit, 3 where something is at
    it or in the way.
    """
    return host.doctor()
