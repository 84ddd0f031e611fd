"""H3DS: its scenes, their files and their published views, from a folder and a configuration; and from there to a run."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from support.heads import VIEWS, write_h3ds
from support.tiny_run import write_tiny_conf, write_tiny_scene

from nsr.datasets.h3ds import (
    LANDMARK_NAMES,
    REGIONS,
    H3ds,
    H3dsScene,
    find_config,
    is_h3ds_scene,
    published_views,
    read_landmarks,
)
from nsr.datasets.h3ds_arrangement import write_arrangement
from nsr.datasets.idr import find_files
from nsr.training.launch import RunRequest, open_scene
from nsr.utils.errors import ConfigError, DataError

SPLITS = "version = 0.1\n[scenes.head.default_views_configs]\n3 = [0, 1, 5]\n4 = [0, 1, 2, 17]\n5 = 'all'\n"


@pytest.fixture
def head(tmp_path):
    (tmp_path / "config.toml").write_text(SPLITS)
    return write_tiny_scene(tmp_path / "head")


@pytest.fixture(scope="module")
def made_heads(tmp_path_factory) -> Path:
    """Two heads in H3DS's layout. Not to be changed."""
    return write_h3ds(tmp_path_factory.mktemp("h3ds"), "anna", "ben")


@pytest.fixture
def heads(made_heads, tmp_path) -> Path:
    return Path(shutil.copytree(made_heads, tmp_path / "heads"))


@pytest.fixture
def no_package(monkeypatch):
    """Whether or not this environment has the h3ds package, the test's does not."""
    monkeypatch.setitem(sys.modules, "h3ds", None)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """An installed h3ds package of two configurations, which cannot be imported."""
    folder = tmp_path / "site" / "h3ds"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('no cv2')")
    for name, version, splits in (("config_v1", 0.2, "3 = [0, 1, 2]"), ("config_v2", 0.4, "1 = [0]\n3 = [3, 4, 5]")):
        scene = f"[scenes.head]\ntags = ['sira++']\nviews = {VIEWS}\n[scenes.head.default_views_configs]\n{splits}\n"
        (folder / f"{name}.toml").write_text(f"version = {version}\n{scene}")
    monkeypatch.delitem(sys.modules, "h3ds", raising=False)
    monkeypatch.syspath_prepend(folder.parent)
    return folder


# ---------------------------------------------------------------------------------------------------- published views


def test_splits_are_those_of_the_file(head):
    assert published_views(head, 3, VIEWS) == [0, 1, 5]
    assert published_views(f"{head}/", 3, VIEWS) == [0, 1, 5]
    assert published_views(head, 2, VIEWS) is None  # nothing about so many
    assert published_views(write_tiny_scene(head.parent / "other"), 3, VIEWS) is None  # nor about this scene
    assert published_views("built-in scene bust", 3, VIEWS) is None


@pytest.mark.parametrize("wanted", [4, 5])
def test_views_that_are_not_there_are_refused(head, wanted):
    message = rf"config\.toml: scenes\.head\.default_views_configs\.{wanted}: expected a list of views from 0 to 5"
    with pytest.raises(DataError, match=message):
        published_views(head, wanted, VIEWS)


def test_published_lists_may_repeat_views_and_have_others_than_they_say(head):
    """As those of the h3ds package do: 0cd3f3c0bc34a287 has a view twice in 32, 16ac29e87716206b nine views in 8."""
    (head.parent / "config.toml").write_text("[scenes.head.default_views_configs]\n4 = [3, 0, 3, 5]\n2 = [5, 1, 0]")
    assert published_views(head, 4, VIEWS) == [3, 0, 5]
    assert published_views(head, 2, VIEWS) == [5, 1, 0]


def test_a_file_that_cannot_be_read_is_refused(head):
    for text in ("[scenes", "scenes = 3", "[scenes]\nhead = 1"):
        (head.parent / "config.toml").write_text(text)
        with pytest.raises(DataError, match=r"config\.toml: cannot be read as the view splits of H3DS"):
            published_views(head, 3, VIEWS)


@pytest.mark.parametrize(("version", "views"), [("0.2", [0, 1, 2]), ("0.4", [3, 4, 5]), ("0.3", None), (None, None)])
def test_the_packages_configuration_of_the_datas_version_is_used_without_importing_it(tmp_path, package, version, views):
    folder = write_tiny_scene(tmp_path / "data" / "head")
    if version is not None:
        (folder.parent / "version.txt").write_text(f"{version}\n")
    assert published_views(folder, 3, VIEWS) == views
    assert "h3ds" not in sys.modules
    (folder.parent / "config.toml").write_text("[scenes.head.default_views_configs]\n3 = [2, 3, 4]")
    assert published_views(folder, 3, VIEWS) == [2, 3, 4]  # the folder's own comes first


def test_the_real_package_has_both_versions(tmp_path):
    """The views of H3D-Net's first scene, and a list with a repeated view, from the package's own files."""
    if importlib.util.find_spec("h3ds") is None:
        pytest.skip("needs the h3ds package: pip install --no-deps h3ds")
    for version, counts in (("0.2", (3, 4, 8, 16, 32)), ("0.4", (1, 3, 4, 6, 8, 16, 32))):
        (tmp_path / "version.txt").write_text(version)
        for scene in ("1b2a8613401e42a8", "0cd3f3c0bc34a287"):
            (tmp_path / scene).mkdir(exist_ok=True)
        assert published_views(tmp_path / "1b2a8613401e42a8", 3, 66) == [0, 18, 65]
        assert len(published_views(tmp_path / "0cd3f3c0bc34a287", 32, 67)) == 31
        data = H3ds.open(tmp_path, find_config(tmp_path))
        assert data.config_version == version
        assert tuple(data.scenes["1b2a8613401e42a8"].splits) == counts


# ------------------------------------------------------------------------------------------------------- the data set


def test_the_data_set_and_its_scenes(made_heads):
    data = H3ds.open(made_heads)
    assert (data.version, data.config_version, data.config) == ("0.1", "0.1", made_heads / "config.toml")
    assert list(data.scenes) == ["anna", "ben"]
    scene = data.scenes["ben"]
    assert (scene.name, scene.tags, scene.views) == ("ben", ("made", "ball"), VIEWS)
    assert scene.splits == {3: [0, 1, 5], 4: [0, 1, 2, 5]}
    assert scene.missing() == []
    photographs = scene.load([0, 5])
    assert photographs.view_names == ("img_0000", "img_0005")
    assert photographs.ground_truth == str(scene.mesh_file)
    mesh, landmarks = scene.load_mesh(), scene.landmarks()
    assert tuple(landmarks) == LANDMARK_NAMES
    tip = mesh.vertices[landmarks["nose_tip"]]
    inside = np.linalg.norm(mesh.vertices - tip, axis=1) < 40
    assert scene.region("face_sphere").tolist() == np.flatnonzero(inside).tolist()


def test_a_configuration_may_be_given(made_heads, tmp_path):
    other = tmp_path / "other.toml"
    table = "[scenes.ben.default_views_configs]\n2 = [1, 0]\nmine = [3]"
    other.write_text(f"version = 0.7\n[scenes.ben]\nviews = {VIEWS}\n{table}")
    data = H3ds.open(made_heads, other)
    assert (data.version, data.config_version, data.config) == ("0.1", "0.7", other)
    assert data.scenes["ben"].splits == {2: [1, 0]}  # the lists that are called by a number


def test_what_is_no_data_set_is_refused_and_how_to_obtain_it_is_said(made_heads, tmp_path, no_package):
    access = r"full_head\.obj, .*not downloaded by nsr.*https://github\.com/CrisalixSA/h3ds \(docs/heads\.md\)"
    with pytest.raises(DataError, match=rf"nowhere: no such folder; expected .*{access}"):
        H3ds.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=rf"empty: not H3DS, it holds nothing; expected .*{access}"):
        H3ds.open(tmp_path / "empty")
    with pytest.raises(DataError, match=rf"anna: one head; expected the folder of all of them: {made_heads}"):
        H3ds.open(made_heads / "anna")


def test_a_data_set_needs_a_configuration(heads, no_package):
    (heads / "config.toml").unlink()
    with pytest.raises(DataError, match=r"expected config\.toml .* for version 0\.1 \(pip install --no-deps h3ds\), or --conf"):
        H3ds.open(heads)
    (heads / "config.toml").write_text("version = 0.1")
    with pytest.raises(DataError, match=r"config\.toml: names no scenes"):
        H3ds.open(heads)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("views = 'six'", r"scenes\.anna\.views: expected the number of views, found six"),
        ("views = 6\ntags = [1]", r"scenes\.anna\.tags: expected a list of words"),
        ("views = 6\ndefault_views_configs = [1]", r"default_views_configs: expected a table of lists"),
        ("views = 6\n[scenes.anna.default_views_configs]\n3 = [0, 1, 6]", r"configs\.3: expected a list of views from 0 to 5"),
        ("views = 6\n[scenes.anna.default_views_configs]\n3 = []", r"configs\.3: expected a list of views"),
        ("views = 6\n[scenes.anna.default_views_configs]\n3 = [true, false]", r"configs\.3: expected a list of views"),
    ],
)
def test_a_configuration_that_is_wrong_is_refused(heads, entry, message):
    (heads / "config.toml").write_text(f"[scenes.anna]\n{entry}\n")
    with pytest.raises(DataError, match=message):
        H3ds.open(heads)


def test_what_a_scene_lacks_is_named(heads):
    anna = heads / "anna"
    for name in ("full_head.obj", "regions/nose.txt", "image/img_0002.jpg", "image/img_0004.jpg", "mask/mask_0005.png"):
        (anna / name).unlink()
    shutil.rmtree(heads / "ben")
    scenes = H3ds.open(heads).scenes
    assert scenes["ben"].missing() == ["the folder"]
    assert scenes["anna"].missing() == [
        "full_head.obj", "regions/nose.txt", "2 of 6 in image/ (img_0002.jpg)", "1 of 6 in mask/ (mask_0005.png)"
    ]  # fmt: skip


def test_a_scene_that_is_not_whole_is_not_arranged(heads, tmp_path):
    (heads / "ben" / "cameras.npz").unlink()
    with pytest.raises(DataError, match=r"ben: not whole: no cameras\.npz; fetch it again"):
        write_arrangement(list(H3ds.open(heads).scenes.values()), [3], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_which_folders_are_heads(heads):
    assert is_h3ds_scene(heads / "anna")
    assert not is_h3ds_scene(heads)
    assert not is_h3ds_scene("built-in scene bust")
    (heads / "anna" / "landmarks.txt").unlink()
    shutil.rmtree(heads / "ben" / "regions")
    assert not is_h3ds_scene(heads / "anna")
    assert not is_h3ds_scene(heads / "ben")


# -------------------------------------------------------------------------------------------------------------- files


def test_landmarks_are_vertices_or_points(tmp_path):
    file = tmp_path / "marks.txt"
    file.write_text("nose_tip 2839\n\n right_eye  1.5 -3e1 98.25 \n")
    assert read_landmarks(file) == {"nose_tip": 2839, "right_eye": (1.5, -30.0, 98.25)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nose_tip -3", r"line 1: expected NAME VERTEX or NAME X Y Z, found no vertex or point of nose_tip: 'nose_tip -3'"),
        ("a 1\nb 1 2\n", "line 2: expected NAME VERTEX or NAME X Y Z, found no vertex or point of b"),
        ("a 1 2 x", "line 1"),
        ("a 1 2 nan", "line 1"),
        ("a", "line 1"),
        ("a 1\na 2", "line 2: .*found a second vertex or point of a"),
        ("\n", "names no landmarks"),
        (b"\xff\xfe", "cannot be read as text"),
    ],
)
def test_landmarks_that_cannot_be_read_are_refused(tmp_path, text, message):
    file = tmp_path / "marks.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"marks\.txt: .*{message}"):
        read_landmarks(file)


def test_damaged_truth_is_refused(heads):
    scene, marks = H3dsScene(heads / "anna"), heads / "anna" / "landmarks.txt"
    marks.write_text("nose_tip 3\nleft_eye 5\n")
    with pytest.raises(DataError, match=r"landmarks\.txt: expected right_eye, .*; right_eye, nose_base, .* missing"):
        scene.landmarks()
    marks.write_text("nose_tip 3 4 5\n")
    with pytest.raises(DataError, match=r"expected vertices of full_head\.obj, got a point for nose_tip"):
        scene.landmarks()
    face = heads / "anna" / "regions" / "face.txt"
    for text, found in (("1\ntwo\n3\n", "two"), ("", "nothing")):
        face.write_text(text)
        with pytest.raises(DataError, match=rf"face\.txt: expected one vertex number per line, found {found}"):
            scene.region("face")
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        scene.region("none")


# ------------------------------------------------------------------------------------------------------------- to runs


def views(head, conf, **options) -> list[int]:
    scene, training, held_out, _ = open_scene(RunRequest(str(head), str(conf), **options), say=print)
    assert len(scene) == VIEWS
    assert not held_out
    return training


def test_the_number_of_views_comes_from_the_configuration_or_the_command_line(head, tmp_path):
    conf = write_tiny_conf(tmp_path / "h3ds_3_views.conf", "data.views=3")
    assert views(head, conf) == [0, 1, 5]
    assert views(head, conf, views="0,2") == [0, 2]
    assert views(head, conf, overrides=("data.views=2",)) == [0, 3]  # spread evenly
    assert views(head, conf, overrides=("data.views=0",)) == list(range(VIEWS))
    with pytest.raises(ConfigError, match=r"data\.views is 9, but .*head has 6 views; choose with --views"):
        views(head, conf, overrides=("data.views=9",))


def test_a_number_of_views_means_the_published_ones_and_a_list_stays_a_list(head, tmp_path, capsys):
    conf = write_tiny_conf(tmp_path / "tiny.conf")
    assert views(head, conf, views="3") == [0, 1, 5]
    assert "head: views 0, 1, 5: those published for 3" in capsys.readouterr().out
    assert views(head, conf, views="0,2,4") == [0, 2, 4]
    assert views(head, conf, views="0-2") == [0, 1, 2]
    assert views(head, conf, views="2") == [0, 3]  # nothing is published for so many: spread evenly
    assert views(write_tiny_scene(tmp_path / "elsewhere" / "head"), conf, views="3") == [0, 2, 4]
    assert "published" not in capsys.readouterr().out
    with pytest.raises(DataError, match=r"default_views_configs\.4: expected a list of views from 0 to 5"):
        views(head, conf, views="4")
    _, training, held_out, _ = open_scene(RunRequest(str(head), str(conf), views="3", holdout=1), say=print)
    assert (training, held_out) == ([0, 5], [1])


def test_the_shared_heads(shared_data):
    data = H3ds.open(shared_data / "heads")
    assert data.config_version == data.version
    assert len(data.scenes) == 6
    for scene in data.scenes.values():
        assert scene.missing() == []
        assert {count: len(split) for count, split in scene.splits.items()} == {count: count for count in (3, 4, 8, 16, 32)}
        mesh, landmarks = scene.load_mesh(), scene.landmarks()
        for name in REGIONS:
            assert 0 <= scene.region(name).min() <= scene.region(name).max() < len(mesh.vertices)
        # The sphere of 95 mm about the tip of the nose, which the order of the vertices decides.
        from_tip = np.linalg.norm(mesh.vertices - mesh.vertices[landmarks["nose_tip"]], axis=1)
        assert scene.region("face_sphere").tolist() == np.flatnonzero(from_tip <= 95).tolist()
    assert published_views(shared_data / "heads" / "scan_lps", 3, 48) == [0, 6, 42]
    assert len(find_files(data.scenes["ict_000"].folder).images) == data.scenes["ict_000"].views
