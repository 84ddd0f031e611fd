"""`nsr eval --h3ds`: how far a run's head, or a mesh file's, is from the scan, as the data set H3DS measures it, and where."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nsr.utils.errors import DataError, ExtensionError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from trimesh import Trimesh

    from nsr.evaluation.h3ds import HeadReference

# What this measurement may have written; a new one leaves nothing of an earlier one.
FIGURES = re.compile(r"(face|head)(_surface)?(_accuracy)?_mm|(face|head)_scale|h3ds_.*")
MESHES = (".ply", ".obj", ".glb", ".stl", ".off")
AUTO = "auto"
_OF_A_RUN = ("eval_rendering", "views", "samples", "eval_cameras", "gt", "dtu_gt", "dtu_scan", "mesh_only")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--h3ds", action="store_true", help="measure a head as H3DS does, against the scan of its scene, and draw heat maps"
    )
    parser.add_argument(
        "--landmarks",
        metavar="FILE|auto",
        help="with --h3ds, for a first alignment: lines NAME VERTEX, of the mesh (of a run: of RUN/mesh.ply), or NAME X Y Z",
    )


def is_mesh(path: Path) -> bool:
    return path.suffix.lower() in MESHES and not path.is_dir()


def check_options(args: argparse.Namespace) -> None:
    """Raises UsageError for options that do not go together, and what landmarks that cannot be had raise."""
    if args.landmarks is not None and not args.h3ds:
        raise UsageError("--landmarks: expected --h3ds beside it, whose alignment they begin")
    if args.landmarks == AUTO:
        from importlib.util import find_spec

        missing = find_spec("nsr.faces") is None
        raise ExtensionError(
            "--landmarks auto: needs the faces part of nsr (nsr.faces), which "
            f"{'is not installed' if missing else 'does not find landmarks in this version'}; mark "
            "right_eye, left_eye, nose_tip, nose_base, right_lips and left_lips by hand, and give the file (docs/heads.md)"
        )
    if args.landmarks is not None and not Path(args.landmarks).is_file():
        raise DataError(f"--landmarks {args.landmarks}: no such file; expected lines NAME VERTEX or NAME X Y Z, or auto")
    if not is_mesh(args.folder):
        return
    if not args.h3ds:
        raise UsageError(f"{args.folder}: a mesh; expected the folder of a run, or --h3ds --reference SCENE beside it")
    if args.reference is None:
        raise UsageError(f"--h3ds {args.folder}: expected --reference SCENE beside it, the scene folder with the head's scan")
    if given := [name for name in _OF_A_RUN if getattr(args, name)]:
        raise UsageError(f"--{given[0]}: is about a run, and {args.folder} is a mesh; leave it out")


def eval_mesh_file(args: argparse.Namespace) -> None:
    """Measure the mesh of a file against the scan of the scene --reference."""
    from nsr.apps.reconstruct import print_figures
    from nsr.evaluation.report import write_metrics
    from nsr.geometry.meshes import load_numbered_mesh

    out = args.out or args.folder.with_name(f"{args.folder.stem}_h3ds.json")
    if out.is_file() and b'"checkpoint"' in out.read_bytes():
        raise UsageError(f"--out {out}: holds the figures of a run; choose another name")
    mesh = load_numbered_mesh(args.folder)
    truth = Truth.read(args.reference, args.landmarks, lambda: mesh)
    figures = {"mesh": str(args.folder), **truth.measure(mesh, out)}
    write_metrics(out, figures)
    print_figures(figures, indent="")
    print(out)


class Truth(NamedTuple):
    """What a head is measured against. landmarks: of the head, as points; note: where these and the scan were read from."""

    reference: HeadReference
    landmarks: dict[str, np.ndarray] | None
    note: dict[str, str]

    @classmethod
    def read(cls, scene: str | Path, landmarks: str | None, marked: Callable[[], Trimesh]) -> Truth:
        """The scan of a scene folder, and landmarks of a head from a file; marked: the mesh that their vertices are of."""
        from nsr.datasets.h3ds import read_landmarks
        from nsr.evaluation.h3ds import landmark_points
        from nsr.training.heads import head_reference

        reference, points = head_reference(scene), None
        if landmarks is not None:
            points = landmark_points(read_landmarks(Path(landmarks)), marked, f"--landmarks {landmarks}")
        return cls(reference, points, {"h3ds_reference": str(scene), "h3ds_landmarks": landmarks or "none"})

    def measure(self, mesh: Trimesh, out: Path) -> dict[str, float | str]:
        """The figures of a mesh in world units; heat maps and a picture are written beside `out`."""
        from nsr.evaluation.h3ds import evaluate_head
        from nsr.evaluation.h3ds_pictures import write_heat_maps

        errors = evaluate_head(mesh, self.reference, self.landmarks)
        prefix = "" if out.stem == "metrics" else out.stem.removesuffix("_h3ds") + "_"
        for file in write_heat_maps(errors, out.parent, prefix):
            print(file)
        return {**errors.figures(), **self.note}


def marked_mesh(folder: Path, landmarks: str) -> Trimesh:
    """RUN/mesh.ply, whose vertices a user can have marked: those of a mesh that is extracted anew depend on its resolution."""
    from nsr.geometry.meshes import load_numbered_mesh

    file = folder / "mesh.ply"
    if not file.is_file():
        raise DataError(
            f"--landmarks {landmarks}: has vertices, but there is no {file} that they could be of; write it (nsr mesh), or "
            "give lines NAME X Y Z"
        )
    return load_numbered_mesh(file)
