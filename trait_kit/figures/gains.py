"""What was gained, by arm and by item, as figures and as a page to read.

A mean can rest on a few items, and a significant one can still lose on a task. Texts of items and predictions are data from
elsewhere: the page escapes all of them, runs no script and asks for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from trait_kit.engine.files import TraitError
from trait_kit.evaluation.comparison import HELD_OUT, LOWER_IS_BETTER, MACRO
from trait_kit.figures import style
from trait_kit.figures.cells import change_text, metric_name, number_text
from trait_kit.figures.style import KitFigure, colour, label, new_figure
from trait_kit.figures.tables import BITS, GENERAL, chain_of, paired

_SHOWN = 4_000  # characters of a text on the page
_EQUAL = 1e-12  # differences of rounding are ties
_ENDS = ["mean", "low", "high"]


class Page(str):
    """HTML that a notebook shows by itself."""

    def _repr_html_(self) -> str:
        return str(self)


@style.styled
def plot_arms(arms: pd.DataFrame, metric: str = BITS) -> KitFigure:
    """Every arm with its interval: the average of the tasks, then each task, on shared rows."""
    rows = arms[(arms["metric"] == metric) & ~arms["task"].str.startswith(HELD_OUT)]
    panels = {task: part.set_index("arm")[_ENDS] for task, part in rows.groupby("task", sort=False)}
    averages = panels.pop(MACRO)["mean"]
    panels = {MACRO: rows[rows["task"] == MACRO].set_index("arm")[_ENDS]} | (panels if len(panels) > 1 else {})
    lower = metric in LOWER_IS_BETTER
    best = averages.idxmin() if lower else averages.idxmax()
    title = f"{label(best)} has the best average {metric_name(metric)}: {number_text(averages[best], metric)}"
    if "base" in averages and best != "base":
        title += f" (base model {number_text(averages['base'], metric)})"
    columns = min(3, len(panels))
    down = -(-len(panels) // columns)
    size = {"width": 9.6 if columns > 1 else 7.2, "height": down * (1.1 + 0.36 * len(averages))}
    said = f"Bars: confidence intervals; {'lower' if lower else 'higher'} is better; dashed: base model"
    figure, grid = new_figure(title, said, **size, nrows=down, ncols=columns, squeeze=False, sharey=True)
    for axes, (task, table) in zip(grid.flat, panels.items(), strict=False):
        _dots(axes, table, averages.index, metric)
        if "base" in table.index:
            axes.axvline(table.loc["base", "mean"] * _scale(metric), **style.DASHED)
        name = "average of tasks" if task == MACRO else label(task)
        axes.set_title(style.plain(name), loc="left", weight="bold" if task == MACRO else "normal")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel(metric_name(metric) + ("" if lower else " (%)"))
    return figure


@style.styled
def plot_gain_and_forgetting(gain: pd.DataFrame, forgetting: pd.DataFrame | None, metric: str = BITS) -> KitFigure:
    """Change of every arm from the base model, paired over the same items: left on the tasks, right on general text.

    `gain` is comparison.compare(outcomes, "base", metric) and `forgetting` comparison.forgetting_of(outcomes). Pairing shows
    what the arms' own intervals hide: texts differ far more than arms do.
    """
    names = [arm for arm in dict.fromkeys(gain["arm"]) if arm != "base"]
    if not names:
        raise TraitError("No arm to compare with the base model: the figure needs at least one trained arm.")
    arm = "trait" if "trait" in names else names[-1]
    panels, said = [], []
    for tests, name, task, where in ((gain, metric, MACRO, "the tasks"), (forgetting, BITS, GENERAL, "general text")):
        table = _changes(tests, [(other, "base") for other in names], name, task)
        panels.append((table, name))
        if row := paired(tests, arm, "base", name, task):
            change = change_text(row["difference"], name, row["before"]).rpartition(", ")[2]
            said.append(f"{change} {metric_name(name) if name in LOWER_IS_BETTER else ''}".strip() + f" on {where}")
    title = f"{label(arm)} against the base model: " + ", ".join(said)
    below = "Paired change from the base model; bars: confidence intervals; the dashed line is the base model"
    figure, grid = new_figure(title, below, width=9.6, height=1.35 + 0.46 * len(names), ncols=2, sharey=True)
    headings = ("Gain: average of tasks", "Forgetting: general text")
    for axes, (table, name), heading in zip(grid, panels, headings, strict=True):
        if table.empty:
            axes.text(0.5, 0.5, "not evaluated", transform=axes.transAxes, ha="center", color=style.QUIET)
        _dots(axes, table, names, name, changes=True)
        axes.set_title(heading, loc="left", weight="bold")
        axes.set_xlabel("bits per byte (left is better)" if name in LOWER_IS_BETTER else "points (right is better)")
    return figure


@style.styled
def plot_ablation(arms: pd.DataFrame, pairs: pd.DataFrame, chain: Iterable[str] = (), metric: str = BITS) -> KitFigure:
    """Table 4 as a figure: the change that each part brings to the average, with its paired interval."""
    there = set(arms.loc[(arms["metric"] == metric) & (arms["task"] == MACRO), "arm"])
    names = [arm for arm in chain or chain_of(arms) if arm in there]
    if len(names) < 2:
        raise TraitError(f"The ablation needs two arms; of those asked for there are: {', '.join(names)}.")
    table = _changes(pairs, [(arm, before) for before, arm in pairwise(names)], metric, MACRO)
    lower = metric in LOWER_IS_BETTER
    best = table["mean"].idxmin() if lower else table["mean"].idxmax()
    title = f"The largest step is to {label(best)}: {change_text(table.loc[best, 'mean'], metric)}"
    if (table.loc[best, "mean"] < 0) != lower:
        title = f"No part improves the average {metric_name(metric)}"
    below = f"Change of the average by each part; bars: paired intervals; {'left' if lower else 'right'} is better"
    figure, axes = new_figure(title, below, height=1.2 + 0.5 * len(table))
    _dots(axes, table, names[1:], metric, changes=True)
    style.names_down(axes, [f"{label(before)} → {label(arm)}" for before, arm in pairwise(names)], 0.85)
    axes.set_xlabel(metric_name(metric) if lower else "points")
    return figure


def _changes(tests: pd.DataFrame | None, pairs: Iterable[tuple[str, str]], metric: str, task: str) -> pd.DataFrame:
    rows = {arm: paired(tests, arm, other, metric, task) for arm, other in pairs}
    found = {arm: [row[key] for key in ("difference", "low", "high")] for arm, row in rows.items() if row}
    return pd.DataFrame.from_dict(found, orient="index", columns=_ENDS)


def _dots(axes: Axes, table: pd.DataFrame, names: Sequence[str], metric: str, changes: bool = False) -> None:
    """One row an arm: interval as a bar, mean as the arm's marker; changes with their value, from a dashed 0."""
    if changes and len(table):
        axes.axvline(0, **style.DASHED)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for place, arm in enumerate(reversed(names)):
        if arm not in table.index:
            continue
        mean, low, high = table.loc[arm, _ENDS] * _scale(metric)
        axes.plot([low, high], [place, place], color=colour(arm), linewidth=3.4, alpha=0.55)
        axes.plot([mean], [place], style.marker(arm), color=colour(arm), markersize=9.5, markeredgecolor="white")
        if changes:
            text = change_text(table.loc[arm, "mean"], metric).removesuffix(" points")
            style.note(axes, text, (mean, place), (0, 7), ha="center", va="bottom", size=11, bbox=box)
    style.names_down(axes, map(label, names), 0.85 if changes else 0.6)
    axes.margins(x=0.12)
    axes.locator_params(axis="x", nbins=4)


def _scale(metric: str) -> int:
    return 1 if metric in LOWER_IS_BETTER else 100


def item_gains(outcomes: pd.DataFrame, reference: str, other: str, metric: str = BITS) -> pd.DataFrame:
    """Columns task, item_id, reference, other, gain: one row a problem that both arms were asked, the largest gain first.

    Values are in units of the metric, means over training seeds; a gain above 0 is in the reference's favour whatever the
    metric's direction.
    """
    values = outcomes[outcomes["arm"].isin((reference, other)) & (outcomes["metric"] == metric)]
    values = values[~values["task"].str.startswith(HELD_OUT)]
    if missing := {reference, other} - set(values["arm"]):
        raise TraitError(f"No problem of {metric} was asked of: {', '.join(sorted(missing))}. Run the evaluation again.")
    wide = values.pivot_table(index=["task", "item_id"], columns="arm", values="value")[[reference, other]].dropna()
    wide.columns = ["reference", "other"]
    gain = (wide["reference"] - wide["other"]) * (-1 if metric in LOWER_IS_BETTER else 1)
    gain = gain.where(gain.abs() > _EQUAL * wide.abs().max(axis=1), 0.0)
    return wide.assign(gain=gain).reset_index().sort_values(["gain", "task", "item_id"], ascending=[False, True, True])


def won_and_lost(outcomes: pd.DataFrame, reference: str, others: Sequence[str], metric: str = BITS) -> pd.DataFrame:
    """Columns against, task, items, won, lost, tied, mean_gain, share_of_gain: one row an arm of `others` and task.

    `share_of_gain`: the task's part of the gain in the average over tasks; below 0 it works against it.
    """
    parts = []
    for other in others:
        gains = item_gains(outcomes, reference, other, metric)
        gains = gains.assign(won=gains["gain"] > 0, lost=gains["gain"] < 0, tied=gains["gain"] == 0)
        by_task = gains.groupby("task").agg(
            items=("gain", "size"),
            won=("won", "sum"),
            lost=("lost", "sum"),
            tied=("tied", "sum"),
            mean_gain=("gain", "mean"),
        )
        by_task["share_of_gain"] = by_task["mean_gain"] / (by_task["mean_gain"].sum() or np.nan)
        order = [task for task in dict.fromkeys(outcomes["task"]) if task in by_task.index]
        part = by_task.loc[order].reset_index()
        part.insert(0, "against", other)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


@style.styled
def plot_item_gains(outcomes: pd.DataFrame, reference: str, others: Sequence[str], metric: str = BITS) -> KitFigure:
    """Every item as a dot at its gain over each arm of `others`, a row a task, with how many were won and lost."""
    counts = won_and_lost(outcomes, reference, others, metric).set_index(["against", "task"])
    tasks = list(dict.fromkeys(counts.index.get_level_values("task")))
    sums = counts.groupby("against", sort=False).sum()
    said = [
        f"{row.won:,} and loses {row.lost:,} of {row.items:,} items against {label(row.Index)}" for row in sums.itertuples()
    ]
    below = f"Each dot is an item; bar: mean of the task; right of the dashed line: {label(reference)} is better; "
    shape = {"ncols": len(others), "squeeze": False, "sharey": True, "sharex": True}
    size = {"width": 9.6, "height": 1.0 + 0.62 * len(tasks)}
    title = f"{label(reference)} wins {', '.join(said)}"
    figure, grid = new_figure(title, below + "beside it: items won : lost", **size, **shape)
    for axes, other in zip(grid[0], others, strict=True):
        gains = item_gains(outcomes, reference, other, metric)
        axes.axvline(0, **style.DASHED)
        for place, task in enumerate(reversed(tasks)):
            values = _scale(metric) * gains.loc[gains["task"] == task, "gain"].to_numpy()
            turns = 0.6180339887 * np.arange(len(values))  # neighbours in value, far apart in height
            heights = place + 0.6 * (turns % 1 - 0.5)
            shades = np.select([values > 0, values < 0], [colour(reference), style.LOST], style.QUIET)
            axes.scatter(values, heights, c=list(shades), s=21, alpha=0.55, linewidths=0)
            axes.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color=style.INK, linewidth=2.4)
            row = counts.loc[(other, task)]
            at = {"xycoords": ("axes fraction", "data"), "va": "center", "size": 11}
            style.note(axes, f"{row['won']:,.0f} : {row['lost']:,.0f}", (1.0, place), (4, 0), **at)
        style.names_down(axes, map(label, tasks))
        axes.set_title(style.plain(f"against {label(other)}"), loc="left", weight="bold")
        axes.set_xlabel(f"gain in {metric_name(metric)}" + ("" if metric in LOWER_IS_BETTER else " (points)"))
    return figure


def browse_items(
    outcomes: pd.DataFrame, problems: pd.DataFrame, reference: str, other: str, metric: str = BITS, *, most: int = 200
) -> Page:
    """A page of up to `most` problems, from the largest gain over `other` to the largest loss, with what every arm said.

    `problems`: the test problems (tables.SCHEMAS['problems']). Of more problems, those at both ends and evenly between.
    """
    gains = item_gains(outcomes, reference, other, metric).reset_index(drop=True)
    places = np.unique(np.linspace(0, len(gains) - 1, min(most, len(gains))).round().astype(int))
    asked = {(row["task"], row["id"]): row for row in problems.to_dict("records")}
    marks = dict(list(outcomes.groupby(["task", "item_id"], sort=False)))
    items = []
    for gain in gains.iloc[places].to_dict("records"):
        key = (gain["task"], gain["item_id"])
        rows = marks[key]
        values = rows.pivot_table(index="arm", columns="metric", values="value", sort=False)
        said = rows.groupby("arm")["prediction"].agg(lambda texts: list(dict.fromkeys(text for text in texts if text)))
        items.append({**gain, "asked": asked.get(key, {}), "values": values.to_dict("index"), "said": said.to_dict()})
    environment = jinja2.Environment(autoescape=True)
    environment.filters |= {"label": label, "metric": metric_name, "text": _text, "mark": _mark, "change": change_text}
    page = environment.from_string(Path(__file__).with_name("items.html.jinja").read_text(encoding="utf-8"))
    return Page(page.render(items=items, all=len(gains), reference=reference, other=other, metric=metric))


def _mark(value: float, metric: str) -> str:
    if metric.startswith(("choice_accuracy", "exact_match")) and value in (0.0, 1.0):
        return "right" if value else "wrong"
    return number_text(value, metric) if 0 <= value <= 1 else f"{value:+.3f}"


def _text(value: object) -> str:
    return value[:_SHOWN] if isinstance(value, str) else ""
