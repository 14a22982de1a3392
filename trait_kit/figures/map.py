"""The map of the paper's Figure 3: where general, in-domain, downstream and TRAIT texts lie among each other.

TRAIT's two parts are apart, and beside them the training questions alone: passages hold questions, so what lies near
test questions may be no more than these.

UMAP turns sentence embeddings into two coordinates that keep neighbours near; with a seed repeatable on one machine, not
across machines, so they are kept. map.html is the same map to point at and to search, with each text's beginning.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from sklearn.neighbors import KNeighborsRegressor

from trait_kit import tables
from trait_kit.engine.files import write_text
from trait_kit.figures.cells import write_csv
from trait_kit.figures.style import KINDS, KitFigure, colour, label, legend, marker, new_figure, styled
from trait_kit.models import embed
from trait_kit.params import weights
from trait_kit.runs import recorded
from trait_kit.selection.documents import load_documents, sample
from trait_kit.tasks import load_problems

NEIGHBORS = 30  # of a text, from which UMAP lays the map out: more show the large, fewer the small
LAID_OUT = 10_000  # texts; further ones are put among those that are like them, so that 100,000 take minutes
_BEGINNING = 160  # characters of a text in map.html


def draw_map(step: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Coordinates (kind, task, x, y) and what nearest_kinds found; of a finished step read from its files."""
    if not step.done:
        texts = map_texts(step)
        vectors = embed(texts["text"].tolist(), step.params.embedding_model)
        x, y = umap_coordinates(vectors, step.params.seed).T
        places = texts.assign(x=x, y=y)
        write_text(step.path("map.html"), twin(places))
        write_csv(places[["kind", "task", "x", "y"]], step.path("map.csv"))
        write_csv(nearest_kinds(vectors, texts["kind"]).reset_index(), step.path("nearest.csv"))
    nearest = pd.read_csv(step.path("nearest.csv"), index_col="kind")
    return pd.read_csv(step.path("map.csv"), keep_default_na=False), nearest


def map_texts(step: Any) -> pd.DataFrame:
    """Columns kind, task ("" of documents), text: up to `map_documents` of each kind."""
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
    sources = weights("+".join(stages))
    paths = [step.path("02_filter_web", "selections", f"{source}.parquet") for source in sources]
    return [path for path in paths if path.exists()]


def umap_coordinates(embeddings: np.ndarray, seed: int = 0) -> np.ndarray:
    """float32 [n, 2] from embeddings [n, d] under cosine distance."""
    import umap  # compiles for seconds: only when a map is drawn

    order = np.random.default_rng(seed).permutation(len(embeddings))
    laid, others = np.sort(order[:LAID_OUT]), order[LAID_OUT:]
    shape = {"n_neighbors": min(NEIGHBORS, len(laid) - 1), "min_dist": 0.3, "metric": "cosine"}
    places = np.empty((len(embeddings), 2), np.float32)
    places[laid] = umap.UMAP(**shape, random_state=seed, n_jobs=1).fit_transform(embeddings[laid])
    if len(others):
        near = KNeighborsRegressor(3, metric="cosine").fit(embeddings[laid], places[laid])
        places[others] = near.predict(embeddings[others])
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
    for part in np.array_split(np.flatnonzero(inside), -(-inside.sum() // 1_000)):  # all at once would not fit into memory
        similarity = embeddings[part] @ embeddings[places].T
        found.append(others[np.argsort(-similarity, axis=1, kind="stable")[:, :neighbors]].ravel())
        cover.append(pd.DataFrame(similarity.T).groupby(others).max().T)
    parts = {"share": np.concatenate(found), "by_chance": others}
    shares = pd.DataFrame({name: pd.Series(part).value_counts(normalize=True) for name, part in parts.items()})
    shares = shares.reindex(pd.Index(dict.fromkeys(others.tolist()), name="kind")).fillna(0.0)
    return shares.assign(cover=pd.concat(cover).mean())


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
    facts = {"kind": KINDS[kind], **nearest.loc[kind], "other": KINDS[other], "other_cover": nearest["cover"][other]}
    figure, (axes,) = new_figure("map", facts, height=3.0)
    axes.set(xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    wide, tall = figure.get_size_inches()
    size = float(np.clip(5_000 / len(coordinates), 1, 10))
    parts = {kind: coordinates[coordinates["kind"] == kind] for kind in KINDS}
    names = {kind: f"{KINDS[kind]} ({len(part):,})" for kind, part in parts.items()}
    shades, ground = LinearSegmentedColormap.from_list("", ["#eceef2", colour("general")]), parts["general"]
    axes.hexbin(ground["x"], ground["y"], gridsize=(36, round(20 * tall / wide)), mincnt=1, cmap=shades, linewidths=0)
    axes.scatter([], [], marker="h", s=size, color=colour("general"), label=names["general"])
    for kind in list(KINDS)[1:]:
        look = {"marker": marker(kind), "s": size, "linewidths": 0.6, "rasterized": len(parts[kind]) > 5_000}
        ring = {"edgecolors": colour(kind), "facecolors": "none"}
        look |= ring if kind in ("in_domain", "downstream") else {"color": colour(kind)}
        axes.scatter(parts[kind]["x"], parts[kind]["y"], label=names[kind], **look)
    _name_tasks(axes, pd.concat([parts["questions"], parts["downstream"]]))
    legend(figure, "lower left", ncols=2, markerscale=1.5)
    return figure


def _name_tasks(axes: Axes, problems: pd.DataFrame) -> None:
    """The tasks' names above their problems, moved apart in height where two would touch."""
    middle = problems.groupby("task").agg(x=("x", "median"), y=("y", "max")).sort_values("y")
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    gap, last = min(0.07, 0.9 / max(1, len(middle))) * (high - low), -np.inf
    look = {"ha": "center", "va": "center", "size": "small", "weight": "bold"}
    look["path_effects"] = [patheffects.withStroke(linewidth=2, foreground="white")]
    for above, (task, place) in zip(range(len(middle) - 1, -1, -1), middle.iterrows(), strict=True):
        last = max(min(place["y"] + 0.6 * gap, high - above * gap), last + gap)  # room for those that follow
        x = np.clip(place["x"], left + 0.16 * (right - left), right - 0.16 * (right - left))
        axes.text(x, last, label(task), **look)
