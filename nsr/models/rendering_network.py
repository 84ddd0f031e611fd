"""The rendering network: surface point, normal, view direction and feature to colour (IDR, eq. 5 and sec. B.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nsr.config import Variant, variant
from nsr.encoders import POINT_ENCODERS, VIEW_ENCODERS, Encoder, build_encoder
from nsr.encoders.hash_grid import HashGridEncoder
from nsr.encoders.positional import PositionalConfig, PositionalEncoder
from nsr.encoders.spherical_harmonics import SphericalHarmonicsEncoder
from nsr.models.mlp import linear
from nsr.ops.color_network import ColorNetwork, color_network, has_kernel


@dataclass(frozen=True)
class RenderingNetworkConfig:
    """mode: what the colour may depend on: idr = point, normal, view direction, feature; the others leave one of them out.
    normalise_features: the network sees each point's feature with mean 0 and variance 1 over its entries, so that it can be put
    behind another surface's implicit network (nsr.training.transfer), whose features have a scale and an offset of their own.

    The defaults are IDR's: 4 x 512, raw points, view directions with 4 octaves.
    """

    mode: Literal["idr", "no_view_dir", "no_normal"] = "idr"
    dims: tuple[int, ...] = (512, 512, 512, 512)
    weight_norm: bool = True
    point_encoder: Variant = variant(POINT_ENCODERS, default=Variant("vanilla", PositionalConfig(frequencies=0)))
    view_encoder: Variant = variant(VIEW_ENCODERS, default=Variant("vanilla", PositionalConfig(frequencies=4)))
    normalise_features: bool = False

    def __post_init__(self) -> None:
        if not self.dims or min(self.dims) < 1:
            raise ValueError(f"dims must name at least one hidden layer of positive width, got {self.dims}")


class RenderingNetwork(nn.Module):
    """(points [N, 3], normals [N, 3], view directions [N, 3] from the camera, features [N, F]) -> rgb [N, 3] in [0, 1]."""

    def __init__(self, config: RenderingNetworkConfig, feature_size: int) -> None:
        super().__init__()
        self.mode = config.mode
        self.weight_norm = config.weight_norm
        self.normalise_features = config.normalise_features
        self.point_encoder = build_encoder(config.point_encoder)
        self.view_encoder = build_encoder(config.view_encoder) if config.mode != "no_view_dir" else None
        inputs = self.point_encoder.output_dim + feature_size
        inputs += 3 if config.mode != "no_normal" else 0
        inputs += self.view_encoder.output_dim if self.view_encoder is not None else 0
        widths = [inputs, *config.dims, 3]
        self.depth = len(widths) - 1
        for i in range(self.depth):
            setattr(self, f"lin{i}", linear(widths[i], widths[i + 1], config.weight_norm))

    def forward(
        self,
        points: Float[Tensor, "N 3"],
        normals: Float[Tensor, "N 3"],
        view_dirs: Float[Tensor, "N 3"],
        features: Float[Tensor, "N F"],
    ) -> Float[Tensor, "N 3"]:
        if self.normalise_features:
            # Layer normalisation (Ba et al. 2016, eq. 3) without parameters: of a point alone, whatever else is in the batch,
            # and unlike with features of unit length the entries are as large as the other inputs, however many there are.
            features = F.layer_norm(features, features.shape[1:])
        with_normal, with_view = self.mode != "no_normal", self.view_encoder is not None
        if (network := self.fused()) is not None:
            return color_network(points, normals if with_normal else None, view_dirs if with_view else None, features, *network)
        parts = [self.point_encoder(points)]
        if with_view:
            parts.append(self.view_encoder(-view_dirs))  # IDR's network is told the way to the camera; so are its old weights
        if with_normal:
            parts.append(normals)
        parts.append(features)
        value = torch.cat(parts, dim=1)
        for i in range(self.depth):
            value = self.layer(i)(value)
            if i < self.depth - 1:
                value = torch.relu(value)
        return 0.5 * (torch.tanh(value) + 1.0)

    def layer(self, i: int) -> nn.Linear:
        return getattr(self, f"lin{i}")

    def fused(self) -> ColorNetwork | None:
        """The network as nsr.ops.color_network takes it, or None where it does not and PyTorch goes layer by layer.

        It takes a hash grid and spherical harmonics, a raw view direction or none, behind which hidden layers of at most 128
        neurons follow without weight normalisation. The parameters are the network's own: valid until they are
        replaced or the encoder shows other levels.
        """
        degree = _harmonics_degree(self.view_encoder)
        if not isinstance(self.point_encoder, HashGridEncoder) or degree is None or self.weight_norm:
            return None
        layers = tuple((self.layer(i).weight, self.layer(i).bias) for i in range(self.depth))
        encoder = self.point_encoder
        network = ColorNetwork(encoder.table, encoder.spec, encoder.active_levels, layers, degree)
        return network if has_kernel(network) else None


def _harmonics_degree(view_encoder: Encoder | None) -> int | None:
    """0 without an encoder, 1 for one that passes the direction through, None for one that is not of harmonics."""
    if view_encoder is None:
        return 0
    if isinstance(view_encoder, SphericalHarmonicsEncoder):
        return view_encoder.degree
    passes_through = isinstance(view_encoder, PositionalEncoder) and view_encoder.frequencies == 0
    return 1 if passes_through else None
