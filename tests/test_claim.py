"""Two managers of one bridge, each with its own memory, would both give the first address."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import Lab
from netalloc import InUseError, NetworkManager
from netalloc.host.bridge_lock import claim

pytestmark = pytest.mark.root

OTHER = """
import sys
from netalloc import NetworkManager
manager = NetworkManager("br0", backend=sys.argv[1])
manager.allocate(owner="theirs").allocate_port(80)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_second_manager_in_memory_is_refused(nft_lab: Lab, backend: str) -> None:
    with NetworkManager("br0", backend=backend) as manager:
        web = manager.allocate(owner="web")
        web.allocate_port(80, host_port=8080)
        with pytest.raises(InUseError, match=f"br0 is managed by process {os.getpid()}"):
            NetworkManager("br0", backend=backend)
        nft_lab.serve(nft_lab.containers[0], "tcp", 80)
        assert nft_lab.ask(nft_lab.outside, "tcp", (nft_lab.address, 8080))[0] == "c0"
    with NetworkManager("br0", backend=backend):
        pass


def test_the_claim_ends_with_its_process(nft_lab: Lab) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, "nftables"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(InUseError, match=f"process {other.pid}") as refused:
            NetworkManager("br0")
        assert refused.value.holder == f"process {other.pid}"
        other.kill()
    with NetworkManager("br0") as manager:
        assert manager.interfaces() == []


def test_with_a_store_they_share_it(nft_lab: Lab, tmp_path: Path) -> None:
    store = tmp_path / "host.db"
    with NetworkManager("br0", store=store) as one, NetworkManager("br0", store=store) as two:
        assert one.allocate().ip != two.allocate().ip


def test_another_bridge_and_another_host_are_free(nft_lab: Lab) -> None:
    with claim("br0"), claim("br1"):
        with Lab("nft"), claim("br0"):
            pass
        with pytest.raises(InUseError):
            claim("br0")


def test_who_is_nobody_can_keep_no_bridge(nft_lab: Lab) -> None:
    squatting = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
        "s.bind('\\0netalloc/br0'); s.listen(); print('ready', flush=True); sys.stdin.read()"
    )
    nobody = subprocess.Popen(
        [sys.executable, "-c", squatting],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with nobody:
        assert nobody.stdout is not None
        assert nobody.stdout.readline() == "ready\n"
        with claim("br0"):
            pass
        nobody.kill()
