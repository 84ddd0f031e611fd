"""What a convergence benchmark says of its runs: every figure of its tables against runs that are known."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from nsr.config import bind, find_conf, load_tree, to_tree
from nsr.training.settings import Config

CONFIG = to_tree(bind(Config, *load_tree(find_conf("instant"))))


@pytest.fixture
def report(program):
    return program("convergence_report")


@pytest.fixture
def tables(program):
    return program("convergence_tables")


def made_run(
    recipe: str, encoder: str, seconds: list[float], chamfer: list[float | None], *, seed=0, budget=None, **job
) -> dict:
    """A run with a step each 10 ms and 100 rays per step, whose PSNR is 30 - 10 times the Chamfer distance."""
    budget = budget or seconds[-1]
    points = []
    for number, (at, value) in enumerate(zip(seconds, chamfer, strict=True)):
        figures = {"chamfer_percent": value, "psnr": None if value is None else 30 - 10 * value, "iou": 0.97}
        points.append({
            "at": 0.0 if number == 0 else at, "seconds": at, "step": round(100 * at), "rays": round(10_000 * at),
            "rays_per_second": None if number == 0 else 10_000.0,
            "losses": {} if number == 0 else {"loss": 1 / at, "mask": 0.1},
            "peak_memory_mb": 500.0 + number, "bad_steps": 0, "rays_per_step": 100, "figures": figures,
        })  # fmt: skip
    description = {
        "scene": "bust",
        "recipe": recipe,
        "encoder": encoder,
        "seed": seed,
        "budget": budget,
        "device": "cpu",
        **job,
    }
    folder = f"bust/{recipe}_{encoder}_{budget:g}s_seed{seed}"
    return {
        "job": description, "points": points, "sessions": [{"from": "start"}], "start_seconds": seconds[0], "config": CONFIG,
        "folder": folder,
    }  # fmt: skip


def made_results() -> dict:
    vanilla = [0.5, 30, 60, 120, 240]
    grid = [0.5, 1, 2, 4, 8]
    changed = json.loads(json.dumps(CONFIG))
    changed["train"] |= {"learning_rate": 0.5, "budget": 8}
    changed["model"]["reevaluate"] = True
    runs = [
        made_run("full", "Posenc", vanilla, [20, 4, 0.9, 1.1, 0.8]),
        made_run("published", "Posenc", vanilla, [20, 10, 8, 5, 4]),
        made_run("full", "HashGrid", vanilla, [20, 2, 0.7, 0.5, 0.3]),
        *(made_run("instant", "HashGrid", grid, [5, 3, 1.5, 0.6 + seed, 0.2], seed=seed) for seed in range(3)),
        made_run("instant", "NFFB", grid, [None, 3.5, 2.5, 2, 1.9]),
    ]
    for run in runs:
        if (run["job"]["recipe"], run["job"]["encoder"]) == ("instant", "HashGrid"):
            run["config"] = changed
    failed = {"job": {**runs[-1]["job"], "seed": 1}, "error": "exit 7: losses <are> not finite"}
    return {
        "about": {"device": "cpu: 2 x something", "command": "python benchmarks/convergence.py"},
        "scenes": ["bust"], "left_out": {"full HashGridCUDA": "no GPU"}, "thresholds": {}, "runs": [*runs, failed],
    }  # fmt: skip


def group(tables, comparison: str):
    chosen = tables.COMPARISONS[comparison]
    return chosen, tables.groups_of(made_results()["runs"], "bust", chosen)


def test_a_threshold_is_reached_when_it_is_met_to_the_end(tables):
    run = made_run("full", "Posenc", [0.5, 30, 60, 120, 240], [20, 4, 0.9, 1.1, 0.8])
    assert tables.time_to(run, "chamfer_percent", 1.0) == (240, 24000)  # 0.9 after 60 s did not last
    assert tables.time_to(run, "chamfer_percent", 1.1) == (60, 6000)
    assert tables.time_to(run, "chamfer_percent", 0.79) is None
    assert tables.time_to(run, "psnr", 19.0) == (60, 6000)
    assert tables.time_to(run, "psnr", 22.1) is None
    gone = made_run("full", "Posenc", [1, 2, 4], [1, 0.5, None])  # whose surface vanished
    assert tables.time_to(gone, "chamfer_percent", 1.0) is None


def test_the_two_comparisons_are_kept_apart(tables):
    _, alike = group(tables, "like_for_like")
    assert [one.label for one in alike] == [
        "Posenc, full, 240 s",
        "HashGrid, full, 240 s",
        "HashGrid, instant, 8 s",
        "NFFB, instant, 8 s",
    ]
    _, complete = group(tables, "complete_recipes")
    assert [one.label for one in complete] == ["IDR as published, 240 s", "HashGrid, instant, 8 s", "NFFB, instant, 8 s"]


def entry_of(entries, recipe, encoder, threshold, metric="chamfer_percent"):
    keys = {"recipe": recipe, "encoder": encoder, "threshold": threshold, "metric": metric}
    (found,) = [entry for entry in entries if keys.items() <= entry.items()]
    return found


def test_speed_ups_are_over_the_own_yardstick(tables):
    comparison, groups = group(tables, "like_for_like")
    entries = tables.thresholds(groups, comparison, {"chamfer_percent": [1.0, 0.25, 0.1]})
    final = entry_of(entries, "instant", "HashGrid", 0.8)
    assert final["kind"] == "final"
    # Seeds come to 0.8 after 4, 8 and 8 s (their fourth points are 0.6, 1.6 and 2.6): 240 s over the median.
    assert (final["seconds"], final["step"], final["spread"], final["speed_up"]) == (8, 800, (4, 8), 30.0)
    assert tables.reached_text(final, False) == "8 s (4-8), 30x"
    full = entry_of(entries, "full", "HashGrid", 0.8)
    assert (full["seconds"], full["speed_up"]) == (60, 4.0)
    never = entry_of(entries, "instant", "HashGrid", 0.25)  # the yardstick does not get there
    assert (never["speed_up"], never["at_least"]) == (30.0, True)
    assert tables.reached_text(never, True) == "8 s, > 30x, budget 8 s"
    nobody = entry_of(entries, "instant", "HashGrid", 0.1)
    assert (nobody["seconds"], nobody["speed_up"]) == (None, None)
    assert tables.reached_text(nobody, False) == "not reached"

    comparison, groups = group(tables, "complete_recipes")
    entries = tables.thresholds(groups, comparison, {})
    assert entry_of(entries, "instant", "HashGrid", 4)["speed_up"] == 240.0  # after 1 s
    assert entry_of(entries, "instant", "NFFB", 4)["speed_up"] == 240.0
    assert entry_of(entries, "published", "Posenc", 4)["speed_up"] == 1.0
    assert entry_of(entries, "published", "Posenc", 1.0)["seconds"] is None


def test_a_yardstick_that_was_better_before_is_also_taken_at_its_best(tables):
    """Else a yardstick that training spoils would flatter all others."""
    worse = made_run("full", "Posenc", [0.5, 30, 60, 120, 240], [0.9, 0.4, 0.5, 0.7, 0.8])
    grid = [made_run("instant", "HashGrid", [0.5, 2, 4, 8], [5, 0.7, 0.4, 0.3], seed=seed) for seed in range(3)]
    comparison = tables.COMPARISONS["like_for_like"]
    groups = tables.groups_of([worse, *grid], "bust", comparison)
    entries = [one for one in tables.thresholds(groups, comparison, {}) if one["metric"] == "chamfer_percent"]
    assert [(one["threshold"], one["kind"]) for one in entries[:4:2]] == [(0.8, "final"), (0.4, "best")]
    best = {one["encoder"]: one for one in entries if one["kind"] == "best"}
    # It had its best after 30 s, though it did not stay there; the grid has to stay.
    assert (best["Posenc"]["seconds"], best["Posenc"]["step"], best["Posenc"]["speed_up"]) == (30, 3000, 1.0)
    assert (best["HashGrid"]["seconds"], best["HashGrid"]["speed_up"], best["HashGrid"]["at_least"]) == (4, 7.5, False)
    assert tables.reached_text(best["Posenc"], False) == "30 s, 1x"


def test_a_short_yardstick_that_is_there_sooner_counts_for_the_best_of_the_long_one(tables):
    long = made_run("full", "Posenc", [0.5, 600, 1200], [5, 0.9, 1.1])
    short = made_run("full", "Posenc", [0.5, 30, 60], [5, 1.5, 0.8])
    grid = made_run("instant", "HashGrid", [0.5, 5], [5, 0.5])
    comparison = tables.COMPARISONS["like_for_like"]
    groups = tables.groups_of([long, short, grid], "bust", comparison)
    entries = [one for one in tables.thresholds(groups, comparison, {}) if one["kind"] == "best"]
    found = {one["encoder"]: one for one in entries if one["metric"] == "chamfer_percent"}
    assert found["Posenc"]["threshold"] == 0.9
    assert (found["Posenc"]["seconds"], found["Posenc"]["budget"]) == (60, 60)
    assert found["HashGrid"]["speed_up"] == 12.0


def test_a_yardstick_that_ends_at_its_best_has_one_column_for_both(tables):
    flat = made_run("full", "Posenc", [0.5, 30, 60], [5, 0.9, 0.9])
    groups = tables.groups_of([flat], "bust", tables.COMPARISONS["like_for_like"])
    kinds = {one["kind"] for one in tables.thresholds(groups, tables.COMPARISONS["like_for_like"], {})}
    assert kinds == {"final", "fixed"}


def test_the_best_of_several_yardsticks_is_the_median_seeds(tables):
    runs = [
        made_run("full", "Posenc", [1, 2, 4], chamfer, seed=seed)
        for seed, chamfer in enumerate([[0.3, 0.6, 0.9], [0.8, 0.5, 0.7], [None, 0.7, None]])
    ]
    groups = tables.groups_of(runs, "bust", tables.COMPARISONS["like_for_like"])
    point = tables.yardstick_point(groups, "chamfer_percent", "best")
    assert (point["figures"]["chamfer_percent"], point["seconds"]) == (0.5, 2)
    assert tables.yardstick_point(groups, "chamfer_percent", "final")["figures"]["chamfer_percent"] == 0.9


def test_of_several_budgets_the_first_to_get_there_counts_and_some_seeds_are_not_all(tables):
    runs = [
        made_run("instant", "NFFB", [0.5, 4], [5, 0.9]),
        made_run("instant", "NFFB", [0.5, 4, 16], [5, 2, 0.4]),
        *(made_run("instant", "HashGrid", [0.5, 8], [5, value], seed=seed) for seed, value in enumerate([0.4, 1.5, 1.6])),
    ]
    comparison = tables.COMPARISONS["complete_recipes"]
    groups = tables.groups_of(runs, "bust", comparison)
    entries = tables.thresholds(groups, comparison, {"chamfer_percent": [1.0, 0.5]})
    assert (entry_of(entries, "instant", "NFFB", 1.0)["seconds"], entry_of(entries, "instant", "NFFB", 1.0)["budget"]) == (4, 4)
    assert (entry_of(entries, "instant", "NFFB", 0.5)["seconds"], entry_of(entries, "instant", "NFFB", 0.5)["budget"]) == (
        16,
        16,
    )
    assert {entry["speed_up"] for entry in entries} == {None}  # no yardstick
    some = entry_of(entries, "instant", "HashGrid", 1.0)
    assert (some["seconds"], some["seeds"], some["of"]) == (None, 1, 3)
    assert tables.reached_text(some, False) == "not reached (1 of 3 seeds)"


def test_final_quality_is_mean_and_spread_over_seeds_and_says_what_differs(tables):
    runs = [made_run("instant", "HashGrid", [0.5, 8], [5, value], seed=seed) for seed, value in enumerate([0.2, 0.3, 0.7])]
    comparison = tables.COMPARISONS["complete_recipes"]
    (entry,) = tables.final_quality(tables.groups_of(runs, "bust", comparison), comparison)
    assert entry["chamfer_percent"] == pytest.approx({"mean": 0.4, "sd": np.std([0.2, 0.3, 0.7], ddof=1), "n": 3, "of": 3})
    assert entry["rays_per_second"]["mean"] == pytest.approx(10_000)
    assert entry["peak_memory_mb"]["mean"] == 501
    assert tables.spread_text(entry["chamfer_percent"]) == "0.4 ± 0.26"
    comparison, groups = group(tables, "like_for_like")
    differs = {(e["recipe"], e["encoder"]): e["differs"] for e in tables.final_quality(groups, comparison)}
    assert differs["full", "HashGrid"] == []
    hurried = "a start in a hurry (53% of stereo's rays, 53% of its steps)"  # with 8 s of budget
    assert differs["instant", "HashGrid"] == ["train.learning_rate=0.5", hurried]  # not the budget itself, nor the model


def test_leaders_are_told_at_equal_times(tables):
    _, groups = group(tables, "like_for_like")
    best = {entry["seconds"]: entry for entry in tables.leaders(groups) if entry["metric"] == "chamfer_percent"}
    assert best[1]["label"] == "HashGrid, instant, 8 s"
    assert best[2]["value"] == pytest.approx(1.5)
    assert best[4]["value"] == pytest.approx(1.6)  # the mean of 0.6, 1.6 and 2.6
    assert best[240]["label"] == "HashGrid, instant, 8 s"  # which has ended long before, with 0.2
    assert best[240]["value"] == pytest.approx(0.2)
    late = made_run("instant", "NFFB", [8, 8.1], [0.1, 0.1], budget=4)  # the start took longer than the budget
    late["points"][-1]["at"] = 4.0
    assert tables.point_at(late, 4.0) is None
    assert tables.point_at(late, 8.0)["seconds"] == 8.1


def test_everything_is_written(report, tmp_path):
    results = made_results()
    for run in results["runs"][:-1]:
        for number in range(len(run["points"])):
            picture = tmp_path / run["folder"] / "pictures" / f"{number:03}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            if run["points"][number]["figures"]["chamfer_percent"] is not None:
                Image.new("RGB", (40, 60), (number, 0, 0)).save(picture)
    report.write_all(tmp_path, results)

    with open(tmp_path / "curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    key = {"recipe": "instant", "encoder": "HashGrid", "seed": "1", "at": "4", "metric": "chamfer_percent"}
    (row,) = [row for row in rows if key.items() <= row.items()]
    assert (float(row["value"]), row["seconds"], row["step"]) == (1.6, "4", "400")
    assert {"psnr", "iou", "loss/loss", "loss/mask", "rays", "rays_per_second", "peak_memory_mb"} <= {
        row["metric"] for row in rows
    }

    written = json.loads((tmp_path / "results.json").read_text())
    assert written["runs"][0]["points"][2]["figures"]["chamfer_percent"] == 0.9
    assert entry_of(written["analysis"]["bust"]["like_for_like"]["thresholds"], "full", "HashGrid", 0.8)["speed_up"] == 4.0

    for name in ("like_for_like", "complete_recipes"):
        picture = np.array(Image.open(tmp_path / f"curves_bust_{name}.png").convert("RGB"))
        assert picture.shape[1] > 1200
        # Each encoder has its colour, and published IDR is dark: 0 for the grid, 1 for NFFB, of the sorted names.
        for color in ("#4269d0", "#efb118"):
            assert (np.abs(picture.astype(int) - [int(color[i : i + 2], 16) for i in (1, 3, 5)]).max(axis=-1) < 8).sum() > 100


def test_the_page_is_whole_and_needs_no_network(report, tmp_path):
    results = made_results()
    picture = tmp_path / results["runs"][0]["folder"] / "pictures" / "004.png"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (4, 6), "red").save(picture)
    report.write_all(tmp_path, results)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    own = page[page.index("</script>") :]  # behind plotly's
    assert not re.search(r'(src|href)="?(?!"?data:)', own)
    assert page[: page.index("<script>")].count("<link") == 0
    assert page.count('class="plotly-graph-div"') == 2
    assert page.count("<img ") == 1
    assert "<td>8 s (4-8), 30x</td>" in own  # HashGrid to the yardstick's final Chamfer
    assert "<td>HashGrid, instant, 8 s (3 seeds)</td><td>0.2 ± 0</td>" in own
    assert "train.learning_rate=0.5" in own
    assert "losses &lt;are&gt; not finite" in own
    assert "full HashGridCUDA: no GPU" in own
    assert "no surface" in own
    first, second = own.index("bust: like for like"), own.index("bust: complete recipes")
    assert "IDR as published, 240 s" not in own[first:second]
    assert "Posenc, full, 240 s" not in own[second:]


def test_markdown_holds_the_same_tables(report):
    text = report.markdown(made_results())
    assert "| HashGrid, instant | 8 s (4-8), 30x | 2 s (2-8), 30x |" in text
    alike, complete = text.split("### bust: complete recipes")
    assert "| IDR as published | 240 s, 1x |" in complete
    assert "IDR as published" not in alike.split("| time to")[1]
    assert "no yardstick" not in text
    results = made_results()
    results["runs"] = [run for run in results["runs"] if run["job"]["recipe"] != "published"]
    alone = report.markdown(results).split("### bust: complete recipes")
    assert ["no yardstick" in part for part in alone] == [False, True]
    assert "* FAILED: bust, NFFB, instant, 8 s, seed 1: exit 7: losses <are> not finite" in text


def test_curves_are_means_over_seeds_where_all_have_come(report, tables):
    runs = [
        made_run("instant", "NFFB", [0.5, 1, 2], [4, 2, 1], seed=0),
        made_run("instant", "NFFB", [0.7, 1.2, 2], [None, 4, 3], seed=1),
    ]
    runs[1]["points"][1]["at"] = 1
    (one,) = tables.groups_of(runs, "bust", tables.COMPARISONS["complete_recipes"])
    x, y, seeds = report.curve(one, "chamfer_percent", "seconds")
    assert (x, y) == (pytest.approx([1.1, 2]), [3, 2])
    assert seeds == [[(0.5, 4), (1, 2), (2, 1)], [(1.2, 4), (2, 3)]]
    assert report.curve(one, "loss", "step")[0] == [110, 200]


def test_seeds_without_a_surface_are_told(tables):
    """One of three runs has a Chamfer distance: it is not the mean of three, and a yardstick of such runs has no threshold."""
    runs = [made_run("full", "Posenc", [0.5, 8.0], [None, value], seed=seed) for seed, value in enumerate((0.5, None, None))]
    groups = tables.groups_of(runs, "bust", tables.COMPARISONS["like_for_like"])
    (entry,) = tables.final_quality(groups, tables.COMPARISONS["like_for_like"])
    assert tables.spread_text(entry["chamfer_percent"]) == "0.5 (1 of 3 seeds)"
    assert tables.spread_text(entry["steps"]) == "800 ± 0"
    assert tables.yardstick_point(groups, "chamfer_percent", "final") is None
    assert tables.yardstick_point(groups, "chamfer_percent", "best") is None
    runs[1]["points"][-1]["figures"]["chamfer_percent"] = 0.7
    final = tables.yardstick_point(groups, "chamfer_percent", "final")
    assert final["figures"]["chamfer_percent"] == 0.7  # the median, the run without one being the worst


def test_runs_that_their_start_took_up_have_a_report_too(report, tmp_path):
    run = made_run("instant", "HashGrid", [5.0, 5.1], [1.0, 1.0])
    for point in run["points"]:
        point["losses"] = {}
    results = {"about": {}, "scenes": ["bust"], "left_out": {}, "thresholds": {}, "runs": [run]}
    report.write_all(tmp_path, results)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "curves_bust_like_for_like.png",
        "curves_bust_complete_recipes.png",
    }
