"""Optimisers: Adam for networks, Adam over touched entries for encoder tables, sparse Adam for trainable cameras."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nsr.models.idr import IDRModel
from nsr.ops.adam import adam_touched_
from nsr.training.settings import TrainConfig


class TableAdam(torch.optim.Optimizer):
    """Adam that leaves an entry alone, moments included, in a step that gave it no gradient (Mueller et al. 2022, sec. 4).

    Most entries of a hash table are untouched by a step; decaying their moments would move them without evidence.
    """

    def __init__(self, params, lr: float, betas: tuple[float, float], eps: float = 1e-15) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                adam_touched_(
                    parameter,
                    parameter.grad,
                    state["exp_avg"],
                    state["exp_avg_sq"],
                    step=state["step"],
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    eps=group["eps"],
                )


class Optimisers:
    """The optimisers of a run, stepped together. The schedule scales the rates of networks and tables; that of the
    cameras has a factor of its own. exposure: a module with its learning rate, which is scaled as the networks' is."""

    def __init__(
        self,
        model: IDRModel,
        cameras: nn.Module | None,
        config: TrainConfig,
        exposure: tuple[nn.Module, float] | None = None,
    ) -> None:
        groups = {"networks": [], "tables": []}
        for part in (model.implicit_network, model.rendering_network):
            for kind, of_kind in groups.items():
                parameters = [p for name, p in part.named_parameters() if name.endswith("encoder.table") == (kind == "tables")]
                if parameters:
                    of_kind.append({"params": parameters, "shape": part is model.implicit_network})
        self.members: dict[str, torch.optim.Optimizer] = {
            "networks": torch.optim.Adam(groups["networks"], lr=config.learning_rate, betas=config.adam_betas, fused=True)
        }
        if groups["tables"]:
            self.members["tables"] = TableAdam(groups["tables"], lr=config.table_learning_rate, betas=config.adam_betas)
        if exposure is not None:
            group = {"params": list(exposure[0].parameters()), "shape": False}
            self.members["exposure"] = torch.optim.Adam([group], lr=exposure[1], betas=config.adam_betas)
        if cameras is not None:
            self.members["cameras"] = torch.optim.SparseAdam(list(cameras.parameters()), lr=config.learning_rate_cam)
        self._camera_rate = config.learning_rate_cam
        self._scheduled = {name: member.param_groups[0]["lr"] for name, member in self.members.items() if name != "cameras"}

    def set_rate_factor(self, factor: float, of_shape: float = 1.0) -> None:
        """Scale all rates but the cameras', and those of the implicit network by `of_shape` more."""
        for name, rate in self._scheduled.items():
            for group in self.members[name].param_groups:
                group["lr"] = rate * factor * (of_shape if group["shape"] else 1.0)

    def set_camera_rate_factor(self, factor: float) -> None:
        """Scale the rate of the cameras, if there are any to train."""
        if "cameras" in self.members:
            self.members["cameras"].param_groups[0]["lr"] = self._camera_rate * factor

    def zero_grad(self) -> None:
        for member in self.members.values():
            member.zero_grad(set_to_none=True)

    def gradient_norm(self) -> Tensor:
        """Length of the gradient of all but the tables, which take long to look at."""
        members = [member for name, member in self.members.items() if name != "tables"]
        grads = [p.grad for member in members for group in member.param_groups for p in group["params"] if p.grad is not None]
        grads = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
        return torch.stack(torch._foreach_norm(grads)).norm()

    def step(self) -> None:
        for member in self.members.values():
            member.step()

    def state_dict(self) -> dict:
        return {name: member.state_dict() for name, member in self.members.items()}

    def load_state_dict(self, state: dict) -> None:
        for name, member in self.members.items():
            member.load_state_dict(state[name])
