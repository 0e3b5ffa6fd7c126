#!/usr/bin/env bash
# Builds the source distribution, installs it into an empty environment, and takes an
# address there from outside of the checkout: what is published is whole.
set -euo pipefail
cd "$(dirname "$0")/.."

PY=${VENV:-.venv}/bin/python
log=$PWD/build/sdist.log
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT
mkdir -p build

quietly() { "$@" >>"$log" 2>&1 </dev/null || { tail -n 30 "$log" >&2; exit 1; }; }

: >"$log"
quietly "$PY" -m build --sdist --outdir "$away"
quietly "$PY" -m venv "$away/empty"
quietly "$away/empty/bin/python" -m pip install "$away"/netalloc-*.tar.gz
cd "$away"
empty/bin/python - <<'CODE'
import pathlib

import netalloc

inside = pathlib.Path(netalloc.__file__).parent
assert inside.is_relative_to(pathlib.Path.cwd()), inside
files = {path.name for path in inside.iterdir()}
assert {"py.typed", "_alloc.pyi"} <= files, sorted(files)
address = netalloc.IPAllocator("10.88.0.1/16").acquire()
print(f"  sdist: built, installed alone, {netalloc.IPAllocator.__module__} gave {address}")
CODE
