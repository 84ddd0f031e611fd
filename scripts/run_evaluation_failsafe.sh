#!/bin/sh
# Mesh and figures of the newest finished run of an encoder experiment. Options as in `nsr failsafe eval --help`:
#   scripts/run_evaluation_failsafe.sh --exp NFFB --scan_id 65 [--trainable_cameras] [--eval_rendering]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
nsr="$root/.venv/bin/nsr"
[ -x "$nsr" ] || nsr=$(command -v nsr) || {
    echo "run_evaluation_failsafe.sh: nsr is not installed; run 'make setup' in $root first" >&2
    exit 6
}
exec "$nsr" failsafe eval "$@"
