"""No call costs more because the kernel holds much: mappings, addresses, networks, flows."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import growth_hosts as hosts
from gate import Timed
from growth import compare, settle
from growth_hosts import FLOWLESS, OPERATIONS, FlowTable, Host, among_flows
from lab import require_kernel

pytestmark = pytest.mark.root

FLOWS = 50_000

CASES: dict[str, Callable[[Host], None]] = {
    "1,000 mappings": hosts.mapped(1_000),
    "50,000 mappings": hosts.mapped(50_000),
    "3,000 blocks": hosts.blocks,
    "1,000 host addresses": hosts.host_addresses,
    "100 networks": hosts.networks,
}
# What is in a file is for the gate without a kernel; here only whether the two together grow.
PAIRS = [
    *(("memory", name) for name in CASES),
    ("file", "50,000 mappings"),
    ("file", "100 networks"),
]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """The range of ports meets that of outgoing connections, which would be said each time."""
    caplog.set_level("CRITICAL", "netalloc")


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[Callable[[str], Host]]:
    """A factory of hosts whose managers are in memory or in a file."""
    require_kernel()
    with ExitStack() as opened:
        paths = iter([tmp_path / "first.db", tmp_path / "second.db"])
        yield lambda kind: opened.enter_context(Host(next(paths) if kind == "file" else None))


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_growth(make_host: Callable[[str], Host], kind: str, name: str) -> None:
    full, few = make_host(kind), make_host(kind)
    full.do(CASES[name], full)
    for host in (full, few):
        host.do(hosts.taken, host)
    settle()
    assert not compare(
        f"kernel, {kind}, {name}",
        OPERATIONS,
        lambda one: (full.timed(OPERATIONS[one]), few.timed(OPERATIONS[one])),
    )


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_growth_of_flows(make_host: Callable[[str], Host], kind: str) -> None:
    """On one host, in turns: the kernel keeps the flows of all namespaces in one table."""
    host = make_host(kind)
    flows = host.do(FlowTable, FLOWS)
    host.do(flows.empty)
    host.place.opened.callback(flows.close)

    def sides(name: str) -> tuple[Timed, Timed]:
        full, few = (among_flows(host, name, to, flows) for to in (flows.fill, flows.empty))
        return full, few

    assert not compare(f"kernel, {kind}, {FLOWS:,} flows", FLOWLESS, sides)
