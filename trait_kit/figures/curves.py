"""Curves and bars: is the classifier good, what did selection find, what did each stage teach.

Every function takes plain tables, says its finding in the title (computed from the numbers it draws, so a title cannot
disagree with its figure) and returns a figure. Bits per byte: lower is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, MaxNLocator

from trait_kit.engine.files import TraitError
from trait_kit.figures.style import INK, QUIET, KitFigure, colour, end_labels, label, marker, new_figure, plain, styled

_HELD_OUT = "held_out/"
_PANELS = {
    "solutions": "Task solutions",
    "tasks": "Downstream tasks",
    "general": "General text (forgetting)",
    "in_domain": "In-domain text",
}


@styled
def plot_precision_recall(curve: pd.DataFrame, base_rate: float, average_precision: float | None = None) -> KitFigure:
    """Precision against recall of the domain classifier on held-out documents; `curve`: threshold, precision, recall.

    `base_rate` is the share of in-domain documents among the held-out ones: the precision of guessing.
    """
    curve = _need(curve, "threshold", "precision", "recall").sort_values(["recall", "precision"], ascending=[True, False])
    if average_precision is None:
        steps = np.diff(np.concatenate([[0.0], curve["recall"].to_numpy()]))
        average_precision = float((steps * curve["precision"].to_numpy()).sum())
    title = (
        f"Held-out in-domain documents are found with average precision {average_precision:.2f} ({base_rate:.2f} by chance)"
    )
    figure, axes = new_figure(title, height=4.0)
    axes.plot(curve["recall"], curve["precision"], color=colour("in_domain"), drawstyle="steps-pre")
    axes.axhline(base_rate, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.5)
    low = base_rate > 0.85
    axes.annotate(
        f"chance: {base_rate:.2f}", (0.01, base_rate), xytext=(0, -5 if low else 5), textcoords="offset points",
        color=QUIET, va="top" if low else "bottom",
    )  # fmt: skip
    at_half = curve.iloc[(curve["threshold"] - 0.5).abs().argsort(kind="stable").iloc[:1]]
    if len(at_half):
        recall, precision = float(at_half["recall"].iloc[0]), float(at_half["precision"].iloc[0])
        axes.plot([recall], [precision], "o", color=colour("in_domain"), markersize=9, markeredgecolor="white", zorder=5)
        axes.annotate(
            f"threshold {float(at_half['threshold'].iloc[0]):.2f}\nprecision {precision:.2f}, recall {recall:.2f}",
            (recall, precision), xytext=(-14 if recall > 0.35 else 14, -12 if precision > 0.4 else 12),
            textcoords="offset points", ha="right" if recall > 0.35 else "left", va="top" if precision > 0.4 else "bottom",
            color=INK, size=11.5,
        )  # fmt: skip
    axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel="recall: share of in-domain documents found", ylabel="precision")
    return figure


@styled
def plot_score_histogram(
    scores: Sequence[float], cuts: Mapping[str, float] | None = None, truth: Sequence[bool] | None = None,
    score_label: str = "in-domain probability", truth_label: str = "hidden in-domain",
) -> KitFigure:  # fmt: skip
    """How many documents get which score (log scale), with a line at each method's cut.

    `truth` (hidden labels, where a corpus has them) splits the bars; it is drawn, never used for selection.
    """
    values = np.asarray(scores, dtype=float)
    cuts = {name: cut for name, cut in (cuts or {}).items() if cut is not None}  # a method that took all has no cut
    values = values[np.isfinite(values)] if truth is None else values
    title = f"How does the score spread {len(values):,} documents, and where is the cut?"
    if cuts and len(values):
        kept = {name: float((values >= cut).mean()) for name, cut in cuts.items()}
        name, share = min(kept.items(), key=lambda item: item[1])
        title = f"{label(name)} keeps documents from the top {_percent(share)} of scores"
    figure, axes = new_figure(title, f"{len(values):,} web documents by {score_label}", height=4.0)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if low >= 0 and high <= 1:  # a probability: show its whole range
        low, high = 0.0, 1.0
    bins = np.linspace(low, high if high > low else low + 1, 41)
    if truth is None:
        axes.hist(values, bins=bins, color=colour("general"), log=True)
    else:
        inside = np.asarray(truth, dtype=bool)
        axes.hist(values[~inside], bins=bins, color=colour("general"), log=True, label="other")
        axes.hist(values[inside], bins=bins, color=colour("in_domain"), log=True, alpha=0.8, label=plain(truth_label))
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 0.99), ncols=2, fontsize=12, borderpad=0.2)
    axes.set_ylim(0.7, axes.get_ylim()[1] * (4 + 4 * len(cuts)))
    axes.set(xlabel=score_label, ylabel="documents (log scale)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for place, (name, cut) in enumerate(sorted(cuts.items(), key=lambda item: item[1])):
        left = (cut - low) > 0.5 * (high - low)
        axes.axvline(cut, color=colour(name), linewidth=2)
        axes.annotate(
            plain(f"{label(name)}: {cut:.3g}"), (cut, 0.95 - 0.095 * place), xycoords=("data", "axes fraction"),
            xytext=(-6 if left else 6, 0), textcoords="offset points", ha="right" if left else "left", va="center",
            color=colour(name), weight="bold", size=12, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    return figure


@styled
def plot_selection_quality(quality: pd.DataFrame) -> KitFigure:
    """Lift (precision / base rate) of each selection method at the same token budget; one row a method.

    `quality`: method, precision, recall, base_rate, lift.
    """
    quality = _need(quality, "method", "precision", "recall", "base_rate", "lift").sort_values("lift", kind="stable")
    best = quality.iloc[-1]
    title = f"{label(best['method'])} finds in-domain text {best['lift']:.0f}x better than chance"
    share = _percent(best["base_rate"])
    subtitle = f"Hidden labels say that {share} of the web is in-domain; every method takes the same number of tokens"
    figure, axes = new_figure(title, subtitle, height=1.0 + 0.62 * len(quality))
    widest = float(quality["lift"].max()) or 1.0
    for row, item in enumerate(quality.itertuples()):
        axes.barh(row, item.lift, color=colour(item.method), height=0.62)
        text = f"{item.lift:.1f}x   precision {item.precision:.2f}, recall {item.recall:.2f}"
        inside = item.lift > 0.62 * widest
        axes.annotate(
            text, (item.lift, row), xytext=(-8 if inside else 8, 0), textcoords="offset points", va="center",
            ha="right" if inside else "left", color="white" if inside else INK, size=12,
            weight="bold" if inside else "normal",
        )  # fmt: skip
    axes.axvline(1, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.5)
    axes.annotate(
        "chance",
        (1, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(5, 0),
        textcoords="offset points",
        color=QUIET,
        size=11.5,
        va="bottom",
    )
    axes.set_yticks(range(len(quality)), [plain(label(method)) for method in quality["method"]])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set(xlabel="times better than chance (precision / base rate)", xlim=(0, widest * 1.04))
    return figure


@styled
def plot_training_curves(
    log: pd.DataFrame, arms: Sequence[str], boundary_tokens: int | None = None, metrics: Sequence[str] | None = None
) -> KitFigure:
    """The paper's Figure 4: held-out bits per byte against tokens trained on, with the boundary between the stages.

    `log` has the columns of tables.SCHEMAS['log']; `metrics` are names after 'held_out/' (default: all, solutions first).
    The last of `arms` is the one the title speaks of. Several seeds: mean, with the range shaded.
    """
    held_out = log[log["metric"].str.startswith(_HELD_OUT) & log["arm"].isin(arms)]
    names = (
        list(metrics)
        if metrics
        else sorted({metric.removeprefix(_HELD_OUT) for metric in held_out["metric"]}, key=_panel_order)
    )
    arms = [arm for arm in arms if (held_out["arm"] == arm).any()]
    if not arms or not names:
        raise TraitError(f"The training log has no held-out scores of the arms asked for; it has {sorted(set(log['arm']))}.")
    if boundary_tokens is None:
        boundary_tokens = _boundary(log[log["arm"].isin(arms)])
    first = held_out[held_out["metric"] == _HELD_OUT + names[0]]
    shared = _share_a_stage(first, arms)
    alone = len(names) == 1
    columns = min(len(names), 2)
    rows = -(-(len(names) + len(names) % 2) // 2)
    figure, _ = new_figure(
        _stage_title(first, arms[-1], names[0], boundary_tokens),
        "Bits per byte of held-out text: lower is better" + ("; arms that share a stage lie on one line" if shared else ""),
        height=3.9 if alone else 3.3 * rows, width=7.2 if alone else 9.6, rows=0,
    )  # fmt: skip
    grid = figure.add_gridspec(rows, columns)
    wide = len(names) % 2  # an odd number of panels: the first one takes a whole row
    for place, name in enumerate(names):
        cell = place + wide if place or not wide else 0
        axes = figure.add_subplot(grid[0, :] if wide and place == 0 else grid[cell // columns, cell % columns])
        _held_out_panel(axes, held_out[held_out["metric"] == _HELD_OUT + name], arms, boundary_tokens)
        if not alone:
            axes.set_title(plain(_PANELS.get(name, name.replace("_", " "))), loc="left", weight="bold")
        if cell % columns == 0:
            axes.set_ylabel("bits per byte")
        if cell // columns == rows - 1:
            axes.set_xlabel("tokens trained on")
    return figure


@styled
def plot_task_scores(log: pd.DataFrame, arms: Sequence[str]) -> KitFigure:
    """The paper's Figure 4 on downstream tasks: share of validation problems with the right choice, mean over tasks.

    `log` holds rows 'task/<name>' where `task_scores_per_stage` asked for them. TraitError where it has none.
    """
    scores = log[log["metric"].str.startswith("task/") & log["arm"].isin(arms)]
    if scores.empty:
        raise TraitError("The training log has no task scores: set task_scores_per_stage, with tasks that have choices.")
    tasks = scores["metric"].nunique()
    means = scores.groupby(["arm", "seed", "stage", "tokens"], as_index=False)["value"].mean()
    last = means[means["arm"] == arms[-1]].groupby("tokens")["value"].mean()
    title = f"{label(arms[-1])}: {last.iloc[0]:.0%} to {last.iloc[-1]:.0%} of validation problems right"
    subtitle = f"Mean over {tasks} task(s) with choices; the choice with the fewest bits per byte counts"
    figure, axes = new_figure(title, subtitle, height=3.9)
    _held_out_panel(axes, means, [arm for arm in arms if (means["arm"] == arm).any()], _boundary(log[log["arm"].isin(arms)]))
    axes.set(xlabel="tokens trained on", ylabel="share right")
    return figure


@styled
def plot_loss(log: pd.DataFrame, arms: Sequence[str] | None = None) -> KitFigure:
    """Training loss (nats a token) and learning rate against tokens: did every stage run as planned?

    Each arm's loss is on its own training text, so levels compare within an arm, not across arms.
    """
    arms = list(arms or dict.fromkeys(log["arm"]))
    figure, (upper, lower) = new_figure(
        "Did training go as planned?", "Each arm's loss is on its own text: compare shapes, not levels",
        height=5.6, rows=2, sharex=True, height_ratios=[2.2, 1],
    )  # fmt: skip
    ends = []
    for arm in arms:
        losses = _series(log, arm, "loss")
        if len(losses):
            upper.plot(losses.index, losses, color=colour(arm), alpha=0.28, linewidth=1.2)
            smooth = losses.ewm(span=max(1, len(losses) / 12)).mean()
            upper.plot(smooth.index, smooth, color=colour(arm), linewidth=2.4)
            ends.append((label(arm), float(smooth.iloc[-1]), colour(arm)))
        rates = _series(log, arm, "learning_rate")
        if len(rates):
            lower.plot(rates.index, rates, color=colour(arm), linewidth=2)
    _token_axis(lower, log[log["arm"].isin(arms)])
    boundary = _boundary(log[log["arm"].isin(arms)])
    for axes in (upper, lower) if boundary else ():
        axes.axvline(boundary, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.5)
    if ends:
        end_labels(upper, float(log.loc[log["arm"].isin(arms), "tokens"].max()), ends)
    upper.set_ylabel("loss (nats a token)")
    lower.set(xlabel="tokens trained on", ylabel="learning rate")
    lower.set_ylim(bottom=0)
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return figure


def _held_out_panel(axes: Any, scores: pd.DataFrame, arms: Sequence[str], boundary: int | None) -> None:
    ends = []
    for place, arm in enumerate(arms):
        chosen = scores[scores["arm"] == arm]
        if not len(chosen):
            continue
        groups = chosen.groupby("tokens")["value"]
        mean = groups.mean()
        # arms that share a stage lie on one line: the later arm is drawn thinner, over the earlier one's wider line
        width = 2.4 + 1.6 * (len(arms) - 1 - place) / max(1, len(arms) - 1)
        axes.plot(
            mean.index, mean, color=colour(arm), linewidth=width, marker=marker(arm), markersize=6.5, markeredgecolor="white"
        )
        if chosen["seed"].nunique() > 1:
            axes.fill_between(mean.index, groups.min(), groups.max(), color=colour(arm), alpha=0.15, linewidth=0)
        ends.append((label(arm), float(mean.iloc[-1]), colour(arm)))
    _token_axis(axes, scores)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.14 * (high - low))
    if boundary:
        axes.axvline(boundary, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.5)
        for text, shift, side in (("stage 1", -7, "right"), ("stage 2", 7, "left")):
            axes.annotate(
                text, (boundary, 1.0), xycoords=("data", "axes fraction"), xytext=(shift, -4), textcoords="offset points",
                ha=side, va="top", color=QUIET, size=11.5,
            )  # fmt: skip
    if ends:
        end_labels(axes, float(scores["tokens"].max()), ends)


def _token_axis(axes: Any, rows: pd.DataFrame) -> None:
    last = float(rows["tokens"].max()) if len(rows) else 1.0
    axes.set_xlim(-0.02 * last, last * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_tokens))


def _stage_title(scores: pd.DataFrame, arm: str, name: str, boundary: int | None) -> str:
    values = scores[scores["arm"] == arm].groupby("tokens")["value"].mean()
    what = _PANELS.get(name, name.replace("_", " ")).lower()
    if len(values) < 2:
        return f"How do held-out scores on {what} change with training?"
    before = values[values.index <= boundary] if boundary else values.iloc[:0]
    if boundary is None or len(before) < 2 or values.index[-1] <= boundary:
        return f"{label(arm)}: {values.iloc[0]:.3f} to {values.iloc[-1]:.3f} bits per byte of held-out {what}"
    middle = before.iloc[-1]
    digits = 2 if min(abs(middle - values.iloc[0]), abs(values.iloc[-1] - middle)) >= 0.02 else 3
    start, middle, end = (f"{value:.{digits}f}" for value in (values.iloc[0], middle, values.iloc[-1]))
    return f"{what[:1].upper()}{what[1:]}, {label(arm)}: {start} to {middle} bits per byte in stage 1, to {end} in stage 2"


def _share_a_stage(scores: pd.DataFrame, arms: Sequence[str]) -> bool:
    """Whether two arms have the same scores after training began (they trained one stage together)."""
    trained = scores[scores["tokens"] > 0]
    firsts = [tuple(trained[trained["arm"] == arm].sort_values("tokens")["value"].iloc[:1]) for arm in arms]
    return len(set(firsts)) < len(firsts)


def _boundary(log: pd.DataFrame) -> int | None:
    """Tokens at which the first stage ends, where there is a second one."""
    if not len(log) or log["stage"].max() < 2:
        return None
    return int(log.loc[log["stage"] == 1, "tokens"].max())


def _series(log: pd.DataFrame, arm: str, metric: str) -> pd.Series:
    return log[(log["arm"] == arm) & (log["metric"] == metric)].groupby("tokens")["value"].mean()


def _panel_order(name: str) -> tuple[int, str]:
    known = list(_PANELS)
    return (known.index(name), name) if name in known else (len(known), name)


def _tokens(value: float, _: Any = None) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.0f}%"


def _need(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    missing = [column for column in columns if column not in frame.columns]
    if missing or not len(frame):
        what = f"lacks the column(s) {', '.join(missing)}" if missing else "has no rows"
        raise TraitError(f"The table for this figure {what}; it has the columns {', '.join(map(str, frame.columns))}.")
    return frame
