"""The iptables backend's speed: each promise as a ratio to the bare commands."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gate import Promise, Timed, measure, once

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from connects import connecting, listening
from lab import VARIANTS, Lab, require_kernel
from netalloc.model import PortMapping
from netalloc.portmap.mapper import PortMapper

pytestmark = pytest.mark.root

FULL = 16_382
BATCH = [PortMapping(49153 + i, (f"10.200.{i >> 7}.{2 + i % 128}", 80)) for i in range(FULL)]


@pytest.fixture(params=VARIANTS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    require_kernel()
    with Lab(request.param) as lab:
        yield lab


def mapper(lab: Lab, name: str = "netalloc") -> PortMapper:
    return PortMapper("iptables", bridge=lab.bridge, network=lab.network, name=name)


def check(promise: Promise) -> None:
    measured = measure(promise, sys, None)
    print(f"{promise.name:40} {measured.ratio:6.3f}  of {promise.limit:g}")
    assert measured.ratio <= promise.limit, (
        f"{promise.name}: {measured.ours * 1e3:.3f} ms is {measured.ratio:.3f} x "
        f"{measured.base * 1e3:.3f} ms; the promise is {promise.limit:g} x"
    )


def test_a_full_range_in_one_batch(lab: Lab) -> None:
    """map_many beside iptables-restore with the same lines, made beforehand."""
    with mapper(lab) as ours:
        state = ours.backend._chains[0].listed()  # type: ignore[attr-defined]
        lines = state.change(BATCH, (), "netalloc").lines()
        text = ("*nat\n" + "".join(lines) + "COMMIT\n").encode()
        command = ["iptables-restore", "-w", "5", "--noflush"]

        def emptied(turn: Timed) -> Timed:
            def work() -> float:
                seconds = turn()
                ours.reconcile([])
                return seconds

            return work

        sides = (
            emptied(once(lambda: ours.map_many(BATCH))),
            emptied(once(lambda: subprocess.run(command, input=text, check=True))),
        )
        check(Promise(f"map_many of {FULL}, {lab.variant}", 1.3, lambda *_: sides, turns=8))


def test_nothing_to_do(lab: Lab) -> None:
    """reconcile beside a bare listing of the table."""
    with mapper(lab) as ours:
        ours.map_many(BATCH)
        listing = ["iptables-save", "-t", "nat"]
        sides = (
            once(ours.reconcile),
            once(lambda: subprocess.run(listing, capture_output=True, check=True)),
        )
        check(Promise(f"reconcile of {FULL}, {lab.variant}", 4, lambda *_: sides, turns=8))


def test_a_connection_through_the_last_mapping(lab: Lab) -> None:
    """A new connection through the last of a full range, and through an only mapping."""
    container = lab.containers[0]
    with listening(lab) as server, mapper(lab, "only") as one, mapper(lab) as full:
        one.map(8080, (container.ip, 80))
        full.map_many([*BATCH[:-1], PortMapping(BATCH[-1].host_port, (container.ip, 80))])

        def turn(port: int) -> Timed:
            return lambda: connecting(lab, server, port)

        sides = turn(BATCH[-1].host_port), turn(8080)
        check(Promise(f"connect through {FULL}, {lab.variant}", 1.6, lambda *_: sides, turns=20))
