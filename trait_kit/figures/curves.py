"""Curves, bars and dots: is the classifier good, what did selection find, each stage teach, and what was gained?

A mean gain can rest on a few items, and a significant one can lose on a task: so gains are drawn by arm and by item.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from trait_kit.engine.files import TraitError
from trait_kit.evaluation.comparison import HELD_OUT, LOWER_IS_BETTER, MACRO
from trait_kit.figures import style
from trait_kit.figures.cells import BITS, GENERAL, metric_name, words
from trait_kit.figures.style import (
    DASHED,
    KitFigure,
    colour,
    label,
    legend,
    marker,
    new_figure,
    rows_down,
    styled,
)
from trait_kit.runs import BATCH_VARIABLE

_PANELS = style.WORDING["panels"]  # metric of the log -> heading
_SECONDS_BETWEEN = 15.0  # drawing takes a third of a second of the cores that train


@styled
def plot_precision_recall(curve: pd.DataFrame, base_rate: float, average_precision: float) -> KitFigure:
    """On held-out documents, of which `base_rate` are in-domain. `curve`: threshold, precision, recall."""
    curve = curve.sort_values(["recall", "precision"], ascending=[True, False])
    half = curve.loc[(curve["threshold"] - 0.5).abs().idxmin()]
    at_half = "threshold {threshold:.2f}: precision {precision:.2f}, recall {recall:.2f}".format(**half)
    figure, (axes,) = new_figure("precision_recall", {"average": average_precision, "base_rate": base_rate})
    axes.plot(curve["recall"], curve["precision"], color=colour("in_domain"), drawstyle="steps-pre")
    axes.plot(half["recall"], half["precision"], "o", color=colour("in_domain"), label=at_half)
    axes.axhline(base_rate, **DASHED, label=f"chance: {base_rate:.2f}")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.03))
    axes.legend(loc="best")
    return figure


@styled
def plot_score_histogram(
    scores: np.ndarray, cuts: Mapping[str, float | None], truth: np.ndarray | None
) -> KitFigure:
    """With a line at each method's cut, None where it took all; `truth`: hidden labels, which selection never sees."""
    figure, (axes,) = new_figure(
        "score_histogram", {"n": len(scores), "high": (scores > 0.5).sum(), "half": np.median(scores)}
    )
    bars = {"bins": np.linspace(0, 1, 41), "log": True}
    axes.hist(scores if truth is None else scores[~truth], color=colour("general"), label="other", **bars)
    if truth is not None:
        axes.hist(
            scores[truth],
            color=colour("in_domain"),
            histtype="step",
            linewidth=1.3,
            label="hidden in-domain",
            **bars,
        )
    for dash, (name, cut) in enumerate(cuts.items(), 1):
        if cut is not None:
            share = f"top {100 * (scores >= cut).mean():.2g}%"
            axes.axvline(
                cut, color=colour(name), linestyle=(0, (4, dash)), label=f"{label(name)}: {cut:.3g}, {share}"
            )
    axes.yaxis.set(major_formatter="{x:,.0f}", minor_formatter=NullFormatter())
    legend(figure, "upper left", ncols=2)

    return figure


@styled
def plot_selection_quality(quality: pd.DataFrame) -> KitFigure:
    """Lift (precision / base_rate) of each method at the same token budget; choosing.quality's rows."""
    quality = quality.sort_values("lift", kind="stable")
    best = quality.iloc[-1]
    facts = {"best": label(best["method"]), "lift": best["lift"], "share": 100 * best["base_rate"]}
    figure, (axes,) = new_figure("selection_quality", facts, height=0.6 + 0.27 * len(quality))
    axes.barh(range(len(quality)), quality["lift"], color=list(map(colour, quality["method"])), height=0.62)
    said = [
        f"{row.lift:.1f}x\nprecision {row.precision:.2f}, recall {row.recall:.2f}" for row in quality.itertuples()
    ]
    axes.axvline(1, **DASHED)
    rows_down(axes, map(label, quality["method"][::-1]), said[::-1])
    return figure


@styled
def plot_training_curves(log: pd.DataFrame, arms: Sequence[str]) -> KitFigure:
    """The paper's Figure 4: held-out bits per byte against tokens; with `task_scores` also the share of right choices."""
    log = log[log["arm"].isin(arms)]
    metrics = log["metric"].str.replace("task/.*", "task", regex=True)
    scores = log.assign(metric=metrics).pivot_table(index="tokens", columns=["metric", "arm"], values="value")
    panels = [metric for metric in _PANELS if metric in scores]
    if not panels:
        raise TraitError(f"The training log has no held-out scores of {', '.join(arms)}.")
    arms = [arm for arm in arms if arm in scores[panels[0]]]
    values, boundary = scores[panels[0]][arms[-1]].dropna(), _boundary(log)
    facts = {"first": values.iloc[0], "middle": values.loc[: boundary or None].iloc[-1], "last": values.iloc[-1]}
    facts |= {"panel": _PANELS[panels[0]], "name": label(arms[-1])}
    figure, grid = new_figure(
        "training_curves" + "_of_one_stage" * (not boundary), facts, 1.9, panels=len(panels)
    )
    for axes, metric in zip(grid, panels, strict=True):
        # arms that share a stage: the later one is drawn thinner
        for arm, width in zip(arms, np.linspace(2.2, 1.2, len(arms)), strict=True):
            axes.plot(
                scores[metric][arm].dropna(),
                color=colour(arm),
                marker=marker(arm),
                linewidth=width,
                label=label(arm),
            )
        _token_axis(axes, boundary)
        axes.set_title(_PANELS[metric])
    legend(figure, "upper left", handles=grid[0].lines[: len(arms)], ncols=4)

    return figure


@styled
def plot_loss(log: pd.DataFrame, arms: Sequence[str]) -> KitFigure:
    """Training loss (nats a token) and learning rate against tokens: did all run as planned?"""
    means = log.pivot_table(index="tokens", columns=["metric", "arm"], values="value")
    figure, (upper, lower) = new_figure("loss", {}, 1.6, panels=2, across=1, sharex=True, height_ratios=[2.2, 1])
    for arm in [arm for arm in arms if arm in means["loss"]]:
        loss, ink = means["loss"][arm].dropna(), colour(arm)
        smooth = loss.ewm(span=max(1, len(loss) / 12)).mean()
        upper.plot(loss, color=ink, alpha=0.28, linewidth=0.7)
        upper.plot(smooth, color=ink, marker=marker(arm), markevery=1 + len(loss) // 8, label=label(arm))
        lower.plot(means["learning_rate"][arm].dropna(), color=ink)
    for axes in (upper, lower):
        _token_axis(axes, _boundary(log))
    upper.set(ylabel="loss (nats a token)")
    lower.set(xlabel="tokens trained on", ylabel="learning rate", ylim=(0, None))
    legend(figure, "upper left", ncols=4)
    return figure


@contextlib.contextmanager
def live_loss(arms: Sequence[str]) -> Iterator[Callable[[pd.DataFrame], None] | None]:
    """Yield what `train_arms` calls with the log so far: a figure that is redrawn, and gone at the end; None in batch."""
    if BATCH_VARIABLE in os.environ:
        yield None
        return
    handle = display(HTML("<i>The curve appears after the first steps.</i>"), display_id=True)
    due = 0.0

    def draw(log: pd.DataFrame) -> None:
        nonlocal due
        if time.monotonic() > due and (log["metric"] == "loss").any():
            handle.update(plot_loss(log, arms))
            due = time.monotonic() + _SECONDS_BETWEEN

    try:
        yield draw
    finally:
        handle.update(HTML(""))


def _token_axis(axes: Axes, boundary: int) -> None:
    axes.xaxis.set(major_locator=MaxNLocator(5, integer=True), major_formatter=EngFormatter(sep=""))
    if boundary:
        axes.axvline(boundary, **DASHED)


def _boundary(log: pd.DataFrame) -> int:
    """Tokens at which the first stage ends; 0 where there is no second one."""
    return log.loc[log["stage"] == 1, "tokens"].max() if log["stage"].max() > 1 else 0


@styled
def plot_gain_and_forgetting(tests: pd.DataFrame, reference: str, metric: str = BITS) -> KitFigure:
    """Of compare_all's tests: left on the tasks' average, right on general text, where base's row is what was forgotten."""
    ours = tests[tests["reference"] == reference]
    panels = [(f"{metric_name(metric)}, tasks", metric, MACRO), ("bits per byte, general text", BITS, GENERAL)]
    macro = ours[(ours["metric"] == metric) & (ours["task"] == MACRO)].set_index("arm")
    sure = macro[macro["shown"]]["gain"]
    better, worse = (", ".join(map(label, sure.index[side])) or "none" for side in (sure > 0, sure < 0))
    facts = {"metric": metric_name(metric), "name": label(reference), "arms": len(macro)}
    facts |= {"better": better, "worse": worse}
    figure, grid = new_figure("gain_and_forgetting", facts, height=0.6 + 0.22 * len(macro), panels=2)
    for axes, (where, measured, task) in zip(grid, panels, strict=True):
        part = ours[(ours["metric"] == measured) & (ours["task"] == task)].set_index("arm").reindex(macro.index)
        known, scale = part["gain"].notna(), 1 if measured in LOWER_IS_BETTER else 100
        title = where[0].upper() + where[1:] + ("" if known.any() else ": not evaluated")
        axes.set(title=title, xlabel="gain" + ("" if scale == 1 else " (points)"))
        axes.axvline(0, **DASHED)
        for height, row in enumerate(part[::-1].itertuples()):
            ends, ink = [scale * row.gain_low, scale * row.gain_high], colour(row.Index)
            axes.plot(ends, [height] * 2, color=ink, linewidth=2, alpha=0.55)
            axes.plot(scale * row.gain, height, marker=marker(row.Index), color=ink, markersize=5)
        told = {
            row["arm"]: "{gain}, p {p}".format(**words(row))
            for row in part[known].reset_index().to_dict("records")
        }
        rows_down(axes, map(label, macro.index), [told.get(arm, "") for arm in macro.index])
        axes.locator_params(axis="x", nbins=4)

    return figure


def item_gains(outcomes: pd.DataFrame, reference: str, others: Sequence[str], metric: str = BITS) -> pd.DataFrame:
    """Columns against, task, item_id, gain: a row an arm of `others` and problem, the largest gain first.

    In units of the metric, means over training seeds; above 0 the reference is better.
    """
    values = outcomes[(outcomes["metric"] == metric) & ~outcomes["task"].str.startswith(HELD_OUT)]
    wide = values.pivot_table(index=["task", "item_id"], columns="arm", values="value")
    if missing := {reference, *others} - set(wide):
        raise TraitError(
            f"No problem of {metric} was asked of: {', '.join(sorted(missing))}. Run the evaluation again."
        )
    sign = -1 if metric in LOWER_IS_BETTER else 1
    # differences of rounding are ties
    gains = {other: (sign * (wide[reference] - wide[other])).dropna().round(12) for other in others}
    ordered = {other: gain.sort_values(ascending=False, kind="stable") for other, gain in gains.items()}
    return pd.concat(ordered, names=["against"]).rename("gain").reset_index()


@styled
def plot_item_gains(gains: pd.DataFrame, reference: str, metric: str = BITS) -> KitFigure:
    others, tasks = list(dict.fromkeys(gains["against"])), sorted(set(gains["task"]))
    marked = gains.assign(won=gains["gain"] > 0, lost=gains["gain"] < 0, n=1).groupby(["against", "task"])
    counts = {
        other: marked[["won", "lost", "n"]].sum().loc[other].reindex(tasks, fill_value=0) for other in others
    }
    said = "{won:,} and loses {lost:,} of {n:,} items against "
    won = [said.format(**counts[other].sum()) + label(other) for other in others]
    scale, unit = (1, "") if metric in LOWER_IS_BETTER else (100, " (points)")
    facts = {"name": label(reference), "won": ", ".join(won), "metric": metric_name(metric) + unit}
    figure, grid = new_figure("item_gains", facts, 0.6 + 0.34 * len(tasks), panels=len(others), sharex=True)
    for axes, other in zip(grid, others, strict=True):
        axes.axvline(0, **DASHED)
        for height, task in enumerate(reversed(tasks)):
            values = scale * gains.loc[(gains["against"] == other) & (gains["task"] == task), "gain"].to_numpy()
            turns = 0.6180339887 * np.arange(len(values))  # neighbours in value, far apart in height
            shades = np.select([values > 0, values < 0], [colour(reference), style.LOST], style.QUIET)
            places, many = height + 0.6 * (turns % 1 - 0.5), len(values) > 2_000
            axes.scatter(values, places, 9, list(shades), alpha=0.55, linewidths=0, rasterized=many)
            axes.plot([values.mean()] * 2, [height - 0.3, height + 0.3], color=style.INK)
        rows_down(
            axes, map(style.spelt, tasks), [f"{row.won:,} : {row.lost:,}" for row in counts[other].itertuples()]
        )
        axes.set_title(f"against {label(other)}")

    return figure
