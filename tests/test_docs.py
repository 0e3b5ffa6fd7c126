"""Every example of the documentation runs: README, docs/ and the docstrings, the core's too.

An example that names the bridge br0 runs on a private host that has one, the others here.
"""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import netalloc
from lab import Lab

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOST = re.compile(r"\bbr0\b")
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(netalloc.__path__, "netalloc.")
    if not module.name.endswith("__main__")
)


def blocks(page: Path) -> list[tuple[int, str]]:
    """The Python of a page, each block with the number of its first line."""
    text = page.read_text()
    return [(text.count("\n", 0, m.start(1)), m[1]) for m in FENCED.finditer(text)]


def sessions() -> list[doctest.DocTest]:
    """The interactive examples of all pages: one session a page, and one for its br0."""
    parser = doctest.DocTestParser()
    found = []
    for page in PAGES:
        for host in (False, True):
            examples = []
            for line, block in blocks(page):
                if ">>>" in block and bool(HOST.search(block)) == host:
                    part = parser.get_doctest(block, {}, page.name, str(page), line)
                    for example in part.examples:
                        example.lineno += line
                        examples.append(example)
            name = page.name + (" on a host" if host else "")
            source = page.read_text()
            test = doctest.DocTest(examples, {"__name__": "__main__"}, name, str(page), 0, source)
            found += [test] * bool(examples)
    return found


def docstrings(module: ModuleType) -> list[doctest.DocTest]:
    """The examples of a module's docstrings; --doctest-modules would pass the core by."""
    found = doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
    return [test for test in found if test.examples and ".__test__." not in test.name]


def all_examples() -> list[doctest.DocTest]:
    modules = ["netalloc", *MODULES]
    return sessions() + [test for m in modules for test in docstrings(importlib.import_module(m))]


def needs_host(test: doctest.DocTest) -> bool:
    return any(HOST.search(example.source) for example in test.examples)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples may write files."""
    monkeypatch.chdir(tmp_path)


def run(test: doctest.DocTest) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=report.append)
    assert not report, "".join(report)


ALL = all_examples()


@pytest.mark.parametrize("test", [t for t in ALL if not needs_host(t)], ids=lambda t: t.name)
def test_example(test: doctest.DocTest) -> None:
    run(test)


@pytest.mark.root
@pytest.mark.parametrize("test", [t for t in ALL if needs_host(t)], ids=lambda t: t.name)
def test_example_on_a_host(test: doctest.DocTest) -> None:
    with Lab():
        run(test)


def test_the_core_has_examples_that_are_found() -> None:
    names = {test.name for test in ALL}
    assert {"netalloc._alloc.Bitmap", "netalloc._alloc.IPAllocator"} <= names


def test_a_false_example_is_seen() -> None:
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "false", None, 0)
    with pytest.raises(AssertionError, match="Expected"):
        run(test)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", page.read_text())) <= targets


def test_what_was_once_wrong_has_tests_that_exist() -> None:
    rows = re.findall(r"(?m)^\| (\d+) \| .* \| ([^|]+) \|$", (ROOT / "tests/README.md").read_text())
    assert [int(number) for number, _ in rows] == list(range(1, 44))
    for number, names in rows:
        file = ""
        for name in re.findall(r"[\w.]+(?:::\w+)?", names.partition("(")[0]):
            file, test = name.split("::") if "::" in name else (file, name)
            source = (ROOT / "tests" / file).read_text()
            assert f"def {test}(" in source, f"{number}: {name}"


def test_the_first_block_of_the_readme_runs_without_root(tmp_path: Path) -> None:
    """As pasted: it prints what its comments say."""
    block = blocks(ROOT / "README.md")[0][1]
    assert ">>>" not in block
    expected = re.findall(r"(?m)^print\(.*\) +# (.*)$", block)
    done = subprocess.run(
        # In a user namespace of its own it has no privilege over the host's network.
        ["unshare", "--user", sys.executable, "-c", block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-len(expected) :] == expected


def test_the_density_guide_runs_as_written(tmp_path: Path) -> None:
    """Its files are the ones a reader would copy; their gate is open."""
    for name, text in re.findall(
        r"^`([a-z_]+\.py)`:\n\n```python\n(.*?)^```$",
        (ROOT / "docs" / "gate-your-density.md").read_text(),
        re.MULTILINE | re.DOTALL,
    ):
        (tmp_path / name).write_text(text)
    assert list(tmp_path.glob("test_*.py"))
    # A run of its own, and no worker of this one: pytest-benchmark measures nothing in those.
    environment = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=."],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
