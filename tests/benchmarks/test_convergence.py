"""The convergence benchmark's plan, and the benchmark itself over tiny runs, one of which is killed."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trimesh
from support.painted_ball import RADIUS, WORLD_FROM_SCENE
from support.tiny_run import SMALL, write_tiny_scene

from nsr.config import bind, find_conf, load_tree
from nsr.models.idr import IDRModel
from nsr.training.settings import Config
from nsr.utils.errors import ConfigError, DataError, ExtensionError, UsageError

ROOT = Path(__file__).parents[2]
TINY = [*SMALL, "model.implicit_network.skip_in=[]", "photometric.rays=32"]


@pytest.fixture
def convergence(program):
    return program("convergence")


@pytest.fixture
def plan(program):
    return program("convergence_plan")


def write_scenes(root: Path, *names: str) -> Path:
    truth = trimesh.creation.icosphere(subdivisions=4, radius=RADIUS).apply_transform(WORLD_FROM_SCENE)
    for name in names:
        truth.export(write_tiny_scene(root / name) / "mesh_gt.ply")
    return root


# --------------------------------------------------------------------------------------------------------------- plan


def test_runs_are_looked_at_in_doubled_times_and_at_the_end(plan):
    assert plan.evaluation_times(6) == (1, 2, 4, 6)
    assert plan.evaluation_times(120) == (1, 2, 4, 8, 15, 30, 60, 120)
    assert plan.evaluation_times(1200) == (1, 2, 4, 8, 15, 30, 60, 120, 240, 480, 960, 1200)
    assert plan.evaluation_times(0.5) == (0.5,)
    assert plan.evaluation_times(10, [8, 3, 20]) == (3, 8, 10)


def arguments(convergence, *options: str):
    args = convergence.build_parser().parse_args(list(options))
    args.device = "cpu"
    return args


def test_the_plan_gives_each_its_budget_and_seeds(convergence, plan):
    args = arguments(
        convergence,
        "--budget",
        "60",
        "15",
        "--full-budget",
        "120",
        "--vanilla-budget",
        "1200",
        "--seeds",
        "3",
        "--full-seeds",
        "2",
    )
    place = plan.Place("bust", "bust")
    variants = [
        plan.Variant("published", "Posenc", "base/idr"), plan.Variant("full", "Posenc", "a"), plan.Variant("full", "NFFB", "b"),
        plan.Variant("instant", "Posenc", "c"), plan.Variant("instant", "NFFB", "d"),
    ]  # fmt: skip
    jobs = convergence.plan(args, [place], variants)
    runs = {}
    for job in jobs:
        runs.setdefault((job.recipe, job.encoder), set()).add((job.budget, job.seed))
    assert runs["published", "Posenc"] == runs["full", "Posenc"] == {(1200, 0), (1200, 1)}
    assert runs["full", "NFFB"] == {(120, 0), (120, 1)}
    assert runs["instant", "Posenc"] == runs["instant", "NFFB"] == {(b, s) for b in (15, 60) for s in range(3)}
    assert len({job.name for job in jobs}) == len(jobs) == 18
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    assert all(plan.Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job for job in jobs)
    request = jobs[0].request()
    assert (request.conf, request.budget, request.seed) == ("base/idr", 1200, 0)


def test_scenes_of_every_kind_are_found(plan, tmp_path):
    assert [place.data for place in plan.find_scenes("synthetic", [], None, 32, None)] == ["bust", "dents"]
    folder = write_scenes(tmp_path / "scenes", "cup", "relief")
    found = plan.find_scenes(str(folder), [], None, 32, None)
    assert [(place.name, place.data, place.views) for place in found] == [
        ("cup", str(folder / "cup"), None), ("relief", str(folder / "relief"), None)
    ]  # fmt: skip
    assert [place.name for place in plan.find_scenes(str(folder / "cup"), [], None, 32, None)] == ["cup"]
    mixed = plan.find_scenes("synthetic", ["dents", str(folder / "cup")], None, 32, None)
    assert [place.name for place in mixed] == ["dents", "cup"]
    for dataset in ("dtu", "h3ds"):
        with pytest.raises(DataError, match=rf"--dataset {dataset}: no folder .*--data DIR names its folder"):
            plan.find_scenes(dataset, [], tmp_path / "nowhere", 32, None)
    with pytest.raises(DataError, match=r"--scenes cups: neither a scene .* Did you mean 'cup'"):
        plan.find_scenes(str(folder), ["cups"], None, 32, None)
    with pytest.raises(DataError, match="no scene in"):
        plan.find_scenes(str(tmp_path), [], None, 32, None)
    with pytest.raises(UsageError, match="two scenes have one name"):
        plan.find_scenes(str(folder), ["cup", str(folder / "cup")], None, 32, None)
    write_scenes(tmp_path / "dtu", "scan24")
    with pytest.raises(DataError, match=r"no .*stl024_total"):
        plan.find_scenes("dtu", [], tmp_path / "dtu", 32, tmp_path)


def test_h3ds_gives_the_views(plan, tmp_path):
    root = write_scenes(tmp_path, "head")
    with pytest.raises(DataError, match=r"--h3ds-views 3: .*config\.toml has no such list of views for head"):
        plan.find_scenes("h3ds", [], root, 3, None)
    (root / "config.toml").write_text("[scenes.head.default_views_configs]\n3 = [0, 2, 5]\n4 = [0, 1, 2, 5]\n")
    (place,) = plan.find_scenes("h3ds", [], root, 3, None)
    assert place.views == (0, 2, 5)
    with pytest.raises(DataError, match=r"--h3ds-views 32: .*config\.toml has no such list"):
        plan.find_scenes("h3ds", [], root, 32, None)


def test_yardsticks_are_always_there_and_what_cannot_run_is_left_out(plan, monkeypatch):
    variants, left_out = plan.find_variants(["full", "instant", "published"], ["HashGrid"], TINY, "cpu")
    assert [(v.recipe, v.encoder) for v in variants] == [
        ("published", "Posenc"), ("full", "Posenc"), ("full", "HashGrid"), ("instant", "HashGrid")
    ]  # fmt: skip
    assert left_out == {}
    with pytest.raises(UsageError, match=r"--encoders HashGird: unknown\. Did you mean 'HashGrid'"):
        plan.find_variants(["instant"], ["HashGird"], [], "cpu")

    monkeypatch.setattr(plan, "EXPERIMENTS", {"HashGrid": "hashgrid", "FourierNTK": "fourier"})
    build = IDRModel.build

    def without_fourier(config, seed):
        if config.implicit_network.encoder.type == "fourier":
            raise ExtensionError("no Fourier on this machine; run: pip install fourier")
        return build(config, seed)

    monkeypatch.setattr(IDRModel, "build", without_fourier)
    variants, left_out = plan.find_variants(["instant"], None, TINY, "cpu")
    assert [v.encoder for v in variants] == ["HashGrid"]
    assert left_out == {"instant FourierNTK": "no Fourier on this machine; run: pip install fourier"}
    with pytest.raises(ExtensionError, match="pip install fourier"):
        plan.find_variants(["instant"], ["FourierNTK"], TINY, "cpu")
    with pytest.raises(ConfigError, match=r"train\.budgets"):
        plan.find_variants(["instant"], None, ["train.budgets=5"], "cpu")


def test_what_differs_beside_the_model_is_named(plan):
    def configured(*overrides: str) -> Config:
        return bind(Config, *load_tree(find_conf("instant"), overrides))

    minute = configured("train.budget=60")
    longer = configured("model.reevaluate=true", "train.budget=90", "train.preview_steps=3")
    assert plan.recipe_differences(longer, minute, "cpu") == []
    assert plan.recipe_differences(configured("loss.rgb_weight=7"), minute, "cpu") == ["loss.rgb_weight=7.0"]
    hurried = configured("train.budget=7.5")
    assert plan.recipe_differences(hurried, minute, "cpu") == ["a start in a hurry (50% of stereo's rays, 50% of its steps)"]
    assert plan.recipe_differences(hurried, minute, "cuda") == []
    (difference,) = plan.recipe_differences(configured("train.budget=2"), minute, "cpu")
    assert difference == "a start in a hurry (the hull alone, 60% of its steps)"


# ---------------------------------------------------------------------------------------------------------- benchmark


def test_an_existing_folder_is_refused_without_resume(convergence, monkeypatch, tmp_path, capsys):
    (tmp_path / "bust").mkdir()
    monkeypatch.setattr(sys, "argv", ["convergence.py", "--out", str(tmp_path), "--encoders", "HashGrid", "--device", "cpu"])
    assert convergence.main() == UsageError.exit_code
    assert "holds something already; --resume goes on with it" in capsys.readouterr().err


def test_another_command_and_other_code_are_refused(convergence, plan, monkeypatch, tmp_path):
    reconstruction = importlib.import_module("reconstruction")
    args = arguments(convergence, "--budget", "5")
    conf = tmp_path / "c.conf"
    shipped = f'include "{find_conf("encoders/nffb/instant").resolve()}"\n'
    conf.write_text(shipped)
    (job,) = convergence.plan(args, [plan.Place("bust", "bust")], [plan.Variant("instant", "NFFB", str(conf))])
    made = []

    def supervise(command, log):
        folder = Path(command[-1])
        made.append(folder)
        (folder / "result.json").write_text(json.dumps({"job": job.to_dict(), "points": []}))
        return 0

    monkeypatch.setattr(convergence, "supervise", supervise)
    for _ in range(2):
        assert convergence.run_job(job, tmp_path)["folder"] == job.name
        conf.write_text(f"# the same values in another file\n{shipped}")
    assert len(made) == 1
    with pytest.raises(UsageError, match=r"expected .*name another --out"):
        convergence.run_job(replace(job, holdout=3), tmp_path)
    conf.write_text(f"{shipped}loss.rgb_weight = 7\n")
    with pytest.raises(UsageError, match=r"'rgb_weight': 7.0.*name another --out"):
        convergence.run_job(job, tmp_path)
    conf.write_text(shipped)
    monkeypatch.setattr(convergence, "WORKER", Path(__file__))  # measured by other code
    with pytest.raises(UsageError, match="name another --out"):
        convergence.run_job(job, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(reconstruction, "commit", lambda code: "other")
    reconstruction.first_commit.cache_clear()
    with pytest.raises(UsageError, match="name another --out"):
        convergence.run_job(job, tmp_path)
    made_by = json.loads((tmp_path / job.name / "benchmark.json").read_text())["commit"]
    with pytest.raises(UsageError, match="name another --out"):
        convergence.run_job(job, tmp_path, ["another"])
    monkeypatch.setattr(convergence, "WORKER", Path(__file__))
    accepted = convergence.run_job(job, tmp_path, ["another", made_by])
    counted = convergence.made_by([accepted, {**accepted, "commit": "other"}, accepted])
    assert counted["commits of the runs"] == f"{made_by} (2), other (1)"
    assert counted["measured by convergence_run.py of digest"].endswith("(3)")
    (tmp_path / job.name / "result.json").unlink()  # what is not finished goes on with its own code only
    with pytest.raises(UsageError, match="name another --out"):
        convergence.run_job(job, tmp_path, [made_by])
    reconstruction.first_commit.cache_clear()


def test_runs_of_earlier_commands_are_in_the_tables_where_they_can_be_compared(
    convergence, plan, monkeypatch, tmp_path, capsys
):
    args = arguments(convergence, "--budget", "5")
    (job,) = convergence.plan(args, [plan.Place("ball", "a/ball")], [plan.Variant("instant", "NFFB", "encoders/nffb/instant")])
    description = json.dumps({"job": job.to_dict(), "points": []})
    monkeypatch.setattr(
        convergence, "supervise", lambda command, log: not (Path(command[-1]) / "result.json").write_text(description)
    )
    convergence.run_job(job, tmp_path)
    elsewhere = replace(job, encoder="HashGrid")

    def folders(job, accept=()) -> list[str]:
        return [run["folder"] for run in convergence.earlier_runs(tmp_path, [job], accept)]

    assert folders(elsewhere) == [job.name]
    assert folders(job) == []  # it is planned, and not earlier
    assert folders(replace(elsewhere, holdout=3)) == []
    # Not beside others of the same scene with other data or views, whatever their names.
    assert folders(replace(elsewhere, views=(0, 1, 2))) == []
    assert folders(replace(elsewhere, data="b/ball")) == []
    assert "of other data or views of ball" in capsys.readouterr().out
    assert folders(replace(elsewhere, scene="other", data="b/other")) == [job.name]
    # Nor what other code has made or measured, unless the user vouches for it.
    (made_by,) = {json.loads((tmp_path / job.name / "benchmark.json").read_text())["commit"]}
    for name, value in (("commit", lambda code: "another"), ("WORKER", Path(__file__))):
        with monkeypatch.context() as changed:
            changed.setattr(convergence, name, value)
            assert folders(elsewhere) == []
            assert "--accept takes it in" in capsys.readouterr().out
            assert folders(elsewhere, [made_by]) == [job.name]


def test_an_interrupted_benchmark_lets_its_run_save(tmp_path):
    """SIGTERM to the benchmark: the run gets one too, and time to write what it has."""
    code = (
        "import signal, sys, time\n"
        "def stop(*_):\n    time.sleep(0.5); open(sys.argv[1], 'w').write('saved'); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import signal, sys; sys.path.insert(0, 'benchmarks'); import convergence; from pathlib import Path\n"
        "signal.signal(signal.SIGTERM, convergence._interrupt)\n"
        f"command = [sys.executable, '-c', {code!r}, {str(tmp_path / 'file')!r}]\n"
        f"convergence.supervise(command, Path({str(tmp_path / 'log')!r}))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "log").is_file() and "ready" in (tmp_path / "log").read_text())
    process.send_signal(signal.SIGTERM)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert (tmp_path / "file").read_text() == "saved"


def wait_for(happened, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def test_a_benchmark_whose_run_is_killed_goes_on_from_its_checkpoint(tmp_path):
    scenes, out = write_scenes(tmp_path / "scenes", "ball"), tmp_path / "out"
    command = [
        sys.executable, str(ROOT / "benchmarks" / "convergence.py"), "--dataset", str(scenes), "--encoders", "HashGrid",
        "--recipes", "instant", "published", "--budget", "3", "--vanilla-budget", "0.7", "--times", "0.5", "1.5",
        "--holdout", "2", "--resolution", "32", "--eval-rays", "512", "--device", "cpu", "--set", *TINY, "--out", str(out),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"cwd": tmp_path, "env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **options)
    folder = out / "ball" / "instant_HashGrid_3s_seed0"
    curve, checkpoint = folder / "curve.json", folder / "checkpoints" / "latest.safetensors"

    def has_come_far() -> bool:
        assert process.poll() is None, process.communicate()
        if not checkpoint.is_file() or checkpoint.stat().st_mtime_ns < curve.stat().st_mtime_ns:
            return False
        return max(point["at"] for point in json.loads(curve.read_text())["points"]) >= 1.5

    wait_for(has_come_far)
    time.sleep(0.3)  # into the steps after the checkpoint
    os.kill(int((folder / ".lock").read_text()), signal.SIGKILL)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "ball, HashGrid, instant, 3 s, seed 0: FAILED, exit -9" in printed
    assert "FAILED: ball, HashGrid, instant, 3 s, seed 0: exit -9" in (out / "report.html").read_text()
    before = {point["at"]: point for point in json.loads(curve.read_text())["points"]}
    published = out / "ball" / "published_Posenc_0.7s_seed0" / "result.json"
    made = published.stat().st_mtime_ns

    process = subprocess.run([*command, "--resume"], timeout=300, **options)
    assert process.returncode == 0, process.stderr
    assert published.stat().st_mtime_ns == made
    results = json.loads((out / "results.json").read_text())
    assert "error" not in str(results["runs"])
    run = next(run for run in results["runs"] if run["job"]["recipe"] == "instant")
    assert [session["from"] for session in run["sessions"]] == ["start", "checkpoint"]
    assert run["sessions"][1]["seconds"] == pytest.approx(max(point["seconds"] for point in before.values()), abs=0.3)
    assert run["points"][-1]["at"] == 3
    assert run["points"][-1]["seconds"] == pytest.approx(3, abs=0.5)
    for point in run["points"]:
        assert point["figures"]["chamfer_percent"] < 60
        assert 0 < point["figures"]["iou"] <= 1
    assert run["points"][-1]["figures"]["chamfer_percent"] < 0.5 * run["points"][0]["figures"]["chamfer_percent"]
    assert not (folder / "checkpoints").exists()
    assert not (folder / "snapshots").exists()
    assert "1 interruption(s)" in process.stdout
    assert "### ball: complete recipes" in process.stdout
    assert f"{len(run['points']) - 1:03}.png" in {path.name for path in (folder / "pictures").iterdir()}
