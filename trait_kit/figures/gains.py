"""Where does a gain come from? The items that one arm wins and loses against others, as a table, a figure and a page.

A mean can rest on a few items, and a significant one can still lose on a task. Texts of items and predictions are data from
elsewhere: the page escapes all of them, runs no script and asks for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

from trait_kit.engine.files import TraitError
from trait_kit.evaluation.comparison import HELD_OUT, LOWER_IS_BETTER, item_values
from trait_kit.evaluation.set_metrics import SCORE
from trait_kit.figures.measures import metric_name, number_text, scale_of
from trait_kit.figures.style import INK, QUIET, KitFigure, colour, label, new_figure, plain, styled
from trait_kit.passages.quality import Page

LOST = "#c8553d"
_SHOWN = 4_000  # characters of a text on the page
_EQUAL = 1e-12  # differences of rounding are ties


def item_gains(outcomes: pd.DataFrame, reference: str, other: str, metric: str = "bits_per_byte") -> pd.DataFrame:
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
    gain = wide["other"] - wide["reference"] if metric in LOWER_IS_BETTER else wide["reference"] - wide["other"]
    gain = gain.where(gain.abs() > _EQUAL * wide.abs().max(axis=1), 0.0)
    return wide.assign(gain=gain).reset_index().sort_values(["gain", "task", "item_id"], ascending=[False, True, True])


def won_and_lost(
    outcomes: pd.DataFrame, reference: str, others: Sequence[str], metric: str = "bits_per_byte"
) -> pd.DataFrame:
    """Columns against, task, items, won, lost, tied, mean_gain, share_of_gain: one row an arm of `others` and task.

    `share_of_gain`: the task's part of the gain in the average over tasks; below 0 it works against it.
    """
    rows = []
    for other in others:
        gains = item_gains(outcomes, reference, other, metric)
        by_task = {task: gains.loc[gains["task"] == task, "gain"] for task in _tasks(outcomes, gains)}
        total = sum(part.mean() for part in by_task.values())
        for task, gain in by_task.items():
            counts = {"items": len(gain), "won": int((gain > 0).sum()), "lost": int((gain < 0).sum())}
            tied, share = int((gain == 0).sum()), gain.mean() / total if total else np.nan
            rows.append(
                {"against": other, "task": task, **counts, "tied": tied, "mean_gain": gain.mean(), "share_of_gain": share}
            )
    return pd.DataFrame(rows)


@styled
def plot_item_gains(
    outcomes: pd.DataFrame, reference: str, others: Sequence[str], metric: str = "bits_per_byte"
) -> KitFigure:
    """Every item as a dot at its gain over each arm of `others`, a row a task, with how many were won and lost."""
    found = {other: item_gains(outcomes, reference, other, metric) for other in others}
    tasks = _tasks(outcomes, pd.concat(found.values()))
    parts = []
    for other, gains in found.items():
        won, lost = int((gains["gain"] > 0).sum()), int((gains["gain"] < 0).sum())
        parts.append(f"{won:,} and loses {lost:,} of {len(gains):,} items against {label(other)}")
    figure, grid = new_figure(
        f"{label(reference)} wins " + ", ".join(parts),
        f"Each dot is an item; bar: mean of the task; right of the dashed line {label(reference)} is better; "
        "beside it: items won : lost",
        width=9.6, height=1.0 + 0.62 * len(tasks), columns=len(found), squeeze=False, sharey=True, sharex=True,
    )  # fmt: skip
    scale, _ = scale_of(metric)
    for axes, (other, gains) in zip(grid[0], found.items(), strict=True):
        axes.axvline(0, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.3)
        for place, task in enumerate(reversed(tasks)):
            values = scale * gains.loc[gains["task"] == task, "gain"].to_numpy()
            if not len(values):
                continue
            for of_side, shade in ((values > 0, colour(reference)), (values < 0, LOST), (values == 0, QUIET)):
                heights = place + _apart(values)[of_side]
                axes.plot(values[of_side], heights, "o", color=shade, markersize=4.6, alpha=0.55, markeredgewidth=0)
            axes.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=2.4)
            won, lost = int((values > 0).sum()), int((values < 0).sum())
            axes.annotate(
                f"{won:,} : {lost:,}", (1.0, place), xycoords=("axes fraction", "data"),
                xytext=(4, 0), textcoords="offset points", va="center", size=11, color=INK, annotation_clip=False,
            )  # fmt: skip
        axes.set_ylim(-0.6, len(tasks) - 0.4)
        axes.set_yticks(range(len(tasks)), [plain(label(task)) for task in reversed(tasks)])
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.set_title(plain(f"against {label(other)}"), loc="left", weight="bold")
        axes.set_xlabel(f"gain in {metric_name(metric)}" + ("" if scale == 1 else " (points)"))
    return figure


def browse_items(
    outcomes: pd.DataFrame,
    problems: pd.DataFrame,
    reference: str,
    other: str,
    metric: str = "bits_per_byte",
    *,
    most: int = 200,
) -> Page:
    """A page of up to `most` problems, from the largest gain over `other` to the largest loss, with what every arm said.

    `problems`: the test problems (tables.SCHEMAS['problems']). Of more problems, those at both ends and evenly between.
    """
    gains = item_gains(outcomes, reference, other, metric).reset_index(drop=True)
    places = np.unique(np.linspace(0, len(gains) - 1, min(most, len(gains))).round().astype(int))
    rows = {(row["task"], row["id"]): row for row in problems.to_dict("records")}
    answers = {key: part for key, part in outcomes.groupby(["task", "item_id"], sort=False)}
    shown = []
    for gain in gains.iloc[places].to_dict("records"):
        key = (gain["task"], gain["item_id"])
        problem = rows.get(key, {})
        marks = answers[key]
        names = list(dict.fromkeys(marks["metric"]))
        shown.append(
            {
                "title": f"{label(gain['task'])} · {gain['item_id']}",
                "gain": _signed(gain["gain"], metric),
                "won": gain["gain"] > 0,
                "question": _text(problem.get("question")),
                "answer": _text(problem.get("answer")),
                "solution": _text(problem.get("solution")),
                "metrics": list(map(metric_name, names)),
                "arms": [_arm(arm, part, names) for arm, part in marks.groupby("arm", sort=False)],
            }
        )
    page = Path(__file__).with_name("items.html.jinja").read_text(encoding="utf-8")
    about = {"reference": label(reference), "other": label(other), "all": len(gains), "metric": metric_name(metric)}
    return Page(jinja2.Environment(autoescape=True).from_string(page).render(items=shown, **about))


def _arm(arm: str, marks: pd.DataFrame, names: list[str]) -> dict[str, object]:
    """One arm's values of an item, by metric, and its different predictions (of the seeds, of choice and generation)."""
    values = marks.groupby("metric")["value"].mean()
    said = dict.fromkeys(text for text in marks["prediction"].fillna("") if text)
    return {
        "name": label(arm),
        "values": [_value_text(values[name], name) if name in values.index else "–" for name in names],
        "said": [_text(text) for text in said],
    }


def _value_text(value: float, metric: str) -> str:
    if metric.startswith(("choice_accuracy", "exact_match")) and value in (0.0, 1.0):
        return "right" if value else "wrong"
    if metric == SCORE:
        return f"{value:+.3f}"
    return number_text(value, metric)


def _text(value: object) -> str:
    return value[:_SHOWN] if isinstance(value, str) else ""


def _signed(gain: float, metric: str) -> str:
    scale, digits = scale_of(metric)
    return f"{scale * gain:+.{digits}f}" + (" points" if scale != 1 else "")


def _tasks(outcomes: pd.DataFrame, gains: pd.DataFrame) -> list[str]:
    there = set(gains["task"])
    return [task for task in dict.fromkeys(outcomes["task"]) if task in there]


def _apart(values: np.ndarray) -> np.ndarray:
    """Heights in -0.3..0.3 that keep neighbouring dots apart, the same for the same values."""
    turns = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return 0.6 * ((turns * 0.6180339887) % 1 - 0.5)
