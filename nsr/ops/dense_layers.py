"""What the ops on whole networks have in common: their dense layers, checked and in the form of the native ops."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nsr import _ext

MAX_LAYERS = 8  # kMaxDenseLayers of csrc/kernels/dense_layers.h, the output layer included
MAX_WIDTH = 128  # kMaxNetworkWidth there, of hidden layers
LANES = 16  # kLanes of csrc/kernels/launch.h

Layers = tuple[tuple[Tensor, Tensor], ...]  # (weight [outputs, inputs], bias [outputs]) of each


def fits_kernel(layers: Layers) -> bool:
    """Whether the native ops take layers of this number and these widths."""
    return 2 <= len(layers) <= MAX_LAYERS and all(weight.shape[0] <= MAX_WIDTH for weight, _ in layers[:-1])


def needs_derivative(*arguments: object) -> bool:
    """Whether a call with these arguments is going to be differentiated, so that it has to keep what that needs."""
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in arguments)


def check_alike(x_name: str, x: Tensor, others: Iterable[Tensor], name: str) -> None:
    """Raises ValueError unless x is float32 or float64 and the others have its dtype and device, ExtensionError where the
    library that would be called has no kernels for that."""
    if x.device.type == "cuda":
        _ext.check_device_served(x.device.type)
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: {x_name} is {x.dtype}; expected float32 or float64")
    for tensor in others:
        if tensor.dtype != x.dtype or tensor.device != x.device:
            found = f"{tensor.dtype} on {tensor.device}"
            raise ValueError(
                f"{name}: {x_name} is {x.dtype} on {x.device}, another input or a parameter {found}; "
                "expected one dtype and device"
            )


def flat_layers(layers: Layers, inputs: int, name: str) -> tuple[Tensor, list[int]]:
    """All parameters in one tensor, and the outputs of each layer; inputs: of the first."""
    if not 2 <= len(layers) <= MAX_LAYERS:
        raise ValueError(f"{name}: {len(layers)} layers; expected 1 to {MAX_LAYERS - 1} hidden layers and the output layer")
    for i, (weight, bias) in enumerate(layers):
        outputs = weight.shape[0]
        if weight.dim() != 2 or weight.shape[1] != inputs or tuple(bias.shape) != (outputs,):
            shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
            raise ValueError(f"{name}: layer {i} has weight and bias of shape {shapes}; expected [n, {inputs}] and [n]")
        if i < len(layers) - 1 and outputs > MAX_WIDTH:
            raise ValueError(f"{name}: hidden layer {i} has width {outputs}; expected at most {MAX_WIDTH}")
        inputs = outputs
    # One tensor for all layers: an op on a list of tensors costs more to dispatch than a small network to evaluate.
    parameters = torch.cat([tensor.reshape(-1) for layer in layers for tensor in layer])
    return parameters, [weight.shape[0] for weight, _ in layers]
