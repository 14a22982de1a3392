"""What was gained, by arm and by item, as figures and as a page to read.

A mean can rest on a few items, and a significant one can still lose on a task. Texts of items and predictions are data from
elsewhere: the page escapes all of them, runs no script and asks for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from trait_kit.engine.files import TraitError
from trait_kit.evaluation.comparison import HELD_OUT, LOWER_IS_BETTER, MACRO, item_values
from trait_kit.figures.cells import change_text, metric_name, number_text
from trait_kit.figures.style import DASHED, INK, LOST, QUIET, KitFigure, colour, label, marker, names_down, new_figure
from trait_kit.figures.style import note, plain, styled
from trait_kit.figures.tables import BITS, GENERAL, chain_of, paired

_SHOWN = 4_000  # characters of a text on the page
_EQUAL = 1e-12  # differences of rounding are ties
_ENDS = ["mean", "low", "high"]


class Page(str):
    """HTML that a notebook shows by itself."""

    def _repr_html_(self) -> str:
        return str(self)


@styled
def plot_arms(arms: pd.DataFrame, metric: str = BITS) -> KitFigure:
    """Every arm with its interval: the average of the tasks, then each task, on shared rows."""
    rows = arms[(arms["metric"] == metric) & ~arms["task"].str.startswith(HELD_OUT)]
    by_task = {task: part.set_index("arm")[_ENDS] for task, part in rows.groupby("task", sort=False)}
    if MACRO not in by_task:
        raise TraitError(f"The table of arms has no averages of {metric}. Run notebook 05 again.")
    averages = by_task.pop(MACRO)
    lower = metric in LOWER_IS_BETTER
    best = averages["mean"].idxmin() if lower else averages["mean"].idxmax()
    title = f"{label(best)} has the best average {metric_name(metric)}: {number_text(averages.loc[best, 'mean'], metric)}"
    if "base" in averages.index and best != "base":
        title += f" (base model {number_text(averages.loc['base', 'mean'], metric)})"
    panels = {"average of tasks": averages} | ({label(task): table for task, table in by_task.items()} if len(by_task) > 1 else {})
    columns = min(3, len(panels))
    rows_down = math.ceil(len(panels) / columns)
    figure, grid = new_figure(
        title,
        f"Bars: confidence intervals; {'lower' if lower else 'higher'} is better; dashed: base model",
        width=9.6 if columns > 1 else 7.2,
        height=rows_down * (1.1 + 0.36 * len(averages)),
        rows=rows_down,
        columns=columns,
        squeeze=False,
        sharey=True,
    )
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    for place, (axes, (name, table)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        if "base" in table.index:
            axes.axvline(table.loc["base", "mean"] * _scale(metric), **DASHED)
        _dots(axes, table * _scale(metric), averages.index)
        axes.set_title(plain(name), loc="left", weight="bold" if place == 0 else "normal")
        if place >= len(panels) - columns:
            axes.set_xlabel(metric_name(metric) + ("" if lower else " (%)"))
    return figure


@styled
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
    wanted = [(gain, metric, MACRO, "Gain: average of tasks", "tasks"), (forgetting, BITS, GENERAL, "Forgetting: general text", "general text")]
    for tests, of_metric, task, heading, where in wanted:
        found = {name: paired(tests, name, "base", of_metric, task) for name in names}
        panels.append((heading, of_metric, _changes(found, of_metric)))
        if row := found[arm]:
            before = row["reference_mean"] if row["reference"] == "base" else row["arm_mean"]
            said.append(f"{_relative(row['difference'], of_metric, before)} on {'the ' * (task == MACRO)}{where}")
    figure, grid = new_figure(
        f"{label(arm)} against the base model: " + ", ".join(said),
        "Paired change from the base model; bars: confidence intervals; the dashed line is the base model",
        width=9.6,
        height=1.35 + 0.46 * len(names),
        columns=2,
        sharey=True,
    )
    for axes, (heading, of_metric, table) in zip(grid, panels, strict=True):
        if table.empty:
            axes.text(0.5, 0.5, "not evaluated", transform=axes.transAxes, ha="center", color=QUIET)
        _dots(axes, table, names, of_metric)
        axes.set_title(heading, loc="left", weight="bold")
        axes.set_xlabel("bits per byte (left is better)" if of_metric in LOWER_IS_BETTER else "points (right is better)")
    return figure


@styled
def plot_ablation(arms: pd.DataFrame, pairs: pd.DataFrame, chain: Iterable[str] = (), metric: str = BITS) -> KitFigure:
    """Table 4 as a figure: the change that each part brings to the average, with its paired interval."""
    there = set(arms.loc[(arms["metric"] == metric) & (arms["task"] == MACRO), "arm"])
    names = [arm for arm in chain or chain_of(arms) if arm in there]
    if len(names) < 2:
        raise TraitError(f"The ablation needs two arms; of those asked for there are: {', '.join(names)}.")
    table = _changes({arm: paired(pairs, arm, before, metric) for before, arm in pairwise(names)}, metric)
    lower = metric in LOWER_IS_BETTER
    best = table["mean"].idxmin() if lower else table["mean"].idxmax()
    unit = metric_name(metric) if lower else "points"
    title = f"The largest step is to {label(best)}: {_value(table.loc[best, 'mean'], metric)} {unit}"
    if (table.loc[best, "mean"] < 0) != lower:
        title = f"No part improves the average {metric_name(metric)}"
    figure, axes = new_figure(
        title,
        f"Change of the average by each part; bars: paired confidence intervals; {'left' if lower else 'right'} is better",
        height=1.2 + 0.5 * len(table),
    )
    _dots(axes, table, names[1:], metric)
    names_down(axes, [f"{label(before)} → {label(arm)}" for before, arm in pairwise(names)], top=len(table) - 0.15)
    axes.set_xlabel(unit)
    return figure


def _changes(rows: Mapping[str, dict[str, Any] | None], metric: str) -> pd.DataFrame:
    found = {arm: [_scale(metric) * row[key] for key in ("difference", "low", "high")] for arm, row in rows.items() if row}
    return pd.DataFrame.from_dict(found, orient="index", columns=_ENDS)


def _dots(axes: Axes, table: pd.DataFrame, names: Sequence[str], changes_of: str = "") -> None:
    """One row an arm: interval as a bar, mean as the arm's marker; changes of a metric with their value, from a dashed 0."""
    if changes_of and len(table):
        axes.axvline(0, **DASHED)
    for place, arm in enumerate(reversed(names)):
        if arm not in table.index:
            continue
        mean, low, high = table.loc[arm, _ENDS]
        axes.plot([low, high], [place, place], color=colour(arm), linewidth=3.4, alpha=0.55)
        axes.plot([mean], [place], marker(arm), color=colour(arm), markersize=9.5, markeredgecolor="white")
        if changes_of:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            note(axes, _value(mean, changes_of), (mean, place), (0, 7), ha="center", va="bottom", size=11, bbox=box)
    names_down(axes, map(label, names), top=len(names) - (0.15 if changes_of else 0.4))
    axes.margins(x=0.12)
    axes.locator_params(axis="x", nbins=4)


def _scale(metric: str) -> int:
    return 1 if metric in LOWER_IS_BETTER else 100


def _value(scaled: float, metric: str) -> str:
    return f"{scaled:+.3f}" if metric in LOWER_IS_BETTER else f"{scaled:+.1f}"


def _relative(change: float, metric: str, before: float) -> str:
    if metric not in LOWER_IS_BETTER:
        return change_text(change, metric)
    return f"{100 * change / before:+.1f}% {metric_name(metric)}"


def item_gains(outcomes: pd.DataFrame, reference: str, other: str, metric: str = BITS) -> pd.DataFrame:
    """Columns task, item_id, reference, other, gain: one row a problem that both arms were asked, the largest gain first.

    Values are in units of the metric, means over training seeds; a gain above 0 is in the reference's favour whatever the
    metric's direction.
    """
    values = item_values(outcomes[outcomes["arm"].isin((reference, other)) & (outcomes["metric"] == metric)])
    values = values[~values["task"].str.startswith(HELD_OUT)]
    if missing := {reference, other} - set(values["arm"]):
        raise TraitError(f"No problem of {metric} was asked of: {', '.join(sorted(missing))}. Run the evaluation again.")
    wide = values.pivot(index=["task", "item_id"], columns="arm", values="value")[[reference, other]].dropna()
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
        by_task = item_gains(outcomes, reference, other, metric).groupby("task")["gain"]
        part = by_task.agg(
            items="size",
            won=lambda gain: int((gain > 0).sum()),
            lost=lambda gain: int((gain < 0).sum()),
            tied=lambda gain: int((gain == 0).sum()),
            mean_gain="mean",
        )
        total = part["mean_gain"].sum()
        part["share_of_gain"] = part["mean_gain"] / (total or np.nan)
        order = [task for task in dict.fromkeys(outcomes["task"]) if task in part.index]
        parts.append(part.loc[order].reset_index().assign(against=other))
    found = pd.concat(parts, ignore_index=True)
    return found[["against", *found.columns.drop("against")]]


@styled
def plot_item_gains(outcomes: pd.DataFrame, reference: str, others: Sequence[str], metric: str = BITS) -> KitFigure:
    """Every item as a dot at its gain over each arm of `others`, a row a task, with how many were won and lost."""
    counts = won_and_lost(outcomes, reference, others, metric)
    tasks = list(dict.fromkeys(counts["task"]))
    sums = counts.groupby("against", sort=False)[["won", "lost", "items"]].sum()
    said = [f"{row.won:,} and loses {row.lost:,} of {row.items:,} items against {label(row.Index)}" for row in sums.itertuples()]
    figure, grid = new_figure(
        f"{label(reference)} wins " + ", ".join(said),
        f"Each dot is an item; bar: mean of the task; right of the dashed line {label(reference)} is better; "
        "beside it: items won : lost",
        width=9.6,
        height=1.0 + 0.62 * len(tasks),
        columns=len(others),
        squeeze=False,
        sharey=True,
        sharex=True,
    )
    scale = _scale(metric)
    for axes, other in zip(grid[0], others, strict=True):
        gains = item_gains(outcomes, reference, other, metric)
        axes.axvline(0, **DASHED)
        for place, task in enumerate(reversed(tasks)):
            values = scale * gains.loc[gains["task"] == task, "gain"].to_numpy()
            for of_side, shade in ((values > 0, colour(reference)), (values < 0, LOST), (values == 0, QUIET)):
                heights = place + _apart(values)[of_side]
                axes.plot(values[of_side], heights, "o", color=shade, markersize=4.6, alpha=0.55, markeredgewidth=0)
            axes.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=2.4)
            score = f"{(values > 0).sum():,} : {(values < 0).sum():,}"
            note(axes, score, (1.0, place), (4, 0), xycoords=("axes fraction", "data"), va="center", size=11)
        names_down(axes, map(label, tasks))
        axes.set_title(plain(f"against {label(other)}"), loc="left", weight="bold")
        axes.set_xlabel(f"gain in {metric_name(metric)}" + ("" if scale == 1 else " (points)"))
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
    answers = dict(list(outcomes.groupby(["task", "item_id"], sort=False)))
    shown = []
    for gain in gains.iloc[places].to_dict("records"):
        key = (gain["task"], gain["item_id"])
        texts = {name: _text(asked.get(key, {}).get(name)) for name in ("question", "answer", "solution")}
        names = list(dict.fromkeys(answers[key]["metric"]))
        item = {
            "title": f"{label(gain['task'])} · {gain['item_id']}",
            "gain": change_text(gain["gain"], metric),
            "won": gain["gain"] > 0,
            "metrics": list(map(metric_name, names)),
            "arms": [_arm(arm, part, names) for arm, part in answers[key].groupby("arm", sort=False)],
        }
        shown.append(item | texts)
    page = Path(__file__).with_name("items.html.jinja").read_text(encoding="utf-8")
    about = {"reference": label(reference), "other": label(other), "all": len(gains), "metric": metric_name(metric)}
    return Page(jinja2.Environment(autoescape=True).from_string(page).render(items=shown, **about))


def _arm(arm: str, marks: pd.DataFrame, names: list[str]) -> dict[str, Any]:
    """One arm's values of an item, by metric, and its different predictions (of the seeds, of choice and generation)."""
    values = marks.groupby("metric")["value"].mean()
    said = dict.fromkeys(text for text in marks["prediction"].fillna("") if text)
    shown = [_mark(values[name], name) if name in values.index else "–" for name in names]
    return {"name": label(arm), "values": shown, "said": [_text(text) for text in said]}


def _mark(value: float, metric: str) -> str:
    if metric.startswith(("choice_accuracy", "exact_match")) and value in (0.0, 1.0):
        return "right" if value else "wrong"
    return number_text(value, metric) if 0 <= value <= 1 else f"{value:+.3f}"


def _text(value: object) -> str:
    return value[:_SHOWN] if isinstance(value, str) else ""


def _apart(values: np.ndarray) -> np.ndarray:
    """Heights in -0.3..0.3 that keep neighbouring dots apart, the same for the same values."""
    turns = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return 0.6 * ((turns * 0.6180339887) % 1 - 0.5)
