"""What the runs of a convergence benchmark say: time to thresholds, final quality, who leads when. Plain data in and out.

A run is what convergence_run.py writes: "job", "points", ... A group is all seeds of one configuration with one budget. Runs
appear in two comparisons that are never mixed, each with a yardstick of its own (COMPARISONS).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from convergence_plan import VANILLA, config_of, recipe_differences

LATE = 1.1  # times what was asked for, up to which a point still stands for it


@dataclass(frozen=True)
class Metric:
    """better: -1 where less is better, 1 where more is. fixed: thresholds that are looked at in any case."""

    label: str
    unit: str
    better: int
    fixed: tuple[float, ...]

    def meets(self, value: float | None, threshold: float) -> bool:
        return value is not None and self.better * value >= self.better * threshold

    def best(self, values: Iterable[float]) -> float:
        return max(values, key=lambda value: self.better * value)

    def shown(self, value: float | None) -> str:
        return "-" if value is None else f"{value:.3g} {self.unit}".strip()


METRICS = {
    "chamfer_percent": Metric("Chamfer", "%", -1, (2.0, 1.0, 0.5, 0.3, 0.2)),
    "dtu_overall_mm": Metric("DTU overall", "mm", -1, (3.0, 2.0, 1.0, 0.8)),
    "psnr": Metric("PSNR, held-out views", "dB", 1, (20.0, 22.5, 25.0)),
    "iou": Metric("silhouette IoU", "", 1, (0.9, 0.95, 0.98)),
}


@dataclass(frozen=True)
class Comparison:
    """yardstick: recipe and encoder that the others are set beside; recipes: whose runs take part."""

    title: str
    says: str
    yardstick: tuple[str, str]
    recipes: tuple[str, ...]


COMPARISONS = {
    "like_for_like": Comparison(
        "Like for like",
        "The same losses, start, rays and schedule; only the encoder and the network behind it differ (where a configuration "
        "sets anything else, such as learning rates, the table says so). The yardstick is IDR's 8 x 512 network behind "
        "positional encoding, trained by the instant recipe.",
        ("full", VANILLA),
        ("full", "instant"),
    ),
    "complete_recipes": Comparison(
        "Complete recipes",
        "Everything differs: IDR as published (the yardstick) against the instant configurations as shipped.",
        ("published", VANILLA),
        ("published", "instant"),
    ),
}


@dataclass(frozen=True)
class Group:
    """All seeds of a configuration with a budget, in a scene."""

    recipe: str
    encoder: str
    budget: float
    runs: tuple[dict, ...]

    @property
    def label(self) -> str:
        return f"{variant_label(self.recipe, self.encoder)}, {self.budget:g} s"

    def finals(self, metric: str) -> list[float]:
        """Of the seeds that have one."""
        values = [figure(run["points"][-1], metric) for run in self.runs]
        return [value for value in values if value is not None]

    def value_at(self, metric: str, seconds: float) -> float | None:
        """Mean over the seeds of what the runs have come to after so many seconds, whether or not they go on; None where one
        of them has nothing yet."""
        values = [figure(point_at(run, seconds), metric) for run in self.runs]
        return None if None in values else statistics.fmean(values)


def variant_label(recipe: str, encoder: str) -> str:
    return "IDR as published" if recipe == "published" else f"{encoder}, {recipe}"


def figure(point: Mapping | None, metric: str) -> float | None:
    """A metric, or the training loss, at a point of a curve."""
    if point is None:
        return None
    return point["losses"].get("loss") if metric == "loss" else point.get("figures", {}).get(metric)


def point_at(run: Mapping, seconds: float) -> dict | None:
    """The last point of a run that was asked for by a time, and did not come much later: a step has to end first."""
    points = [point for point in run["points"] if point["at"] <= seconds and point["seconds"] <= LATE * seconds]
    return points[-1] if points else None


def groups_of(runs: Sequence[Mapping], scene: str, comparison: Comparison) -> list[Group]:
    """Those of a comparison in a scene, the yardstick's first."""
    seeds: dict[tuple, list] = {}
    for run in runs:
        job = run["job"]
        if job["scene"] == scene and job["recipe"] in comparison.recipes and run.get("points"):
            seeds.setdefault((job["recipe"], job["encoder"], job["budget"]), []).append(run)
    groups = [Group(*key, tuple(sorted(same, key=lambda run: run["job"]["seed"]))) for key, same in seeds.items()]
    return sorted(groups, key=lambda group: (group.recipe, group.encoder) != comparison.yardstick)


def metrics_of(groups: Sequence[Group]) -> list[str]:
    """The metrics that any run of the groups has ever had a value of."""
    points = [point for group in groups for run in group.runs for point in run["points"]]
    return [metric for metric in METRICS if any(figure(point, metric) is not None for point in points)]


# --------------------------------------------------------------------------------------------------- time to thresholds


def time_to(run: Mapping, metric: str, threshold: float) -> tuple[float, int] | None:
    """Seconds and step of the first point from which on a threshold is met; None where the last point does not meet it.

    Nothing is interpolated: a run may have got there a little after the point before.
    """
    reached = None
    for point in reversed(run["points"]):
        if not METRICS[metric].meets(figure(point, metric), threshold):
            break
        reached = point["seconds"], point["step"]
    return reached


@dataclass(frozen=True)
class Reached:
    """When a group meets a threshold. seconds, step: the median over its seeds (the later of two), None where too few do;
    spread: of those that do; seeds, of: how many do."""

    seconds: float | None
    step: int | None
    spread: tuple[float, float] | None
    seeds: int
    of: int
    budget: float

    @classmethod
    def by(cls, group: Group, metric: str, threshold: float) -> Reached:
        times = [time_to(run, metric, threshold) for run in group.runs]
        there = sorted(time for time in times if time is not None)
        middle = len(times) // 2
        seconds, step = there[middle] if middle < len(there) else (None, None)
        spread = (there[0][0], there[-1][0]) if there else None
        return cls(seconds, step, spread, len(there), len(times), group.budget)


def yardstick_point(yardstick: Sequence[Group], metric: str, kind: str) -> dict | None:
    """Where the longest yardstick runs come to (kind "final"), or have been at best ("best"): the point of the median seed.

    Of two in the middle it is the worse one. A run without a point counts as the worst; None where the median is such a run.
    """
    if not yardstick:
        return None
    longest, unit, points = _longest(yardstick), METRICS[metric], []
    for run in longest.runs:
        known = [point for point in run["points"] if figure(point, metric) is not None]
        if kind == "best" and known:
            points.append(max(known, key=lambda point: unit.better * figure(point, metric)))  # the first of equals
        elif known and known[-1] is run["points"][-1]:
            points.append(known[-1])
    points.sort(key=lambda point: -unit.better * figure(point, metric))  # the best first
    middle = len(longest.runs) // 2
    return points[middle] if middle < len(points) else None


def thresholds(groups: Sequence[Group], comparison: Comparison, chosen: Mapping[str, Sequence[float]]) -> list[dict]:
    """One entry for each metric, threshold and configuration: when it gets there, and how much sooner than the yardstick.

    chosen: fixed thresholds by metric, instead of Metric.fixed. kind: final and best of the yardstick (the latter where it has
    been better on the way: it counts from that moment, though the yardstick did not stay there), or fixed. A configuration with
    several budgets counts by the one that gets there first. speed_up is None where it does not get there or there is no
    yardstick; at_least: the yardstick never gets there, and its budget stands for its time.
    """
    yardstick = [group for group in groups if (group.recipe, group.encoder) == comparison.yardstick]
    variants = dict.fromkeys((group.recipe, group.encoder) for group in groups)
    entries = []
    for metric in metrics_of(groups):
        marks = {kind: yardstick_point(yardstick, metric, kind) for kind in ("final", "best")}
        if None not in marks.values() and figure(marks["best"], metric) == figure(marks["final"], metric):
            del marks["best"]
        wanted = [(figure(mark, metric), kind) for kind, mark in marks.items() if mark is not None]
        wanted += [(value, "fixed") for value in chosen.get(metric, METRICS[metric].fixed)]
        for threshold, kind in wanted:
            baseline = _soonest(yardstick, metric, threshold) if yardstick else None
            if kind == "best":
                baseline = _at_its_best(yardstick, marks["best"], baseline)
            for recipe, encoder in variants:
                same = [group for group in groups if (group.recipe, group.encoder) == (recipe, encoder)]
                its_own = kind == "best" and (recipe, encoder) == comparison.yardstick
                reached = baseline if its_own else _soonest(same, metric, threshold)
                speed_up, at_least = None, False
                if baseline is not None and reached.seconds is not None:
                    at_least = baseline.seconds is None
                    slow = _longest(yardstick).budget if at_least else baseline.seconds
                    speed_up = slow / reached.seconds if reached.seconds > 0 else None
                entries.append({
                    "metric": metric, "threshold": threshold, "kind": kind, "recipe": recipe, "encoder": encoder,
                    **reached.__dict__, "speed_up": speed_up, "at_least": at_least,
                })  # fmt: skip
    return entries


def _at_its_best(yardstick: Sequence[Group], mark: Mapping, kept: Reached) -> Reached:
    """When the yardstick first had its best: at that point of its longest runs, or with the budget that gets and stays there
    (`kept`), whichever is sooner."""
    if kept.seconds is not None and kept.seconds <= mark["seconds"]:
        return kept
    longest = _longest(yardstick)
    seeds = len(longest.runs)
    return Reached(mark["seconds"], mark["step"], None, seeds, seeds, longest.budget)


def _longest(groups: Sequence[Group]) -> Group:
    return max(groups, key=lambda group: group.budget)


def _soonest(groups: Sequence[Group], metric: str, threshold: float) -> Reached:
    """By the budget with which a configuration meets a threshold first; by the longest where none does."""
    reached = [Reached.by(group, metric, threshold) for group in sorted(groups, key=lambda group: -group.budget)]
    return min(reached, key=lambda one: math.inf if one.seconds is None else one.seconds)


def reached_text(entry: Mapping, several_budgets: bool) -> str:
    """One cell: 5.2 s (5.1-5.3), 230x, budget 6 s; or not reached."""
    seeds = f" ({entry['seeds']} of {entry['of']} seeds)" if 0 < entry["seeds"] < entry["of"] else ""
    if entry["seconds"] is None:
        return f"not reached{seeds}"
    budget = f", budget {entry['budget']:g} s" if several_budgets else ""
    low, high = entry["spread"] or (entry["seconds"], entry["seconds"])
    spread = f" ({low:.3g}-{high:.3g})" if entry["of"] > 1 and high > low else ""
    ratio = f", {'> ' if entry['at_least'] else ''}{entry['speed_up']:.3g}x" if entry["speed_up"] is not None else ""
    return f"{entry['seconds']:.3g} s{spread}{ratio}{budget}{seeds}"


# -------------------------------------------------------------------------------------------------------- final quality


def final_quality(groups: Sequence[Group], comparison: Comparison) -> list[dict]:
    """One entry for each group: mean and standard deviation over the seeds of what its runs came to, and what they cost."""
    yardsticks = [group for group in groups if (group.recipe, group.encoder) == comparison.yardstick]
    yardstick = _longest(yardsticks) if yardsticks else None
    entries = []
    for group in groups:
        last = [run["points"][-1] for run in group.runs]
        rates = [_overall_rate(run) for run in group.runs]
        differs = None
        if yardstick is not None and "published" not in (group.recipe, yardstick.recipe):
            one, other = (config_of(of.runs[0]["config"]) for of in (group, yardstick))
            differs = recipe_differences(one, other, group.runs[0]["job"]["device"])
        entries.append({
            "recipe": group.recipe, "encoder": group.encoder, "budget": group.budget, "seeds": len(group.runs),
            **{name: _spread(group.finals(name), len(last)) for name in (*metrics_of(groups), "loss")},
            "seconds": _spread([point["seconds"] for point in last], len(last)),
            "start_seconds": _spread([run["start_seconds"] for run in group.runs], len(last)),
            "steps": _spread([point["step"] for point in last], len(last)),
            "rays_per_second": _spread([rate for rate in rates if rate is not None], len(last)),
            "peak_memory_mb": _spread([point["peak_memory_mb"] for point in last], len(last)),
            "bad_steps": sum(point["bad_steps"] for point in last),
            "continued": sum(len(run["sessions"]) - 1 for run in group.runs),
            "differs": differs,
        })  # fmt: skip
    return entries


def _overall_rate(run: Mapping) -> float | None:
    """Rays per second of training behind the start."""
    first, last = run["points"][0], run["points"][-1]
    since = last["seconds"] - first["seconds"]
    return (last["rays"] - first["rays"]) / since if since > 0 else None


def _spread(values: Sequence[float], of: int) -> dict:
    """mean and standard deviation (None for less than two values), n: of how many, of: among how many runs."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "of": of,
    }


def spread_text(spread: Mapping, unit: str = "") -> str:
    if spread["mean"] is None:
        return "-"
    sd = f" ± {spread['sd']:.2g}" if spread["sd"] is not None else ""
    mean = spread["mean"]
    some = f" ({spread['n']} of {spread['of']} seeds)" if spread["n"] < spread["of"] else ""
    return f"{mean:.0f}{sd}{unit}{some}" if abs(mean) >= 1000 else f"{mean:.4g}{sd}{unit}{some}"


# ------------------------------------------------------------------------------------------------------------- leaders


def leaders(groups: Sequence[Group]) -> list[dict]:
    """For each metric, who is best after how many seconds, and at the end of the longest budget (best at convergence)."""
    times = sorted({point["at"] for group in groups for run in group.runs for point in run["points"] if point["at"] > 0})
    entries = []
    for metric in metrics_of(groups):
        for seconds in times:
            values = {group.label: group.value_at(metric, seconds) for group in groups}
            known = {label: value for label, value in values.items() if value is not None}
            if known:
                best = METRICS[metric].best(known.values())
                label = next(label for label, value in known.items() if value == best)
                entries.append({"metric": metric, "seconds": seconds, "label": label, "value": best})
    return entries
