"""What it takes to start: the command line's help beside a bare interpreter."""

import subprocess
import sys
import time

RUN = [sys.executable, "-c", "from netalloc.cli.entry import main; main()"]
TURNS = 15


def took(command: list[str]) -> float:
    """Seconds of one process."""
    begun = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def test_help_costs_less_than_four_bare_starts() -> None:
    bare, help_, list_ = [], [], []
    for _ in range(TURNS):
        bare.append(took([sys.executable, "-c", "pass"]))
        help_.append(took([*RUN, "--help"]))
        list_.append(took([*RUN, "ls", "--help"]))
    ratio, of_command = min(help_) / min(bare), min(list_) / min(bare)
    sys.stdout.write(
        f"netalloc --help {ratio:.2f}, netalloc ls --help {of_command:.2f} of a start\n"
    )
    assert ratio < 4
