"""Two managers on one host: one truth, or one of them is refused. Never two holders.

Every pair of (memory, store A, store B) x (same process, another process, a forked child) x
(same bridge, another bridge) x (same backend, another backend), on a private host with real
rules.
"""

import itertools
import json
import os
import subprocess
import sys

import pytest

from faults import in_child
from netalloc import ClosedError, InUseError, NetworkManager, Networks
from netalloc.host.links import Links
from second_manager import BRIDGES, outcome, taken, use

pytestmark = pytest.mark.root

STORES = [
    ("memory", "memory"),
    ("memory", "A"),
    ("A", "memory"),
    ("A", "A"),
    ("A", "B"),
]
CASES = list(
    itertools.product(STORES, ("same", "other", "fork"), ("br0", "br1"), ("nftables", "iptables"))
)


def elsewhere(where, store, bridge, backend, report):
    arguments = (None if store is None else str(store), bridge, backend)
    if where == "same":
        return json.loads(json.dumps(outcome(*arguments)))
    if where == "fork":
        status = in_child(lambda: report.write_text(json.dumps(outcome(*arguments))))
        assert status == 0
        return json.loads(report.read_text())
    code = f"import json, second_manager as t; print(json.dumps(t.outcome(*{arguments!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=os.path.dirname(__file__),  # noqa: PTH120
    )
    return json.loads(done.stdout.splitlines()[-1])


def allowed(stores, where, bridge, backend):
    """Whether the second one is let in: it shares the truth and does not contradict it."""
    if stores == ("A", "A"):
        return bridge == "br1" or backend == "nftables"
    return stores == ("memory", "memory") and where == "same" and bridge == "br1"


def path(kind, tmp_path):
    return None if kind == "memory" else tmp_path / f"{kind}.db"


@pytest.fixture
def host(nft_lab):
    with Links() as links:
        links.create_bridge("br1", BRIDGES["br1"])
    return nft_lab


def test_every_pair_of_managers_has_one_truth_or_one_refusal(host, tmp_path, capsys):
    bad = []
    for i, (stores, where, bridge, backend) in enumerate(CASES):
        folder = tmp_path / str(i)
        folder.mkdir()
        first, mine = use(path(stores[0], folder), "br0", "nftables")
        try:
            got = elsewhere(where, path(stores[1], folder), bridge, backend, folder / "report")
            more = taken(first)  # the first goes on whatever became of the second
            # What the second one held in memory has ended with it, and may be given again.
            mine += more if stores[1] != "memory" else []
        finally:
            first.close()
            with Networks(folder / "A.db") as networks:
                networks.release("x")
                for name in list(networks):
                    networks.remove(name)
        case = stores, where, bridge, backend
        if isinstance(got, str):
            if allowed(*case) or not any(word in got for word in ("memory", "store", "backend")):
                bad.append((case, got))
            continue
        both = [*map(tuple, got), *mine]
        addresses, ports = zip(*both, strict=True)
        if not allowed(*case) or len({*ports}) < len(both) or len({*addresses}) < len(both):
            bad.append((case, both))
    with capsys.disabled():
        print(f"\n{len(CASES)} pairs of managers, {len(bad)} bad", end=" ")  # noqa: T201
    assert len(CASES) == 60
    assert bad == []


def test_a_manager_in_memory_ends_in_a_forked_child(host):
    with NetworkManager("br0", network=BRIDGES["br0"]) as manager:
        one = manager.allocate("parent", ports=(80,))

        def child():
            for call in (
                manager.allocate,
                manager.interfaces,
                one.release,
                one.ports,
                lambda: manager.release("parent"),
                manager.reconcile,
                manager.check,
            ):
                with pytest.raises(ClosedError, match=str(os.getppid())):
                    call()
            manager.close()

        assert in_child(child) == 0
        # The child's close has taken nothing away.
        assert manager.check() == []
        assert str(manager.allocate().ip) == "10.200.0.3"


def test_managers_in_memory_of_one_process_share_the_ports_of_the_host(host):
    with (
        NetworkManager("br0", network=BRIDGES["br0"]) as one,
        NetworkManager("br1", network=BRIDGES["br1"]) as other,
    ):
        first, second = one.allocate("a", ports=(80,)), other.allocate("b", ports=(80,))
        port = first.ports()[0].host_port
        assert port != second.ports()[0].host_port
        with pytest.raises(InUseError, match="by a"):
            second.allocate_port(81, host_port=port)
        one.close()
        # What the first one held is free again, and the other goes on.
        assert second.allocate_port(81, host_port=port)
        assert other.check() == []
        with NetworkManager("br0", network=BRIDGES["br0"]) as again:
            assert str(again.allocate().ip) == "10.200.0.2"


def test_a_store_that_is_begun_anew_has_nothing_of_the_old_one_in_the_kernel(host, tmp_path):
    file = tmp_path / "host.db"
    manager, held = use(file, "br0", "nftables")
    manager.close()
    for left in tmp_path.iterdir():
        left.unlink()
    fresh, again = use(file, "br0", "nftables")
    with fresh:
        assert again == held  # the same addresses and ports, and no old mapping in the way
        assert fresh.check() == []


@pytest.mark.parametrize("backends", [("nftables", "iptables"), ("iptables", "nftables")])
def test_another_backend_after_a_removal_finds_nothing_of_the_first(host, tmp_path, backends):
    file = tmp_path / "host.db"
    manager, _ = use(file, "br0", backends[0])
    # As a crash leaves it: the rules stay, and the store is gone.
    manager.close()
    for left in tmp_path.iterdir():
        left.unlink()
    second, _ = use(file, "br0", backends[1])
    with second:
        rules = host.rules() + host.run("nft", "list", "tables")
        assert second.check() == []
        if backends[1] == "nftables":
            assert "netalloc" not in host.rules()
        else:
            assert "table inet netalloc-br0" not in rules
