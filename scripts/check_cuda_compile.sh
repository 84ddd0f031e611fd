#!/usr/bin/env bash
# Compiles every csrc/cuda/*.cu for sm_90 with warnings as errors: no GPU and no CUDA build of torch needed.
# Fails too where a kernel spills registers (scripts/cuda_resources.py), or docs/cuda_resources.md is of other kernels.
#   --all               compiles for sm_80 and PTX as well, as a release is built
#   --resources [FILE]  also prints what every kernel takes, or writes it to FILE
#   --adapters          also checks csrc/torch/*.cpp as the CUDA build compiles them (syntax only; half a minute)
# Ends with 0 when all compile or nvcc is absent, and with 1 otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."

archs=(-gencode=arch=compute_90,code=sm_90)
what="sm_90" print_resources="" resources="" adapters=""
while (($#)); do
  case $1 in
    --all)
      archs+=(-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=compute_90)
      what="sm_80 sm_90 PTX"
      ;;
    --resources)
      print_resources=1
      if [[ "${2:-}" == [^-]* ]]; then resources=$2 && shift; fi
      ;;
    --adapters) adapters=1 ;;
    *)
      echo "check_cuda_compile: $1: expected --all, --resources [FILE] or --adapters" >&2
      exit 2
      ;;
  esac
  shift
done

nvcc=${NVCC:-$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")}
if [[ ! -x "$nvcc" ]]; then
  echo "check_cuda_compile: skipped, no nvcc (set CUDA_HOME or NVCC to check the CUDA sources)"
  exit 0
fi

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failed=0

report() {  # report NAME LOG COMMAND...: runs it, one line on success, its output on failure
  local name=$1 log=$2 start=$SECONDS
  shift 2
  if "$@" >"$log" 2>&1; then
    echo "check_cuda_compile: ok      $name ($((SECONDS - start)) s)"
  else
    echo "check_cuda_compile: FAILED  $name"
    cat "$log"
    : >"$out/failed"
  fi
}

mkdir "$out/resources"
for source in $(ls -S csrc/cuda/*.cu); do  # the largest first, so that none of the others waits for it at the end
  while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n || true; done
  name=$(basename "$source")
  report "$source $what" "$out/resources/$name.log" "$nvcc" -std=c++20 -O3 -Werror all-warnings -Xcompiler -Wall,-Wextra \
    -Xptxas -v "${archs[@]}" -c "$source" -o "$out/$name.o" &
done
wait
if [[ ! -e "$out/failed" ]]; then
  version=$("$nvcc" --version | sed -n 's/.*release.*V/nvcc /p')
  if [[ -n "$print_resources" ]]; then
    python3 scripts/cuda_resources.py "$out/resources" "$version" ${resources:+"$resources"} || failed=1
  else
    python3 scripts/cuda_resources.py "$out/resources" "$version" "$out/table.md" || failed=1
    if grep -q "Compiler: $version," docs/cuda_resources.md && ! cmp -s "$out/table.md" docs/cuda_resources.md; then
      echo "check_cuda_compile: FAILED  docs/cuda_resources.md is of other kernels; --resources docs/cuda_resources.md writes it"
      diff docs/cuda_resources.md "$out/table.md" || failed=1
    fi
  fi
fi

if [[ -n "$adapters" ]]; then
  python=${PYTHON:-.venv/bin/python}
  cuda_include=${CUDA_HOME:-/usr/local/cuda}/include
  mkdir -p "$out/c10/cuda/impl"
  : >"$out/c10/cuda/impl/cuda_cmake_macros.h" # a generated header that CPU builds of torch leave out
  includes=(-isystem "$out" -isystem "$cuda_include")
  for path in $("$python" -c 'import torch.utils.cpp_extension as e; print(*e.include_paths())'); do
    includes+=(-isystem "$path")
  done
  for source in csrc/torch/*.cpp; do
    report "$source with CUDA" "$out/log" "${CXX:-g++}" -std=c++20 -fsyntax-only -Wall -Werror -DNSR_WITH_CUDA \
      '-DNSR_CUDA_VERSION="check"' "${includes[@]}" "$source"
  done
fi

[[ ! -e "$out/failed" ]] || failed=1
exit $failed
