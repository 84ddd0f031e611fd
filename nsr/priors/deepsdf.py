"""DeepSDF (Park et al. 2019): a family of surfaces as one network that takes a code beside the point.

It is an auto-decoder: the codes of the training surfaces are learned with the network, under a Gaussian prior. H3D-Net (Ramon
et al. 2021) puts such a network, trained on heads, in the place of IDR's geometry network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nsr.config import check
from nsr.models.mlp import ACTIVATIONS, linear
from nsr.priors.sdf_samples import SdfSamples
from nsr.priors.shape import PriorShape

FIRST_RADIUS = 0.6  # of the sphere that a new decoder is, prior units
LEAST_SPREAD = 0.01  # of the codes along a principal axis, of that along the first, for it to count


@dataclass(frozen=True)
class DeepSdfConfig:
    """The network, and how it is trained.

    code_size: numbers in a code; dims: width of each hidden layer; skip_in: layers that see code and point again.
    clamp: distance beyond which it does not matter by how much a point is off (eq. 4), prior units.
    code_weight: of the mean square of the codes (eq. 9: 1 / sigma^2); code_init: their standard deviation at first.
    steps: of training, each over `shapes` surfaces with `points` points each; learning_rate, code_rate: for network and codes;
    both fall to rate_final of that along half a cosine.
    """

    code_size: int = 64
    dims: tuple[int, ...] = (256, 256, 256, 256, 256)
    skip_in: tuple[int, ...] = (3,)
    clamp: float = 0.1
    code_weight: float = 1e-4
    code_init: float = 0.01
    steps: int = 4000
    shapes: int = 16
    points: int = 512
    learning_rate: float = 1e-3
    code_rate: float = 2e-3
    rate_final: float = 0.02

    def __post_init__(self) -> None:
        for name in ("code_size", "steps", "shapes", "points"):
            check(self, name, getattr(self, name) >= 1, "1 or more")
        for name in ("clamp", "code_init", "learning_rate", "code_rate", "rate_final"):
            check(self, name, 0 < getattr(self, name) < math.inf, "more than 0")
        check(self, "code_weight", 0 <= self.code_weight < math.inf, "0 or more")
        check(self, "dims", bool(self.dims) and min(self.dims) >= 1, "one or more layers of positive width")
        check(self, "skip_in", all(0 < layer < len(self.dims) for layer in self.skip_in), "1 up to the last hidden layer")


class DeepSdf(nn.Module):
    """f(x, z): the decoder."""

    def __init__(self, config: DeepSdfConfig) -> None:
        super().__init__()
        self.config = config
        self.activation = ACTIVATIONS["squareplus"]
        given = 3 + config.code_size
        widths = [given, *config.dims]
        # What a layer is given of point and code stands in front of what comes from the layer before.
        for i, (before, after) in enumerate(zip(widths, [*config.dims, 1], strict=True)):
            setattr(self, f"lin{i}", linear(before + given * (i in config.skip_in), after, use_weight_norm=True))
        self._initialise_as_sphere()

    @classmethod
    def build(cls, config: DeepSdfConfig, seed: int) -> DeepSdf:
        """A network whose initial weights depend on the seed alone; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    def layer(self, i: int) -> nn.Linear:
        return getattr(self, f"lin{i}")

    @torch.no_grad()
    def _initialise_as_sphere(self) -> None:
        """About a sphere whatever the code (Atzmon and Lipman 2020, thm. 1), which has little influence at first."""
        last = len(self.config.dims)
        for i in range(last + 1):
            layer, given = self.layer(i), self._given(i)
            weight = torch.empty_like(layer.weight)
            if i == last:
                weight.normal_(math.sqrt(math.pi / layer.in_features), 1e-4)
            else:
                weight.normal_(0.0, math.sqrt(2.0 / layer.out_features))
            layer.bias.zero_()
            weight[:, 3:given] *= 0.1
            if i in self.config.skip_in:
                weight[:, :3] *= 0.1
            layer.weight = weight
        # The activation is a little above 0 at 0, which adds up from layer to layer: the last bias makes up for it.
        sphere = FIRST_RADIUS * nn.functional.normalize(torch.randn(1, 1000, 3), dim=-1)
        self.layer(last).bias.sub_(self(sphere, torch.zeros(1, self.config.code_size)).mean())

    def _given(self, i: int) -> int:
        """How many of a layer's inputs are point and code."""
        return 3 + self.config.code_size if i == 0 or i in self.config.skip_in else 0

    def forward(self, points: Float[Tensor, "B K 3"], codes: Float[Tensor, "B C"]) -> Float[Tensor, "B K"]:
        """Distances at K points for each of B codes. A code takes part in a layer once, and not once per point."""
        value: Tensor | None = None
        for i in range(len(self.config.dims) + 1):
            layer = self.layer(i)
            weight, result = layer.weight, layer.bias
            given = self._given(i)
            if given:
                of_code = codes @ weight[:, 3:given].T + layer.bias
                result = torch.baddbmm(of_code[:, None], points, weight[:, :3].T.expand(len(codes), -1, -1))
            if value is not None:
                result = result + value @ weight[:, given:].T
            value = self.activation.value(result) if i < len(self.config.dims) else result
        return value[..., 0]


class CodedShape(PriorShape):
    """A trained decoder with what its training codes look like: their mean, and their principal axes, as long as they scatter
    along them. A code of the family is a place in that frame: standard normal, as far as the training codes are normal."""

    def __init__(
        self, decoder: DeepSdf, codes: Float[Tensor, "M C"], world_from_prior: np.ndarray, radius: float = 1.0
    ) -> None:
        super().__init__(radius, world_from_prior)
        self.decoder = decoder.requires_grad_(False)
        mean = codes.mean(dim=0)
        _, spread, axes = torch.linalg.svd(codes - mean, full_matrices=False)
        spread = spread / max(len(codes) - 1, 1) ** 0.5
        kept = spread > LEAST_SPREAD * spread[0] if len(codes) > 1 else torch.zeros_like(spread, dtype=torch.bool)
        self.register_buffer("mean", mean)
        self.register_buffer("basis", spread[kept, None] * axes[kept])  # [K, C]
        self.code_size = int(kept.sum())

    def distance(self, points: Tensor, code: Tensor) -> Tensor:
        codes = self.mean + code @ self.basis
        if codes.ndim == 1:
            return self.decoder(points[None], codes[None])[0]
        return self.decoder(points[:, None], codes)[:, 0]


def clamped_distance(predicted: Float[Tensor, "B K"], sdf: Float[Tensor, "B K"], clamp: float) -> Float[Tensor, ""]:
    """Mean |clamp(f) - clamp(s)| (DeepSDF, eq. 4). A prediction on the wrong side of a clamped value keeps its gradient."""
    target = sdf.clamp(-clamp, clamp)
    # Where the truth lies beyond the clamp, only too small a distance is wrong.
    error = torch.where(sdf >= clamp, (target - predicted).clamp_min(0.0), (predicted - target).abs())
    error = torch.where(sdf <= -clamp, (predicted - target).clamp_min(0.0), error)
    return error.mean()


class AutoDecoder:
    """Trains a decoder and the codes of its training surfaces together."""

    def __init__(self, decoder: DeepSdf, samples: Sequence[SdfSamples], generator: torch.Generator) -> None:
        if not samples:
            raise ValueError("AutoDecoder: expected samples of one surface or more, got none")
        self.decoder, self.config, self.generator = decoder, decoder.config, generator
        # Halves inside and outside, as far as there are any: few points lie inside, and the two sides are as hard to learn.
        self.inside = [torch.cat([s.points, s.sdf[:, None]], dim=1)[s.sdf <= 0] for s in samples]
        self.outside = [torch.cat([s.points, s.sdf[:, None]], dim=1)[s.sdf > 0] for s in samples]
        codes = torch.randn(len(samples), self.config.code_size, generator=generator) * self.config.code_init
        self.codes = nn.Parameter(codes)
        groups = [
            {"params": list(decoder.parameters()), "lr": self.config.learning_rate},
            {"params": [self.codes], "lr": self.config.code_rate},
        ]
        self.optimiser = torch.optim.Adam(groups, fused=True)
        self._rates = [group["lr"] for group in groups]
        self.steps = 0

    @property
    def finished(self) -> bool:
        return self.steps >= self.config.steps

    def step(self) -> dict[str, float]:
        """One step over some of the surfaces; returns the losses by name."""
        factor = self.config.rate_final + (1 - self.config.rate_final) * 0.5 * (
            1 + math.cos(math.pi * self.steps / self.config.steps)
        )
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        count = len(self.inside)
        chosen = torch.randperm(count, generator=self.generator)[: self.config.shapes]
        drawn = torch.stack([self._draw(int(i)) for i in chosen])  # [B, K, 4]
        codes = self.codes[chosen]
        of_points = clamped_distance(self.decoder(drawn[..., :3], codes), drawn[..., 3], self.config.clamp)
        of_codes = codes.square().mean()
        # The prior counts fully after a tenth of the steps: at first it would keep all codes at the mean (DeepSDF's own code).
        weight = self.config.code_weight * min(10.0 * (self.steps + 1) / self.config.steps, 1.0)
        self.optimiser.zero_grad()
        (of_points + weight * self.config.code_size * of_codes).backward()  # eq. 9 sums over the numbers of a code
        self.optimiser.step()
        self.steps += 1
        return {"distance": float(of_points.detach()), "codes": float(of_codes.detach())}

    def _draw(self, shape: int) -> Float[Tensor, "K 4"]:
        """Points of a surface with their distances, half of them inside, as far as there are any on either side."""
        sides = [side for side in (self.inside[shape], self.outside[shape]) if len(side)]
        counts = [self.config.points // len(sides)] * len(sides)
        counts[-1] += self.config.points - sum(counts)
        return torch.cat([side[self._integers(len(side), n)] for side, n in zip(sides, counts, strict=True)])

    def _integers(self, below: int, count: int) -> Int[Tensor, " n"]:
        return torch.randint(below, (count,), generator=self.generator)

    def state_dict(self) -> dict:
        """All that the next step depends on, but the samples."""
        return {
            "decoder": self.decoder.state_dict(),
            "codes": self.codes.detach().clone(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError for the codes of another number of surfaces."""
        if state["codes"].shape != self.codes.shape:
            raise ValueError(f"expected codes {tuple(self.codes.shape)}, got {tuple(state['codes'].shape)}")
        self.decoder.load_state_dict(state["decoder"])
        with torch.no_grad():
            self.codes.copy_(state["codes"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"].cpu())
        self.steps = state["steps"]
