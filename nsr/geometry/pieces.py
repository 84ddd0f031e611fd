"""Floaters: which of a mesh's separate pieces are the object, by what the cameras and the masks say of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nsr.geometry.meshes import components, select_vertices
from nsr.geometry.visibility import Viewpoints, area_weighted_normals, seen_from

if TYPE_CHECKING:
    import trimesh

MIN_VIEWS = 2  # that must see a point of a piece for the point to count
LARGE = 0.05  # of the main piece's seen area, from which a piece stays without further questions
SMALL = 0.0005  # the same, below which it is a crumb
ON_OBJECT = 0.5  # share of a piece's sightings that the masks must confirm
ALONE = 0.5  # share of a small piece's sightings with nothing of the large pieces before or behind it
_SAMPLES = 500  # vertices of each piece that are asked


def drop_floaters(mesh: trimesh.Trimesh, views: Viewpoints) -> trimesh.Trimesh:
    """The pieces of a mesh that belong to the object. Mesh and cameras share one frame.

    The piece with the largest seen area (of its surface that MIN_VIEWS views see) always stays. Of the others go
      1. those that hardly any views see: specks inside the solid, walls of hollows, what floats beyond the images;
      2. those that most views see where their masks show background;
      3. crumbs, smaller than SMALL of the main piece, both by their seen areas;
      4. those smaller than LARGE that most views see in front of a large piece or behind it. The masks would be the same
         without them, and that is where floaters survive. A small part that stands clear of the others does fill mask.
    A large piece is a part of the object: training carves large mistakes, since many rays meet them.

    Where no piece is seen, the one with the largest area stays. Raises DataError when the mesh has no triangles.
    """
    label, area = components(mesh)
    if len(area) == 1:
        return mesh
    views = views.in_double()
    samples = _samples(label, len(area))
    seen, on_object = _sightings(mesh, views, samples)
    piece = label[samples]

    def per_piece(values: np.ndarray) -> np.ndarray:
        return np.bincount(piece, weights=values, minlength=len(area))

    witnessed = per_piece(on_object.sum(axis=0) >= min(MIN_VIEWS, len(views))) / per_piece(np.ones(len(piece)))
    seen_area = area * witnessed
    main = int(np.lexsort((area, seen_area))[-1])
    keep = (seen_area > SMALL * seen_area[main]) & (per_piece(on_object.sum(axis=0)) >= ON_OBJECT * per_piece(seen.sum(axis=0)))
    large = seen_area >= LARGE * seen_area[main]
    keep[main] = True
    if (keep & ~large).any():
        asked = on_object & (keep & ~large)[piece]
        alone = _alone(select_vertices(mesh, (keep & large)[label]), views, np.asarray(mesh.vertices)[samples], asked)
        keep &= large | (per_piece(alone.sum(axis=0)) >= ALONE * per_piece(asked.sum(axis=0)))
    return mesh if keep.all() else select_vertices(mesh, keep[label])


def _samples(label: np.ndarray, pieces: int) -> np.ndarray:
    """Indices of at most _SAMPLES vertices of each piece, evenly spaced in the order of the vertices."""
    order = np.argsort(label, kind="stable")
    size = np.bincount(label, minlength=pieces)
    rank = np.arange(len(label)) - np.repeat(np.cumsum(size) - size, size)
    spacing = np.repeat(-(-size // _SAMPLES), size)
    return order[rank % spacing == 0]


def _sightings(mesh: trimesh.Trimesh, views: Viewpoints, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[V, S] bool which view sees which of S vertices, and the same where the mask shows object there."""
    from nsr.geometry.raycast import Raycaster

    raycaster = Raycaster(mesh)
    points = np.asarray(mesh.vertices, dtype=np.float64)[samples]
    normals = area_weighted_normals(mesh)[samples]
    seen, confirmed = np.zeros((2, len(views), len(samples)), dtype=bool)
    for view in range(len(views)):
        indices, on_object = seen_from(views, view, raycaster, points, normals)
        seen[view, indices] = True
        confirmed[view, indices[on_object]] = True
    return seen, confirmed


def _alone(others: trimesh.Trimesh, views: Viewpoints, points: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """[V, S] bool: those of the asked sightings [V, S] of S points whose rays meet the other pieces nowhere."""
    from nsr.geometry.raycast import Raycaster

    raycaster = Raycaster(others)
    alone = np.zeros_like(asked)
    for view, chosen in enumerate(asked):
        if chosen.any():
            eye = views.cameras.centers[view].numpy()
            alone[view, chosen] = ~raycaster.first_hit(eye, points[chosen] - eye).hit
    return alone
