"""How the core is written: files of one idea, and a tree that the compiler keeps free of Python."""

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[1] / "src"
PARTS = sorted((SOURCES / "_alloc").glob("*.pxi"))


def test_every_part_is_included_once() -> None:
    included = re.findall(r'^include "_alloc/(.*)"$', (SOURCES / "_alloc.pyx").read_text(), re.M)
    assert sorted(included) == [part.name for part in PARTS]


@pytest.mark.parametrize("source", [SOURCES / "_alloc.pyx", *PARTS], ids=lambda path: path.name)
def test_the_core_stays_readable(source: Path) -> None:
    lines = len(source.read_text().splitlines())
    assert lines <= 750, f"{source.name} has {lines} lines: past 750 it holds two ideas"


@pytest.mark.parametrize("part", ["tree", "tree_bulk"])
def test_the_tree_knows_no_python(part: str) -> None:
    """`noexcept nogil` on each function makes the compiler refuse a Python call in it."""
    text = (SOURCES / "_alloc" / f"{part}.pxi").read_text()
    endings = re.findall(r"^cdef [^\n(=]*?\w+\([^()]*\)([^:]*):$", text, re.MULTILINE)
    assert len(endings) == len(re.findall(r"^cdef (?!extern|enum|struct|union).*\(", text, re.M))
    assert set(endings) == {" noexcept nogil"}
