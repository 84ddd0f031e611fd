"""`nsr failsafe` over real runs that are killed, corrupted and starved: the result is that of a run left in peace."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.failsafe_run import EPOCHS, EXPERIMENT, PATIENCE, FailsafeTraining, attempts, garble, parsed, train_options
from support.run_folders import assert_same_state, checkpoint, rows
from support.tiny_run import VIEWS

from nsr.apps import failsafe
from nsr.apps.main import main
from nsr.training.checkpoint import load_checkpoint
from nsr.training.experiments import EXPERIMENTS
from nsr.training.folders import LATEST, PREVIOUS, checkpoint_path, has_checkpoint, reached, run_folders
from nsr.utils.files import is_locked

ROOT = Path(__file__).resolve().parents[2]
STEPS = EPOCHS * VIEWS
pytestmark = pytest.mark.usefixtures("in_workplace")


def nsr(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


# ---------------------------------------------------------------------------------------------- killed and corrupted


def test_killed_before_the_first_checkpoint_then_in_the_middle_and_the_newest_checkpoint_garbled(peaceful, workplace, tmp_path):
    with FailsafeTraining(workplace, tmp_path, "--backoff", 0.3) as training:
        training.wait_until(training.child)
        os.kill(training.child(), signal.SIGKILL)
        assert not has_checkpoint(training.run)
        training.wait_until(lambda: (training.step() or 0) >= STEPS // 4)
        os.kill(training.child(), signal.SIGKILL)
        garble(checkpoint_path(training.run))
        assert training.end() == 0
        run = training.run
    first, second, third = attempts(tmp_path)
    assert [row["exit_code"] for row in (first, second, third)] == ["137", "137", "0"]
    assert "killed by SIGKILL" in first["reason"]
    assert (first["step"], third["step"]) == ("", str(STEPS))
    assert STEPS // 4 <= int(second["step"]) < STEPS
    assert sum("continuing from previous.safetensors" in line for line in training.lines) == 1
    assert {path.name for path in run.parent.iterdir()} == {run.name, "failsafe.csv"}
    assert_same_state(run, peaceful)


def test_a_checkpoint_that_is_gone_is_waited_for(workplace, tmp_path):
    """As where its file system is away for a while: to begin anew would bury what has been trained."""
    with FailsafeTraining(workplace, tmp_path, "--backoff", 0.3, "--max_retries", 20) as training:
        training.wait_until(lambda: (training.step() or 0) > 0)
        killed = training.child()
        os.kill(killed, signal.SIGKILL)
        training.wait_until(lambda: training.child() not in (None, killed))
        checkpoints, away, child = training.run / "checkpoints", tmp_path / "away", training.child()
        os.kill(child, signal.SIGSTOP)  # it must not write another one meanwhile
        checkpoints.rename(away)
        os.kill(child, signal.SIGKILL)
        training.wait_until(lambda: len(attempts(tmp_path)) > 2)
        away.rename(checkpoints)
        assert training.end() == 0
    rows = attempts(tmp_path)
    assert rows[-1]["exit_code"] == "0"
    assert rows[-1]["step"] == str(STEPS)
    assert any("is its file system away?" in row["reason"] for row in rows)


def test_stopped_by_hand_and_continued(peaceful, workplace, tmp_path, capsys):
    with FailsafeTraining(workplace, tmp_path) as training:
        training.wait_until(lambda: (training.step() or 0) > 0)
        training.process.terminate()
        assert training.end() == 75
        run = training.run
    (row,) = attempts(tmp_path)
    stopped = checkpoint(run).meta["step"]
    assert f"stopped by SIGTERM at step {stopped}" in row["reason"]
    assert training.lines[-1].rstrip().endswith("; stopped by SIGTERM")
    assert 0 < stopped < STEPS

    # What is continued keeps its configuration, and need not be told again where its data are.
    assert nsr("failsafe", "train", "--exp", "HashGrid", "--scan_id", 7, "--exps_folder", tmp_path, "--is_continue") == 0
    assert_same_state(run, peaceful)
    assert [(row["run"], row["exit_code"]) for row in attempts(tmp_path)] == [(run.name, "75"), (run.name, "0")]


@pytest.fixture
def orphaned(workplace, tmp_path):
    """A supervisor that was killed after some steps of its trainer, which has not noticed: stopped as if in a long start."""
    with FailsafeTraining(workplace, tmp_path, "--nepoch", 2000, checkpoint_seconds=1000) as training:
        training.wait_until(lambda: runs_of(tmp_path) and logged(training.run))
        trainer = training.child()
        os.kill(trainer, signal.SIGSTOP)
        assert training.step() == 0  # of the checkpoint before the first step
        training.process.kill()
        training.process.wait()
        yield training.run, trainer
    if is_locked(training.run):
        os.kill(trainer, signal.SIGKILL)


def runs_of(exps: Path) -> list[Path]:
    return run_folders(exps, EXPERIMENT)


def logged(run: Path) -> list[dict[str, str]]:
    return rows(run) if (run / "metrics.csv").is_file() else []


def wait_until(happened) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_trainer_whose_supervisor_was_killed_saves_and_ends(orphaned):
    run, trainer = orphaned
    os.kill(trainer, signal.SIGCONT)
    wait_until(lambda: not is_locked(run))
    state = reached(run)
    assert state.step >= 10
    assert state.progress < 1
    assert reached(run, PREVIOUS).step == 0


def test_the_trainer_of_a_supervisor_that_was_killed_is_waited_for(orphaned, workplace, tmp_path):
    run, trainer = orphaned
    with FailsafeTraining(workplace, tmp_path, "--is_continue", "--max_retries", 0, checkpoint_seconds=1000) as training:
        training.read_until(f"{run} is still being written by another process (pid {trainer}); waiting for it")
        os.kill(trainer, signal.SIGCONT)
        assert training.end() == 0
    (row,) = attempts(tmp_path)
    assert (row["attempt"], row["exit_code"], row["step"]) == ("1", "0", str(STEPS))
    assert reached(run, PREVIOUS).step >= 10  # where the trainer that was waited for had saved, and this one began


def test_a_finished_run_is_not_trained_again(peaceful, tmp_path):
    run = Path(shutil.copytree(peaceful, tmp_path / EXPERIMENT / "run"))
    args = parsed("train", *train_options(tmp_path, "--is_continue"))
    command = failsafe.train_command(args, *failsafe.the_experiment(args), "run", again=has_checkpoint(run))
    assert "--is_continue" in command
    assert nsr(*command[3:]) == 0
    assert_same_state(run, peaceful)


# ---------------------------------------------------------------------------------------------- starved


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    mounted = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if not mounted or mounted.returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(ballast: Path) -> None:
    """Write a file that leaves no room for another."""
    with suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    assert shutil.disk_usage(ballast.parent).free == 0


def test_a_disk_that_fills_up_in_the_middle(peaceful, workplace, small_disk):
    with FailsafeTraining(workplace, small_disk, "--backoff", 0.3) as training:
        training.wait_until(lambda: (training.step() or 0) >= STEPS // 4)
        ballast = small_disk / "ballast"
        fill(ballast)
        training.read_until("failsafe: train, attempt 1")
        assert "exit code 75 (" in training.lines[-1]
        assert "No space left on device" in training.lines[-1]
        checkpoints = checkpoint_path(training.run).parent
        assert sorted(path.name for path in checkpoints.iterdir()) == ["latest.safetensors", "previous.safetensors"]
        steps = [load_checkpoint(checkpoint_path(training.run, name)).meta["step"] for name in (PREVIOUS, LATEST)]
        assert 0 < steps[0] < steps[1] < STEPS
        ballast.unlink()
        assert training.end() == 0
        assert_same_state(training.run, peaceful)


STARVED = """
import resource, sys
import nsr._ext, nsr.training.continuation, nsr.training.launch, torch._dynamo
from nsr.apps.main import main
nsr._ext.load()
with open("/proc/self/status") as file:
    size = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmSize:"))
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]) * 2**20,) * 2)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs to know the size of a process")
def test_a_lack_of_memory_is_absorbed_by_the_trainer(workplace, tmp_path):
    args = parsed("train", *train_options(tmp_path, "--nepoch", 1), "sampling.rays=524288", "start.steps=10")
    command = failsafe.train_command(args, *failsafe.the_experiment(args), "run", again=False)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", STARVED, "450", *command[3:]], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning: memory ran out; steps had " in done.stderr
    saved = checkpoint(tmp_path / EXPERIMENT / "run").meta
    assert saved["step"] == VIEWS
    assert 64 <= saved["state"]["rays"] <= 524288 // 2


def test_a_lack_of_memory_that_cannot_be_absorbed_ends_with_75_and_the_state_saved(tmp_path, refused):
    args = parsed("train", *train_options(tmp_path), f"sampling.volume_points={2**40}")
    command = failsafe.train_command(args, *failsafe.the_experiment(args), "run", again=False)
    refused(
        command[3:], 75, "out of memory with 64 rays per step at step 0; the state is saved in", tmp_path / EXPERIMENT / "run"
    )
    assert reached(tmp_path / EXPERIMENT / "run")[:2] == (0, 0.0)


@pytest.mark.parametrize(
    "reader",
    ["PIL.Image.open", "numpy.load", "pathlib.Path.read_text"],
    ids=["photographs", "cameras", "configuration"],
)
def test_a_file_system_that_is_away_while_files_are_read_is_worth_a_retry(reader, tmp_path, refused, monkeypatch):
    def away(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle", "somewhere")

    args = parsed("train", *train_options(tmp_path))
    command = failsafe.train_command(args, *failsafe.the_experiment(args), "run", again=False)
    monkeypatch.setattr(reader, away)
    refused(command[3:], 75, "somewhere: Stale file handle")


# ---------------------------------------------------------------------------------------------- what is final


def test_mistakes_are_not_tried_again(tmp_path, capfd):
    assert nsr("failsafe", "train", *train_options(tmp_path), "sampling.rayz=3") == 4
    (row,) = attempts(tmp_path)
    assert row["exit_code"] == "4"
    assert "rayz" in row["reason"]
    assert [path.name for path in (tmp_path / EXPERIMENT).iterdir()] == ["failsafe.csv"]
    assert "not tried again" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["train", "eval"])
def test_every_experiment_is_known_and_a_misspelt_one_ends_at_once(command, tmp_path, refused):
    for name in EXPERIMENTS:
        conf, experiment = failsafe.the_experiment(parsed(command, "--exp", name, "--scan_id", 65))
        assert conf == f"encoders/{EXPERIMENTS[name]}/dtu_fixed_cameras"
        assert experiment == f"{name}_dtu_fixed_cameras_65"
    exps = tmp_path / "exps"
    refused(["failsafe", command, "--exp", "NFFBB", "--scan_id", 7, "--exps_folder", exps], 2, "NFFBB", "NFFB")
    refused(["failsafe", command, "--exp", "NFFB", "--conf", "dtv", "--scan_id", 7, "--exps_folder", exps], 2, "dtv")
    refused(["failsafe", command, "--exp", "NFFB", "--exps_folder", exps], 2, "--scan_id", "--data_dir")
    refused(["failsafe", command, "--exp", "NFFB", "--scan_id", 7, "--max_retries", -1], 2, "--max_retries")
    refused(
        ["failsafe", command, "--exp", "NFFB", "--scan_id", "../7", "--exps_folder", exps], 2, "--scan_id ../7", "--data_dir"
    )
    trained = ["failsafe", command, "--exp", "NFFB", "--scan_id", 7, "--conf", "dtu_trained_cameras", "--exps_folder", exps]
    refused(trained, 2, "--conf dtu_trained_cameras", "--trainable_cameras beside it")
    assert not exps.exists()


@pytest.mark.parametrize("script", ["run_training_failsafe.sh", "run_evaluation_failsafe.sh"])
def test_the_scripts_hand_on_their_options_and_the_exit_code(script, tmp_path):
    (tmp_path / "nsr").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nsr.apps.main "$@"\n')
    (tmp_path / "nsr").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [ROOT / "scripts" / script, "--exp", "Posencc", "--scan_id", "65"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Posencc" in done.stderr


# ---------------------------------------------------------------------------------------------- what is asked of nsr train


def test_the_scene_and_the_cameras_choose_configuration_and_experiment(workplace):
    trained = failsafe.the_experiment(
        parsed("train", "--exp", "NFFB", "--data_dir", "DTU/scan7", "--conf", "dtu_fixed_cameras")
    )
    assert trained == ("encoders/nffb/dtu_fixed_cameras", "NFFB_dtu_fixed_cameras_scan7")
    refined = ["train", "--exp", "NFFB", "--data_dir", "bust", "--conf", "dtu_fixed_cameras", "--trainable_cameras"]
    assert failsafe.the_experiment(parsed(*refined))[1] == "NFFB_dtu_fixed_cameras_trained_cameras_bust"
    assert failsafe.scene_folder(parsed(*refined)) == "bust"
    assert failsafe.scene_folder(parsed("train", "--exp", "NFFB", "--scan_id", 65)) == str(Path("data/DTU/scan65"))
    assert failsafe.scene_folder(parsed("train", "--exp", "NFFB", "--scan_id", "scan7", "--data_dir", "DTU")) == str(
        Path("DTU/scan7")
    )
    options = [
        "--exp",
        "NFFB",
        "--scan_id",
        7,
        "--trainable_cameras",
        "--device",
        "cuda",
        "--budget",
        5,
        "--views",
        "3",
        "a=1",
        "--no-check",
        "--sphere",
        0,
        0,
        90,
        60,
    ]
    assert parsed("train", "--exp", "NFFB", "--scan_id", 7).device == "auto"  # half of the experiments need a GPU
    args = parsed("train", *options)
    begun, again = (failsafe.train_command(args, "conf", "name", "stamp", again=again)[3:] for again in (False, True))
    common = ["--exps_folder", "exps", "--expname", "name", "--timestamp", "stamp"]
    ends = ["--budget", "5.0", "--views", "3", "--device", "cuda"]
    place = str(Path("data/DTU/scan7"))
    flags = ["--train_cameras", "--no-check", "--sphere", "0.0", "0.0", "90.0", "60.0", "a=1"]
    assert begun == ["train", *common, "--conf", "conf", "--data_dir", place, *ends, *flags]
    assert again == ["train", *common, *ends, "--is_continue", *flags]
