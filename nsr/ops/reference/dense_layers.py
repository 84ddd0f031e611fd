"""The dense layers of a network, which its ops take in one tensor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def split_layers(inputs: int, parameters: Tensor, widths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of each layer, views of the parameters."""
    sizes, all_inputs = [], [inputs, *widths[:-1]]
    for n_in, n_out in zip(all_inputs, widths, strict=True):
        sizes += [n_out * n_in, n_out]
    parts = parameters.split(sizes)
    weights = (part.view(n_out, n_in) for part, n_out, n_in in zip(parts[::2], widths, all_inputs, strict=True))
    return list(zip(weights, parts[1::2], strict=True))
