"""Ratios of interleaved calls, and the check that one is within its promise."""

import gc
import sys
import time
from collections.abc import Callable


def timed(step: Callable[[], object]) -> float:
    """Seconds of one step, the collector paused."""
    gc.collect()
    gc.disable()
    try:
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin
    finally:
        gc.enable()


def ratio(ours: Callable[[], object], base: Callable[[], object], rounds: int = 7) -> float:
    """Ours over base, each at its best of interleaved rounds."""
    pairs = [(timed(ours), timed(base)) for _ in range(rounds)]
    return min(one for one, _ in pairs) / min(two for _, two in pairs)


def check(what: str, measure: Callable[[], float], limit: float) -> None:
    """Fail when a ratio is beyond its limit twice in a row."""
    found = measure()
    if found > limit:
        found = min(found, measure())
    sys.stdout.write(f"{what:60} {found:6.2f}  of {limit:g}\n")
    assert found <= limit, f"{what}: {found:.2f} x; the promise is {limit:g} x"
