"""Pure PyTorch specification of every native op: same signature, same parameter layout, any order of derivative."""
