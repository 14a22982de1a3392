"""Curves and bars: is the classifier good, what did selection find, and what did each stage of training teach.

Every function takes plain tables and says its finding in the title, computed from the numbers that it draws.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullFormatter

from trait_kit.engine.files import TraitError
from trait_kit.evaluation.comparison import HELD_OUT
from trait_kit.figures import style
from trait_kit.figures.style import KitFigure, colour, label, new_figure
from trait_kit.runs import BATCH_VARIABLE

_RIGHT = "Validation problems with the right choice (share)"
_PANELS = {  # metric of the log -> heading
    f"{HELD_OUT}solutions": "Task solutions",
    f"{HELD_OUT}general": "General text (forgetting)",
    f"{HELD_OUT}in_domain": "In-domain text",
    _RIGHT: _RIGHT,
}
_SECONDS_BETWEEN = 15.0  # drawing takes a third of a second of the cores that train


@style.styled
def plot_precision_recall(curve: pd.DataFrame, base_rate: float, average_precision: float) -> KitFigure:
    """Of the domain classifier on held-out documents; `curve`: threshold, precision, recall.

    `base_rate` is the share of in-domain documents among the held-out ones: the precision of guessing.
    """
    curve = curve.sort_values(["recall", "precision"], ascending=[True, False])
    half = curve.loc[(curve["threshold"] - 0.5).abs().idxmin()]
    at_half = "threshold {threshold:.2f}: precision {precision:.2f}, recall {recall:.2f}".format(**half)
    found = f"average precision {average_precision:.2f} ({base_rate:.2f} by chance)"
    figure, (axes,) = new_figure(f"Held-out in-domain documents are found with {found}")
    axes.plot(curve["recall"], curve["precision"], color=colour("in_domain"), drawstyle="steps-pre")
    axes.plot(half["recall"], half["precision"], "o", color=colour("in_domain"), label=at_half)
    axes.axhline(base_rate, **style.DASHED, label=f"chance: {base_rate:.2f}")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel="recall: share of in-domain documents found", ylabel="precision")
    axes.legend(loc="best")
    return figure


@style.styled
def plot_score_histogram(scores: np.ndarray, cuts: Mapping[str, float | None], truth: np.ndarray | None) -> KitFigure:
    """How many documents get which domain probability (log scale), with a line at each method's cut, None if it took all.

    `truth` (hidden labels, where a corpus has them) splits the bars; it is drawn, never used for selection.
    """
    inside = np.zeros(len(scores), bool) if truth is None else truth
    figure, (axes,) = new_figure(f"How do the scores spread {len(scores):,} web documents?")
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
    axes.set(xlabel="in-domain probability", ylabel="documents (log scale)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
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
    title = f"{label(best['method'])} finds in-domain text {best['lift']:.0f}x better than chance"
    share = f"Hidden labels say that {100 * best['base_rate']:.2g}% of the web is in-domain (dashed: chance)"
    caption = f"{share}; every method takes the same number of tokens"
    figure, (axes,) = new_figure(title, caption, height=0.6 + 0.27 * len(quality))
    axes.barh(range(len(quality)), quality["lift"], color=list(map(colour, quality["method"])), height=0.62)
    said = [f"{row.lift:.1f}x\nprecision {row.precision:.2f}, recall {row.recall:.2f}" for row in quality.itertuples()]
    axes.axvline(1, **style.DASHED)
    style.rows_down(axes, map(label, quality["method"][::-1]), said[::-1])
    axes.set(xlabel="times better than chance")
    return figure


@style.styled
def plot_training_curves(log: pd.DataFrame, arms: Sequence[str]) -> KitFigure:
    """The paper's Figure 4: held-out bits per byte against tokens trained on, with the boundary between the stages.

    The title speaks of the last of `arms`. Where `task_scores` asked for them, a panel has the share of right choices,
    mean over tasks.
    """
    log = log[log["arm"].isin(arms)]
    metrics = log["metric"].str.replace("task/.*", _RIGHT, regex=True)
    scores = log.assign(metric=metrics).pivot_table(index="tokens", columns=["metric", "arm"], values="value")
    panels = [metric for metric in _PANELS if metric in scores]
    if not panels:
        raise TraitError(f"The training log has no held-out scores of {', '.join(arms)}.")
    arms = [arm for arm in arms if arm in scores[panels[0]]]
    values = scores[panels[0]][arms[-1]].dropna()
    title = f"{_PANELS[panels[0]]}, {label(arms[-1])}: {values.iloc[0]:.3f}"
    if boundary := _boundary(log):
        title += f" to {values.loc[:boundary].iloc[-1]:.3f} bits per byte in stage 1, to {values.iloc[-1]:.3f} in stage 2"
    else:
        title += f" to {values.iloc[-1]:.3f} bits per byte"
    caption = "Bits per byte of held-out text: lower is better; arms that share a stage lie on one line"
    figure, grid = new_figure(title, caption, height=1.9, panels=len(panels))
    for axes, metric in zip(grid, panels, strict=True):
        widths = np.linspace(2.2, 1.2, len(arms))  # arms that share a stage: the later one is drawn thinner
        for arm, width in zip(arms, widths, strict=True):
            look = {"color": colour(arm), "marker": style.marker(arm), "linewidth": width}
            axes.plot(scores[metric][arm].dropna(), label=label(arm), **look)
        _token_axis(axes, log)
        axes.set_title(_PANELS[metric], loc="left", weight="bold")
    style.legend(figure, "upper left", handles=grid[0].lines[: len(arms)], ncols=4)
    return figure


@style.styled
def plot_loss(log: pd.DataFrame, arms: Sequence[str]) -> KitFigure:
    """Training loss (nats a token) and learning rate against tokens: did every stage run as planned?

    Each arm's loss is on its own training text, so levels compare within an arm, not across arms.
    """
    means = log.pivot_table(index="tokens", columns=["metric", "arm"], values="value")
    shape = {"panels": 2, "across": 1, "sharex": True, "height_ratios": [2.2, 1]}
    caption = "Each arm's loss is on its own text: compare shapes, not levels"
    figure, (upper, lower) = new_figure("Training loss and learning rate of every stage", caption, height=1.6, **shape)
    for arm in [arm for arm in arms if arm in means["loss"]]:
        loss = means["loss"][arm].dropna()
        look = {"color": colour(arm), "marker": style.marker(arm), "markevery": 0.12}
        upper.plot(loss, color=colour(arm), alpha=0.28, linewidth=0.7)
        upper.plot(loss.ewm(span=max(1, len(loss) / 12)).mean(), label=label(arm), **look)
        lower.plot(means["learning_rate"][arm].dropna(), color=colour(arm))
    for axes in (upper, lower):
        _token_axis(axes, log)
    upper.set(xlabel="", ylabel="loss (nats a token)")
    lower.set(ylabel="learning rate", ylim=(0, None))
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
    from IPython.display import HTML, display

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
    axes.set_xlabel("tokens trained on")
    if boundary := _boundary(log):
        axes.axvline(boundary, **style.DASHED)


def _boundary(log: pd.DataFrame) -> int:
    """Tokens at which the first stage ends; 0 where there is no second one."""
    return log.loc[log["stage"] == 1, "tokens"].max() if log["stage"].max() > 1 else 0
