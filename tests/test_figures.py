"""Figures say what their tables say, tables escape what they show, and the report stands alone and survives hostile text."""

from __future__ import annotations

import base64
import functools
import io
import json
import struct
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import combinations, pairwise
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from trait_kit import tables
from trait_kit.engine.files import TraitError, read_json, write_json
from trait_kit.evaluation.comparison import compare, compare_all
from trait_kit.figures import curves, style, token_study
from trait_kit.figures import map as figure_map
from trait_kit.figures.curves import item_gains, plot_gain_and_forgetting
from trait_kit.figures.report import show, write_report
from trait_kit.figures.tables import comparison_table, read_and_write
from trait_kit.params import FigureParams
from trait_kit.passages.controls import CONTROLS
from trait_kit.runs import STEPS

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)></details></body> {{ 7*7 }} {% raw %} $x^2$ \x07 | & é 中"
ARMS = ["base", "raw", "selected", "trait"]


def outcomes(items: int = 12) -> pd.DataFrame:
    """Items of each of two tasks and of general text; trait is 0.2 better on the tasks, 0.02 worse on general text."""
    random = np.random.default_rng(0)
    rows = []
    for task in ("sums", "fractions", "held_out/general"):
        for item in range(items):
            level = random.normal(0.8, 0.1)
            for arm in ARMS:
                shift = {"base": 0.0, "raw": -0.01, "selected": -0.02, "trait": -0.2}[arm]
                shift = 0.02 * (arm == "trait") if task.startswith("held_out") else shift
                value = level + shift + random.normal(0, 0.002)
                key = (arm, 0, task, f"{task}/{item}", f"{task}/{item}")
                rows.append((*key, "bits_per_byte", value, None, None))
                if not task.startswith("held_out"):
                    rows.append((*key, "choice_accuracy", float(item % 3 == 0), "a", "b"))
    return pd.DataFrame(rows, columns=tables.SCHEMAS["outcomes"].names)


def training_log() -> pd.DataFrame:
    rows = []
    for arm, gain in (("selected", 0.02), ("trait", 0.2)):
        for stage in (1, 2):
            for step in range(5):
                tokens = (stage - 1) * 4096 + 1024 * step
                drop = 0.01 * step if stage == 1 else 0.04 + gain * step / 4
                values = {
                    "loss": 3 - drop,
                    "learning_rate": 1e-4,
                    "held_out/solutions": 0.9 - drop,
                    "held_out/general": 0.9,
                }
                rows += [(arm, 0, stage, step, tokens, metric, value) for metric, value in values.items()]
    return pd.DataFrame(rows, columns=tables.SCHEMAS["log"].names)


def texts_of(figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def headline(figure) -> str:
    return " ".join(figure.texts[0].get_text().split())


def test_a_figure_is_saved_whole_with_the_same_bytes_again_and_leaves_settings_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    for folder in ("a", "b"):
        png = plot_gain_and_forgetting(compare_all(outcomes(), "trait"), "trait").save(tmp_path / folder, "gain")
    assert dict(matplotlib.rcParams) == before
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    assert width == 7 * 300 and 470 < height < 510  # two columns of a page at 300 dots an inch, four rows
    assert ElementTree.parse(tmp_path / "a" / "gain.svg").getroot().tag.endswith("svg")
    written = [f"gain{narrow}.{kind}" for narrow in ("", "_one_column") for kind in ("pdf", "png", "svg")]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == written
    for name in written:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for name, inches in (("gain", 7.0), ("gain_one_column", 3.3)):
        svg = ElementTree.parse(tmp_path / "a" / f"{name}.svg").getroot()
        words = {element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")}
        assert "base model" in words and svg.get("width") == f"{72 * inches:g}pt"  # text is text
        assert svg.findtext("{http://www.w3.org/2000/svg}title").startswith(
            "By bits per byte, TRAIT is shown to be better than"
        )


def test_a_hostile_name_of_an_arm_is_text_in_the_picture(tmp_path):
    data = outcomes().replace({"arm": {"raw": HOSTILE}})
    plot_gain_and_forgetting(compare_all(data, "trait"), "trait").save(tmp_path, "gain")
    svg = ElementTree.parse(tmp_path / "gain.svg").getroot()
    assert any("<script>" in (element.text or "") for element in svg.iter("{http://www.w3.org/2000/svg}text"))
    assert {element.tag.rpartition("}")[2] for element in svg.iter()} & {"script", "img", "a", "image"} == set()


def drawings():
    """Every figure, as a function of the columns that it is drawn for."""
    data, log = outcomes(), training_log()
    gained = item_gains(data, "trait", ["base", "raw"])
    methods = ["random", "dsir", "fasttext", "fasttext_educational"]
    numbers = {"precision": 0.6, "recall": 0.5, "base_rate": 0.02, "lift": [1.0, 9.0, 20.0, 30.0]}
    quality = pd.DataFrame({"method": methods, **numbers})
    scores = np.linspace(0, 1, 101)
    curve = pd.DataFrame({"threshold": [0.1, 0.5, 0.9], "precision": [0.5, 0.75, 1.0], "recall": [1.0, 0.8, 0.4]})
    budgets = pd.DataFrame(
        {"arm": "trait", "metric": "bits_per_byte", "seeds": 1, "tokens": [4608, 9216], "gain": [0.1, 0.2]}
    )
    budgets = budgets.assign(
        device_hours=0.1, passes_over_passages=2.0, gain_low=0.05, gain_high=0.3, forgetting=np.nan
    )
    budgets = budgets.assign(step_low=[np.nan, 0.1], step_high=[np.nan, 0.2])
    return {
        "gain": functools.partial(plot_gain_and_forgetting, compare_all(data, "trait"), "trait"),
        "shares": functools.partial(
            plot_gain_and_forgetting, compare_all(data, "trait"), "trait", "choice_accuracy"
        ),
        "items": functools.partial(curves.plot_item_gains, gained, "trait"),
        "curves": functools.partial(curves.plot_training_curves, log, ["selected", "trait"]),
        "loss": functools.partial(curves.plot_loss, log, ["selected", "trait"]),
        "quality": functools.partial(curves.plot_selection_quality, quality),
        "scores": functools.partial(
            curves.plot_score_histogram, scores, dict.fromkeys(methods, 0.8), scores > 0.9
        ),
        "precision": functools.partial(curves.plot_precision_recall, curve, 0.2, 0.8),
        "map": functools.partial(figure_map.plot_map, map_points(), nearest()),
        "study": functools.partial(token_study.plot, budgets),
    }


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize(
    "name", ["gain", "shares", "items", "curves", "loss", "quality", "scores", "precision", "map", "study"]
)
def test_text_has_six_to_eight_points_lies_on_the_page_and_collides_with_nothing(name, columns, monkeypatch):
    figure = drawings()[name](columns=columns)
    assert figure.get_size_inches()[0] == {1: 3.3, 2: 7.0}[columns] and figure.get_size_inches()[1] < 7
    boxes, draw = {}, Text.draw

    def note(text, renderer):
        if text.get_text().strip() and text.get_visible():
            assert 6 <= text.get_fontsize() <= 8, text
            boxes[text] = text.get_window_extent(renderer)
        draw(text, renderer)

    monkeypatch.setattr(Text, "draw", note)  # ticks outside of the axes are there and are not drawn
    figure.savefig(io.BytesIO(), dpi=200)
    assert len(boxes) > 6
    boxes = {text: Bbox(box.get_points() * 72 / 200) for text, box in boxes.items()}
    page = Bbox([[0, 0], 72 * figure.get_size_inches()])
    for text, box in boxes.items():
        assert (
            box.x0 >= page.x0 - 2 and box.x1 <= page.x1 + 2 and box.y0 >= page.y0 - 2 and box.y1 <= page.y1 + 2
        ), text
    shrunk = [
        (text, Bbox.from_extents(box.x0 + 0.5, box.y0 + 1, box.x1 - 0.5, box.y1 - 1))
        for text, box in boxes.items()
    ]
    for place, (text, box) in enumerate(shrunk):
        for other, beside in shrunk[:place]:
            assert not box.overlaps(beside), (text.get_text(), other.get_text())


RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)
SIGHT = {  # what is left of linear red, green and blue: Machado, Oliveira & Fernandes (2009), severity 1; grey: luminance
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
    "grey": [[0.2126, 0.7152, 0.0722]] * 3,
}


def seen(colour: str, sight: str) -> np.ndarray:
    """CIE L*a*b* of a colour as somebody sees it."""
    part = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    xyz = RGB_TO_XYZ @ np.clip(np.asarray(SIGHT[sight]) @ linear, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize(
    "together",
    [
        ["base", "raw", "random", "dsir", "fasttext", "selected", "worked", "trait"],
        [
            "base",
            "selected",
            "worked",
            "worked_all",
            *sorted(CONTROLS.keys() - {"worked", "worked_same"}),
            "trait",
        ],
        list(figure_map.KINDS),
    ],
    ids=["arms", "controls", "map"],
)
def test_what_stands_in_one_figure_is_told_apart_by_every_eye(together, sight):
    for one, other in combinations(together, 2):
        apart = np.linalg.norm(seen(style.colour(one), sight) - seen(style.colour(other), sight))
        hollow = {one, other} & {"downstream", "in_domain", "general"}  # drawn as rings, or as a ground
        if sight != "grey":
            assert apart >= 20, (one, other, apart)
        elif apart < 20:
            assert style.marker(one) != style.marker(other) or hollow, (one, other, apart)


def test_an_arm_has_one_colour_everywhere_and_known_arms_differ():
    assert style.colour("fasttext_educational") == style.colour("selected")
    assert style.colour("my_arm") == style.colour("my_arm") != style.colour("trait")
    known = ["base", "raw", "random", "dsir", "selected", "trait", "fasttext"]
    assert len({style.colour(arm) for arm in known}) == len(known)
    assert style.label("trait") == "TRAIT"


def test_training_curves_state_both_stages_and_mark_the_boundary():
    figure = curves.plot_training_curves(training_log(), ["selected", "trait"])
    assert (
        headline(figure) == "Task solutions, TRAIT: 0.900 to 0.860 bits per byte in stage 1, to 0.660 in stage 2"
    )
    for axes in figure.axes:
        dashed = [line for line in axes.lines if len(set(line.get_xdata())) == 1]
        assert [line.get_xdata()[0] for line in dashed] == [4096]
    assert {"Task solutions", "General text (forgetting)"} == {axes.get_title(loc="left") for axes in figure.axes}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["selected", "TRAIT"]
    with pytest.raises(TraitError, match="no_such_arm"):
        curves.plot_training_curves(training_log(), ["no_such_arm"])


def test_task_scores_are_one_more_panel_with_the_mean_over_tasks():
    log = training_log()
    sums, words = (
        log[log["metric"] == "held_out/solutions"].assign(metric=f"task/{name}") for name in ("sums", "words")
    )
    log = pd.concat([log, sums.assign(value=0.2), words.assign(value=0.4)])
    panel = curves.plot_training_curves(log, ["selected", "trait"]).axes[-1]
    assert "right choice" in panel.get_title(loc="left")
    assert list(panel.lines[0].get_ydata()) == pytest.approx([0.3] * 9)


def test_one_stage_and_one_arm_draw_no_boundary():
    log = training_log()
    figure = curves.plot_training_curves(
        log[(log["stage"] == 1) & (log["metric"] != "held_out/general")], ["trait"]
    )
    assert not [line for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1]
    assert "0.900 to 0.860" in headline(figure)


def test_selection_figures_report_the_numbers_they_are_given():
    quality = pd.DataFrame(
        {
            "method": ["random", "fasttext"],
            "precision": [0.02, 0.6],
            "recall": [0.02, 0.5],
            "base_rate": 0.02,
            "lift": [1.0, 30.0],
        }
    )
    assert (
        headline(curves.plot_selection_quality(quality)) == "fastText finds in-domain text 30x better than chance"
    )
    scores, truth = np.linspace(0, 1, 101), np.arange(101) > 90
    assert "0.81, top 20%" in texts_of(
        curves.plot_score_histogram(scores, {"fasttext": 0.81, "dsir": 0.5}, truth)
    )
    assert not curves.plot_score_histogram(scores, {"fasttext": None}, None).axes[0].lines
    curve = pd.DataFrame({"threshold": [0.1, 0.5, 0.9], "precision": [0.5, 0.75, 1.0], "recall": [1.0, 0.8, 0.4]})
    figure = curves.plot_precision_recall(curve, 0.2, 0.8)
    assert "average precision 0.80 (0.20 by chance)" in headline(figure)
    assert "precision 0.75, recall 0.80" in texts_of(figure)


def test_loss_figure_draws_every_arm_in_its_colour():
    figure = curves.plot_loss(training_log(), ARMS)
    assert {style.colour("selected"), style.colour("trait")} <= {
        line.get_color() for line in figure.axes[0].lines
    }
    begun = curves.plot_loss(training_log().groupby(["arm", "metric"]).head(1), ARMS)
    lines = begun.axes[0].lines[1::2]
    assert len(lines) == 2 and all(line.get_markevery() == 1 for line in lines)  # a line of one point is not seen


def test_gain_and_forgetting_are_of_the_reference_over_every_arm():
    data = outcomes(20)
    figure = plot_gain_and_forgetting(compare_all(data, "trait"), "trait")
    assert (
        headline(figure)
        == "By bits per byte, TRAIT is shown to be better than base model, raw, selected and worse than none (of 3 arms)"
    )
    few = compare_all(outcomes(12), "trait")  # 24 items
    assert "shown to be better than none and worse than none" in headline(plot_gain_and_forgetting(few, "trait"))
    means = data[data["metric"] == "bits_per_byte"].groupby(["task", "arm"])["value"].mean()
    gain = np.mean([means[task, "base"] - means[task, "trait"] for task in ("sums", "fractions")])
    forgot = means["held_out/general", "base"] - means["held_out/general", "trait"]
    assert (
        gain > 0 > forgot
        and f"{gain:+.3f}, p < 0.001" in texts_of(figure)
        and f"{forgot:+.3f}, p " in texts_of(figure)
    )


def test_gains_are_counted_drawn_and_in_favour_of_the_reference():
    data = outcomes()
    gained = item_gains(data, "trait", ["base", "raw"])
    assert len(gained) == 48 and (gained["gain"] > 0).all()
    assert all(part["gain"].is_monotonic_decreasing for _, part in gained.groupby("against"))
    means = data[data["metric"] == "bits_per_byte"].groupby(["arm", "task"])["value"].mean()
    by_task = gained.groupby(["against", "task"])["gain"].mean()
    assert by_task["base", "sums"] == pytest.approx(means["base", "sums"] - means["trait", "sums"])
    assert (item_gains(data, "trait", ["base"], "choice_accuracy")["gain"] == 0).all()
    said = " ".join(texts_of(curves.plot_item_gains(gained, "trait")).split())
    assert "wins 24 and loses 0 of 24 items against base model, 24 and loses 0 of 24 items against raw" in said
    assert said.count("12 : 0") == 4
    said = " ".join(texts_of(curves.plot_item_gains(item_gains(data, "base", ["trait"]), "base")).split())
    assert "base model wins 0 and loses 24 of 24 items against TRAIT" in said and said.count("0 : 12") == 2
    with pytest.raises(TraitError, match="nobody"):
        item_gains(data, "trait", ["nobody"])


def test_a_task_that_is_called_like_a_kind_of_text_keeps_its_name():
    data = outcomes().replace({"task": {"sums": "questions", "fractions": "base"}})
    texts = texts_of(curves.plot_item_gains(item_gains(data, "trait", ["raw"]), "trait"))
    assert "training questions" not in texts and "base model" not in texts and "questions" in texts
    table = comparison_table(compare_all(data, "trait"))
    assert {"questions", "base", "held out: general"} <= {cell.text for cell in table.column("Task")}


def test_without_general_text_the_figure_says_that_it_was_not_evaluated():
    data = outcomes()
    tasks = data[~data["task"].str.startswith("held_out/")]
    assert "not evaluated" in texts_of(plot_gain_and_forgetting(compare_all(tasks, "trait"), "trait"))
    figure = plot_gain_and_forgetting(compare_all(data, "trait"), "trait", "choice_accuracy")
    assert "not evaluated" not in texts_of(figure)


def test_nearest_kinds_counts_neighbours_and_says_what_chance_would_give():
    vectors = np.eye(6, dtype=np.float32)
    vectors[1] = vectors[0]  # the trait text next to the problem
    kinds = ["downstream", "trait", "general", "general", "in_domain", "in_domain"]
    shares = figure_map.nearest_kinds(vectors, kinds, neighbors=1)
    assert shares["share"].to_dict() == {"trait": 1.0, "general": 0.0, "in_domain": 0.0}
    assert set(shares["by_chance"]) == {1 / 3}  # of each kind as many as of the rarest
    assert shares["cover"].to_dict() == {"trait": 1.0, "general": 0.0, "in_domain": 0.0}


@pytest.mark.slow  # compiling UMAP takes half a minute
def test_umap_separates_two_groups_and_repeats_itself():
    random = np.random.default_rng(0)
    centres = np.repeat(np.eye(8)[:2], 30, axis=0)
    vectors = (centres + random.normal(0, 0.05, centres.shape)).astype(np.float32)
    places = figure_map.umap_coordinates(vectors, seed=3)
    assert places.shape == (60, 2)
    assert np.isfinite(places).all()
    between = np.linalg.norm(places[:30].mean(0) - places[30:].mean(0))
    within = np.linalg.norm(places[:30] - places[:30].mean(0), axis=1).mean()
    assert between > 2 * within
    np.testing.assert_array_equal(places, figure_map.umap_coordinates(vectors, 3))


def map_points() -> pd.DataFrame:
    random = np.random.default_rng(0)
    kinds = ["general"] * 40 + ["in_domain"] * 30 + ["downstream"] * 20 + ["trait"] * 10
    tasks = [""] * 70 + ["sums", "greatest_common_divisor"] * 10 + ["sums"] * 10
    frame = pd.DataFrame(
        {"x": random.normal(size=100), "y": random.normal(size=100), "kind": kinds, "task": tasks}
    )
    return frame.assign(text=[f"{HOSTILE} number {n}" for n in range(100)])


def nearest() -> pd.DataFrame:
    return pd.DataFrame(
        {"share": [0.996, 0.004], "by_chance": [0.25, 0.75], "cover": [0.55, 0.5]}, ["trait", "general"]
    )


def test_map_draws_every_text_and_names_every_kind_with_its_count_and_every_task():
    figure = figure_map.plot_map(map_points(), nearest())
    assert headline(figure) == "Nearest to the downstream problems: 99.6% TRAIT: passages (25% by chance)"
    assert "of as many: TRAIT: passages 0.55, general web text 0.50" in texts_of(figure)
    marks = {
        c.get_label(): c
        for c in figure.axes[0].collections
        if hasattr(c, "get_offsets") and c.get_label()[0] != "_"
    }
    shown = {"general web text (40)": 0, "in-domain documents (30)": 30, "TRAIT: selected documents (0)": 0}
    shown |= {"training questions alone (0)": 0, "TRAIT: passages (10)": 10, "downstream problems (20)": 20}
    assert {name: len(points.get_offsets()) for name, points in marks.items()} == shown
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(shown)
    assert {"sums", "greatest common divisor"} == {text.get_text() for text in figure.axes[0].texts}


def test_the_twin_of_the_map_holds_every_text_and_runs_none():
    page = figure_map.twin(map_points())
    assert (
        page.count("</script>") == page.count("<script>") == 1
        and "<img" not in page
        and "http" not in page.replace("http-equiv", "")
    )
    told = json.loads(page.partition("const data = ")[2].partition(", points = data.points")[0])
    assert len(told["points"]) == 100 and told["points"][7][4] == f"{HOSTILE} number 7"[: figure_map._BEGINNING]
    assert told["kinds"][told["points"][75][2]]["name"] == "downstream problems" and "default-src 'none'" in page
    assert "innerHTML" not in page


def test_texts_beyond_the_layout_are_put_among_those_that_are_like_them(monkeypatch):
    umap = SimpleNamespace(UMAP=lambda **_: SimpleNamespace(fit_transform=lambda vectors: vectors[:, :2]))
    monkeypatch.setitem(sys.modules, "umap", umap)
    monkeypatch.setattr(figure_map, "LAID_OUT", 60)
    vectors = np.repeat(np.eye(8, dtype=np.float32)[:2], 500, axis=0)
    places = figure_map.umap_coordinates(vectors)
    assert places[:500] == pytest.approx(np.tile([1, 0], (500, 1))) and places[500:] == pytest.approx(
        np.tile([0, 1], (500, 1))
    )


class Page(HTMLParser):
    """Tags, their attributes and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def finished(run, name, summary, **parameters):
    record = {
        "shaped_by": {"code": "c", "params": {}, "inputs": {}, "upstream": dict.fromkeys(STEPS[name], "ab" * 32)},
        "step": name,
        "key": "ab" * 32,
        "seconds": 12.5,
        "peak_memory_gb": 1.5,
        "finished": "2026-01-01",
        "params": parameters,
        "summary": summary,
    }
    write_json(run / name / "report.json", record)


def hostile_run(run):
    """A run whose every text, wherever it came from, tries to break out of the page."""
    finished(
        run,
        "01_domain_classifier",
        {"roc_auc": 0.969, "top": [{"ngram": HOSTILE, HOSTILE: 1.5}], "headline": HOSTILE, "good": True},
    )
    document = {
        "text": HOSTILE,
        "source": "s",
        "domain": 0.9,
        "educational": 1.0,
        "dsir": 2.0,
        "n_tokens": 10,
        "shard": 0,
        "method": HOSTILE,
    }
    rows = [
        {**document, "id": "one", "url": "javascript:alert(1)"},
        {**document, "id": HOSTILE, "url": "https://example.org/x"},
    ]
    tables.write(run / "02_filter_web" / "selections" / "fasttext.parquet", pd.DataFrame(rows), "selection")
    finished(run, "02_filter_web", {HOSTILE: HOSTILE * 3, "dropped": {HOSTILE: 3}, "synthetic": HOSTILE})
    problem = {
        "id": "p",
        "task": "sums",
        "question": HOSTILE,
        "answer": HOSTILE,
        "solution": None,
        "choices": None,
        "entity": None,
        "topic": "t",
        "template": None,
        "split": "train",
    }
    passage = {
        "id": "passage-0", "problem_ids": ["p"], "tasks": [HOSTILE], "grouping": "knowledge", "shared": HOSTILE,
        "paragraphs": [HOSTILE], "enlightenment": HOSTILE, "text": HOSTILE, "teacher": HOSTILE,
        "prompt_version": "1", "n_tokens": 90, "attempt": 1, "tokens_in": 100,
        "tokens_out": 50, "cost_usd": 0.25, "checks": ["answer"],
    }  # fmt: skip
    tables.write(run / "03_write_passages" / "problems.parquet", pd.DataFrame([problem]), "problems")
    tables.write(run / "03_write_passages" / "passages.parquet", pd.DataFrame([passage]), "passages")
    tables.write(
        run / "03_write_passages" / "rejected.parquet",
        pd.DataFrame([{**passage, "reason": f"length: {HOSTILE}"}]),
        "rejected",
    )
    finished(run, "03_write_passages", {}, grouping="knowledge")
    found = {"id": [HOSTILE], "question_task": ["sums"], "question_id": ["sums/3"]}
    pd.DataFrame(found).to_parquet(run / "02_filter_web" / "selections" / "contaminated.parquet")
    screened = {"task": ["sums"], "problems": 9, "same as a test question": 1, "overlaps a test question": 2}
    pd.DataFrame(screened).to_parquet(run / "03_write_passages" / "screened.parquet")
    tables.write(run / "04_train_two_stages" / "log.parquet", training_log(), "log")
    finished(
        run,
        "04_train_two_stages",
        {"note": None, "speed": 251.25, "tokens": 24576, "examples": [HOSTILE, "a" * 100]},
    )
    tables.write(run / "05_evaluate" / "outcomes.parquet", outcomes(), "outcomes")
    finished(run, "05_evaluate", {}, reference_arm="trait", confidence=0.95)
    curves.plot_loss(training_log(), ARMS).save(run / "06_figures" / "figures", HOSTILE.replace("/", "")[:40])
    finished(run, "06_figures", {}, base_model="demo:smollm2-135m", tasks=["word_problems"])
    (run / "params.yaml").write_text(f"title: {HOSTILE}", encoding="utf-8")
    write_json(run / "provenance.json", {"git_commit": HOSTILE, "packages": {"torch": "2.13"}})


def test_report_escapes_hostile_text_and_stands_alone(tmp_path):
    hostile_run(tmp_path / "run")
    path = write_report(tmp_path / "run")
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags
    assert tags.count("body") == 1
    assert source.count("</body>") == 1
    assert "{{ 7*7 }}" in page.text
    assert "javascript:alert(1)" in page.text  # shown, and no link
    assert "<script>alert('x')</script>" in page.text
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), attributes
        if "src" in attributes:
            assert attributes["src"].startswith("data:image/")
            assert len(base64.b64decode(attributes["src"].partition(",")[2])) > 1000
        if "href" in attributes:
            assert attributes["href"].startswith("#"), tag
    assert "url(" not in source
    assert "@import" not in source
    policy = next(
        attributes["content"]
        for tag, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_the_report_begins_with_the_question_and_the_answer_against_the_control(tmp_path):
    hostile_run(tmp_path / "run")
    text = " ".join(Page(write_report(tmp_path / "run").read_text(encoding="utf-8")).text.split())
    assert "Too few items or clusters for a verdict (24 of 30 items" in text
    tables.write(tmp_path / "run" / "05_evaluate" / "outcomes.parquet", outcomes(20), "outcomes")
    text = " ".join(Page(write_report(tmp_path / "run").read_text(encoding="utf-8")).text.split())
    row = compare(outcomes(20), "trait", "bits_per_byte").set_index("arm").loc["selected"]
    gain = f"gain {row['gain']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]"
    assert f"By bits per byte, trait is better than selected: {gain}" in text and "One training seed" in text
    assert "What got worse" in text and "held_out/general, bits per byte, against base: gain -0.02" in text
    assert "0:01:15" in text  # 6 x 12.5 s
    assert "200 tokens in, 100 out, $0.50" in text  # rejected passages are paid for too
    assert "8,192 tokens trained in each of 2 arms" in text
    assert "What is synthetic" in text
    assert "Problems that programs generated" in text
    assert "Out of date" not in text and "not equal reading" not in text


def test_how_often_an_arm_and_its_control_read_their_texts_is_said_where_it_differs(tmp_path):
    run = tmp_path / "run"
    hostile_run(run)
    # epochs of the control's last stage
    for epochs, said in ((2.0, True), (1.52, True), (1.48, False), (1.0, True), (1.1, False)):
        read = {"selected": (9.0, epochs), "trait": (9.0, 1.25), "other": (1.0, 7.0)}
        rows = [{"arm": arm, "stage": n, "epochs": e} for arm, two in read.items() for n, e in enumerate(two, 1)]
        rows.append({"arm": "selected", "stage": 2, "epochs": 0.1})  # a mixture's other source
        finished(run, "04_train_two_stages", {"accounting": rows})
        text = " ".join(Page(write_report(run).read_text(encoding="utf-8")).text.split())
        sentence = f"most repeated text in the last stage: trait 1.2, selected {round(epochs, 1)}."
        assert (sentence in text) == ("not equal reading" in text) == said
        side_by_side = " ".join(Page(write_report(run, run).read_text(encoding="utf-8")).text.split())
        assert side_by_side.count(sentence) == 2 * said


def test_report_of_a_partial_run_says_what_is_missing(tmp_path):
    run = tmp_path / "run"
    (run / "01_domain_classifier").mkdir(parents=True)
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert text.count("This step has not been run.") == 6
    assert "05_evaluate holds no finished result" in text
    finished(run, "01_domain_classifier", {"n_train": 12345})
    (run / "02_filter_web" / "shards").mkdir(parents=True)
    (run / "05_evaluate").mkdir()
    (run / "05_evaluate" / "outcomes.parquet").write_bytes(b"PAR1 torn")
    finished(run, "05_evaluate", {}, reference_arm="trait")
    text = " ".join(Page(write_report(run).read_text(encoding="utf-8")).text.split())
    assert text.count("This step has not been run.") == 3
    assert "12,345" in text
    assert "This step was started and has not finished" in text
    assert "outcomes.parquet is not a readable Parquet file" in text
    (run / "03_write_passages").mkdir()
    (run / "03_write_passages" / "report.json").write_text('{"step": "03_wri')
    with pytest.raises(TraitError, match=r"report\.json, line 1: not valid JSON"):
        write_report(run)
    for others in (["absent"], ["run", "absent"], ["."], ["run/report.html"]):
        with pytest.raises(TraitError, match="not a run folder"):
            write_report(*(tmp_path / other for other in others))
    assert not (tmp_path / "report.html").exists()
    (tmp_path / "a sweep").mkdir()  # that `runs/*` names too
    (run / "03_write_passages" / "report.json").unlink()
    assert write_report(tmp_path / "a sweep", run) == run / "report.html"


def test_the_report_is_read_by_everyone(tmp_path):
    """What axe-core calls scrollable-region-focusable, heading-order, empty-table-header, image-alt and duplicate-id."""
    hostile_run(tmp_path / "run")
    parts = {"count": 2, "rows": {"one": {"n_in": 1}, "two": {"n_in": 2}}}
    finished(tmp_path / "run", "02_filter_web", parts)
    (tmp_path / "later" / "01_domain_classifier").mkdir(parents=True)
    for path in (write_report(tmp_path / "run"), write_report(tmp_path / "run", tmp_path / "later")):
        page = Page(path.read_text(encoding="utf-8"))
        levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels)), levels
        for tag, attributes in page.tags:
            if tag == "pre" or "scroll" in attributes.get("class", "").split():
                assert attributes["tabindex"] == "0", attributes
            if tag == "img":
                assert len(attributes["alt"]) > 40 and "loss" in attributes["alt"]  # what it shows
        assert "<th></th>" not in page.source and "<th> </th>" not in page.source
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        links = {attributes["href"][1:] for _, attributes in page.tags if "href" in attributes}
        assert len(ids) == len(set(ids)) and links <= set(ids)
        assert "details::details-content" in page.source  # print unfolds what is folded


def test_several_runs_stand_side_by_side_and_each_answers_for_itself(tmp_path):
    for name in ("one", "two"):
        hostile_run(tmp_path / "runs" / name)
    tables.write(tmp_path / "runs" / "two" / "05_evaluate" / "outcomes.parquet", outcomes(20), "outcomes")
    (tmp_path / "runs" / "three" / "01_domain_classifier").mkdir(parents=True)
    path = write_report(*sorted((tmp_path / "runs").iterdir()))
    assert path == tmp_path / "runs" / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    assert (
        "Too few items or clusters" in text
        and "trait is better than selected" in text
        and "05_evaluate holds no finished" in text
    )
    assert "script" not in [tag for tag, _ in page.tags]
    assert write_report(*sorted((tmp_path / "runs").iterdir())) == path  # the page itself is no run


def test_numbers_are_shown_as_a_reader_wants_them():
    values = [None, True, 1234567, 0.96912, 12345.6, 2e-5, [1, "a"], {"a": 1}]
    expected = ["–", "yes", "1,234,567", "0.9691", "12,346", "2e-05", "1, a", "a: 1"]
    assert [show(value) for value in values] == expected


def test_a_step_that_no_longer_fits_what_it_reads_is_marked(tmp_path):
    finished(tmp_path, "01_domain_classifier", {})
    finished(tmp_path, "02_filter_web", {})
    record = read_json(tmp_path / "02_filter_web" / "report.json")
    write_json(
        tmp_path / "02_filter_web" / "report.json",
        record | {"shaped_by": {**record["shaped_by"], "upstream": {"01_domain_classifier": "x"}}},
    )
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "02_filter_web: 01_domain_classifier has changed" in text


class OpenStep:
    """What a stage sees of a step: parameters, paths, and whether it is finished."""

    def __init__(self, run):
        self.run_dir, self.done = run, False
        self.folder = run / "06_figures"
        self.params = FigureParams(**COMMON, map_documents=12)

    def path(self, *parts):
        return (self.run_dir if parts[0] in STEPS else self.folder).joinpath(*parts)


COMMON = {"in_domain": "demo:math/in_domain", "web": "demo:math/web", "tasks": ["fraction_simplification"]} | {
    "test_items_per_task": 4,
    "base_model": "demo:smollm2-135m",
}


def with_records(run, methods, arms, reference="trait"):
    hostile_run(run)
    finished(run, "02_filter_web", {}, methods=methods)
    finished(run, "04_train_two_stages", {}, arms=arms, stage_tokens=[4096, 5120])
    finished(run, "05_evaluate", {}, reference_arm=reference)
    return run


def test_the_map_shows_the_selections_of_the_reference_arm(tmp_path):
    arms = {"trait": ["in_domain+fasttext", "passages"], "other": ["in_domain"]}
    run = with_records(tmp_path / "run", ["random", "fasttext", "dsir"], arms)
    assert [path.stem for path in figure_map.selections_of(OpenStep(run))] == ["fasttext"]
    for reference in ("other", "base"):
        finished(run, "05_evaluate", {}, reference_arm=reference)
        assert figure_map.selections_of(OpenStep(run)) == []


def test_figures_and_tables_are_drawn_once_and_then_read(tmp_path, monkeypatch):
    run = with_records(tmp_path / "run", ["random", "fasttext"], {"trait": ["fasttext", "passages"]})

    def embed(texts, folder):
        return np.random.default_rng(0).normal(size=(len(texts), 8)).astype(np.float32)

    documents = pa.table({"text": [f"document {n}" for n in range(12)]})
    monkeypatch.setattr(figure_map, "embed", embed)
    monkeypatch.setattr(figure_map, "umap_coordinates", lambda vectors, seed: vectors[:, :2])
    monkeypatch.setattr(figure_map, "sample", lambda *_: documents)
    monkeypatch.setattr(figure_map, "load_documents", lambda *_: documents)
    step = OpenStep(run)
    coordinates, nearest = figure_map.draw_map(step)
    found = read_and_write(step)
    written = {path.name: path.read_bytes() for path in (run / "06_figures").rglob("*") if path.is_file()}
    assert {"map.csv", "map.html", "nearest.csv", "main_table.tex", "contamination.html"} <= set(written)
    assert (
        set(nearest.index) == set(figure_map.KINDS) - {"downstream"}
        and len(coordinates) == 12 + 12 + 4 + 2 + 1 + 1
    )
    monkeypatch.setattr(figure_map, "embed", None)
    step.done = True
    again, shares = figure_map.draw_map(step)
    pd.testing.assert_frame_equal(again, coordinates)
    pd.testing.assert_frame_equal(shares, nearest)
    assert read_and_write(step).tables["main_table"].written("md") == found.tables["main_table"].written("md")
    assert written == {path.name: path.read_bytes() for path in (run / "06_figures").rglob("*") if path.is_file()}
