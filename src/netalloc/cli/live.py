"""netalloc top: networks, rates and the busiest owners, live."""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path

import click

from netalloc.cli import output, text
from netalloc.cli.command import STORE, host_of, telling_errors
from netalloc.operations import answers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.console import RenderableType

_SHARE = 5  # of the time, at most, is for looking


@click.command()
@click.option("--interval", "-i", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True)
@click.option("--owners", type=click.IntRange(0, 1000), default=10, show_default=True)
@click.option("--once", is_flag=True, help="Look once, and end.")
@click.option("--json", "as_json", is_flag=True, help="A JSON document a look, on a line.")
@STORE
@telling_errors
def top(interval: float, owners: int, once: bool, as_json: bool, store: Path | None) -> None:
    """Watch how full the networks are, how fast addresses come and go, and who holds most.

    Ctrl-C ends it.
    """
    store = store or click.get_current_context().find_root().params.get("store")
    with host_of(store) as host:
        if once or as_json or not sys.stdout.isatty():
            while True:
                _tell(host.activity(owners), as_json)
                if once or not as_json:
                    return
                time.sleep(interval)
        from rich.live import Live

        rates = Rates()
        with Live(screen=True, auto_refresh=False) as live:
            while True:
                begun = time.monotonic()
                found = host.activity(owners)
                rates.add(begun, found)
                live.update(_screen(found, rates), refresh=True)
                time.sleep(max(interval, (time.monotonic() - begun) * _SHARE))


class Rates:
    """How fast addresses come and go, over the last minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque(maxlen=60)

    def add(self, at: float, found: answers.Activity) -> None:
        """What was seen at a moment, in seconds."""
        self._seen.append((at, found.allocated, found.released))

    def of(self, looks: int) -> tuple[float, float]:
        """Allocations and releases a second, over so many looks."""
        last, first = self._seen[-1], self._seen[max(-1 - looks, -len(self._seen))]
        seconds = last[0] - first[0]
        if not seconds:
            return 0.0, 0.0
        return (last[1] - first[1]) / seconds, (last[2] - first[2]) / seconds


def _tell(found: answers.Activity, as_json: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps(output.plain(found), ensure_ascii=False))
    else:
        output.write(_parts(found))


def _parts(found: answers.Activity) -> list[text.Part]:
    owners = text.Table(["OWNER", "HELD", "PORTS"], [False, True, True])
    for one in found.busiest:
        owners.add(one.owner, text.number(one.held), text.number(one.ports))
    return [*text.parts(found.networks), "", owners]


def _screen(found: answers.Activity, rates: Rates) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    now, minute = rates.of(1), rates.of(60)
    head = (
        f"{time.strftime('%H:%M:%S')}   given {now[0]:,.0f}/s   given back {now[1]:,.0f}/s   "
        f"(in a minute {minute[0]:,.0f} and {minute[1]:,.0f})   Ctrl-C ends"
    )
    width = output.width()
    parts = [part if isinstance(part, str) else part.fitted(width) for part in _parts(found)]
    return Group(Text(head, style="bold"), Text(""), *[Text(part) for part in parts])
