#!/bin/sh
# ASan and UBSan over the parser: first the C headers under the fuzzer, then the extension under its own tests.
#   run_sanitize.sh [SECONDS, 60 unless told]      PYTHON: an interpreter with the test extras (python3 unless told)
set -eu
seconds=${1:-60}
python=$(command -v "${PYTHON:-python3}")
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

flags="-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -Wall -Wextra -Werror"
${CC:-cc} $flags -o "$work/scan_fuzz" "$root/tests/fuzz/scan_fuzz.c"
"$work/scan_fuzz" "$((seconds / 2))" "$(date +%s)" "$root/tests/fuzz/corpus.txt"

# A copy, so that the sanitized extension does not stay behind in the tree.
cp -r "$root/engine" "$root/tests" "$root/docs" "$root/setup.py" "$root/pyproject.toml" "$work"
find "$work/engine" -name '*.so' -delete
cd "$work"
ENGINE_SANITIZE=1 "$python" setup.py -q build_ext --inplace
# Leaks: CPython keeps what it interns. Memory that tests measure is ASan's here, and compilers must not be preloaded.
export LD_PRELOAD="$(${CC:-cc} -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc
"$python" -m pytest -q -p no:cacheprovider tests/test_fastparse.py \
    -k "not leave_nothing_behind and not allocated and not second_interpreter"
"$python" tests/fuzz/differential.py --seconds "$((seconds - seconds / 2))"
