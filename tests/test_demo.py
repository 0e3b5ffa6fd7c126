"""The demo says what happened, and its exit status is true."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[1] / "demo" / "demo.py"

pytestmark = pytest.mark.root


def start(script: Path = DEMO, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", script],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_every_container_answers_and_nothing_is_left(backend: str) -> None:
    demo = start(DEMO_BACKEND=backend, DEMO_CONTAINERS="2")
    output, _ = demo.communicate()
    assert demo.returncode == 0, output
    assert f"port mappings by {backend}" in output
    assert output.count("200 I am") == 4  # over IPv4 and IPv6
    assert "2 of 2 answered over IPv4 and IPv6" in output
    assert "Released:  0 addresses, 0 rules and map elements, 0 namespaces, 0 links" in output


def test_a_port_that_leads_nowhere_fails_it(tmp_path: Path) -> None:
    script = tmp_path / "demo_without_ports.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(DEMO.parent)!r}); import demo\n"
        "demo.NetworkInterface.allocate_port = lambda interface, port: 49153\n"
        "demo.main()\n"
    )
    demo = start(script, DEMO_CONTAINERS="1")
    output, _ = demo.communicate()
    assert demo.returncode == 1
    assert "0 of 1 answered" in output


def test_a_backend_that_touches_no_kernel_is_refused() -> None:
    demo = start(DEMO_BACKEND="null", DEMO_CONTAINERS="1")
    output, _ = demo.communicate()
    assert demo.returncode == 1
    assert "backend null, which touches no kernel" in output


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"DEMO_BACKEND": "ipfw"}, "backend 'ipfw' is none of"),
        ({"DEMO_CONTAINERS": "0"}, "DEMO_CONTAINERS=0 is not 1 to 1023"),
        ({"DEMO_CONTAINERS": "many"}, "DEMO_CONTAINERS=many is not 1 to 1023"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, str], said: str) -> None:
    demo = start(**settings)
    output, _ = demo.communicate()
    assert demo.returncode == 1
    assert output.startswith("demo: ")
    assert said in output
    assert len(output.splitlines()) == 1


def test_ctrl_c_takes_the_whole_host_away() -> None:
    demo = start(DEMO_CONTAINERS="1000")
    assert demo.stdout is not None
    assert any("200 I am" in line for line in demo.stdout), "it ended before it answered"
    os.killpg(demo.pid, signal.SIGINT)
    output, _ = demo.communicate()  # ends when the last process of the host has gone
    assert demo.returncode == 1
    assert output.endswith("demo: stopped, and the private host is gone with all that was on it\n")
    assert "Traceback" not in output
