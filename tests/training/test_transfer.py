"""Which runs fit together for a transfer of appearance, and what is whose."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_run import tiny_config
from support.two_balls import cameras_around

from nsr.models.exposure import AffineExposure
from nsr.models.idr import IDRModel
from nsr.training.run import Run
from nsr.training.transfer import transfer_appearance
from nsr.utils.errors import CheckpointError

MISFITS = {  # override: key, value, value of the other
    "model.implicit_network.feature_size=9": ("model.implicit_network.feature_size", "7", "9"),
    "model.implicit_network.encoder.type=vanilla": ("model.implicit_network.encoder.type", "hashgrid", "vanilla"),
    "model.rendering_network.mode=no_normal": ("model.rendering_network.mode", "idr", "no_normal"),
    "model.rendering_network.normalise_features=true": ("model.rendering_network.normalise_features", "false", "true"),
    "model.rendering_network.point_encoder.type=vanilla": ("model.rendering_network.point_encoder.type", "hashgrid", "vanilla"),
    "model.rendering_network.view_encoder.type=vanilla": ("model.rendering_network.view_encoder.type", "sh", "vanilla"),
    "exposure.type=affine": ("exposure.type", "none", "affine"),
    "model.ray_tracer.radius=1.1": ("model.ray_tracer.radius", "1.2", "1.1"),
}


def a_run(name: str, *overrides: str, seed: int = 0) -> Run:
    config = tiny_config(*overrides)
    unused = dict.fromkeys(("checkpoint", "step", "rays", "seconds", "seed"))
    place = {"world_from_scene": np.eye(4) * (seed + 1), "data_dir": f"photos/{name}", "cameras": cameras_around(4 + seed)}
    views = {"train_views": list(range(4 + seed)), "holdout_views": [9 + seed], "sphere": (0.0, 0.0, 1.0, 1.0 + seed)}
    return Run(model=IDRModel.build(config.model, seed), config=config, folder=Path(name), **unused, **place, **views)


@pytest.mark.parametrize("override", MISFITS)
def test_runs_that_do_not_fit_are_refused_with_both_values(override):
    key, value, other = MISFITS[override]
    with pytest.raises(CheckpointError) as error:
        transfer_appearance(a_run("bust"), a_run("dents", override))
    text = str(error.value)
    assert text.startswith("the surface of bust and the colours of dents do not fit: ")
    assert f"{key} is {value} in the one and {other} in the other" in text
    assert text.count(" in the one and ") == 1


def test_what_concerns_one_of_the_networks_alone_may_differ():
    smaller = a_run("bust", "model.implicit_network.dims=[8]", "model.ray_tracer.radius=1.0", "loss.rgb_weight=2")
    other = a_run("dents", "model.rendering_network.dims=[8,8]", "model.rendering_network.point_encoder.hashgrid.levels=2")
    assert transfer_appearance(smaller, other).model.bounding_radius == 1.0


def test_the_surface_is_the_ones_and_the_colour_the_others():
    one, other = a_run("bust"), a_run("dents", seed=1)
    other.model.set_progress(0.5, 0.5)  # a run stopped half way: its colours show so many levels
    run = transfer_appearance(one, other)
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 0.5
    directions = torch.nn.functional.normalize(points, dim=-1)
    with torch.no_grad():
        assert torch.equal(run.model.sdf(points), one.model.sdf(points))
        assert not torch.equal(run.model.sdf(points), other.model.sdf(points))
        surface = one.model.implicit_network(points)
        expected = other.model.rendering_network(points, surface.gradient, directions, surface.feature)
        assert torch.equal(run.model.color(points, directions), expected)
        assert not torch.equal(run.model.color(points, directions), one.model.color(points, directions))
    for field in dataclasses.fields(Run):  # its place in the world, photographs, cameras
        if field.name != "model":
            assert getattr(run, field.name) is getattr(one, field.name), field.name


def test_exposures_of_the_surfaces_photographs_are_not_those_of_the_colours():
    one, other = (a_run(name, "exposure.type=affine") for name in ("bust", "dents"))
    object.__setattr__(one, "exposure", AffineExposure(3))
    assert transfer_appearance(one, other).exposure is None


def test_features_of_another_size_are_refused_by_the_model_itself():
    with pytest.raises(ValueError, match="expected features of size 9, as the other model's; got 7"):
        a_run("a").model.with_appearance_of(a_run("b", "model.implicit_network.feature_size=9").model)
