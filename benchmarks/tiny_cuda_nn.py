"""What tiny-cuda-nn (Mueller 2021) has of the ops in benchmarks/kernel_cases.py, at the same sizes, in the precision of each.

Its grid has the same number of levels, features and entries; its resolutions differ by rounding, and all its levels are active.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from kernel_cases import Inputs


def calls(inputs: Inputs) -> dict[str, Callable[[], object]]:
    """By the name of the case; empty where tiny-cuda-nn is not installed."""
    try:
        import tinycudann
    except (ImportError, OSError) as error:  # the latter for a GPU that it was not built for
        print(f"(no column for tiny-cuda-nn: {error})")
        return {}
    found = {}
    for name, dtype in {"hash_grid": torch.float32, "hash_grid of halves": torch.half}.items():
        found |= {f"{name}{kind}": call for kind, call in _grid_calls(tinycudann, inputs, dtype).items()}
    return found


def _grid_calls(tinycudann, inputs: Inputs, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    spec = inputs.sdf.spec
    growth = (spec.max_resolution / spec.base_resolution) ** (1 / max(spec.levels - 1, 1))
    grid = tinycudann.Encoding(
        3,
        {
            "otype": "HashGrid",
            "n_levels": spec.levels,
            "n_features_per_level": spec.features,
            "log2_hashmap_size": spec.log2_table_size,
            "base_resolution": spec.base_resolution,
            "per_level_scale": growth,
        },
        dtype=dtype,
    )
    x = (inputs.points / 2 + 0.5).requires_grad_()  # it has the unit cube
    h = grid(x)
    ones = torch.ones_like(h)
    (slope,) = torch.autograd.grad(h, x, ones, create_graph=True)

    def forward() -> object:
        with torch.no_grad():
            return grid(x)

    return {
        "": forward,
        " backward": lambda: torch.autograd.grad(h, grid.params, ones, retain_graph=True),
        " second order": lambda: torch.autograd.grad(slope, grid.params, torch.ones_like(slope), retain_graph=True),
    }
