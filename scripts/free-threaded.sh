#!/usr/bin/env bash
# Runs the tests of threads on a Python without the GIL, which is built where it is missing.
# PYTHON_NAME=python3.14t is that of the next version.
set -euo pipefail
cd "$(dirname "$0")/.."

NAME=${PYTHON_NAME:-python3.13t}
PYTHON=$(scripts/build-python.sh "$NAME")
VENV=.venv-${NAME#python}
export PYTHON VENV
# Not all of the `test` extra: hypothesis has no wheels for a Python without the GIL.
scripts/setup.sh
"$VENV/bin/python" -m pip install --quiet pytest
"$VENV/bin/python" - <<'CODE'
import sys

import netalloc._alloc

assert not sys._is_gil_enabled(), "netalloc's core has switched the GIL on"
print(f"  {sys.version.splitlines()[0]}: the GIL is off")
CODE
"$VENV/bin/python" -m pytest -q -p no:cacheprovider tests/test_threads.py tests/test_close.py \
    tests/test_store_file.py tests/test_store_shared.py tests/test_view.py \
    tests/test_manager_threads.py "$@"
