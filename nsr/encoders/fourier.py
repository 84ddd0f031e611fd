"""Random Fourier features (Tancik et al. 2020, eq. 5 with Gaussian frequencies)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nsr.encoders.base import Encoder, EncoderConfig, VectorJacobian


@dataclass(frozen=True)
class FourierConfig(EncoderConfig):
    """channels: number of random frequencies; sigma: their standard deviation in cycles per unit; seed: of their draw."""

    channels: int = 64
    sigma: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, got {self.sigma}")

    def build(self) -> FourierEncoder:
        return FourierEncoder(self.channels, self.sigma, self.seed)


class FourierEncoder(Encoder):
    """x [N, 3] -> [N, 3 + 2 channels]: x, sin(2 pi B x), cos(2 pi B x), with B [channels, 3] ~ N(0, sigma^2), fixed."""

    def __init__(self, channels: int, sigma: float, seed: int) -> None:
        super().__init__()
        self.channels = channels
        self.output_dim = 3 + 2 * channels
        frequencies = torch.randn(channels, 3, generator=torch.Generator().manual_seed(seed)) * sigma
        # A buffer that is saved: the frequencies belong to the trained function.
        self.register_buffer("angular_frequencies", 2.0 * math.pi * frequencies)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_with_vjp(x)[0]

    def forward_with_vjp(self, x: Tensor) -> tuple[Tensor, VectorJacobian]:
        frequencies = self.angular_frequencies.to(x.dtype)
        phase = x @ frequencies.T  # [N, channels]
        sin, cos = torch.sin(phase), torch.cos(phase)

        def vjp(grad_value: Tensor) -> Tensor:
            grad_x, grad_sin, grad_cos = grad_value.split([3, self.channels, self.channels], dim=1)
            return grad_x + (grad_sin * cos - grad_cos * sin) @ frequencies

        return torch.cat([x, sin, cos], dim=1), vjp
