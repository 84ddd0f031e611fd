"""Positional encoding (Mildenhall et al., NeRF, 2020, eq. 4), in IDR's ordering: x, sin(2^0 x), cos(2^0 x), sin(2^1 x), ..."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nsr.encoders.base import Encoder, EncoderConfig, VectorJacobian


@dataclass(frozen=True)
class PositionalConfig(EncoderConfig):
    """frequencies: number of octaves; 0 passes x through unchanged."""

    frequencies: int = 6

    def __post_init__(self) -> None:
        if not 0 <= self.frequencies <= 24:
            raise ValueError(f"frequencies must be in 0..24, got {self.frequencies}")

    def build(self) -> PositionalEncoder:
        return PositionalEncoder(self.frequencies)


class PositionalEncoder(Encoder):
    """x [N, 3] -> [N, 3 + 6 frequencies]: x, then sin and cos of 2^k x for k < frequencies (no factor pi, as in IDR)."""

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.output_dim = 3 + 6 * frequencies
        # Octaves beside each other: scaled x is [N, K, 3], sin and cos are stacked to [N, K, 2, 3] and flattened.
        self.register_buffer("octaves", 2.0 ** torch.arange(frequencies), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_with_vjp(x)[0]

    def forward_with_vjp(self, x: Tensor) -> tuple[Tensor, VectorJacobian]:
        octaves = self.octaves.to(x.dtype)[:, None]  # [K, 1]
        phase = x[:, None, :] * octaves  # [N, K, 3]
        sin, cos = torch.sin(phase), torch.cos(phase)
        value = torch.cat([x, torch.stack([sin, cos], dim=2).flatten(1)], dim=1)

        def vjp(grad_value: Tensor) -> Tensor:
            grad_sin, grad_cos = grad_value[:, 3:].unflatten(1, (self.frequencies, 2, 3)).unbind(dim=2)
            return grad_value[:, :3] + ((grad_sin * cos - grad_cos * sin) * octaves).sum(dim=1)

        return value, vjp
