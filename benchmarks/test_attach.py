"""What attaching may cost beside the bare messages, and beside how many there are already."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from attach_lab import GROUP, AttachLab, endpoint
from bare_netlink import Bare, BareTaps, Plain
from lab import require_kernel
from netalloc.host import namespaces
from netalloc.host.attached import detach
from netalloc.host.attaching import attach_bridged, attach_routed
from netalloc.host.endpoints import Endpoint
from netalloc.host.taps import attach_taps

pytestmark = pytest.mark.root

TURNS = 10  # of each side
ROUTED, BRIDGED, TAPS = "routed", "bridged", "taps"
LIMITS = {ROUTED: 1.3, BRIDGED: 1.3, TAPS: 1.5}


class Places:
    """Namespaces without a name, held by a descriptor: what is measured is not their mounts."""

    def __init__(self) -> None:
        self._held: list[int] = []

    def make(self, count: int) -> list[int]:
        found: list[int] = []

        def work() -> None:
            for _ in range(count):
                namespaces.unshare(namespaces.CLONE_NEWNET)
                found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

        in_thread(work)
        self._held += found
        return found

    def close(self) -> None:
        for fd in self._held:
            os.close(fd)
        self._held.clear()


@pytest.fixture
def places() -> Iterator[Places]:
    require_kernel()
    found = Places()
    yield found
    found.close()


def in_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def timed(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


@pytest.mark.parametrize("way", [ROUTED, BRIDGED, TAPS])
def test_beside_the_bare_messages(places: Places, way: str, capsys: pytest.CaptureFixture) -> None:
    """Batch by batch in turns, on a host that fills up to 1,000 by all sides.

    `bare` are our own messages, `plain` those without what spares the kernel work.
    """
    with AttachLab(bridge=way == BRIDGED) as lab:
        bridge = lab.holder if way == BRIDGED else None
        for _ in range(3):
            ours, bare, plain = _turns(places, way, bridge)
            with capsys.disabled():
                print(
                    f"\nattach {way}: {ours * 1e3:.3f} ms, bare {bare * 1e3:.3f} ms "
                    f"({ours / bare:.2f}), plain {plain * 1e3:.3f} ms ({ours / plain:.2f})"
                )
            if ours <= LIMITS[way] * min(bare, plain):
                return
        pytest.fail(f"{ours / min(bare, plain):.2f} times the messages, {LIMITS[way]} at most")


def _turns(places: Places, way: str, bridge: int | None) -> tuple[float, float, float]:
    """The quieter half of each side."""
    sides = (
        lambda many: partial(_attach, way, many, bridge),
        lambda many: _bare(way, Bare, many, bridge),
        lambda many: _bare(way, Plain, many, bridge),
    )
    times: list[list[float]] = [[] for _ in sides]
    held: list[Endpoint] = []
    for turn in range(TURNS):
        for at in (0, 1, 2) if turn % 2 else (2, 1, 0):
            count = 1_000 // TURNS // len(sides)
            fds = [-1] * count if way == TAPS else places.make(count)
            batch = [endpoint(len(held) + i, fd) for i, fd in enumerate(fds)]
            held += batch
            times[at].append(timed(sides[at](batch)) / count)
    assert detach(held, bridge) == len(held)
    places.close()
    ours, bare, plain = [sum(sorted(one)[: TURNS // 2]) / (TURNS // 2) for one in times]
    return ours, bare, plain


def _bare(
    way: str, kind: type[Bare], many: Sequence[Endpoint], bridge: int | None
) -> Callable[[], None]:
    made = BareTaps(many, GROUP) if way == TAPS else kind(many, GROUP, bridge)
    return partial(in_thread, made.run)


def _attach(way: str, many: Sequence[Endpoint], bridge: int | None) -> None:
    if way == BRIDGED:
        assert bridge is not None
        attach_bridged(many, bridge, group=GROUP)
    elif way == TAPS:
        attach_taps(many, group=GROUP)
    else:
        attach_routed(many, GROUP)
