"""Explorers: what is shown where a control stands, the static twin, and that no text from elsewhere does anything."""

import json
from html.parser import HTMLParser

import nbconvert
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import TINY

from trait_kit import params, runs
from trait_kit.engine.files import TraitError
from trait_kit.evaluation.outcomes import Evaluation, evaluate_arms
from trait_kit.explore import cuts, drafts, items, show
from trait_kit.explore.show import Explorer
from trait_kit.passages.writing import Written
from trait_kit.selection.choosing import filter_web

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)><iframe src=//x></iframe></details></bdi></div>{{ 7*7 }} "
    "javascript:alert(3) \x1b[31mred\x1b]8;;x\x07\x00 \u202etxt.exe $5 and $6 $$\\href{javascript:x}{y}$$ [a](javascript:b) "
    f'**bold** =HYPERLINK("x") {"w" * 900} الف é 中'
)
ALLOWED = {"div", "style", "details", "summary", "bdi", "table", "thead", "tbody", "tr", "th", "td", "h4", "b"}


class Page(HTMLParser):
    """Tags and attributes of a page, and each isolated text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = set(), set(), [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.open.append(tag)
        if tag == "bdi":
            self.texts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "bdi":
            self.texts[-1] += data


def check_harmless(page: str) -> Page:
    """Of the page's own tags, no attribute that could act, and the hostile text there whole, isolated, not typeset."""
    found = Page(page)
    assert found.tags <= ALLOWED
    assert found.attributes <= {"class", "style", "dir"}
    assert page.count("tex2jax_ignore mathjax_ignore") == page.count("trait-kit tex2jax")
    assert not any(letter in page for letter in "\x00\x07\x1b")
    assert show.plain(HOSTILE) in found.texts
    return found


def problems(n: int = 6) -> pd.DataFrame:
    rows = [
        {"id": f"p{k}", "task": ("sums", "fractions")[k % 2], "question": f"{k}? {HOSTILE}", "answer": HOSTILE}
        | {"solution": HOSTILE, "choices": None, "entity": None, "topic": "x", "template": None, "split": "train"}
        for k in range(n)
    ]
    return pd.DataFrame(rows)


def draft(name: str, attempt: int, reason: str = "") -> dict:
    return {
        "id": name, "problem_ids": ["p0", "p1"], "tasks": np.array(["sums", "fractions"]),
        "grouping": "knowledge", "shared": HOSTILE,
        "paragraphs": [HOSTILE, "two"], "enlightenment": f"{name} {attempt}", "text": f"text of {name} {attempt}",
        "n_tokens": 9, "attempt": attempt, "teacher": HOSTILE, "tokens_out": 3, "checks": ["form"], "reason": reason,
    }  # fmt: skip


@pytest.fixture
def written() -> Written:
    kept = pd.DataFrame([draft("a", 2), draft("b", 1)]).drop(columns="reason")
    refused = [
        draft("a", 1, f"boilerplate: {HOSTILE}"),
        draft("c", 1, "length: 3"),
        draft("c", 2, "boilerplate: again"),
    ]
    return Written(problems(), kept, pd.DataFrame(refused), *(pd.DataFrame(),) * 2, {})


@pytest.fixture
def found() -> Evaluation:
    """Two arms on six items: the specialist wins three, loses two, and one is as it was."""
    marks = {"base": [0, 0, 0, 1, 1, 1], "trait": [1, 1, 1, 0, 0, 1]}
    rows = [
        {"arm": arm, "seed": 0, "task": ("sums", "fractions")[k % 2], "item_id": f"p{k}", "cluster": f"p{k}"}
        | {"metric": metric, "value": float(value) * (1 + k * bits), "prediction": HOSTILE, "gold": ""}
        for metric, bits in (("choice_accuracy", 0), ("bits_per_byte", 1))
        for arm, values in marks.items()
        for k, value in enumerate(values)
    ]
    p = params.load(TINY).evaluation.model_copy(update={"main_metric": "bits_per_byte"})
    return Evaluation(pd.DataFrame(rows), *(pd.DataFrame(),) * 3, problems(), p, {"base": "b", "trait": "t"})


def names(frame: pd.DataFrame, column: str) -> list[str]:
    return frame[column].tolist()


def test_a_table_shows_texts_whole_and_lets_none_of_them_act():
    frame = pd.DataFrame({HOSTILE[:40]: [HOSTILE, None], "number": [1.23456, np.nan], "yes": [True, False]})
    page = show.table(frame).data
    texts = check_harmless(page).texts
    assert texts[-5:] == ["1.235", "yes", "–", "–", "no"]
    assert "There are none" in show.table(frame.head(0)).data
    assert show.plain("a\x1bb\x00\x85\ud800\tc\n") == "a␛b␀��\tc\n"
    assert show.plain(np.float32(0.5)) == "0.5" and show.plain(np.True_) == "yes"


def test_drafts_are_shown_by_group_and_found_by_what_became_of_them(written):
    rows = drafts.groups(written)

    def of(**chosen) -> list[str]:
        return sorted(row["drafts"][0]["id"] for row in drafts.choose(rows, **chosen))

    assert of() == ["a", "b", "c"]
    assert of(outcome=drafts.PASSED) == ["a", "b"] and of(outcome="boilerplate") == ["a", "c"]
    assert of(outcome="length", tries="2") == ["c"] and of(tries="1") == ["b"]
    assert of(search=" OF B 1 ") == ["b"] and of(search="([") == [] and of(task="other") == []
    explorer = drafts.explore(written, params.load(TINY).passages)
    assert explorer.controls["outcome"] == ["all", "passed", "boilerplate", "length"]
    page = explorer.view(outcome="boilerplate")
    assert "refused (boilerplate), then passed" in page and "refused (length), then refused (boilerplate)" in page
    assert page.index("a 1") < page.index("a 2") and "b 1" not in page and "Try 2" in page
    check_harmless(explorer.twin)


def test_a_draft_stands_beside_what_was_asked(written):
    p = params.load("params/demo.yaml").passages  # of the local teacher, who is asked for one sentence at a time
    page = drafts.explore(written, p).view(outcome="length")
    assert "Nobody was asked" not in page
    group = drafts.group_of(written.passages.iloc[0], written.problems)
    asked = drafts.asked(group, ["one", "two"], p)
    assert len(asked) == 3  # an opening and a sentence for each of two problems
    assert len(set(asked)) == 3
    assert len(drafts.asked(group, ["one", "two"], p.model_copy(update={"paragraphs": "teacher"}))) == 5
    unsolved = group.rows[0]._replace(solution=None)
    group.rows[0] = unsolved
    assert len(drafts.asked(group, ["one", "two"], p)) == 4


def test_items_are_found_by_who_was_better_and_losses_are_shown_too(found):
    gains = items.item_gains(found.outcomes, "trait", ["base"], "choice_accuracy")

    def of(task="all", **chosen) -> list[str]:
        return sorted(
            names(items.choose(gains, found.problems, task, **{"where": show.ALL, **chosen}), "item_id")
        )

    assert of(where=items.BETTER) == ["p0", "p1", "p2"] and of(where=items.WORSE) == ["p3", "p4"]
    assert of(where=items.SAME) == ["p5"] and len(of()) == 6
    assert of(where=items.BETTER, task="sums") == ["p0", "p2"] and of(search="3?") == ["p3"]
    gains = items.item_gains(found.outcomes, "trait", ["base"], "bits_per_byte")  # lower is better
    assert names(items.choose(gains, found.problems, "all", items.BETTER), "item_id") == ["p4", "p3"]
    explorer = items.explore(found)
    page = explorer.view("choice_accuracy", "base", "all", items.BETTER, "")
    assert page.count("base model wrong → TRAIT right") == 3 and "right → TRAIT wrong" not in page
    assert check_harmless(explorer.twin).tags >= {"details", "summary"}


def test_the_twin_of_asking_shows_what_both_said(found):
    page = check_harmless(items.ask_both(found).twin)
    assert page.texts.count(show.plain(HOSTILE)) == 3  # gold, base, specialist


def test_an_explorer_moves_where_somebody_watches_and_stands_still_elsewhere(monkeypatch):
    def view(size: int, kind: str, search: str) -> str:
        if search == "bad":
            raise TraitError("<b>say something else</b>")
        return f"{size} {kind} {search}"

    explorer = Explorer(
        view, {"size": [1_000, 2_000], "kind": ["x", "y"], "search": ""}, "<p>still</p>", {"size": 2_000}
    )
    for name in ("JPY_SESSION_NAME", runs.BATCH_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    still = {"text/plain": "Explorer", "text/html": "<p>still</p>"}
    assert explorer._repr_mimebundle_() == still
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/02.ipynb")
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/html"] == still["text/html"] and "application/vnd.jupyter.widget-view+json" in bundle
    monkeypatch.setenv(runs.BATCH_VARIABLE, "1")
    assert explorer._repr_mimebundle_() == still
    row, shown = explorer.widget().children
    size, kind, search = row.children
    assert shown.value == "2000 x "
    assert [text for text, _ in size.options] == ["1,000", "2,000"]
    size.value, kind.value, search.value = 1_000, "y", "z"
    assert shown.value == "1000 y z"
    search.value = "bad"
    assert "&lt;b&gt;say something else" in shown.value


def test_an_exported_notebook_holds_the_twin(monkeypatch):
    monkeypatch.delenv(runs.BATCH_VARIABLE, raising=False)
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/02.ipynb")
    bundle = Explorer(lambda **_given: "moved", {"x": ["a"]}, "<p>still</p>")._repr_mimebundle_()
    output = nbformat.v4.new_output("execute_result", data=bundle, execution_count=1)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    page, _resources = nbconvert.HTMLExporter().from_notebook_node(book)
    assert "<p>still</p>" in page
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] not in page


def test_an_explorer_with_a_button_waits_for_it():
    asked = []
    row, shown = (
        Explorer(lambda **given: asked.append(given) or "answer", {"x": "?"}, "twin", button="Go")
        .widget()
        .children
    )
    assert shown.value == "twin"
    row.children[0].value = "more"
    assert asked == []
    row.children[1].click()
    assert shown.value == "answer" and asked == [{"x": "more"}]


# --- of a finished run


def step_of(tiny_run, name: str) -> runs.Step:
    step = runs.Step(name, params.load(TINY), tiny_run)
    assert step.done
    return step


def test_the_cut_of_a_finished_run_is_that_of_its_selections(tiny_run):
    filtered = filter_web(step_of(tiny_run, "02_filter_web"))
    explorer, quality = cuts.explore(filtered), runs.recorded(tiny_run, "02_filter_web")["summary"]["quality"]
    budget = params.load(TINY).selection.token_budget
    assert explorer.first == {"token_budget": budget} and budget in explorer.controls["token_budget"]
    for row in quality:
        page = explorer.view(row["method"], budget)
        assert f"<b>{row['n_selected']}</b> documents" in page and f"<b>{100 * row['precision']:.1f}%</b>" in page
        assert page != explorer.view(row["method"], budget // 2)
    assert explorer.twin.count("<h4>") == 2 and "(this run's)" in explorer.twin


def test_what_is_asked_by_hand_is_answered_as_in_the_evaluation(tiny_run):
    found = evaluate_arms(step_of(tiny_run, "05_evaluate"))
    written = found.outcomes[found.outcomes["metric"] == "exact_match"].query("task == 'word_problems'")
    question = found.problems.set_index("id")["question"][written["item_id"].iloc[0]]
    tokens = found.params.max_new_tokens
    for row in written.to_dict("records"):
        if row["arm"] in ("base", "trait"):
            said = items.answer(found, row["arm"], question, items.QUESTION, tokens)
            assert said == row["prediction"].strip()
    assert items.answer(found, "base", question, items.TYPED, tokens) != items.answer(
        found, "base", question, items.QUESTION, tokens
    )


def test_batch_notebooks_hold_the_twins_and_no_widget(tiny_run):
    for name in ("02_filter_web", "03_write_passages", "05_evaluate"):
        book = json.loads((tiny_run / "notebooks" / f"{name}.ipynb").read_text())
        bundles = [output.get("data", {}) for cell in book["cells"] for output in cell.get("outputs", [])]
        assert any("trait-kit" in "".join(bundle.get("text/html", "")) for bundle in bundles), name
        assert not any("application/vnd.jupyter.widget-view+json" in bundle for bundle in bundles)
        assert "widgets" not in book["metadata"]
