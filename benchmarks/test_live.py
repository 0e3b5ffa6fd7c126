"""What a manager of routed containers may cost: beside bare messages, and with many live."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import AF_INET, AF_INET6, create_server, socket
from statistics import median
from time import perf_counter
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from attach_lab import GROUP, AttachLab, endpoint
from bare_netlink import Bare
from lab import Lab, require_kernel
from netalloc import NetworkManager
from netalloc.host import namespaces
from netalloc.host.attached import detach
from test_attach import Places, in_thread, timed

pytestmark = pytest.mark.root

NETWORK = ("10.200.0.1/16", "fd00:c8::1/64")
BATCH = 50
TURNS = 10  # of each side: 1,000 containers
LIMIT = 1.6  # times the bare messages: 1.3 of them the engine, the rest two changes of a file
LIVE = 2_000
LIMIT_LIVE = 1.15  # times one container alone
CONNECTS, ROUNDS = 40, 25
PATIENCE = 5.0  # seconds


def routed(store: Path) -> NetworkManager:
    return NetworkManager(
        None, network=NETWORK, name="pods", mode="routed", backend="nftables", store=store,
        isolation="open",
    )  # fmt: skip


@pytest.fixture
def places() -> Iterator[Places]:
    require_kernel()
    found = Places()
    yield found
    found.close()


def test_attach_many_beside_the_bare_messages(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batch by batch in turns, on a host that fills up to 1,000 by both."""
    with AttachLab(), routed(tmp_path / "host.db") as manager:
        for _ in range(3):
            ours, bare = _turns(places, manager)
            with capsys.disabled():
                print(f"\nattach_many: {ours * 1e3:.3f} ms, bare {bare * 1e3:.3f} ms each")
            if ours <= LIMIT * bare:
                return
    pytest.fail(f"{ours / bare:.2f} times the bare messages, {LIMIT} at most")


def _turns(places: Places, manager: NetworkManager) -> tuple[float, float]:
    """The quieter half of each side."""
    ours, bare, held = [], [], []
    for turn in range(2 * TURNS):
        spaces = places.make(BATCH)
        if turn % 4 in (1, 2):
            numbers = range(20_000 + turn * BATCH, 20_000 + (turn + 1) * BATCH)
            batch = [endpoint(i, fd) for i, fd in zip(numbers, spaces, strict=True)]
            held += batch
            work = Bare(batch, GROUP).run
            bare.append(timed(lambda work=work: in_thread(work)))
        else:
            pairs = list(zip(manager.allocate_many(BATCH, owner="us"), spaces, strict=True))
            ours.append(timed(lambda pairs=pairs: manager.attach_many(pairs)))
    assert detach(held) == len(held)
    assert manager.release("us") == TURNS * BATCH
    places.close()
    quiet = [sum(sorted(side)[: TURNS // 2]) / (TURNS // 2) / BATCH for side in (ours, bare)]
    return quiet[0], quiet[1]


class Host:
    """A private host in a thread of its own, with so many live containers, of which one listens."""

    def __init__(self, store: Path, live: int) -> None:
        self._stack = ExitStack()
        lab = self._lab = self._stack.enter_context(Lab(None, ipv6=True, routed=True, containers=0))
        manager = self._stack.enter_context(routed(store))
        places = Places()
        self._stack.callback(places.close)
        many = manager.allocate_many(live, ports=(80,))
        spaces = places.make(live)
        manager.attach_many(list(zip(many, spaces, strict=True)))
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        namespaces.setns(spaces[-1], namespaces.CLONE_NEWNET)
        self.server = create_server(
            ("", 80), family=AF_INET6, dualstack_ipv6=True, backlog=2 * CONNECTS
        )
        namespaces.setns(home, namespaces.CLONE_NEWNET)
        os.close(home)
        self.server.settimeout(PATIENCE)
        self.port = many[-1].ports()[0].host_port
        self.addresses = {AF_INET: lab.address, AF_INET6: lab.address6}

    def connect(self, family: int) -> float:
        """Median seconds for a new connection from outside; the server accepts them behind."""
        with namespaces.inside("outside"):
            clients = [socket(family) for _ in range(CONNECTS)]
        seconds = []
        for client in clients:
            client.settimeout(PATIENCE)
            start = perf_counter()
            client.connect((self.addresses[family], self.port))
            seconds.append(perf_counter() - start)
        for client in clients:
            client.close()
            self.server.accept()[0].close()
        return median(seconds)

    def close(self) -> None:
        self.server.close()
        self._stack.close()


@contextmanager
def hosted(store: Path, live: int) -> Iterator[tuple[ThreadPoolExecutor, Any]]:
    with ThreadPoolExecutor(1) as thread:
        host = thread.submit(Host, store, live).result()
        try:
            yield thread, host
        finally:
            thread.submit(host.close).result()


@pytest.mark.parametrize("family", [AF_INET, AF_INET6], ids=["v4", "v6"])
def test_a_connection_with_many_live(
    tmp_path: Path, family: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two hosts side by side, asked in turns."""
    require_kernel()
    with (
        hosted(tmp_path / "one.db", 1) as (one_thread, one),
        hosted(tmp_path / "many.db", LIVE) as (many_thread, many),
    ):
        for _ in range(3):
            alone, among = [], []
            for _ in range(ROUNDS):
                alone.append(one_thread.submit(one.connect, family).result())
                among.append(many_thread.submit(many.connect, family).result())
            quiet = [median(sorted(side)[: ROUNDS // 2]) for side in (alone, among)]
            with capsys.disabled():
                print(
                    f"\nconnect: {quiet[0] * 1e6:.1f} us alone, {quiet[1] * 1e6:.1f} us of {LIVE}"
                )
            if quiet[1] <= LIMIT_LIVE * quiet[0]:
                return
    pytest.fail(f"{quiet[1] / quiet[0]:.2f} times one alone, {LIMIT_LIVE} at most")
