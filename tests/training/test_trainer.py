"""The training loop on a tiny scene: it learns, it resumes bit for bit, it survives bad steps and lack of memory."""

import dataclasses
import math
import time

import numpy as np
import pytest
import torch
from support.sphere_run import small_config, sphere_scene, state_of, vanilla_config

from nsr.geometry.voxels import Voxels
from nsr.models.losses import LossConfig
from nsr.training.checkpoint import load_checkpoint
from nsr.training.settings import Config, StartConfig
from nsr.training.stereo import StereoStart
from nsr.training.trainer import Trainer
from nsr.utils.errors import CheckpointError, DataError, RetriableError, TrainingError


def losses_of(config: Config, part: int = 8) -> tuple[dict, dict]:
    """Mean losses over the first and over the last steps of a run."""
    history = []
    Trainer(config, sphere_scene()).fit(on_step=lambda _, losses: history.append(losses))
    return tuple({k: np.mean([s[k] for s in steps]) for k in steps[0]} for steps in (history[:part], history[-part:]))


def test_every_loss_of_the_vanilla_configuration_improves():
    early, late = losses_of(vanilla_config(nepoch=8))
    for name in ("loss", "rgb", "mask", "eikonal"):
        assert late[name] < early[name], name
    assert late["rgb"] < 0.9 * early["rgb"]


def test_instant_configuration_improves_colour_and_keeps_the_hull():
    early, late = losses_of(small_config(nepoch=20))
    assert late["rgb"] < 0.6 * early["rgb"]
    assert late["loss"] < early["loss"]
    # The hull start has already removed these two: they must stay small.
    assert late["mask"] < 2e-3
    assert late["eikonal"] < 0.1


def test_surface_moves_to_the_sphere():
    trainer = Trainer(small_config(nepoch=40), sphere_scene(views=8))
    trainer.fit()
    directions = torch.nn.functional.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    with torch.no_grad():
        assert trainer.model.sdf(0.6 * directions).abs().mean() < 0.03
        assert (trainer.model.sdf(0.4 * directions) < 0).all()
        assert (trainer.model.sdf(0.8 * directions) > 0).all()


@pytest.mark.parametrize("cameras", [False, True])
@pytest.mark.parametrize(
    "config", [small_config(), small_config(color_from=0.4), vanilla_config()], ids=["instant", "colours last", "vanilla"]
)
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, config, cameras):
    scene = sphere_scene()
    straight = Trainer(config, scene, seed=3, train_cameras=cameras)
    straight.fit()

    first = Trainer(config, scene, seed=3, train_cameras=cameras)
    stop_at = straight.clock.step // 2

    def stop(trainer, _):
        if trainer.clock.step == stop_at:
            trainer.save(tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.fit(on_step=stop)
    second = Trainer(config, scene, seed=99, train_cameras=cameras)  # nothing of its own seed may survive
    second.resume(tmp_path / "checkpoints" / "latest.safetensors")
    second.fit()
    assert second.clock.step == straight.clock.step
    for got, expected in zip(state_of(second), state_of(straight), strict=True):
        assert torch.equal(got, expected)


def test_same_seed_same_run_other_seed_other_run():
    runs = []
    for seed in (1, 1, 2):
        trainer = Trainer(small_config(nepoch=1), sphere_scene(), seed=seed)
        trainer.fit()
        runs.append(state_of(trainer))
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_training_refines_perturbed_cameras():
    scene = sphere_scene(views=8)
    noisy = scene.cameras.camera_to_world.clone()
    noisy[:, :3, 3] += 0.05 * torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    perturbed = dataclasses.replace(scene, cameras=dataclasses.replace(scene.cameras, camera_to_world=noisy))
    trainer = Trainer(small_config(nepoch=40, learning_rate_cam=2e-3), perturbed, train_cameras=True)
    trainer.fit()
    moved = (trainer.cameras().camera_to_world - noisy).abs().amax(dim=(1, 2))
    assert (moved > 1e-3).all()  # every view's pose is a parameter
    # Silhouette and colour fix the directions to the object; a common similarity is free, so compare after removing the mean.
    error = [
        (c - c.mean(0) - (scene.cameras.centers - scene.cameras.centers.mean(0))).norm(dim=1).mean().item()
        for c in (noisy[:, :3, 3], trainer.cameras().centers.detach())
    ]
    assert error[1] < error[0]


def rates(trainer: Trainer) -> dict[str, float]:
    return {name: member.param_groups[0]["lr"] for name, member in trainer.optimisers.members.items()}


def test_steps_follow_the_schedule_of_rates_but_not_for_cameras():
    own = {"learning_rate": 2e-3, "table_learning_rate": 7e-3, "learning_rate_cam": 5e-4}
    trainer = Trainer(small_config(nepoch=2, lr_final=0.01, **own), sphere_scene(), train_cameras=True)
    for step in range(12):
        trainer.step()
        factor = 0.01 ** (step / 12)
        assert rates(trainer) == pytest.approx({"networks": 2e-3 * factor, "tables": 7e-3 * factor, "cameras": 5e-4})
    epochs = vanilla_config(nepoch=3, lr_milestones=(1, 2), lr_factor=0.5, learning_rate_cam=5e-4)
    trainer, seen = Trainer(epochs, sphere_scene(), train_cameras=True), []
    trainer.fit(on_step=lambda t, _: seen.append(tuple(rates(t).values())))
    assert [s[0] for s in seen] == [1e-3] * 6 + [5e-4] * 6 + [2.5e-4] * 6
    assert {s[1] for s in seen} == {5e-4}


def test_a_camera_moves_at_its_own_rate():
    scene = sphere_scene()
    moved = []
    for rate in (1e-3, 1e-5):
        trainer = Trainer(small_config(learning_rate_cam=rate), scene, train_cameras=True)
        trainer.step()
        rows = trainer.poses.poses.weight.detach()
        moved.append((rows - Trainer(small_config(), scene, train_cameras=True).poses.poses.weight.detach()).abs().max().item())
    assert moved == pytest.approx([1e-3, 1e-5], rel=0.05)  # Adam's first step is as long as its rate


def test_terms_of_the_shape_take_the_cameras_as_fixed():
    """The photometric term has but half of the derivative by them; colours have all of it."""
    trainer = Trainer(small_config(), sphere_scene(), train_cameras=True)
    trainer.start()
    output = trainer._forward(trainer.sampler.draw(128))
    poses, network = trainer.poses.poses.weight, trainer.model.implicit_network.parameters()
    for of_shape in (output.points, output.normal):
        assert len(of_shape) > 5
        moves, *_ = torch.autograd.grad(of_shape.square().sum(), [poses, *network], allow_unused=True, retain_graph=True)
        assert moves is None
    (moves,) = torch.autograd.grad(output.rgb.sum(), [poses], retain_graph=True)
    assert moves.to_dense().abs().max() > 0


def test_gradients_of_poses_that_are_not_finite_are_noticed():
    trainer = Trainer(small_config(), sphere_scene(), train_cameras=True)
    trainer._gradients(trainer._plan())
    assert math.isfinite(trainer.optimisers.gradient_norm())
    trainer.poses.poses.weight.grad *= math.nan
    assert not math.isfinite(trainer.optimisers.gradient_norm())


def test_a_run_of_another_kind_of_device_is_not_continued(tmp_path):
    """The state of a CUDA generator is of another length."""
    trainer = Trainer(small_config(), sphere_scene())
    checkpoint = load_checkpoint(trainer.save(tmp_path))
    (name,) = [name for name in checkpoint.tensors if name.endswith("generator") and "sampler" not in name]
    tensors = checkpoint.tensors | {name: torch.zeros(16, dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match="another kind of device"):
        Trainer(small_config(), sphere_scene()).resume(dataclasses.replace(checkpoint, tensors=tensors))


def test_neighbours_are_beside_their_centres(monkeypatch):
    trainer = Trainer(small_config(), sphere_scene())
    trainer.start()
    offsets = []
    forward = trainer.model.forward
    monkeypatch.setattr(trainer.model, "forward", lambda *a: (offsets.append(a[3]), forward(*a))[1])
    output = trainer._forward(trainer.sampler.draw(128))
    assert offsets[0].shape == (32, 3)
    assert offsets[0].square().mean().sqrt().item() == pytest.approx(trainer.config.sampling.neighbour_sigma, rel=0.3)
    assert output.centre_gradient.shape[0] > 5
    assert ((output.neighbour_gradient - output.centre_gradient).norm(dim=1) > 1e-5).all()


def test_non_finite_loss_changes_nothing_and_then_stops(monkeypatch):
    trainer = Trainer(small_config(max_bad_steps=3), sphere_scene())
    trainer.step()
    before = [t.clone() for t in state_of(trainer)]
    forward = trainer._forward
    monkeypatch.setattr(trainer, "_forward", lambda batch: forward(batch)._replace(sdf=forward(batch).sdf * float("nan")))
    for _ in range(2):
        trainer.step()
    with pytest.raises(TrainingError, match="finite"):
        trainer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(trainer), strict=True))


def test_out_of_memory_halves_the_rays_then_gives_up_with_the_state_saved(tmp_path, monkeypatch):
    trainer = Trainer(small_config(), sphere_scene())
    losses, most = trainer._losses, [64]

    def losses_within(plan):
        if trainer.rays > most[0]:
            raise MemoryError
        return losses(plan)

    monkeypatch.setattr(trainer, "_losses", losses_within)
    trainer.step(tmp_path)
    assert trainer.rays == 64
    most[0] = 1
    with pytest.raises(RetriableError) as stopped:  # how to continue is for the command to say
        trainer.step(tmp_path)
    assert str(stopped.value).endswith(f"out of memory with 64 rays per step at step 1; the state is saved in {tmp_path}")
    assert (tmp_path / "checkpoints" / "latest.safetensors").exists()


def test_out_of_memory_in_the_optimisers_does_not_step_twice(tmp_path, monkeypatch):
    trainer = Trainer(small_config(), sphere_scene())
    calls = []

    def step(skip):
        calls.append(None)
        raise MemoryError

    monkeypatch.setattr(trainer.optimisers, "step", step)
    with pytest.raises(RetriableError, match=r"out of memory in the optimisers at step 0; the last checkpoint in .* is whole"):
        trainer.step(tmp_path)
    assert len(calls) == 1
    assert not any(tmp_path.iterdir())
    assert trainer.clock.step == 0


def test_optimisers_of_older_checkpoints_are_read():
    """They counted a table's steps in Python, and said which kernels step."""
    trainer, other = (Trainer(small_config(), sphere_scene()) for _ in range(2))
    for _ in range(3):
        trainer.step()
    saved = trainer.optimisers.state_dict()
    for of_parameter in saved["tables"]["state"].values():
        of_parameter["step"] = int(of_parameter["step"])
    saved["networks"]["param_groups"][0] |= {"fused": None, "capturable": True}
    other.optimisers.load_state_dict(saved)
    for table in other.optimisers.members["tables"].state.values():
        assert table["step"].dtype == torch.float64
        assert table["step"] == 3
    group = other.optimisers.members["networks"].param_groups[0]
    assert (group["fused"], group["capturable"]) == (True, False)
    other.step()


def test_pictures_during_training_are_not_training_time():
    trainer, took = Trainer(small_config(nepoch=1), sphere_scene()), 0.3

    def look(trainer, _):
        with trainer.untimed():
            time.sleep(took)

    began = time.perf_counter()
    trainer.fit(on_step=look)
    passed = time.perf_counter() - began
    assert trainer.clock.seconds <= passed - took * trainer.clock.step


def test_what_stereo_saw_as_free_survives_a_checkpoint(tmp_path):
    start = StartConfig(type="stereo", resolution=32, steps=20, points=512)
    config, scene = dataclasses.replace(small_config(), start=start), sphere_scene()
    first = Trainer(config, scene)
    first.start()
    first.free_space.occupied[:16] = True  # plenty, so that losing it would show
    first.save(tmp_path)
    second = Trainer(config, scene)
    second.resume(tmp_path / "checkpoints" / "latest.safetensors")
    assert torch.equal(second.free_space.occupied, first.free_space.occupied)
    unbound = Trainer(config, scene)
    unbound.resume(tmp_path / "checkpoints" / "latest.safetensors")
    unbound.free_space = None
    losses = first.step()
    assert second.step() == losses
    assert unbound.step()["mask"] < losses["mask"]


def test_training_starts_from_what_stereo_leaves(monkeypatch):
    def carve(hull, scene, config, generator, share):
        assert share == 1  # a run without a budget has no reason to hurry
        inner = torch.linspace(-hull.extent, hull.extent, 32).square()
        surface = inner[:, None, None] + inner[:, None] + inner < 0.25**2
        seen_through = hull.occupied & ~surface
        seen_through[16:] = False  # the other half has only been cut off
        return StereoStart(
            Voxels(surface, hull.extent), Voxels(seen_through, hull.extent), torch.zeros(0, 3), torch.zeros(0, 3)
        )

    monkeypatch.setattr("nsr.training.start.carve_by_stereo", carve)
    start = StartConfig(type="stereo", resolution=32, steps=60, points=512)
    trainer = Trainer(dataclasses.replace(small_config(), start=start), sphere_scene())
    trainer.start()
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    with torch.no_grad():
        assert (trainer.model.sdf(0.05 * directions) < 0).all()
        assert (trainer.model.sdf(0.5 * directions) > 0).all()  # inside the hull, whose radius is 0.6
    left = directions[:, 0] < -0.3
    assert trainer.free_space.contain(0.5 * directions[left]).all()
    assert not trainer.free_space.contain(0.5 * directions[directions[:, 0] > 0.3]).any()
    assert trainer.free_space.contain(0.9 * directions).all()  # outside the hull
    assert not trainer.free_space.contain(0.05 * directions).any()


def test_the_shape_rate_slows_the_implicit_network_alone():
    trainer = Trainer(small_config(shape_rate=1e-6), sphere_scene())
    trainer.start()
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.step()
    moved = {name: (value - before[name]).abs().max().item() for name, value in trainer.model.named_parameters()}
    for name, distance in moved.items():
        if name.startswith("implicit_network"):
            assert distance < 1e-7, name
        elif name.endswith(("weight", "table")):
            assert distance > 1e-3, name


@pytest.mark.parametrize("exposure", ["none", "affine"])
def test_colours_alone_learn_last(exposure):
    """From color_from on the shape and the cameras stay as they are, and the colours come closer to the photographs."""
    config = small_config(nepoch=10, color_from=0.5)
    config = dataclasses.replace(
        config,
        sampling=dataclasses.replace(config.sampling, color_rays=600),
        exposure=dataclasses.replace(config.exposure, type=exposure),
    )
    trainer = Trainer(config, sphere_scene(), train_cameras=True)
    shapes, colours, errors, rays = [], [], [], []

    def look(trainer: Trainer, losses: dict[str, float]) -> None:
        shape = [*trainer.model.implicit_network.parameters(), *trainer.poses.parameters()]
        shapes.append(torch.cat([p.detach().flatten().clone() for p in shape]))
        colours.append(torch.cat([p.detach().flatten().clone() for p in trainer.model.rendering_network.parameters()]))
        errors.append(losses["rgb"])
        rays.append(trainer.rays_seen)
        assert ("mask" in losses) == (len(errors) <= 30)
        assert ("exposure" in losses) == (exposure == "affine")

    trainer.fit(on_step=look)
    assert len(shapes) == 60
    assert not torch.equal(shapes[28], shapes[29])
    assert all(torch.equal(shape, shapes[29]) for shape in shapes[30:])
    assert not torch.equal(colours[30], colours[29])
    assert np.diff(rays[27:33]).tolist() == [128, 128, 600, 600, 600]
    assert np.mean(errors[-6:]) < 0.8 * np.mean(errors[30:34])


def test_a_step_of_colours_shrinks_with_the_others():
    """Where memory has run out, both kinds of step take as much less."""
    trainer = Trainer(small_config(nepoch=1, color_from=1e-6), sphere_scene())
    trainer.start()
    trainer.clock.step = 1
    trainer.rays = 32  # of 128
    trainer.step()
    assert trainer.rays_seen == 8192 // 4


def test_cameras_that_are_yet_to_be_corrected_bind_no_space():
    start = StartConfig(type="stereo", resolution=32, steps=5, points=64)
    trainer = Trainer(dataclasses.replace(small_config(), start=start), sphere_scene(), train_cameras=True)
    trainer.start()
    assert trainer.free_space is None


def test_without_its_weight_free_space_binds_nothing():
    config = dataclasses.replace(small_config(), loss=LossConfig(free_weight=0.0))
    trainer = Trainer(config, sphere_scene())
    trainer.start()
    assert trainer.free_space is None


def test_masks_without_common_volume_are_refused():
    scene = sphere_scene()
    masks = torch.zeros_like(scene.masks)
    for i in range(len(scene)):  # each view sees something elsewhere
        row, column = divmod(i, 3)
        masks[i, row * 12 : row * 12 + 4, column * 8 : column * 8 + 4] = 255
    with pytest.raises(DataError, match="visual hull"):
        Trainer(small_config(), dataclasses.replace(scene, masks=masks)).fit()
