"""What a convergence benchmark leaves to read: Markdown tables, a CSV file, curves as PNG, one HTML page without a network."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from convergence_tables import (
    COMPARISONS,
    METRICS,
    Comparison,
    Group,
    figure,
    final_quality,
    groups_of,
    leaders,
    metrics_of,
    point_at,
    reached_text,
    spread_text,
    thresholds,
    variant_label,
)

from nsr.evaluation.plots import COLORS, interactive_html, new_picture, plain_numbers, save_picture, write_page
from nsr.evaluation.report import write_metrics
from nsr.utils.files import atomic_write

NOTES = (
    "Times are seconds of training by the wall clock, with what a run starts from (stereo, visual hull), without measuring.",
    "A schedule (learning rates, levels, colours last) fits its budget: a run of 120 s is not at its best after 60 s, and a "
    "run of 60 s is another run.",
    "A threshold counts as reached at the first time looked at from which on it is met to the end of the run; nothing is "
    "interpolated, and it may have been met since the time looked at before. Of several seeds the median counts (the later of "
    "two in the middle), with the range behind it. x: how many times sooner than the yardstick; > where the yardstick never "
    "gets there and its budget stands for its time. The best of the yardstick, where it did not keep it, counts for it from "
    "the moment it had it; the others have to keep it.",
    "The loss is the mean over the last 25 steps. It compares only runs of the same losses, and in a last stage for the "
    "colours alone it is theirs alone.",
)
ITS_COLUMNS = {
    "seconds": "training s",
    "steps": "steps",
    "rays_per_second": "rays/s",
    "peak_memory_mb": "peak MiB",
    "start_seconds": "start s",
}
START_SHOWN_AT = 0.1  # seconds: logarithmic axes have no zero
Table = tuple[list[str], list[list[str]]]


def comparisons(results: Mapping, scene: str) -> Iterator[tuple[str, Comparison, list[Group]]]:
    """Those that runs of a scene take part in."""
    for name, comparison in COMPARISONS.items():
        groups = groups_of(results["runs"], scene, comparison)
        if groups:
            yield name, comparison, groups


def analysis(results: Mapping) -> dict:
    """All tables as data: scene, comparison, and what convergence_tables makes of its groups."""
    chosen = results["thresholds"]
    return {
        scene: {
            name: {
                "thresholds": thresholds(groups, comparison, chosen),
                "final": final_quality(groups, comparison),
                "leaders": leaders(groups),
            }
            for name, comparison, groups in comparisons(results, scene)
        }
        for scene in results["scenes"]
    }


def write_all(out: Path, results: dict, pictures: bool = True) -> None:
    """results.json and curves.csv; with pictures also curves_*.png and report.html."""
    write_metrics(out / "results.json", {**results, "analysis": analysis(results)})
    write_csv(out / "curves.csv", results)
    if pictures:
        for scene in results["scenes"]:
            for name, comparison, groups in comparisons(results, scene):
                write_png(out / f"curves_{scene}_{name}.png", f"{scene}: {comparison.title.lower()}", groups)
        write_html(out / "report.html", out, results)


def write_csv(path: Path, results: Mapping) -> None:
    """The long format: a row for each value of each point of each run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    of_job = ("scene", "recipe", "encoder", "budget", "seed")
    writer.writerow([*of_job, "at", "seconds", "step", "metric", "value"])
    for run in results["runs"]:
        for point in run.get("points", ()):
            values = {**point["figures"], **{f"loss/{name}": value for name, value in point["losses"].items()}}
            values |= {name: point[name] for name in ("rays", "rays_per_second", "peak_memory_mb", "rays_per_step")}
            of_point = [f"{point['at']:.9g}", f"{point['seconds']:.9g}", point["step"]]
            for name, value in values.items():
                if value is not None:
                    writer.writerow([*(run["job"][key] for key in of_job), *of_point, name, f"{value:.9g}"])
    with atomic_write(path) as file:
        file.write(text.getvalue())


# ------------------------------------------------------------------------------------------------------------- tables


def says(comparison: Comparison, groups: Sequence[Group]) -> str:
    """What a comparison is, and whether there is anything to compare with."""
    if any((group.recipe, group.encoder) == comparison.yardstick for group in groups):
        return comparison.says
    return f"{comparison.says} These runs hold no yardstick, hence there are no speed-ups."


def threshold_table(groups: Sequence[Group], comparison: Comparison, chosen: Mapping, metric: str) -> Table:
    """A row for each configuration, a column for each threshold of a metric."""
    entries = [entry for entry in thresholds(groups, comparison, chosen) if entry["metric"] == metric]
    columns = list(dict.fromkeys((entry["threshold"], entry["kind"]) for entry in entries))
    unit = METRICS[metric]
    head = [f"{unit.shown(value)}{'' if kind == 'fixed' else f' (the {kind} of the yardstick)'}" for value, kind in columns]
    rows = []
    for recipe, encoder in dict.fromkeys((entry["recipe"], entry["encoder"]) for entry in entries):
        several = len({group.budget for group in groups if (group.recipe, group.encoder) == (recipe, encoder)}) > 1
        own = {(e["threshold"], e["kind"]): e for e in entries if (e["recipe"], e["encoder"]) == (recipe, encoder)}
        rows.append([variant_label(recipe, encoder), *(reached_text(own[column], several) for column in columns)])
    return [f"time to {unit.label}", *head], rows


def final_table(groups: Sequence[Group], comparison: Comparison) -> Table:
    metrics = metrics_of(groups)
    head = ["at the end of", *(f"{METRICS[name].label} {METRICS[name].unit}".strip() for name in metrics), "loss"]
    entries = final_quality(groups, comparison)
    of_recipe = any(entry["differs"] is not None for entry in entries)
    rows = []
    for group, entry in zip(groups, entries, strict=True):
        cells = [spread_text(entry[name]) for name in (*metrics, "loss", *ITS_COLUMNS)]
        differs = ["; ".join(entry["differs"] or []) or "nothing"] if of_recipe else []
        rows.append([f"{group.label}{seeds_text(entry)}", *cells, *differs])
    return [*head, *ITS_COLUMNS.values(), *(["differs from the yardstick, beside the model, in"] if of_recipe else [])], rows


def seeds_text(entry: Mapping) -> str:
    notes = [f"{entry['seeds']} seeds"] if entry["seeds"] > 1 else []
    notes += [f"{entry['continued']} interruption(s)"] if entry["continued"] else []
    notes += [f"{entry['bad_steps']} bad steps"] if entry["bad_steps"] else []
    return f" ({', '.join(notes)})" if notes else ""


def leader_table(groups: Sequence[Group]) -> Table:
    """Who is best after how many seconds: the best per second at the left, the best at convergence at the right."""
    entries = leaders(groups)
    times = sorted({entry["seconds"] for entry in entries})
    rows = []
    for metric in metrics_of(groups):
        found = {entry["seconds"]: entry for entry in entries if entry["metric"] == metric}
        unit = METRICS[metric]
        cells = [f"{found[at]['label']}: {unit.shown(found[at]['value'])}" if at in found else "-" for at in times]
        rows.append([unit.label, *cells])
    return ["best after", *(f"{at:g} s" for at in times)], rows


def tables(results: Mapping, scene: str, comparison: Comparison, groups: Sequence[Group]) -> Iterator[Table]:
    for metric in metrics_of(groups):
        yield threshold_table(groups, comparison, results["thresholds"], metric)
    yield final_table(groups, comparison)
    yield leader_table(groups)


def markdown(results: Mapping) -> str:
    """All tables, for docs/results.md."""
    lines = [*(f"* {name}: {value}" for name, value in results["about"].items()), ""]
    for scene in results["scenes"]:
        for _, comparison, groups in comparisons(results, scene):
            lines += [f"### {scene}: {comparison.title.lower()}", "", says(comparison, groups), ""]
            for head, rows in tables(results, scene, comparison, groups):
                lines += [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]
    lines += [f"* {note}" for note in (*NOTES, *shortfalls(results))]
    return "\n".join(lines) + "\n"


def shortfalls(results: Mapping) -> list[str]:
    """What is not there: runs that failed, and configurations that cannot run on this machine."""
    failed = [f"FAILED: {run_name(run['job'])}: {run['error']}" for run in results["runs"] if "error" in run]
    return failed + [f"Left out: {name}: {why}" for name, why in results["left_out"].items()]


def run_name(job: Mapping) -> str:
    return f"{job['scene']}, {variant_label(job['recipe'], job['encoder'])}, {job['budget']:g} s, seed {job['seed']}"


# ------------------------------------------------------------------------------------------------------------- curves


def curve(group: Group, metric: str, axis: str) -> tuple[list[float], list[float], list[list[tuple[float, float]]]]:
    """x and y of the mean over the seeds, at the times they were all looked at, and x and y of each seed."""
    least = START_SHOWN_AT if axis == "seconds" else 1
    seeds, at_times = [], {}
    for run in group.runs:
        known = [(point, figure(point, metric)) for point in run["points"]]
        seeds.append([(max(point[axis], least), value) for point, value in known if value is not None])
        for point, value in known:
            if value is not None:
                at_times.setdefault(point["at"], []).append((max(point[axis], least), value))
    shared = [pairs for _, pairs in sorted(at_times.items()) if len(pairs) == len(group.runs)]
    x, y = ([sum(pair[i] for pair in pairs) / len(pairs) for pairs in shared] for i in (0, 1))
    return x, y, seeds


def drawn_metrics(groups: Sequence[Group]) -> list[str]:
    """Those that some run has a value of: a run that its start took up has no loss."""
    return [name for name in (*metrics_of(groups), "loss") if any(any(curve(group, name, "step")[2]) for group in groups)]


def look(group: Group, groups: Sequence[Group]) -> tuple[str, str, int]:
    """Colour (of the encoder), line style (of the recipe: solid, dash or dot), and which of the markers (of the budget)."""
    encoders = sorted({other.encoder for other in groups})
    color = "#202020" if group.recipe == "published" else COLORS[encoders.index(group.encoder) % len(COLORS)]
    budgets = sorted({other.budget for other in groups})
    style = {"instant": "solid", "full": "dash", "published": "dot"}[group.recipe]
    return color, style, budgets.index(group.budget) % len(MARKERS)


def is_logarithmic(metric: str) -> bool:
    return metric == "loss" or METRICS[metric].better < 0


def axis_label(metric: str) -> str:
    return "training loss" if metric == "loss" else f"{METRICS[metric].label} {METRICS[metric].unit}".strip()


AXES = {"seconds": "training time, s", "step": "step"}
MARKERS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross"}


def write_png(path: Path, title: str, groups: Sequence[Group]) -> None:
    """Each metric against time (top) and step (bottom), all of them logarithmic but for PSNR and IoU."""
    names = drawn_metrics(groups)
    picture = new_picture(4.2 * len(names), 8.4)
    grid = picture.subplots(2, len(names), squeeze=False)
    for row, (axis, label) in enumerate(AXES.items()):
        for column, name in enumerate(names):
            plot = grid[row][column]
            for group in groups:
                color, style, marker = look(group, groups)
                x, y, seeds = curve(group, name, axis)
                line = {"color": color, "linestyle": {"solid": "-", "dash": "--", "dot": ":"}[style]}
                for pairs in seeds if len(seeds) > 1 else ():
                    plot.plot(*zip(*pairs, strict=True), alpha=0.25, linewidth=0.8, **line)
                plot.plot(x, y, label=group.label, marker=list(MARKERS)[marker], markersize=4, linewidth=1.6, **line)
            plot.set_xscale("log")
            plot.set_yscale("log" if is_logarithmic(name) else "linear")
            for logarithmic in (plot.xaxis, plot.yaxis) if is_logarithmic(name) else (plot.xaxis,):
                plain_numbers(logarithmic)
            plot.set(xlabel=label, ylabel=axis_label(name))
            plot.grid(alpha=0.3, which="both", linewidth=0.5)
    picture.suptitle(title)
    handles, labels = grid[0][0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), fontsize=9)
    save_picture(path, picture)


def interactive(groups: Sequence[Group]) -> str:
    """The same curves as a plotly figure, in HTML that expects plotly's script to be there."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    names = drawn_metrics(groups)
    plots = make_subplots(rows=2, cols=len(names), horizontal_spacing=0.06, vertical_spacing=0.12)
    for row, (axis, label) in enumerate(AXES.items(), start=1):
        for column, name in enumerate(names, start=1):
            for group in groups:
                color, style, marker = look(group, groups)
                x, y, seeds = curve(group, name, axis)
                symbol = {"symbol": list(MARKERS.values())[marker], "size": 7}
                common = {"legendgroup": group.label, "line": {"color": color, "dash": style, "width": 2}, "name": group.label}
                for pairs in seeds if len(seeds) > 1 else ():
                    one = [list(values) for values in zip(*pairs, strict=True)] or [[], []]
                    faint = Scatter(x=one[0], y=one[1], mode="lines", opacity=0.3, showlegend=False, hoverinfo="skip", **common)
                    plots.add_trace(faint, row, column)
                mean = Scatter(x=x, y=y, mode="lines+markers", marker=symbol, showlegend=row == column == 1, **common)
                plots.add_trace(mean, row, column)
            plots.update_xaxes(type="log", title_text=label, row=row, col=column)
            plots.update_yaxes(
                type="log" if is_logarithmic(name) else "linear", title_text=axis_label(name), row=row, col=column
            )
    legend = {"orientation": "h", "yanchor": "top", "y": -0.1}
    plots.update_layout(template="plotly_white", height=820, margin={"t": 20, "l": 60, "r": 20}, legend=legend)
    return interactive_html(plots)


# --------------------------------------------------------------------------------------------------------------- page

_STYLE = """
h2 { margin-top: 3rem; border-top: 2px solid #ccc; padding-top: 1rem; }
.gallery td { text-align: center; padding: .2rem; } .gallery img { height: 130px; display: block; margin: auto; }
.gallery td:first-child { text-align: right; padding-right: .8rem; } .failed { color: #b00020; }
"""


def write_html(path: Path, out: Path, results: Mapping) -> None:
    """The report: curves, tables and the gallery. All in one file, with plotly's script and the pictures inside."""
    about = "".join(f"<li>{html.escape(name)}: <code>{html.escape(str(v))}</code></li>" for name, v in results["about"].items())
    failed = "".join(f'<li class="failed">{html.escape(text)}</li>' for text in shortfalls(results))
    parts = ["<h1>Convergence: quality against training time</h1>", f"<ul>{about}</ul>"]
    parts.append("<h3>How to read it</h3><ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in NOTES) + failed + "</ul>")
    for scene in results["scenes"]:
        for _, comparison, groups in comparisons(results, scene):
            parts.append(
                f"<h2>{html.escape(scene)}: {comparison.title.lower()}</h2><p>{html.escape(says(comparison, groups))}</p>"
            )
            parts.append(interactive(groups))
            parts += [_html_table(table) for table in tables(results, scene, comparison, groups)]
            parts.append(gallery(out, groups))
    write_page(path, "Convergence", "\n".join(parts), _STYLE)


def _html_table(table: Table) -> str:
    head, rows = table
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    return f'<div class="wide"><table><tr>{top}</tr>' + "".join(f"<tr>{row}</tr>" for row in cells) + "</table></div><br>"


def gallery(out: Path, groups: Sequence[Group]) -> str:
    """The surfaces at equal times: a row for each group (its first seed), a column for each time."""
    times = sorted({point["at"] for group in groups for run in group.runs for point in run["points"] if point["at"] > 0})
    metric = next((name for name in metrics_of(groups) if METRICS[name].better < 0), None)
    top = "".join(f"<th>{at:g} s</th>" for at in times)
    rows = []
    for group in groups:
        run = group.runs[0]
        cells = [_gallery_cell(out, run, point_at(run, at), at, metric) for at in times if at <= group.budget]
        rows.append(f"<tr><td>{html.escape(group.label)}</td>{''.join(cells)}</tr>")
    title = f"Surfaces at equal times (seed {groups[0].runs[0]['job']['seed']})"
    return f'<h4>{title}</h4><div class="wide gallery"><table><tr><th></th>{top}</tr>{"".join(rows)}</table></div>'


def _gallery_cell(out: Path, run: Mapping, point: dict | None, at: float, metric: str | None) -> str:
    if point is None:
        first = next((point for point in run["points"] if point["at"] > 0), run["points"][0])
        return "<td>starting</td>" if first["at"] > at else f"<td>at {first['seconds']:.3g} s only</td>"
    picture = out / run["folder"] / "pictures" / f"{run['points'].index(point):03}.png"
    if not picture.is_file():
        return "<td>no surface</td>"
    data = base64.b64encode(picture.read_bytes()).decode()
    value = figure(point, metric) if metric else None
    caption = METRICS[metric].shown(value) if value is not None else ""
    earlier = f" at {point['seconds']:.3g} s" if point["at"] != at else ""
    return f'<td><img alt="{html.escape(run_name(run["job"]))}" src="data:image/png;base64,{data}">{caption}{earlier}</td>'
