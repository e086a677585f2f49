#!/bin/sh
# The sender's C under ThreadSanitizer, then under ASan and UBSan with forks. Usage: tests/fuzz/run_tsan.sh [SEEDS [JOBS]]
set -eu
seeds=${1:-3}
jobs=${2:-2000}
source=$(dirname "$0")/bodysend_threads.c
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
flags="-std=gnu11 -O1 -g -UNDEBUG -Wall -Wextra -Wno-unused-parameter -fno-omit-frame-pointer -pthread"
flags="$flags -DBS_DEFAULT_STACK -DBS_IDLE_MS=1"
cc=${CC:-gcc}
$cc $flags -fsanitize=thread "$source" -o "$out/tsan"
$cc $flags -fsanitize=address,undefined -fno-sanitize-recover=all "$source" -o "$out/asan"
fixed=""
if setarch -R true 2>/dev/null; then fixed="setarch -R"; fi # TSan wants its address range free
for seed in $(seq "$seeds"); do
    TSAN_OPTIONS=halt_on_error=1 $fixed "$out/tsan" "$seed" "$jobs"
    "$out/asan" "$seed" "$jobs" fork
done
