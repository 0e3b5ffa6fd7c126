"""netalloc map: how a network is used, drawn as a Hilbert curve."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from netalloc.cli.command import looking
from netalloc.cli.words import network_names
from netalloc.errors import StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from netalloc.operations.host import HostOperations

_PATH = click.Path(path_type=Path, dir_okay=False)


@click.command("map")
@click.argument("network", required=False, shell_complete=network_names)
@click.option("--png", "png_file", type=_PATH, metavar="F", help="Write a PNG instead.")
@click.option("--svg", "svg_file", type=_PATH, metavar="F", help="Write an SVG instead.")
@click.option("--size", type=int, default=1024, show_default=True, help="Pixels a side.")
@click.option("--theme", type=click.Choice(["dark", "light"]), default="dark", show_default=True)
@click.option("--first", type=int, default=0, metavar="N", help="Draw from the N-th address on.")
@click.option("--count", type=int, metavar="N", help="Draw so many, a power of two.")
@looking
def map_command(
    host: HostOperations,
    network: str | None,
    png_file: Path | None,
    svg_file: Path | None,
    size: int,
    theme: str,
    **part: Any,
) -> Any:
    """Draw NETWORK: used, free, cooling, reserved and excluded addresses; here, or as a file."""
    from netalloc.pictures.survey import survey

    found = survey(host.view(), host.only(network), **part)
    if png_file is not None:
        from netalloc.pictures.png import png

        _write(png_file, png(found, size=size, theme=theme))
    if svg_file is not None:
        from netalloc.pictures.svg import svg

        _write(svg_file, svg(found, size=size, theme=theme).encode())
    as_json = bool(click.get_current_context().params.get("as_json"))
    if as_json:
        return {
            "network": found.network,
            "part": found.part,
            "order": found.order,
            "cell": found.cell,
            "totals": found.totals._asdict(),
        }
    if png_file is not None or svg_file is not None:
        return "\n".join([f"wrote {path}" for path in (png_file, svg_file) if path is not None])
    from netalloc.pictures.blocks import blocks

    terminal = sys.stdout.isatty()
    columns, lines = _size()
    coloured = terminal and not os.environ.get("NO_COLOR")
    return blocks(found, width=columns, height=lines - 1, colour=coloured, theme=theme)


def _size() -> tuple[int, int]:
    """Columns and lines that there are to draw in."""
    import shutil

    return shutil.get_terminal_size((80, 40))


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error
