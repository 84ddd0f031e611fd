"""How much of the start a budget has time for."""

import dataclasses

import pytest
import torch
from support.sphere_run import small_config, sphere_scene

from nsr.training.settings import StartConfig
from nsr.training.start import FULL, HULL_STEPS, NO_STEREO, effort
from nsr.training.trainer import Trainer


@pytest.mark.parametrize(
    ("budget", "device", "stereo", "teaching"),
    [
        (0.0, "cpu", 1.0, 1.0),  # a run that ends by steps
        (FULL, "cpu", 1.0, 1.0),
        (60.0, "cpu", 1.0, 1.0),
        (FULL / 2, "cpu", 0.5, 0.5),
        (NO_STEREO, "cpu", NO_STEREO / FULL, NO_STEREO / FULL),
        (1e-3, "cpu", 0.0, HULL_STEPS),
        (1e-3, "cuda", 1.0, 1.0),
    ],
)
def test_short_budgets_hurry_the_start_on_a_cpu(budget, device, stereo, teaching):
    assert effort(budget, torch.device(device)) == pytest.approx((stereo, teaching))


def test_without_time_for_stereo_the_hull_is_taught(monkeypatch):
    def carve(*_, share):
        asked.append(share)
        raise AssertionError("stereo has no time")

    asked: list[float] = []
    monkeypatch.setattr("nsr.training.start.carve_by_stereo", carve)
    config = small_config()
    config = dataclasses.replace(
        config,
        start=StartConfig(type="stereo", resolution=32, steps=100, points=512),
        train=dataclasses.replace(config.train, budget=NO_STEREO - 1),
    )
    trainer = Trainer(config, sphere_scene())
    trainer.start()
    assert trainer.model.sdf(torch.zeros(1, 3)).item() < 0
    assert trainer.model.sdf(torch.tensor([[0.0, 0.0, 0.9]])).item() > 0
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, budget=NO_STEREO))
    with pytest.raises(AssertionError, match="no time"):
        Trainer(longer, sphere_scene()).start()
    assert asked == [NO_STEREO / FULL]
