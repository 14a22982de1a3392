"""Passages: groups, and the checks on planted errors."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from passage_problems import QuotingTeacher, ads_problems, count_tokens, make_groups, math_problems, params

from trait_kit import tables
from trait_kit.engine.files import TraitError
from trait_kit.passages.checks import OWN_CHECKS, own_fault
from trait_kit.passages.grouping import COLUMN, coverage
from trait_kit.passages.material import Draft, Group, problem_rows
from trait_kit.passages.quality import Accepted, blames
from trait_kit.passages.teachers import Teacher
from trait_kit.passages.writing import write_groups

# --- groups


def test_groups_join_different_tasks_and_spread_over_the_problems():
    problems = math_problems()
    groups = make_groups(problems, "knowledge", n_groups=8, problems_per_group=3, max_uses=2, seed=0)
    task = problems.set_index("id")["task"]
    topic = problems.set_index("id")["topic"]
    uses = Counter(problem_id for group in groups for problem_id in group.problem_ids)
    assert len(groups) == 8
    for group in groups:
        assert {topic[problem_id] for problem_id in group.problem_ids} == {group.shared}
        assert len({task[problem_id] for problem_id in group.problem_ids}) == 3
    assert max(uses.values()) <= 2
    assert len({frozenset(group.problem_ids) for group in groups}) == 8
    table = coverage(groups, problems).set_index("task")
    assert (table["used"] + table["unused"] == table["problems"]).all()
    assert table["places"].sum() == 24
    assert len(uses) == 20  # all problems whose topic has several tasks


def test_groups_depend_on_the_seed_and_not_on_row_order():
    problems = math_problems()
    ask = {"n_groups": 6, "problems_per_group": 2, "max_uses": 1}
    first = make_groups(problems, "knowledge", seed=3, **ask)
    assert first == make_groups(problems.sample(frac=1, random_state=1), "knowledge", seed=3, **ask)
    assert first != make_groups(problems, "knowledge", seed=4, **ask)
    assert len({problem_id for group in first for problem_id in group.problem_ids}) == 12


def test_few_tasks_fill_a_group_and_few_problems_end_it():
    problems = math_problems(3).query("task != 'fraction_simplification'")
    groups = make_groups(problems, "knowledge", n_groups=50, problems_per_group=3, max_uses=1, seed=0)
    assert [len(group.problem_ids) for group in groups] == [3, 3]
    alone = problems.query("task == 'word_problems'")
    sizes = {"n_groups": 5, "problems_per_group": 2, "max_uses": 1, "seed": 0}
    assert make_groups(alone, "knowledge", **sizes)
    with pytest.raises(TraitError, match="no topic is shared"):
        make_groups(alone.assign(topic=alone["id"]), "knowledge", **sizes)


def test_groups_by_entity_and_only_of_the_train_split():
    problems = ads_problems()
    groups = make_groups(problems, "entity", n_groups=3, problems_per_group=3, max_uses=1, seed=0)
    assert {group.shared for group in groups} == {"Machu Picchu", "Kyoto", "Lisbon"}
    problems.loc[problems["id"] == "page-Kyoto", "split"] = "test"
    with pytest.raises(
        TraitError, match="page-Kyoto of task query_landing_page_relevance is from the split 'test'"
    ):
        make_groups(problems, "entity", n_groups=3, problems_per_group=3, max_uses=1, seed=0)


# --- the checks


def quoting_passages(folder: Path, problems: pd.DataFrame, grouping: str = "knowledge", n: int = 8, **changes):
    """(groups, passages, rejected, bill) of a teacher that quotes; `changes` are parameters, or the test questions."""
    questions, teacher = changes.pop("test_questions", []), changes.pop("teacher", QuotingTeacher())
    p = params(**{"grouping": COLUMN[grouping], "max_attempts": 1, **changes})
    groups = make_groups(problems, grouping, n_groups=n, problems_per_group=3, max_uses=2, seed=p.seed)
    bill = write_groups(groups, teacher, p, folder, questions, count_tokens)
    found = [tables.read(folder / f"{name}.parquet", name).to_pandas() for name in ("passages", "rejected")]
    return groups, *found, bill


@pytest.mark.parametrize(
    ("problems", "grouping", "n"), [(math_problems(), "knowledge", 8), (ads_problems(), "entity", 3)]
)
def test_passages_pass_every_check_and_hold_what_evaluation_asks(problems, grouping, n, tmp_path):
    groups, passages, rejected, bill = quoting_passages(tmp_path, problems, grouping, n)
    assert rejected["reason"].tolist() == []
    assert passages["id"].tolist() == [group.id for group in groups]
    assert sum(bill["cost_usd_by_task"].values()) == 0.0
    assert bill["passages"] == n
    by_id = problems.set_index("id")
    for row in passages.itertuples():
        beside = ["length", "contamination", "boilerplate", "recurring clause", "near-duplicate"]
        assert list(row.checks) == [*OWN_CHECKS, *beside]
        for problem_id in row.problem_ids:  # exactly the evaluation's prompt and target
            problem = by_id.loc[problem_id]
            assert f"Question: {problem['question']}\nAnswer: {problem['solution']}\n\n" in row.text
        assert row.text.endswith(row.enlightenment)


def test_a_phrase_that_recurs_with_other_numbers_is_refused_from_the_third_on(tmp_path):
    class Phrase(QuotingTeacher):
        def _around(self, group: Group, draft: Draft) -> Draft:
            found = super()._around(group, draft)
            phrase = f"and the {len(group.rows[0].question)} coins are hardly enough while buyers wait outside"
            return replace(found, enlightenment=f"{found.enlightenment[:-1]}; {phrase}.")

    groups, passages, rejected, _ = quoting_passages(tmp_path, math_problems(), teacher=Phrase())
    assert passages["id"].tolist() == [group.id for group in groups[:2]]
    assert set(rejected["reason"].str.partition(":")[0]) == {"recurring clause"}
    assert "'and the coins are hardly enough while buyers wait outside'" in rejected["reason"][0]
    assert blames(rejected["reason"][0], "Well, and the 77 coins are hardly enough while buyers wait outside.")
    assert not blames(rejected["reason"][0], "With 77 and 3, the boxes are counted by what each of them holds.")
    # what the solutions themselves say is no habit of the teacher's
    said = "So the {} coins are hardly enough while buyers wait outside."
    problems = math_problems()
    problems["solution"] = [
        f"{said.format(n)} {solution}" for n, solution in enumerate(problems["solution"], start=501)
    ]

    class Quoting(QuotingTeacher):
        def _around(self, group: Group, draft: Draft) -> Draft:
            found = super()._around(group, draft)
            return replace(found, enlightenment=f"{found.enlightenment} {said.format(found.paragraphs[0][7:10])}")

    groups, passages, _, _ = quoting_passages(tmp_path, problems, teacher=Quoting())
    assert passages["id"].tolist() == [group.id for group in groups]


def test_worked_solutions_are_joined_without_an_enlightenment(tmp_path):
    problems = math_problems()
    groups, passages, rejected, _ = quoting_passages(tmp_path, problems, teacher=Teacher(params(teacher="none")))
    assert (len(passages), len(rejected)) == (len(groups), 0)
    assert set(passages["enlightenment"]) == {""}
    assert "enlightenment" not in passages["checks"][0]
    assert "gold answer" in passages["checks"][0]


def test_a_problem_without_solution_is_a_counted_rejection(tmp_path):
    problems = math_problems()
    problems.loc[problems["task"] == "word_problems", "solution"] = None
    groups, passages, rejected, bill = quoting_passages(tmp_path, problems, n=6)
    assert len(passages) + len(rejected) == len(groups)
    assert bill["rejected"] == {"no worked solution": len(rejected)}
    assert len(rejected) > 0


def clean_draft(problems: pd.DataFrame, ids: list[str], grouping: str, shared: str) -> tuple[Draft, Group]:
    by_id = problem_rows(problems)
    group = Group("p-test", [by_id[problem_id] for problem_id in ids], grouping, shared)
    (draft,) = QuotingTeacher().write([group])
    assert not draft.fault
    return draft, group


def with_parts(draft: Draft, paragraphs=None, enlightenment: str | None = None) -> Draft:
    return Draft(tuple(paragraphs or draft.paragraphs), enlightenment or draft.enlightenment)


BOILERPLATE = (
    "Each of these problems asks you to read carefully, find the important information, choose the right method and "
    "apply it step by step. Practising such problems together helps to see what they have in common and how they differ."
)


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (lambda d: with_parts(d), None),
        (
            lambda d: with_parts(d, [d.paragraphs[0].replace("is 312", "is 321"), *d.paragraphs[1:]]),
            "gold answer: .*word_problems-0",
        ),
        (lambda d: with_parts(d, d.paragraphs[::-1]), "gold answer"),
        (lambda d: with_parts(d, d.paragraphs[:2]), "form: 2 paragraphs for 3"),
        (
            lambda d: with_parts(
                d, [d.paragraphs[0].replace("13 * 24 = 312", "13 * 24 = 302"), *d.paragraphs[1:]]
            ),
            "arithmetic: 13",
        ),
        (lambda d: with_parts(d, enlightenment=BOILERPLATE), "enlightenment: says nothing"),
        (lambda d: with_parts(d, enlightenment=d.enlightenment.split(";")[0] + "."), "enlightenment"),
        (lambda d: with_parts(d, ["The answer is 312.", *d.paragraphs[1:]]), "reasoning"),
        (lambda d: with_parts(d, [d.paragraphs[0] + "\nQuestion: 1+1?", *d.paragraphs[1:]]), "form"),
        (lambda d: with_parts(d, ["17 \times 2. " + d.paragraphs[0], *d.paragraphs[1:]]), "form: .*control"),
        (lambda d: with_parts(d, enlightenment="Все три задачи решаются одинаково. " * 30), "language"),
    ],
)
def test_planted_errors_in_math(plant, reason):
    ids = ["word_problems-0", "linear_equations-0", "fraction_simplification-0"]
    draft, group = clean_draft(math_problems(), ids, "knowledge", "equal groups")
    passed, found = own_fault(group, plant(draft))
    if reason is None:
        assert found == ""
        assert passed == list(OWN_CHECKS)
    else:
        assert re.match(reason, found), found


def test_swapped_paragraphs_with_equal_answers_are_found():
    ids = ["page-Kyoto", "ad-Kyoto", "rewrite-Kyoto"]
    draft, group = clean_draft(ads_problems(), ids, "entity", "Kyoto")
    assert own_fault(group, draft)[1] == ""
    swapped = with_parts(draft, [draft.paragraphs[1], draft.paragraphs[0], draft.paragraphs[2]])
    assert own_fault(group, swapped)[1].startswith("own problem")
    nameless = with_parts(draft, enlightenment=re.sub("(?i)kyoto", "It", draft.enlightenment))
    assert own_fault(group, nameless)[1].startswith("enlightenment: does not name Kyoto")


def test_an_enlightenment_may_speak_of_shared_facts_by_place_but_not_of_tasks_alone():
    ids = ["word_problems-0", "linear_equations-0", "fraction_simplification-0"]
    draft, group = clean_draft(math_problems(), ids, "knowledge", "equal groups")
    tasks = "Equal groups are what the word problem, the linear equation and the fraction simplification have in common."
    assert own_fault(group, with_parts(draft, enlightenment=tasks))[1].startswith("enlightenment")
    draft, group = clean_draft(ads_problems(), ["page-Kyoto", "ad-Kyoto", "rewrite-Kyoto"], "entity", "Kyoto")
    shared = (
        "All three turn on Kyoto and its luxury. For the first, a cheap hostel dormitory is not what five-star hotels sell. "
        "The second sets backpacker bunk beds against {}, and the rewrite turns the same words into private tours."
    )
    assert (
        own_fault(group, with_parts(draft, enlightenment=shared.format("'kyoto luxury tour packages'")))[1] == ""
    )
    silent = shared.format("it").partition(", and the rewrite")[0] + "."
    assert "rewrite-Kyoto" in own_fault(group, with_parts(draft, enlightenment=silent))[1]


def test_only_paragraphs_with_equal_answers_are_believed_to_have_changed_places():
    ids = ["page-Kyoto", "ad-Kyoto", "rewrite-Kyoto"]
    draft, group = clean_draft(ads_problems(), ids, "entity", "Kyoto")
    vague = "Someone who wants this does not look for that. The answer is irrelevant."
    foreign = "Lowest rates and bunk beds are not meant by 'luxury'. The answer is private luxury tours to Kyoto."
    assert own_fault(group, with_parts(draft, [draft.paragraphs[0], vague, foreign]))[1] == ""
    group.rows[2] = group.rows[2]._replace(answer="irrelevant")
    foreign = foreign.replace("private luxury tours to Kyoto", "irrelevant")
    found = own_fault(group, with_parts(draft, [draft.paragraphs[0], vague, foreign]))[1]
    assert (found).startswith("own problem: the paragraph of problem")


def test_length_boilerplate_and_near_duplicates(tmp_path):
    class Same(QuotingTeacher):
        def _around(self, group: Group, draft: Draft) -> Draft:
            return super()._around(replace(group, id="p"), draft)

    ids = ("word_problems-0", "linear_equations-0", "fraction_simplification-0")
    rows = [problem_rows(math_problems())[name] for name in ids]
    groups = [Group(name, rows, "knowledge", "equal groups") for name in ("p-first", "p-again")]
    for changes, reasons in (
        ({}, ["boilerplate: the enlightenment is 100%"]),
        ({"max_passage_tokens": 70}, ["length: "] * 2),
    ):
        write_groups(groups, Same(), params(max_attempts=1, **changes), tmp_path, [], count_tokens)
        rejected = tables.read(tmp_path / "rejected.parquet", "rejected").to_pylist()
        assert [row["id"] for row in rejected] == ["p-first", "p-again"][-len(reasons) :]
        assert all(row["reason"].startswith(reason) for row, reason in zip(rejected, reasons, strict=True))


def test_a_test_question_among_the_problems_is_rejected(tmp_path):
    problems = math_problems()
    leaked = "fraction_simplification-2"
    question = problems.set_index("id").loc[leaked, "question"].upper()
    groups, passages, rejected, _ = quoting_passages(
        tmp_path, problems, test_questions=[question, "What is seven?"]
    )
    holding = {group.id for group in groups if leaked in group.problem_ids}
    assert holding
    assert set(rejected["id"]) == holding
    assert rejected["reason"].str.startswith("contamination: ").all()
    assert len(passages) == len(groups) - len(holding)


def test_near_duplicates_agree_with_exact_comparison():
    rng = random.Random(0)
    words = [f"word{index}" for index in range(40)]
    base = [rng.choice(words) for _ in range(120)]
    index = Accepted(0.6)
    index.begin([" ".join(base)])
    index.accept(0, "base")

    def trigrams(tokens: list[str]) -> set[tuple[str, ...]]:
        return {tuple(tokens[start : start + 3]) for start in range(len(tokens) - 2)}

    agreed = 0
    for changes in range(0, 40, 2):
        other = list(base)
        for place in rng.sample(range(len(other)), changes):
            other[place] = "changed"
        exact = len(trigrams(base) & trigrams(other)) / len(trigrams(base) | trigrams(other))
        index.begin([" ".join(other)])
        found = index.nearest(0)
        if abs(exact - 0.6) > 0.13:  # three standard deviations of the estimate
            assert bool(found) == (exact >= 0.6)
            agreed += 1
        if found:
            assert found[1] == pytest.approx(exact, abs=0.13)
    assert agreed > 8
