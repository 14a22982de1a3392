"""Everyday word problems: reasoning-gym's gsm_symbolic, its solutions put into one form and recomputed.

The generator prints wrong or rounded arithmetic for some numbers and some templates, so templates are chosen by hand and
math_problems recomputes every item again.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from random import Random

from trait_kit.generated_arithmetic import as_number, check_arithmetic, plain_operators, print_number
from trait_kit.task_drafts import GROUPS, INVERSE, PARTS, Draft, make_draft

# gsm_symbolic templates by the technique they need. Left out: templates whose question is garbled ("for 2 the amount
# of time"), that round, that are wrong (10 hours from 2 PM to 12 PM),
# that mix currencies, or whose solution cannot be recomputed line by line.
WORD_TEMPLATES: dict[str, tuple[int, ...]] = {
    GROUPS: (0, 3, 4, 7, 9, 12, 19, 20, 33, 38, 44, 47, 48, 57, 58, 59, 62, 63, 64, 67, 68, 71, 73, 81, 91, 95, 96, 99),
    INVERSE: (1, 5, 10, 13, 16, 23, 24, 30, 34, 39, 43, 45, 54, 56, 72, 78, 88),
    PARTS: (8, 22, 26, 28, 29, 40, 41, 42, 50, 55, 69, 74, 75, 76, 77, 80, 94),
}


def _template_splits() -> dict[int, tuple[str, str]]:
    """Template -> (topic, split). Splits are by template: a test of new numbers in a known story would test memory."""
    where = {}
    for topic, templates in WORD_TEMPLATES.items():
        ordered = sorted(templates, key=lambda number: hashlib.sha256(f"gsm_symbolic {number}".encode()).digest())
        for rank, number in enumerate(ordered):
            part = (rank + 0.5) / len(ordered)
            where[number] = (topic, "train" if part < 0.6 else "validation" if part < 0.75 else "test")
    return where


def word_problems(split: str, seed: int, skipped: Counter[str]) -> Iterator[Draft]:
    """Endless word problems of one split, not yet recomputed; every template once a turn."""
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import GSMSymbolicDataset, GSMSymbolicDatasetConfig

    generators = GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=seed, size=1)).generators
    where = {number: topic for number, (topic, part) in sorted(_template_splits().items()) if part == split}
    turn = 0
    while True:
        order = sorted(where)
        Random(f"{seed} {split} {turn}").shuffle(order)  # every template once a turn, so that no story dominates
        for number in order:
            item = generators[number](Random(f"{seed} {number} {turn}"), 1.0)
            draft = _word_problem(item, where[number], split)
            if isinstance(draft, str):
                skipped[draft] += 1
            else:
                yield draft
        turn += 1


def _word_problem(item: dict, topic: str, split: str) -> Draft | str:
    """The problem in the kit's form, or the reason why not."""
    value = as_number(item["answer"])
    answer = print_number(value) if value is not None else None
    if value is None or answer is None or (value * 100).denominator != 1:
        return "answer needs more than two decimals"
    question = tidy(item["question"])
    steps = tidy(item["metadata"]["answer_cot"].split("####")[0])
    report = check_arithmetic(steps, {"T": value} if "Let T be" in steps else None)
    if report.clean and report.last_value not in (value, value / 100):  # 25 percent is printed as 25% = 0.25
        return "last equation does not give the answer"
    printed = [as_number(number) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", steps)]
    near = [*reversed(printed), value + 1, value - 1, value * 2, value + 10, value + 5]
    wrong = [text for number in near if number and number > 1 and number != value and (text := print_number(number))]
    return make_draft(question, question, answer, steps, wrong, topic, split)


def tidy(text: str) -> str:
    """One form for the generator's prose: no bullets or headings, spaced operators, '23' for '23.0', full stops."""
    sentences = []
    for line in plain_operators(text).splitlines():
        line = re.sub(r"^\s*(?:\d+\.\s+|[•*-]\s+)", "", line).strip()
        if line and not line.endswith(":"):
            sentences.append((line[0].upper() + line[1:]) + ("" if line[-1] in ".?!" else "."))
    text = " ".join(sentences)
    text = re.sub(r"(\d)\.0+(?!\d)", r"\1", text)
    text = re.sub(r"\bhalf \*", "1/2 *", text)
    text = re.sub(r"(?<=[a-z]):(?=\d)", ": ", text)
    text = re.sub(r"\b(a)n (?=[bcdfgjklmnpqrstvwyz])", r"\1 ", text, flags=re.I)
    text = re.sub(r"\b(a) (?=[aeio])", r"\1n ", text, flags=re.I)
    text = re.sub(r"(?<=[\w%)])\s*([*+=])\s*(?=[\w($£€])", r" \1 ", text)
    text = re.sub(r"(?<=[\d)])-(?=[\d($£€])", " - ", text)
    text = re.sub(r"\b1 (minute|hour|day|week|egg|pan|dollar|ride|sticker|pad)s\b", r"1 \1", text)
    return re.sub(r"\s+", " ", text).strip()
