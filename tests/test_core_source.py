"""How the core is written: files of one idea, a tree free of Python, a stub that explains it."""

import ast
import doctest
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from netalloc import _alloc

SOURCES = Path(__file__).resolve().parents[1] / "src"
PARTS = sorted((SOURCES / "_alloc").glob("*.pxi"))


def test_every_part_is_included_once() -> None:
    included = re.findall(r'^include "_alloc/(.*)"$', (SOURCES / "_alloc.pyx").read_text(), re.M)
    assert sorted(included) == [part.name for part in PARTS]


@pytest.mark.parametrize("source", [SOURCES / "_alloc.pyx", *PARTS], ids=lambda path: path.name)
def test_the_core_stays_readable(source: Path) -> None:
    lines = len(source.read_text().splitlines())
    assert lines <= 750, f"{source.name} has {lines} lines: past 750 it holds two ideas"


@pytest.mark.parametrize("part", ["tree", "tree_few", "tree_bulk", "cooldown_queue"])
def test_the_tree_knows_no_python(part: str) -> None:
    """`noexcept nogil` on each function makes the compiler refuse a Python call in it."""
    text = (SOURCES / "_alloc" / f"{part}.pxi").read_text()
    endings = re.findall(r"^cdef [^\n(=]*?\w+\([^()]*\)([^:]*):$", text, re.MULTILINE)
    assert len(endings) == len(re.findall(r"^cdef (?!extern|enum|struct|union).*\(", text, re.M))
    assert set(endings) == {" noexcept nogil"}


Documented = ast.Module | ast.ClassDef | ast.FunctionDef


def public(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Documented]]:
    """What the stub defines under a name that is not private, by its full name."""
    for item in node.body:
        if isinstance(item, ast.ClassDef | ast.FunctionDef) and not item.name.startswith("_"):
            yield prefix + item.name, item
            if isinstance(item, ast.ClassDef):
                yield from public(item, f"{prefix}{item.name}.")


STUB = dict(public(ast.parse((SOURCES / "netalloc" / "_alloc.pyi").read_text())))


@pytest.mark.parametrize("name", STUB)
def test_the_stub_explains(name: str) -> None:
    """One sentence, an empty line, the rest; and help() has a docstring too."""
    lines = (ast.get_docstring(STUB[name]) or "").splitlines()
    assert lines, f"{name} has no docstring in the stub"
    assert lines[0].endswith(".") and not any(lines[1:2]), f"{name}: {lines[:2]}"
    found: object = _alloc
    for part in name.split("."):
        found = getattr(found, part)
    assert found.__doc__, f"{name} has no docstring at run time"


def examples() -> list[doctest.DocTest]:
    parser, names = doctest.DocTestParser(), vars(_alloc)
    tests = [
        parser.get_doctest(ast.get_docstring(node) or "", names, name, "_alloc.pyi", node.lineno)
        for name, node in STUB.items()
    ]
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name)
def test_an_example_of_the_stub(test: doctest.DocTest) -> None:
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    assert not report, "".join(report)
