"""The map of the paper's Figure 3: where general, in-domain, downstream and TRAIT texts lie among each other.

The training questions stand alone beside TRAIT's two parts: passages hold questions, so what lies near test questions may
be no more than these. UMAP is repeatable on one machine, not across machines, so its coordinates are kept.
"""

from collections.abc import Sequence
from pathlib import Path

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
from trait_kit.figures.style import KINDS, KitFigure, colour, legend, marker, new_figure, spelt, styled
from trait_kit.models import embed
from trait_kit.params import weights
from trait_kit.runs import Step, recorded
from trait_kit.selection.documents import load_documents, sample
from trait_kit.tasks import load_problems

NEIGHBORS = 30  # of a text for UMAP: more show the large, fewer the small
LAID_OUT = 10_000  # texts; others are put among their like
_BEGINNING = 160  # characters of a text in map.html


def draw_map(step: Step) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Coordinates (kind, task, x, y) and what nearest_kinds found; of a finished step read from its files."""
    if not step.done:
        texts = map_texts(step)
        vectors = embed(texts["text"].tolist(), step.params.embedding_model)
        places = texts.join(pd.DataFrame(umap_coordinates(vectors, step.params.seed), columns=["x", "y"]))
        write_text(step.path("map.html"), twin(places))
        write_csv(places[["kind", "task", "x", "y"]], step.path("map.csv"))
        write_csv(nearest_kinds(vectors, texts["kind"]).reset_index(), step.path("nearest.csv"))
    places = pd.read_csv(step.path("map.csv"), keep_default_na=False)
    return places, pd.read_csv(step.path("nearest.csv"), index_col="kind")


def map_texts(step: Step) -> pd.DataFrame:
    """Columns kind, task ("" of documents), text: up to `map_documents` of each kind."""
    p, n = step.params, step.params.map_documents
    problems = load_problems(p.tasks, "test", p.test_items_per_task, p.seed)
    solved = [f"{row.question} {row.solution or row.answer}" for row in problems.itertuples()]
    selected = [tables.read(path, "selection").to_pandas() for path in selections_of(step)]
    chosen = pd.concat(selected).drop_duplicates("id")["text"] if selected else []
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
    frames = [
        pd.DataFrame({"kind": kind, "task": task, "text": list(map(str, texts))}) for kind, texts, task in groups
    ]
    return pd.concat(
        [frame.sample(min(n, len(frame)), random_state=p.seed) for frame in frames], ignore_index=True
    )


def selections_of(step: Step) -> list[Path]:
    reference = recorded(step.run_dir, "05_evaluate")["params"]["reference_arm"]
    stages = recorded(step.run_dir, "04_train_two_stages")["params"]["arms"].get(reference, [])
    paths = [
        step.path("02_filter_web", "selections", f"{source}.parquet") for source in weights("+".join(stages))
    ]
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
    """By kind: its share among the `neighbors` texts nearest to each downstream one, that by chance, and its cover.

    Cover: the mean cosine of a downstream text to the nearest of the kind. In the full space, which no map has bent, among
    equally many texts of every other kind, so by chance all have the same share.
    """
    rows = pd.Series(np.asarray(kinds))
    inside, others = rows == "downstream", rows[rows != "downstream"]
    others = others.groupby(others, sort=False).sample(others.value_counts().min(), random_state=0)
    places, others = others.index, others.to_numpy()
    found, cover = [], []
    # all at once do not fit into memory
    for part in np.array_split(np.flatnonzero(inside), -(-inside.sum() // 1_000)):
        similarity = embeddings[part] @ embeddings[places].T
        found.append(others[np.argsort(-similarity, axis=1, kind="stable")[:, :neighbors]].ravel())
        cover.append(pd.DataFrame(similarity.T).groupby(others).max().T)
    order = pd.Index(dict.fromkeys(others.tolist()), name="kind")
    shares = pd.Series(np.concatenate(found)).value_counts(normalize=True).reindex(order, fill_value=0.0)
    return shares.to_frame("share").assign(by_chance=1 / len(order), cover=pd.concat(cover).mean())


def twin(texts: pd.DataFrame) -> str:
    """The map as a page to point at and to search, its texts escaped."""
    kinds = [{"name": name, "colour": colour(kind)} for kind, name in KINDS.items()]
    numbers = texts["kind"].map(list(KINDS).index)
    places, begin = (texts["x"].round(3), texts["y"].round(3)), texts["text"].str[:_BEGINNING]
    return jinja2.Template(
        Path(__file__).with_name("map.html.jinja").read_text(encoding="utf-8"), autoescape=True
    ).render(data={"kinds": kinds, "points": list(zip(*places, numbers, texts["task"], begin, strict=True))})


@styled
def plot_map(coordinates: pd.DataFrame, nearest: pd.DataFrame) -> KitFigure:
    """General text as a density, others as marks; `nearest`, nearest_kinds', in words."""
    kind, other = nearest["share"].nlargest(2).index
    facts = {
        "kind": KINDS[kind],
        **nearest.loc[kind],
        "other": KINDS[other],
        "other_cover": nearest["cover"][other],
    }
    figure, (axes,) = new_figure("map", facts, height=3.0)
    axes.set(xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    wide, tall = figure.get_size_inches()
    size = float(np.clip(5_000 / len(coordinates), 1, 10))
    parts = {kind: coordinates[coordinates["kind"] == kind] for kind in KINDS}
    names = {kind: f"{KINDS[kind]} ({len(part):,})" for kind, part in parts.items()}
    shades, ground = LinearSegmentedColormap.from_list("", ["#eceef2", colour("general")]), parts["general"]
    axes.hexbin(
        ground["x"], ground["y"], gridsize=(36, round(20 * tall / wide)), mincnt=1, cmap=shades, linewidths=0
    )
    axes.scatter([], [], marker="h", s=size, color=colour("general"), label=names["general"])
    for kind in list(KINDS)[1:]:
        look = {"color": colour(kind), "marker": marker(kind), "linewidths": 0.6, "label": names[kind]}
        inside, many = "none" if kind in ("in_domain", "downstream") else None, len(parts[kind]) > 5_000
        axes.scatter(parts[kind]["x"], parts[kind]["y"], size, facecolors=inside, rasterized=many, **look)
    _name_tasks(axes, pd.concat([parts["questions"], parts["downstream"]]))
    legend(figure, "lower left", ncols=2, markerscale=1.5)

    return figure


def _name_tasks(axes: Axes, problems: pd.DataFrame) -> None:
    middle = problems.groupby("task").agg(x=("x", "median"), y=("y", "max")).sort_values("y")
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    gap, last = min(0.07, 0.9 / max(1, len(middle))) * (high - low), -np.inf
    halo = [patheffects.withStroke(linewidth=2, foreground="white")]
    for above, (task, place) in zip(range(len(middle) - 1, -1, -1), middle.iterrows(), strict=True):
        last = max(min(place["y"] + 0.6 * gap, high - above * gap), last + gap)  # room for those that follow
        x = np.clip(place["x"], left + 0.16 * (right - left), right - 0.16 * (right - left))
        axes.text(x, last, spelt(task), ha="center", va="center", size="small", weight="bold", path_effects=halo)
