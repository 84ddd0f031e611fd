"""nsr plot over a real, tiny run and over written ones."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nsr.apps.main import main
from nsr.evaluation.curves import smoothed


@pytest.fixture(scope="module")
def trained(tiny_files, tmp_path_factory) -> Path:
    """A run of 40 steps, which was taken up again after 20. Not to be changed."""
    exps = tmp_path_factory.mktemp("plot")
    train = ["train", "--conf", tiny_files / "tiny.conf", "--data_dir", tiny_files / "ball", "--holdout", 1, "--nepoch"]
    for arguments in ([*train, 4], [*train[:5], "--nepoch", 8, "--is_continue"]):
        assert main([str(argument) for argument in [*arguments, "--exps_folder", exps]]) == 0
    (folder,) = (exps / "tiny_ball").iterdir()
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def line(tmp_path) -> Path:
    """A run whose loss falls along a line and whose PSNR was evaluated."""
    folder = tmp_path / "line"
    folder.mkdir()
    rows = [f"{step},{3 - 0.002 * step},0,{step / 2},{step / 1000},7\n" for step in range(10, 1010, 10)]
    (folder / "metrics.csv").write_text("step,rgb,free,seconds,progress,ms_draw\n" + "".join(rows))
    (folder / "metrics.json").write_text(json.dumps({"psnr": 25.25, "steps": 1000, "train_seconds": 500}))
    return folder


def plot(*arguments: object) -> int:
    return main(["plot", *map(str, arguments)])


def traces(page: Path) -> list[dict]:
    """All that plotly is told to draw."""
    text = page.read_text()
    found, decoder = [], json.JSONDecoder()
    for call in re.finditer(r'Plotly\.newPlot\(\s*"[^"]+",\s*', text[text.index("</script>") :]):
        start = text.index("</script>") + call.end()
        found += decoder.raw_decode(text[start:])[0]
    return found


def numbers(values: list | dict) -> np.ndarray:
    """Of a trace: plotly writes arrays in base 64."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
    return np.array(values)


def test_a_run_in_its_own_folder(run, capsys):
    assert plot(run, "--last", "100%") == 0
    picture = np.array(Image.open(run / "plots" / "curves.png"))
    assert picture.shape[2] in (3, 4)
    assert picture.std() > 5
    page = (run / "plots" / "curves.html").read_text()
    assert not re.search(r'(src|href)="http', page[page.index("</script>") :])
    drawn = traces(run / "plots" / "curves.html")
    assert {trace["name"].split()[0] for trace in drawn} == {"run"}
    np.testing.assert_allclose(numbers(drawn[0]["x"]), [2, 4, 6, 8])  # of 5 views
    assert "per epoch" in drawn[0]["name"]
    assert "per minute" in drawn[0]["name"]
    out = capsys.readouterr().out
    assert f"{run / 'plots' / 'curves.png'}, {run / 'plots' / 'curves.html'}: " in out


def test_the_slope_is_printed_and_drawn(line, tmp_path, capsys):
    out = tmp_path / "all.html"
    assert plot(line, "--out", out) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.html", "line"]
    printed = capsys.readouterr().out
    assert re.search(r"line +rgb +1 +-0\.002 per step +-0\.24 per minute +steps 810 to 1000, 20 rows", printed)
    assert re.search(r"line +psnr +25\.25 +evaluated", printed)
    assert "ms_draw" not in printed
    drawn = traces(out)
    dashed = [trace for trace in drawn if trace.get("line", {}).get("dash") == "dash"]
    assert len(dashed) == 4  # rgb and free, against steps and minutes
    np.testing.assert_allclose([*numbers(dashed[0]["x"]), *numbers(dashed[0]["y"])], [810, 1000, 3 - 1.62, 1], rtol=1e-6)
    assert dashed[0]["name"] == "line  -0.002 per step, -0.24 per minute"
    page = out.read_text()
    assert page.count('"range":[0.0,1020.0]') == page.count('"range":[0.0,8.5]') == 3  # as for rgb, so for psnr
    diamonds = [trace for trace in drawn if trace["mode"] == "markers"]
    assert [(trace["x"], trace["y"]) for trace in diamonds] == [([1000], [25.25]), ([500 / 60], [25.25])]


def test_the_clock_on_the_wall_has_the_pauses(line, run, tmp_path, capsys, refused):
    refused(["plot", line, "--clock", "wall"], 2, "--clock wall: line has no column unix_time", "--clock training")
    head, *rows = (line / "metrics.csv").read_text().splitlines()
    # Begun at 1.7e9 s; a row each 5 s, and a pause of ten minutes after half of the steps. The first row is of an older nsr.
    moments = ["", *(f"{1.7e9 + 5 * i + 600 * (i > 50):.2f}" for i in range(2, 101))]
    lines = [f"{head},unix_time", *(f"{row},{moment}" for row, moment in zip(rows, moments, strict=True))]
    (line / "metrics.csv").write_text("\n".join(lines) + "\n")
    assert plot(line, "--what", "rgb,psnr", "--clock", "wall", "--last", "100%", "--out", tmp_path / "wall.html") == 0
    printed = capsys.readouterr().out
    drawn = [trace for trace in traces(tmp_path / "wall.html") if trace["xaxis"] == "x2"]
    (minutes,) = [numbers(trace["x"]) for trace in drawn if trace["mode"] == "lines" and "dash" not in trace["line"]]
    assert len(minutes) == 99
    np.testing.assert_allclose(minutes[[0, 48, 49, -1]], np.array([10, 250, 855, 1100]) / 60)
    (diamond,) = [trace["x"] for trace in drawn if trace["mode"] == "markers"]
    assert diamond == [1100 / 60]
    assert "wall clock, minutes" in (tmp_path / "wall.html").read_text()
    assert "unix_time" not in printed
    assert plot(run, "--clock", "wall", "--out", tmp_path / "run.png") == 0  # as it is logged


def test_options(line, tmp_path, capsys):
    out = tmp_path / "some"
    assert plot(line, "--what", "rgb,ms_draw", "--last", "40%", "--smooth", "0.9", "--log", "xy", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "steps 610 to 1000, 40 rows" in printed
    assert "psnr" not in printed
    assert out.with_suffix(".png").is_file()
    page = out.with_suffix(".html").read_text()
    assert "smoothed exponentially with weight 0.9 per row" in page
    assert page.count('"type":"log"') >= 4
    drawn = traces(out.with_suffix(".html"))
    assert sum(trace["opacity"] < 1 for trace in drawn) == 4
    dashed = [trace for trace in drawn if trace["line"].get("dash") == "dash"]
    np.testing.assert_allclose(numbers(dashed[0]["y"]), 3 - 0.002 * numbers(dashed[0]["x"]), rtol=1e-6)
    assert len(numbers(dashed[0]["x"])) > 10  # a straight line is a curve on logarithmic axes
    raw, smooth = (numbers(trace["y"]) for trace in drawn[:2])
    np.testing.assert_allclose(smooth, smoothed(raw, 0.9))
    assert abs(smooth - raw).max() > 0.1


def test_logarithmic_axes_in_the_picture(line, tmp_path):
    pictures = []
    for log in ([], ["--log", "x"], ["--log", "y"], ["--log", "xy"]):
        assert plot(line, "--what", "rgb", *log, "--out", tmp_path / "rgb.png") == 0
        pictures.append(np.array(Image.open(tmp_path / "rgb.png").convert("L").resize((400, 120))).astype(float))
    for i, picture in enumerate(pictures):
        assert all(np.abs(picture - other).mean() > 0.5 for other in pictures[:i])


def test_zeros_and_evaluations_are_not_drawn_on_a_logarithmic_axis(line, tmp_path, recwarn):
    assert plot(line, "--what", "free,psnr", "--log", "y", "--out", tmp_path / "free") == 0
    assert not [warning for warning in recwarn if "log" in str(warning.message)]
    assert '"type":"log"' not in (tmp_path / "free.html").read_text()


def test_several_runs_with_different_columns(run, line, tmp_path, monkeypatch, capsys):
    experiment = tmp_path / "exps" / "tiny_ball"
    for stamp in ("2026_01_01_00_00_00", "2026_02_01_00_00_00"):
        shutil.copytree(line, experiment / stamp)
    (experiment / "2026_01_01_00_00_00" / "metrics.csv").write_text("")
    monkeypatch.chdir(tmp_path)
    assert plot(run, experiment, line, line, "--what", "rgb,mask,psnr") == 0  # the newest run of the experiment
    assert (tmp_path / "curves.png").is_file()
    out = capsys.readouterr().out
    assert "3 quantities of 3 runs" in out
    assert {line.split()[0] for line in out.splitlines()[1:-1]} == {"run", "tiny_ball", "line"}
    labels = {trace["name"].split()[0] for trace in traces(tmp_path / "curves.html")}
    assert labels == {"run", "tiny_ball", "line"}
    assert plot(experiment / "2026_02_01_00_00_00", tmp_path / "line", "--out", tmp_path / "b.png") == 0
    assert plot(*experiment.iterdir()) == 3


def test_a_run_that_has_only_begun_is_left_out(run, tmp_path, capsys, refused):
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "metrics.csv").write_text("step\n")
    assert plot(begun, run, "--out", tmp_path / "both.html") == 0
    assert f"warning: {begun / 'metrics.csv'} has no rows yet" in capsys.readouterr().err
    drawn = traces(tmp_path / "both.html")
    assert {trace["name"].split()[0] for trace in drawn} == {"run"}
    np.testing.assert_allclose(numbers(drawn[0]["x"]), [2, 4, 6, 8])  # epochs, which the run that has begun does not know
    refused(["plot", begun], 3, f"{begun / 'metrics.csv'}, line 2: no rows yet")


def test_names_are_text_in_the_page(line, tmp_path):
    odd = line.rename(tmp_path / "<img src=x>$\\frac$")
    assert plot(odd) == 0
    page = (odd / "plots" / "curves.html").read_text()
    assert "<img" not in page[page.index("</script>") :]
    assert all(trace["name"].startswith("&lt;img src=x&gt;") for trace in traces(odd / "plots" / "curves.html"))


def test_refusals(line, tmp_path, refused):
    refused(["plot", line, "--what", "rbg"], 2, "--what rbg", "Did you mean 'rgb'?", "psnr")
    refused(["plot", line, "--what", ","], 2, "--what")
    refused(["plot", line, "--last", "0%"], 2, "--last", "20%")
    refused(["plot", line, "--last", "5"], 2, "--last 5: line has no checkpoint", "20%")
    refused(["plot", line, "--smooth", "1"], 2, "--smooth", "less than 1")
    refused(["plot", tmp_path / "nowhere"], 5, "nowhere: no run", "no folder")
    refused(["plot", line, "--out", line / "metrics.csv" / "curves.png"], 2, "is a file")
    refused(["plot"], 2, "RUN")
    (line / "metrics.csv").write_text("step,rgb\n10,0.5\n20\n30,1\n")
    refused(["plot", line], 3, f"{line}/metrics.csv, line 3: ", "remove the line")
    assert not (line / "plots").exists()


@pytest.mark.parametrize(("package", "suffix"), [("matplotlib", "png"), ("plotly", "html")])
def test_a_missing_package_names_the_extra(line, tmp_path, refused, monkeypatch, package, suffix):
    monkeypatch.setitem(sys.modules, package, None)
    refused(["plot", line, "--out", tmp_path / f"curves.{suffix}"], 6, package, "pip install 'nsr[plot]'")
    other = "html" if suffix == "png" else "png"
    assert plot(line, "--out", tmp_path / f"curves.{other}") == 0
