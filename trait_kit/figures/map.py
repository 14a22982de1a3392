"""The map of the paper's Figure 3: where general, in-domain, downstream and TRAIT texts lie among each other.

TRAIT's two parts are apart, and beside them the training questions alone: passages hold questions, so what lies near
test questions may be no more than these.

UMAP turns sentence embeddings into two coordinates that keep neighbours near. With a seed it is repeatable on one
machine, yet not across machines: the coordinates are kept beside the figure, and map.html is the same map to point at
and to search, with each text's beginning.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from trait_kit import tables
from trait_kit.engine import mixtures
from trait_kit.engine.files import atomic_path, write_text
from trait_kit.figures.style import KitFigure, colour, label, legend, marker, new_figure, styled
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
LAID_OUT = 10_000  # texts; further ones are put among those that are like them, so that 100,000 take minutes
_BEGINNING = 160  # characters of a text in map.html


def draw_map(step: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Coordinates (kind, task, x, y) and what nearest_kinds found; of a finished step read from its files."""
    files = step.path("map.csv"), step.path("nearest.csv")
    if not step.done:
        texts = map_texts(step)
        vectors = embed(texts["text"].tolist(), step.params.embedding_model)
        x, y = umap_coordinates(vectors, step.params.seed).T
        places = texts.assign(x=x, y=y)
        found = places[["kind", "task", "x", "y"]].set_index("kind"), nearest_kinds(vectors, texts["kind"])
        write_text(step.path("map.html"), twin(places))
        for path, table in zip(files, found, strict=True):
            with atomic_path(path) as temporary:
                table.to_csv(temporary)
    return pd.read_csv(files[0], keep_default_na=False), pd.read_csv(files[1], index_col="kind")


def map_texts(step: Any) -> pd.DataFrame:
    """Columns kind, task ("" of documents), text: up to `map_documents` of each kind.

    Selected are those that the reference arm was trained on.
    """
    p, n = step.params, step.params.map_documents
    problems = load_problems(p.tasks, "test", p.test_items_per_task, p.seed)
    solved = [f"{row.question} {row.solution or row.answer}" for row in problems.itertuples()]
    selected = [tables.read(path, "selection").to_pandas() for path in selections_of(step)]
    chosen = pd.concat(selected).drop_duplicates("id")["text"].tolist() if selected else []
    passages = tables.read(step.path("03_write_passages", "passages.parquet"), "passages").to_pandas()
    questions = tables.read(step.path("03_write_passages", "problems.parquet"), "problems").to_pandas()
    groups = [
        ("general", sample(p.web, n, p.seed)["text"], ""),
        ("in_domain", load_documents(p.in_domain, p.seed)["text"], ""),
        ("downstream", solved, problems["task"].tolist()),
        ("selected", chosen, ""),
        ("trait", passages["text"], passages["tasks"].map(", ".join).tolist()),
        ("questions", questions["question"], questions["task"].tolist()),
    ]
    frames = []
    for kind, texts, task in groups:
        frame = pd.DataFrame({"kind": kind, "task": task, "text": list(map(str, texts))})
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

    order = np.random.default_rng(seed).permutation(len(embeddings))
    laid, others = np.sort(order[:LAID_OUT]), order[LAID_OUT:]
    shape = {"n_neighbors": min(NEIGHBORS, len(laid) - 1), "min_dist": 0.3, "metric": "cosine"}
    places = np.empty((len(embeddings), 2), np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value")  # said of every seeded run
        places[laid] = umap.UMAP(**shape, random_state=seed, n_jobs=1).fit_transform(embeddings[laid])
    for part in _parts(others):
        near = np.argpartition(-embeddings[part] @ embeddings[laid].T, 2, axis=1)[:, :3]
        places[part] = places[laid][near].mean(axis=1)
    return places


def nearest_kinds(embeddings: np.ndarray, kinds: Sequence[str], neighbors: int = 10) -> pd.DataFrame:
    """By kind: its mean share among the `neighbors` texts nearest to each downstream one, the share by chance, its cover.

    Cover: how near the nearest text of the kind is to a downstream one (cosine, mean). All in the full space, which no
    map has bent, among equally many texts of every kind but the downstream ones. By chance: were these mixed at random,
    each kind would be as frequent among the neighbours as among all.
    """
    rows = pd.Series(np.asarray(kinds))
    inside, others = rows == "downstream", rows[rows != "downstream"]
    others = others.groupby(others, sort=False).sample(others.value_counts().min(), random_state=0)
    places, others = others.index, others.to_numpy()
    found, cover = [], []
    for part in _parts(np.flatnonzero(inside)):
        similarity = embeddings[part] @ embeddings[places].T
        found.append(others[np.argsort(-similarity, axis=1, kind="stable")[:, :neighbors]].ravel())
        cover.append(pd.DataFrame(similarity.T).groupby(others).max().T)
    parts = {"share": np.concatenate(found), "by_chance": others}
    shares = pd.DataFrame({name: pd.Series(part).value_counts(normalize=True) for name, part in parts.items()})
    shares = shares.reindex(pd.Index(dict.fromkeys(others.tolist()), name="kind")).fillna(0.0)
    return shares.assign(cover=pd.concat(cover).mean())


def _parts(places: np.ndarray) -> list[np.ndarray]:
    """A thousand at a time: all similarities at once would not fit into memory."""
    return np.array_split(places, -(-len(places) // 1_000)) if len(places) else []


def twin(texts: pd.DataFrame) -> str:
    """The map as a page to point at and to search: one file, no request; the texts are escaped and never typeset."""
    kinds = [{"name": name, "colour": colour(kind)} for kind, name in KINDS.items()]
    numbers = texts["kind"].map(list(KINDS).index)
    rows = zip(texts["x"].round(3), texts["y"].round(3), numbers, texts["task"], texts["text"].str[:_BEGINNING], strict=True)
    page = Path(__file__).with_name("map.html.jinja").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True).from_string(page).render(data={"kinds": kinds, "points": list(rows)})


@styled
def plot_map(coordinates: pd.DataFrame, nearest: pd.DataFrame) -> KitFigure:
    """A frame with columns x, y, kind (of KINDS), task: general text as a density, every other text as its kind's mark.

    `nearest` (from nearest_kinds) puts what the map shows into a number, with chance and the next kind beside it.
    """
    kind, other = nearest["share"].nlargest(2).index
    share, chance = nearest.loc[kind, ["share", "by_chance"]]
    title = f"Nearest to the downstream problems: {share:.1%} {KINDS[kind]} ({chance:.0%} by chance)"
    caption = "UMAP of sentence embeddings; cosine to the nearest of as many: " + ", ".join(
        f"{KINDS[each]} {nearest['cover'][each]:.2f}" for each in (kind, other)
    )
    figure, (axes,) = new_figure(title, caption, height=3.0)
    axes.set(xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    (wide, tall), counts = figure.get_size_inches(), coordinates["kind"].value_counts()
    size = float(np.clip(5_000 / len(coordinates), 1, 10))
    for kind in ("general", "in_domain", "selected", "questions", "trait", "downstream"):
        part, name = coordinates[coordinates["kind"] == kind], f"{KINDS[kind]} ({counts.get(kind, 0):,})"
        if kind == "general":
            shades = LinearSegmentedColormap.from_list(kind, ["#eceef2", colour(kind)])
            axes.hexbin(part["x"], part["y"], gridsize=(36, round(20 * tall / wide)), mincnt=1, cmap=shades, linewidths=0)
            axes.scatter([], [], marker="h", s=size, color=colour(kind), label=name)
            continue
        ring = {"facecolors": "none", "edgecolors": colour(kind)}
        look = {"marker": marker(kind), "s": size, "linewidths": 0.6, "rasterized": len(part) > 5_000}
        look |= ring if kind in ("in_domain", "downstream") else {"color": colour(kind)}
        axes.scatter(part["x"], part["y"], label=name, **look)
    _name_tasks(axes, coordinates[coordinates["kind"] == "downstream"])
    legend(figure, "lower left", ncols=2, markerscale=1.5)
    return figure


def _name_tasks(axes: Axes, problems: pd.DataFrame) -> None:
    """The tasks' names at their problems, moved apart in height where two would touch."""
    middle = problems.groupby("task").agg(x=("x", "median"), y=("y", "max")).sort_values("y")
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    gap, last = min(0.07, 0.9 / max(1, len(middle))) * (high - low), -np.inf
    look = {"ha": "center", "va": "center", "size": "small", "weight": "bold"}
    look["path_effects"] = [patheffects.withStroke(linewidth=2, foreground="white")]
    for above, (task, place) in zip(range(len(middle) - 1, -1, -1), middle.iterrows(), strict=True):
        last = max(min(place["y"] + 0.6 * gap, high - above * gap), last + gap)  # room for those that follow
        x = np.clip(place["x"], left + 0.16 * (right - left), right - 0.16 * (right - left))
        axes.text(x, last, label(task), **look)
