"""The map of the paper's Figure 3: where general, in-domain, downstream and TRAIT texts lie among each other.

UMAP turns sentence embeddings into two coordinates that keep neighbours near. With a seed it runs on one thread and is
repeatable on one machine, yet not across machines: save the coordinates beside the figure. Axes have no unit and no
meaning of their own, so none are drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from trait_kit.engine.files import TraitError
from trait_kit.figures.style import INK, QUIET, KitFigure, colour, label, new_figure, plain, styled

KINDS = ("general", "in_domain", "downstream", "trait")
_NAMES = {
    "general": "general web text",
    "in_domain": "in-domain documents",
    "downstream": "downstream problems",
    "trait": "TRAIT data",
}


def umap_coordinates(embeddings: np.ndarray, neighbors: int = 30, min_dist: float = 0.3, seed: int = 0) -> np.ndarray:
    """float32 [n, 2] from embeddings [n, d] under cosine distance; n must be at least 4."""
    n = len(embeddings)
    if n < 4:
        raise TraitError(f"The map needs at least 4 texts, but got {n}. Raise map_documents, or skip the figure.")
    import umap  # compiles for seconds: only when a map is drawn

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value")  # said of every seeded run
        model = umap.UMAP(
            n_components=2,
            n_neighbors=min(neighbors, n - 1),
            min_dist=min_dist,
            metric="cosine",
            init="spectral" if n > 20 else "random",  # the spectral start needs more points than dimensions, with room
            random_state=seed,
            n_jobs=1,
        )
        return np.asarray(model.fit_transform(np.asarray(embeddings, dtype=np.float32)), dtype=np.float32)


@styled
def plot_map(coordinates: pd.DataFrame, nearest: pd.Series | None = None, title: str = "") -> KitFigure:
    """Scatter of a frame with columns x, y, kind (general | in_domain | downstream | trait; others are drawn too).

    Points are drawn in a shuffled order, small and translucent, so that no kind hides another one. `nearest` (from
    nearest_kinds) puts what the map shows into a number, taken before UMAP bent the distances.
    """
    missing = {"x", "y", "kind"} - set(coordinates.columns)
    if missing:
        raise TraitError(f"The map's table lacks the column(s) {', '.join(sorted(missing))}.")
    points = coordinates[np.isfinite(coordinates["x"]) & np.isfinite(coordinates["y"])]
    kinds = [kind for kind in KINDS if (points["kind"] == kind).any()]
    kinds += sorted(set(points["kind"]) - set(kinds))
    if not title and nearest is not None and len(nearest):
        kind = nearest.idxmax()
        title = f"Nearest to the downstream problems: {100 * nearest[kind]:.0f}% {_NAMES.get(kind, label(kind))}"
    figure, axes = new_figure(
        title or "Where do the training texts lie, seen from the tasks?",
        "One dot a text: UMAP of sentence embeddings. Near means similar; the axes have no meaning of their own.",
        height=5.0,
    )
    order = np.random.default_rng(0).permutation(len(points))
    shades = np.array([colour(kind) for kind in points["kind"]], dtype=object)
    size = float(np.clip(14_000 / max(1, len(points)), 4, 26))
    x, y = points["x"].to_numpy(), points["y"].to_numpy()
    axes.scatter(
        x[order], y[order], c=shades[order].tolist(), s=size, alpha=0.72, linewidths=0.25, edgecolors="white",
        rasterized=len(points) > 4_000,
    )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.margins(0.04)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    for kind in kinds:
        count = int((points["kind"] == kind).sum())
        axes.scatter([], [], color=colour(kind), s=70, label=plain(f"{_NAMES.get(kind, label(kind))} ({count:,})"))
    legend = axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=2,
        frameon=False,
        fontsize=12,
        handletextpad=0.1,
        columnspacing=1.4,
    )
    for text in legend.get_texts():
        text.set_color(INK)
    if not kinds:
        axes.text(0.5, 0.5, "no texts", color=QUIET, ha="center", transform=axes.transAxes)
    return figure


def nearest_kinds(embeddings: np.ndarray, kinds: Sequence[str], of: str = "downstream", neighbors: int = 10) -> pd.Series:
    """Which kinds of text lie nearest to those of kind `of`: mean share of each other kind among the nearest `neighbors`.

    A map in two dimensions bends distances; this number is taken in the full space and says the same thing without the
    bending. Texts of kind `of` do not count as their own neighbours. Kinds of equal size are needed for a fair comparison.
    """
    kinds = np.asarray(kinds)
    others = [kind for kind in dict.fromkeys(kinds.tolist()) if kind != of]
    inside, outside = kinds == of, kinds != of
    if not inside.any() or not outside.any():
        raise TraitError(
            f"nearest_kinds needs texts of kind '{of}' and of at least one other kind; got {sorted(set(kinds.tolist()))}."
        )
    similarity = embeddings[inside] @ embeddings[outside].T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbors]
    found = kinds[outside][nearest]
    return pd.Series({kind: float((found == kind).mean()) for kind in others}, name="share")
