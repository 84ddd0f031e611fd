"""Object or background, pixel by pixel, in many photographs at once: colour models, and a random walker that spreads them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

BINS = 16  # per channel of the colour histograms
SHARED = 0.3  # weight of the colours of all views in the model of each
UNSEEN = 0.3  # density of a colour that no histogram holds, relative to uniform
LEAST_COUPLING = 0.02  # of neighbouring pixels across the strongest edges


def color_codes(images: Float[Tensor, "V h w 3"]) -> Int[Tensor, "V h w"]:
    """The histogram bin of each colour in [0, 1]."""
    red, green, blue = (images * BINS).long().clamp(0, BINS - 1).unbind(-1)
    return (red * BINS + green) * BINS + blue


def color_log_odds(
    codes: Int[Tensor, "V h w"], of_object: Float[Tensor, "V h w"], of_background: Float[Tensor, "V h w"]
) -> Float[Tensor, "V h w"]:
    """log p(colour | object) / p(colour | background), from the weights with which each pixel is taken for either.

    Each view has histograms of its own, filled up with those of all views: light and background differ between views.
    """
    on_object, on_background = (_densities(codes, weight) for weight in (of_object, of_background))
    unseen = UNSEEN / BINS**3
    return ((on_object + unseen) / (on_background + unseen)).log()


def _densities(codes: Tensor, weight: Tensor) -> Tensor:
    """[V, h, w] density of each pixel's colour in the weighted histogram of its view."""
    flat = codes.flatten(1)
    counts = torch.zeros(len(codes), BINS**3, device=codes.device).scatter_add_(1, flat, weight.flatten(1))
    blur = torch.tensor([0.25, 0.5, 0.25], device=codes.device)
    cube = counts.view(-1, 1, BINS, BINS, BINS)
    for axis in (2, 1, 0):  # F.pad counts from the last one
        shape, padding = [1, 1, 1, 1, 1], [0] * 6
        shape[2 + axis] = 3
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = 1
        # What would leave the cube stays, or black and white would count for less than other colours.
        cube = F.conv3d(F.pad(cube, padding, mode="replicate"), blur.view(shape))
    counts = cube.flatten(1)
    total = counts.sum(dim=1, keepdim=True)
    borrowed = SHARED * total.mean().clamp_min(1e-6)
    shared = counts.sum(dim=0, keepdim=True) / total.sum().clamp_min(1e-6)
    return ((counts + borrowed * shared) / (total + borrowed)).gather(1, flat).view(codes.shape)


def random_walker(
    image: Float[Tensor, "h w 3"],
    prior: Float[Tensor, "h w"],
    confidence: Float[Tensor, "h w"],
    start: Float[Tensor, "h w"],
    iterations: int,
) -> Float[Tensor, "h w"]:
    """Probabilities near to `prior` where that is confident, and alike at neighbouring pixels of like colours.

    Minimises sum w_ij (x_i - x_j)^2 + sum confidence_i (x_i - prior_i)^2 with w_ij = exp(-|colour difference|^2 / its mean),
    by conjugate gradients from `start`: the random walker with priors (Grady, "Multilabel random walker image segmentation
    using prior models", CVPR 2005) for two labels. One image at a time, which stays in the cache.
    """
    across, down = _couplings(image)
    diagonal = confidence.clone()
    for weight, nearer, farther in _neighbours(diagonal, across, down):
        nearer += weight
        farther += weight

    def apply(x: Tensor) -> Tensor:
        out = confidence * x
        for (weight, left, right), (_, to_left, to_right) in zip(
            _neighbours(x, across, down), _neighbours(out, across, down), strict=True
        ):
            flow = weight * (right - left)
            to_right += flow
            to_left -= flow
        return out

    x = start.clone()
    residual = confidence * prior - apply(x)
    direction = residual / diagonal
    energy = (residual * direction).sum()
    for _ in range(iterations):
        applied = apply(direction)
        rate = energy / (direction * applied).sum().clamp_min(1e-20)
        x += rate * direction
        residual -= rate * applied
        scaled = residual / diagonal
        before, energy = energy, (residual * scaled).sum()
        direction = scaled + energy / before.clamp_min(1e-20) * direction
    return x


def _couplings(image: Tensor) -> tuple[Tensor, Tensor]:
    """Weights between pixels and their neighbours on the right [h, w - 1] and below [h - 1, w]."""
    across = (image[:, 1:] - image[:, :-1]).square().sum(dim=-1)
    down = (image[1:] - image[:-1]).square().sum(dim=-1)
    usual = (0.5 * (across.mean() + down.mean())).clamp_min(1e-5)
    return torch.exp(-across / usual) + LEAST_COUPLING, torch.exp(-down / usual) + LEAST_COUPLING


def _neighbours(x: Tensor, across: Tensor, down: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """Coupling, pixel and neighbour, of all pixels with a neighbour on the right, then below; views of x."""
    return (across, x[:, :-1], x[:, 1:]), (down, x[:-1], x[1:])
