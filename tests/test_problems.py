"""Problems: worked solutions that are right, splits that are disjoint, task files that are read or refused clearly."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pandas as pd
import pytest
import yaml
from local_tasks import BENCHMARKS, LOCAL, local_task

from trait_kit import tables
from trait_kit.engine.files import TraitError
from trait_kit.fields import FieldError, render
from trait_kit.judging.answers import judge, parted
from trait_kit.judging.numbers import arithmetic_slips, evaluate
from trait_kit.tasks import fingerprint, load_problems, load_task, plain, task_names

MATH = [
    "word_problems",
    "linear_equations",
    "greatest_common_divisor",
    "least_common_multiple",
    "fraction_simplification",
]
TRAINED = [task for task in MATH if task != "least_common_multiple"]  # that one has no train problems: transfer
ADS = [
    "query_rewriting",
    "query_ad_relevance",
    "query_landing_page_relevance",
    "title_generation",
    "title_rewriting",
    "description_generation",
    "ad_generation",
]
FROZEN = "19b57556da152235aad7a16f96d3da1e5782c739a02e74cab15c6f3c1cbd8e09"
ROOT = Path(__file__).resolve().parents[1]
needs_local_data = pytest.mark.skipif(
    not LOCAL.is_dir(), reason="TRAIT_KIT_TEST_DATA names no folder of public data"
)


@pytest.fixture(scope="module")
def math_train() -> pd.DataFrame:
    return load_problems(MATH, "train", 40, seed=0)


@pytest.fixture(scope="module")
def ads_train() -> pd.DataFrame:
    return load_problems(ADS, "train", 60, seed=0)


# ---------------------------------------------------------------------------------------------------------- math demo


def test_math_solutions_recompute_and_end_in_the_answer(math_train: pd.DataFrame) -> None:
    assert Counter(math_train["task"]) == dict.fromkeys(TRAINED, 40)
    tables.conform(math_train, "problems")
    for row in math_train.itertuples():
        assert row.solution.endswith(f" The answer is {row.answer}."), row.id
        assert 60 <= len(row.solution) <= 500, row.id
        assert not arithmetic_slips(row.solution), row.id
        assert len(row.choices) == len(set(row.choices)) == 4, row.id
        assert row.answer in row.choices, row.id


def test_answers_agree_with_an_independent_computation(math_train: pd.DataFrame) -> None:
    for row in math_train.itertuples():
        numbers = [int(text) for text in re.findall(r"\d+", row.question)]
        if row.task == "greatest_common_divisor":
            assert int(row.answer) == math.gcd(*numbers)
        elif row.task == "least_common_multiple":
            assert int(row.answer) == math.lcm(*numbers)
        elif row.task == "fraction_simplification":
            assert row.answer == str(Fraction(*numbers))
            assert sum(evaluate(choice) == Fraction(*numbers) for choice in row.choices) == 1
        elif row.task == "linear_equations":
            left, right = row.question.split(": ")[1].split(" = ")
            formula = re.sub(r"\*[a-z]\b", f"*({row.answer})", left)
            assert re.fullmatch(r"[-+*() \d]+", formula)
            assert eval(formula) == int(right)


def test_every_topic_joins_at_least_two_tasks(math_train: pd.DataFrame) -> None:
    tasks_by_topic = math_train.groupby("topic")["task"].nunique()
    assert len(tasks_by_topic) >= 4
    assert (tasks_by_topic >= 2).all(), tasks_by_topic.to_dict()


def test_splits_are_disjoint_also_across_seeds() -> None:
    questions: dict[str, set[str]] = {}
    for split, seed in (("train", 0), ("train", 1), ("validation", 2), ("test", 3)):
        frame = load_problems(MATH, split, 40, seed)
        assert set(frame["split"]) == {split}
        questions.setdefault(split, set()).update(plain(question) for question in frame["question"])
    assert not questions["train"] & questions["test"]
    assert not questions["train"] & questions["validation"]
    assert not questions["validation"] & questions["test"]


def test_no_solution_of_a_test_problem_follows_a_template_of_training() -> None:
    splits = {split: load_problems(MATH, split, 2_000) for split in ("train", "validation", "test")}
    templates = {
        (task, split): set(rows["template"])
        for split, frame in splits.items()
        for task, rows in frame.groupby("task")
    }
    for task in TRAINED:
        assert not templates[task, "test"] & templates[task, "train"], task
    assert all(len(templates["word_problems", split]) >= 8 for split in splits)
    assert set(splits["test"]["task"]) - set(splits["train"]["task"]) == {
        "least_common_multiple"
    }  # transfer: in no passage


def test_frozen_problems_stay_as_they_are() -> None:
    """Other problems make other numbers: recorded answers and measured results are of these."""
    found = hashlib.sha256()
    for names in (MATH, ADS):
        for split, size in (("train", 240), ("validation", 60), ("test", 60)):
            frame = load_problems(names, split, size, seed=0)
            columns = ["id", "question", "answer", "solution", "choices", "entity", "topic"]
            found.update(frame[columns].to_json(orient="values", force_ascii=False).encode())
    assert found.hexdigest() == FROZEN


def test_asking_for_more_extends_the_same_list_in_every_process(math_train: pd.DataFrame) -> None:
    code = f"from trait_kit.tasks import load_problems;print(' '.join(load_problems({MATH!r}, 'train', 10, 0)['id']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    small = done.stdout.split()
    assert len(small) == 10 * len(TRAINED)
    for index, task in enumerate(TRAINED):
        assert small[10 * index : 10 * index + 10] == list(math_train[math_train["task"] == task]["id"])[:10]
    assert list(load_problems(["greatest_common_divisor"], "train", 10, 5)["id"]) != small[20:30]


# ----------------------------------------------------------------------------------------------------------- ads demo


def test_ads_problems_keep_their_limits_and_share_an_intent(ads_train: pd.DataFrame) -> None:
    tables.conform(ads_train, "problems")
    assert Counter(ads_train["task"]) == dict.fromkeys(ADS, 60)
    by_entity = ads_train.groupby("entity")
    assert (by_entity["task"].nunique() >= 4).all()
    assert (by_entity["topic"].nunique() == 1).all()
    assert ads_train["topic"].nunique() >= 8
    for row in ads_train.itertuples():
        assert row.solution is None  # an ad is written, not derived: a teacher writes the paragraphs
        assert row.answer in row.choices
        if row.task in ("query_ad_relevance", "query_landing_page_relevance"):
            assert sorted(row.choices) == ["irrelevant", "relevant"]
            continue
        assert len(set(row.choices)) == 4
        title, _, description = row.answer.partition(" | ")
        if row.task in ("title_generation", "title_rewriting", "ad_generation"):
            assert len(title) <= 30
        if row.task == "description_generation":
            assert len(row.answer) <= 90
        if row.task == "ad_generation":
            assert 0 < len(description) <= 90


def test_relevance_has_both_labels_and_both_kinds_of_hard_negative(ads_train: pd.DataFrame) -> None:
    judged = ads_train[ads_train["task"].isin(["query_ad_relevance", "query_landing_page_relevance"])]
    share = (judged["answer"] == "relevant").mean()
    assert 0.35 < share < 0.65
    negatives = judged[judged["answer"] == "irrelevant"]["template"]
    assert negatives.str.endswith(", place").sum() >= 10
    assert negatives.str.endswith(", intent").sum() >= 10


def test_ads_places_are_many_and_never_in_two_splits(ads_train: pd.DataFrame) -> None:
    test = load_problems(ADS[:1], "test", 10_000, 1)
    train = load_problems(ADS[:1], "train", 10_000, 2)
    validation = load_problems(ADS[:1], "validation", 10_000, 3)
    assert not set(train["entity"]) & set(test["entity"])
    assert not set(validation["entity"]) & (set(train["entity"]) | set(test["entity"]))
    assert len(train) + len(validation) + len(test) >= 600
    assert list(train["entity"]) != list(load_problems(ADS[:1], "train", 10_000, 1)["entity"])
    shared = load_problems(ADS, "train", 50, 4).groupby("entity")["task"].nunique()
    assert (shared == 7).all()  # the first few of every task are about the same places
    assert train.attrs["report"]["query_rewriting"]["taken"] == len(train)


# ---------------------------------------------------------------------------------------------------- field templates


@pytest.mark.parametrize(
    ("template", "row", "value"),
    [
        ("{answer.split('####')[1]|number}", {"answer": "2 + 2 = <<2+2=4>>4\n#### 1,042"}, "1042"),
        (
            "{a.split('####')[0]|sentences}",
            {"a": "Tom has 2 + 2 = <<2+2=4>>4\nDone\n#### 4"},
            "Tom has 2 + 2 = 4. Done.",
        ),
        (
            "{s|boxed}",
            {"s": r"so \boxed{\frac{1}{2}} and finally $\boxed{\text{(A) }x^{2}}$."},
            r"\text{(A) }x^{2}",
        ),
        ("{s|boxed}", {"s": r"the answer is \boxed 7."}, "7"),
        ("{o|lettered|pick(c)}", {"o": "a ) 12 , b ) 16 , c ) 1 / 2", "c": "c"}, "1 / 2"),
        ("{o|lettered}", {"o": "A) $f(-6)=0$ B) 2 C) 3 D) 4"}, ["$f(-6)=0$", "2", "3", "4"]),
        ("{o|lettered|pick(g)}", {"o": ["(A)one", "(B)two"], "g": [1]}, "two"),
        ("{o|pick(g)}", {"o": ["one", "two"], "g": 1}, "two"),
        (
            "{o|pick(g)}",
            {"o": {"text": ["one", "two"], "label": ["1", "2"]}, "g": "1"},
            "one",
        ),  # labels, not places
        ("{o|pick(g)}", {"o": {"A": "one", "B": "two"}, "g": "b"}, "two"),
        ("{o|pick(g)}", {"o": [{"label": "A", "text": "one"}, {"label": "B", "text": "two"}], "g": "B"}, "two"),
        ("{o|pick(g)}", {"o": list("qrstuvwxyz"), "g": "J"}, "z"),
        ("{o|pick(g)}", {"o": {"text": list("wxyz"), "label": list("ABCD")}, "g": 3}, "z"),
        ("{[a, b, c]|pick(g)}", {"a": "one", "b": "two", "c": "", "g": "B"}, "two"),
        ("{o|lettered}", {"o": ["(a) 1", "(x) + 3"]}, ["1", "(x) + 3"]),
        ("{c}", {"c": "\n  if x:\n\n      y()  \n"}, "  if x:\n\n      y()"),
        ("{a|number}", {"a": "43.0 (apples)"}, "43"),
        ("{a|number}", {"a": "0.8333333333"}, "0.8333333333"),
        ("{a|number}", {"a": "$1,200"}, "1200"),
        ("{a|number}", {"a": "-3/4"}, "-3/4"),
        ("{a|number}", {"a": "2.5 km/h"}, "2.5"),
        ("{a|number}", {"a": "60.5 miles/hour"}, "60.5"),
        ("{a|number}", {"a": "3/4 km/h"}, "3/4"),
        ("{e.replace('.0 ', ' ')} = {a|number}", {"e": "( 290.0 / 2.0 )", "a": 145.0}, "( 290 / 2 ) = 145"),
        ("{o|lettered}", {"o": "as in (b): A. 12 B. 16"}, ["12", "16"]),
        ("{a}", {"a": "(1,2)"}, "(1,2)"),  # never read as Python
        ("{a}", {"a": "[1]"}, "[1]"),
        ("{a} and {row['b c']}", {"a": None, "b c": 1}, "and 1"),
        ("{'yes' if a else 'no'}", {"a": False}, "no"),
        ("{q.split('Q: ')[1].split(' A:')[0]}", {"q": "Q: How many? A: 3"}, "How many?"),
    ],
)
def test_filters(template: str, row: dict, value: object) -> None:
    assert render(template, row) == value


@pytest.mark.parametrize(
    ("template", "row", "message"),
    [
        ("{anser}", {"answer": 1}, r"cannot read \{'answer': 1\} \('anser' is undefined\)"),
        ("{row['an ser']}", {"answer": 1}, "has no attribute 'an ser'"),
        ("{answer.split('####')[1]}", {"answer": "no hashes"}, "####"),
        ("{o|pick(g)}", {"o": ["one"], "g": "b"}, "'b' is picked, but there are A"),
        ("{o|pick(g)}", {"o": ["one"], "g": ""}, "'' is picked, but there are A"),
        ("{o|pick(g)}", {"o": {"texts": ["one"], "labels": ["A"]}, "g": "A"}, "nor 'text' and 'label': {'texts'"),
        ("{o|lettered}", {"o": [*map(str, range(27))]}, "a list of up to 26 choices"),
        ("{options|boxd}", {"options": 1}, r"boxd.*Known filters: boxed, lettered"),
    ],
)
def test_template_errors_name_what_is_wrong(template: str, row: dict, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        render(template, row)


# ---------------------------------------------------------------------------------------------------------- task files


def write_task(folder: Path, rows: str, **changes: object) -> str:
    raw: dict = {
        "name": "own",
        "about": "own",
        "kind": "number",
        "metrics": ["bits_per_byte"],
        "source": rows,
        "splits": {"train": "train", "test": "train"},
        "fields": {"question": "{q}", "answer": "{a}"},
    }
    raw.update(changes)
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return str(path)


def test_every_shipped_task_is_valid_and_complete() -> None:
    names = task_names()
    assert {*MATH, *ADS} <= set(names)
    assert {"gsm8k", "math", "svamp", "asdiv", "mawps", "tabmwp", "mathqa", "mmlu_stem", "sat_math"} <= set(names)
    for name in names:
        assert load_task(name).name == name


def test_unknown_names_get_near_ones() -> None:
    with pytest.raises(TraitError, match="word_problems"):
        load_task("word_problem")
    with pytest.raises(TraitError, match="does not exist"):
        load_task("nowhere/own.yaml")


def test_misspelt_fields_are_refused_with_the_file(tmp_path: Path) -> None:
    for changes, message in (
        ({"metrics": ["bits"]}, "metrics"),
        ({"colour": 1}, "colour"),
        ({"fields": {"question": "{q}", "answer": "{a|boxd}"}}, "boxd"),
        ({"fields": {"question": "{q}", "solutions": "{s}", "answer": "{a}"}}, "solutions"),
        ({"fields": {"question": "{q}"}}, "no 'answer'"),
        ({"metrics": ["choice_accuracy"]}, "no 'choices'"),
        ({"splits": {}, "source": "."}, "'splits' must be written down"),
        ({"language": "klingon"}, "should be 'zh', 'de' or 'en'"),
        ({"source": "demo:math/sudoku"}, "word_problems"),
    ):
        path = write_task(tmp_path, "rows.jsonl", **changes)
        with pytest.raises(TraitError, match=message) as caught:
            load_task(path)
        assert "own.yaml" in str(caught.value)


@pytest.mark.parametrize("form", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.csv", "rows.parquet"])
def test_local_files_of_each_form_give_the_same_problems(tmp_path: Path, form: str) -> None:
    rows = [{"q": f"What is {n} + {n}?", "a": str(2 * n)} for n in range(50)]
    path = tmp_path / form
    if form.endswith(".csv"):
        pd.DataFrame(rows).to_csv(path, index=False)
    elif form.endswith(".parquet"):
        pd.DataFrame(rows).to_parquet(path)
    else:
        text = json.dumps(rows) if form.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if form.endswith(".gz") else text.encode())
    task = write_task(tmp_path, form)
    train, test = load_problems([task], "train", 100, 0), load_problems([task], "test", 100, 0)
    assert len(train) + len(test) == 50
    assert len(train) > len(test) > 0
    assert set(train["question"]).isdisjoint(test["question"])
    assert train["solution"].isna().all()
    assert train["choices"].isna().all()
    tables.conform(train, "problems")
    assert list(load_problems([task], "train", 5, 0)["id"]) == list(train["id"])[:5]
    shuffled = load_problems([task], "train", 100, 1)
    assert list(shuffled["id"]) != list(train["id"])
    assert set(shuffled["id"]) == set(train["id"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"q": "2 + 2?", "a": ""}', "answer is nothing that can be compared as number: ''"),
        ('{"q": "2 + 2?", "a": "four or 5"}', "answer is nothing that can be compared as number: 'four or 5'"),
        ('{"q": " ", "a": "4"}', "question is empty"),
        ('{"q": ["2 + 2?"], "a": "4"}', r"question is not text: \['2"),
        ('{"q": "2 + 2?"}', "answer cannot be read: .*'a' is undefined"),
        ('{"q": ', "not valid JSON"),
        ('["2 + 2?"]', "no named fields"),
    ],
)
def test_a_row_that_cannot_be_used_stops_with_file_and_row(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"q": "1 + 1?", "a": "2"}}\n\n{row}\n', encoding="utf-8")
    with pytest.raises(TraitError, match=rf"rows\.jsonl, row 3: {message}"):
        load_problems([write_task(tmp_path, "rows.jsonl")], "train", 5)
    frame = load_problems(
        [write_task(tmp_path, "rows.jsonl", bad_rows="skip", splits={"train": "train"})], "train", 5
    )
    assert frame["answer"].tolist() == ["2"]
    assert sum(frame.attrs["report"]["own"]["skipped"].values()) == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraitError, match=r"absent\.jsonl does not exist"):
        load_problems([write_task(tmp_path, "absent.jsonl")], "train", 5)
    for name, data in (("a.jsonl.gz", b"no gzip"), ("a.parquet", b"PAR1"), ("a.json", b"3"), ("a.txt", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(TraitError, match=re.escape(name)):
            load_problems([write_task(tmp_path, name)], "train", 5)


def test_an_option_that_a_letter_answers_may_be_signs(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"q": "Which divides?", "o": ["//", "+"], "a": "//"}\n', encoding="utf-8"
    )
    fields = {"question": "{q}", "answer": "{a}", "choices": "{o}"}
    task = write_task(tmp_path, "rows.jsonl", kind="choice", fields=fields, splits={"test": "x"})
    assert load_problems([task], "test", 5)["answer"].tolist() == ["//"]


def test_a_hub_data_set_is_read_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(
        name: str, config: str | None, split: str
    ) -> datasets.Dataset:  # only the door to the network is replaced
        asked.append((name, config, split))
        return datasets.Dataset.from_list([{"q": f"What is {n}?", "a": n} for n in range(3)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    frame = load_problems([write_task(tmp_path, "hf:owner/own-rows@main", splits={"test": "dev"})], "test", 5)
    assert sorted(frame["answer"]) == ["0", "1", "2"]
    assert asked == [("owner/own-rows", "main", "dev")]


def test_leaks_and_unreadable_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    train = [{"q": f"What is {n} + 1?", "a": str(n + 1), "s": f"{n} + 1 = {n + 1 + (n == 3)}"} for n in range(10)]
    test = [{"q": "what  is 4 + 1?", "a": "5", "s": "4 + 1 = 6"}]
    for name, rows in (("train", [*train, {"q": "no answer"}]), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = write_task(
        tmp_path,
        ".",
        splits={"train": "train.jsonl", "test": "test.jsonl"},
        fields={"question": "{q}", "answer": "{a}", "solution": "{s}"},
        check_arithmetic=True,
        bad_rows="skip",
    )
    frame = load_problems([task], "train", 100)
    assert len(frame) == 8
    assert frame.attrs["report"]["own"]["skipped"] == {
        "also in a later split": 1,
        "printed arithmetic is wrong or rounded": 1,
        "answer cannot be read": 1,
    }
    assert len(load_problems([task], "test", 100)) == 1  # a test set stays whole
    assert frame["solution"].iloc[0].endswith(f" The answer is {frame['answer'].iloc[0]}.")


def test_aqua_reads_its_options_and_its_rationale(tmp_path: Path) -> None:
    row = {
        "question": "A train covers 120 km in 2 hours. What is its speed in km/h?",
        "options": ["A)50", "B)60", "C)240", "D)122", "E)none of these"],
        "rationale": "Speed is distance over time.\n120 / 2 = 60 km/h.\nAnswer: B",
        "correct": "B",
    }
    wrong = {**row, "question": "And 90 km in 2 hours?", "options": ["A)40", "B)45"], "rationale": "90 / 2 = 40"}
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(wrong)}\n", encoding="utf-8")
    raw = load_task("aqua").model_dump(exclude={"origin"})
    raw.update(source=".", splits={"train": "train.jsonl", "validation": None, "test": None})
    (tmp_path / "aqua.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    frame = load_problems([str(tmp_path / "aqua.yaml")], "train", 5)
    assert frame["answer"].tolist() == ["60"]
    assert frame["choices"].tolist() == [["50", "60", "240", "122", "none of these"]]
    assert frame["solution"].tolist() == [
        "Speed is distance over time.\n120 / 2 = 60 km/h.\nAnswer: B.\nThe answer is 60."
    ]
    assert frame.attrs["report"]["aqua"]["skipped"] == {"printed arithmetic is wrong or rounded": 1}


def test_one_file_is_divided_and_what_is_lost_or_missing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [{"q": f"How much is {n} and {n}?", "a": 2 * n} for n in range(60)]
    rows += [{"q": "how much is  3 and 3?", "a": 7}, {"q": "How many then?", "a": "many"}]
    (tmp_path / "said.json").write_text(json.dumps({"version": 2, "data": rows}), encoding="utf-8")
    task = write_task(tmp_path, "said.json", name="said", splits={}, bad_rows="skip")
    sizes = {split: len(load_problems([task], split, 100)) for split in ("train", "validation", "test")}
    assert sum(sizes.values()) == 60
    assert min(sizes.values()) > 0
    said = capsys.readouterr().out
    parts = ", ".join(f"{count} {split}" for split, count in sizes.items())
    assert f"said: the questions of said.json (all) are divided into {parts}" in said
    assert (
        f"said: {sizes['test']} problems of test, 100 asked for; left out: 1 (question occurs before), 1 ("
        in said
    )
    frame = load_problems([task], "test", 100)
    assert frame.attrs["report"]["said"]["skipped"]["question occurs before"] == 1
    load_problems([task], "train", sizes["train"])
    (tmp_path / "by_id.json").write_text(
        json.dumps({f"n{n}": row for n, row in enumerate(rows[:60])}), encoding="utf-8"
    )
    by_id = write_task(
        tmp_path, "by_id.json", splits={"test": "all"}, fields={"question": "{q} ({id})", "answer": "{a}"}
    )
    assert load_problems([by_id], "test", 100)["question"].str.contains(r"\(n\d+\)").all()
    (tmp_path / "one.json").write_text(json.dumps([{**rows[0], "options": [0, 1]}], indent=1), encoding="utf-8")
    one = write_task(
        tmp_path, "one.json", splits={"test": "all"}, fields={"question": "{q} {options[1]}", "answer": "{a}"}
    )
    assert load_problems([one], "test", 100)["question"].tolist() == ["How much is 0 and 0? 1"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp1252", "utf-16", "gb18030"])
@pytest.mark.parametrize("divider", [",", ";", "\t", "|"])
def test_tables_are_read_however_they_are_written(tmp_path: Path, encoding: str, divider: str) -> None:
    text = "多少是三加四？" if encoding == "gb18030" else "Wie groß sind die Bögen für 3 Gäste?"
    path = tmp_path / "rows.csv"
    lines = [["q", "a"], [f'"{text}{divider} zu\n  zweit"', "7"], ["Und 3 + 5?", "8"]]
    path.write_bytes("".join(f"{divider.join(line)}\r\n" for line in lines).encode(encoding))
    frame = load_problems([write_task(tmp_path, "rows.csv", splits={"test": "all"})], "test", 5)
    assert set(frame["question"]) == {f"{text}{divider} zu\n  zweit", "Und 3 + 5?"}
    with path.open("ab") as stream:
        stream.write(divider.join(["Wie viele", " und warum?", "9"]).encode(encoding.replace("16", "16-le")))
    with pytest.raises(TraitError, match=r"rows\.csv, row 3: 3 cells in 2 columns"):
        load_problems([write_task(tmp_path, "rows.csv", splits={"test": "all"})], "test", 5)


def test_tables_that_are_broken_are_refused(tmp_path: Path) -> None:
    for text, message in (
        ("q,q,a\n1,2,3\n", "two columns have one name"),
        ('q,a\n"1,2\n3,4\n', "unexpected end of data"),
    ):
        (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
        with pytest.raises(TraitError, match=rf"rows\.csv cannot be read: {message}"):
            load_problems([write_task(tmp_path, "rows.csv")], "train", 5)


def test_code_keeps_its_lines_in_every_field(tmp_path: Path) -> None:
    code = "def f(x):\n    if x:\n\n        return x - 1"
    row = {
        "q": f"What is short for this?\n{code}",
        "a": code,
        "s": f"It is this:\n{code}",
        "o": [code, "def g(): pass"],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    fields = {"question": "{q}", "answer": "{a}", "solution": "{s}", "choices": "{o}", "topic": "{q}"}
    task = write_task(tmp_path, "rows.jsonl", kind="text", fields=fields, splits={"test": "all"})
    found = load_problems([task], "test", 5).iloc[0]
    assert [found["question"], found["answer"], found["solution"]] == [row["q"], code, row["s"]]
    assert found["choices"] == row["o"]
    assert "\n" not in found["topic"]


@pytest.mark.parametrize(
    ("question", "solution", "answer", "language", "states"),
    [
        ("本金是多少元？", "120乘32等于3840。", "3840", None, "120乘32等于3840。答案是3840。"),
        ("Wie viele Äpfel sind das?", "3 * 4 = 12", "12", None, "3 * 4 = 12. Die Antwort ist 12."),
        (
            "Wie viele Äpfel sind das?",
            "3 * 4 = 12. Die Antwort ist 12",
            "12",
            None,
            "3 * 4 = 12. Die Antwort ist 12.",
        ),
        ("Berechne 3 * 4!", "3 * 4 = 12.", "12", "de", "3 * 4 = 12. Die Antwort ist 12."),
        (
            "Who is it?",
            "See the list. The answer is Mr. Bo",
            "Mr. Bo",
            None,
            "See the list. The answer is Mr. Bo.",
        ),
        ("What is 3 * 4?", "First 3.\nThen 12.", "12", None, "First 3.\nThen 12.\nThe answer is 12."),
        ("三と四の合計は？", "3 + 4 = 7", "7", None, "3 + 4 = 7. The answer is 7."),
    ],
)
def test_a_solution_states_its_answer_once_in_its_language(
    tmp_path, question, solution, answer, language, states
) -> None:
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"q": question, "a": answer, "s": solution}), encoding="utf-8"
    )
    fields = {"question": "{q}", "answer": "{a}", "solution": "{s}"}
    task = write_task(
        tmp_path, "rows.jsonl", kind="text", fields=fields, language=language, splits={"test": "all"}
    )
    found = load_problems([task], "test", 5)["solution"].iloc[0]
    assert found == states
    assert judge(found, answer, "text") == (True, True)
    reasoning, announces = parted(found, answer)
    assert announces
    assert found.startswith(f"{reasoning}{announces}")


def test_a_benchmark_without_training_data_says_so() -> None:
    frame = load_problems(["sat_math", "greatest_common_divisor"], "train", 3)
    assert set(frame["task"]) == {"greatest_common_divisor"}
    assert frame.attrs["report"]["sat_math"] == {"taken": 0, "skipped": {}}
    with pytest.raises(TraitError, match="train"):
        load_problems(["sat_math"], "train", 3)


# ------------------------------------------------------------------------------------------- real files, shipped fields


@needs_local_data
@pytest.mark.parametrize("shipped", BENCHMARKS)
def test_the_papers_benchmarks_load_from_local_copies(tmp_path: Path, shipped: str) -> None:
    path = local_task(tmp_path, shipped)
    frame = load_problems([path], "test", 25, 0)
    assert len(frame) == 25
    tables.conform(frame, "problems")
    for row in frame.itertuples():
        assert row.question
        assert row.answer
        if isinstance(row.choices, list):
            assert row.answer in row.choices
        if isinstance(row.solution, str):
            assert row.solution.endswith(f"The answer is {row.answer.rstrip('.')}.")
            assert "####" not in row.solution
            assert "<<" not in row.solution
        if load_task(shipped).kind == "number":
            assert evaluate(row.answer) is not None


@pytest.mark.slow
@needs_local_data
def test_gsm8k_train_drops_wrong_arithmetic_and_shares_no_question(tmp_path: Path) -> None:
    path = local_task(tmp_path, "gsm8k")
    parts = {split: load_problems([path], split, 100_000) for split in ("train", "validation", "test")}
    assert len(parts["test"]) == 1_319
    skipped = sum(
        sum(parts[split].attrs["report"]["gsm8k"]["skipped"].values()) for split in ("train", "validation")
    )
    assert len(parts["train"]) + len(parts["validation"]) > 6_000
    assert 0 < skipped < 1_500
    questions = {split: {plain(question) for question in frame["question"]} for split, frame in parts.items()}
    assert not questions["train"] & questions["validation"]
    assert not questions["train"] & questions["test"]


# ------------------------------------------------------------------------------------------------------------ fingerprints


def test_a_fingerprint_follows_content_and_not_times(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "1 + 1?", "a": "2"}\n', encoding="utf-8")
    task = write_task(tmp_path, "rows.jsonl")
    before = fingerprint(task)
    (tmp_path / "copy").mkdir()
    for name in ("rows.jsonl", "own.yaml"):  # a copy without file times
        (tmp_path / "copy" / name).write_bytes((tmp_path / name).read_bytes())
    os.utime(tmp_path / "rows.jsonl", (1, 1))
    assert fingerprint(task) == before == fingerprint(str(tmp_path / "copy" / "own.yaml"))
    (tmp_path / "rows.jsonl").write_text('{"q": "1 + 2?", "a": "3"}\n', encoding="utf-8")
    assert fingerprint(task) != before
    assert len(fingerprint("word_problems")) == 2  # the frozen problems are content too


def test_what_a_row_lacks_is_none_beside_tasks_that_have_it(tmp_path: Path) -> None:
    rows = tmp_path / "rivers.jsonl"
    rows.write_text(
        "".join(json.dumps({"q": f"Which river is number {n}?", "a": f"river {n}"}) + "\n" for n in range(40))
    )
    fields = {"question": "{q}", "answer": "{a}"}
    task = {"name": "rivers", "about": "x", "version": 1, "kind": "text", "metrics": ["bits_per_byte"]}
    (tmp_path / "rivers.yaml").write_text(yaml.safe_dump({**task, "source": str(rows), "fields": fields}))
    both = load_problems([str(tmp_path / "rivers.yaml"), "linear_equations"], "train", 3)
    assert [row["solution"] is None for row in both.to_dict("records")] == [True] * 3 + [False] * 3
