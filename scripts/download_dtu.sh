#!/bin/sh
# Fetch the 15 DTU scans of the IDR paper into data/DTU. Options as in `nsr data download dtu --help`.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
nsr="$root/.venv/bin/nsr"
[ -x "$nsr" ] || nsr=$(command -v nsr) || {
    echo "download_dtu.sh: nsr is not installed; run 'make setup' in $root first" >&2
    exit 6
}
exec "$nsr" data download dtu "$@"
