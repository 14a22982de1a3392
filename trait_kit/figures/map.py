"""The map of the paper's Figure 3: where general, in-domain, downstream and TRAIT texts lie among each other.

UMAP turns sentence embeddings into two coordinates that keep neighbours near. With a seed it runs on one thread and is
repeatable on one machine, yet not across machines: the coordinates are kept beside the figure. Axes have no unit and no
meaning of their own, so none are drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from trait_kit import tables
from trait_kit.engine.files import TraitError, atomic_path
from trait_kit.figures.style import KitFigure, colour, label, new_figure, plain, styled
from trait_kit.models import embed, resolve_model
from trait_kit.params import method_folder
from trait_kit.runs import recorded
from trait_kit.selection.documents import load_documents, sample
from trait_kit.tasks import load_problems

KINDS = {
    "general": "general web text",
    "in_domain": "in-domain documents",
    "downstream": "downstream problems",
    "trait": "TRAIT data",
}


def draw_map(step: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Coordinates (kind, part, x, y) and what nearest_kinds found; of a finished step read from its files."""
    files = step.path("map.parquet"), step.path("nearest.csv")
    if not step.done:
        texts = map_texts(step)
        vectors = embed(texts["text"].tolist(), resolve_model(step.params.embedding_model))
        x, y = umap_coordinates(vectors, step.params.umap_neighbors, seed=step.params.seed).T
        with atomic_path(files[0]) as temporary:
            texts[["kind", "part"]].assign(x=x, y=y).to_parquet(temporary)
        with atomic_path(files[1]) as temporary:
            nearest_kinds(vectors, texts["kind"]).to_csv(temporary)
    return pd.read_parquet(files[0]), pd.read_csv(files[1], index_col="kind")


def map_texts(step: Any) -> pd.DataFrame:
    """Columns kind, part, text: up to `map_documents` texts of each kind.

    TRAIT's data are half documents of the selections that the reference arm was trained on, half passages; downstream are
    test problems with their solutions.
    """
    p, n = step.params, step.params.map_documents
    problems = load_problems(p.tasks, "test", p.test_items_per_task, p.seed)
    solved = [f"{row.question} {row.solution or row.answer}" for row in problems.itertuples()]
    selected: dict[str, str] = {}
    for method in selections_of(step):
        table = tables.read(step.path("02_filter_web", "selections", f"{method}.parquet"), "selection")
        selected |= zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
    passages = tables.read(step.path("03_write_passages", "passages.parquet"), "passages")
    groups = [
        ("general", "web", sample(p.web, n, p.seed)["text"].to_pylist(), n),
        ("in_domain", "in-domain documents", load_documents(p.in_domain, p.seed)["text"].to_pylist(), n),
        ("downstream", "test problems", solved, n),
        ("trait", "selected documents", list(selected.values()), n - n // 2),
        ("trait", "passages", passages["text"].to_pylist(), n // 2),
    ]
    random = np.random.default_rng(p.seed)
    frames = []
    for kind, part, texts, most in groups:
        chosen = sorted(random.permutation(len(texts))[:most])
        frames.append(pd.DataFrame({"kind": kind, "part": part, "text": [texts[i] for i in chosen]}))
    return pd.concat(frames, ignore_index=True)


def selections_of(step: Any) -> list[str]:
    """The selections that the reference arm's stages name; of an arm that names none, the run's last method."""
    names = ("02_filter_web", "04_train_two_stages", "05_evaluate")
    selection, training, evaluation = ((recorded(step.run_dir, name) or {}).get("params", {}) for name in names)
    there = [method_folder(method) for method in selection.get("methods", [])]
    stages = training.get("arms", {}).get(evaluation.get("reference_arm"), [])
    named = {source for stage in stages for source in stage.split("+")}
    return [method for method in there if method in named] or there[-1:]


def umap_coordinates(embeddings: np.ndarray, neighbors: int = 30, min_dist: float = 0.3, seed: int = 0) -> np.ndarray:
    """float32 [n, 2] from embeddings [n, d] under cosine distance; n must be at least 4."""
    n = len(embeddings)
    if n < 4:
        raise TraitError(f"The map needs at least 4 texts, but got {n}. Raise map_documents, or skip the figure.")
    import umap  # compiles for seconds: only when a map is drawn

    start = "spectral" if n > 20 else "random"  # the spectral start needs more points than dimensions, with room
    shape = {"n_components": 2, "n_neighbors": min(neighbors, n - 1), "min_dist": min_dist, "metric": "cosine"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value")  # said of every seeded run
        model = umap.UMAP(**shape, init=start, random_state=seed, n_jobs=1)
        return np.asarray(model.fit_transform(np.asarray(embeddings, dtype=np.float32)), dtype=np.float32)


def nearest_kinds(embeddings: np.ndarray, kinds: Sequence[str], of: str = "downstream", neighbors: int = 10) -> pd.DataFrame:
    """By kind: mean share of it among the nearest `neighbors` of the texts of kind `of`, and the share by chance.

    A map in two dimensions bends distances; this number is taken in the full space and says the same thing without the
    bending. Texts of kind `of` do not count as neighbours. By chance: were all other texts mixed at random, each kind would
    be as frequent among the neighbours as it is among them.
    """
    kinds = np.asarray(kinds)
    inside, others = kinds == of, kinds[kinds != of]
    if not inside.any() or not len(others):
        known = sorted(set(kinds.tolist()))
        raise TraitError(f"nearest_kinds needs texts of kind '{of}' and of at least one other kind; got {known}.")
    similarity = embeddings[inside] @ embeddings[~inside].T
    found = others[np.argsort(-similarity, axis=1, kind="stable")[:, :neighbors]]
    parts = {"share": found.ravel(), "by_chance": others}
    shares = pd.DataFrame({name: pd.Series(part).value_counts(normalize=True) for name, part in parts.items()})
    return shares.reindex(pd.Index(dict.fromkeys(others.tolist()), name="kind")).fillna(0.0)


@styled
def plot_map(coordinates: pd.DataFrame, nearest: pd.DataFrame | None = None) -> KitFigure:
    """Scatter of a frame with columns x, y, kind (of KINDS; others are drawn too).

    Points are drawn in a shuffled order, small and translucent, so that no kind hides another one. `nearest` (from
    nearest_kinds) puts what the map shows into a number, with what chance would give beside it.
    """
    if missing := {"x", "y", "kind"} - set(coordinates.columns):
        raise TraitError(f"The map's table lacks the column(s) {', '.join(sorted(missing))}.")
    title = "Where do the training texts lie, seen from the tasks?"
    if nearest is not None and len(nearest):
        kind = nearest["share"].idxmax()
        share, chance = nearest.loc[kind, ["share", "by_chance"]]
        title = f"Nearest to the downstream problems: {share:.0%} {KINDS.get(kind, label(kind))} ({chance:.0%} by chance)"
    subtitle = "One dot a text: UMAP of sentence embeddings. Near means similar; the axes have no meaning of their own."
    figure, axes = new_figure(title, subtitle, height=5.0)
    points = coordinates.sample(frac=1, random_state=0)
    shades = points["kind"].map(colour).tolist()
    size = float(np.clip(14_000 / max(1, len(points)), 4, 26))
    look = {"alpha": 0.72, "linewidths": 0.25, "edgecolors": "white", "rasterized": len(points) > 4_000}
    axes.scatter(points["x"], points["y"], c=shades, s=size, **look)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.04)
    axes.spines[["left", "bottom"]].set_visible(False)
    counts = points["kind"].value_counts()
    for kind in [*KINDS, *sorted(set(counts.index) - set(KINDS))]:
        if kind in counts:
            name = f"{KINDS.get(kind, label(kind))} ({counts[kind]:,})"
            axes.scatter([], [], color=colour(kind), s=70, label=plain(name))
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": 2}
    axes.legend(frameon=False, fontsize=12, handletextpad=0.1, columnspacing=1.4, **place)
    return figure
