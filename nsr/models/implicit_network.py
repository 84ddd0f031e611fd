"""The SDF network: an MLP behind an encoder, whose surface normal is a forward output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nsr.config import Variant, variant
from nsr.encoders import POINT_ENCODERS, build_encoder
from nsr.encoders.filter_bank import FilterBankEncoder, ModulatedFilterBankEncoder
from nsr.encoders.hash_grid import HashGridEncoder
from nsr.models.mlp import ACTIVATIONS, linear
from nsr.ops.sdf_network import SdfNetwork, has_kernel, sdf_and_normal, sdf_network


@dataclass(frozen=True)
class ImplicitNetworkConfig:
    """dims: width of each hidden layer; skip_in: layers that see the encoded point again.

    bias: radius of the initial sphere (scene units); feature_size: length of the vector handed to the rendering network.
    The defaults are IDR's (sec. B.2).
    """

    dims: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512, 512)
    skip_in: tuple[int, ...] = (4,)
    feature_size: int = 256
    activation: Literal["softplus", "squareplus"] = "softplus"
    weight_norm: bool = True
    geometric_init: bool = True
    bias: float = 0.6
    encoder: Variant = variant(POINT_ENCODERS, default="vanilla")

    def __post_init__(self) -> None:
        if not self.dims or min(self.dims) < 1:
            raise ValueError(f"dims must name at least one hidden layer of positive width, got {self.dims}")
        if any(not 0 < layer <= len(self.dims) for layer in self.skip_in):
            raise ValueError(f"skip_in must lie in 1..{len(self.dims)} (the layers after the first), got {self.skip_in}")


class ImplicitOutput(NamedTuple):
    """sdf: [N]; feature: [N, feature_size]; gradient: [N, 3], d sdf / d x (not normalised)."""

    sdf: Tensor
    feature: Tensor
    gradient: Tensor


class ImplicitNetwork(nn.Module):
    """x [N, 3] in the scene frame -> signed distance (negative inside), feature, and the distance's gradient."""

    def __init__(self, config: ImplicitNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder)
        self.activation = ACTIVATIONS[config.activation]
        encoded = self.encoder.output_dim
        outputs = [*config.dims, 1 + config.feature_size]
        inputs = [encoded, *config.dims]
        self.depth = len(outputs)
        for i, (n_in, n_out) in enumerate(zip(inputs, outputs, strict=True)):
            # As in IDR, the layer before a skip is narrower, so that the skip restores the nominal width.
            n_out = n_out - encoded if i + 1 in config.skip_in else n_out
            if n_out < 1:
                raise ValueError(f"layer {i} of width {outputs[i]} leaves no room for the {encoded} skipped inputs")
            setattr(self, f"lin{i}", linear(n_in, n_out, config.weight_norm))
        if config.geometric_init:
            self._initialise_as_sphere()

    def layer(self, i: int) -> nn.Linear:
        return getattr(self, f"lin{i}")

    @torch.no_grad()
    def _initialise_as_sphere(self) -> None:
        """SAL's geometric initialisation (Atzmon & Lipman 2020, thm. 1) as IDR uses it: f(x) is about |x| - bias."""
        extra = self.encoder.output_dim - 3  # encoded channels beyond the raw coordinates start without influence
        for i in range(self.depth):
            layer = self.layer(i)
            weight = torch.empty_like(layer.weight)
            if i == self.depth - 1:
                weight.normal_(math.sqrt(math.pi) / math.sqrt(layer.in_features), 1e-4)
                layer.bias.fill_(-self.config.bias)
            else:
                weight.normal_(0.0, math.sqrt(2.0) / math.sqrt(layer.out_features))
                layer.bias.zero_()
            if extra and (i == 0 or i in self.config.skip_in):
                weight[:, -extra:] = 0.0
            if self.config.weight_norm:
                layer.weight = weight  # splits it into length and direction
            else:
                layer.weight.copy_(weight)

    def fused(self) -> SdfNetwork | None:
        """The network as the ops of nsr.ops.sdf_network take it, or None where they do not and PyTorch goes layer by layer.

        They take a hash grid, or a filter bank with its taps beside each other, behind which hidden layers of at most 128
        neurons follow without skips and weight normalisation. The parameters are the network's own: valid until they are
        replaced or the encoder shows other levels.
        """
        encoder, bank = self.encoder, None
        if self.config.skip_in or self.config.weight_norm:
            return None
        if type(encoder) in (FilterBankEncoder, ModulatedFilterBankEncoder) and encoder.config.head == "concatenate":
            bank = encoder.bank()
        elif not isinstance(encoder, HashGridEncoder):
            return None
        layers = tuple((self.layer(i).weight, self.layer(i).bias) for i in range(self.depth))
        network = SdfNetwork(encoder.table, encoder.spec, encoder.active_levels, layers, self.config.activation, bank)
        return network if has_kernel(network) else None

    def sdf(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        """The signed distance alone, the cheapest evaluation: no gradient, no feature."""
        if not torch.is_grad_enabled() and (network := self.fused()) is not None:
            return sdf_network(x, *network)
        encoded = self.encoder(x)
        hidden = self._hidden(encoded)
        last = self.layer(self.depth - 1)
        return (hidden @ last.weight[0]) + last.bias[0]

    def _hidden(self, encoded: Tensor) -> Tensor:
        """The input of the last layer [N, width]."""
        value = encoded
        for i in range(self.depth - 1):
            value = self._with_skip(i, value, encoded)
            value = self.activation.value(self.layer(i)(value))
        return self._with_skip(self.depth - 1, value, encoded)

    def _with_skip(self, i: int, value: Tensor, encoded: Tensor) -> Tensor:
        return torch.cat([value, encoded], dim=1) / math.sqrt(2.0) if i in self.config.skip_in else value

    def forward(self, x: Float[Tensor, "N 3"]) -> ImplicitOutput:
        """Distance, feature and gradient. The reverse pass for the gradient is written as forward code, so that a loss on the
        gradient (eikonal, shading) needs first-order autograd only."""
        if (network := self.fused()) is not None:
            return ImplicitOutput(*sdf_and_normal(x, *network))
        with parametrize.cached():  # each weight-normalised matrix is used twice
            return self._value_and_gradient(x)

    def _value_and_gradient(self, x: Tensor) -> ImplicitOutput:
        encoded, encoder_vjp = self.encoder.forward_with_vjp(x)
        value, slopes = encoded, []
        for i in range(self.depth - 1):
            value = self._with_skip(i, value, encoded)
            layer = self.layer(i)
            value, slope = self.activation.value_and_slope(F.linear(value, layer.weight, layer.bias))
            slopes.append(slope)
        last = self.layer(self.depth - 1)
        value = F.linear(self._with_skip(self.depth - 1, value, encoded), last.weight, last.bias)

        grad_encoded: Tensor | None = None
        grad = last.weight[0].expand(x.shape[0], -1)
        for i in reversed(range(self.depth)):
            if i < self.depth - 1:
                grad = (grad * slopes[i]) @ self.layer(i).weight
            if i in self.config.skip_in:
                grad, skipped = (grad / math.sqrt(2.0)).split([grad.shape[1] - encoded.shape[1], encoded.shape[1]], dim=1)
                grad_encoded = skipped if grad_encoded is None else grad_encoded + skipped
        grad_encoded = grad if grad_encoded is None else grad_encoded + grad
        return ImplicitOutput(value[:, 0], value[:, 1:], encoder_vjp(grad_encoded))
