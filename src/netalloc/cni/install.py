"""Putting the plugins where libcni looks, and an example beside its configurations."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import netalloc.errors
from netalloc.errors import NetallocError

BINARIES = Path("/opt/cni/bin")
PLUGINS = {"netalloc-ipam": "netalloc.cni.ipam"}
EXAMPLE = {
    "cniVersion": "1.0.0",
    "name": "netalloc",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni-netalloc",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {
                "type": "netalloc-ipam",
                "ranges": [[{"subnet": "10.87.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


def install(folder: Path = BINARIES, example: Path | None = None) -> list[str]:
    """Write the plugins into a folder, and an example of a list; what was written.

    Each is a program of this Python, written aside and put in its place: a runtime that calls it
    meanwhile gets the old one or the new one.
    """
    done = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, module in PLUGINS.items():
            _put(folder / name, _program(module), 0o755)
            done.append(f"wrote {folder / name}")
        if example is not None:
            example.mkdir(parents=True, exist_ok=True)
            path = example / "10-netalloc.conflist.example"
            _put(path, json.dumps(EXAMPLE, indent=2) + "\n", 0o644)
            done.append(f"wrote {path}: without .example libcni reads it")
    except OSError as error:
        raise NetallocError(f"{error.filename}: {error.strerror}") from error
    return done


def _program(module: str) -> str:
    python = sys.executable
    if len(python) > 120 or " " in python:  # what the kernel takes of a first line
        raise NetallocError(f"the path of this Python cannot be in a first line: {python}")
    # Without `site`, which takes as long to load as all else: the one folder that is needed.
    packages = os.path.dirname(os.path.dirname(netalloc.__file__))  # noqa: PTH120
    return (
        f"#!{python} -IS\nimport sys\n\nsys.path.append({packages!r})\n"
        f"from {module} import main\n\nmain()\n"
    )


def _put(path: Path, text: str, mode: int) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.chmod(mode)
    aside.replace(path)
