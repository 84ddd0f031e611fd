"""The benchmark's runs: made once, refused where they are another's, and failures say why."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from nsr.utils.errors import UsageError


@pytest.fixture
def reconstruction(program, monkeypatch):
    module = program("reconstruction")
    monkeypatch.setattr(module, "commit", lambda code: "abc")
    module.first_commit.cache_clear()
    yield module
    module.first_commit.cache_clear()


@pytest.fixture
def asked(reconstruction, monkeypatch):
    """Commands, which leave metrics instead of being run; those of a scene "broken" fail."""
    commands = []

    def run(command, **_):
        commands.append(command)
        folder = Path(command[command.index("--out") + 1])
        if "broken" in command:
            return SimpleNamespace(returncode=65, stderr="nsr: error: broken: no images\n")
        assert (folder / "benchmark.json").is_file()  # so that an interrupted run is continued by the code that began it only
        (folder / "metrics.json").write_text(json.dumps({"psnr": len(commands)}))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_a_run_is_made_once(reconstruction, asked, tmp_path):
    for _ in range(2):
        assert reconstruction.reconstruct("data/cup", 15.0, 1, tmp_path, ["loss.rgb_weight=1"]) == {"psnr": 1}
    (command,) = asked
    expected = f"reconstruct data/cup --budget 15.0 --seed 1 loss.rgb_weight=1 --out {tmp_path / 'cup_15s_seed1'}"
    assert " ".join(command[3:]) == expected


def test_runs_of_other_commands_or_commits_are_refused(reconstruction, asked, tmp_path, monkeypatch):
    reconstruction.reconstruct("cup", None, 0, tmp_path, ["train.nepoch=12"])
    with pytest.raises(UsageError, match="another --out"):
        reconstruction.reconstruct("cup", None, 0, tmp_path, ["train.nepoch=30"])
    with pytest.raises(UsageError, match="another --out"):
        reconstruction.reconstruct("other/cup", None, 0, tmp_path, ["train.nepoch=12"])
    monkeypatch.setattr(reconstruction, "commit", lambda code: "def")
    with pytest.raises(UsageError, match="has changed since this began, from abc to def"):
        reconstruction.reconstruct("cup", None, 1, tmp_path, ["train.nepoch=12"])
    reconstruction.first_commit.cache_clear()
    with pytest.raises(UsageError, match="another --out"):
        reconstruction.reconstruct("cup", None, 0, tmp_path, ["train.nepoch=12"])
    assert len(asked) == 1


def test_a_failing_run_says_why(reconstruction, asked, tmp_path):
    with pytest.raises(SystemExit, match="exit 65: nsr: error: broken: no images"):
        reconstruction.reconstruct("broken", 15.0, 0, tmp_path, [])
    assert not any(tmp_path.iterdir())  # nothing that would be refused once it is mended


def test_the_commit_tells_changes_apart(program, monkeypatch, tmp_path):
    module = program("reconstruction")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert module.commit() == ""  # not a checkout

    def git(*command: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=tmp_path, check=True)

    (tmp_path / "nsr").mkdir()
    (tmp_path / "nsr" / "code.py").write_text("a = 1\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    seen = [module.commit()]
    assert len(seen[0]) == 12
    (tmp_path / "result.json").write_text("{}")
    assert module.commit() == seen[0]
    git("add", ".")
    git("commit", "--quiet", "--message", "not of the code")
    assert module.commit() == seen[0]
    for name in ("nsr/code.py", "nsr/code.py", "nsr/new.py", "setup.py"):
        with open(tmp_path / name, "a") as file:
            file.write("b = 2\n")
        seen.append(module.commit())
    assert len(set(seen)) == 5
    assert all(name.startswith(seen[0] + "-") for name in seen[1:])
