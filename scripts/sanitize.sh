#!/usr/bin/env bash
# The core's tests with the core built under AddressSanitizer and UndefinedBehaviorSanitizer.
# What either finds ends the run. Leaks are tests/test_memory.py's: the interpreter's own
# allocations at exit would drown them here.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${VENV:-.venv}/bin/python
place=build/sanitize
flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1"
compiler=${CC:-gcc}

# An environment of its own: the usual one has the usual core.
[ -x "$place/bin/python" ] || "$python" -m venv "$place"
"$place/bin/python" -m pip install --quiet pytest pytest-benchmark hypothesis pyroute2
rm -rf build/sanitize-cmake # flags are taken at the first configuration alone
echo "sanitize: building the core with $compiler $flags"
CC=$compiler CFLAGS=$flags LDFLAGS=-fsanitize=address,undefined \
    "$place/bin/python" -m pip install --quiet --force-reinstall --no-deps --no-cache-dir \
    -Cbuild-dir=build/sanitize-cmake -Ccmake.build-type=Debug .
core=$("$place/bin/python" -c 'import importlib.util, pathlib
print(*pathlib.Path(importlib.util.find_spec("netalloc").origin).parent.glob("_alloc.*.so"))')
ldd "$core" | grep -q libasan || { echo "sanitize: $core is not sanitized" >&2; exit 1; }

# The interpreter is not sanitized, so the runtime has to be there before it.
LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)" \
ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
UBSAN_OPTIONS=print_stacktrace=1 \
PYTHONMALLOC=malloc \
    "$place/bin/python" -m pytest -q -p no:cacheprovider \
    tests/test_bitmap.py tests/test_subnet.py tests/test_ip_allocator.py tests/test_cooldown.py \
    tests/test_conversions.py tests/test_threads.py tests/test_no_memory.py \
    tests/test_core_hostile.py tests/test_core_reentry.py tests/test_few.py tests/test_record_table.py "$@"
