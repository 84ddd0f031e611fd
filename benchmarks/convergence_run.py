"""One run of a convergence benchmark, in a process of its own: `convergence.py` starts it with the folder that describes it.

Training stands still while the model's weights are put aside at the times asked for; they are measured when training is over,
so that neither the clock nor the peak of memory knows of it. FOLDER/result.json is written last; a run that was interrupted
continues from its checkpoint, and measures what is not measured yet.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

from nsr.utils.memory import keep_freed_memory
from nsr.utils.threads import set_thread_policy

set_thread_policy()  # before torch is imported
keep_freed_memory()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from convergence_plan import Job, Measuring, threads  # noqa: E402
from PIL import Image  # noqa: E402
from trimesh import Trimesh  # noqa: E402

from nsr.config import to_tree  # noqa: E402
from nsr.datasets.detect import load_scene  # noqa: E402
from nsr.evaluation.chamfer import evaluate_mesh  # noqa: E402
from nsr.evaluation.dtu import evaluate_dtu, load_dtu_reference, scan_number  # noqa: E402
from nsr.evaluation.images import masked_psnr, silhouette_iou  # noqa: E402
from nsr.evaluation.report import render_mesh, write_metrics  # noqa: E402
from nsr.geometry.masks import is_object  # noqa: E402
from nsr.geometry.meshes import load_mesh  # noqa: E402
from nsr.geometry.poses import transform_cameras  # noqa: E402
from nsr.models.idr import IDRModel  # noqa: E402
from nsr.training.checkpoint import flatten, load_checkpoint, save_checkpoint, unflatten  # noqa: E402
from nsr.training.continuation import resume_trainer  # noqa: E402
from nsr.training.folders import has_checkpoint  # noqa: E402
from nsr.training.launch import check_device, choose_views, new_trainer, read_config, run_folder, train  # noqa: E402
from nsr.training.log import peak_memory_mb  # noqa: E402
from nsr.training.pipeline import evenly, object_window  # noqa: E402
from nsr.training.results import render_view, run_mesh, scale_cameras  # noqa: E402
from nsr.training.schedule import show_detail  # noqa: E402
from nsr.training.trainer import Trainer  # noqa: E402
from nsr.types import Cameras, Scene  # noqa: E402
from nsr.utils.errors import DataError, NsrError, RetriableError  # noqa: E402
from nsr.utils.files import atomic_write  # noqa: E402

RESULT, CURVE = "result.json", "curve.json"
CHECKPOINT_SECONDS = 60.0
LOSS_STEPS = 25  # over which the training loss is averaged
PICTURE_HEIGHT = 200  # pixels, of the gallery's pictures


def main() -> int:
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    job = Job.from_dict(json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))["arguments"]["job"])
    try:
        with run_folder(folder):
            run(job, folder, parent)
    except NsrError as error:
        print(f"{job.name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{job.name}: interrupted", file=sys.stderr)
        return RetriableError.exit_code
    return 0


def run(job: Job, folder: Path, parent: int) -> None:
    """Train, measure, and write the result."""
    scene = load_scene(job.data)
    if not scene.masked:
        raise DataError(f"{job.data}: has no masks; expected a scene with masks, which silhouettes and PSNR are measured by")
    curve = Curve(folder, job.times, parent)
    if not curve.finished:
        train_run(job, scene, folder, curve)
    measure_run(job, scene, folder, curve)
    write_metrics(folder / RESULT, {"job": job.to_dict(), **curve.result(), "config": to_tree(read_config(job.request()))})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


class Curve:
    """What is known of a run at the times it was looked at. Kept in FOLDER/curve.json; called after every step of training.

    points: of each moment the time asked for (`at`), the seconds, step and rays so far, the mean losses of the last steps, the
    peak of memory until then, and what was measured of the model. sessions: how each of the run's processes began.
    """

    def __init__(self, folder: Path, times: tuple[float, ...], parent: int) -> None:
        self.folder, self.times, self.parent = folder, times, parent
        self.state: dict = {"sessions": [], "points": [], "finished": False}
        if (folder / CURVE).is_file():
            self.state = json.loads((folder / CURVE).read_text(encoding="utf-8"))
        self.recent: deque[dict[str, float]] = deque(maxlen=LOSS_STEPS)
        self.saved = time.monotonic()

    @property
    def points(self) -> list[dict]:
        return self.state["points"]

    @property
    def finished(self) -> bool:
        """Whether training is over."""
        return self.state["finished"]

    def begin(self, trainer: Trainer, continued: bool) -> None:
        """A process takes up the run. What was seen of steps behind its checkpoint will be seen again."""
        step, seconds = trainer.clock.step, trainer.clock.seconds
        self.state["points"] = [point for point in self.points if continued and point["step"] <= step]
        self.state["sessions"].append({"from": "checkpoint" if continued else "start", "step": step, "seconds": seconds})
        self.write()

    def __call__(self, trainer: Trainer, losses: dict[str, float]) -> None:
        self.recent.append(dict(losses))
        seen = self.points[-1]["at"] if self.points else -1.0
        due = [at for at in self.times[:-1] if seen < at <= trainer.clock.seconds]
        if due or time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            with trainer.untimed():
                if due:
                    self.look(trainer, due[-1])
                trainer.save(self.folder)
            self.saved = time.monotonic()
        if os.getppid() != self.parent:
            raise RetriableError(f"the benchmark that began this run has ended, at step {trainer.clock.step}")

    def look(self, trainer: Trainer, at: float) -> None:
        """Put the weights aside, with what is known at this moment."""
        clock, number = trainer.clock, len(self.points)
        peak = peak_memory_mb(trainer.device)  # before the weights are copied and written
        tensors, rest = flatten("model", trainer.model.state_dict())
        save_checkpoint(self.snapshot(number), tensors, {"state": rest, "progress": clock.progress})
        sessions_before = [point["peak_memory_mb"] for point in self.points]
        self.points.append({
            "at": at,
            "seconds": clock.seconds,
            "step": clock.step,
            "rays": trainer.rays_seen,
            "losses": self.mean_losses(),
            "peak_memory_mb": max([peak, *sessions_before]),
            "bad_steps": trainer.guard.total,
            "rays_per_step": trainer.rays,
        })  # fmt: skip
        self.write()

    def mean_losses(self) -> dict[str, float]:
        """Over the last steps, of those that have the terms of the last one, and leaving out bad steps."""
        terms = self.recent[-1].keys() if self.recent else ()
        alike = [step for step in self.recent if step.keys() == terms and all(map(math.isfinite, step.values()))]
        return {name: float(np.mean([step[name] for step in alike])) for name in terms} if alike else {}

    def finish(self, trainer: Trainer) -> None:
        """Training has come to its end."""
        self.look(trainer, self.times[-1])
        self.state["finished"] = True
        self.write()

    def snapshot(self, number: int) -> Path:
        return self.folder / "snapshots" / f"{number:03}.safetensors"

    def write(self) -> None:
        with atomic_write(self.folder / CURVE) as file:
            json.dump(self.state, file)

    def result(self) -> dict:
        """What the run has come to. rays_per_second: since the point before, starting with the end of the start."""
        points = []
        for before, point in zip([None, *self.points], self.points, strict=False):
            since = point["seconds"] - before["seconds"] if before else 0.0
            rate = (point["rays"] - before["rays"]) / since if before and since > 0 else None
            points.append({**point, "rays_per_second": rate})
        environment = {"torch_threads": torch.get_num_threads(), "omp_num_threads": threads()}
        return {
            "sessions": self.state["sessions"],
            "start_seconds": points[0]["seconds"],
            "points": points,
            "environment": environment,
        }


def split(job: Job, scene: Scene) -> tuple[list[int], list[int], list[int]]:
    """Training views, views kept out of training, and those of the rest of the scene that are measured on."""
    if job.views is not None:
        rest = [view for view in range(len(scene)) if view not in job.views]
        training, held = list(job.views), []
        if max(training) >= len(scene) or not rest:
            raise DataError(
                f"{job.data}: has {len(scene)} views; expected views {training} to train on and others to measure on"
            )
    else:
        training, held = choose_views(replace(job.request(), holdout=job.holdout), len(scene))
        rest = held
    return training, held, evenly(rest, job.measuring.views)


def train_run(job: Job, scene: Scene, folder: Path, curve: Curve) -> None:
    request = job.request()
    training, held, _ = split(job, scene)
    continued = has_checkpoint(folder)
    if continued:
        trainer = resume_trainer(folder, request, scene, training, held)
        print(f"{job.name}: continued at step {trainer.clock.step}, {trainer.clock.seconds:.1f} s", file=sys.stderr)
    else:
        shutil.rmtree(folder / "snapshots", ignore_errors=True)
        trainer = new_trainer(request, scene, training, held)
    curve.begin(trainer, continued)
    if not continued:
        trainer.start()
        curve.look(trainer, 0.0)
    train(
        trainer,
        folder,
        how_to_continue="--resume continues it",
        say=lambda message: print(message, file=sys.stderr),
        after_step=curve,
    )
    curve.finish(trainer)


# ---------------------------------------------------------------------------------------------------------- measuring


def measure_run(job: Job, scene: Scene, folder: Path, curve: Curve) -> None:
    """Measure all points of a curve that are not measured yet; the weights put aside go."""
    config = read_config(job.request())
    device = check_device(job.device)
    judge = Judge(job, scene)
    for number, point in enumerate(curve.points):
        if "figures" in point:
            continue
        saved = load_checkpoint(curve.snapshot(number))
        model = IDRModel.build(config.model, job.seed)
        model.load_state_dict(unflatten("model", saved.tensors, saved.meta["state"]))
        show_detail(model, config.train, saved.meta["progress"])
        picture = folder / "pictures" / f"{number:03}.png"
        point["figures"] = judge(model.to(device).eval(), picture)
        curve.write()
        print(f"{job.name}: {point['seconds']:.1f} s, step {point['step']}: {point['figures']}", file=sys.stderr)
    shutil.rmtree(folder / "snapshots", ignore_errors=True)


class Judge:
    """Measures models of one scene."""

    def __init__(self, job: Job, scene: Scene) -> None:
        self.measuring: Measuring = job.measuring
        self.training, _, measured = split(job, scene)
        self.scene, self.held = scene, scene.select(measured)
        self.truth = load_mesh(scene.ground_truth) if scene.ground_truth is not None else None
        self.dtu = load_dtu_reference(job.dtu, scan_number(job.scene)) if job.dtu is not None else None
        self.stride = stride_within(self.held.cameras, self.measuring)

    def __call__(self, model: IDRModel, picture: Path) -> dict:
        """Figures of a model by name, None for what is not defined; writes a picture of its surface, where it has one."""
        figures = self.renderings(model)
        mesh = self.mesh(model)
        if mesh is not None:
            figures |= self.geometry(mesh)
            with atomic_write(picture, "wb") as file:
                Image.fromarray(self.picture(mesh)).save(file, format="png", optimize=True)
        return {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}

    def mesh(self, model: IDRModel) -> Trimesh | None:
        """In world units; None where the SDF has no surface."""
        views = self.scene.select(self.training)
        try:
            return run_mesh(
                model,
                self.scene.world_from_scene,
                resolution=self.measuring.resolution,
                color=False,
                cameras=views.cameras,
                masks=views.masks,
            )
        except DataError as error:
            print(f"no surface: {error}", file=sys.stderr)
            return None

    def geometry(self, mesh: Trimesh) -> dict:
        """Distances to the true surface, by the protocols of nsr.evaluation, where it is known."""
        figures = {}
        if self.truth is not None:
            cameras = transform_cameras(self.scene.cameras, self.scene.world_from_scene)[self.training]
            measured = evaluate_mesh(mesh, self.truth, cameras, seed=0)
            figures |= {name: measured[name] for name in ("chamfer_percent", "f_score_1percent", "normal_consistency")}
        if self.dtu is not None:
            figures |= evaluate_dtu(mesh, self.dtu)
        return figures

    def renderings(self, model: IDRModel) -> dict:
        """Means over the held-out views of the PSNR inside the masks and of the overlap of silhouettes, at every stride-th
        pixel."""
        psnr, iou = [], []
        for view in range(len(self.held)):
            shown = render_view(model, self.held.cameras, view, samples=self.measuring.samples, stride=self.stride)
            photograph, mask = (
                pictures[view, :: self.stride, :: self.stride].numpy() for pictures in (self.held.images, self.held.masks)
            )
            iou.append(silhouette_iou(shown.silhouette, mask))
            if is_object(torch.from_numpy(mask)).any():
                psnr.append(masked_psnr(shown.rgb, photograph, mask))
        return {"psnr": float(np.mean(psnr)) if psnr else None, "iou": float(np.mean(iou))}

    def picture(self, mesh: Trimesh) -> np.ndarray:
        """[PICTURE_HEIGHT, W, 3] uint8 of a mesh in the first held-out view, which shows the object's window."""
        rows, columns = object_window((self.held.masks[0] > 0).numpy())
        height, width = self.held.masks[0].shape
        top, bottom, _ = rows.indices(height)
        left, right, _ = columns.indices(width)
        camera = transform_cameras(self.held.cameras[0], self.scene.world_from_scene)
        shifted = camera.intrinsics.clone()
        shifted[:, :2, 2] -= shifted.new_tensor([left, top])
        window = Cameras(shifted, camera.camera_to_world, right - left, bottom - top)
        return render_mesh(mesh, scale_cameras(window, PICTURE_HEIGHT / window.height))


def stride_within(cameras: Cameras, measuring: Measuring) -> int:
    """The least stride with which pictures of all cameras take no more rays than allowed."""
    stride, allowed = 1, measuring.rays / (measuring.samples**2 * len(cameras))
    while -(-cameras.width // stride) * -(-cameras.height // stride) > allowed and stride < min(cameras.width, cameras.height):
        stride += 1
    return stride


if __name__ == "__main__":
    sys.exit(main())
