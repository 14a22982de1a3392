"""One figure on the passages: how many drafts passed, why the others did not, how long they are and how alike."""

from __future__ import annotations

import pandas as pd
from matplotlib.ticker import MaxNLocator

from trait_kit.figures.style import INK, QUIET, KitFigure, colour, new_figure, plain, styled
from trait_kit.passages.quality import nearest_similarity, yield_by_reason

_REASONS = 6  # bars; the others are one
_SAMPLE = 2_000


@styled
def plot_passages(passages: pd.DataFrame, rejected: pd.DataFrame) -> KitFigure:
    """What came of every draft, how long the passages are, and how like each other their enlightenments."""
    outcomes = yield_by_reason(passages, rejected)
    share = float(outcomes["share"].iloc[0])
    title = f"{len(passages):,} of {int(outcomes['drafts'].sum()):,} drafts passed every check ({share:.0%})"
    figure, _ = new_figure(title, "Limit of likeness (Jaccard of word trigrams) dashed", height=4.6, rows=0)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.15, 1))
    _outcomes(figure.add_subplot(grid[:, 0]), outcomes)
    lengths, likeness = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    lengths.hist(passages["n_tokens"], bins=30, color=colour("trait"))
    lengths.set(xlabel="tokens of a passage", ylabel="passages")
    lengths.xaxis.set_major_locator(MaxNLocator(4))
    sample = passages["enlightenment"].sample(min(_SAMPLE, len(passages)), random_state=0).tolist()
    likeness.hist(nearest_similarity(sample), bins=30, range=(0, 1), color=colour("trait"))
    likeness.axvline(0.6, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.5)
    likeness.set(xlim=(0, 1), xlabel="nearest other enlightenment", ylabel="passages")
    return figure


def _outcomes(axes, outcomes: pd.DataFrame) -> None:
    shown = outcomes.iloc[: _REASONS + 1]
    rest = int(outcomes["drafts"].iloc[_REASONS + 1 :].sum())
    bars = [(str(row.outcome), int(row.drafts)) for row in shown.itertuples()] + ([("other reasons", rest)] if rest else [])
    for place, (name, drafts) in enumerate(reversed(bars)):
        axes.barh(place, drafts, color=colour("trait") if name == "kept" else "#c8553d", height=0.62)
        axes.annotate(f"{drafts:,}", (drafts, place), xytext=(5, 0), textcoords="offset points", va="center", color=INK)
    axes.set_yticks(range(len(bars)), [plain(name) for name, _ in reversed(bars)])
    axes.set_ylim(len(bars) - 0.5 - max(len(bars), 5), len(bars) - 0.5)  # few bars stay thin
    axes.set_xlim(0, max(drafts for _, drafts in bars) * 1.3 or 1)
    axes.set_xlabel("drafts")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", visible=False)
