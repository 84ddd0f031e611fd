"""The losses of IDR (Yariv et al. 2020, eq. 6-8) and normal smoothness, each a mean over the rays or points of a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsr.config import check
from nsr.models.idr import TrainingOutput

FADING = ("smoothness", "photometric")  # terms whose weights change during a run


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms.

    free_weight: of free_loss, which needs a start from silhouettes; where it is 0, surface that rays hit in space known to be
    empty does not count as wrong either.
    rgb_quadratic_below: see rgb_loss; 0 is IDR's L1. rgb_min_mask: from which mask value on a pixel's colour counts; below 1 it
    is mixed with the background's. 0.5, all pixels inside, is IDR's. mask_missing_factor: see mask_loss; 1 is IDR's.
    smoothness_weight fades geometrically to smoothness_final of it, and photometric_weight (of the comparison of patches
    across photographs; 0 leaves it out) to photometric_final of it, from photometric_fade_from on: a fraction, as all here, of
    the run, or of its stage before train.color_from.
    alpha: sharpness of the differentiable mask; it is multiplied by alpha_factor at each milestone (in epochs or in
    such fractions: train.milestone_unit). The defaults are IDR's.
    """

    rgb_weight: float = 1.0
    rgb_quadratic_below: float = 0.0
    rgb_min_mask: float = 0.5
    mask_weight: float = 100.0
    mask_missing_factor: float = 1.0
    eikonal_weight: float = 0.1
    free_weight: float = 0.0
    smoothness_weight: float = 0.0
    smoothness_final: float = 0.1
    photometric_weight: float = 0.0
    photometric_final: float = 0.02
    photometric_fade_from: float = 0.45
    alpha: float = 50.0
    alpha_factor: float = 2.0
    alpha_milestones: tuple[float, ...] = (250.0, 500.0, 750.0, 1000.0, 1250.0)

    def __post_init__(self) -> None:
        weights = [f"{term}_weight" for term in ("rgb", "mask", "eikonal", "free", "smoothness", "photometric")]
        factors = ["smoothness_final", "photometric_final", "mask_missing_factor"]
        for name in (*weights, *factors, "rgb_quadratic_below"):
            check(self, name, 0 <= getattr(self, name) < math.inf, "0 or more")
        check(self, "rgb_min_mask", 0 <= self.rgb_min_mask <= 1, "0 to 1")
        check(self, "photometric_fade_from", 0 <= self.photometric_fade_from < 1, "0 up to but not 1")
        for name in ("alpha", "alpha_factor"):
            check(self, name, 0 < getattr(self, name) < math.inf, "more than 0")
        check(self, "alpha_milestones", all(at >= 0 for at in self.alpha_milestones), "0 or more each")


def rgb_loss(rgb: Float[Tensor, "S 3"], target: Float[Tensor, "S 3"], rays: int, quadratic_below: float = 0.0) -> Tensor:
    """L1 colour, eq. 6, in IDR's scale: colours in [-1, 1], summed over channels and surface rays, per ray of the step.

    Differences (of colours in [0, 1]) under quadratic_below count by their square, continued smoothly: Huber's loss, whose
    minimum is less often a median between two sides of an edge.
    """
    return 2.0 * F.smooth_l1_loss(rgb, target, reduction="sum", beta=quadratic_below) / rays


def color_loss(
    shown: Float[Tensor, "S 3"],
    ray: Int[Tensor, " S"],
    rgb: Float[Tensor, "N 3"],
    mask: Float[Tensor, " N"],
    config: LossConfig,
    counts: Bool[Tensor, " S"] | None = None,
) -> Tensor:
    """rgb_loss of the colours shown along S of a step's N rays, at the pixels that are pure (rgb_min_mask).

    ray: which S of the rays; rgb, mask: the photographs' values at all of them; counts: which of the S count (None: all).
    """
    is_pure = mask.index_select(0, ray) >= config.rgb_min_mask
    if counts is not None:  # the others show what is photographed
        photographed = rgb.index_select(0, ray)
        shown = torch.where((is_pure & counts)[:, None], shown, photographed)
        return rgb_loss(shown, photographed, rgb.shape[0], config.rgb_quadratic_below)
    pure = is_pure.nonzero()[:, 0]
    photographed = rgb.index_select(0, ray.index_select(0, pure))
    return rgb_loss(shown.index_select(0, pure), photographed, rgb.shape[0], config.rgb_quadratic_below)


def mask_loss(
    sdf: Float[Tensor, " N"],
    surface: Bool[Tensor, " N"],
    mask: Float[Tensor, " N"],
    alpha: float | Tensor,
    missing_factor: float = 1.0,
) -> Tensor:
    """Cross-entropy of sigmoid(-alpha f) with the mask at the rays that are not both hit and inside the mask, eq. 7.

    sdf: at each ray's point of smallest SDF, [N]; mask: in [0, 1]. missing_factor: weight of the rays inside the mask that
    miss. As hits inside the mask have no part in the loss, near a silhouette more rays pull the surface in than push it out.
    """
    logits = torch.where(surface, torch.zeros_like(sdf), -alpha * sdf)
    entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    weight = torch.where(mask > 0.5, missing_factor, 1.0)
    return torch.where(surface, torch.zeros_like(entropy), weight * entropy).sum() / (alpha * sdf.shape[0])


def eikonal_loss(gradient: Float[Tensor, "P 3"]) -> Tensor:
    """Mean of (|grad f| - 1)^2, eq. 8 (Gropp et al. 2020)."""
    # The norm's own derivative is infinite at 0; a tiny constant keeps it finite there and changes nothing elsewhere.
    return ((gradient.square().sum(dim=-1) + 1e-12).sqrt() - 1.0).square().mean()


def free_loss(sdf: Float[Tensor, " F"], counts: Bool[Tensor, " F"] | None = None) -> Tensor:
    """By how much the SDF is negative, on average, at points where it is known that nothing is (counts; None: all).

    Rays see to the neighbourhood of the silhouettes. What forms elsewhere, where no ray is drawn, they would not undo.
    """
    return _mean(F.relu(-sdf), counts)


def smoothness_loss(
    gradient: Float[Tensor, "P 3"], neighbour: Float[Tensor, "P 3"], counts: Bool[Tensor, " P"] | None = None
) -> Tensor:
    """Mean distance between the unit normals of neighbouring points, of those that count (None: all)."""
    unit, beside = (g * (g.square().sum(dim=-1, keepdim=True) + 1e-12).rsqrt() for g in (gradient, neighbour))
    difference = unit - beside
    return _mean((difference.square().sum(dim=-1) + 1e-12).sqrt(), counts)


def _mean(values: Float[Tensor, " P"], counts: Bool[Tensor, " P"] | None) -> Tensor:
    """Of the values that count (None: all); 0 where none does."""
    if counts is None:
        return values.mean()
    return torch.where(counts, values, 0.0).sum() / counts.sum().clamp_min(1)


def fading_weights(config: LossConfig, progress: float) -> dict[str, float]:
    """Of the terms whose weights change, by name, at a fraction of the shape's stage."""
    # Cavities are found early; late, comparing patches only blurs.
    faded = max(progress - config.photometric_fade_from, 0.0) / (1.0 - config.photometric_fade_from)
    smoothness = config.smoothness_weight * config.smoothness_final**progress
    return dict(zip(FADING, (smoothness, config.photometric_weight * config.photometric_final**faded), strict=True))


def idr_losses(
    output: TrainingOutput,
    rgb: Float[Tensor, "N 3"],
    mask: Float[Tensor, " N"],
    config: LossConfig,
    *,
    alpha: float | Tensor,
    fading: Mapping[str, float | Tensor],
    photometric: Tensor | None = None,
) -> dict[str, Tensor]:
    """All terms, unweighted, under their names, and their weighted sum as `loss`.

    rgb, mask: the photographs' values at the step's rays; alpha, fading: what changes from step to step, the mask's sharpness
    and fading_weights; photometric: that term's value, in steps that have it.
    """
    mask = torch.where(output.free, 0.0, mask)  # a surface in free space is as wrong as one outside the silhouette
    padding = output.padding
    of_surface, of_empty, of_centres = (None, None, None) if padding is None else padding
    terms = {
        "rgb": color_loss(output.rgb, output.ray, rgb, mask, config, of_surface),
        "mask": mask_loss(output.sdf, output.surface, mask, alpha, config.mask_missing_factor),
        "eikonal": eikonal_loss(output.gradient),
    }
    weights = {"rgb": config.rgb_weight, "mask": config.mask_weight, "eikonal": config.eikonal_weight}
    if config.free_weight > 0 and output.free_sdf.shape[0]:
        terms["free"] = free_loss(output.free_sdf, of_empty)
        weights["free"] = config.free_weight
    if config.smoothness_weight > 0 and output.neighbour_gradient.shape[0]:
        terms["smoothness"] = smoothness_loss(output.centre_gradient, output.neighbour_gradient, of_centres)
        weights["smoothness"] = fading["smoothness"]
    if photometric is not None:
        terms["photometric"] = photometric
        weights["photometric"] = fading["photometric"]
    return {"loss": sum(weights[name] * term for name, term in terms.items()), **terms}
