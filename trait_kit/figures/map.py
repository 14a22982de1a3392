"""The map of the paper's Figure 3: where general, in-domain, downstream and TRAIT texts lie among each other.

TRAIT's two parts are apart, and beside them the training questions alone: passages hold questions,
so what lies near test questions may be no more than these.

UMAP turns sentence embeddings into two coordinates that keep neighbours near. With a seed it is
repeatable on one machine, yet not across machines: the coordinates are kept beside the figure.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trait_kit import tables
from trait_kit.engine import mixtures
from trait_kit.engine.files import atomic_path
from trait_kit.figures.style import KitFigure, colour, new_figure, styled
from trait_kit.models import embed
from trait_kit.runs import recorded
from trait_kit.selection.documents import load_documents, sample
from trait_kit.tasks import load_problems

KINDS = {
    "general": "general web text",
    "in_domain": "in-domain documents",
    "downstream": "downstream problems",
    "selected": "TRAIT: selected documents",
    "trait": "TRAIT: passages",
    "questions": "training questions alone",
}
NEIGHBORS = 30  # of a text, from which UMAP lays the map out: more show the large, fewer the small


def draw_map(step: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Coordinates (kind, x, y) and what nearest_kinds found; of a finished step read from its files."""
    files = step.path("map.csv"), step.path("nearest.csv")
    if not step.done:
        texts = map_texts(step)
        vectors = embed(texts["text"].tolist(), step.params.embedding_model)
        x, y = umap_coordinates(vectors, step.params.seed).T
        found = texts[["kind"]].assign(x=x, y=y).set_index("kind"), nearest_kinds(vectors, texts["kind"])
        for path, table in zip(files, found, strict=True):
            with atomic_path(path) as temporary:
                table.to_csv(temporary)
    return pd.read_csv(files[0]), pd.read_csv(files[1], index_col="kind")


def map_texts(step: Any) -> pd.DataFrame:
    """Columns kind, text: up to `map_documents` of each kind; selected are those that the reference arm was trained on."""
    p, n = step.params, step.params.map_documents
    problems = load_problems(p.tasks, "test", p.test_items_per_task, p.seed)
    solved = [f"{row.question} {row.solution or row.answer}" for row in problems.itertuples()]
    selected = [tables.read(path, "selection").to_pandas() for path in selections_of(step)]
    chosen = pd.concat(selected).drop_duplicates("id")["text"].tolist() if selected else []
    passages = tables.read(step.path("03_write_passages", "passages.parquet"), "passages")
    groups = [
        ("general", sample(p.web, n, p.seed)["text"]),
        ("in_domain", load_documents(p.in_domain, p.seed)["text"]),
        ("downstream", solved),
        ("selected", chosen),
        ("trait", passages["text"]),
        ("questions", tables.read(step.path("03_write_passages", "problems.parquet"), "problems")["question"]),
    ]
    frames = []
    for kind, texts in groups:
        frame = pd.DataFrame({"kind": kind, "text": list(map(str, texts))})
        frames.append(frame.sample(min(n, len(frame)), random_state=p.seed))
    return pd.concat(frames, ignore_index=True)


def selections_of(step: Any) -> list[Path]:
    """The selections that the reference arm was trained on."""
    training, evaluation = (recorded(step.run_dir, name) for name in ("04_train_two_stages", "05_evaluate"))
    stages = training["params"]["arms"].get(evaluation["params"]["reference_arm"], [])
    sources = mixtures.weights("+".join(stages))
    paths = [step.path("02_filter_web", "selections", f"{source}.parquet") for source in sources]
    return [path for path in paths if path.exists()]


def umap_coordinates(embeddings: np.ndarray, seed: int = 0) -> np.ndarray:
    """float32 [n, 2] from embeddings [n, d] under cosine distance."""
    import umap  # compiles for seconds: only when a map is drawn

    shape = {"n_neighbors": min(NEIGHBORS, len(embeddings) - 1), "min_dist": 0.3, "metric": "cosine"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value")  # said of every seeded run
        return umap.UMAP(**shape, random_state=seed, n_jobs=1).fit_transform(embeddings)


def nearest_kinds(embeddings: np.ndarray, kinds: Sequence[str], neighbors: int = 10) -> pd.DataFrame:
    """By kind: mean share of it among the `neighbors` texts nearest to each downstream one, and the share by chance.

    Taken in the full space, which no map has bent, among equally many texts of every kind but the
    downstream ones. By chance: were these mixed at random, each kind would be as frequent among the
    neighbours as among all.
    """
    rows = pd.Series(np.asarray(kinds))
    inside, others = rows == "downstream", rows[rows != "downstream"]
    others = others.groupby(others, sort=False).sample(others.value_counts().min(), random_state=0)
    similarity = embeddings[inside.to_numpy()] @ embeddings[others.index].T
    others = others.to_numpy()
    found = others[np.argsort(-similarity, axis=1, kind="stable")[:, :neighbors]]
    parts = {"share": found.ravel(), "by_chance": others}
    shares = pd.DataFrame({name: pd.Series(part).value_counts(normalize=True) for name, part in parts.items()})
    return shares.reindex(pd.Index(dict.fromkeys(others.tolist()), name="kind")).fillna(0.0)


@styled
def plot_map(coordinates: pd.DataFrame, nearest: pd.DataFrame) -> KitFigure:
    """Scatter of a frame with columns x, y, kind (of KINDS), drawn in a shuffled order, so that no kind hides another.

    `nearest` (from nearest_kinds) puts what the map shows into a number, with what chance would
    give beside it.
    """
    kind = nearest["share"].idxmax()
    share, chance = nearest.loc[kind, ["share", "by_chance"]]
    title = f"Nearest to the downstream problems: {share:.0%} {KINDS[kind]} ({chance:.0%} by chance)"
    caption = "One dot a text: UMAP of sentence embeddings. Near means similar; the axes have no meaning of their own."
    figure, axes = new_figure(title, caption, height=5.0)
    points = coordinates.sample(frac=1, random_state=0)
    size = float(np.clip(14_000 / len(points), 4, 26))
    look = {"alpha": 0.72, "linewidths": 0.25, "edgecolors": "white", "rasterized": True}
    axes.scatter(points["x"], points["y"], c=points["kind"].map(colour).tolist(), s=size, **look)
    axes.set(xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    counts = points["kind"].value_counts()
    for kind, name in KINDS.items():
        axes.scatter([], [], color=colour(kind), s=70, label=f"{name} ({counts.get(kind, 0):,})")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2)
    return figure
