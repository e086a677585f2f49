#!/bin/sh
# ASan and UBSan over the parser: first the C headers under the fuzzer, then the extension under its own tests, then small puts,
# which feed it without Python in between.
#   run_sanitize.sh [SECONDS of fuzzing, 60 unless told]      PYTHON: an interpreter with the test extras (python3 unless told)
set -eu
seconds=${1:-60}
python=$(command -v "${PYTHON:-python3}")
cc=${CC:-cc}
command -v "$cc" > /dev/null || { echo "run_sanitize.sh: $cc is not installed" >&2; exit 77; }
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

flags="-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -Wall -Wextra -Werror"
$cc $flags -o "$work/scan_fuzz" "$root/tests/fuzz/scan_fuzz.c"
"$work/scan_fuzz" "$seconds" "$(date +%s)" "$root/tests/fuzz/corpus.txt"

# A copy, so that the sanitized extension does not stay behind in the tree.
(cd "$root" && cp -r engine tests docs bench setup.py pyproject.toml README.md LICENSE "$work")
find "$work/engine" -name '*.so' -delete
cd "$work"
ENGINE_SANITIZE=1 "$python" setup.py -q build_ext --inplace
# Leaks: CPython keeps what it interns. Memory that tests measure is ASan's here, and compilers must not be preloaded.
export LD_PRELOAD="$($cc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc
"$python" -m pytest -q -p no:cacheprovider tests/test_fastparse.py \
    -k "not leave_nothing_behind and not allocated and not second_interpreter and not benchmark"
"$python" -m pytest -q -p no:cacheprovider tests/test_smallput.py -k uvloop
"$python" tests/fuzz/differential.py --seconds "$((seconds / 2))"
