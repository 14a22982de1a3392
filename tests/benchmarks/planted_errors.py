"""Are planted errors found, and clean passages left alone? `python tests/benchmarks/planted_errors.py [--n 1000]`

Clean passages hold right paragraphs in many layouts: the gold solutions as the offline teacher writes them, and the same
steps as language models print them (LaTeX, bold type, units, boxed answers, a sentence after the answer, a rounded aside).
A planted error changes one thing in such a passage. Both go through `write_passages`; an error counts as found only where
the check that rejects it is one of those meant for it (FAULTS). Each passage is judged among others, none of them its own.

Problems: the kit's generated tasks, and GSM8K and MATH where ../shared/data has them.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd

from trait_kit import tables
from trait_kit.data.problems import load_problems
from trait_kit.params import PassageParams
from trait_kit.passages.drafts import Draft, Problem, problem_rows
from trait_kit.passages.grouping import COLUMN, Group, make_groups
from trait_kit.passages.related import tag_concepts
from trait_kit.passages.screening import screen_problems
from trait_kit.passages.teachers import OfflineTeacher
from trait_kit.passages.writing import write_passages
from trait_kit.teaching.ledger import Ledger

MATH = ["word_problems", "linear_equations", "greatest_common_divisor", "least_common_multiple", "fraction_simplification"]
ADS = [
    "query_rewriting",
    "query_ad_relevance",
    "query_landing_page_relevance",
    "title_generation",
    "title_rewriting",
    "description_generation",
    "ad_generation",
]
KINDS = {**dict.fromkeys(MATH, "math demo"), **dict.fromkeys(ADS, "travel ads"), "gsm8k": "GSM8K", "math": "MATH"}


@dataclass(frozen=True)
class Passage:
    """Problems and what was written about them; `fault` is '' where nothing was planted."""

    group: Group
    rows: tuple[Problem, ...]
    draft: Draft
    kind: str
    fault: str = ""
    change: str = ""  # what was planted, for a reader

    def changed(self, place: int, fault: str, change: str, paragraph: str = "", enlightenment: str = "") -> Passage:
        paragraphs = list(self.draft.paragraphs)
        paragraphs[place] = paragraph or paragraphs[place]
        draft = replace(self.draft, paragraphs=tuple(paragraphs), enlightenment=enlightenment or self.draft.enlightenment)
        return replace(self, draft=draft, kind=KINDS[self.rows[place].task], fault=fault, change=change)


# --- clean passages: paragraphs in the layouts of language models

_PRINTED = r"(?:(?:\\?\$|£|€)?\d[\d,]*(?:\.\d+)?(?:\\?%)?|\\[dt]?frac\{\d+\}\{\d+\})"
_OPERATOR = r"\s*(?:[-+*/×÷·−]|\\times|\\cdot|\\div|(?<=\d )x(?= \d))\s*"
_UNIT = r"(?: [a-z]+){0,2}"
_SUM = re.compile(rf"({_PRINTED}{_UNIT}(?:{_OPERATOR}{_PRINTED}{_UNIT})+)\s*=\s*({_PRINTED})")


def paragraph(row: Problem, seed: str) -> str:
    """The gold solution in one of many layouts, drawn by seed; a wrong `row.answer` is concluded from the right steps."""
    rng = Random(seed)
    steps = re.sub(r"\s*The answer is (?!.*The answer is).*$", "", row.solution or "", flags=re.DOTALL)
    if rng.random() < 0.25:
        return f"{steps} The answer is {row.answer.rstrip('.')}."
    steps = _told(_notated(_unboxed(steps), rng), rng)
    if KINDS[row.task] == "travel ads":
        return f"{steps} {_ending_in_words(row.answer, rng)}"
    if rng.random() < 0.3:
        steps += f" {_aside(rng)}"
    return f"{steps} {_ending(row, steps, rng)}"


def _unboxed(text: str) -> str:
    while (at := text.find("\\boxed{")) >= 0:
        depth, end = 1, at + 7
        while depth and end < len(text):
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        text = text[:at] + text[at + 7 : end - 1] + text[end:]
    return text


def _notated(steps: str, rng: Random) -> str:
    """Printed sums in one notation; text that is LaTeX already keeps its own."""
    if "\\" in steps:
        return steps
    form = rng.choice(("plain", "signs", "latex", "dollars", "bold", "tight", "commas"))

    def shown(match: re.Match[str]) -> str:
        text = match.group()
        if form in ("signs", "bold"):
            text = re.sub(r"(?<=[\da-z%]) ?\* ?(?=[\d$£])", " × ", text)
            text = re.sub(r"(?<=\d) ?/ ?(?=\d)", " ÷ ", text)
            return f"**{text}**" if form == "bold" else text
        if form == "latex" or (form == "dollars" and "$" not in steps):
            text = re.sub(r" ?\* ?", r" \\times ", text.replace("$", "\\$").replace("%", "\\%"))
            text = re.sub(r"(?<=\d) ?/ ?(?=\d)", r" \\div ", text)
            return f"\\({text}\\)" if form == "latex" else f"${text}$"
        if form == "tight":
            return re.sub(r" ?([-+*/=]) ?", r"\1", text)
        if form == "commas":
            return re.sub(r"(?<![\d.,])\d{4,}(?![\d.,]*\d)", lambda number: f"{int(number.group()):,}", text)
        return text

    return _SUM.sub(shown, steps)


_OPENERS = ("First, ", "Next, ", "So ", "Then ", "Now ", "Step {n}: ", "From the question, ", "Therefore ")


def _told(steps: str, rng: Random) -> str:
    sentences = re.split(r"(?<=[a-z.)]\.)\s+(?=[A-Z])", steps)
    for place, sentence in enumerate(sentences):
        if rng.random() < 0.35 and re.match(r"(?:The|He|She|They|In|If|We|It|There|Divide|Multiply|Write|This) ", sentence):
            opener = rng.choice(_OPENERS).format(n=place + 1)
            sentences[place] = opener + (sentence[0].lower() + sentence[1:] if opener[-2] != ":" else sentence)
    return rng.choice((" ", " ", "\n")).join(sentences)


def _aside(rng: Random) -> str:
    """A right sentence of arithmetic in one of the ways in which it is printed: rounded, in percent, chained, with units."""
    a, b, c = rng.randint(12, 400), rng.randint(3, 29), rng.randint(2, 9)
    return rng.choice(
        (
            f"For scale, {a} / {b} ≈ {a / b:.2f}.",
            f"For scale, {a} ÷ {b} = {a / b:.3f} (rounded).",
            f"As a share that is {c}/{b + c} ≈ {100 * c / (b + c):.1f}%.",
            f"Compare {10 * c}% of {a} = {_plain(Fraction(10 * c * a, 100))}.",
            f"Compare {10 * c}% × {a} = {_plain(Fraction(10 * c * a, 100))}.",
            f"A quick check: {a} + {b} + {c} = {a + b} + {c} = {a + b + c}.",
            f"A quick check: {a * b} = {a} × {b}, and {a * b} ÷ {b} = {a}.",
            f"Here {a} boxes × {b} pieces = {a * b} pieces would be too many.",
            f"At ${b} each, {c} pieces × ${b} per piece = ${b * c}.",
            f"Note that \\( \\frac{{{b}}}{{{c}}} \\cdot {c} = {b} \\).",
            f"Note that $({a} + {b}) \\times {c} = {(a + b) * c:,}$.",
            f"A rough guess is {a * 10:,} + {b * 100:,} = {a * 10 + b * 100:,}.",
            f"Since {a} - {a + b} = -{b}, the other order would not do.",
            f"Dividing, {a} / {b} = {a // b} remainder {a % b}.",
            f"In squares, {c}^2 = {c * c} and {c}² + {b} = {c * c + b}.",
        )
    )


_TAILS = (
    "This fits what the question asks for.",
    "This makes sense, because every step can be undone.",
    "We have used every number of the question.",
    "(Checking the steps once more gives the same.)",
)
_MARKED = (
    "The answer is {}.",
    "The answer is: {}",
    "**Answer:** {}",
    "**Answer: {}**",
    "**The answer is {}.**",
    "Therefore, the answer is **{}**.",
    "Thus the final answer is {}.",
    "Final answer: {}.",
    "\n#### {}",
)


def _ending(row: Problem, steps: str, rng: Random) -> str:
    answer, dollar = row.answer, "$" in row.question and "\\" not in row.question
    form = rng.choice(("marked", "marked", "marked", "boxed", "boxed", "plain", "tail"))
    if form == "boxed":
        box = f"\\boxed{{{answer}}}"
        return rng.choice((f"So the answer is ${box}$.", f"\\[{box}\\]", f"Hence ${box}$.", f"The answer is \\({box}\\)."))
    number = re.fullmatch(r"-?\d+(?:\.\d+)?(?:/\d+)?|-?\\[dt]?frac\{\d+\}\{\d+\}", answer)
    if form == "plain" and "answer" not in steps.lower() and number:
        shown = _shown(answer, dollar, rng)
        return rng.choice((f"So the result is {shown}.", f"Hence we get {shown}.", f"In total, that makes {shown}."))
    text = rng.choice(_MARKED).format(_shown(answer, dollar, rng))
    return f"{text.removesuffix('.')}. {rng.choice(_TAILS)}" if form == "tail" and "####" not in text else text


def _shown(answer: str, dollar: bool, rng: Random) -> str:
    """The same answer as others would print it."""
    forms = [answer, f"${answer}$", f"\\({answer}\\)"]
    if fraction := re.fullmatch(r"(-?)(\d+)/(\d+)|(-?)\\frac\{(\d+)\}\{(\d+)\}", answer):
        sign, top, bottom = fraction.group(1, 2, 3) if fraction[2] else fraction.group(4, 5, 6)
        forms += [
            f"{sign}{top}/{bottom}",
            f"${sign}\\frac{{{top}}}{{{bottom}}}$",
            f"\\({sign}\\dfrac{{{top}}}{{{bottom}}}\\)",
        ]
        forms += [f"{sign}{top} / {bottom}", f"${sign}\\frac{top}{bottom}$" if len(top + bottom) == 2 else answer]
    elif re.fullmatch(r"-?\d+(?:\.\d+)?", answer):
        value = Fraction(answer)
        forms += [answer, f"{answer} in all", f"{answer} units", f"x = {answer}", answer.replace("-", "−")]
        if value.denominator == 1:
            forms += [f"{int(value):,}", f"{int(value):,} pieces", f"{answer}.0" if abs(value) < 100 else answer]
        else:
            forms += [f"{answer}0", f"\\frac{{{value.numerator}}}{{{value.denominator}}}"]
        if dollar:
            forms += [f"${answer}", f"\\${answer}", f"${float(value):,.2f}", f"{answer} dollars", f"${answer} per month"]
    return rng.choice(forms)


def _ending_in_words(answer: str, rng: Random) -> str:
    if answer in ("relevant", "irrelevant") and rng.random() < 0.2:
        return rng.choice((f"So it is {answer}.", f"Hence this counts as **{answer}**.", f"That makes it {answer}."))
    shown = rng.choice((answer, answer, f'"{answer}"', f"“{answer}”", f"**{answer}**", f"'{answer}'", answer.rstrip(".")))
    text = rng.choice(_MARKED).format(shown)
    return f"{text.removesuffix('.')}. {rng.choice(_TAILS)}" if rng.random() < 0.2 and "####" not in text else text


def _plain(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


# --- clean passages: enlightenments

_SHARING = (
    "All of these problems build on {shared}, and once that is seen they become the same kind of work.",
    "The thread that runs through this set is {shared}.",
    "What unites the tasks above is {shared}; the surface differs, the thought does not.",
    "Each of these can be approached through {shared}.",
    "{shared} is the idea to take from this page.",
)
_ABOUT = (
    "In the {nth}, {facts}, which settles it: {answer}.",
    "The {nth} is the one where {facts}; the result there is {answer}.",
    "For the {nth}, notice that {facts}.",
    "Where {facts}, the same idea is used in another way, and it leads to {answer}.",
    "The {nth} hides it best, because there {facts}.",
)
_LEAVING = (
    "Seeing the common structure first saves work later.",
    "Keep the idea, and let the details of each question decide how it is applied.",
    "Once the pattern is familiar, the remaining steps are routine.",
    "So the lesson is to look for what stays the same before calculating.",
)
_NTH = ("first", "second", "third", "fourth")


def enlightenment(rows: Sequence[Problem], shared: str, seed: str, without: int | None = None) -> str:
    """A paragraph that speaks of each problem by its numbers, its words or a quotation; of all but `without`."""
    rng = Random(seed)
    parts = [rng.choice(_SHARING).format(shared=shared)]
    for place, row in enumerate(rows):
        others = " ".join(other.question for other in rows if other is not row).lower()
        short = row.answer if len(row.answer) <= 60 else row.answer[:60].rsplit(" ", 1)[0] + " ..."
        told = rng.choice(_ABOUT).format(nth=_NTH[place], facts=_facts(row, others, rng), answer=short)
        if place != without:
            parts.append(told)
    return " ".join([*parts, rng.choice(_LEAVING)])


_COMMON = frozenset(
    [
        "that",
        "which",
        "they",
        "there",
        "what",
        "have",
        "each",
        "with",
        "from",
        "this",
        "find",
        "value",
        "solve",
        "determine",
        "simplify",
        "between",
    ]
)


def _facts(row: Problem, others: str, rng: Random) -> str:
    """Up to three clauses on what is this question's own: a quotation, numbers, words, a step of the solution."""
    words = (row.question.partition(": ")[2] or row.question).split()  # what is said of ads stands after the instruction
    known = {*re.findall(r"[^\W\d_]+", others), *_COMMON}
    own = [
        word for word in dict.fromkeys(re.findall(r"(?<![\\\w])[^\W\d_]{4,}", " ".join(words))) if word.lower() not in known
    ]
    own = [word.removesuffix("s") if len(word) > 5 and rng.random() < 0.3 else word for word in own]
    numbers = [text for text in dict.fromkeys(re.findall(r"\d+(?:[.,]\d+)*", row.question))]
    new = [text for text in numbers if not re.search(rf"(?<!\d){re.escape(text)}(?!\d)", others)]
    spans = [" ".join(words[start : start + rng.randint(5, 7)]).strip(".,;:") for start in range(max(1, len(words) - 5))]
    telling = [span for span in spans if re.search(r"\d", span)] if numbers else spans
    forms = [f"it says '{rng.choice(telling or spans)}'"]
    if len(own) > 1:
        forms.append("{} and {} are what matters".format(*rng.sample(own, 2)))
    if new and len(numbers) > 1:
        forms.append("the numbers are {} and {}".format(*dict.fromkeys((new[0], *rng.sample(numbers, 2)))))
    if own and new:
        forms.append(f"{rng.choice(own)} goes with the number {rng.choice(new)}")
    if sums := [match.group() for match in _sums(row.solution or "")]:
        forms.append(f"the step to see is {rng.choice(sums)}")
    return " and ".join(rng.sample(forms, min(3, len(forms))))


# --- planted errors: each function changes one thing, or returns None where that passage does not offer it

Plant = Callable[["Passage", int, str, "Around", Random], "Passage | None"]


@dataclass(frozen=True)
class Around:
    """What a plant may draw from beside the passage itself."""

    clean: Sequence[Passage]
    tests: dict[str, list[Problem]]  # by kind


def _near_miss(text: str, rng: Random) -> str:
    """One printed number of a formula off by one or by ten, with two digits swapped, ten times too large; or a sign."""
    spans = [match.span() for match in re.finditer(r"\d+(?:\.\d+)?", text)]
    if not spans:
        return text
    start, end = rng.choice(spans)
    number = text[start:end]
    whole, dot, decimals = number.partition(".")
    made = [f"{int(whole) + 1}{dot}{decimals}", f"{abs(int(whole) - 1)}{dot}{decimals}", f"{whole}0{dot}{decimals}"]
    if len(whole) > 1:
        swap = rng.randrange(len(whole) - 1)
        made.append(whole[:swap] + whole[swap + 1] + whole[swap] + whole[swap + 2 :] + dot + decimals)
        made.append(f"{int(whole) + 10}{dot}{decimals}")
    if decimals:
        made.append(f"{whole}.{int(decimals) + 1:0{len(decimals)}}")
    if text == number and Fraction(text):
        return rng.choice([*made, f"-{text}"])
    return text[:start] + rng.choice([option for option in made if option != number]) + text[end:]


def _concluding(passage: Passage, place: int, fault: str, seed: str, wrong: str) -> Passage | None:
    row = passage.rows[place]
    if (
        not wrong
        or wrong.rstrip(".").casefold() == row.answer.rstrip(".").casefold()
        or _value(wrong) == _value(row.answer, 0)
    ):
        return None
    return passage.changed(
        place, fault, f"{row.answer} -> {wrong}", paragraph(row._replace(answer=wrong), f"{seed}/{place}")
    )


def answer_near(passage: Passage, place: int, seed: str, around: Around, rng: Random) -> Passage | None:
    row = passage.rows[place]
    if row.answer in ("relevant", "irrelevant"):
        wrong = rng.choice((f"not {row.answer}", f"partly {row.answer}"))
    elif KINDS[row.task] == "travel ads":
        words, others = row.answer.split(), re.findall(r"[A-Za-z]{4,}", row.question)
        words[rng.randrange(len(words))] = rng.choice(others)
        wrong = " ".join(words)
    else:
        wrong = _near_miss(row.answer, rng)
    return _concluding(passage, place, "answer: near miss", seed, wrong)


def answer_other(passage: Passage, place: int, seed: str, around: Around, rng: Random) -> Passage | None:
    """Another choice, or a number of the question or its solution."""
    row = passage.rows[place]
    numbers = re.findall(r"\d+(?:\.\d+)?", f"{row.question} {row.solution}")
    wrong = rng.choice([choice for choice in row.choices if choice != row.answer] if row.choices else numbers or [""])
    return _concluding(passage, place, "answer: another of the problem", seed, wrong)


def answer_unsimplified(passage: Passage, place: int, seed: str, around: Around, rng: Random) -> Passage | None:
    row = passage.rows[place]
    parts = re.fullmatch(r"(\d+)/(\d+)", row.answer)
    if row.task != "fraction_simplification" or not parts:
        return None
    factor = rng.choice((2, 3, 5))
    wrong = f"{int(parts[1]) * factor}/{int(parts[2]) * factor}"
    return passage.changed(
        place,
        "answer: not in lowest terms",
        f"{row.answer} -> {wrong}",
        paragraph(row._replace(answer=wrong), f"{seed}/{place}"),
    )


def _value(printed: str, default: Fraction | int | None = None) -> Fraction | int | None:
    """The value of a sum of printed numbers; units are words, per cent is a factor."""
    text = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"(\1/\2)", printed)
    for old, new in (("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"), ("×", "*"), ("·", "*"), ("÷", "/"), ("−", "-")):
        text = text.replace(old, new)
    text = re.sub(r"(?<=\d) x (?=\d)", " * ", text)
    text = re.sub(r"[a-z]{2,}|[\\$£€,]", "", text.replace("%", "*0.01"))
    if not re.fullmatch(r"[-\d.+*/() ]*\d[-\d.+*/() ]*", text):
        return default
    try:
        return eval(re.sub(r"\d+(?:\.\d+)?|\.\d+", r"Fraction('\g<0>')", text))
    except (SyntaxError, ZeroDivisionError, ValueError, TypeError):
        return default


def _holds(match: re.Match[str]) -> bool:
    left, right = _value(match[1]), _value(match[2])
    if left is None or right is None:
        return False
    decimals = len(match[2].rstrip("%\\").partition(".")[2])
    return left == right or (decimals > 0 and abs(left - right) <= Fraction(1, 2 * 10**decimals))


def _sums(text: str) -> Iterator[re.Match[str]]:
    """The equations between numbers that stand alone: not the end of a longer formula, nor its beginning."""
    for match in _SUM.finditer(text):
        before, after = text[: match.start()], text[match.end() :]
        longer = re.search(r"(?:[\w.,^_{}()]|[-+*/×÷·−^(]\s*|\\[a-z]+\s*|\b(?:of|times|half|by|and|plus)\s+)$", before)
        goes_on = re.match(
            r"[\w^_(!:]|\.\d|\s*(?:[-+*/×÷·−^]|\\(?![)\]$])|x |\.\.\.|…)|\s+(?:remainder|percent|and a)", after
        )
        if not (longer and not before.endswith("**")) and not (goes_on and not after.startswith("**")) and _holds(match):
            yield match


def slip_result(passage: Passage, place: int, seed: str, around: Around, rng: Random) -> Passage | None:
    return _slip(passage, place, "slip: result", rng, result=True)


def slip_operand(passage: Passage, place: int, seed: str, around: Around, rng: Random) -> Passage | None:
    return _slip(passage, place, "slip: operand", rng, result=False)


def _slip(passage: Passage, place: int, fault: str, rng: Random, result: bool) -> Passage | None:
    text = passage.draft.paragraphs[place]
    found = list(_sums(text))
    if not found:
        return None
    match = rng.choice(found)
    start, end = match.span(2 if result else 1)
    wrong = match.string[start:end]
    wrong = _near_miss(wrong.replace(",", ""), rng)
    sum_ = _SUM.fullmatch(f"{match[1]} = {wrong}" if result else f"{wrong} = {match[2]}")
    if wrong.startswith("-") or sum_ is None or _holds(sum_):
        return None
    if abs((_value(sum_[1]) or 0) - (_value(sum_[2]) or 0)) <= Fraction(1, 100):  # might be rounding
        return None
    changed = text[:start] + wrong + text[end:]
    return passage.changed(place, fault, f"{match.group()} -> {text[start:end]} is {wrong}", changed)


def swap(passage: Passage, place: int, seed: str, around: Around, rng: Random) -> Passage | None:
    """Two paragraphs change places; whether their answers are equal follows from the group."""
    other = (place + 1) % len(passage.rows)
    alike = [i for i, row in enumerate(passage.rows) if i != place and row.answer == passage.rows[place].answer]
    equal = passage.kind == "equal"
    if equal != bool(alike):
        return None
    other = alike[0] if alike else other
    paragraphs = list(passage.draft.paragraphs)
    moved = passage.changed(
        place, f"swap: {'equal' if equal else 'different'} answers", f"{place} <-> {other}", paragraphs[other]
    )
    return moved.changed(other, moved.fault, moved.change, paragraphs[place])


_GENERIC = (
    (
        "Each of these problems asks you to read carefully and to find the information that matters.",
        "Although they look different at first sight, all of these problems can be solved in the same spirit.",
        "Solving several problems side by side shows how one idea can serve many purposes.",
        "The problems above illustrate how far a clear plan can carry you.",
        "It is worth pausing to see what the solutions above have in common.",
    ),
    (
        "In every case we identify what is given, choose a method, and carry it out step by step.",
        "The key is to translate the words into operations and to keep track of the quantities involved.",
        "First understand the question, then decide which rule applies, and finally check the result.",
        "Every solution breaks a larger task into smaller steps that are easy to verify.",
        "The first problem introduces the idea, the second applies it, and the last one extends it.",
    ),
    (
        "With practice, this way of thinking becomes second nature and can be applied to many new situations.",
        "Recognising the pattern makes it much easier to approach similar questions with confidence.",
        "This shows the power of working systematically and of checking every step along the way.",
        "Keep this in mind, and even harder problems will become manageable.",
        "Mastering it will help you with a wide range of questions in the future.",
    ),
)


def generic(passage: Passage, place: int, seed: str, around: Around, rng: Random) -> Passage | None:
    text = " ".join(rng.choice(some) for some in _GENERIC)
    return passage.changed(place, "enlightenment: generic", text, enlightenment=text)


def generic_with_topic(passage: Passage, place: int, seed: str, around: Around, rng: Random) -> Passage | None:
    shared, tasks = passage.group.shared, " and the ".join(row.task.replace("_", " ") for row in passage.rows)
    naming = rng.choice(
        (
            f"What these problems share is {shared}.",
            f"The common thread is {shared}, which every one of them uses.",
            f"Understanding {shared} is what solves the {tasks} alike.",
        )
    )
    text = " ".join([naming, rng.choice(_GENERIC[1]), rng.choice(_GENERIC[2])])
    return passage.changed(place, "enlightenment: generic, topic named", text, enlightenment=text)


def anothers(passage: Passage, place: int, seed: str, around: Around, rng: Random) -> Passage | None:
    """Of a passage with the same topic where there is one, and with no problem in common."""
    own = set(passage.group.problem_ids)
    strange = [
        some
        for some in around.clean
        if not own & set(some.group.problem_ids) and some.group.grouping == passage.group.grouping
    ]
    near = [some for some in strange if some.group.shared == passage.group.shared]
    if not strange:
        return None
    other = rng.choice(near or strange)
    text = other.draft.enlightenment
    return passage.changed(place, "enlightenment: another passage's", f"of {other.group.id}: {text}", enlightenment=text)


def one_left_out(passage: Passage, place: int, seed: str, around: Around, rng: Random) -> Passage | None:
    text = enlightenment(passage.rows, passage.group.shared, seed, without=place)
    return passage.changed(place, "enlightenment: one problem left out", f"{place}: {text}", enlightenment=text)


def _test_item(form: str, alter: Callable[[str, Random], str]) -> Plant:
    def plant(passage: Passage, place: int, seed: str, around: Around, rng: Random) -> Passage | None:
        kind = KINDS[passage.rows[place].task]
        own = [row for row in around.tests[kind] if row.task == passage.rows[place].task]
        row = rng.choice(own or around.tests[kind])
        question = alter(row.question, rng)
        if question == row.question and form != "verbatim":
            return None
        leaked = row._replace(id=f"{row.id}#{seed}", question=question, split="train")
        rows = (*passage.rows[:place], leaked, *passage.rows[place + 1 :])
        group = replace(passage.group, problem_ids=tuple(row.id for row in rows))
        told = enlightenment(rows, group.shared, seed)
        passage = replace(passage, rows=rows, group=group)
        return passage.changed(place, f"test item: {form}", question, paragraph(row, f"{seed}/{place}"), told)

    return plant


def _respelled(question: str, rng: Random) -> str:
    return rng.choice(
        (
            question.upper(),
            question.lower(),
            re.sub(r"[?.,:;]+(?=\s|$)", "", question),
            "  ".join(question.split(" ")),
            question.replace(" ", "\u00a0", 3).replace("'", "’").replace("-", "−"),
            re.sub(r"([.?!]) ", r"\1\n", question),
            question.title(),
        )
    )


def _numbers_respelled(question: str, rng: Random) -> str:
    question = re.sub(r"(?<![\d.,])\d{4,}(?![\d.,]*\d)", lambda number: f"{int(number.group()):,}", question)
    return (
        re.sub(r"(?<=\d),(?=\d{3}\b)", "", question) if rng.random() < 0.5 else question.replace("*", "×").replace("-", "–")
    )


def _with_a_sentence(question: str, rng: Random) -> str:
    added = rng.choice(
        ("Explain your reasoning.", "Take your time with this one.", "A friend asks you for help.", "Show each step.")
    )
    sentences = re.split(r"(?<=[a-z]{2}[.?!])\s+(?=[A-Z])", question)
    sentences.insert(rng.randint(0, len(sentences)), added)
    return " ".join(sentences)


def _reworded(question: str, rng: Random) -> str:
    """Other words around the same numbers: the opening of a short question, one word in ten of a long one."""
    words = question.split()
    if len(words) < 20:
        return re.sub(r"^\S+(?: \S+)?", rng.choice(("Determine", "Work out", "Please give")), question)
    for place in range(rng.randrange(10), len(words), 10):
        words[place] = words[place] if re.search(r"\d", words[place]) else rng.choice(("then", "also", "this", "those"))
    return " ".join(words)


_WRONG, _SWAPPED, _DULL = ("gold answer",), ("gold answer", "own problem"), ("enlightenment", "boilerplate")
FAULTS: dict[str, tuple[tuple[str, ...], Plant]] = {  # error -> (checks meant for it, how it is planted)
    "answer: near miss": (_WRONG, answer_near),
    "answer: another of the problem": (_WRONG, answer_other),
    "answer: not in lowest terms": (_WRONG, answer_unsimplified),
    "slip: result": (("arithmetic",), slip_result),
    "slip: operand": (("arithmetic",), slip_operand),
    "swap: different answers": (_SWAPPED, swap),
    "swap: equal answers": (_SWAPPED, swap),
    "enlightenment: generic": (_DULL, generic),
    "enlightenment: generic, topic named": (_DULL, generic_with_topic),
    "enlightenment: another passage's": (_DULL, anothers),
    "enlightenment: one problem left out": (_DULL, one_left_out),
    "test item: verbatim": (("contamination",), _test_item("verbatim", lambda question, rng: question)),
    "test item: other spelling": (("contamination",), _test_item("other spelling", _respelled)),
    "test item: numbers respelled": (("contamination",), _test_item("numbers respelled", _numbers_respelled)),
    "test item: a sentence added": (("contamination",), _test_item("a sentence added", _with_a_sentence)),
}


# --- making, judging, reporting


def passages(problems: pd.DataFrame, grouping: str, n: int, seed: int) -> Iterator[Passage]:
    """Clean passages of groups that the kit makes, a quarter of them just as the offline teacher writes them."""
    by_id = problem_rows(problems)
    for group in make_groups(problems, grouping, n_groups=n, problems_per_group=3, max_uses=2, seed=seed):
        yield _clean(group, tuple(by_id[problem] for problem in group.problem_ids), "")


def with_equal_answers(problems: pd.DataFrame, grouping: str, n: int, seed: int) -> Iterator[Passage]:
    """Clean passages in which two problems have the same answer: of different tasks where there are such."""
    rng, pools = Random(f"equal/{seed}"), defaultdict(list)
    for row in problem_rows(problems).values():
        pools[getattr(row, COLUMN[grouping])].append(row)
    made = []
    for shared, rows in sorted((shared, rows) for shared, rows in pools.items() if isinstance(shared, str)):
        rng.shuffle(rows)
        for place, row in enumerate(rows):
            same = [other for other in rows[:place] if other.answer == row.answer]
            third = [other for other in rows if other.answer != row.answer]
            if same and third:
                same.sort(key=lambda other: other.task == row.task)
                chosen = [row, same[0], rng.choice(third)]
                rng.shuffle(chosen)
                made.append(_clean(Group.of([one.id for one in chosen], grouping, shared), tuple(chosen), "equal"))
    rng.shuffle(made)
    yield from made[:n]


def _clean(group: Group, rows: tuple[Problem, ...], kind: str) -> Passage:
    draft = OfflineTeacher(0).write(group, rows, Ledger(None))
    assert isinstance(draft, Draft)
    if Random(group.id).random() < 0.75:
        told = enlightenment(rows, group.shared, group.id)
        written = tuple(paragraph(row, f"{group.id}/{place}") for place, row in enumerate(rows))
        draft = replace(draft, paragraphs=written, enlightenment=told)
    return Passage(group, rows, draft, kind)


def plant_all(sources: Sequence[Passage], around: Around, per_cell: int, seed: int) -> list[Passage]:
    """Up to `per_cell` errors for each kind of task and of error; each from a passage of its own as long as there are."""
    rng = Random(f"plant/{seed}")
    planted: list[Passage] = []
    for fault, (_, plant) in FAULTS.items():
        counts: Counter[str] = Counter()
        for passage in rng.sample(sources, len(sources)):
            places = rng.sample(range(len(passage.rows)), len(passage.rows))
            place = min(places, key=lambda place: counts[KINDS[passage.rows[place].task]])
            if counts[KINDS[passage.rows[place].task]] >= per_cell:
                continue
            made = plant(passage, place, passage.group.id, around, rng)
            if made and made.fault == fault:
                counts[KINDS[passage.rows[place].task]] += 1
                planted.append(made)
    return planted


class Written:
    """A teacher that hands back what was written before."""

    name, concurrency, can_mend = "written before", 1, frozenset()

    def __init__(self, drafts: dict[str, Draft]) -> None:
        self.drafts = drafts

    def write(self, group: Group, rows: Sequence[Problem], ledger: Ledger, refused: object = None) -> Draft:
        return self.drafts[group.id]


def judge(some: Sequence[Passage], test_questions: Sequence[str], before: Sequence[Passage] = ()) -> list[str]:
    """For each passage '' or the reason of its rejection, when it comes after those in `before` and all earlier ones."""
    stream = [replace(passage, group=replace(passage.group, id=f"{n:06}")) for n, passage in enumerate([*before, *some])]
    rows = {row.id: row for passage in stream for row in passage.rows}
    required = {"run_dir": "r", "in_domain": "d", "web": "w", "tasks": ["a"], "base_model": "m", "grouping": "knowledge"}
    sizes = {"problems_per_task": 1, "test_items_per_task": 1, "n_groups": 1, "max_passage_tokens": 8_000}
    with tempfile.TemporaryDirectory() as folder:
        write_passages(
            [passage.group for passage in stream],
            pd.DataFrame(list(rows.values()), columns=Problem._fields),
            Written({passage.group.id: passage.draft for passage in stream}),  # type: ignore[arg-type]
            Ledger(None),
            folder=Path(folder),
            test_questions=test_questions,
            count_tokens=lambda texts: np.array([len(text.split()) for text in texts]),
            params=PassageParams(**required, **sizes, min_passage_tokens=20),
        )
        rejected = tables.read(Path(folder) / "rejected.parquet", "rejected").to_pylist()
    reasons = {row["id"]: row["reason"] for row in rejected}
    return [reasons.get(passage.group.id, "") for passage in stream[len(before) :]]


@dataclass(frozen=True)
class Outcome:
    """What came out: for each passage its reason of rejection."""

    clean: list[tuple[Passage, str]]
    planted: list[tuple[Passage, str]]

    @property
    def false_alarms(self) -> list[tuple[Passage, str]]:
        return [(passage, reason) for passage, reason in self.clean if reason]

    @property
    def missed(self) -> list[tuple[Passage, str]]:
        return [(some, reason) for some, reason in self.planted if reason.partition(":")[0] not in FAULTS[some.fault][0]]

    def table(self) -> pd.DataFrame:
        """One row for each kind of task and of error: planted, found, and how many each check found."""
        rows: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for passage, reason in self.planted:
            check = reason.partition(":")[0]
            found = check in FAULTS[passage.fault][0]
            rows[passage.kind, passage.fault] += Counter(planted=1, found=int(found))
            rows[passage.kind, passage.fault][check if found else f"({check or 'kept'})"] += 1
        told = []
        for (kind, fault), counts in rows.items():
            by = ", ".join(f"{check} {n}" for check, n in counts.items() if check not in ("planted", "found"))
            told.append((kind, fault, counts["planted"], counts["found"], by))
        return pd.DataFrame(told, columns=["tasks", "error", "planted", "found", "by"])


def run(sets: Sequence[tuple[pd.DataFrame, pd.DataFrame, str]], n: int, seed: int = 0) -> Outcome:
    """Plant about `n` errors; `sets` are (train problems, test problems, grouping)."""
    per_cell = max(2, n // (len(FAULTS) * len({KINDS[task] for train, _, _ in sets for task in train["task"]})))
    clean: list[Passage] = []
    tests: dict[str, list[Problem]] = defaultdict(list)
    for train, test, grouping in sets:
        kinds = len({KINDS[task] for task in train["task"]})
        clean += passages(train, grouping, per_cell * len(FAULTS) * kinds, seed)
        clean += with_equal_answers(train, grouping, 2 * per_cell * kinds, seed)
        for row in problem_rows(test).values():
            tests[KINDS[row.task]].append(row)
    questions = [row.question for rows in tests.values() for row in rows]
    before = clean[::4]
    sources = [passage for place, passage in enumerate(clean) if place % 4]
    planted = plant_all(sources, Around(before, tests), per_cell, seed)
    reasons = judge(planted, questions, before)
    return Outcome(list(zip(clean, judge(clean, questions), strict=True)), list(zip(planted, reasons, strict=True)))


def demo_sets(per_task: int) -> Iterator[tuple[pd.DataFrame, pd.DataFrame, str]]:
    for tasks, grouping in ((MATH, "knowledge"), (ADS, "entity")):
        test = load_problems(tasks, "test", per_task)
        yield screen_problems(load_problems(tasks, "train", per_task), test["question"].tolist())[0], test, grouping


def benchmark_set(per_task: int) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from local_tasks import local_task

    with tempfile.TemporaryDirectory() as folder:
        files = [local_task(Path(folder), name) for name in ("gsm8k", "math")]
        test = load_problems(files, "test", 9_999)
        train, _ = screen_problems(load_problems(files, "train", per_task), test["question"].tolist())
    return tag_concepts(train), test, "knowledge"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000, help="errors to plant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every miss and every false alarm")
    options = parser.parse_args()
    sets = list(demo_sets(options.n))
    if (Path(__file__).resolve().parents[3] / "shared" / "data").is_dir():
        sets.append(benchmark_set(2 * options.n))
    outcome = run(sets, options.n, options.seed)
    print(outcome.table().to_string(index=False))
    found, planted = len(outcome.planted) - len(outcome.missed), len(outcome.planted)
    print(f"\nfound {found} of {planted} ({found / planted:.1%})")
    alarms = Counter((KINDS[passage.rows[0].task], reason.partition(":")[0]) for passage, reason in outcome.false_alarms)
    print(
        f"false alarms: {len(outcome.false_alarms)} of {len(outcome.clean)} ({len(outcome.false_alarms) / len(outcome.clean):.2%})"
    )
    for (kind, check), count in sorted(alarms.items()):
        print(f"  {kind}, {check}: {count}")
    if options.show:
        for passage, reason in outcome.missed:
            print(f"\nMISSED {passage.kind}, {passage.fault} ({reason or 'kept'})\n  {passage.change}")
        for passage, reason in outcome.false_alarms:
            print(f"\nFALSE ALARM {reason}\n  " + "\n  ".join([*passage.draft.paragraphs, passage.draft.enlightenment]))


if __name__ == "__main__":
    main()
