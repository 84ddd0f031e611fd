"""Steps whose shapes do not depend on what rays hit, as a GPU wants them: the same step, without a wait for the device."""

import pytest
import torch
from support.devices import need_device
from support.painted_ball import PaintedBall, photographs
from support.tiny_run import HEIGHT, VIEWS, WIDTH, tiny_config
from support.two_balls import cameras_around
from torch.utils._python_dispatch import TorchDispatchMode

from nsr.training.trainer import Trainer

# What hands values to the host, or makes shapes of them.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique", "equal", "is_nonzero", "_linalg_check_errors")
COLORS = ("train.color_from=1e-6",)
OPTIONS = {
    "shape": (),
    "colours": COLORS,
    "exposure": ("exposure.type=affine",),
    "colours, exposure": (*COLORS, "exposure.type=affine"),
    "shaded anew": ("model.reevaluate=true",),
    "no free space": ("start.type=hull", "loss.free_weight=0"),
    "coarse to fine, occlusion": ("photometric.levels=2", "photometric.occlusion=true", "photometric.matched=0.5"),
}


def make_trainer(padded, *options, **arguments):
    scene = photographs(cameras_around(VIEWS, WIDTH, HEIGHT), PaintedBall())
    trainer = Trainer(tiny_config("train.budget=0", "train.nepoch=10", *options), scene, **arguments)
    trainer.start()
    trainer.padded = padded
    trainer.clock.step = 1  # behind COLORS
    trainer.optimisers.zero_grad()
    return trainer


def gradients(trainer):
    parameters = dict(trainer.model.named_parameters())
    if trainer.poses is not None:
        parameters["poses"] = trainer.poses.poses.weight
    if trainer.exposure is not None:
        parameters["exposure"] = trainer.exposure.deviation
    grads = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    return {name: grad.to_dense() if grad.is_sparse else grad for name, grad in grads.items()}


@pytest.mark.parametrize(
    ("options", "cameras"), [*((o, False) for o in OPTIONS.values()), ((), True)], ids=[*OPTIONS, "cameras"]
)
def test_the_same_losses_and_gradients(options, cameras):
    found = []
    for padded in (False, True):
        trainer = make_trainer(padded, *options, train_cameras=cameras)
        names, values, rays = trainer._gradients(trainer._plan())
        *losses, length = values.tolist()
        found.append((names, losses, length, rays, gradients(trainer)))
    (names, losses, length, rays, grads), (padded_names, padded_losses, padded_length, padded_rays, padded_grads) = found
    assert (names, rays) == (padded_names, padded_rays)
    assert length == pytest.approx(padded_length, rel=1e-4)
    assert losses == pytest.approx(padded_losses, rel=1e-5, abs=1e-7)
    assert losses[names.index("loss")] > 0
    assert grads.keys() == padded_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(
            padded_grads[name], grad, rtol=1e-3, atol=1e-5 * max(grad.abs().max().item(), 1e-3), msg=name
        )


class NoWaiting(TorchDispatchMode):
    """Raises where an op would make the host wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_flags = name in ("index", "index_put_", "index_put") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        assert name not in WAITS, f"{name} waits for the device"
        assert not by_flags, f"{name} with flags waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_host_waits_for_nothing(options, monkeypatch):
    monkeypatch.setattr("nsr.ops.patch_ncc._check_tensors", lambda *_: None)  # looks at values on the CPU alone
    trainer = make_trainer(True, *options)
    plan = trainer._plan()
    with NoWaiting():
        trainer._work(plan)


def test_waiting_is_noticed():
    trainer = make_trainer(False)
    plan = trainer._plan()
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        trainer._losses(plan)


def test_nothing_to_see_gives_no_gradient():
    """No ray hits: the rows that are there for the shape alone pull at nothing."""
    trainer = make_trainer(True)
    with torch.no_grad():
        *_, bias = [p for name, p in trainer.model.implicit_network.named_parameters() if name.endswith("bias")]
        bias[0] += 10.0
    losses, _ = trainer._losses(trainer._plan())
    assert losses["rgb"] == 0
    assert losses["photometric"] == 0
    assert losses["smoothness"] == 0
    losses["rgb"].backward()
    assert all(grad.eq(0).all() for grad in gradients(trainer).values())


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_gpu_takes_the_step_and_nobody_waits(options):
    need_device("cuda")
    scene = photographs(cameras_around(VIEWS, WIDTH, HEIGHT), PaintedBall())
    config = tiny_config("train.budget=0", "train.nepoch=10", *options)
    losses = []
    for device in ("cpu", "cuda"):
        trainer = Trainer(config, scene.to(device))
        trainer.start()
        trainer.clock.step = 1
        losses.append(trainer.step()["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.5)  # other random numbers
    plan = trainer._plan()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._work(plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")
