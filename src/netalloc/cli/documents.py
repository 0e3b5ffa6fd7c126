"""netalloc export and import: a store as a JSON document, and back."""

from __future__ import annotations

import json
import sys

import click

from netalloc.cli.command import changing, looking
from netalloc.cli.progress import progress
from netalloc.errors import InvalidValueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

    from netalloc.operations import answers
    from netalloc.operations.host import HostOperations


@click.command()
@looking
def export(host: HostOperations) -> Any:
    """Write networks, leases and reservations to the output, as JSON."""
    json.dump(host.export(), sys.stdout, ensure_ascii=False, indent=1)
    sys.stdout.write("\n")
    raise click.exceptions.Exit(0)


@click.command("import")
@click.argument("file", type=click.File("r"), default="-")
@changing
def import_command(host: HostOperations, file: TextIO) -> answers.Done:
    """Make what a document of `netalloc export` says, all or nothing; FILE is - unless given."""
    try:
        document = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"{file.name} is no JSON: {error}") from None
    with progress("importing") as told:
        return host.import_document(document, progress=told)
