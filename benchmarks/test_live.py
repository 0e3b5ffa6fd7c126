"""What a manager of routed containers may cost: beside bare messages, and with many live."""

import os
import resource
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from socket import AF_INET, AF_INET6, create_server, socket
from statistics import median
from time import perf_counter
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from attach_lab import GROUP, AttachLab, endpoint
from bare_netlink import Bare, Plain
from lab import Lab, require_kernel
from netalloc import NetworkManager
from netalloc.host import namespaces
from netalloc.host.attached import detach
from netalloc.host.endpoints import Endpoint
from test_attach import Places, in_thread, timed

pytestmark = pytest.mark.root

NETWORK = ("10.200.0.1/16", "fd00:c8::1/64")
BATCH = 100
TURNS = 4  # of each side: 1,200 containers of all
LIMIT = 1.6  # times our own bare messages: 1.3 of them the engine, the rest two changes of a file
LIMIT_PLAIN = 1.3  # times the messages without what spares the kernel work
LIVE = 10_000
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
            ours, bare, plain = _turns(places, manager)
            with capsys.disabled():
                print(
                    f"\nattach_many: {ours * 1e3:.3f} ms, bare {bare * 1e3:.3f} ms "
                    f"({ours / bare:.2f}), plain {plain * 1e3:.3f} ms ({ours / plain:.2f})"
                )
            if ours <= LIMIT * bare and ours <= LIMIT_PLAIN * plain:
                return
    pytest.fail(
        f"{ours / bare:.2f} and {ours / plain:.2f} times, {LIMIT} and {LIMIT_PLAIN} at most"
    )


def _turns(places: Places, manager: NetworkManager) -> tuple[float, float, float]:
    """The quieter half of each side."""
    times: list[list[float]] = [[], [], []]
    held: list[Endpoint] = []
    for turn in range(TURNS):
        for at in (0, 1, 2) if turn % 2 else (2, 1, 0):
            spaces = places.make(BATCH)
            if at == 0:
                pairs = list(zip(manager.allocate_many(BATCH, owner="us"), spaces, strict=True))
                work = partial(manager.attach_many, pairs)
            else:
                first = 20_000 + len(held)
                batch = [endpoint(first + i, fd) for i, fd in enumerate(spaces)]
                held += batch
                work = partial(in_thread, (Bare, Plain)[at - 1](batch, GROUP).run)
            times[at].append(timed(work) / BATCH)
    assert detach(held) == len(held)
    assert manager.release("us") == TURNS * BATCH
    places.close()
    ours, bare, plain = [sum(sorted(one)[: TURNS // 2]) / (TURNS // 2) for one in times]
    return ours, bare, plain


def test_ten_thousand(places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Attached in less than 40 s, gone in less than 15, under 400 KiB each; the last 1,000 not
    half as slow again as the second.
    """
    with AttachLab(), routed(tmp_path / "host.db") as manager:
        times = []
        before = _available()
        for _ in range(LIVE // 100):
            spaces = places.make(100)
            pairs = list(zip(manager.allocate_many(100, owner="us"), spaces, strict=True))
            times.append(timed(partial(manager.attach_many, pairs)))
        each = (before - _available()) / LIVE
        gone = timed(partial(manager.release, "us"))
        at_first, at_last = (median(times[i : i + 10]) / 100 for i in (5, len(times) - 10))
        with capsys.disabled():
            print(
                f"\n10,000 attached in {sum(times):.1f} s (of the 1,000th {at_first * 1e3:.2f} ms, "
                f"of the last {at_last * 1e3:.2f}), gone in {gone:.1f} s, {each:.0f} KiB each"
            )
        assert sum(times) < 40 and gone < 15 and each < 400
        assert at_last <= 1.5 * at_first


def _available() -> float:
    """KiB of memory that nothing holds."""
    text = Path("/proc/meminfo").read_text()
    return float(text.split("MemAvailable:")[1].split()[0])


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
        pairs = list(zip(many, spaces, strict=True))
        for start in range(0, live, 500):  # each takes a descriptor more while it is attached
            manager.attach_many(pairs[start : start + 500])
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


def test_a_connection_with_many_live(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two hosts side by side, asked in turns, over either family."""
    require_kernel()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with (
        hosted(tmp_path / "one.db", 1) as (one_thread, one),
        hosted(tmp_path / "many.db", LIVE) as (many_thread, many),
    ):
        for family, name in ((AF_INET, "v4"), (AF_INET6, "v6")):
            for _ in range(3):
                alone, among = [], []
                for _ in range(ROUNDS):
                    alone.append(one_thread.submit(one.connect, family).result())
                    among.append(many_thread.submit(many.connect, family).result())
                quiet = [median(sorted(side)[: ROUNDS // 2]) for side in (alone, among)]
                ratio = quiet[1] / quiet[0]
                with capsys.disabled():
                    print(f"\nconnect {name}: {quiet[0] * 1e6:.1f} us, of {LIVE} {ratio:.2f} times")
                if ratio <= LIMIT_LIVE:
                    break
            else:
                pytest.fail(f"{name}: {ratio:.2f} times one alone, {LIMIT_LIVE} at most")
