#!/bin/sh
# The NEON scanner against the plain one: cross-compiled, run under qemu-user.
#   run_neon.sh [SECONDS, 30 unless told]
# Debian: gcc-aarch64-linux-gnu qemu-user. On an aarch64 machine it runs natively.
set -eu
seconds=${1:-30}
folder=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ "$(uname -m)" = aarch64 ]; then
    cc=${CC:-cc} run=
else
    cc=aarch64-linux-gnu-gcc run=qemu-aarch64
    for tool in $cc $run; do
        command -v "$tool" > /dev/null || { echo "run_neon.sh: $tool is not installed" >&2; exit 77; }
    done
fi
$cc -O2 -static -fno-tree-vectorize -Wall -Wextra -Werror -o "$work/scan_fuzz" "$folder/scan_fuzz.c"
$run "$work/scan_fuzz" "$seconds" "$(date +%s)" "$folder/corpus.txt" | tee "$work/said"
grep -q neon "$work/said"
