"""Curves and bars: is the classifier good, what did selection find, what came of the drafts, what did each stage teach.

Every function takes plain tables, says its finding in the title (computed from the numbers it draws, so a title cannot
disagree with its figure) and returns a figure. Bits per byte: lower is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from trait_kit.engine.files import TraitError
from trait_kit.figures.style import DASHED, INK, LOST, QUIET, KitFigure, colour, end_labels, label, marker, names_down
from trait_kit.figures.style import new_figure, note, plain, styled, tokens_text

_HELD_OUT = "held_out/"
_PANELS = {
    "solutions": "Task solutions",
    "tasks": "Downstream tasks",
    "general": "General text (forgetting)",
    "in_domain": "In-domain text",
}
_REASONS = 6  # bars of the passages' figure; the others are one


@styled
def plot_precision_recall(curve: pd.DataFrame, base_rate: float, average_precision: float | None = None) -> KitFigure:
    """Precision against recall of the domain classifier on held-out documents; `curve`: threshold, precision, recall.

    `base_rate` is the share of in-domain documents among the held-out ones: the precision of guessing.
    """
    curve = _need(curve, "threshold", "precision", "recall").sort_values(["recall", "precision"], ascending=[True, False])
    if average_precision is None:
        average_precision = float((curve["recall"].diff().fillna(curve["recall"]) * curve["precision"]).sum())
    found = f"average precision {average_precision:.2f} ({base_rate:.2f} by chance)"
    figure, axes = new_figure(f"Held-out in-domain documents are found with {found}", height=4.0)
    axes.plot(curve["recall"], curve["precision"], color=colour("in_domain"), drawstyle="steps-pre")
    axes.axhline(base_rate, **DASHED)
    low = base_rate > 0.85
    note(axes, f"chance: {base_rate:.2f}", (0.01, base_rate), (0, -5 if low else 5), color=QUIET, va="top" if low else "bottom")
    threshold, precision, recall = curve.loc[(curve["threshold"] - 0.5).abs().idxmin(), ["threshold", "precision", "recall"]]
    axes.plot([recall], [precision], "o", color=colour("in_domain"), markersize=9, markeredgecolor="white", zorder=5)
    (dx, ha), (dy, va) = (-14, "right") if recall > 0.35 else (14, "left"), (-12, "top") if precision > 0.4 else (12, "bottom")
    said = f"threshold {threshold:.2f}\nprecision {precision:.2f}, recall {recall:.2f}"
    note(axes, said, (recall, precision), (dx, dy), ha=ha, va=va)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel="recall: share of in-domain documents found", ylabel="precision")
    return figure


@styled
def plot_score_histogram(
    scores: Sequence[float], cuts: Mapping[str, float | None] | None = None, truth: Sequence[bool] | None = None
) -> KitFigure:
    """How many documents get which domain probability (log scale), with a line at each method's cut.

    `truth` (hidden labels, where a corpus has them) splits the bars; it is drawn, never used for selection. A cut of None
    is that of a method that took all.
    """
    values = np.asarray(scores, dtype=float)
    cuts = {name: cut for name, cut in (cuts or {}).items() if cut is not None}
    title = f"How does the score spread {len(values):,} documents, and where is the cut?"
    if cuts and len(values):
        share, name = min((float((values >= cut).mean()), name) for name, cut in cuts.items())
        title = f"{label(name)} keeps documents from the top {_percent(share)} of scores"
    figure, axes = new_figure(title, f"{len(values):,} web documents by in-domain probability", height=4.0)
    inside = np.zeros(len(values), bool) if truth is None else np.asarray(truth, dtype=bool)
    bins = np.linspace(0, 1, 41)
    axes.hist(values[~inside], bins=bins, color=colour("general"), log=True, label="other")
    if truth is not None:
        axes.hist(values[inside], bins=bins, color=colour("in_domain"), log=True, alpha=0.8, label="hidden in-domain")
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 0.99), ncols=2, fontsize=12, borderpad=0.2)
    axes.set_ylim(0.7, axes.get_ylim()[1] * (4 + 4 * len(cuts)))
    axes.set(xlabel="in-domain probability", ylabel="documents (log scale)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    for place, (name, cut) in enumerate(sorted(cuts.items(), key=lambda item: item[1])):
        axes.axvline(cut, color=colour(name), linewidth=2)
        at = {"xycoords": ("data", "axes fraction"), "ha": "right" if cut > 0.5 else "left", "va": "center", "bbox": box}
        shift = (-6 if cut > 0.5 else 6, 0)
        text = f"{label(name)}: {cut:.3g}"
        note(axes, text, (cut, 0.95 - 0.095 * place), shift, color=colour(name), weight="bold", size=12, **at)
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
        look = {"ha": "left"}
        if item.lift > 0.62 * widest:
            look = {"ha": "right", "color": "white", "weight": "bold"}
        note(axes, text, (item.lift, row), (8 if look["ha"] == "left" else -8, 0), va="center", size=12, **look)
    axes.axvline(1, **DASHED)
    note(axes, "chance", (1, 1.0), (5, 0), xycoords=("data", "axes fraction"), color=QUIET, va="bottom")
    names_down(axes, [label(method) for method in quality["method"][::-1]])
    axes.set(xlabel="times better than chance (precision / base rate)", xlim=(0, widest * 1.04))
    return figure


@styled
def plot_passages(passages: pd.DataFrame, rejected: pd.DataFrame, likeness: Sequence[float] = ()) -> KitFigure:
    """What came of every draft, how long the passages are, and how like each other their enlightenments.

    `likeness`: of each enlightenment to its nearest other one (passages.quality.nearest_similarity).
    """
    reasons = rejected["reason"].fillna("no reason").str.partition(":")[0].value_counts()
    bars = [("kept", len(passages)), *reasons.head(_REASONS).items()]
    if rest := int(reasons.iloc[_REASONS:].sum()):
        bars.append(("other reasons", rest))
    drafts = len(passages) + len(rejected)
    title = f"{len(passages):,} of {drafts:,} drafts passed every check ({len(passages) / max(1, drafts):.0%})"
    figure, _ = new_figure(title, "Limit of likeness (Jaccard of word trigrams) dashed", height=4.6, rows=0)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.15, 1))
    axes, lengths, alike = (figure.add_subplot(grid[place]) for place in ((slice(None), 0), (0, 1), (1, 1)))
    for place, (name, count) in enumerate(reversed(bars)):
        axes.barh(place, count, color=colour("trait") if name == "kept" else LOST, height=0.62)
        note(axes, f"{count:,}", (count, place), (5, 0), va="center")
    names_down(axes, [name for name, _ in bars], bottom=len(bars) - 0.5 - max(len(bars), 5))  # few bars stay thin
    axes.set(xlim=(0, max(count for _, count in bars) * 1.3 or 1), xlabel="drafts")
    lengths.hist(passages["n_tokens"], bins=30, color=colour("trait"))
    lengths.set(xlabel="tokens of a passage", ylabel="passages")
    for panel in (axes, lengths):
        panel.xaxis.set_major_locator(MaxNLocator(4))
    alike.hist(likeness, bins=30, range=(0, 1), color=colour("trait"))
    alike.axvline(0.6, **DASHED)
    alike.set(xlim=(0, 1), xlabel="nearest other enlightenment", ylabel="passages")
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
    held_out = held_out.assign(metric=held_out["metric"].str.removeprefix(_HELD_OUT))
    arms = [arm for arm in arms if (held_out["arm"] == arm).any()]
    names = list(metrics or sorted(set(held_out["metric"]), key=lambda name: (name not in _PANELS, _panel_place(name), name)))
    if not arms or not names:
        raise TraitError(f"The training log has no held-out scores of the arms asked for; it has {sorted(set(log['arm']))}.")
    boundary = boundary_tokens or _boundary(log[log["arm"].isin(arms)])
    first = held_out[held_out["metric"] == names[0]]
    trained = first[first["tokens"] > 0].sort_values("tokens").groupby("arm")["value"].first()
    shared = "; arms that share a stage lie on one line" if trained.nunique() < len(arms) else ""
    columns, wide = min(len(names), 2), len(names) % 2  # an odd number of panels: the first one takes a whole row
    rows = (len(names) + 1) // 2
    size = {"height": 3.9, "width": 7.2} if len(names) == 1 else {"height": 3.3 * rows, "width": 9.6}
    title = _stage_title(first, arms[-1], names[0], boundary)
    figure, _ = new_figure(title, f"Bits per byte of held-out text: lower is better{shared}", rows=0, **size)
    grid = figure.add_gridspec(rows, columns)
    for place, name in enumerate(names):
        cell = place + wide if place else 0
        row, column = divmod(cell, columns) if len(names) > 1 else (0, 0)
        axes = figure.add_subplot(grid[row, :] if wide and place == 0 else grid[row, column])
        _arm_lines(axes, held_out[held_out["metric"] == name], arms, boundary)
        if len(names) > 1:
            axes.set_title(plain(_panel(name)), loc="left", weight="bold")
        if column == 0:
            axes.set_ylabel("bits per byte")
        if row == rows - 1:
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
    means = scores.groupby(["arm", "seed", "stage", "tokens"], as_index=False)["value"].mean()
    last = means[means["arm"] == arms[-1]].groupby("tokens")["value"].mean()
    title = f"{label(arms[-1])}: {last.iloc[0]:.0%} to {last.iloc[-1]:.0%} of validation problems right"
    tasks = scores["metric"].nunique()
    subtitle = f"Mean over {tasks} task(s) with choices; the choice with the fewest bits per byte counts"
    figure, axes = new_figure(title, subtitle, height=3.9)
    _arm_lines(axes, means, [arm for arm in arms if (means["arm"] == arm).any()], _boundary(log[log["arm"].isin(arms)]))
    axes.set(xlabel="tokens trained on", ylabel="share right")
    return figure


@styled
def plot_loss(log: pd.DataFrame, arms: Sequence[str] | None = None) -> KitFigure:
    """Training loss (nats a token) and learning rate against tokens: did every stage run as planned?

    Each arm's loss is on its own training text, so levels compare within an arm, not across arms.
    """
    arms = list(arms or dict.fromkeys(log["arm"]))
    log = log[log["arm"].isin(arms)]
    subtitle = "Each arm's loss is on its own text: compare shapes, not levels"
    shape = {"rows": 2, "sharex": True, "height_ratios": [2.2, 1]}
    figure, (upper, lower) = new_figure("Did training go as planned?", subtitle, height=5.6, **shape)
    ends = []
    means = log.groupby(["metric", "arm", "tokens"])["value"].mean()
    for metric, arm in dict.fromkeys(zip(log["metric"], log["arm"], strict=True)):
        if metric == "loss":
            losses = means[metric, arm]
            smooth = losses.ewm(span=max(1, len(losses) / 12)).mean()
            upper.plot(losses.index, losses, color=colour(arm), alpha=0.28, linewidth=1.2)
            upper.plot(smooth.index, smooth, color=colour(arm), linewidth=2.4)
            ends.append((label(arm), float(smooth.iloc[-1]), colour(arm)))
        elif metric == "learning_rate":
            lower.plot(means[metric, arm].index, means[metric, arm], color=colour(arm), linewidth=2)
    _token_axis(lower, log)
    if boundary := _boundary(log):
        for axes in (upper, lower):
            axes.axvline(boundary, **DASHED)
    end_labels(upper, float(log["tokens"].max()), ends)
    upper.set_ylabel("loss (nats a token)")
    lower.set(xlabel="tokens trained on", ylabel="learning rate")
    lower.set_ylim(bottom=0)
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return figure


def _arm_lines(axes: Axes, scores: pd.DataFrame, arms: Sequence[str], boundary: int | None) -> None:
    ends = []
    for place, arm in enumerate(arms):
        chosen = scores[scores["arm"] == arm]
        if chosen.empty:
            continue
        groups = chosen.groupby("tokens")["value"]
        mean, shade = groups.mean(), colour(arm)
        # arms that share a stage lie on one line: the later arm is drawn thinner, over the earlier one's wider line
        width = 2.4 + 1.6 * (len(arms) - 1 - place) / max(1, len(arms) - 1)
        axes.plot(mean, color=shade, linewidth=width, marker=marker(arm), markersize=6.5, markeredgecolor="white")
        if chosen["seed"].nunique() > 1:
            axes.fill_between(mean.index, groups.min(), groups.max(), color=shade, alpha=0.15, linewidth=0)
        ends.append((label(arm), float(mean.iloc[-1]), shade))
    _token_axis(axes, scores)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.14 * (high - low))
    if boundary:
        axes.axvline(boundary, **DASHED)
        at = {"xycoords": ("data", "axes fraction"), "va": "top", "color": QUIET}
        for text, shift, side in (("stage 1", -7, "right"), ("stage 2", 7, "left")):
            note(axes, text, (boundary, 1.0), (shift, -4), ha=side, **at)
    end_labels(axes, float(scores["tokens"].max()), ends)


def _token_axis(axes: Axes, rows: pd.DataFrame) -> None:
    last = float(rows["tokens"].max()) if len(rows) else 1.0
    axes.set_xlim(-0.02 * last, last * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(tokens_text))


def _stage_title(scores: pd.DataFrame, arm: str, name: str, boundary: int | None) -> str:
    values = scores[scores["arm"] == arm].groupby("tokens")["value"].mean()
    what = _panel(name)
    if len(values) < 2:
        return f"How do held-out scores on {what.lower()} change with training?"
    start, end = values.iloc[0], values.iloc[-1]
    before = values[values.index <= (boundary or 0)]
    if len(before) < 2 or values.index[-1] <= boundary:
        return f"{label(arm)}: {start:.3f} to {end:.3f} bits per byte of held-out {what.lower()}"
    middle = before.iloc[-1]
    digits = 2 if min(abs(middle - start), abs(end - middle)) >= 0.02 else 3
    start, middle, end = (f"{value:.{digits}f}" for value in (start, middle, end))
    return f"{what}, {label(arm)}: {start} to {middle} bits per byte in stage 1, to {end} in stage 2"


def _boundary(log: pd.DataFrame) -> int | None:
    """Tokens at which the first stage ends, where there is a second one."""
    if not len(log) or log["stage"].max() < 2:
        return None
    return int(log.loc[log["stage"] == 1, "tokens"].max())


def _panel(name: str) -> str:
    return _PANELS.get(name, name.replace("_", " ").capitalize())


def _panel_place(name: str) -> int:
    return list(_PANELS).index(name) if name in _PANELS else len(_PANELS)


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.0f}%"


def _need(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    missing = [column for column in columns if column not in frame.columns]
    if missing or not len(frame):
        what = f"lacks the column(s) {', '.join(missing)}" if missing else "has no rows"
        raise TraitError(f"The table for this figure {what}; it has the columns {', '.join(map(str, frame.columns))}.")
    return frame
