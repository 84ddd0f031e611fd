"""Clock, learning rates, mask sharpness, views: what follows from how far a run has come."""

import math
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from support.sphere_run import small_config, sphere_scene

from nsr.config import Variant
from nsr.encoders.filter_bank import FilterBankConfig, ModulatedFilterBankConfig
from nsr.encoders.hash_grid import HashGridConfig
from nsr.models.losses import LossConfig
from nsr.training.run import split_views
from nsr.training.schedule import Clock, learning_rate_factor, mask_alpha, shape_rate_factor, show_detail, stage
from nsr.training.settings import TrainConfig
from nsr.training.trainer import Trainer


def test_published_schedule():
    """IDR, sec. B.3: rate halved after 1000 and 1500 epochs; alpha from 50, doubled every 250 epochs up to the fifth time."""
    train, loss = TrainConfig(), LossConfig()
    at = {
        0: (1.0, 50),
        249: (1.0, 50),
        250: (1.0, 100),
        999: (1.0, 400),
        1000: (0.5, 800),
        1250: (0.5, 1600),
        1999: (0.25, 1600),
    }
    for epoch, (rate, alpha) in at.items():
        assert learning_rate_factor(train, epoch, epoch / 2000) == rate
        assert mask_alpha(loss, train, epoch, epoch / 2000) == alpha


def test_exponential_decay_ends_at_lr_final():
    train = TrainConfig(nepoch=0, budget=10, lr_final=0.03, lr_milestones=(), milestone_unit="progress")
    assert learning_rate_factor(train, 0, 0.0) == 1.0
    assert learning_rate_factor(train, 0, 1.0) == pytest.approx(0.03)
    assert learning_rate_factor(train, 0, 0.5) == pytest.approx(0.03**0.5)


def test_detail_comes_with_progress():
    shown = []

    class Model:
        def set_progress(self, geometry, appearance):
            shown.append((geometry, appearance))

    train = TrainConfig(geometry_full_at=0.4, appearance_full_at=0.0)
    for progress in (0.1, 0.2, 0.8):
        show_detail(Model(), train, progress)
    assert shown == [(0.25, 1.0), (0.5, 1.0), (1.0, 1.0)]


GRID = {"levels": 3, "base_resolution": 2, "max_resolution": 6, "log2_table_size": 6, "start_levels": 1, "init_scale": 0.1}
VIEW_ENCODERS_WITH_LEVELS = [
    Variant("hashgrid", HashGridConfig(**GRID)),
    Variant("nffb", FilterBankConfig(**GRID, width=4)),
    Variant("stylemod_nffb", ModulatedFilterBankConfig(**GRID, width=4)),
]


@pytest.mark.parametrize("encoder", VIEW_ENCODERS_WITH_LEVELS, ids=lambda encoder: encoder.type)
def test_levels_of_view_directions_appear_with_those_of_the_colours_points(encoder):
    """And steps with more of them are steps of another kind, for what records them."""
    config = small_config(nepoch=3)
    rendering = replace(config.model.rendering_network, view_encoder=encoder)
    trainer = Trainer(replace(config, model=replace(config.model, rendering_network=rendering)), sphere_scene())
    views, shown, losses = trainer.model.rendering_network.view_encoder, [], []
    before = {name: value.detach().clone() for name, value in views.named_parameters()}
    last = encoder.options.spec().offsets[2]  # where the table of the third level begins

    def note(trainer, step) -> None:
        shown.append(views.active_levels)
        losses.append(step)
        assert trainer.model.shown_detail()[2] == views.active_levels
        assert torch.equal(views.table[last:], before["table"][last:]) == (views.active_levels < 3)

    trainer.fit(on_step=note)
    assert sorted(set(shown)) == [1, 2, 3]
    assert shown == sorted(shown)
    assert all(math.isfinite(value) for step in losses for value in step.values())
    assert not [name for name, value in views.named_parameters() if torch.equal(value, before[name])]


def test_colours_alone_come_last_and_both_stages_run_from_0_to_1():
    train = TrainConfig(color_from=0.8, geometry_full_at=0.5)
    assert stage(train, 0.0) == (False, 0.0)
    assert stage(train, 0.4) == (False, pytest.approx(0.5))
    assert stage(train, 0.8) == (True, pytest.approx(0.0))
    assert stage(train, 0.9) == (True, pytest.approx(0.5))
    assert stage(train, 1.0) == (True, pytest.approx(1.0))
    assert stage(TrainConfig(), 1.0) == (False, 1.0)  # without that stage
    shown = []

    class Model:
        def set_progress(self, geometry, appearance):
            shown.append(geometry)

    for progress in (0.2, 0.4, 0.81):
        show_detail(Model(), train, progress)
    assert shown == pytest.approx([0.5, 1.0, 1.0])


def test_the_shape_learns_slower_and_warms_up():
    train = TrainConfig(shape_rate=0.2, warmup_steps=100)
    assert [shape_rate_factor(train, step) for step in (0, 49, 99, 5000)] == pytest.approx([0.002, 0.1, 0.2, 0.2])
    assert shape_rate_factor(TrainConfig(), 0) == 1.0


def test_clock_ends_at_the_tighter_bound_and_does_not_count_pauses():
    clock = Clock(TrainConfig(nepoch=2, budget=1000), steps_per_epoch=5)
    clock.start()
    clock.step = 4
    assert clock.progress == pytest.approx(0.4, abs=1e-3)
    assert clock.epoch == 0
    clock.step = 10
    assert clock.finished
    by_time = Clock(TrainConfig(nepoch=0, budget=0.05), steps_per_epoch=5)
    by_time.start()
    by_time.pause()
    time.sleep(0.06)
    assert not by_time.finished
    by_time.start()
    time.sleep(0.06)
    assert by_time.finished


def test_clock_state_survives():
    clock = Clock(TrainConfig(nepoch=4), steps_per_epoch=5)
    state = {"step": 7, "seconds": 12.5, "begun": 2.5}
    clock.load_state_dict(state)
    assert (clock.epoch, clock.seconds, clock.progress) == (1, 12.5, 7 / 20)
    assert clock.state_dict() == state


def test_what_the_start_takes_of_a_budget_is_not_progress():
    clock = Clock(TrainConfig(nepoch=0, budget=20.0), steps_per_epoch=5)
    clock.load_state_dict({"step": 0, "seconds": 12.0, "begun": 0.0})
    clock.begin()
    assert clock.progress == 0.0
    clock.load_state_dict({"step": 9, "seconds": 14.0, "begun": 12.0})
    assert clock.progress == 0.25
    assert not clock.finished
    clock.load_state_dict({"step": 0, "seconds": 21.0, "begun": 21.0})  # the start took it all
    assert clock.finished


def test_a_run_needs_an_end():
    with pytest.raises(ValueError, match="end"):
        TrainConfig(nepoch=0, budget=0)


@pytest.mark.parametrize(("count", "views", "holdout"), [(49, None, 8), (10, None, 0), (15, [3, 5, 7, 9], 1), (5, None, 4)])
def test_held_out_views_are_disjoint_evenly_spaced_and_of_the_asked_number(count, views, holdout):
    train, held = split_views(count, views, holdout)
    assert len(held) == holdout == len(set(held))
    assert sorted(train + held) == (views or list(range(count)))
    if holdout > 2:
        gaps = [b - a for a, b in pairwise(held)]
        assert max(gaps) - min(gaps) <= 1


def test_holding_out_everything_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        split_views(5, None, 5)
