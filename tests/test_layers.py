"""The arrows of docs/architecture.md: imports run downward, siblings never meet."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "netalloc"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

# From the bottom up. Units of one row are siblings: none imports another.
ROWS = (
    {"errors"},
    {"model"},
    {"_alloc"},
    {"host"},
    {"ports", "portmap", "store"},
    {"kernel", "holding"},
    {"changes"},
    {"publishing"},
    {"leasing"},
    {"interface", "housekeeping", "verify"},
    {"repair"},
    {"manager"},
    {"cli", "server", "cni"},
)
ROW = {unit: number for number, row in enumerate(ROWS) for unit in row}

# Modules of other people that have one home here.
HOME = {"pyroute2": "host/links.py", "subprocess": "host/command.py"}

# Files of one package that stand side by side, by the beginning of their names.
SIBLINGS = {
    "portmap": {"iptables": "iptables", "chain": "iptables", "nft": "nftables", "null": "null"},
    "store": {"sqlite": "sqlite", "memory": "memory"},
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


def family(unit: str, name: str) -> str | None:
    """Which of the siblings in a package a file belongs to, if to any."""
    starts = SIBLINGS.get(unit, {})
    return next((starts[start] for start in starts if name.startswith(start)), None)


def wrong_sibling(module: Path, target: list[str]) -> list[str]:
    """Within a package: implementations stand side by side on the protocol below them."""
    mine = family(target[0], module.stem)
    yours = family(target[0], target[1]) if len(target) > 1 else None
    if mine and yours and mine != yours:
        return [f"{'.'.join(target)}: {mine} and {yours} are siblings"]
    return []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_run_downward(module: Path) -> None:
    if module.name != "__init__.py" or len(module.parts) > 1:
        assert unit_of(module) in ROW, f"{module} has no row: give it one here and in the docs"
    assert wrong_imports(module, (PACKAGE / module).read_text()) == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_other_init_files_are_empty(module: Path) -> None:
    if module.name == "__init__.py" and module.parent.as_posix() not in (".", "portmap"):
        assert (PACKAGE / module).read_text() == "", f"{module} has to stay empty"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_file_holds_one_idea(module: Path) -> None:
    lines = len((PACKAGE / module).read_text().splitlines())
    assert lines <= 400, f"{module} has {lines} lines: past 400 it holds two ideas"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model.py", "from netalloc._alloc import Bitmap"),
        ("model.py", "import netalloc.manager"),
        ("ports.py", "from netalloc.portmap.backend import Backend"),
        ("store/sqlite.py", "def f():\n    from netalloc.ports import PortAllocator"),
        ("portmap/iptables.py", "import subprocess"),
        ("portmap/iptables.py", "from netalloc.portmap.nftables import NftablesBackend"),
        ("portmap/null.py", "from netalloc.portmap import iptables"),
        ("portmap/nft_batch.py", "from netalloc.portmap.chains import Rules"),
        ("host/conntrack.py", "from pyroute2 import IPRoute"),
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
        ("__init__.py", "from netalloc.manager import NetworkManager"),
        ("manager.py", "from netalloc.host import links"),
        ("interface.py", "if TYPE_CHECKING:\n    from netalloc.manager import NetworkManager"),
        ("portmap/iptables.py", "from netalloc.host.command import run"),
        ("portmap/nftables.py", "from netalloc.portmap.backend import Backend"),
        ("host/links.py", "import pyroute2"),
    ],
)
def test_a_right_arrow_passes(module: str, source: str) -> None:
    assert wrong_imports(Path(module), source) == []
