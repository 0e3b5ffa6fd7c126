#!/usr/bin/env bash
# Runs the tests that need no root on every Python from 3.10 that can be found, each with
# an environment of its own (.venv-3.10 and so on). PYTHONS names others; what
# scripts/build-python.sh has made is found too.
set -euo pipefail
cd "$(dirname "$0")/.."

found() {
    local minor python
    for minor in 10 11 12 13 14; do
        for python in "python3.$minor" "$HOME"/.pyenv/versions/3."$minor".*/bin/python \
            "${XDG_CACHE_HOME:-$HOME/.cache}/netalloc/python3.$minor/bin/python3"; do
            if "$python" -c '' 2>/dev/null; then
                echo "$python"
                break
            fi
        done
    done
}

failed=
for python in ${PYTHONS:-$(found)}; do
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "Python $version"
    export PYTHON=$python VENV=.venv-$version
    scripts/setup.sh test
    "$VENV/bin/python" -m pytest -q -m "not root and not soak" ${ARGS:-} || failed+=" $version"
done
[ -z "$failed" ] || { echo "failed on Python$failed" >&2; exit 1; }
