#!/usr/bin/env bash
# Makes what a make target needs and the machine lacks, and says each thing it does:
# Debian packages, a virtual environment in the checkout, the build. Does nothing, and
# says nothing, when all of it is there already.
#
#   scripts/setup.sh [--kernel] [--cni] [--chromium] EXTRA...
#
# --kernel asks for the firewall tools too, --cni for CNI's plugins, --chromium for that browser; EXTRA is one of
# the optional dependencies of pyproject.toml. PYTHON chooses the interpreter, VENV another place than .venv.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
LOG=build/setup.log
mkdir -p build
PATH=$PATH:/usr/sbin:/sbin # where iptables is

say() { printf '  %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# Runs a command with its output in the log, of which the end is shown when it fails.
quietly() {
    printf '\n$ %s\n' "$*" >>"$LOG"
    "$@" >>"$LOG" 2>&1 </dev/null && return
    tail -n 30 "$LOG" >&2
    die "failed: $* (all of its output is in $LOG)"
}

# Python 3.10 or newer, able to make an environment and to build an extension.
can_build() {
    "$1" - <<'PY' >/dev/null 2>&1
import ensurepip, os, sys, sysconfig, venv
ok = sys.version_info >= (3, 10)
sys.exit(not (ok and os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))))
PY
}

find_python() {
    local name
    for name in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3.10 python3}; do
        if can_build "$name"; then
            "$name" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

# The Debian packages that make the machine's own Python able to build.
python_packages() {
    local version
    if version=$(/usr/bin/python3 -c 'import sys
print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 10))' 2>/dev/null); then
        echo "python$version-venv python$version-dev"
    elif [ -e /usr/bin/python3 ]; then
        die "Python 3.10 or newer is needed, with venv and headers: set PYTHON to one"
    else
        echo "python3 python3-venv python3-dev"
    fi
}

missing_packages() {
    command -v cc >/dev/null || echo gcc libc6-dev
    [ -n "$python" ] || python_packages
    [ "$cni" = no ] || [ -x /usr/lib/cni/bridge ] || echo containernetworking-plugins
    [ "$chromium" = no ] || command -v chromium >/dev/null || echo chromium
    [ "$kernel" = yes ] || return 0
    command -v iptables >/dev/null || echo iptables
    command -v nft >/dev/null || echo nftables
    command -v conntrack >/dev/null || echo conntrack
    command -v ip >/dev/null || echo iproute2
    command -v unshare >/dev/null || echo util-linux
    command -v mount >/dev/null || echo mount
    command -v curl >/dev/null || echo curl
}

install_packages() {
    local install="apt-get install -y --no-install-recommends $*"
    if ! command -v apt-get >/dev/null; then
        die "missing, and there is no apt-get here to install them: $*"
    elif [ "$(id -u)" != 0 ]; then
        die "missing: $*; run: sudo apt-get update && sudo $install"
    fi
    say "installing Debian packages: $*"
    quietly apt-get update
    quietly env DEBIAN_FRONTEND=noninteractive $install
}

# What the installed package was made from: contents, so that a file removed counts too.
sources() {
    find CMakeLists.txt pyproject.toml src -type f ! -name '*.pyc' -print0 |
        sort -z | xargs -0 sha256sum | sha256sum
}

kernel=no
cni=no
chromium=no
while [[ "${1:-}" == --* ]]; do
    case $1 in
        --kernel) kernel=yes ;;
        --cni) cni=yes ;;
        --chromium) chromium=yes ;;
        *) die "no such option: $1" ;;
    esac
    shift
done

python=
if [ -x "$VENV/bin/python" ] && can_build "$VENV/bin/python" && [ -z "${PYTHON:-}" ]; then
    python=$VENV/bin/python
else
    python=$(find_python) || true
    if [ -z "$python" ] && [ -n "${PYTHON:-}" ]; then
        die "PYTHON=$PYTHON is not a Python 3.10 or newer with venv and headers"
    fi
fi

packages=$(missing_packages)
# shellcheck disable=SC2086  # words are wanted
[ -z "$packages" ] || install_packages $packages
[ -n "$python" ] || python=$(find_python) || die "still no Python that can build; see $LOG"

version=$("$python" -c 'import platform; print(platform.python_version())')
if [ "$(cat "$VENV/made" 2>/dev/null)" != "$version" ]; then
    say "making $VENV with Python $version"
    rm -rf "$VENV"
    quietly "$python" -m venv "$VENV"
    quietly "$VENV/bin/python" -m pip install scikit-build-core cython cmake ninja
    echo "$version" >"$VENV/made"
fi

now=$(sources)
stale=no
for made in netalloc "$@"; do
    [ "$(cat "$VENV/made-$made" 2>/dev/null)" = "$now" ] || stale=yes
done
if [ $stale = yes ]; then
    extras=$(IFS=,; echo "$*")
    say "building netalloc into $VENV"
    quietly "$VENV/bin/python" -m pip install --no-build-isolation ".${extras:+[$extras]}"
    for made in netalloc "$@"; do echo "$now" >"$VENV/made-$made"; done
fi
