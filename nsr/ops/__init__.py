"""Public functions of the kernels; the PyTorch specification of each is in nsr.ops.reference."""
