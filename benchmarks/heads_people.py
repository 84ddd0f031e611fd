"""People of a morphable head model as meshes, for the priors of benchmarks/heads.py: synthetic, and other people than those
that are measured.

    python benchmarks/heads_people.py ../shared/data/morphable/ict_facekit_light.npz --count 96 --seed 1000 --out runs/people \\
        --apart-from ../shared/data/heads

Each is a PLY file in millimetres: the skin of head and neck, and the eyes, cut below the neck and closed there, as scans of
heads are. The identity's coefficients are drawn from a standard normal distribution; the expression is neutral.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from nsr.apps.options import whole_number
from nsr.evaluation.chamfer import point_to_mesh
from nsr.geometry.meshes import components, load_mesh, new_mesh, save_mesh, select_vertices
from nsr.utils.errors import DataError, NsrError, UsageError

CUT = -131.0  # mm, height below which the neck is cut off, as in ../shared/data/heads
APART = 1.0  # mm, mean distance of two people's skins under which they count as the same person


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="NPZ", help="mean [N, 3] and identity [K, N, 3] in cm, tri [T, 3]")
    parser.add_argument("--count", type=whole_number(1, "people"), default=96, metavar="N", help="default %(default)s")
    parser.add_argument("--seed", type=whole_number(0, "a seed"), default=1000, metavar="N", help="default %(default)s")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder, or one that is empty")
    parser.add_argument("--apart-from", type=Path, metavar="HEADS", help="folder of heads that none of them may be")
    return parser


class People:
    """A morphable head model, reduced to what a scan would show."""

    def __init__(self, file: Path) -> None:
        try:
            with np.load(file) as model:
                self.mean, self.identity, triangles = (model[name] for name in ("mean", "identity", "tri"))
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{file}: expected an .npz file with mean, identity and tri: {error}") from error
        whole = new_mesh(self.mean.astype(np.float64), triangles)
        label, _ = components(whole)
        sizes = np.bincount(label)
        by_size = np.argsort(-sizes, kind="stable")
        # The largest is the skin; eyes are balls: as deep as they are wide, unlike the inside of the mouth and the teeth.
        shown = [by_size[0], *(part for part in by_size[1:] if _is_eye(whole.vertices[label == part]))]
        self.keep = np.isin(label, shown)
        self.faces = select_vertices(whole, self.keep).faces

    def mesh(self, coefficients: np.ndarray):
        """The head of an identity [K], in mm, cut and closed below the neck."""
        offsets = np.tensordot(coefficients, self.identity[:, self.keep].astype(np.float64), axes=1)
        return closed_below(new_mesh(10.0 * (self.mean[self.keep] + offsets), self.faces), CUT)


def _is_eye(vertices: np.ndarray) -> bool:
    size = np.ptp(vertices, axis=0)
    return len(vertices) >= 500 and size.max() < 1.35 * size.min()


def closed_below(mesh, height: float):
    """The mesh without what lies below a height (y), its open rim there filled by a fan about the rim's middle."""
    from trimesh.intersections import slice_faces_plane

    vertices, faces, _ = slice_faces_plane(
        np.asarray(mesh.vertices), np.asarray(mesh.faces), np.array([0.0, 1.0, 0.0]), np.array([0.0, height, 0.0])
    )
    directed = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    sides = {(int(a), int(b)) for a, b in directed}
    low = np.abs(vertices[:, 1] - height) < 1e-6
    rim = np.array([side for side in sides if side[::-1] not in sides and low[list(side)].all()]).reshape(-1, 2)
    if not len(rim):
        return new_mesh(vertices, faces)
    middle = len(vertices)
    fan = np.column_stack([rim[:, 1], rim[:, 0], np.full(len(rim), middle)])
    return new_mesh(np.vstack([vertices, vertices[rim[:, 0]].mean(axis=0)]), np.vstack([faces, fan]))


def distance_apart(mesh, other) -> float:
    """Mean distance of the vertices of a mesh from another one, mm; both in one frame."""
    return float(point_to_mesh(np.asarray(mesh.vertices, dtype=np.float64), other)[0].mean())


def main() -> int:
    args = build_parser().parse_args()
    try:
        return make_people(args)
    except NsrError as error:
        print(f"heads_people.py: {error}", file=sys.stderr)
        return error.exit_code


def make_people(args: argparse.Namespace) -> int:
    if args.out.exists() and any(args.out.iterdir()):
        raise UsageError(f"--out {args.out}: holds something already; name a new folder")
    people, rng = People(args.model), np.random.default_rng(args.seed)
    known = sorted(args.apart_from.glob("*/full_head.obj")) if args.apart_from else []
    if args.apart_from and not known:
        raise DataError(f"--apart-from {args.apart_from}: expected heads in it (*/full_head.obj), found none")
    heads = {file.parent.name: load_mesh(file) for file in known}
    nearest = dict.fromkeys(heads, np.inf)
    args.out.mkdir(parents=True, exist_ok=True)
    for number in range(args.count):
        mesh = people.mesh(rng.standard_normal(len(people.identity)))
        for name, head in heads.items():
            nearest[name] = min(nearest[name], distance_apart(mesh, head))
            if nearest[name] < APART:
                raise DataError(f"person {number} is {name}, to {nearest[name]:.2f} mm; choose another --seed")
        save_mesh(mesh, args.out / f"person_{number:03}.ply")
    told = "".join(f"; nearest to {name}: {distance:.2f} mm" for name, distance in nearest.items())
    print(f"{args.out}: {args.count} people, seed {args.seed}{told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
