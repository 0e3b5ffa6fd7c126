"""A progress bar: rich's where it is installed and a person looks on, else a plain one."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
_WIDTH = 32


def progress(what: str, parts: Sequence[Sequence[T]]) -> Iterator[Sequence[T]]:
    """The parts, with a bar of how many of their items are done."""
    total = sum(map(len, parts))
    if not sys.stdout.isatty():
        yield from parts
        return
    try:
        from rich.progress import Progress
    except ImportError:
        yield from _plain(what, parts, total)
        return
    with Progress(transient=True) as bars:
        bar = bars.add_task(f"  {what}", total=total)
        for part in parts:
            yield part
            bars.advance(bar, len(part))


def _plain(what: str, parts: Iterable[Sequence[T]], total: int) -> Iterator[Sequence[T]]:
    done = 0
    for part in parts:
        yield part
        done += len(part)
        bar = "#" * (_WIDTH * done // total)
        print(f"\r  {what:<28} [{bar:<{_WIDTH}}] {done:>6,}", end="", flush=True)
    print("\r" + " " * 80 + "\r", end="")
