"""How far a run has come, and what follows from it: learning rates, mask sharpness, visible encoder levels."""

from __future__ import annotations

import time

from nsr.models.idr import IDRModel
from nsr.training.settings import LossConfig, TrainConfig


class Clock:
    """Counts steps and seconds of training, across resumed sessions. Time spent while paused is not training time.

    Progress counts from the first step: what the start took of a budget must not have used up the schedule.
    """

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = config.nepoch * steps_per_epoch
        self.step = 0
        self._begun = 0.0  # seconds before the first step
        self._earlier = 0.0  # seconds before `_since`
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.perf_counter()

    def pause(self) -> None:
        self._earlier, self._since = self.seconds, None

    def begin(self) -> None:
        """The first step comes next."""
        self._begun = self.seconds

    @property
    def seconds(self) -> float:
        return self._earlier + (time.perf_counter() - self._since if self._since is not None else 0.0)

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def progress(self) -> float:
        by_steps = self.step / self.total_steps if self.total_steps > 0 else 0.0
        return min(max(by_steps, self._progress_by_time()), 1.0)

    def _progress_by_time(self) -> float:
        if self.config.budget == 0:
            return 0.0
        left = self.config.budget - self._begun
        return (self.seconds - self._begun) / left if left > 0 else 1.0

    @property
    def finished(self) -> bool:
        return self.progress >= 1.0

    def state_dict(self) -> dict:
        return {"step": self.step, "seconds": self.seconds, "begun": self._begun}

    def load_state_dict(self, state: dict) -> None:
        self.step, self._earlier, self._begun = int(state["step"]), float(state["seconds"]), float(state["begun"])
        self._since = None


def stage(config: TrainConfig, progress: float) -> tuple[bool, float]:
    """Whether only the colours learn by now, and how much of its stage, with or without the shape, the run has behind it."""
    begin = config.color_from
    if progress < begin or begin == 1:
        return False, progress / begin
    return True, (progress - begin) / (1 - begin)


def milestones_passed(milestones: tuple[float, ...], config: TrainConfig, epoch: int, progress: float) -> int:
    reached = epoch if config.milestone_unit == "epoch" else progress
    return sum(reached >= milestone for milestone in milestones)


def learning_rate_factor(config: TrainConfig, epoch: int, progress: float) -> float:
    passed = milestones_passed(config.lr_milestones, config, epoch, progress)
    return config.lr_final**progress * config.lr_factor**passed


def shape_rate_factor(config: TrainConfig, step: int) -> float:
    """Of the implicit network's learning rates, relative to the others: shape_rate after a warm-up over warmup_steps steps."""
    return config.shape_rate * min((step + 1) / max(config.warmup_steps, 1), 1.0)


def mask_alpha(loss: LossConfig, config: TrainConfig, epoch: int, progress: float) -> float:
    """Sharpness of the differentiable mask (IDR, sec. B.3: doubled at each milestone)."""
    return loss.alpha * loss.alpha_factor ** milestones_passed(loss.alpha_milestones, config, epoch, progress)


def show_detail(model: IDRModel, config: TrainConfig, progress: float) -> None:
    """Switch on the encoder levels that the surface and its colour may use at this point of the run."""
    colors_only, of_stage = stage(config, progress)

    def visible(full_at: float) -> float:
        return min(of_stage / full_at, 1.0) if full_at > 0 and not colors_only else 1.0

    model.set_progress(visible(config.geometry_full_at), visible(config.appearance_full_at))
