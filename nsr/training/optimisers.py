"""Optimisers: Adam for networks, Adam over touched entries for encoder tables, sparse Adam for trainable cameras."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nsr.models.idr import IDRModel
from nsr.ops.adam import adam_touched_
from nsr.training.settings import TrainConfig


class TableAdam(torch.optim.Optimizer):
    """Adam that leaves an entry alone, moments included, in a step that gave it no gradient (Mueller et al. 2022, sec. 4).

    Most entries of a hash table are untouched by a step; decaying their moments would move them without evidence.
    found_inf: float32 of no dimensions, or None: steps change nothing where it is not 0 (as torch.optim.Adam's).
    """

    found_inf: Tensor | None = None

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
                    state["step"] = torch.zeros((), dtype=torch.float64, device=parameter.device)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1 if self.found_inf is None else 1 - self.found_inf
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
                    skip=self.found_inf,
                )

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)  # which leaves numbers of steps on the device that they come from
        for parameter, state in self.state.items():
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float64, device=parameter.device)


class Optimisers:
    """The optimisers of a run, stepped together. The schedule scales the rates of networks and tables; that of the
    cameras has a factor of its own. exposure: a module with its learning rate, which is scaled as the networks' is.

    Rates and the verdict whether to take a step may be tensors on the device: a recorded step reads them there.
    """

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
        on_device = next(model.parameters()).device.type != "cpu"
        adam = {"betas": config.adam_betas, "fused": True, "capturable": on_device}
        self.members: dict[str, torch.optim.Optimizer] = {
            "networks": torch.optim.Adam(groups["networks"], lr=config.learning_rate, **adam)
        }
        if groups["tables"]:
            self.members["tables"] = TableAdam(groups["tables"], lr=config.table_learning_rate, betas=config.adam_betas)
        if exposure is not None:
            group = {"params": list(exposure[0].parameters()), "shape": False}
            self.members["exposure"] = torch.optim.Adam([group], lr=exposure[1], **adam)
        if cameras is not None:
            self.members["cameras"] = torch.optim.SparseAdam(list(cameras.parameters()), lr=config.learning_rate_cam)
        self._initial = [group["lr"] for _, group in self._groups()]

    def _groups(self) -> list[tuple[str, dict]]:
        return [(name, group) for name, member in self.members.items() for group in member.param_groups]

    def rates(self, factor: float, of_shape: float = 1.0, of_cameras: float = 1.0) -> list[float]:
        """The learning rates scaled: all but the cameras' by `factor`, and those of the implicit network by `of_shape` more."""
        rates = []
        for rate, (name, group) in zip(self._initial, self._groups(), strict=True):
            of_part = of_shape if group.get("shape") else 1.0
            rates.append(rate * (of_cameras if name == "cameras" else factor * of_part))
        return rates

    def set_rates(self, rates: Sequence[float] | Tensor) -> None:
        """What `rates` gave, as numbers or as float64 [R] on the device."""
        single = rates.float() if isinstance(rates, Tensor) else rates
        for i, (name, group) in enumerate(self._groups()):
            group["lr"] = rates[i] if name == "tables" else single[i]

    def zero_grad(self) -> None:
        for member in self.members.values():
            member.zero_grad(set_to_none=True)

    def gradient_norm(self) -> Tensor:
        """Length of the gradient of all but the tables, which take long to look at."""
        members = [member for name, member in self.members.items() if name != "tables"]
        grads = [p.grad for member in members for group in member.param_groups for p in group["params"] if p.grad is not None]
        grads = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
        return torch.stack(torch._foreach_norm(grads)).norm()

    def step(self, skip: Tensor | None = None) -> None:
        """Change all parameters; none, where `skip` (float32, no dimensions) is not 0."""
        for name, member in self.members.items():
            if name == "cameras":  # SparseAdam has no such switch: the host looks
                if skip is None or not skip:
                    member.step()
            else:
                member.found_inf = skip
                member.step()

    def state_dict(self) -> dict:
        states = {name: member.state_dict() for name, member in self.members.items()}
        for state in states.values():
            for group in state["param_groups"]:
                group["lr"] = float(group["lr"])
        return states

    def load_state_dict(self, state: dict) -> None:
        for name, member in self.members.items():
            kept = member.state_dict()["param_groups"]
            # Which kernels step is for this device to say, not for the one that saved.
            ours = [{key: group[key] for key in ("fused", "capturable") if key in group} for group in kept]
            groups = [saved | own for saved, own in zip(state[name]["param_groups"], ours, strict=True)]
            member.load_state_dict({**state[name], "param_groups": groups})
