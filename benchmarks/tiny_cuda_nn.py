"""What tiny-cuda-nn (Mueller 2021) has of the ops in benchmarks/kernel_cases.py, at the same sizes, in the precision of each.

Its grid has the same number of levels, features and entries; its resolutions differ by rounding, and all its levels are active.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from kernel_inputs import Inputs


def calls(inputs: Inputs) -> dict[str, Callable[[], object]]:
    """By the name of the case; empty where tiny-cuda-nn is not installed."""
    try:
        import tinycudann
    except (ImportError, OSError) as error:  # the latter for a GPU that it was not built for
        print(f"(no column for tiny-cuda-nn: {error})")
        return {}
    if len(inputs.points) % 256:
        print(f"(no column for tiny-cuda-nn: it takes multiples of 256 points, not {len(inputs.points)})")
        return {}
    found = {}
    for of, dtype in {"": torch.float32, " of halves": torch.half}.items():
        found |= {f"{name}{of}": call for name, call in _grid_calls(tinycudann, inputs, dtype).items()}
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
    # By its native functions: the module of its Python binding converts the whole table in each call.
    native, params = grid.native_tcnn_module, grid.params.detach().to(dtype)
    x = inputs.points / 2 + 0.5  # it has the unit cube
    to_params, to_x = params.clone().requires_grad_(), x.clone().requires_grad_()  # what it differentiates by
    kept, h = native.fwd(x, to_params)
    kept_for_second, _ = native.fwd(to_x, to_params)
    of_h, of_slope = torch.ones_like(h), torch.ones_like(x)
    return {
        "hash_grid": torch.no_grad()(lambda: native.fwd(x, params)),
        "hash_grid backward": torch.no_grad()(lambda: native.bwd(kept, x, to_params, h, of_h)),
        "hash_grid second order": torch.no_grad()(
            lambda: native.bwd_bwd_input(kept_for_second, to_x, to_params, of_slope, of_h)
        ),
    }
