"""Minimal pairs: a slip of reasoning whose arithmetic is right, and which nothing but reasoning gives away."""

from __future__ import annotations

import re

import pytest

from trait_kit.evaluation.slips import pair
from trait_kit.judging.numbers import arithmetic_slips
from trait_kit.tasks import load_problems

QUESTION = "Tom has 13 apples and buys 24 more. He gives 12 of them to each of his 2 friends. How many are left?"
SOLUTION = (
    "After buying, Tom has 13 + 24 = 37 apples. His friends get 12 * 2 = 24 apples together. "
    "So Tom has 37 - 24 = 13 apples left. The answer is 13."
)


def masked(text: str) -> str:
    return re.sub(r"[-+*/]|\d+(?:\.\d+)?", "#", text)


def test_a_slip_is_of_reasoning_and_never_of_arithmetic():
    found = {pair(SOLUTION, QUESTION, seed) for seed in range(20)}
    assert len(found) > 3
    for gold, slipped in found:
        assert SOLUTION.startswith(gold) and slipped != gold and arithmetic_slips(slipped) == []
        assert masked(slipped) == masked(gold) and len(slipped.split("= ")[-1]) == len("37")
    assert pair(SOLUTION, QUESTION, 3) == pair(SOLUTION, QUESTION, 3)


def test_a_wrong_operand_operation_and_order_are_slips():
    ends = {pair(SOLUTION, QUESTION, seed)[1].removeprefix("After buying, Tom has ") for seed in range(60)}
    assert {"13 + 12 = 25", "12 + 24 = 36", "24 + 24 = 48"} & ends and "13 * 24 = 312" not in ends
    order = {
        pair("Each of the four friends then gets 40 / 10 = 4 apples.", "40 for 10", seed) for seed in range(9)
    }
    assert order == {None}  # 10 / 40 is no whole number, 40 - 10 and the others have two digits


def test_a_fraction_is_no_step():
    """'1/2 * 174': its 2 is no operand."""
    assert pair("He did 1/2 * 174 = 87 of the 3 pieces that there were.", "1 of 3 is?") is None
    assert (
        pair("Together the four of them have 4 + 8 + 9 = 21 rolls.", "4, 8, 9") is None
    )  # nor is a part of a sum


@pytest.mark.parametrize("text", ["2 * 3 = 6. 6 * 4 = 24. The answer is 24.", "It is seven.", ""])
def test_rows_of_numbers_and_plain_words_have_no_fair_slip(text):
    assert pair(text, "What is 2 * 3 * 4, and not 5?") is None


def test_word_problems_of_the_demo_have_slips_and_formulas_none():
    names = ["word_problems", "linear_equations", "greatest_common_divisor", "fraction_simplification"]
    problems = load_problems(names, "test", 60)
    problems["pair"] = [pair(row["solution"], row["question"]) for row in problems.to_dict("records")]
    share = problems["pair"].notna().groupby(problems["task"]).mean()
    assert share["word_problems"] > 0.7 and share.drop("word_problems").max() == 0
    for gold, slipped in problems["pair"].dropna():
        assert arithmetic_slips(slipped) == [] and masked(slipped) == masked(gold)
