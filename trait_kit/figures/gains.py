"""What was gained, by arm and by item: a mean can rest on a few items, and a significant one can still lose on a task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from trait_kit.engine.files import TraitError
from trait_kit.evaluation.comparison import HELD_OUT, LOWER_IS_BETTER, MACRO
from trait_kit.figures import style
from trait_kit.figures.cells import change_text, metric_name
from trait_kit.figures.style import KitFigure, colour, label, new_figure
from trait_kit.figures.tables import BITS, GENERAL


@style.styled
def plot_gain_and_forgetting(tests: pd.DataFrame, arm: str, metric: str = BITS) -> KitFigure:
    """Change of every arm from the base model, paired over the same items: left on the tasks, right on general text.

    `tests`: rows of comparison.compare(outcomes, "base", metric) and of the same on GENERAL; the
    title speaks of `arm`. Pairing shows what the arms' own intervals hide: texts differ far more
    than arms do.
    """
    names = list(dict.fromkeys(tests["arm"]))
    changes = tests.assign(change=-tests["difference"], low=-tests["high"], high=-tests["low"]).set_index("arm")
    panels = {"the tasks": (metric, MACRO), "general text": (BITS, GENERAL)}
    found = {
        where: changes[(changes["metric"] == measured) & (changes["task"] == task)]
        for where, (measured, task) in panels.items()
    }
    said = []
    for where, part in found.items():
        for row in part[part.index == arm].to_dict("records"):
            change = change_text(row["change"], row["metric"], row["reference_mean"]).rpartition(", ")[2]
            said.append(f"{change} {metric_name(row['metric'])} on {where}")
    title = f"{label(arm)} against the base model: {', '.join(said)}"
    caption = "Paired change from the base model (dashed); bars: confidence intervals"
    size = {"width": 9.6, "height": 1.35 + 0.46 * len(names)}
    figure, grid = new_figure(title, caption, **size, ncols=2, sharey=True)
    for axes, (where, part) in zip(grid, found.items(), strict=True):
        measured = panels[where][0]
        bits = measured in LOWER_IS_BETTER
        unit = f"{metric_name(measured)} (left is better)" if bits else "points (right is better)"
        axes.axvline(0, **style.DASHED)
        axes.set_title(f"Change on {where}", loc="left", weight="bold")
        axes.set_xlabel("not evaluated" if part.empty else unit)
        style.names_down(axes, map(label, names))
        axes.margins(x=0.12)
        axes.locator_params(axis="x", nbins=4)
        for name, row in part.iterrows():
            height, scale = len(names) - 1 - names.index(name), 1 if bits else 100
            axes.plot([scale * row["low"], scale * row["high"]], [height] * 2, color=colour(name), linewidth=3.4, alpha=0.55)
            axes.plot(scale * row["change"], height, style.marker(name), color=colour(name), markersize=9)
            change = change_text(row["change"], measured).removesuffix(" points")
            style.note(axes, change, (scale * row["change"], height), (0, 7), ha="center", size=11)
    return figure


def item_gains(outcomes: pd.DataFrame, reference: str, others: Sequence[str], metric: str = BITS) -> pd.DataFrame:
    """Columns against, task, item_id, gain: one row an arm of `others` and problem that both were asked, the largest first.

    In units of the metric, means over training seeds; above 0 in the reference's favour whatever
    the metric's direction.
    """
    values = outcomes[(outcomes["metric"] == metric) & ~outcomes["task"].str.startswith(HELD_OUT)]
    wide = values.pivot_table(index=["task", "item_id"], columns="arm", values="value")
    if missing := {reference, *others} - set(wide):
        raise TraitError(f"No problem of {metric} was asked of: {', '.join(sorted(missing))}. Run the evaluation again.")
    parts = []
    for other in others:
        gain = (wide[reference] - wide[other]) * (-1 if metric in LOWER_IS_BETTER else 1)
        gain = gain.dropna().round(12).rename("gain")  # differences of rounding are ties
        parts.append(gain.sort_values(ascending=False, kind="stable").reset_index().assign(against=other))
    return pd.concat(parts, ignore_index=True)


@style.styled
def plot_item_gains(gains: pd.DataFrame, reference: str, metric: str = BITS) -> KitFigure:
    """Every item of `item_gains` as a dot, a row a task, with how many were won and lost."""
    others, tasks = list(dict.fromkeys(gains["against"])), sorted(set(gains["task"]))
    said = []
    for other, part in gains.groupby("against", sort=False):
        won, lost = (part["gain"] > 0).sum(), (part["gain"] < 0).sum()
        said.append(f"{won:,} and loses {lost:,} of {len(part):,} items against {label(other)}")
    title = f"{label(reference)} wins {', '.join(said)}"
    caption = f"Each dot is an item, the bar their mean; right of 0 {label(reference)} is better; beside it: won : lost"
    shape = {"ncols": len(others), "squeeze": False, "sharey": True, "sharex": True}
    figure, grid = new_figure(title, caption, width=9.6, height=1.0 + 0.62 * len(tasks), **shape)
    scale, unit = (1, "") if metric in LOWER_IS_BETTER else (100, " (points)")
    for axes, other in zip(grid[0], others, strict=True):
        axes.axvline(0, **style.DASHED)
        for height, task in enumerate(reversed(tasks)):
            values = scale * gains.loc[(gains["against"] == other) & (gains["task"] == task), "gain"].to_numpy()
            turns = 0.6180339887 * np.arange(len(values))  # neighbours in value, far apart in height
            shades = np.select([values > 0, values < 0], [colour(reference), style.LOST], style.QUIET)
            dots = {"c": list(shades), "s": 21, "alpha": 0.55, "linewidths": 0, "rasterized": True}
            axes.scatter(values, height + 0.6 * (turns % 1 - 0.5), **dots)
            axes.plot([values.mean()] * 2, [height - 0.3, height + 0.3], color=style.INK)
            count = f"{(values > 0).sum():,} : {(values < 0).sum():,}"
            at = {"xycoords": ("axes fraction", "data"), "va": "center", "size": 11}
            style.note(axes, count, (1.0, height), (4, 0), **at)
        style.names_down(axes, map(label, tasks))
        axes.set_title(f"against {label(other)}", loc="left", weight="bold")
        axes.set_xlabel(f"gain in {metric_name(metric)}{unit}")
    return figure
