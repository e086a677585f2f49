#!/bin/sh
# The response parser against the plain-Python one, from a new seed each time.
#   run_differential.sh [SECONDS, 60 unless told]      PYTHON: an interpreter that can import engine (python3 unless told)
set -eu
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" tests/fuzz/differential.py --seconds "${1:-60}"
