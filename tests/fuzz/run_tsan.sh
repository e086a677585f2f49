#!/bin/sh
# The sender's C under ThreadSanitizer, then under ASan and UBSan with forks.
#   run_tsan.sh [SEEDS, 3 unless told [JOBS, 2000 unless told]]
set -eu
seeds=${1:-3}
jobs=${2:-2000}
source=$(dirname "$0")/bodysend_threads.c
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cc=${CC:-cc}
flags="-std=gnu11 -O1 -g -UNDEBUG -fno-omit-frame-pointer -pthread -Wall -Wextra -Werror -Wno-unused-parameter"
flags="$flags -DBS_DEFAULT_STACK -DBS_IDLE_MS=1"
$cc $flags -fsanitize=thread "$source" -o "$work/tsan"
$cc $flags -fsanitize=address,undefined -fno-sanitize-recover=all "$source" -o "$work/asan"
fixed=
if setarch -R true 2> /dev/null; then fixed="setarch -R"; fi # TSan wants its address range free
for seed in $(seq "$seeds"); do
    TSAN_OPTIONS=halt_on_error=1 $fixed "$work/tsan" "$seed" "$jobs"
    "$work/asan" "$seed" "$jobs" fork
done
