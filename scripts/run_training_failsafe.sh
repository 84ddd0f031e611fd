#!/bin/sh
# Train one of the encoder experiments unattended. Options as in `nsr failsafe train --help`:
#   scripts/run_training_failsafe.sh --exp NFFB --scan_id 65 [--trainable_cameras] [--is_continue] [--data_dir D] [--budget S]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
nsr="$root/.venv/bin/nsr"
[ -x "$nsr" ] || nsr=$(command -v nsr) || {
    echo "run_training_failsafe.sh: nsr is not installed; run 'make setup' in $root first" >&2
    exit 6
}
exec "$nsr" failsafe train "$@"
