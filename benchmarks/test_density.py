"""The density demo runs, and tells what it promises to tell."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from lab import require_kernel

pytestmark = pytest.mark.root


def test_the_table_is_complete() -> None:
    require_kernel()
    script = Path(__file__).with_name("density.py")
    shown = subprocess.run(
        [sys.executable, str(script), "--count", "100"], capture_output=True, text=True, check=True
    ).stdout
    header, *rows = shown.strip().partition("\n\n")[0].splitlines()
    assert header.split() == [
        "nftables",
        "iptables-nft",
        "iptables-legacy",
        "process",
        "per",
        "rule",
    ]
    told = {row[:30].strip(): row[30:].split("  ") for row in rows}
    assert len(told) == 9
    for step, cells in told.items():
        figures = [cell.strip() for cell in cells if cell.strip()]
        assert len(figures) == 4, step
        assert "-" not in figures[:3], step
    assert [cell for cell in told["100 interfaces, a port each"] if cell.strip().startswith("~")]
