"""The multi-resolution hash grid of tiny-cuda-nn (Mueller 2021), through its Python binding: NVIDIA GPUs only.

What the binding differentiates: its output by points and table; and the gradient at the points, once more, by its cotangent, by
the table and by the points. The table's gradient it takes for a constant, without a word: nothing here differentiates that.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from nsr.encoders.base import EncoderConfig, VectorJacobian
from nsr.encoders.hash_grid import GridEncoder, HashGridConfig
from nsr.utils.errors import ExtensionError, UsageError
from nsr.utils.extras import TINY_CUDA_NN

DEVICES = ("cuda",)  # where its kernels run
FEATURES = (1, 2, 4, 8)  # per level, that it was compiled for


def import_tiny_cuda_nn() -> ModuleType:
    """The package. Raises ExtensionError where it is missing or does not load."""
    try:
        import tinycudann
    except (ImportError, OSError) as error:  # the latter where there is no GPU, or one that it was not built for
        raise ExtensionError(
            f"an encoder of the configuration needs tiny-cuda-nn, which is not usable here ({error}); on a machine with an "
            f"NVIDIA GPU and nvcc run: {TINY_CUDA_NN}. The encoders without _tcnn need nothing (--exp HashGrid, NFFB, "
            "StylemodNFFB)"
        ) from error
    return tinycudann


def check_served(kind: str) -> None:
    """Raises UsageError for a kind of device that tiny-cuda-nn has no kernels for."""
    if kind not in DEVICES:
        raise UsageError(
            f"tiny-cuda-nn runs on NVIDIA GPUs only, not on {kind}; give --device cuda, or take an encoder without _tcnn "
            "(--exp HashGrid, NFFB, StylemodNFFB)"
        )


class TcnnGrid:
    """The Grid of tiny-cuda-nn. x [N, 3], N of any size, in float32; other types are converted there and back."""

    def __init__(self, config: HashGridConfig, precision: Literal["float32", "float16"]) -> None:
        self.levels, self.per_level, self.extent = config.levels, config.features, config.extent
        self.output_dim = config.levels * config.features
        tinycudann = import_tiny_cuda_nn()
        self.encoding = tinycudann.Encoding(3, _in_its_words(config), dtype=getattr(torch, precision))
        self.table_shape = (self.encoding.params.numel() // config.features, config.features)
        self.encoding.params = nn.Parameter(torch.empty(0))  # each call brings the table: not to be kept twice

    def features(self, x: Tensor, table: Tensor, active: int) -> Tensor:
        check_served(x.device.type)
        shown = active * self.per_level
        if not len(x) or not shown:
            return x.new_zeros(len(x), self.output_dim)
        inside = torch.clamp(x / (2.0 * self.extent) + 0.5, 0.0, 1.0)  # it has the unit cube, and repeats beyond
        features = functional_call(self.encoding, {"params": table.flatten()}, (inside,)).to(x.dtype)
        return F.pad(features[:, :shown], (0, self.output_dim - shown))  # the binding has no switch for levels

    def features_with_vjp(self, x: Tensor, table: Tensor, active: int) -> tuple[Tensor, VectorJacobian]:
        training = torch.is_grad_enabled()
        with torch.enable_grad():  # it knows derivatives as autograd's only
            at = x if training and x.requires_grad else x.detach().requires_grad_()
            features = self.features(at, table, active)

        def vjp(grad: Tensor) -> Tensor:
            if features.grad_fn is None:  # no point, or no level
                return torch.zeros_like(x)
            return torch.autograd.grad(features, at, grad, create_graph=training, retain_graph=True)[0]

        return features if training else features.detach(), vjp


def _in_its_words(config: HashGridConfig) -> dict:
    """The grid as tiny-cuda-nn is told, whose level l has base_resolution * per_level_scale^l - 1 cells per axis."""
    first, last = config.base_resolution + 1, config.max_resolution + 1
    return {
        "otype": "HashGrid",
        "n_levels": config.levels,
        "n_features_per_level": config.features,
        "log2_hashmap_size": config.log2_table_size,
        "base_resolution": first,
        "per_level_scale": (last / first) ** (1.0 / max(config.levels - 1, 1)),
        "interpolation": config.interpolation.capitalize(),
    }


@dataclass(frozen=True)
class TcnnOptions(EncoderConfig):
    """What turns a configuration on the native grid into the same on tiny-cuda-nn's: put before it among the bases.

    Its vertices lie half a cell beside ours, so that those of different levels do not coincide; along the cube's upper faces,
    behind the last of them, features blend into those of the opposite faces, so that extent should reach a cell of the coarsest
    level further than the surface. Resolutions between the first and the last are not rounded. features: 1, 2, 4 or 8.
    precision: what it computes in; the table is kept in float32. With float16 the binding scales gradients, and normals have
    three digits.
    """

    precision: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features not in FEATURES:
            raise ValueError(f"features must be one of {', '.join(map(str, FEATURES))} for tiny-cuda-nn, got {self.features}")

    def grid(self) -> TcnnGrid:
        return TcnnGrid(self, self.precision)

    def check_device(self, kind: str) -> None:
        import_tiny_cuda_nn()
        check_served(kind)


@dataclass(frozen=True)
class TcnnHashGridConfig(TcnnOptions, HashGridConfig):
    """As HashGridConfig, but for what TcnnOptions says."""

    def build(self) -> GridEncoder:
        return GridEncoder(self)
