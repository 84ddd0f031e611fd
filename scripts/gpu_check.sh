#!/usr/bin/env bash
# Builds nsr for the GPU of this machine, tests it there, measures it, and writes gpu_check.json and gpu_check.md.
#
#   scripts/gpu_check.sh [OUT]         OUT: folder for results and logs (default runs/gpu_check)
#
# Takes under 10 minutes and needs a bare checkout, nvcc, and a Python with a CUDA build of torch 2.11 to 2.13. Environment:
#   PYTHON           that Python (default python3)
#   NSR_WHEELS       folder of wheels to install first, for a machine without a network (default .whl where it exists);
#                    scripts/fetch_wheels.sh fills it
#   NSR_CUDA_ARCHS   compute capabilities to build for (default: this GPU's)
#   NSR_CHECK_SECONDS  what the whole check may take (default 570); what does not fit is left out and said to be
# Ends with 0 when everything passed, 1 when something failed, 2 when there is nothing to check with.
set -uo pipefail
root=$(realpath "$(dirname "$0")/..")
out=$(realpath -m "${1:-$root/runs/gpu_check}")
cd "$root"

python=${PYTHON:-python3}
wheels=${NSR_WHEELS-$([[ -d .whl ]] && echo .whl)}
mkdir -p "$out"

if [[ -n "$wheels" ]]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl || exit 2
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
"$python" benchmarks/gpu_check.py --out "$out" --seconds "$((${NSR_CHECK_SECONDS:-570} - SECONDS))"
