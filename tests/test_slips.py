"""Minimal pairs: a slip of reasoning whose arithmetic is right, and which nothing but reasoning gives away."""

from __future__ import annotations

import re

import pytest

from trait_kit.engine.arithmetic import arithmetic_slips
from trait_kit.evaluation.slips import slip, slips
from trait_kit.tasks import load_problems

QUESTION = "Tom has 13 apples and buys 24 more. He gives 12 of them to each of his 2 friends. How many are left?"
SOLUTION = (
    "After buying, Tom has 13 + 24 = 37 apples. His friends get 12 * 2 = 24 apples together. "
    "So Tom has 37 - 24 = 13 apples left. The answer is 13."
)


def answer(text: str) -> str:
    return re.findall(r"\d+", text)[-1]


def test_a_slip_is_of_reasoning_and_never_of_arithmetic():
    found = slips(SOLUTION, QUESTION)
    assert len(set(found)) == len(found) > 4
    for text in found:
        assert text != SOLUTION and answer(text) != "13" and arithmetic_slips(text) == []
        assert re.sub(r"[-+*/]|\d+", "#", text) == re.sub(r"[-+*/]|\d+", "#", SOLUTION)  # the words stay


def test_what_follows_from_a_slip_is_computed_anew():
    (changed,) = [text for text in slips(SOLUTION, QUESTION) if "13 + 12 = 25" in text]
    assert "25 - 24 = 1 apples" in changed and changed.endswith("The answer is 1.")


def test_what_would_give_a_slip_away_is_avoided():
    found = slips(SOLUTION, QUESTION)
    for text in found:
        assert "apples left. The" in text and abs(len(answer(text)) - 2) <= 1
        changed = next(place for place, pair in enumerate(zip(text, SOLUTION, strict=False)) if pair[0] != pair[1])
        assert changed < 0.65 * len(SOLUTION)  # never the last step, which the right reasoning before it announces
    assert found[0] == slip(SOLUTION, QUESTION) == slip(SOLUTION, QUESTION)


def test_a_fraction_is_no_step():
    """'1/2 * 174': its 2 is no operand."""
    assert not any("1/1" in text or "1/3" in text for text in slips("He did 1/2 * 174 = 87 of the 3 pieces.", "1 of 3 is?"))


@pytest.mark.parametrize("text", ["2 * 3 = 6. 6 * 4 = 24. The answer is 24.", "It is seven.", ""])
def test_rows_of_numbers_and_plain_words_have_no_fair_slip(text):
    assert slip(text, "What is 2 * 3 * 4, and not 5?") is None


def test_word_problems_of_the_demo_have_slips_and_formulas_none():
    names = ["word_problems", "linear_equations", "greatest_common_divisor", "fraction_simplification"]
    problems = load_problems(names, "test", 60)
    problems["slip"] = [slip(row["solution"], row["question"]) for row in problems.to_dict("records")]
    share = problems["slip"].notna().groupby(problems["task"]).mean()
    assert share["word_problems"] > 0.15 and share.drop("word_problems").max() == 0
    for row in problems.dropna(subset="slip").to_dict("records"):
        assert answer(row["slip"]) != answer(row["solution"]) and arithmetic_slips(row["slip"]) == []
