"""Adam for tables of which each step touches few entries (Mueller et al. 2022, section 4)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nsr import _ext
from nsr.ops.reference import adam as reference


@torch.no_grad()
def adam_touched_(
    value: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    exp_avg: Float[Tensor, "*shape"],
    exp_avg_sq: Float[Tensor, "*shape"],
    step: int | Float[Tensor, ""],
    lr: float | Float[Tensor, ""],
    beta1: float,
    beta2: float,
    eps: float,
    skip: Float[Tensor, ""] | None = None,
) -> None:
    """One step of Adam (Kingma and Ba 2015, algorithm 1) in place, on the entries whose gradient is not exactly zero.

    An untouched entry keeps its value and both moments: without this, the moments of an entry that no point has visited
    for a while would decay, or drift it along a stale direction. With all gradients non-zero it is torch.optim.Adam.

    Args:
        value, grad, exp_avg, exp_avg_sq: any one shape, dtype (float32, float64) and device, contiguous. The first, the
            third and the fourth are updated.
        step: number of this step, from 1; the bias correction counts every step, touched or not.
        lr, beta1, beta2, eps: as in the paper (alpha, beta_1, beta_2, epsilon).
            step and lr are numbers, or float64 tensors of no dimensions on value's device: what a recorded CUDA graph is to
            read anew at each replay.
        skip: float32 of no dimensions on value's device: nothing changes where it is not 0. As torch.optim.Adam's found_inf.

    Raises:
        ValueError: tensors that do not match, a step below 1, or a beta outside [0, 1).
    """
    tensors = {"grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype, tensor.device) != (value.shape, value.dtype, value.device):
            raise ValueError(
                f"adam_touched_: {name} is {list(tensor.shape)} {tensor.dtype} on {tensor.device}; expected "
                f"{list(value.shape)} {value.dtype} on {value.device}, as value"
            )
    counts = isinstance(step, Tensor) or step >= 1  # to look into a tensor would be to wait for the device
    if not (counts and 0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"adam_touched_: step {step}, beta1 {beta1}, beta2 {beta2}; expected step >= 1 and betas in [0, 1)")
    step, lr = (torch.as_tensor(number, dtype=torch.float64, device=value.device) for number in (step, lr))
    call = reference.adam_touched_ if _ext.backend() == "reference" else torch.ops.nsr.adam_touched_
    call(value, grad.contiguous(), exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, skip)


@_ext.on_load
def _register() -> None:
    @torch.library.register_fake("nsr::adam_touched_")
    def _(value, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, skip=None):
        return None
