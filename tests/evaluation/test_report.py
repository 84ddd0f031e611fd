"""metrics.json, pictures of meshes, contact sheets and the report."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nsr.evaluation.report import error_heatmap, preview_picture, render_mesh, write_metrics, write_report
from nsr.geometry.meshes import new_mesh
from nsr.geometry.unseen import SEEN
from nsr.types import Cameras
from nsr.utils.errors import DataError


def front_camera() -> Cameras:
    """At (0, 0, 4), looking at the origin, y down; focal 100, picture 81x61 with the axis in its middle."""
    pose = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    pose[2, 3] = 4
    intrinsics = torch.tensor([[100.0, 0, 40], [0, 100, 30], [0, 0, 1]])
    return Cameras(intrinsics[None], pose[None], 81, 61)


def scale_up(cameras: Cameras, factor: int) -> Cameras:
    intrinsics = torch.diag(torch.tensor([factor, factor, 1.0])) @ cameras.intrinsics
    return Cameras(intrinsics, cameras.camera_to_world, factor * cameras.width, factor * cameras.height)


class TestMetrics:
    def test_content(self, tmp_path):
        values = {
            "b": np.float32(1 / 3),
            "a": {"nan": float("nan"), "steps": np.int64(7), "z": torch.tensor(2.5)},
            "list": [1.23456789e-7, float("inf"), None, True],
            "name": "dents",
            "array": np.array([1.0, 2.0]),
        }
        write_metrics(tmp_path / "out" / "metrics.json", values)
        text = (tmp_path / "out" / "metrics.json").read_text()
        assert json.loads(text) == {
            "a": {"nan": None, "steps": 7, "z": 2.5},
            "array": [1.0, 2.0],
            "b": 0.333333,
            "list": [1.23457e-07, None, None, True],
            "name": "dents",
        }
        assert list(json.loads(text)) == sorted(values)
        assert "NaN" not in text

    def test_a_failure_keeps_the_old_file(self, tmp_path):
        path = tmp_path / "metrics.json"
        write_metrics(path, {"a": 1})
        with pytest.raises(TypeError):
            write_metrics(path, {"a": object()})
        assert json.loads(path.read_text()) == {"a": 1}
        assert len(list(tmp_path.iterdir())) == 1


class TestRenderMesh:
    def test_silhouette_of_a_square_plate(self):
        """A plate that reaches 12.9 pixels from the centre covers pixel 13 to one half of its four rays."""
        side = 12.9 * 4 / 100
        corners = np.array([[-side, -side, 0], [side, -side, 0], [side, side, 0], [-side, side, 0]])
        picture = render_mesh(new_mesh(corners, np.array([[0, 1, 2], [0, 2, 3]])), front_camera(), background=0.0)
        assert picture.shape == (61, 81, 3)
        assert picture.dtype == np.uint8
        rows, columns = np.nonzero(picture[..., 0])
        assert (columns.min(), columns.max()) == (40 - 13, 40 + 13)
        assert (rows.min(), rows.max()) == (30 - 13, 30 + 13)
        inside = int(picture[30, 40, 0])
        assert inside > 100
        assert np.abs(picture[30, [27, 53], 0] - inside / 2).max() <= 1
        assert np.abs(picture[[17, 17], [27, 53], 0] - inside / 4).max() <= 1

    def test_colours_and_orientation(self):
        """Colours by position show that u runs along +x and v along -y of this camera."""
        sphere = trimesh.creation.icosphere(4)
        colors = np.round((np.asarray(sphere.vertices) + 1) * 127.5).astype(np.uint8)
        sphere = new_mesh(sphere.vertices, sphere.faces, colors)
        picture = render_mesh(sphere, front_camera(), surface="colors").astype(int)
        assert picture[30, 55, 0] > picture[30, 40, 0] > picture[30, 25, 0]
        assert picture[20, 40, 1] > picture[30, 40, 1] > picture[40, 40, 1]
        assert np.abs(picture[30, 40] - [128, 128, 255]).max() <= 2
        assert (picture[0, 0] == 255).all()

    def test_marked_surface_is_hatched(self):
        """The left half of a ball is marked: there half of the pixels are darker, on stripes; the right half stays."""
        plain = trimesh.creation.icosphere(5)
        seen = (plain.vertices[:, 0] > 0).astype(np.uint8)
        colors = np.full((len(seen), 3), 200, dtype=np.uint8)
        marked = new_mesh(plain.vertices, plain.faces, colors, {SEEN: seen})
        camera = scale_up(front_camera(), 4)
        picture = render_mesh(marked, camera, surface="colors")[..., 0]
        assert (picture[122, 190:240] == 200).all()
        assert (picture[122, 80:130] == 120).mean() == pytest.approx(0.5, abs=0.2)
        assert (picture[122, 80:130] == 200).mean() == pytest.approx(0.5, abs=0.2)
        clay = [render_mesh(mesh, camera) for mesh in (marked, plain)]
        assert np.array_equal(clay[0][:, 170:], clay[1][:, 170:])
        assert (clay[0][122, 80:130] < clay[1][122, 80:130]).mean() == pytest.approx(0.5, abs=0.2)
        normals = [render_mesh(mesh, camera, surface="normals") for mesh in (marked, plain)]
        assert np.array_equal(*normals)

    def test_normals_in_the_frame_of_the_camera(self):
        picture = render_mesh(trimesh.creation.icosphere(4), front_camera(), surface="normals").astype(int)
        assert np.abs(picture[30, 40] - [128, 128, 255]).max() <= 2  # towards the camera
        assert picture[30, 55, 0] > 180  # to the right
        assert picture[15, 40, 1] > 180  # up

    def test_colours_are_needed_for_colours(self):
        with pytest.raises(DataError, match="vertex colours"):
            render_mesh(trimesh.creation.box(), front_camera(), surface="colors")


def test_error_heatmap():
    truth = trimesh.creation.icosphere(4)
    vertices = np.array(truth.vertices)
    vertices[vertices[:, 0] > 0.5] *= 1.05
    heat = error_heatmap(new_mesh(vertices, truth.faces), truth)
    colors = heat.visual.vertex_colors[:, :3].astype(int)
    wrong = np.linalg.norm(vertices, axis=1) > 1.01
    assert (colors[wrong] == [200, 30, 30]).all()
    assert (colors[~wrong] == [13, 22, 100]).all()
    half = error_heatmap(new_mesh(vertices, truth.faces), truth, maximum=0.1).visual.vertex_colors[wrong, :3]
    assert np.abs(half.astype(int) - [70, 180, 110]).max() < 12


class TestPreview:
    def test_layout(self, tmp_path):
        red, mask = np.zeros((30, 40, 3)), torch.ones(60, 80, dtype=torch.bool)
        red[..., 0] = 1
        path = tmp_path / "sheet.png"
        preview_picture(path, [("photo", [red, red]), ("mask", [mask])], columns=["one", "two"], height=60)
        sheet = np.array(Image.open(path))
        is_red = (sheet == [255, 0, 0]).all(axis=-1)
        assert is_red.sum() == 2 * 60 * 80
        rows = np.nonzero(is_red.any(axis=1))[0]
        assert len(rows) == 60
        assert sheet.shape[0] > 2 * 60 + 20
        assert (sheet[:, : np.nonzero(is_red.any(axis=0))[0][0]] < 100).any()  # the labels

    def test_empty(self, tmp_path):
        with pytest.raises(DataError, match="at least one picture"):
            preview_picture(tmp_path / "sheet.png", [("photo", [])])
        assert not list(tmp_path.iterdir())


class TestReport:
    def test_page_is_self_contained_and_escaped(self, tmp_path):
        Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(tmp_path / "preview.png")
        metrics = {"psnr": 24.5678, "ssim": float("nan"), "per_view": {"000000": {"psnr": 20.0}}, "rays": [1, 2]}
        write_report(tmp_path / "report.html", title="<scene>", metrics=metrics, pictures=[tmp_path / "preview.png"])
        page = (tmp_path / "report.html").read_text()
        assert "&lt;scene&gt;" in page
        assert "<scene>" not in page
        assert re.search(r"<td>psnr</td><td>24.57</td>", page)
        assert "not defined" in page
        assert "<td>000000</td><td>psnr 20</td>" in page
        sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
        assert sources
        assert all(source.startswith("data:image/png;base64,") for source in sources)

    def test_missing_picture(self, tmp_path):
        with pytest.raises(DataError, match=r"nothing\.png"):
            write_report(tmp_path / "report.html", title="x", metrics={}, pictures=[tmp_path / "nothing.png"])
        assert not list(tmp_path.iterdir())
