"""Progress of what takes longer than a second, on a terminal; elsewhere nothing is said."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.status import Status

_QUIET = 1.0  # seconds before anything is shown


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says what takes so long, on a terminal, where it takes longer than a second."""
    if not sys.stderr.isatty():
        yield
        return
    from threading import Timer

    shown: list[Status] = []

    def show() -> None:
        from rich.console import Console

        status = Console(stderr=True).status(what)
        status.start()
        shown.append(status)

    timer = Timer(_QUIET, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        for status in shown:
            status.stop()


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A function that is told how many of how many are done, or None where none is wanted."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    begun, shown = time.monotonic(), Progress(console=Console(stderr=True), transient=True)
    task = shown.add_task(what)
    started: list[bool] = []

    def tell(done: int, total: int) -> None:
        if not started:
            if time.monotonic() - begun < _QUIET:
                return
            shown.start()
            started.append(True)
        shown.update(task, completed=done, total=total)

    try:
        yield tell
    finally:
        if started:
            shown.stop()
