"""Surface that no camera saw: marked or cut away. There a mesh shows what the network or the visual hull made up.

A vertex is seen or not, and at the limit of sight, or on a rough surface, the two alternate from vertex to vertex. So the
flags are first smoothed over the surface, and patches too small to matter are put to their surroundings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from nsr.geometry.meshes import new_mesh, vertex_colors
from nsr.geometry.visibility import Viewpoints, vertex_areas, vertex_views
from nsr.utils.errors import DataError

if TYPE_CHECKING:
    import trimesh
    from scipy.sparse import csr_matrix

Unseen = Literal["keep", "mark", "trim"]
VIEWS, SEEN = "views", "seen"  # vertex attributes of marked meshes: uint8 number of views (at most 255), and 0 or 1

UNSEEN_GREY = 128  # sRGB of marked surface: the colours there are as made up as the shape
_REACH = 3  # mean edge lengths over which flags are smoothed: about two cells of marching cubes
_ITERATIONS = 500  # of the solver; twenty or thirty are what a mesh of marching cubes takes
_SMALLEST_SINE = 1e-2  # of an angle whose cotangent is believed
# Share of its piece's area under which a patch goes with its surroundings. Shards of seen surface amid unseen are of no use;
# surface that stays without having been seen should be no more than a crease.
_SMALL_ISLAND, _SMALL_HOLE = 2e-3, 2e-4


def seen_share(mesh: trimesh.Trimesh, views: np.ndarray, min_views: int = 1) -> float:
    """Share of the mesh's area that min_views views see; views: [M], see nsr.geometry.visibility.vertex_views."""
    area = vertex_areas(mesh)
    return float(area[views >= min_views].sum() / area.sum())


def treat_unseen(
    mesh: trimesh.Trimesh, views: Viewpoints, unseen: Unseen, min_views: int = 1
) -> tuple[trimesh.Trimesh, dict[str, float]]:
    """The mesh to write, and what it shows: nothing for "keep", which leaves the mesh alone and costs nothing.

    Mesh and views share one frame. The figures: min_views; seen_area_percent, how much of the mesh's area that many views
    see, vertex by vertex; for "trim" also kept_area_percent, how much of it is left.
    """
    if unseen == "keep":
        return mesh, {}
    count = vertex_views(mesh, views)
    shown = mark_unseen(mesh, count, min_views) if unseen == "mark" else trim_unseen(mesh, count, min_views)
    figures = {"min_views": min_views, "seen_area_percent": 100 * seen_share(mesh, count, min_views)}
    if unseen == "trim":
        figures["kept_area_percent"] = 100 * float(shown.area / mesh.area)
    return shown, figures


def mark_unseen(mesh: trimesh.Trimesh, views: np.ndarray, min_views: int = 1) -> trimesh.Trimesh:
    """The same surface with vertex attributes VIEWS and SEEN, and in grey, where it has colours, where it is not seen.

    views: [M] how many views see each vertex. VIEWS holds these as they are, SEEN what trim_unseen would keep.
    """
    seen = _smoothed(mesh, views, min_views) >= 0.5
    colors = vertex_colors(mesh)
    if colors is not None:
        colors[~seen, :3] = UNSEEN_GREY
    attributes = {VIEWS: _bytes(views), SEEN: seen.astype(np.uint8)}
    return new_mesh(mesh.vertices, mesh.faces, colors, {**mesh.vertex_attributes, **attributes})


def trim_unseen(mesh: trimesh.Trimesh, views: np.ndarray, min_views: int = 1) -> trimesh.Trimesh:
    """The part of the mesh that is seen, with its colours, and the vertex attribute VIEWS. It is open where it was cut.

    The cut runs through the triangles, along the level 1/2 of the smoothed flags, so that its border is a smooth curve.

    Raises:
        DataError: nothing is seen.
    """
    smoothed = _smoothed(mesh, views, min_views)
    if not (smoothed >= 0.5).any():
        raise DataError(
            f"trim_unseen: expected surface that {min_views} of the views see, found none (the best vertex has "
            f"{int(views.max(initial=0))}); lower --min-views, or keep the surface and look at what the cameras see"
        )
    marked = new_mesh(mesh.vertices, mesh.faces, vertex_colors(mesh), {**mesh.vertex_attributes, VIEWS: _bytes(views)})
    return cut(marked, smoothed - 0.5)


def cut(mesh: trimesh.Trimesh, values: np.ndarray) -> trimesh.Trimesh:
    """The part of a mesh where a function, linear in each triangle, is not negative; values: [M] at the vertices.

    New vertices on cut edges get colours and attributes by linear interpolation, rounded where these are integers.
    """
    faces, inside = np.asarray(mesh.faces), values >= 0
    corners_inside = inside[faces].sum(axis=1)
    # A cut triangle (a, b, c) is turned until a is alone on its side; the new vertices lie on ab and ac.
    split = faces[(corners_inside == 1) | (corners_inside == 2)]
    only_one = inside[split].sum(axis=1) == 1
    first = np.argmax(inside[split] == only_one[:, None], axis=1)
    a, b, c = (split[np.arange(len(split)), (first + k) % 3] for k in range(3))
    ends = np.sort(np.stack([np.concatenate([a, a]), np.concatenate([b, c])], axis=1), axis=1)
    ends, number = np.unique(ends, axis=0, return_inverse=True)  # both triangles of an edge share its new vertex
    ab, ac = len(values) + number.reshape(2, -1)
    tip, rest = only_one, ~only_one
    parts = (faces[corners_inside == 3], np.stack([a, ab, ac], axis=1)[tip])
    parts += (np.stack([ab, b, c], axis=1)[rest], np.stack([ab, c, ac], axis=1)[rest])
    used, corners = np.unique(np.concatenate(parts), return_inverse=True)

    def extended(known: np.ndarray) -> np.ndarray:
        """Values [M, ...] of the vertices of the mesh, brought to those of the part."""
        start, end = (values[ends[:, k]] for k in (0, 1))
        weight = (start / np.where(start == end, 1, start - end)).reshape(-1, *[1] * (known.ndim - 1))
        between = (1 - weight) * known[ends[:, 0]] + weight * known[ends[:, 1]]
        between = np.round(between) if np.issubdtype(known.dtype, np.integer) else between
        return np.concatenate([known, between.astype(known.dtype)])[used]

    colors = vertex_colors(mesh)
    return new_mesh(
        extended(np.asarray(mesh.vertices, dtype=np.float64)),
        corners.reshape(-1, 3),
        None if colors is None else extended(colors),
        {name: extended(known) for name, known in mesh.vertex_attributes.items()},
    )


def _smoothed(mesh: trimesh.Trimesh, views: np.ndarray, min_views: int) -> np.ndarray:
    """[M] in [0, 1], at least 1/2 where the surface counts as seen."""
    weights = _cotangents(mesh)
    value = _diffused(mesh, weights, (views >= min_views).astype(np.float64))
    # Islands first: what is left of a speckled patch is then one patch, not seen, and small or not as a whole.
    for share, island in ((_SMALL_ISLAND, True), (_SMALL_HOLE, False)):
        seen = value >= 0.5
        small = (seen == island) & (_patch_share(mesh, weights, seen) < share)
        value[small] = 0.0 if island else 1.0
    return value


def _diffused(mesh: trimesh.Trimesh, weights: csr_matrix, value: np.ndarray) -> np.ndarray:
    """[M] values of the vertices after one implicit step of heat flow (Desbrun et al. 1999, equation 9).

    With equal weights, or explicit steps, values would follow the slivers of marching cubes, and their level lines zigzag.
    """
    from scipy.sparse import diags
    from scipy.sparse.linalg import cg, spsolve

    mass = vertex_areas(mesh)
    time = (_REACH * mesh.edges_unique_length.mean()) ** 2
    # Vertices without a face have neither mass nor neighbours, and keep what they have.
    diagonal = mass + time * np.asarray(weights.sum(axis=1))[:, 0]
    lonely = diagonal <= 0
    matrix = diags(np.where(lonely, 1.0, diagonal)) - time * weights
    right = np.where(lonely, value, mass * value)
    preconditioner = diags(1 / matrix.diagonal())
    diffused, unfinished = cg(matrix, right, x0=value, rtol=1e-4, maxiter=_ITERATIONS, M=preconditioner)
    if unfinished:  # triangles of very different sizes; directly it takes longer, and more memory
        diffused = spsolve(matrix.tocsc(), right)
    return diffused.clip(0, 1)


def _cotangents(mesh: trimesh.Trimesh) -> csr_matrix:
    """[M, M] for vertices that share an edge, half the sum of the cotangents of the angles that face it; at least a bit
    more than 0, so that values stay between those they come from."""
    from scipy.sparse import coo_matrix

    faces = np.asarray(mesh.faces)
    corners = np.asarray(mesh.vertices, dtype=np.float64)[faces]
    starts, ends, halves = [], [], []
    for corner in range(3):
        b, c = (corner + 1) % 3, (corner + 2) % 3
        to_b, to_c = corners[:, b] - corners[:, corner], corners[:, c] - corners[:, corner]
        lengths = np.linalg.norm(to_b, axis=1) * np.linalg.norm(to_c, axis=1)
        sine = np.linalg.norm(np.cross(to_b, to_c), axis=1) / np.maximum(lengths, np.finfo(float).tiny)
        cosine = (to_b * to_c).sum(axis=1) / np.maximum(lengths, np.finfo(float).tiny)
        starts += [faces[:, b], faces[:, c]]
        ends += [faces[:, c], faces[:, b]]
        halves += [np.maximum(cosine / np.maximum(sine, _SMALLEST_SINE) / 2, _SMALLEST_SINE)] * 2
    values = np.concatenate(halves), (np.concatenate(starts), np.concatenate(ends))
    return coo_matrix(values, shape=(len(mesh.vertices),) * 2).tocsr()


def _patch_share(mesh: trimesh.Trimesh, links: csr_matrix, seen: np.ndarray) -> np.ndarray:
    """[M] the share that a vertex's patch, all seen or all unseen, has in the area of its piece of the mesh."""
    from scipy.sparse.csgraph import connected_components

    area = vertex_areas(mesh)
    start, end = links.nonzero()
    same = seen[start] == seen[end]
    within = type(links)((same[same], (start[same], end[same])), shape=links.shape)
    _, patch = connected_components(within, directed=False)
    _, piece = connected_components(links, directed=False)
    return np.bincount(patch, weights=area)[patch] / np.bincount(piece, weights=area)[piece]


def _bytes(views: np.ndarray) -> np.ndarray:
    return np.minimum(views, 255).astype(np.uint8)
