"""The dense host answers, counts what it says, and leaves nothing, also when it is stopped."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[1] / "demo" / "density.py"

pytestmark = pytest.mark.root


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", DEMO, *arguments],
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_all_answer_and_nothing_is_left() -> None:
    demo = start("-n", "60")
    output, _ = demo.communicate()
    assert demo.returncode == 0, output
    assert output.count("60 of 60") == 2  # over IPv4 and IPv6
    assert re.search(r"listen on host ports +none", output)
    assert re.search(r"between store and kernel +none", output)
    assert re.search(r"in all .* / s .* ms each", output)
    assert re.search(r"memory .* KiB each", output)
    assert "Left:  0 networks, 0 links, 0 namespaces, 0 rules and map elements" in output


@pytest.mark.parametrize("count", ["0", "16001", "many", "-5"])
def test_a_number_that_cannot_be_is_refused(count: str) -> None:
    demo = start("-n", count)
    output, _ = demo.communicate()
    assert demo.returncode == 2
    assert "is not 1 to 16,000" in output or "expected one argument" in output


def test_ctrl_c_takes_the_whole_host_away() -> None:
    demo = start("-n", "4000")
    assert demo.stdout is not None
    assert any("containers in routed mode" in line for line in demo.stdout)
    os.killpg(demo.pid, signal.SIGINT)
    output, _ = demo.communicate()  # ends when the last process of the host has gone
    assert demo.returncode == 1
    assert output.endswith("demo: stopped, and the private host is gone with all that was on it\n")
    assert "Traceback" not in output
