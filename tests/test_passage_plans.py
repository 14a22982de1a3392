"""Passages before and after the teacher: screening, relating and grouping problems; ablations; how good the result is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
from passage_problems import QuotingTeacher, count_tokens, make_groups, math_problems, params

from trait_kit import tables
from trait_kit.passages import quality
from trait_kit.passages.grouping import plan_groups, tag_concepts, tag_neighborhoods
from trait_kit.passages.quality import REASONS, screen_problems
from trait_kit.passages.writing import write_groups


def table(rows: list[tuple[str, str, str, str | None]], **columns) -> pd.DataFrame:
    """(id, task, question, topic) -> a problems table."""
    frame = pd.DataFrame(rows, columns=["id", "task", "question", "topic"])
    given = {
        "answer": "1",
        "solution": "It is 1. The answer is 1.",
        "choices": None,
        "entity": None,
        "split": "train",
    }
    return frame.assign(template=None, **{**given, **columns})[tables.SCHEMAS["problems"].names]


# --- screening


def test_problems_that_a_test_set_holds_are_dropped_and_counted():
    long = "A train leaves the station at nine and another one leaves at ten on the same track towards it; when do they meet"
    problems = table(
        [
            ("a/0", "a", "What is 3 + 4?", None),
            ("a/1", "a", "WHAT IS  3 + 5", None),
            ("a/2", "a", f"{long} if both are fast?", None),
            ("a/3", "a", "How many kites has Ada?", None),
            ("b/0", "b", "Find the area. [asy] draw((0,0)--(1,1)); [/asy]", None),
            ("b/1", "b", f"{long}?", None),
        ]
    )
    tests = [
        "What is 3 + 5?",
        f"Think hard. {long} if one of them is slow, and say in how many hours you expect it?",
    ]
    kept, dropped = screen_problems(problems, tests)
    assert kept["id"].tolist() == ["a/0", "a/3"]
    assert dropped.columns.tolist() == ["task", "problems", *REASONS, "kept"]
    assert dropped.values.tolist() == [["a", 4, 1, 1, 0, 2], ["b", 2, 1, 0, 1, 0]]
    assert screen_problems(problems, [])[0]["id"].tolist() == ["a/0", "a/1", "a/2", "a/3", "b/1"]


# --- what relates problems


def test_concepts_are_recognised_and_the_rarest_is_the_topic():
    problems = table(
        [
            ("a/0", "a", "What percent of the 40 dollars is left?", "x"),
            ("a/1", "a", "A coat costs 40 dollars. What is the price of two?", "x"),
            ("a/2", "a", "Tim pays 3 dollars. How many cents?", "x"),
            ("b/0", "b", "Find the greatest common divisor of 12 and 18.", "y"),
            ("b/1", "b", "Hm.", "y"),
            ("b/2", "b", "Is 12 divisible by 5?", "y"),
        ]
    )
    tagged = tag_concepts(problems)
    assert tagged["topic"].tolist()[:4] == [
        "percentages",
        "prices and money",
        "prices and money",
        "common divisors and multiples",
    ]
    assert tagged["topic"].isna().tolist() == [False] * 4 + [True, False]
    assert tagged["subject"].tolist() == ["x", "x", "x", "y", "y", "y"]


def test_two_subjects_of_one_task_may_meet_where_no_other_task_shares_the_concept():
    rows = [(f"math/{n}", "math", f"Compute {n}.", "trigonometry") for n in range(6)]
    problems = table(rows).assign(subject=["Geometry", "Precalculus"] * 3)
    groups = make_groups(problems, "knowledge", n_groups=9, problems_per_group=2, max_uses=1, seed=0)
    subject = problems.set_index("id")["subject"]
    assert len(groups) == 3
    assert all(len({subject[problem] for problem in group.problem_ids}) == 2 for group in groups)
    few = problems.assign(subject=["Geometry"] * 5 + ["Precalculus"])
    groups = make_groups(few, "knowledge", n_groups=9, problems_per_group=2, max_uses=1, seed=0)
    assert len(groups) == 3  # where one subject is left, its problems meet each other


def neighbourhoods(n: int = 30, d: int = 16) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Two tasks in three neighbourhoods, and in each one pair of near-copies; (problems, vectors, neighbourhood)."""
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.normal(size=(d, 3)))[0].T
    place = np.arange(n) % 3
    vectors = centres[place] + 0.12 * rng.normal(size=(n, d))
    vectors[n // 2 : n // 2 + 3] = vectors[:3] + 0.001
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words = ["triangle altitude", "compound interest", "prime divisors"]
    rows = [
        (f"t/{k:03}", "gsm" if k < n // 2 else "math", f"Number {k} about {words[place[k]]}", None)
        for k in range(n)
    ]
    return table(rows), vectors.astype(np.float32), place


def test_neighborhoods_relate_problems_of_different_tasks_that_are_not_copies():
    problems, vectors, place = neighbourhoods(36)
    tagged = tag_neighborhoods(problems, vectors)
    where = dict(zip(problems["id"], place, strict=True))
    groups = make_groups(tagged, "knowledge", n_groups=40, problems_per_group=3, max_uses=4, seed=0)
    assert len(groups) >= 20
    together = sum(len({where[problem] for problem in group.problem_ids}) == 1 for group in groups)
    assert together >= 0.9 * len(groups)
    named = {"triangle altitude": 0, "compound interest": 1, "prime divisors": 2}
    for topic, some in tagged.dropna(subset="topic").groupby("topic"):
        inside = vectors[some.index] @ vectors[some.index].T
        assert np.triu(inside, 1).max() <= 0.9
        assert any(set(words.split()) & set(topic.split(", ")) for words in named)
    assert tagged["topic"].isna().sum() >= 3  # the copies
    shuffled = problems.sample(frac=1, random_state=1)
    again = tag_neighborhoods(shuffled, vectors[shuffled.index])
    assert again["topic"].sort_index().fillna("").tolist() == tagged["topic"].fillna("").tolist()


def test_many_groups_of_many_problems_take_seconds():
    """What took a sort of a whole pool for each group, or a look at all entities, would take an hour here."""
    rows = [
        (f"{task}/{n}", task, f"Question {n}", f"topic {n % 7_000}")
        for task in ("a", "b", "c")
        for n in range(10_000)
    ]
    groups = make_groups(table(rows), "knowledge", n_groups=20_000, problems_per_group=3, max_uses=3, seed=0)
    assert len(groups) > 8_000
    pool = [(f"{task}/{n}", task, f"Question {n}", "one topic") for task in ("a", "b", "c") for n in range(4_000)]
    assert (
        len(make_groups(table(pool), "knowledge", n_groups=20_000, problems_per_group=3, max_uses=8, seed=0))
        == 20_000
    )


# --- ablations


def written(folder, problems: pd.DataFrame, **changes):
    p = params(**{"n_groups": 8, "max_attempts": 1, **changes})
    problems, groups = plan_groups(problems, p)
    bill = write_groups(groups, QuotingTeacher(), p, folder, [], count_tokens)
    return *(tables.read(folder / f"{name}.parquet", name).to_pandas() for name in ("passages", "rejected")), bill


def test_a_rejected_passage_is_written_again_and_every_attempt_is_kept(tmp_path, monkeypatch):
    dull = "Read it, think, and answer; that is how each of these tasks is done, whatever it may be about today."
    around = QuotingTeacher._around

    def tired(self, group, draft):
        return (
            around(self, group, draft)
            if len(group.refused) == 2
            else replace(draft, enlightenment=dull, parts=(dull,))
        )

    monkeypatch.setattr(QuotingTeacher, "_around", tired)
    kept, rejected, bill = written(tmp_path, math_problems(), max_attempts=3)
    assert (len(kept), len(rejected)) == (8, 16)
    assert set(kept["attempt"]) == {3}
    assert Counter(rejected["attempt"]) == {1: 8, 2: 8}
    assert bill["rejected"] == {"enlightenment": 16}
    kept, rejected, _ = written(tmp_path, math_problems(), max_attempts=2)
    assert (len(kept), len(rejected)) == (0, 16)


# --- how good they are


def test_quality_counts_ranks_and_escapes(tmp_path):
    problems = math_problems()
    kept, rejected, _ = written(tmp_path, problems)
    rejected = kept.head(2).assign(
        reason=["gold answer: the answer is '4'", "length: 3 tokens"], checks=[["form"], ["form"]]
    )
    outcomes = quality.yield_by_reason(kept, rejected)
    assert outcomes["outcome"].tolist() == ["kept", "gold answer", "length"]
    assert outcomes["drafts"].tolist() == [8, 1, 1]
    assert outcomes["example"].tolist() == ["", "the answer is '4'", "3 tokens"]
    unanswered = rejected.assign(reason=["cost cap: not asked", "endpoint error 503: away: for now"])
    outcomes = quality.yield_by_reason(kept, unanswered)
    assert outcomes["example"].tolist() == ["", "not asked", "away: for now"]
    assert ["--from 03" in told for told in outcomes["helps"]] == [False, True, True]
    assert quality.yield_by_reason(kept, rejected.head(0))["outcome"].tolist() == ["kept"]
