"""The arrows of docs/architecture.md: imports run downward, siblings never meet."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "netalloc"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

# From the bottom up. Units of one row are siblings: none imports another.
ROWS = (
    {"errors", "light"},
    {"_alloc", "locks", "closing", "forks", "logs"},
    {"values"},
    {"address_values"},
    {"family", "model", "port_bitmaps"},
    {"host", "held_ports"},
    {"portmap", "store", "ports"},
    {"ipam"},
    {"fleet"},
    {"manager"},
    {"aio"},
    {"pictures"},
    {"operations"},
    {"docker"},
    {"cli", "server", "cni"},
)
ROW = {unit: number for number, row in enumerate(ROWS) for unit in row}

# Modules of other people that have one home here.
HOME = {"pyroute2": "host/links.py", "subprocess": "host/command.py"}

# Packages that users import from; the other ones' __init__ is empty.
FACES = {".", "aio"}

# What stands side by side within a package: none of these imports another of its row.
SIBLINGS = {
    "portmap": ({"iptables", "nftables", "null"},),
    "store": ({"sqlite", "memory"},),
}
# And what stands above: a backend never asks for the mapper that it serves.
ABOVE = {
    "portmap": {"mapper", "kernel", "choice"},
}


def unit_of(module: Path) -> str:
    """The layer that a file belongs to: its package, or its own name at the top."""
    return module.parts[0].removesuffix(".py")


def imports(source: str) -> Iterator[str]:
    """Full names of all that a module imports, wherever in it: `a.b` for `from a import b`.

    What only a type checker reads, under `if TYPE_CHECKING`, is not imported.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(module: Path, source: str) -> list[str]:
    """What a module at this place may not import, each with the reason."""
    wrong = []
    unit = unit_of(module)
    for name in imports(source):
        top, _, rest = name.partition(".")
        home = HOME.get(top)
        if home is not None and module.as_posix() != home:
            wrong.append(f"{name}: only {home} may import {top}")
        if top != "netalloc" or unit == "__init__":
            continue
        target = rest.split(".")[0]
        if target not in ROW:
            wrong.append(f"{name}: {target!r} is in no row")
        elif target == unit:
            wrong += wrong_sibling(module, rest.split("."))
        elif ROW[target] >= ROW[unit]:
            wrong.append(f"{name}: {unit} is not above {target}")
    return wrong


def wrong_sibling(module: Path, target: list[str]) -> list[str]:
    """Within a package: implementations stand side by side on the protocol below them."""
    package = target[0]
    if len(target) < 2 or len(module.parts) < 2:
        return []
    mine, yours = module.parts[1].removesuffix(".py"), target[1]
    for row in SIBLINGS.get(package, ()):
        if mine in row and yours in row and mine != yours:
            return [f"{'.'.join(target)}: {mine} and {yours} are siblings"]
        if mine in row and yours in ABOVE.get(package, ()):
            return [f"{'.'.join(target)}: {mine} is below {yours}"]
    return []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_arrows_that_are_drawn_are_the_tested_ones(page: str) -> None:
    drawn = re.search(r"(?m)^    cli +server +cni\n(?:    .*\n)+", (ROOT / page).read_text())
    assert drawn is not None
    assert [set(line.split()) for line in drawn[0].splitlines()] == list(reversed(ROWS))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_run_downward(module: Path) -> None:
    if module.name != "__init__.py" or len(module.parts) > 1:
        assert unit_of(module) in ROW, f"{module} has no row: give it one here and in the docs"
    assert wrong_imports(module, (PACKAGE / module).read_text()) == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_other_init_files_are_empty(module: Path) -> None:
    if module.name == "__init__.py" and module.parent.as_posix() not in FACES:
        assert (PACKAGE / module).read_text() == "", f"{module} has to stay empty"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_file_holds_one_idea(module: Path) -> None:
    lines = len((PACKAGE / module).read_text().splitlines())
    assert lines <= 400, f"{module} has {lines} lines: past 400 it holds two ideas"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errors.py", "from netalloc._alloc import Bitmap"),
        ("model.py", "import netalloc.manager.manager"),
        ("ports.py", "from netalloc.portmap.backend import Backend"),
        ("store/sqlite/store.py", "def f():\n    from netalloc.ports import PortAllocator"),
        ("portmap/iptables/backend.py", "import subprocess"),
        ("portmap/iptables/backend.py", "from netalloc.portmap.nftables.backend import Nftables"),
        ("portmap/null.py", "from netalloc.portmap.iptables import backend"),
        ("portmap/null.py", "from netalloc.portmap.mapper import PortMapper"),
        ("store/memory.py", "from netalloc.store.sqlite import table"),
        ("ipam/addresses.py", "from netalloc.manager.manager import NetworkManager"),
        ("store/records.py", "from netalloc.ipam.addresses import Addresses"),
        ("portmap/nftables/batch.py", "from netalloc.portmap.iptables.rules import Rules"),
        ("manager.py", "from netalloc import PortMapper"),
        ("cli/main.py", "from netalloc.server import main"),
        ("host/links.py", "from netalloc.nowhere import x"),
    ],
)
def test_a_wrong_arrow_is_seen(module: str, source: str) -> None:
    assert wrong_imports(Path(module), source) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("__init__.py", "from netalloc.manager.manager import NetworkManager"),
        ("manager.py", "from netalloc.host import links"),
        (
            "interface.py",
            "if TYPE_CHECKING:\n    from netalloc.manager.manager import NetworkManager",
        ),
        ("portmap/iptables.py", "from netalloc.host.command import run"),
        ("portmap/nftables.py", "from netalloc.portmap.backend import Backend"),
        ("host/links.py", "import pyroute2"),
    ],
)
def test_a_right_arrow_passes(module: str, source: str) -> None:
    assert wrong_imports(Path(module), source) == []
