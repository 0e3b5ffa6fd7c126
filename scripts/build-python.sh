#!/usr/bin/env bash
# Builds a Python that Debian does not ship, or not with this one: from Debian's source package,
# which Debian 12 and 13 can both fetch, into the user's cache. Says what it installs; apt's own
# configuration stays as it is. Prints where it is; does nothing more when it is there.
#
#   scripts/build-python.sh python3.13t      without the GIL
#   scripts/build-python.sh python3.14       from Debian sid; python3.14t likewise
set -euo pipefail
cd "$(dirname "$0")/.."

NAME=${1:?which Python?}
SOURCE=${NAME%t}
SUITE=sid
[ "$SOURCE" = python3.13 ] && SUITE=trixie
OPTIONS=()
[ "$NAME" = "$SOURCE" ] || OPTIONS+=(--disable-gil)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/netalloc
PREFIX=$CACHE/$NAME
LOG=$PWD/build/$NAME.log
mkdir -p build "$CACHE"

say() { printf '  %s\n' "$*" >&2; }
die() { printf 'build-python: %s\n' "$*" >&2; exit 1; }
quietly() {
    printf '\n$ %s\n' "$*" >>"$LOG"
    "$@" >>"$LOG" 2>&1 </dev/null && return
    tail -n 30 "$LOG" >&2
    die "failed: $* (all of its output is in $LOG)"
}

# What a Python needs to be built with ssl, zlib, ctypes and sqlite3.
build_packages() {
    command -v cc >/dev/null || echo gcc libc6-dev
    command -v make >/dev/null || echo make
    command -v xz >/dev/null || echo xz-utils
    command -v pkg-config >/dev/null || echo pkg-config
    local package
    for package in libssl-dev zlib1g-dev libffi-dev libsqlite3-dev; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || echo "$package"
    done
}

# apt-get with sources, lists and caches of its own.
private_apt() {
    local place=$1
    shift
    apt-get -o Dir::Etc::SourceList="$place/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$place/lists" -o Dir::Cache="$place/cache" \
        -o APT::Sandbox::User="$(id -un)" "$@"
}

build_python() {
    local packages place
    command -v apt-get >/dev/null || die "no $PREFIX, and no apt-get here to fetch $SOURCE with"
    packages=$(build_packages | xargs)
    if [ -n "$packages" ]; then
        [ "$(id -u)" = 0 ] || die "missing: $packages; run: sudo apt-get install $packages"
        say "installing Debian packages: $packages"
        quietly apt-get update
        # shellcheck disable=SC2086  # words are wanted
        quietly env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages
    fi
    place=$(mktemp -d "$CACHE/build.XXXXXX")
    # shellcheck disable=SC2064  # this very place
    trap "rm -rf '$place'" EXIT
    mkdir -p "$place/lists/partial" "$place/cache/archives/partial" "$place/source"
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
        "http://deb.debian.org/debian $SUITE main" >"$place/sources.list"
    say "fetching the source of $SOURCE from Debian $SUITE"
    quietly private_apt "$place" update
    (cd "$place" && quietly private_apt "$place" source --download-only "$SOURCE")
    quietly tar -xf "$place/${SOURCE}"_*.orig.tar.xz -C "$place/source" --strip-components=1
    say "building it into $PREFIX, some minutes: ./configure ${OPTIONS[*]}"
    rm -rf "$PREFIX"
    (
        cd "$place/source"
        quietly ./configure "${OPTIONS[@]}" --prefix="$PREFIX"
        quietly make -j"$(nproc)"
        quietly make install
    )
    rm -rf "$place"
    trap - EXIT
    "$PREFIX/bin/python3" -c 'import ctypes, sqlite3, ssl, zlib' || die "$PREFIX lacks modules"
    touch "$PREFIX/whole"
}

[ -e "$PREFIX/whole" ] || build_python
echo "$PREFIX/bin/python3"
