"""Marching cubes against closed forms; the sparse evaluation; components, similarities and files."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from nsr.geometry.mesh_extraction import extract_mesh
from nsr.geometry.meshes import (
    largest_component,
    load_mesh,
    load_numbered_mesh,
    new_mesh,
    save_mesh,
    to_world,
    vertex_colors,
)
from nsr.utils.errors import DataError, UsageError

RADIUS = 0.6


def sphere(points):
    return points.norm(dim=-1) - RADIUS


def torus(points):
    ring = torch.hypot(points[:, 0], points[:, 2]) - 0.5
    return torch.hypot(ring, points[:, 1]) - 0.2


class TestExtraction:
    @pytest.mark.parametrize("resolution", [128, 256])
    def test_sphere(self, resolution):
        mesh = extract_mesh(sphere, resolution=resolution, lipschitz=1.0)
        step = 2 / resolution
        assert mesh.is_watertight
        assert mesh.is_winding_consistent
        # The vertices lie on the sphere, the triangles cut its caps: V = V0 (1 - O(h^2)).
        assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - RADIUS).max() < 0.02 * step
        assert 1 - (step / RADIUS) ** 2 < mesh.volume / (4 / 3 * np.pi * RADIUS**3) < 1
        normals = np.asarray(mesh.vertex_normals)
        assert (normals * mesh.vertices / RADIUS).sum(axis=1).min() > 0.99

    def test_torus_keeps_its_hole(self):
        mesh = extract_mesh(torus, resolution=96)
        assert mesh.is_watertight
        assert mesh.euler_number == 0
        assert mesh.volume == pytest.approx(2 * np.pi**2 * 0.5 * 0.2**2, rel=2e-3)

    def test_resolution_need_not_fit_the_blocks(self):
        for resolution in (2, 37, 67):
            mesh = extract_mesh(sphere, resolution=resolution, extent=0.9, clip_radius=None)
            assert mesh.is_watertight
        assert np.allclose(np.linalg.norm(mesh.vertices, axis=1), RADIUS, atol=1e-3)

    def test_only_the_neighbourhood_of_the_surface_is_evaluated(self):
        points = 0
        largest = 0

        def counted(x):
            nonlocal points, largest
            points, largest = points + len(x), max(largest, len(x))
            return sphere(x)

        sparse = extract_mesh(counted, resolution=192, chunk=10_000, refine_steps=0)
        assert points < 0.15 * 193**3
        assert largest <= 10_000
        dense = extract_mesh(sphere, resolution=192, lipschitz=1e6, refine_steps=0)
        assert len(sparse.faces) == len(dense.faces)
        distance, _ = cKDTree(dense.vertices).query(sparse.vertices)
        assert len(sparse.vertices) == len(dense.vertices)
        assert distance.max() < 1e-6

    def test_surface_is_followed_where_the_gradient_exceeds_the_bound(self):
        def steep(x):
            return 5 * (1.1 + x[:, 0]) * sphere(x)

        mesh = extract_mesh(steep, resolution=96, lipschitz=0.5)
        assert mesh.is_watertight
        assert len(mesh.faces) == len(extract_mesh(steep, resolution=96, lipschitz=20.0).faces)

    def test_refinement_moves_vertices_onto_the_surface(self):
        def curved(x):
            return torch.expm1(30 * sphere(x))

        def error(steps):
            mesh = extract_mesh(curved, resolution=48, clip_radius=None, lipschitz=1e9, refine_steps=steps)
            return np.abs(np.linalg.norm(mesh.vertices, axis=1) - RADIUS).max()

        assert error(3) < 0.1 * error(0)

    def test_noise_outside_the_ball_is_clipped(self):
        def noisy(x):  # a second, wrong ball in the corner of the cube
            return torch.minimum(sphere(x), (x - 0.85).norm(dim=-1) - 0.1)

        assert np.linalg.norm(extract_mesh(noisy, resolution=64).vertices, axis=1).max() < 0.61
        assert np.linalg.norm(extract_mesh(noisy, resolution=64, clip_radius=None).vertices, axis=1).max() > 1.2

    def test_clipped_solid_is_closed(self):
        mesh = extract_mesh(lambda x: x[:, 0], resolution=33)
        assert mesh.is_watertight
        assert mesh.volume == pytest.approx(2 / 3 * np.pi, rel=0.02)

    @pytest.mark.parametrize("radius", [1.0, 1.1, 1.2, 1.37])
    def test_clipped_solid_is_closed_where_the_ball_touches_the_cube(self, radius):
        """At 30 cells the poles are vertices of the grid, and rounding decides on which side of the ball they lie."""
        mesh = extract_mesh(lambda x: x[:, 2].abs() - 0.1, resolution=30, extent=radius, clip_radius=radius)
        assert mesh.is_watertight
        assert mesh.bounds[1, 0] == pytest.approx(radius, abs=1e-3)

    def test_network_shaped_output_and_double(self):
        mesh = extract_mesh(lambda x: sphere(x.double())[:, None], resolution=32)
        assert mesh.is_watertight

    def test_errors(self):
        with pytest.raises(DataError, match="no surface"):
            extract_mesh(lambda x: torch.ones(len(x)), resolution=32)
        with pytest.raises(DataError, match="no surface"):  # touches zero, never crosses it
            extract_mesh(lambda x: x.norm(dim=-1), resolution=32)
        with pytest.raises(DataError, match="NaN"):
            extract_mesh(lambda x: torch.full((len(x),), float("nan")), resolution=32)
        with pytest.raises(UsageError, match="resolution"):
            extract_mesh(sphere, resolution=1)


def two_balls() -> trimesh.Trimesh:
    big, small = trimesh.creation.icosphere(2, 1.0), trimesh.creation.icosphere(3, 0.2)  # the small one has more faces
    small.apply_translation([3, 0, 0])
    vertices = np.concatenate([small.vertices, big.vertices])
    colors = np.repeat([[255, 0, 0], [0, 128, 255]], [len(small.vertices), len(big.vertices)], axis=0).astype(np.uint8)
    return new_mesh(vertices, np.concatenate([small.faces, big.faces + len(small.vertices)]), colors)


class TestComponents:
    def test_largest_by_area(self):
        mesh = largest_component(two_balls())
        assert mesh.is_watertight
        assert mesh.bounds[1, 0] == pytest.approx(1.0)
        assert (vertex_colors(mesh)[:, :3] == [0, 128, 255]).all()

    def test_empty(self):
        with pytest.raises(DataError, match="no triangles"):
            largest_component(new_mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=int)))


class TestWorld:
    @pytest.mark.parametrize("mirror", [1, -1])
    def test_similarity_keeps_orientation_and_colours(self, mirror):
        matrix = np.diag([120.0 * mirror, 120.0, 120.0, 1.0])
        matrix[:3, 3] = [5, -7, 400]
        scene = largest_component(two_balls())
        world = to_world(scene, matrix)
        assert world.volume == pytest.approx(scene.volume * 120**3)  # positive: outward
        assert np.allclose(world.vertices, scene.vertices * [120 * mirror, 120, 120] + [5, -7, 400])
        assert (vertex_colors(world) == vertex_colors(scene)).all()


class TestFiles:
    @pytest.mark.parametrize("suffix", [".ply", ".obj"])
    def test_round_trip(self, tmp_path, suffix):
        mesh = two_balls()
        save_mesh(mesh, tmp_path / "deep" / f"mesh{suffix}")
        back = load_mesh(tmp_path / "deep" / f"mesh{suffix}")
        assert np.allclose(back.vertices, mesh.vertices, atol=1e-6)
        assert np.array_equal(back.faces, mesh.faces)
        assert np.array_equal(vertex_colors(back)[:, :3], vertex_colors(mesh)[:, :3])
        assert [p.name for p in (tmp_path / "deep").iterdir()] == [f"mesh{suffix}"]

    def test_glb_has_linear_colours_and_a_matte_material(self, tmp_path):
        save_mesh(two_balls(), tmp_path / "mesh.glb")
        data = (tmp_path / "mesh.glb").read_bytes()
        length = struct.unpack("<I", data[12:16])[0]
        tree = json.loads(data[20 : 20 + length])
        assert tree["meshes"][0]["primitives"][0]["material"] == 0
        assert tree["materials"][0]["pbrMetallicRoughness"]["metallicFactor"] == 0
        back = load_mesh(tmp_path / "mesh.glb")
        assert np.allclose(np.sort(back.vertices, axis=0), np.sort(two_balls().vertices, axis=0), atol=1e-6)
        stored = trimesh.load(tmp_path / "mesh.glb", force="mesh", skip_materials=True).visual.vertex_colors[:, :3]
        assert [0, 55, 255] in stored.tolist()  # sRGB 128 is 0.2158 linear
        assert [0, 128, 255] in vertex_colors(back)[:, :3].tolist()

    def test_without_colours(self, tmp_path):
        for suffix in ("ply", "obj", "glb"):
            save_mesh(trimesh.creation.box(), tmp_path / f"box.{suffix}")
            assert load_mesh(tmp_path / f"box.{suffix}").is_volume

    def test_failing_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "mesh.ply"
        save_mesh(trimesh.creation.box(), path)
        before = path.read_bytes()

        def no_space(*_):
            raise OSError("disk full")

        monkeypatch.setattr("os.fsync", no_space)
        with pytest.raises(OSError, match="disk full"):
            save_mesh(two_balls(), path)
        assert path.read_bytes() == before
        assert len(list(tmp_path.iterdir())) == 1

    def test_errors(self, tmp_path):
        with pytest.raises(UsageError, match="xyz"):
            save_mesh(trimesh.creation.box(), tmp_path / "mesh.xyz")
        with pytest.raises(DataError, match="no such mesh"):
            load_mesh(tmp_path / "none.ply")
        (tmp_path / "text.ply").write_text("not a mesh")
        with pytest.raises(DataError, match="cannot be read"):
            load_mesh(tmp_path / "text.ply")
        buffer = io.BytesIO(trimesh.PointCloud(np.eye(3)).export(file_type="ply"))
        (tmp_path / "points.ply").write_bytes(buffer.getvalue())
        with pytest.raises(DataError, match=r"triangles|cannot be read"):
            load_mesh(tmp_path / "points.ply")
        save_mesh(two_balls(), tmp_path / "cut.ply")
        whole = (tmp_path / "cut.ply").read_bytes()
        (tmp_path / "cut.ply").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError):
            load_mesh(tmp_path / "cut.ply")


TEXTURED = """mtllib head.mtl
v 0 0 0 0.5 0.5 0.5
v 1 0 0 0.5 0.5 0.5
v 9 9 9 0.5 0.5 0.5
v 1 1 0 0.5 0.5 0.5
v 0 1 0 0.5 0.5 0.5
vt 0 0
vt 1 0
vt 1 1
vt 0 1
vn 0 0 1
usemtl skin
f 1/1/1 2/2/1 4/3/1
usemtl hair
f 1/2/1 4/4/1 5/1/1
"""


class TestNumberedMeshes:
    def test_vertices_of_a_textured_scan_keep_their_numbers(self, tmp_path):
        """Several materials, colours, texture coordinates that differ at a vertex, and a vertex that no face has."""
        path = tmp_path / "head.obj"
        path.write_text(TEXTURED)
        mesh = load_numbered_mesh(path)
        assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [9, 9, 9], [1, 1, 0], [0, 1, 0]]
        assert mesh.faces.tolist() == [[0, 1, 3], [0, 3, 4]]
        path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\n")
        assert load_numbered_mesh(path).faces.tolist() == [[0, 1, 2]]

    def test_other_formats(self, tmp_path):
        mesh = two_balls()
        for suffix in ("ply", "obj"):
            save_mesh(mesh, tmp_path / f"mesh.{suffix}")
            back = load_numbered_mesh(tmp_path / f"mesh.{suffix}")
            assert np.allclose(back.vertices, mesh.vertices, atol=1e-5)
            assert np.array_equal(back.faces, mesh.faces)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\nf 1 2 3\n", "cannot be read as a mesh of triangles"),
            ("v 0 0 0\nv 1 0 0\nv 1 1 0\nf 1 2 7\n", "a face has vertex 7, but there are 3; is the file whole"),
            ("v 0 0 0\nv 1 0 0\n", "expected a mesh with triangles, found 2 vertices and 0 faces"),
            ("v 0 0 0\nv 1 0 0\nv nan 1 0\nf 1 2 3\n", "NaN or infinite|cannot be read"),
            ("v 0 0\nf 1 1 1\n", "cannot be read as a mesh of triangles"),
        ],
    )
    def test_errors(self, tmp_path, text, message):
        (tmp_path / "head.obj").write_text(text)
        with pytest.raises(DataError, match=rf"head\.obj: .*({message})"):
            load_numbered_mesh(tmp_path / "head.obj")
        with pytest.raises(DataError, match="no such mesh file"):
            load_numbered_mesh(tmp_path / "none.obj")
