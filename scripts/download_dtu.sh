#!/bin/sh
# Fetch the 15 DTU scans of the IDR paper into data/DTU. Options as in `nsr data download dtu --help`.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -x "$root/.venv/bin/nsr" ]; then
    exec "$root/.venv/bin/nsr" data download dtu "$@"
fi
exec nsr data download dtu "$@"
