"""benchmarks/heads.py and heads_people.py: which runs are made, what the tables say, and that people are closed and apart."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import trimesh

from nsr.utils.errors import DataError, UsageError


@pytest.fixture
def heads(program):
    return program("heads")


@pytest.fixture
def people(program):
    return program("heads_people")


def write_heads(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "full_head.obj").write_text("v 0 0 0\n")
    return folder


def ask(program, monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["heads.py", *map(str, arguments)])


def test_every_scene_view_count_and_prior_is_a_run_but_for_those_left_out(heads, monkeypatch, tmp_path, capsys):
    folder = write_heads(tmp_path / "heads", "ict_0", "ict_1", "scan_a")
    asked = []

    def reconstruct(scene, budget, seed, out, options):
        asked.append((scene, budget, seed, out, options))
        face = 1.0 if "--prior" in options else 2.0 + len(asked)
        return {"face_mm": face, "head_mm": 3 * face, "wall_seconds": 40.0 + len(asked), "steps": 5}

    monkeypatch.setattr(heads, "reconstruct", reconstruct)
    ask(heads, monkeypatch, folder, "--views", 3, 8, "--prior", "one=p/a", "--prior", "two=p/b", "--leave-out", "one=ict_1",
        "--budget", 50, "--out", tmp_path / "out")  # fmt: skip
    assert heads.main() == 0
    assert len(asked) == 2 * (3 * 3 - 1)
    scene, budget, seed, out, options = asked[0]
    assert (scene, budget, seed) == (str(folder / "ict_0"), 50.0, 0)
    assert out == tmp_path / "out" / "3_views" / "no_prior"
    assert options[:4] == ["--views", "3", "--conf", "h3ds/3_views"]
    assert ["p/a" in options for *_, options in asked[:3]] == [False, True, False]
    assert not any("p/a" in options and scene.endswith("ict_1") for scene, *_, options in asked)
    text = capsys.readouterr().out
    # Scenes 1 and 2 of 3 views without a prior: faces 2 + 1 and 2 + 4 mm.
    assert "| ict | 3 | 4.50 / 13.50 (2) | 1.00 / 3.00 | 1.00 / 3.00 (2) |" in text
    assert "| scan | 3 | 8.00 / 24.00 | 1.00 / 3.00 | 1.00 / 3.00 |" in text
    assert "| ict_1 | 3 | 6.00 / 18.00 | - | 1.00 / 3.00 |" in text
    assert "took 56 s" in text
    assert (tmp_path / "out" / "heads.json").is_file()


def test_unknown_heads_priors_and_scenes_are_refused(heads, monkeypatch, tmp_path):
    folder = write_heads(tmp_path / "heads", "ict_0")
    for more, error, words in (
        (["--scenes", "ict_9"], DataError, "ict_9: not in"),
        (["--leave-out", "one=ict_0"], UsageError, "expected a --prior"),
        (["--prior", "one=p", "--leave-out", "one=ict_9"], UsageError, "a scene of"),
    ):
        ask(heads, monkeypatch, folder, "--out", tmp_path / "out", *more)
        with pytest.raises(error, match=words):
            heads.main()
    ask(heads, monkeypatch, tmp_path / "nothing", "--out", tmp_path / "out")
    with pytest.raises(DataError, match="no heads"):
        heads.main()


def test_scenes_that_are_no_heads_are_told(heads, monkeypatch, tmp_path):
    folder = write_heads(tmp_path / "heads", "ict_0")
    monkeypatch.setattr(heads, "reconstruct", lambda *arguments: {"steps": 1})
    ask(heads, monkeypatch, folder, "--views", 3, "--out", tmp_path / "out")
    with pytest.raises(DataError, match="no face_mm"):
        heads.main()


# ------------------------------------------------------------------------------------------------------------ people


def write_model(path, coefficients: int = 3):
    """A ball for a skin that reaches below the cut (in cm), two eyes in it, and a long thing that is no eye."""
    skin = trimesh.creation.icosphere(subdivisions=4, radius=15.0)
    eyes = [trimesh.creation.icosphere(subdivisions=3, radius=1.2).apply_translation((x, 3.0, 9.0)) for x in (-3, 3)]
    mouth = trimesh.creation.capsule(height=6.0, radius=1.0).apply_translation((0, -4.0, 8.0))
    whole = trimesh.util.concatenate([skin, *eyes, mouth])
    rng = np.random.default_rng(0)
    identity = rng.normal(size=(coefficients, len(whole.vertices), 3)) * 0.01
    np.savez(path, mean=whole.vertices.astype(np.float32), identity=identity.astype(np.float16), tri=whole.faces)
    return path, len(skin.vertices) + sum(len(eye.vertices) for eye in eyes)


def test_people_are_skin_and_eyes_closed_below_the_neck(people, tmp_path):
    file, shown = write_model(tmp_path / "model.npz")
    model = people.People(file)
    assert model.keep.sum() == shown
    mesh = model.mesh(np.zeros(3))
    assert mesh.bounds[0][1] == pytest.approx(people.CUT)
    assert mesh.bounds[1][1] == pytest.approx(150.0, abs=1.0)
    mesh.merge_vertices()
    assert mesh.is_watertight
    assert mesh.volume > 0
    other = model.mesh(np.array([3.0, 0.0, 0.0]))
    assert 0.05 < people.distance_apart(other, mesh) < 1.0


def test_people_are_written_and_refused_where_one_is_known(people, monkeypatch, tmp_path, capsys):
    file, _ = write_model(tmp_path / "model.npz")
    known = tmp_path / "heads" / "a"
    known.mkdir(parents=True)
    people.People(file).mesh(np.zeros(3)).apply_translation((0, 0, 40.0)).export(known / "full_head.obj")
    command = ["heads_people.py", str(file), "--count", "2", "--seed", "5", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--apart-from", str(tmp_path / "heads")])
    assert people.main() == 0
    assert "nearest to a:" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["person_000.ply", "person_001.ply"]
    assert people.main() == UsageError.exit_code  # the folder holds something
    people.People(file).mesh(np.zeros(3)).export(known / "full_head.obj")  # the mean: nobody of this model is far from it
    monkeypatch.setattr(sys, "argv", [*command[:-1], str(tmp_path / "again"), "--apart-from", str(tmp_path / "heads")])
    assert people.main() == DataError.exit_code
    assert "choose another --seed" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["heads_people.py", str(known / "full_head.obj"), "--out", str(tmp_path / "no")])
    assert people.main() == DataError.exit_code
