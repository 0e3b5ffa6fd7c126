"""Builds a Cython source as CMake builds the core, so that ratios compare like with like."""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

FLAGS = ["-O3", "-DNDEBUG", "-fPIC", "-shared"]


def compiled(source: Path, name: str, into: Path) -> ModuleType:
    """The module `name` made from a .pyx file, built in the directory `into`."""
    c_file = into / f"{source.stem}.c"
    library = into / f"{source.stem}{sysconfig.get_config_var('EXT_SUFFIX')}"
    cython = [sys.executable, "-m", "cython", "-3", "--module-name", name]
    subprocess.run([*cython, str(source), "-o", str(c_file)], check=True)
    include = sysconfig.get_paths()["include"]
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    subprocess.run([*compiler, *FLAGS, f"-I{include}", str(c_file), "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
