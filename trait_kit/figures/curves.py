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
from trait_kit.figures import style
from trait_kit.figures.style import KitFigure, colour, label, new_figure, note

_HELD_OUT = "held_out/"
_PANELS = {
    "solutions": "Task solutions",
    "tasks": "Downstream tasks",
    "general": "General text (forgetting)",
    "in_domain": "In-domain text",
}
_REASONS = 6  # bars of the passages' figure; the others are one


@style.styled
def plot_precision_recall(curve: pd.DataFrame, base_rate: float, average_precision: float) -> KitFigure:
    """Precision against recall of the domain classifier on held-out documents; `curve`: threshold, precision, recall.

    `base_rate` is the share of in-domain documents among the held-out ones: the precision of guessing.
    """
    curve = curve.sort_values(["recall", "precision"], ascending=[True, False])
    found = f"average precision {average_precision:.2f} ({base_rate:.2f} by chance)"
    figure, axes = new_figure(f"Held-out in-domain documents are found with {found}", height=4.0)
    axes.plot(curve["recall"], curve["precision"], color=colour("in_domain"), drawstyle="steps-pre")
    axes.axhline(base_rate, **style.DASHED)
    side = {"va": "top"} if base_rate > 0.85 else {"va": "bottom"}
    note(axes, f"chance: {base_rate:.2f}", (0.01, base_rate), color=style.QUIET, **side)
    half = curve.loc[(curve["threshold"] - 0.5).abs().idxmin()]
    place = (half["recall"], half["precision"])
    axes.plot(*place, "o", color=colour("in_domain"), markersize=9, markeredgecolor="white", zorder=5)
    side = {"ha": "right" if place[0] > 0.35 else "left", "va": "top" if place[1] > 0.4 else "bottom"}
    shift = (-14 if place[0] > 0.35 else 14, -12 if place[1] > 0.4 else 12)
    text = f"threshold {half['threshold']:.2f}\nprecision {place[1]:.2f}, recall {place[0]:.2f}"
    note(axes, text, place, shift, **side)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel="recall: share of in-domain documents found", ylabel="precision")
    return figure


@style.styled
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
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 0.99), ncols=2)
    axes.set_ylim(0.7, axes.get_ylim()[1] * (4 + 4 * len(cuts)))
    axes.set(xlabel="in-domain probability", ylabel="documents (log scale)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    look = {"weight": "bold", "va": "center", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1.5}}
    for place, (name, cut) in enumerate(sorted(cuts.items(), key=lambda item: item[1])):
        axes.axvline(cut, color=colour(name), linewidth=2)
        shift, side = ((-6, 0), "right") if cut > 0.5 else ((6, 0), "left")
        at = {"xycoords": ("data", "axes fraction"), "ha": side, "color": colour(name)}
        note(axes, f"{label(name)}: {cut:.3g}", (cut, 0.95 - 0.095 * place), shift, **at, **look)
    return figure


@style.styled
def plot_selection_quality(quality: pd.DataFrame) -> KitFigure:
    """Lift (precision / base rate) of each selection method at the same token budget; one row a method.

    `quality`: method, precision, recall, base_rate, lift.
    """
    quality = quality.sort_values("lift", kind="stable", ascending=False)
    best, widest = quality.iloc[0], float(quality["lift"].max()) or 1.0
    title = f"{label(best['method'])} finds in-domain text {best['lift']:.0f}x better than chance"
    share = _percent(best["base_rate"])
    subtitle = f"Hidden labels say that {share} of the web is in-domain; every method takes the same number of tokens"
    figure, axes = new_figure(title, subtitle, height=1.0 + 0.62 * len(quality))
    for row, item in enumerate(quality[::-1].itertuples()):
        axes.barh(row, item.lift, color=colour(item.method), height=0.62)
        text = f"{item.lift:.1f}x   precision {item.precision:.2f}, recall {item.recall:.2f}"
        wide = item.lift > 0.62 * widest
        look = {"ha": "right", "color": "white", "weight": "bold"} if wide else {"ha": "left"}
        note(axes, text, (item.lift, row), (-8 if wide else 8, 0), va="center", **look)
    axes.axvline(1, **style.DASHED)
    note(axes, "chance", (1, 1.0), (5, 0), xycoords=("data", "axes fraction"), color=style.QUIET, va="bottom")
    style.names_down(axes, map(label, quality["method"]))
    axes.set(xlabel="times better than chance (precision / base rate)", xlim=(0, widest * 1.04))
    return figure


@style.styled
def plot_passages(passages: pd.DataFrame, rejected: pd.DataFrame, likeness: Sequence[float] = ()) -> KitFigure:
    """What came of every draft, how long the passages are, and how like each other their enlightenments.

    `likeness`: of each enlightenment to its nearest other one (passages.quality.nearest_similarity).
    """
    reasons = rejected["reason"].fillna("no reason").str.split(":").str[0].value_counts()
    rest = reasons.iloc[_REASONS:].sum()
    bars = {"kept": len(passages), **reasons.head(_REASONS), **({"other reasons": rest} if rest else {})}
    drafts = len(passages) + len(rejected)
    title = f"{len(passages):,} of {drafts:,} drafts passed every check ({len(passages) / max(1, drafts):.0%})"
    figure, _ = new_figure(title, "Limit of likeness (Jaccard of word trigrams) dashed", height=4.6, nrows=0)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.15, 1))
    axes, lengths, alike = (figure.add_subplot(grid[place]) for place in ((slice(None), 0), (0, 1), (1, 1)))
    for place, (name, count) in enumerate(reversed(bars.items())):
        axes.barh(place, count, color=colour("trait") if name == "kept" else style.LOST, height=0.62)
        note(axes, f"{count:,}", (count, place), (5, 0), va="center")
    style.names_down(axes, bars)
    axes.set(xlim=(0, max(bars.values()) * 1.3 or 1), xlabel="drafts")
    lengths.hist(passages["n_tokens"], bins=30, color=colour("trait"))
    lengths.set(xlabel="tokens of a passage", ylabel="passages")
    alike.hist(likeness, bins=30, range=(0, 1), color=colour("trait"))
    alike.axvline(0.6, **style.DASHED)
    alike.set(xlim=(0, 1), xlabel="nearest other enlightenment", ylabel="passages")
    for panel in (axes, lengths):
        panel.xaxis.set_major_locator(MaxNLocator(4))
    return figure


@style.styled
def plot_training_curves(log: pd.DataFrame, arms: Sequence[str]) -> KitFigure:
    """The paper's Figure 4: held-out bits per byte against tokens trained on, with the boundary between the stages.

    `log` has the columns of tables.SCHEMAS['log']; the last of `arms` is the one the title speaks of. Several seeds: mean,
    with the range shaded.
    """
    held_out = log[log["metric"].str.startswith(_HELD_OUT) & log["arm"].isin(arms)]
    there = set(held_out["metric"].str.removeprefix(_HELD_OUT))
    names = [name for name in dict.fromkeys([*_PANELS, *sorted(there)]) if name in there]
    arms = [arm for arm in arms if (held_out["arm"] == arm).any()]
    if not arms or not names:
        raise TraitError(f"The training log has no held-out scores of the arms asked for; it has {sorted(set(log['arm']))}.")
    parts = {name: held_out[held_out["metric"] == _HELD_OUT + name] for name in names}
    boundary = _boundary(log[log["arm"].isin(arms)])
    trained = parts[names[0]].query("tokens > 0").sort_values("tokens").groupby("arm")["value"].first()
    shared = "; arms that share a stage lie on one line" if trained.nunique() < len(arms) else ""
    columns, down = min(len(names), 2), -(-len(names) // 2)
    size = {"height": 3.3 * down, "width": 9.6} if len(names) > 1 else {"height": 3.9}
    title = _stage_title(parts[names[0]], arms[-1], names[0], boundary)
    figure, _ = new_figure(title, f"Bits per byte of held-out text: lower is better{shared}", nrows=0, **size)
    grid, wide = figure.add_gridspec(down, columns), len(names) % 2  # an odd number: the first one takes a whole row
    for place, (name, part) in enumerate(parts.items()):
        row, column = divmod(place + wide * (place > 0), columns)
        axes = figure.add_subplot(grid[row, :] if wide and not place else grid[row, column])
        _arm_lines(axes, part, arms, boundary)
        axes.set_title(style.plain(_panel(name)), loc="left", weight="bold")
        axes.set(xlabel="tokens trained on" if row == down - 1 else "", ylabel="" if column else "bits per byte")
    return figure


@style.styled
def plot_task_scores(log: pd.DataFrame, arms: Sequence[str]) -> KitFigure:
    """The paper's Figure 4 on downstream tasks: share of validation problems with the right choice, mean over tasks.

    `log` holds rows 'task/<name>' where `task_scores` asked for them. TraitError where it has none.
    """
    log = log[log["arm"].isin(arms)]
    scores = log[log["metric"].str.startswith("task/")]
    if scores.empty:
        raise TraitError("The training log has no task scores: set task_scores, with tasks that have choices.")
    means = scores.groupby(["arm", "seed", "stage", "tokens"], as_index=False)["value"].mean()
    last = means[means["arm"] == arms[-1]].groupby("tokens")["value"].mean()
    title = f"{label(arms[-1])}: {last.iloc[0]:.0%} to {last.iloc[-1]:.0%} of validation problems right"
    tasks = scores["metric"].nunique()
    subtitle = f"Mean over {tasks} task(s) with choices; the choice with the fewest bits per byte counts"
    figure, axes = new_figure(title, subtitle, height=3.9)
    _arm_lines(axes, means, arms, _boundary(log))
    axes.set(xlabel="tokens trained on", ylabel="share right")
    return figure


@style.styled
def plot_loss(log: pd.DataFrame, arms: Sequence[str] | None = None) -> KitFigure:
    """Training loss (nats a token) and learning rate against tokens: did every stage run as planned?

    Each arm's loss is on its own training text, so levels compare within an arm, not across arms.
    """
    log = log[log["arm"].isin(arms or set(log["arm"]))]
    means = log[log["metric"].isin(["loss", "learning_rate"])].groupby(["metric", "arm", "tokens"])["value"].mean()
    shape = {"nrows": 2, "sharex": True, "height_ratios": [2.2, 1]}
    subtitle = "Each arm's loss is on its own text: compare shapes, not levels"
    figure, (upper, lower) = new_figure("Did training go as planned?", subtitle, height=5.6, **shape)
    ends = []
    for (metric, arm), values in means.groupby(level=["metric", "arm"], sort=False):
        values = values.droplevel(["metric", "arm"])
        if metric == "learning_rate":
            lower.plot(values, color=colour(arm), linewidth=2)
            continue
        smooth = values.ewm(span=max(1, len(values) / 12)).mean()
        upper.plot(values, color=colour(arm), alpha=0.28, linewidth=1.2)
        upper.plot(smooth, color=colour(arm), linewidth=2.4)
        ends.append((arm, float(smooth.iloc[-1])))
    _token_axis(lower, log)
    for axes in (upper, lower) if (boundary := _boundary(log)) else ():
        axes.axvline(boundary, **style.DASHED)
    style.end_labels(upper, float(log["tokens"].max()), ends)
    upper.set_ylabel("loss (nats a token)")
    lower.set(xlabel="tokens trained on", ylabel="learning rate")
    lower.set_ylim(bottom=0)
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return figure


def _arm_lines(axes: Axes, scores: pd.DataFrame, arms: Sequence[str], boundary: int | None) -> None:
    ends = []
    arms = [arm for arm in arms if (scores["arm"] == arm).any()]
    widths = np.linspace(4, 2.4, len(arms))  # arms that share a stage lie on one line: the later one is drawn thinner
    for arm, width in zip(arms, widths, strict=True):
        groups = scores[scores["arm"] == arm].groupby("tokens")["value"]
        mean, look = groups.mean(), {"color": colour(arm), "linewidth": width}
        axes.plot(mean, marker=style.marker(arm), markersize=6.5, markeredgecolor="white", **look)
        axes.fill_between(mean.index, groups.min(), groups.max(), color=colour(arm), alpha=0.15, linewidth=0)
        ends.append((arm, float(mean.iloc[-1])))
    _token_axis(axes, scores)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.14 * (high - low))
    if boundary:
        axes.axvline(boundary, **style.DASHED)
        at = {"xycoords": ("data", "axes fraction"), "va": "top", "color": style.QUIET}
        note(axes, "stage 1", (boundary, 1.0), (-7, -4), ha="right", **at)
        note(axes, "stage 2", (boundary, 1.0), (7, -4), ha="left", **at)
    style.end_labels(axes, float(scores["tokens"].max()), ends)


def _token_axis(axes: Axes, rows: pd.DataFrame) -> None:
    last = float(rows["tokens"].max())
    axes.set_xlim(-0.02 * last, last * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(style.tokens_text))


def _stage_title(scores: pd.DataFrame, arm: str, name: str, boundary: int | None) -> str:
    values = scores[scores["arm"] == arm].groupby("tokens")["value"].mean()
    first, last, before = values.iloc[0], values.iloc[-1], values[values.index <= (boundary or 0)]
    if len(before) < 2 or len(before) == len(values):
        return f"{_panel(name)}, {label(arm)}: {first:.3f} to {last:.3f} bits per byte"
    stages = f"{first:.3f} to {before.iloc[-1]:.3f} bits per byte in stage 1, to {last:.3f} in stage 2"
    return f"{_panel(name)}, {label(arm)}: {stages}"


def _boundary(log: pd.DataFrame) -> int | None:
    """Tokens at which the first stage ends, where there is a second one."""
    first = log.loc[log["stage"] == 1, "tokens"]
    return int(first.max()) if len(first) and log["stage"].max() > 1 else None


def _panel(name: str) -> str:
    return _PANELS.get(name, name.replace("_", " ").capitalize())


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.0f}%"
