"""What every encoder offers: a value, its vector-Jacobian product as forward code, and a coarse-to-fine switch."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

VectorJacobian = Callable[[Tensor], Tensor]


class Encoder(nn.Module):
    """Maps x [N, 3] to features [N, output_dim]. The first three features are x itself.

    Raw coordinates come first so that the geometric initialisation of the network behind (IDR, sec. 3; SAL) finds them at a
    fixed place whatever the encoder.
    active_levels: how many of an encoder's levels are shown at present; None for one that has none.
    """

    output_dim: int
    active_levels: int | None = None

    def forward(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N C"]:
        raise NotImplementedError

    def forward_with_vjp(self, x: Float[Tensor, "N 3"]) -> tuple[Tensor, VectorJacobian]:
        """The value [N, C], and the map grad_value [N, C] -> grad_x [N, 3] = grad_value . d value / d x.

        The map is ordinary differentiable code, so a surface normal built from it needs first-order autograd only.
        """
        raise NotImplementedError

    def set_progress(self, fraction: float) -> None:
        """Coarse to fine: 0 shows the coarsest content, 1 everything. Encoders without levels ignore it."""


class EncoderConfig:
    """The options of an encoder: a dataclass that builds it."""

    def build(self) -> Encoder:
        """Raises ExtensionError where a package is missing that it needs."""
        raise NotImplementedError

    def check_device(self, kind: str) -> None:
        """Raises, before data are read, where it cannot be trained on a device of this kind ("cpu", "cuda"): UsageError for the
        wrong device, ExtensionError for a missing package. Most run everywhere."""
