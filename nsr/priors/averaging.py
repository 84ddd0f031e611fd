"""Several models made one: by averaging their weights, or the surfaces that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nsr.priors.placement import moved, similarity_scale
from nsr.priors.shape import PriorShape


@torch.no_grad()
def average_weights(models: Sequence[nn.Module], into: nn.Module) -> None:
    """Give `into` the mean of the weights of models that are built alike.

    Of a weight-normalised layer (length and direction) the weights themselves are averaged, and split again: means of lengths
    and of directions would be another layer's. Raises ValueError where the models are not alike.
    """
    if not models:
        raise ValueError("average_weights: expected one model or more, got none")
    names = {name for name, _ in into.named_modules()}
    for model in models:
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        if shapes != {name: tuple(value.shape) for name, value in into.state_dict().items()}:
            raise ValueError("average_weights: the models are not alike; expected networks of one configuration")
    for name in sorted(names):
        modules = [model.get_submodule(name) for model in models]
        target = into.get_submodule(name)
        split = set(target.parametrizations) if parametrize.is_parametrized(target) else set()
        for of_layer in split:
            setattr(target, of_layer, torch.stack([getattr(module, of_layer) for module in modules]).mean(dim=0))
        if isinstance(target, parametrize.ParametrizationList):
            continue  # done as the weight that it makes
        for own, parameter in target.named_parameters(recurse=False):
            parameter.copy_(torch.stack([module.get_parameter(own) for module in modules]).mean(dim=0))
        for own, buffer in target.named_buffers(recurse=False):
            of_models = [module.get_buffer(own) for module in modules]
            if not all(torch.equal(buffer, value) for value in of_models):
                buffer.copy_(torch.stack(of_models).mean(dim=0))


def mean_distance(
    shapes: Sequence[PriorShape], own_from_common: Sequence[np.ndarray]
) -> Callable[[Float[Tensor, "N 3"]], Float[Tensor, " N"]]:
    """The mean of the signed distances of several surfaces, each without a code, in a common frame.

    own_from_common: similarity [4, 4] from the common frame into each surface's own.
    """
    if not shapes or len(shapes) != len(own_from_common):
        raise ValueError(f"mean_distance: expected as many places as surfaces, got {len(own_from_common)} and {len(shapes)}")
    moves = [torch.as_tensor(np.asarray(matrix), dtype=torch.float32) for matrix in own_from_common]

    def sdf(points: Tensor) -> Tensor:
        total = torch.zeros_like(points[:, 0])
        for shape, move in zip(shapes, moves, strict=True):
            matrix = move.to(points)
            total = total + shape.sdf(moved(points, matrix), shape.no_code()) / similarity_scale(matrix)
        return total / len(shapes)

    return sdf
