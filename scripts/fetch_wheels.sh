#!/usr/bin/env bash
# Fetches what a GPU machine without a network lacks beside torch, as wheels for its Python, into a folder for gpu_check.sh.
#
#   scripts/fetch_wheels.sh [FOLDER] [PYTHON_VERSION]      (default .whl and 3.12)
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-.whl}
version=${2:-3.12}
platforms=()
for name in manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_24_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64; do
  platforms+=(--platform "$name")
done
# pyhocon comes as source alone, which is pure Python: it is built here.
python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder" pyhocon
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
  "${platforms[@]}" --dest "$folder" \
  trimesh embreex libigl beartype jaxtyping wadler-lindig pyparsing
ls "$folder"
