"""The built-in bust, disturbed as real photographs are: what each disturbance costs, and what the option against it gives back.

Slow: `pytest -m slow -s tests/training/test_disturbed_bust.py` prints the figures of docs/results.md. 25 views of
320x240 pixels, 300 steps of 2048 rays, seed 0; 5 views held out, which are not disturbed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.disturbances import cropped, out_of_focus, with_bites, with_exposures, with_noisy_cameras, with_strips

from nsr.config import bind
from nsr.datasets.synthetic import make_scene
from nsr.evaluation.chamfer import evaluate_mesh
from nsr.evaluation.poses import evaluate_cameras
from nsr.geometry.meshes import load_mesh
from nsr.geometry.poses import align_cameras, transform_cameras
from nsr.training.results import evaluate_rendering, run_mesh
from nsr.training.settings import Config
from nsr.training.trainer import Trainer
from nsr.utils.hocon import find_conf, load_tree

pytestmark = pytest.mark.slow
HELD_OUT = [3, 9, 15, 21, 27]


@pytest.fixture(scope="module")
def bust():
    return make_scene("bust", views=30, width=320, height=240)


def figures(bust, disturb=None, *overrides: str, train_cameras: bool = False, epochs: int = 12) -> dict[str, float]:
    """Train on the disturbed views; Chamfer distance, colours of the held-out views and what is left of camera errors."""
    clean = bust.select([view for view in range(len(bust)) if view not in HELD_OUT])
    scene = disturb(clean) if disturb is not None else clean
    scene = scene[0] if isinstance(scene, tuple) else scene
    options = ["train.budget=0", f"train.nepoch={epochs}", "sampling.rays=2048", *overrides]
    config = bind(Config, *load_tree(find_conf("instant"), options))
    trainer = Trainer(config, scene, seed=0, train_cameras=train_cameras)
    trainer.fit()
    reference = transform_cameras(clean.cameras, clean.world_from_scene)
    world_from_scene = align_cameras(trainer.cameras(), reference) if train_cameras else clean.world_from_scene
    mesh = run_mesh(trainer.model.eval(), world_from_scene, resolution=192, color=False)
    held = bust.select(HELD_OUT)
    in_world = transform_cameras(held.cameras, held.world_from_scene)
    held = replace(held, cameras=transform_cameras(in_world, np.linalg.inv(world_from_scene)))
    with torch.no_grad():
        found = {
            **evaluate_mesh(mesh, load_mesh(bust.ground_truth), reference, samples=30_000),
            **evaluate_rendering(trainer.model, held, affine=True),
            **evaluate_cameras(transform_cameras(trainer.cameras(), world_from_scene), reference),
        }
    names = ("chamfer_percent", "psnr", "psnr_affine", "iou", "rotation_error_degrees_mean")
    print(disturb.__name__ if disturb else "clean", *overrides, {name: round(found[name], 3) for name in names})
    return found


def test_undisturbed(bust):
    assert figures(bust)["chamfer_percent"] < 0.25


def test_exposures(bust):
    without, with_maps = (figures(bust, with_exposures, f"exposure.type={kind}") for kind in ("none", "affine"))
    assert with_maps["psnr_affine"] > without["psnr_affine"] + 1.0
    assert with_maps["chamfer_percent"] < 1.05 * without["chamfer_percent"]


@pytest.mark.parametrize(("spoil", "least_gain"), [(with_bites, 5.0), (with_strips, 1.02)])
def test_masks_that_contradict_the_others(bust, spoil, least_gain):
    without, with_option = (figures(bust, spoil, f"start.max_misses={misses}") for misses in (0, 2))
    assert with_option["chamfer_percent"] < without["chamfer_percent"] / least_gain
    assert with_option["chamfer_percent"] < 0.3


def test_soft_masks(bust):
    without, with_option = (figures(bust, out_of_focus, f"loss.rgb_min_mask={least}") for least in (0.5, 0.99))
    assert with_option["psnr"] > without["psnr"]
    assert with_option["chamfer_percent"] < 1.05 * without["chamfer_percent"]


def test_objects_cut_by_the_border(bust):
    cut = figures(bust, lambda scene: cropped(scene, 160, 220))
    assert cut["chamfer_percent"] < 0.3


def test_noisy_cameras(bust):
    fixed = figures(bust, with_noisy_cameras)
    trained = figures(bust, with_noisy_cameras, train_cameras=True, epochs=24)
    assert trained["chamfer_percent"] < 0.5 * fixed["chamfer_percent"]
    assert trained["rotation_error_degrees_mean"] < 0.5 * fixed["rotation_error_degrees_mean"]
