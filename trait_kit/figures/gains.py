"""What was gained, by arm and by item: a mean can rest on a few items, and a significant one can still lose on a task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from trait_kit.engine.files import TraitError
from trait_kit.evaluation.comparison import ALPHA, HELD_OUT, LOWER_IS_BETTER, MACRO
from trait_kit.figures import style
from trait_kit.figures.cells import BITS, GENERAL, change_text, metric_name, p_words
from trait_kit.figures.style import KitFigure, colour, label, new_figure


@style.styled
def plot_gain_and_forgetting(tests: pd.DataFrame, reference: str, metric: str = BITS) -> KitFigure:
    """Gain of the reference over every other arm, paired: left on the tasks' average, right on general text.

    `tests`: comparison.compare_all's. The row of base on the right is what was forgotten; of a sweep's controls, their
    rows on the left are what the structure of passages is worth.
    """
    ours, name = tests[tests["reference"] == reference], label(reference)
    panels = {f"{metric_name(metric)}, tasks": (metric, MACRO), "bits per byte, general text": (BITS, GENERAL)}
    macro = ours[(ours["metric"] == metric) & (ours["task"] == MACRO)].set_index("arm")
    sure = macro[macro["p_holm"] < ALPHA]["gain"]
    said = [", ".join(map(label, sure.index[side])) or "none" for side in (sure > 0, sure < 0)]
    title = f"By {metric_name(metric)}, {name} is better than {said[0]} and worse than {said[1]} (of {len(macro)} arms)"
    caption = f"Gain of {name} over each arm, right of 0 (dashed) is better; bars: paired intervals; p after Holm"
    figure, grid = new_figure(title, caption, height=0.6 + 0.22 * len(macro), panels=2)
    for axes, (where, (measured, task)) in zip(grid, panels.items(), strict=True):
        part = ours[(ours["metric"] == measured) & (ours["task"] == task)].set_index("arm")
        axes.set_title(where[0].upper() + where[1:] + (": not evaluated" if part.empty else ""), loc="left", weight="bold")
        scale, words = 1 if measured in LOWER_IS_BETTER else 100, []
        axes.axvline(0, **style.DASHED)
        for height, (arm, row) in enumerate(part.reindex(macro.index[::-1]).iterrows()):
            axes.plot(
                [scale * row["gain_low"], scale * row["gain_high"]], [height] * 2, color=colour(arm), linewidth=2, alpha=0.55
            )
            axes.plot(scale * row["gain"], height, style.marker(arm), color=colour(arm), markersize=5)
            known = arm in part.index
            words.insert(0, f"{change_text(row['gain'], measured)}, p {p_words(row['p_holm'])}" if known else "")
        style.rows_down(axes, map(label, macro.index), words)
        axes.set_xlabel("gain" + ("" if scale == 1 else " (points)"))
        axes.locator_params(axis="x", nbins=4)
    return figure


def item_gains(outcomes: pd.DataFrame, reference: str, others: Sequence[str], metric: str = BITS) -> pd.DataFrame:
    """Columns against, task, item_id, gain: one row an arm of `others` and problem that both were asked, the largest first.

    In units of the metric, means over training seeds; above 0 in the reference's favour whatever the metric's
    direction.
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
    figure, grid = new_figure(title, caption, height=0.6 + 0.34 * len(tasks), panels=len(others), sharex=True)
    scale, unit = (1, "") if metric in LOWER_IS_BETTER else (100, " (points)")
    for axes, other in zip(grid, others, strict=True):
        axes.axvline(0, **style.DASHED)
        won_lost = []
        for height, task in enumerate(reversed(tasks)):
            values = scale * gains.loc[(gains["against"] == other) & (gains["task"] == task), "gain"].to_numpy()
            turns = 0.6180339887 * np.arange(len(values))  # neighbours in value, far apart in height
            shades = np.select([values > 0, values < 0], [colour(reference), style.LOST], style.QUIET)
            dots = {"c": list(shades), "s": 9, "alpha": 0.55, "linewidths": 0, "rasterized": len(values) > 2_000}
            axes.scatter(values, height + 0.6 * (turns % 1 - 0.5), **dots)
            axes.plot([values.mean()] * 2, [height - 0.3, height + 0.3], color=style.INK)
            won_lost.insert(0, f"{(values > 0).sum():,} : {(values < 0).sum():,}")
        style.rows_down(axes, map(label, tasks), won_lost)
        axes.set_title(f"against {label(other)}", loc="left", weight="bold")
        axes.set_xlabel(f"gain in {metric_name(metric)}{unit}")
    return figure
