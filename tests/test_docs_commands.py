"""Every command of the documentation runs, and prints what the page says, on a private host.

A block of ```console has commands after `$ `, their further lines after `> `, and what they print;
`...` stands for anything. The blocks of a page are one session of one shell.
"""

import doctest
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import NamedTuple

import pytest

from command_line import RUN
from lab import Private
from netalloc.host.links import Links

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHECKER = doctest.OutputChecker()
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Command(NamedTuple):
    """What is typed, and what is to be seen."""

    line: int
    text: str
    output: str


def commands(page: Path) -> list[Command]:
    text, found = page.read_text(), []
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(1)) + 1
        typed: list[str] = []
        seen: list[str] = []
        at = first
        for number, line in enumerate(block[1].splitlines(), first):
            if line.startswith("$ "):
                if typed:
                    found.append(Command(at, "\n".join(typed), "\n".join(seen)))
                at, typed, seen = number, [line[2:]], []
            elif line.startswith(">") and not seen:
                typed.append(line[2:])
            else:
                seen.append(line)
        assert typed, f"{page.name}:{first}: a block without a command"
        found.append(Command(at, "\n".join(typed), "\n".join(seen)))
    return found


SHELLS = [page for page in PAGES if BLOCK.search(page.read_text())]


def test_the_pages_that_people_begin_with_have_commands() -> None:
    assert {"README.md", "quickstart.md", "operations.md"} <= {page.name for page in SHELLS}


@pytest.mark.root
@pytest.mark.parametrize("page", SHELLS, ids=lambda page: page.name)
def test_every_command_of_a_page_prints_what_the_page_says(page: Path, tmp_path: Path) -> None:
    wrapper = tmp_path / "bin" / "netalloc"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/sh\nexec {RUN[0]} -c '{RUN[2]}' \"$@\"\n")
    wrapper.chmod(0o755)
    mark = uuid.uuid4().hex
    # A job in the background is killed at the end, however that comes.
    script = ["trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT"]
    found = commands(page)
    for one in found:
        script += [f"(exit $status)\n{one.text}", "status=$?", f"echo {mark}"]
    with Private():
        with Links() as links:
            links.set_up("lo")
        environment = {
            "PATH": f"{wrapper.parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "NETALLOC_STORE": str(tmp_path / "host.db"),
            "TZ": "UTC",
            "LANG": "C.UTF-8",
            "COLUMNS": "200",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        done = subprocess.run(
            ["bash", "-c", "status=0\n" + "\n".join(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=120,
            check=False,
        )
    outputs = done.stdout.split(f"{mark}\n")
    assert len(outputs) == len(found) + 1, done.stdout
    wrong = [
        f"{page.name}:{one.line}: $ {one.text}\n- the page says\n{one.output}\n- it printed\n{out}"
        for one, out in zip(found, outputs, strict=False)
        if not CHECKER.check_output(one.output + "\n", out or "\n", FLAGS)
        and not (not one.output and not out)
    ]
    assert not wrong, "\n\n".join(wrong)
