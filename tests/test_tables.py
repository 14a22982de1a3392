"""Tables say what the tests say, link every number to its items, and escape what others wrote in every format."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from trait_kit import tables
from trait_kit.engine.files import TraitError, write_json
from trait_kit.evaluation import comparison
from trait_kit.figures import tables as paper
from trait_kit.figures.cells import Cell, Table, csv_text, p_words
from trait_kit.figures.tables import ablation_table, comparison_table, item_file, main_table, write_items

HOSTILE = "=cmd|'/c calc'!A0 <script>alert(1)</script> ](javascript:x) \x1b[2J {0} \\end{table} & $x_1^2$"
ARMS = ("base", "raw", "selected", "trait", HOSTILE)


def outcomes_of(values: dict[str, dict[str, list[float]]], metric: str = "bits_per_byte") -> pd.DataFrame:
    """arm -> task -> a value an item."""
    rows = [
        (arm, 0, task, f"i{item}", f"{task}/i{item}", metric, float(value), HOSTILE, "-3")
        for arm, tasks in values.items()
        for task, of_task in tasks.items()
        for item, value in enumerate(of_task)
    ]
    return pd.DataFrame(rows, columns=tables.SCHEMAS["outcomes"].names)


@pytest.fixture(scope="module")
def outcomes() -> pd.DataFrame:
    """Two tasks in bits and in right answers, and general text; every arm is better than the one before."""
    draw, parts = np.random.default_rng(1), []
    for place, arm in enumerate(ARMS):
        sides = {task: draw.normal(1 - 0.1 * place, 0.1, 12) for task in ("sums", "products")}
        right = {task: (values < 0.8).astype(float) for task, values in sides.items()}
        parts += [outcomes_of({arm: sides}), outcomes_of({arm: right}, "choice_accuracy")]
        parts.append(outcomes_of({arm: {"held_out/general": draw.normal(1, 0.1, 9)}}))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def run(outcomes, tmp_path_factory) -> Path:
    """A run as far as tables look at it: one test question in a web document, a problem and a passage."""
    folder = tmp_path_factory.mktemp("run")
    tables.write(folder / "05_evaluate" / "outcomes.parquet", outcomes, "outcomes")
    write_json(
        folder / "05_evaluate" / "report.json", {"key": "k", "params": {"reference_arm": "trait"}, "summary": {}}
    )
    found = {
        "id": ["d1", "d2", "d2"],
        "question_task": ["sums", "sums", "products"],
        "question_id": ["i3", "i3", "i8"],
    }
    save(folder / "02_filter_web" / "selections" / "contaminated.parquet", found)
    screened = {
        "task": ["sums"],
        "problems": 60,
        "same as a test question": 1,
        "overlaps a test question": 2,
        "kept": 57,
    }
    save(folder / "03_write_passages" / "screened.parquet", screened)
    reasons = ["contamination: exact", "length: 3 tokens"]
    save(
        folder / "03_write_passages" / "rejected.parquet",
        {"tasks": [["sums", "sums"], ["products"]], "reason": reasons},
    )
    return folder


def save(path: Path, columns: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_parquet(path)


def texts(table: Table) -> list[list[str]]:
    columns = [[cell.text for cell in table.column(name)] for name in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


class Links(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name == "href"]


def test_main_table_has_paired_tests_and_forgetting_beside_the_gain(outcomes):
    arms, forgetting = (
        comparison.arm_table(outcomes),
        comparison.compare(outcomes, "base", "bits_per_byte", "held_out/general"),
    )
    tests = pd.concat([forgetting, comparison.compare_all(outcomes, "trait")])
    table = main_table(arms, tests, "bits_per_byte", "trait")
    assert list(table.columns) == [
        "Arm", "Average of tasks", "Gain of TRAIT over this arm", "General text, bits per byte", "sums", "products",
    ]  # fmt: skip
    assert [row[0] for row in texts(table)][:4] == ["base model", "raw", "selected", "TRAIT"]
    row = comparison.compare(outcomes, "trait", "bits_per_byte").set_index("arm").loc["raw"]
    cell = table.column("Gain of TRAIT over this arm")[1]
    assert row["gain"] > 0 and cell.text == f"{row['gain']:+.3f}, {100 * row['gain'] / row['arm_mean']:+.1f}%"
    assert cell.small == f"[{row['gain_low']:+.3f}, {row['gain_high']:+.3f}], p {p_words(row['p_holm'])}"
    assert table.column("Gain of TRAIT over this arm")[3].text == "–"
    assert [cell.best for cell in table.column("Average of tasks")] == [False] * 4 + [True]
    forgot = forgetting.set_index("arm").loc["trait"]
    assert table.column("General text, bits per byte")[3].small.startswith(f"gain {-forgot['gain']:+.3f}")
    of_task = tests[(tests["task"] == "sums") & (tests["metric"] == "bits_per_byte")].set_index("arm")
    stars = {arm: cell.small.endswith("*") for arm, cell in zip(ARMS, table.column("sums"), strict=True)}
    assert stars == {arm: arm != "trait" and of_task.loc[arm, "shown"] for arm in ARMS}
    sure = main_table(arms, tests.assign(shown=tests["p_holm"] < comparison.ALPHA), "bits_per_byte", "trait")
    stars = {arm: cell.small.endswith("*") for arm, cell in zip(ARMS, sure.column("sums"), strict=True)}
    assert stars == {arm: arm != "trait" and of_task.loc[arm, "p_holm"] < comparison.ALPHA for arm in ARMS}
    assert any("Smallest true gain" in note for note in table.notes)
    shares = main_table(arms, tests, "choice_accuracy", "trait")
    assert shares.column("Average of tasks")[0].text.endswith("%")
    assert shares.column("Gain of TRAIT over this arm")[0].text.endswith(" points")
    with pytest.raises(TraitError, match="exact_match"):
        main_table(arms, tests, "exact_match", "trait")


def test_a_task_of_one_template_has_no_interval_in_any_table(outcomes):
    outcomes = outcomes.assign(cluster=outcomes["cluster"].where(outcomes["task"] != "sums", "one template"))
    arms, tests = comparison.arm_table(outcomes), comparison.compare_all(outcomes, "trait")
    cell = main_table(arms, tests, "bits_per_byte", "trait").column("sums")[0]
    assert cell.small == "(too few clusters)"
    table = comparison_table(tests)
    told = zip(table.column("Task"), table.column("Gain [interval]"), strict=True)
    assert {cell.small == "(too few clusters)" for task, cell in told if task.text == "sums"} == {True}


def test_ablation_adds_one_part_a_row(outcomes):
    arms, pairs = comparison.arm_table(outcomes), comparison.compare(outcomes, None, "bits_per_byte")
    table = ablation_table(arms, pairs, "bits_per_byte")
    parts = ["base model", "+ raw in-domain documents", "+ selected web documents", "+ TRAIT passages"]
    assert [row[0] for row in texts(table)] == parts
    mean = arms[arms["task"] == comparison.MACRO].query("metric == 'bits_per_byte'").set_index("arm")["mean"]
    steps = [cell.text.partition(",")[0] for cell in table.column("Gain by this step")]
    assert steps[1:] == [f"{mean[a] - mean[b]:+.3f}" for a, b in pairwise(ARMS[:4])]
    assert table.column("Gain over base")[3].text.startswith(f"{mean['base'] - mean['trait']:+.3f}")
    row = comparison.compare(outcomes, "trait", "bits_per_byte").set_index("arm").loc["selected"]
    assert table.column("Gain by this step")[3].small.startswith(
        f"[{row['gain_low']:+.3f}, {row['gain_high']:+.3f}], p "
    )


def test_every_number_of_the_papers_tables_links_to_its_items(run, tmp_path):
    made = paper.read_and_write(SimpleNamespace(run_dir=run, folder=tmp_path, done=False)).tables
    assert made["main_table"].title == "Tables 1 and 2: all arms by bits per byte"
    assert {
        "ablation_table",
        "ablation_table_choice_accuracy",
        "main_table_choice_accuracy",
        "contamination",
    } < set(made)
    for name, table in made.items():
        assert {path.suffix for path in tmp_path.glob(f"{name}.*")} == {".md", ".tex", ".csv", ".html"}
        links = Links((tmp_path / f"{name}.html").read_text(encoding="utf-8")).found
        markdown = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
        for link in links:
            assert (tmp_path / link).is_file() and (tmp_path / link).parent == tmp_path / "items", link
            assert f"({link})" in markdown
        if name != "contamination":
            numbers = [
                cell for name in list(table.columns)[1:] for cell in table.column(name) if cell.text != "–"
            ]
            assert numbers and all(cell.link for cell in numbers)
    items = pd.read_csv(tmp_path / item_file("trait", "bits_per_byte"))
    assert len(items) == 24 + 9 and set(items["task"]) == {"sums", "products", "held_out/general"}
    items = items[items["task"] != "held_out/general"]
    assert texts(made["main_table"])[3][1] == f"{items.groupby('task')['value'].mean().mean():.3f}"
    pairs = pd.read_csv(tmp_path / item_file("trait", "base", "bits_per_byte"))
    pairs = pairs[pairs["task"] != "held_out/general"]
    assert texts(made["main_table"])[0][2].startswith(f"{pairs.groupby('task')['gain'].mean().mean():+.3f}")
    assert pairs["gain"].to_numpy() == pytest.approx((pairs["value_arm"] - pairs["value_reference"]).to_numpy())
    assert items["prediction"].str.startswith("'=cmd").all() and (items["gold"] == -3).all()


def test_the_contamination_table_says_what_was_found(run, outcomes):
    assert texts(paper.contamination_table(outcomes, run)) == [
        ["sums", "12", "1", "2", "60", "3", "1"],
        ["products", "12", "1", "1", "0", "0", "0"],
        ["all", "24", "2", "3", "60", "3", "1"],
    ]


def test_tables_escape_what_others_wrote(tmp_path):
    table = Table(
        HOSTILE, {"a_b": [Cell(HOSTILE, HOSTILE, True, "items/a.csv"), "x|y"], "50% & more": ["-0.4", "+1.0"]}
    )
    page = Links(table.written("html", links=True))
    assert (
        page.found == ["items/a.csv"] and Links(table.written("html")).found == [] and "script" not in page.tags
    )
    assert "&lt;script&gt;" in table.written("html") and table.written("html") == table._repr_html_()
    markdown = table.written("md", links=True)
    assert "<script" not in markdown and "](javascript" not in markdown and r"x\|y" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1
    latex = table.written("tex")
    assert r"50\% \& more" in latex and r"a\_b" in latex and r"\$x\_1\textasciicircum{}2\$" in latex
    assert latex.count(r"\end{table}") == 1 and latex.count(r"\begin{tabular}") == 1
    assert "\x1b" not in table.written("txt")
    table.save(tmp_path, "table")
    row = (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()[1]
    assert row.startswith("'=cmd") and row.endswith(",-0.4")
    assert "word " * 99 in Table("t", {"a": ["word " * 100], "b": ["1"]}).written("html")
    defused = ["'=1+1", "-3", "+3.0 points", "'-x", "'@a", "x=1"]
    assert [csv_text(text) for text in ("=1+1", "-3", "+3.0 points", "-x", "@a", "x=1")] == defused


def test_names_of_arms_and_tasks_never_become_paths(tmp_path):
    hostile = outcomes_of({"../../x": {"a/b": [1.0], "a b": [2.0]}, "..": {"a/b": [1.0], "a b": [2.0]}})
    write_items(hostile, tmp_path / "here", comparison.compare(hostile, "..", "bits_per_byte"))
    assert len(list((tmp_path / "here" / "items").iterdir())) == 3 and [
        path.name for path in tmp_path.iterdir()
    ] == ["here"]


def test_pairs_of_arms_say_which_is_better_at_the_one_level(outcomes):
    tests = comparison.compare(outcomes, "trait", "bits_per_byte")
    sure = tests["p_holm"] < comparison.ALPHA
    for shown in (sure, ~sure):
        table = comparison_table(tests.assign(shown=shown), notes=["a note"])
        assert [cell.text != "–" for cell in table.column("Better")] == shown.tolist()
    assert tests["shown"].tolist() == (sure & tests["enough"]).tolist()
    lines = table.written("txt").splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) > 3 * len(tests)
    assert table.notes[-1] == "a note" and "Lower is better: bits per byte." in table.notes[0]
