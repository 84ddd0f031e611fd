"""Packages that few need: how to get them, in the words that errors, `nsr doctor` and docs/gpu.md share."""

TINY_CUDA_NN = 'pip install --no-build-isolation "git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"'
