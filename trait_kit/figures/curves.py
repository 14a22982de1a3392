"""Curves, bars and dots: is the classifier good, what did selection find, what did each stage teach, and what was gained?

Every function takes plain tables, and its title says what was found. A mean gain can rest on a few items, and a
significant one can still lose on a task: so gains are drawn by arm and by item.
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
from trait_kit.evaluation.comparison import ALPHA, HELD_OUT, LOWER_IS_BETTER, MACRO
from trait_kit.figures import style
from trait_kit.figures.cells import BITS, GENERAL, metric_name, words
from trait_kit.figures.style import KitFigure, colour, label, new_figure
from trait_kit.runs import BATCH_VARIABLE

_PANELS = style.WORDING["panels"]  # metric of the log -> heading
_SECONDS_BETWEEN = 15.0  # drawing takes a third of a second of the cores that train


@style.styled
def plot_precision_recall(curve: pd.DataFrame, base_rate: float, average_precision: float) -> KitFigure:
    """Of the domain classifier on held-out documents; `curve`: threshold, precision, recall.

    `base_rate` is the share of in-domain documents among the held-out ones: the precision of guessing.
    """
    curve = curve.sort_values(["recall", "precision"], ascending=[True, False])
    half = curve.loc[(curve["threshold"] - 0.5).abs().idxmin()]
    at_half = "threshold {threshold:.2f}: precision {precision:.2f}, recall {recall:.2f}".format(**half)
    figure, (axes,) = new_figure("precision_recall", {"average": average_precision, "base_rate": base_rate})
    axes.plot(curve["recall"], curve["precision"], color=colour("in_domain"), drawstyle="steps-pre")
    axes.plot(half["recall"], half["precision"], "o", color=colour("in_domain"), label=at_half)
    axes.axhline(base_rate, **style.DASHED, label=f"chance: {base_rate:.2f}")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.03))
    axes.legend(loc="best")
    return figure


@style.styled
def plot_score_histogram(scores: np.ndarray, cuts: Mapping[str, float | None], truth: np.ndarray | None) -> KitFigure:
    """How many documents get which domain probability (log scale), with a line at each method's cut, None if it took all.

    `truth` (hidden labels, where a corpus has them) splits the bars; it is drawn, never used for selection.
    """
    inside = np.zeros(len(scores), bool) if truth is None else truth
    figure, (axes,) = new_figure("score_histogram", {"n": len(scores)})
    bars = {"bins": np.linspace(0, 1, 41), "log": True}
    axes.hist(scores[~inside], color=colour("general"), label="other", **bars)
    if truth is not None:
        axes.hist(
            scores[inside], color=colour("in_domain"), histtype="step", linewidth=1.3, label="hidden in-domain", **bars
        )
    for dash, (name, cut) in enumerate(cuts.items(), 1):
        if cut is not None:
            share = f"top {100 * (scores >= cut).mean():.2g}%"
            axes.axvline(cut, color=colour(name), linestyle=(0, (4, dash)), label=f"{label(name)}: {cut:.3g}, {share}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    style.legend(figure, "upper left", ncols=2)
    return figure


@style.styled
def plot_selection_quality(quality: pd.DataFrame) -> KitFigure:
    """Lift (precision / base rate) of each selection method at the same token budget; one row a method.

    `quality`: method, precision, recall, base_rate, lift.
    """
    quality = quality.sort_values("lift", kind="stable")
    best = quality.iloc[-1]
    facts = {"best": label(best["method"]), "lift": best["lift"], "share": 100 * best["base_rate"]}
    figure, (axes,) = new_figure("selection_quality", facts, height=0.6 + 0.27 * len(quality))
    axes.barh(range(len(quality)), quality["lift"], color=list(map(colour, quality["method"])), height=0.62)
    said = [f"{row.lift:.1f}x\nprecision {row.precision:.2f}, recall {row.recall:.2f}" for row in quality.itertuples()]
    axes.axvline(1, **style.DASHED)
    style.rows_down(axes, map(label, quality["method"][::-1]), said[::-1])
    return figure


@style.styled
def plot_training_curves(log: pd.DataFrame, arms: Sequence[str]) -> KitFigure:
    """The paper's Figure 4: held-out bits per byte against tokens trained on, with the boundary between the stages.

    The title speaks of the last of `arms`. With `task_scores` a panel has the share of right choices, mean over tasks.
    """
    log = log[log["arm"].isin(arms)]
    metrics = log["metric"].str.replace("task/.*", "task", regex=True)
    scores = log.assign(metric=metrics).pivot_table(index="tokens", columns=["metric", "arm"], values="value")
    panels = [metric for metric in _PANELS if metric in scores]
    if not panels:
        raise TraitError(f"The training log has no held-out scores of {', '.join(arms)}.")
    arms = [arm for arm in arms if arm in scores[panels[0]]]
    values, boundary = scores[panels[0]][arms[-1]].dropna(), _boundary(log)
    ends = {"first": values.iloc[0], "middle": values.loc[: boundary or None].iloc[-1], "last": values.iloc[-1]}
    facts = {"panel": _PANELS[panels[0]], "name": label(arms[-1]), **ends}
    shape = {"height": 1.9, "panels": len(panels)}
    figure, grid = new_figure("training_curves" if boundary else "training_curves_of_one_stage", facts, **shape)
    for axes, metric in zip(grid, panels, strict=True):
        widths = np.linspace(2.2, 1.2, len(arms))  # arms that share a stage: the later one is drawn thinner
        for arm, width in zip(arms, widths, strict=True):
            look = {"color": colour(arm), "marker": style.marker(arm), "linewidth": width}
            axes.plot(scores[metric][arm].dropna(), label=label(arm), **look)
        _token_axis(axes, log)
        axes.set_title(_PANELS[metric])
    style.legend(figure, "upper left", handles=grid[0].lines[: len(arms)], ncols=4)
    return figure


@style.styled
def plot_loss(log: pd.DataFrame, arms: Sequence[str]) -> KitFigure:
    """Training loss (nats a token) and learning rate against tokens: did every stage run as planned?

    Each arm's loss is on its own training text, so levels compare within an arm, not across arms.
    """
    means = log.pivot_table(index="tokens", columns=["metric", "arm"], values="value")
    shape = {"panels": 2, "across": 1, "sharex": True, "height_ratios": [2.2, 1]}
    figure, (upper, lower) = new_figure("loss", {}, height=1.6, **shape)
    for arm in [arm for arm in arms if arm in means["loss"]]:
        loss = means["loss"][arm].dropna()
        look = {"color": colour(arm), "marker": style.marker(arm), "markevery": 0.12}
        upper.plot(loss, color=colour(arm), alpha=0.28, linewidth=0.7)
        upper.plot(loss.ewm(span=max(1, len(loss) / 12)).mean(), label=label(arm), **look)
        lower.plot(means["learning_rate"][arm].dropna(), color=colour(arm))
    for axes in (upper, lower):
        _token_axis(axes, log)
    upper.set(ylabel="loss (nats a token)")
    lower.set(xlabel="tokens trained on", ylabel="learning rate", ylim=(0, None))
    style.legend(figure, "upper left", ncols=4)
    return figure


@contextlib.contextmanager
def live_loss(arms: Sequence[str]) -> Iterator[Callable[[pd.DataFrame], None] | None]:
    """Yield what `train_arms` calls with the log so far: one figure, redrawn as training goes on and gone when it is done.

    None in batch, where nobody watches.
    """
    if BATCH_VARIABLE in os.environ:
        yield None
        return
    handle = display(HTML("<i>The curve appears after the first steps.</i>"), display_id=True)
    drawn = -_SECONDS_BETWEEN

    def draw(log: pd.DataFrame) -> None:
        nonlocal drawn
        if time.monotonic() - drawn > _SECONDS_BETWEEN and (log["metric"] == "loss").any():
            handle.update(plot_loss(log, arms))
            drawn = time.monotonic()

    try:
        yield draw
    finally:
        handle.update(HTML(""))


def _token_axis(axes: Axes, log: pd.DataFrame) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if boundary := _boundary(log):
        axes.axvline(boundary, **style.DASHED)


def _boundary(log: pd.DataFrame) -> int:
    """Tokens at which the first stage ends; 0 where there is no second one."""
    return log.loc[log["stage"] == 1, "tokens"].max() if log["stage"].max() > 1 else 0


@style.styled
def plot_gain_and_forgetting(tests: pd.DataFrame, reference: str, metric: str = BITS) -> KitFigure:
    """Gain of the reference over every other arm, paired: left on the tasks' average, right on general text.

    `tests`: comparison.compare_all's. The row of base on the right is what was forgotten; of a sweep's controls, their
    rows on the left are what the structure of passages is worth.
    """
    ours = tests[tests["reference"] == reference]
    panels = {f"{metric_name(metric)}, tasks": (metric, MACRO), "bits per byte, general text": (BITS, GENERAL)}
    macro = ours[(ours["metric"] == metric) & (ours["task"] == MACRO)].set_index("arm")
    sure = macro[macro["p_holm"] < ALPHA]["gain"]
    better, worse = (", ".join(map(label, sure.index[side])) or "none" for side in (sure > 0, sure < 0))
    facts = {"metric": metric_name(metric), "name": label(reference), "better": better, "worse": worse, "arms": len(macro)}
    figure, grid = new_figure("gain_and_forgetting", facts, height=0.6 + 0.22 * len(macro), panels=2)
    for axes, (where, (measured, task)) in zip(grid, panels.items(), strict=True):
        part = ours[(ours["metric"] == measured) & (ours["task"] == task)].set_index("arm").reindex(macro.index)
        known, scale = part["gain"].notna(), 1 if measured in LOWER_IS_BETTER else 100
        axes.set_title(where[0].upper() + where[1:] + ("" if known.any() else ": not evaluated"))
        axes.axvline(0, **style.DASHED)
        for height, row in enumerate(part[::-1].itertuples()):
            look = {"color": colour(row.Index)}
            axes.plot([scale * row.gain_low, scale * row.gain_high], [height] * 2, linewidth=2, alpha=0.55, **look)
            axes.plot(scale * row.gain, height, style.marker(row.Index), markersize=5, **look)
        told = {row["arm"]: "{gain}, p {p}".format(**words(row)) for row in part[known].reset_index().to_dict("records")}
        style.rows_down(axes, map(label, macro.index), [told.get(arm, "") for arm in macro.index])
        axes.set_xlabel("gain" + ("" if scale == 1 else " (points)"))
        axes.locator_params(axis="x", nbins=4)
    return figure


def item_gains(outcomes: pd.DataFrame, reference: str, others: Sequence[str], metric: str = BITS) -> pd.DataFrame:
    """Columns against, task, item_id, gain: one row an arm of `others` and problem that both were asked, the largest first.

    In units of the metric, means over training seeds; above 0 in the reference's favour whatever its direction.
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
    counts = gains.assign(won=gains["gain"] > 0, lost=gains["gain"] < 0, n=1).pivot_table(
        index="task", columns="against", values=["won", "lost", "n"], aggfunc="sum", fill_value=0
    )
    said = "{won:,} and loses {lost:,} of {n:,} items against "
    won = [said.format(**counts.xs(other, axis=1, level=1).sum()) + label(other) for other in others]
    scale, unit = (1, "") if metric in LOWER_IS_BETTER else (100, " (points)")
    facts = {"name": label(reference), "won": ", ".join(won), "metric": metric_name(metric) + unit}
    shape = {"panels": len(others), "sharex": True, "height": 0.6 + 0.34 * len(tasks)}
    figure, grid = new_figure("item_gains", facts, **shape)
    for axes, other in zip(grid, others, strict=True):
        axes.axvline(0, **style.DASHED)
        for height, task in enumerate(reversed(tasks)):
            values = scale * gains.loc[(gains["against"] == other) & (gains["task"] == task), "gain"].to_numpy()
            turns = 0.6180339887 * np.arange(len(values))  # neighbours in value, far apart in height
            shades = np.select([values > 0, values < 0], [colour(reference), style.LOST], style.QUIET)
            dots = {"c": list(shades), "s": 9, "alpha": 0.55, "linewidths": 0, "rasterized": len(values) > 2_000}
            axes.scatter(values, height + 0.6 * (turns % 1 - 0.5), **dots)
            axes.plot([values.mean()] * 2, [height - 0.3, height + 0.3], color=style.INK)
        won_lost = counts.xs(other, axis=1, level=1).to_dict("records")
        style.rows_down(axes, map(label, tasks), ["{won:,} : {lost:,}".format(**row) for row in won_lost])
        axes.set_title(f"against {label(other)}")
    return figure
