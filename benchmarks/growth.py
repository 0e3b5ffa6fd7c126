"""The growth gate: no call costs more because much is held.

Each operation of the public API is timed on two places that differ in one thing alone: how
much of it is there. Turns of a few calls alternate between the two, what a turn did is undone
behind the clock so that the level does not move, and of each side the quickest tenth of its turns
counts. What the fuller side may take is LIMIT times what the emptier one does.

Not here is what counts or lists by nature, because its answer is as long as what is held:
interfaces(), NetworkView.find() without an owner or label, usage(), check(), repair(), gc(),
reconcile(), release(owner) and find(owner) of what that owner holds, and who() and why() over
the number of networks, each of which may have the address. Nor is what a release of published
ports waits for in a busy kernel: the flows are filtered by walking all of them, which the gate
of the flows compares with a bare filtered walk.
"""

import gc
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

from gate import Measured, Timed
from netalloc import NetworkInterface, NetworkManager, NetworkView

LIMIT = 1.5
ROUNDS, MOST = 25, 200  # pairs of turns: more and more while what was seen is beyond the limit
CLEARLY, ENOUGH = 3 * LIMIT, 1.0  # what is beyond that after so many seconds is measured no more,
TOO_LONG = 10.0  # and after so many nothing is

# Addresses that operations name: one that is reserved, one that was held before, free ones on.
KEPT, PAST, FREE = "10.253.0.1", "10.254.0.1", "10.255.0.1"
FREE_PORT = 500  # it and the next ones are published by nothing


@dataclass
class Place:
    """A manager, and what the operations need to know of it.

    `calls` are made in one turn. `owner` is what operations allocate for, `taken_port` a host
    port that is published with as many others as there are just below it.
    """

    manager: NetworkManager
    path: Path | None = None
    owner: str = "own"
    calls: int = 10
    taken_port: int = 0
    found: Sequence[NetworkInterface] = ()
    opened: ExitStack = field(default_factory=ExitStack)

    def view(self) -> NetworkView:
        """What reads this place, until it is closed."""
        assert self.path is not None
        return self.opened.enter_context(NetworkView(self.path))

    def close(self) -> None:
        self.opened.close()


def settle() -> None:
    """What was built is not gone through by the collector again and again."""
    gc.collect()
    gc.freeze()


# ---- measuring


def grown(full: Timed, few: Timed) -> Measured:
    """What an operation takes on the fuller and on the emptier side."""
    sides: tuple[list[float], list[float]] = ([], [])
    start = perf_counter()
    gc.disable()
    try:
        while len(sides[0]) < MOST:
            for side, timed in zip(sides, (full, few), strict=True):
                side.append(timed())
            count, spent = len(sides[0]), perf_counter() - start
            if count % ROUNDS == 0 and quiet(sides).ratio <= LIMIT:
                break
            if count > 2 and spent > ENOUGH and min(sides[0]) > CLEARLY * min(sides[1]):
                break
            if count > 2 and spent > TOO_LONG:
                break
    finally:
        gc.enable()
    return quiet(sides)


def quiet(sides: tuple[list[float], list[float]]) -> Measured:
    """Each side at the mean of its quickest tenth: what disturbs one only ever adds."""
    return Measured(*(fmean(sorted(side)[: max(3, len(side) // 10)]) for side in sides))


def turn(
    n: int,
    work: Callable[[Any], Any],
    before: Callable[[int], Iterable[Any]] = range,
    after: Callable[[list[Any]], object] = len,
) -> Timed:
    """Seconds a call of `work`, with each of what `before(n)` gives; `after` takes the results."""

    def timed() -> float:
        items = list(before(n))
        start = perf_counter()
        results = [work(item) for item in items]
        seconds = perf_counter() - start
        after(results)
        return seconds / len(items)

    return timed


def release_all(interfaces: Iterable[NetworkInterface]) -> None:
    """Undo allocations."""
    for interface in interfaces:
        interface.release()


def refused(error: type[Exception], call: Callable[[], object]) -> Callable[[Any], None]:
    """A call that must be refused."""

    def work(_: object) -> None:
        try:
            call()
        except error:
            return
        raise AssertionError(f"{call} was not refused")

    return work


def compare(
    what: str, operations: Iterable[str], sides: Callable[[str], tuple[Timed, Timed]]
) -> dict[str, float]:
    """The ratio of each operation that is beyond LIMIT; says how many there were."""
    ratios: dict[str, float] = {}
    for name in operations:
        measured = grown(*sides(name))
        ratios[name] = measured.ratio
        if measured.ratio > LIMIT:
            sys.stdout.write(
                f"{what}: {name}: {measured.ours * 1e6:.1f} us is {measured.ratio:.2f} x the "
                f"{measured.base * 1e6:.1f} us at few\n"
            )
    worst = max(ratios, key=lambda name: ratios[name])
    many = f"{len(ratios)} operations"
    sys.stdout.write(f"{what:36} {many}, at most {ratios[worst]:.2f} of {LIMIT:g}: {worst}\n")
    return {name: round(found, 2) for name, found in ratios.items() if found > LIMIT}
