"""The whole way in one call: check a scene, train, mesh, measure, and write everything a user wants to look at."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import trimesh

from nsr.evaluation.chamfer import evaluate_mesh
from nsr.evaluation.h3ds import HeadReference, evaluate_head
from nsr.evaluation.h3ds_pictures import FILES as HEAD_FILES
from nsr.evaluation.poses import evaluate_cameras
from nsr.evaluation.report import error_heatmap, preview_picture, render_mesh, write_metrics, write_report
from nsr.geometry.camera_paths import turntable_cameras
from nsr.geometry.meshes import load_mesh, save_mesh
from nsr.geometry.poses import transform_cameras
from nsr.geometry.raycast import Raycaster
from nsr.geometry.unseen import Unseen, treat_unseen
from nsr.models.idr import IDRModel
from nsr.training.continuation import KEPT_FIGURES, continued_device, last_whole_checkpoint, resume_trainer
from nsr.training.estimated_masks import FOLDER as MASK_FOLDER
from nsr.training.folders import has_checkpoint
from nsr.training.heads import head_reference_of
from nsr.training.launch import AUTO, RunRequest, new_trainer, open_scene, refuse_errors, run_folder, train
from nsr.training.log import peak_memory_mb
from nsr.training.results import (
    check_min_views,
    evaluate_rendering,
    refined_scene,
    render_view,
    run_figures,
    run_mesh,
    training_views,
)
from nsr.training.run import load_run, reading, reference_cameras
from nsr.training.trainer import Trainer
from nsr.types import Cameras, Scene
from nsr.utils.errors import RetriableError, UsageError

RESULTS = {  # file: what it is; the report comes last, so a folder with one is finished
    "mesh.ply": "mesh",
    "mesh.glb": "mesh",
    "preview.png": "pictures",
    "turntable.png": "pictures",
    "metrics.json": "metrics",
    "report.html": "report",
}
OF_THE_RUN = ("checkpoints", "metrics.csv", "runconf.conf", "plots", MASK_FOLDER)
MEASURED_VIEWS = 8  # training views to measure on when none is held out
PREVIEW_VIEWS = 4
TURNTABLE_VIEWS = 6
ESTIMATED_NOTE = "There were no masks: they were estimated, from held-out photographs as well, and figures are inside them."


def reconstruct(
    request: RunRequest,
    out: Path,
    *,
    ground_truth: Path | None = None,
    resolution: int,
    unseen: Unseen = "keep",
    min_views: int = 1,
    check: bool = True,
    overwrite: bool = False,
    renderings: bool = True,
    say: Callable[[str], None] = print,
) -> dict:
    """Reconstruct a scene into the folder `out`; returns what metrics.json holds.

    Writes mesh.ply, mesh.glb (world units), preview.png, turntable.png, report.html, metrics.json, and the run itself. An
    unfinished run of the same request in `out` is continued; overwrite: whatever results are there are removed instead.
    unseen, min_views: what becomes of surface that fewer training views see (see nsr.geometry.unseen). Figures are of the
    whole mesh; of a trimmed one there are figures beside them, under "trimmed". Among them is wall_seconds: from the call to
    the written mesh, with what a budget does not count (reading and checking the scene, extracting the mesh). Of a scene in
    H3DS's layout there are face_mm and head_mm, by the protocol of nsr.evaluation.h3ds without landmarks.
    renderings: False leaves out what pictures of the model are needed for: figures of renderings, and preview.png.
    Raises UsageError when `out` holds other results or another process writes them, DataError when the scene fails its check
    (unless check is False), RetriableError when interrupted, and what training raises.
    """
    with run_folder(out):
        began = time.perf_counter()
        trained = _train(request, out, ground_truth, unseen, min_views, check, overwrite, say)
        try:
            return _results(trained, out, resolution, unseen, min_views, renderings, began, say)
        except KeyboardInterrupt as error:
            raise RetriableError(
                f"interrupted after training, which is saved in {out}: {_how_to_continue(overwrite)}"
            ) from error


def pretrain(request: RunRequest, out: Path, *, say: Callable[[str], None] = print) -> Trainer:
    """Train on a scene into the folder `out`, as reconstruct does, but for the mesh and its figures: for a prior."""
    with run_folder(out):
        return _train(request, out, None, "keep", 1, check=True, overwrite=False, say=say).trainer


def _how_to_continue(overwrite: bool) -> str:
    """Advice to a user whose run was interrupted."""
    return f"run the same command again{', without --overwrite,' if overwrite else ''} to continue"


class _Trained(NamedTuple):
    """A trained run in a folder. reference: the true surface, in world units; head: the same of a scene in H3DS's layout, with
    its regions; continued: another process began it."""

    trainer: Trainer
    scene: Scene
    train_views: list[int]
    held: list[int]
    reference: trimesh.Trimesh | None
    head: HeadReference | None
    continued: bool


def _train(
    request: RunRequest,
    out: Path,
    ground_truth: Path | None,
    unseen: Unseen,
    min_views: int,
    check: bool,
    overwrite: bool,
    say: Callable[[str], None],
) -> _Trained:
    unfinished = not overwrite and _holds_unfinished_run(out)
    automatic = request.device == AUTO
    if unfinished and automatic:  # before the scene is opened, whose masks may have to be estimated
        file, saved = last_whole_checkpoint(out, say=lambda _: None)
        with reading(file):
            request = replace(request, device=continued_device(request.device, saved))
    scene, train_views, held, silhouette_seconds = open_scene(request, say, out if unfinished else None)
    check_min_views(min_views, len(train_views), unseen)
    if check:
        refuse_errors(scene.select(sorted([*train_views, *held])), say)
    reference_file = ground_truth or scene.ground_truth
    reference = load_mesh(reference_file) if reference_file is not None else None
    head = head_reference_of(scene.source)
    if unfinished:
        trainer = resume_trainer(out, request, scene, train_views, held, say)
        say(f"{out}: continuing an unfinished run at step {trainer.clock.step}")
    else:
        trainer = new_trainer(request, scene, train_views, held)
    if silhouette_seconds:
        trainer.meta["silhouette_seconds"] = silhouette_seconds
    say(f"{scene.name}: {len(train_views)} views of {scene.cameras.width}x{scene.cameras.height}, {len(held)} held out")
    if automatic:
        say(f"device: {trainer.device}")
    old = (*RESULTS, *OF_THE_RUN, *HEAD_FILES) if overwrite else ()
    estimated = scene if silhouette_seconds else None
    train(trainer, out, old=old, estimated=estimated, how_to_continue=_how_to_continue(overwrite), say=say)
    return _Trained(trainer, scene, train_views, held, reference, head, unfinished)


def _results(
    trained: _Trained,
    out: Path,
    resolution: int,
    unseen: Unseen,
    min_views: int,
    renderings: bool,
    began: float,
    say: Callable[[str], None],
) -> dict:
    trainer, scene, train_views, held, reference, head, continued = trained
    say("extracting the mesh")
    run = load_run(out, trainer.device)
    masks = trainer.scene.masks.cpu()  # the trusted ones: what a wrong mask leaves out is not unseen
    mesh = run_mesh(run.model, run.world_from_scene, resolution=resolution, cameras=run.cameras, masks=masks)
    shown, shown_figures = treat_unseen(mesh, training_views(run, masks), unseen, min_views)
    for suffix in ("ply", "glb"):
        save_mesh(shown, out / f"mesh.{suffix}")

    until_mesh = time.perf_counter() - began
    say("measuring")
    refined = refined_scene(run, scene)
    views = refined.select(held or evenly(train_views, MEASURED_VIEWS))
    metrics = {
        "scene": scene.name,
        **run_figures(run),
        **({"prior": trainer.meta["prior"]["source"]} if "prior" in trainer.meta else {}),
        **{key: trainer.meta[key] for key in KEPT_FIGURES if key in trainer.meta},
        "peak_memory_mb": peak_memory_mb(trainer.device),
        "rays_per_step": trainer.rays,
        "bad_steps": trainer.guard.total,
        **({"recorded_graphs": trainer.graph.recordings} if trainer.device.type == "cuda" else {}),
        **({} if continued else {"wall_seconds": until_mesh}),
        **shown_figures,
    }
    if renderings:
        metrics |= evaluate_rendering(run.model, views, affine=run.exposure is not None)
        metrics["psnr_views"] = "held out" if held else "training"
    if scene.reference is not None:
        metrics |= evaluate_cameras(transform_cameras(run.cameras, scene.world_from_scene), scene.reference[train_views])
    if reference is not None:
        cameras_world = reference_cameras(scene)[train_views]
        metrics |= evaluate_mesh(mesh, reference, cameras_world, seed=0) | head_figures(mesh, head)
        if unseen == "trim":
            metrics["trimmed"] = evaluate_mesh(shown, reference, cameras_world, seed=0) | head_figures(shown, head)
    write_metrics(out / "metrics.json", metrics)
    heatmap = error_heatmap(shown, reference) if reference is not None else None
    if renderings:
        write_preview(out / "preview.png", run.model, views, shown, heatmap)
    write_turntable(out / "turntable.png", shown, refined.cameras, refined.world_from_scene)
    notes = ESTIMATED_NOTE if metrics["masks"] == "estimated" else "", unseen_note(unseen, min_views)
    write_report(
        out / "report.html",
        title=f"{scene.name}: {len(train_views)} views, {trainer.clock.seconds:.0f} s of training",
        metrics=metrics,
        pictures=[out / name for name in ("preview.png", "turntable.png") if (out / name).is_file()],
        note=" ".join(filter(None, notes)),
    )
    return metrics


def head_figures(mesh: trimesh.Trimesh, head: HeadReference | None) -> dict[str, float]:
    """face_mm and head_mm of a mesh in world units; nothing where there is no head to measure it against."""
    if head is None:
        return {}
    errors = evaluate_head(mesh, head)
    return {"face_mm": errors.face_mm, "head_mm": errors.head_mm}


def unseen_note(unseen: Unseen, min_views: int) -> str:
    """What the report says of surface that no view has seen; nothing when it is kept like the rest."""
    fewer = "no training view" if min_views == 1 else f"fewer than {min_views} training views"
    says = {
        "keep": "",
        "mark": f"Grey and hatched: surface that {fewer} saw. It is a guess.",
        "trim": f"Surface that {fewer} saw was cut away: the mesh is open there. The metrics are of the whole surface, those "
        "under “trimmed” of what was left.",
    }
    return says[unseen]


def _holds_unfinished_run(out: Path) -> bool:
    """Whether there is a run to continue. Raises UsageError for finished results, or ones whose run is not there."""
    if has_checkpoint(out) and not (out / "report.html").is_file():
        return True
    found = [name for name in RESULTS if (out / name).is_file()]
    if found:
        raise UsageError(
            f"--out {out}: holds the results of an earlier run ({', '.join(found)}); --overwrite replaces them, another --out "
            "keeps them"
        )
    return False


def evenly(items: list[int], count: int) -> list[int]:
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def write_preview(
    path: Path, model: IDRModel, views: Scene, mesh: trimesh.Trimesh, heatmap: trimesh.Trimesh | None = None
) -> None:
    """Contact sheet of a few views as photograph, rendering, normals and mesh; and the mesh coloured by its error."""
    in_world = transform_cameras(views.cameras, views.world_from_scene)
    raycaster = Raycaster(mesh)
    rows = []
    for view in evenly(list(range(len(views))), PREVIEW_VIEWS):
        shown = render_view(model, views.cameras, view)
        rgb, normal = (shown.on_white(picture) for picture in (shown.rgb, 0.5 + 0.5 * shown.normal))
        window = object_window(((views.masks[view] > 0) | shown.silhouette.cpu()).numpy())
        pictures = [views.images[view].numpy(), rgb, normal, render_mesh(mesh, in_world, view, raycaster=raycaster)]
        if heatmap is not None:
            pictures.append(render_mesh(heatmap, in_world, view, surface="colors", raycaster=raycaster))
        rows.append((views.view_names[view], [picture[window] for picture in pictures]))
    columns = ["photograph", "rendering", "normals", "mesh"]
    preview_picture(path, rows, columns=columns if heatmap is None else [*columns, "error (red: 1 % or more)"])


def write_turntable(path: Path, mesh: trimesh.Trimesh, cameras: Cameras, world_from_scene: np.ndarray) -> None:
    """Contact sheet of the mesh from all round.

    cameras: all of the scene's, in its frame; they tell what is up and what is in front.
    """
    around = transform_cameras(turntable_cameras(cameras, TURNTABLE_VIEWS), world_from_scene)
    raycaster = Raycaster(mesh)
    shown = {
        label: [render_mesh(mesh, around, view, surface=surface, raycaster=raycaster) for view in range(TURNTABLE_VIEWS)]
        for label, surface in (("shape", "clay"), ("colour", "colors"))
    }
    window = object_window(np.any([picture.min(axis=-1) < 255 for picture in shown["shape"]], axis=0))
    rows = [(label, [picture[window] for picture in pictures]) for label, pictures in shown.items()]
    degrees = [f"{360 * view // TURNTABLE_VIEWS}°" for view in range(TURNTABLE_VIEWS)]
    preview_picture(path, rows, columns=degrees)


def object_window(shown: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a picture [H, W] around what is shown in it, with a small margin; all of it where nothing is."""
    window = []
    for axis, size in enumerate(shown.shape):
        used = np.flatnonzero(shown.any(axis=1 - axis))
        margin = size // 40
        window.append(slice(max(used[0] - margin, 0), used[-1] + margin + 1) if used.size else slice(None))
    return tuple(window)
