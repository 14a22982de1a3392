"""Are planted errors found, and clean passages left alone? `python tests/benchmarks/planted_errors.py [--n 1000]`

Clean passages hold right paragraphs in many layouts: the gold solutions as they are joined, and the same
steps as language models print them (LaTeX, bold type, units, boxed answers, a sentence after the answer, a rounded aside).
A planted error changes one thing in such a passage. Both go through `write_groups`; an error counts as found only where
the check that rejects it is one of those meant for it (FAULTS). Each passage is judged among others, none of them its own.

Problems: the kit's generated tasks, and GSM8K and MATH where the folder TRAIT_KIT_TEST_DATA has them.
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
from functools import partial
from pathlib import Path
from random import Random

if (
    __name__ == "__main__"
):  # as under pytest; a script's own folder would hide packages (coverage) behind its neighbours
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import pandas as pd
from benchmarks.clean_passages import ADS, KINDS, MATH, SUM, enlightenment, holds, paragraph, sums, value
from local_tasks import LOCAL, local_task
from passage_problems import make_groups, params

from trait_kit import tables
from trait_kit.engine.files import digest
from trait_kit.params import PassageParams
from trait_kit.passages.grouping import COLUMN, tag_concepts
from trait_kit.passages.material import Draft, Group, Problem, problem_rows
from trait_kit.passages.quality import screen_problems
from trait_kit.passages.teachers import Teacher
from trait_kit.passages.writing import write_groups
from trait_kit.tasks import load_problems

JOINING = Teacher(params(teacher="none"))


@dataclass(frozen=True)
class Passage:
    """Problems and what was written about them; `fault` is '' where nothing was planted."""

    group: Group
    draft: Draft
    kind: str
    fault: str = ""
    change: str = ""  # what was planted, for a reader

    @property
    def rows(self) -> Sequence[Problem]:
        return self.group.rows

    def changed(
        self, place: int, fault: str, change: str, paragraph: str = "", enlightenment: str = ""
    ) -> Passage:
        paragraphs = list(self.draft.paragraphs)
        paragraphs[place] = paragraph or paragraphs[place]
        draft = replace(
            self.draft, paragraphs=tuple(paragraphs), enlightenment=enlightenment or self.draft.enlightenment
        )
        return replace(self, draft=draft, kind=KINDS[self.rows[place].task], fault=fault, change=change)


# --- planted errors: each function changes one thing, or returns None where that passage does not offer it

Plant = Callable[["Passage", int, "Around", Random], "Passage | None"]


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
    made = [
        f"{int(whole) + 1}{dot}{decimals}",
        f"{abs(int(whole) - 1)}{dot}{decimals}",
        f"{whole}0{dot}{decimals}",
    ]
    if len(whole) > 1:
        swap = rng.randrange(len(whole) - 1)
        made.append(whole[:swap] + whole[swap + 1] + whole[swap] + whole[swap + 2 :] + dot + decimals)
        made.append(f"{int(whole) + 10}{dot}{decimals}")
    if decimals:
        made.append(f"{whole}.{int(decimals) + 1:0{len(decimals)}}")
    if text == number and Fraction(text):
        return rng.choice([*made, f"-{text}"])
    return text[:start] + rng.choice([option for option in made if option != number]) + text[end:]


def _concluding(passage: Passage, place: int, fault: str, wrong: str) -> Passage | None:
    row = passage.rows[place]
    same = wrong.rstrip(".").casefold() == row.answer.rstrip(".").casefold() or value(wrong) == value(
        row.answer, 0
    )
    if not wrong or (same and "lowest" not in fault):
        return None
    written = paragraph(row._replace(answer=wrong), f"{passage.group.id}/{place}")
    return passage.changed(place, fault, f"{row.answer} -> {wrong}", written)


def answer_near(passage: Passage, place: int, around: Around, rng: Random) -> Passage | None:
    row = passage.rows[place]
    if row.answer in ("relevant", "irrelevant"):
        wrong = rng.choice((f"not {row.answer}", f"partly {row.answer}"))
    elif KINDS[row.task] == "travel ads":
        words, others = row.answer.split(), re.findall(r"[A-Za-z]{4,}", row.question)
        words[rng.randrange(len(words))] = rng.choice(others)
        wrong = " ".join(words)
    else:
        wrong = _near_miss(row.answer, rng)
    return _concluding(passage, place, "answer: near miss", wrong)


def answer_other(passage: Passage, place: int, around: Around, rng: Random) -> Passage | None:
    """Another choice, or a number of the question or its solution."""
    row = passage.rows[place]
    numbers = re.findall(r"\d+(?:\.\d+)?", f"{row.question} {row.solution}")
    wrong = rng.choice(
        [choice for choice in row.choices if choice != row.answer] if row.choices else numbers or [""]
    )
    return _concluding(passage, place, "answer: another of the problem", wrong)


def answer_unsimplified(passage: Passage, place: int, around: Around, rng: Random) -> Passage | None:
    row = passage.rows[place]
    parts = re.fullmatch(r"(\d+)/(\d+)", row.answer)
    if row.task != "fraction_simplification" or not parts:
        return None
    factor = rng.choice((2, 3, 5))
    wrong = f"{int(parts[1]) * factor}/{int(parts[2]) * factor}"
    return _concluding(passage, place, "answer: not in lowest terms", wrong)


def slip(passage: Passage, place: int, around: Around, rng: Random, *, result: bool) -> Passage | None:
    """One printed sum that was right: its result changed, or one of its numbers; the final answer stays."""
    text = passage.draft.paragraphs[place]
    found = list(sums(text))
    if not found:
        return None
    match = rng.choice(found)
    start, end = match.span(2 if result else 1)
    wrong = _near_miss(text[start:end].replace(",", ""), rng)
    printed = SUM.fullmatch(f"{match[1]} = {wrong}" if result else f"{wrong} = {match[2]}")
    if wrong.startswith("-") or printed is None or holds(printed):
        return None
    if abs((value(printed[1]) or 0) - (value(printed[2]) or 0)) <= Fraction(1, 100):  # might be rounding
        return None
    changed = text[:start] + wrong + text[end:]
    fault = "slip: result" if result else "slip: operand"
    return passage.changed(place, fault, f"{match.group()} -> {text[start:end]} is {wrong}", changed)


def swap(passage: Passage, place: int, around: Around, rng: Random) -> Passage | None:
    """Two paragraphs change places; whether their answers are equal follows from the group."""
    alike = [i for i, row in enumerate(passage.rows) if i != place and row.answer == passage.rows[place].answer]
    equal = passage.kind == "equal"
    if equal != bool(alike):
        return None
    other = alike[0] if alike else (place + 1) % len(passage.rows)
    paragraphs = list(passage.draft.paragraphs)
    fault = f"swap: {'equal' if equal else 'different'} answers"
    moved = passage.changed(place, fault, f"{place} <-> {other}", paragraphs[other])
    return moved.changed(other, moved.fault, moved.change, paragraphs[place])


_GENERIC_TEXT = """
Each of these problems asks you to read carefully and to find the information that matters.
Although they look different at first sight, all of these problems can be solved in the same spirit.
Solving several problems side by side shows how one idea can serve many purposes.
The problems above illustrate how far a clear plan can carry you.
It is worth pausing to see what the solutions above have in common.

In every case we identify what is given, choose a method, and carry it out step by step.
The key is to translate the words into operations and to keep track of the quantities involved.
First understand the question, then decide which rule applies, and finally check the result.
Every solution breaks a larger task into smaller steps that are easy to verify.
The first problem introduces the idea, the second applies it, and the last one extends it.

With practice, this way of thinking becomes second nature and can be applied to many new situations.
Recognising the pattern makes it much easier to approach similar questions with confidence.
This shows the power of working systematically and of checking every step along the way.
Keep this in mind, and even harder problems will become manageable.
Mastering it will help you with a wide range of questions in the future.
"""
_GENERIC = [part.splitlines() for part in _GENERIC_TEXT.strip().split("\n\n")]


def generic(passage: Passage, place: int, around: Around, rng: Random) -> Passage | None:
    text = " ".join(rng.choice(some) for some in _GENERIC)
    return passage.changed(place, "enlightenment: generic", text, enlightenment=text)


def generic_with_topic(passage: Passage, place: int, around: Around, rng: Random) -> Passage | None:
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


def anothers(passage: Passage, place: int, around: Around, rng: Random) -> Passage | None:
    """Of a passage with the same topic where there is one, and with no problem in common."""
    own = set(passage.group.problem_ids)
    alike = [some for some in around.clean if some.group.grouping == passage.group.grouping]
    strange = [some for some in alike if not own & set(some.group.problem_ids)]
    near = [some for some in strange if some.group.shared == passage.group.shared]
    if not strange:
        return None
    other = rng.choice(near or strange)
    text = other.draft.enlightenment
    return passage.changed(
        place, "enlightenment: another passage's", f"of {other.group.id}: {text}", enlightenment=text
    )


def one_left_out(passage: Passage, place: int, around: Around, rng: Random) -> Passage | None:
    text = enlightenment(passage.rows, passage.group.shared, passage.group.id, without=place)
    return passage.changed(place, "enlightenment: one problem left out", f"{place}: {text}", enlightenment=text)


def _test_item(form: str, alter: Callable[[str, Random], str]) -> Plant:
    def plant(passage: Passage, place: int, around: Around, rng: Random) -> Passage | None:
        kind = KINDS[passage.rows[place].task]
        own = [row for row in around.tests[kind] if row.task == passage.rows[place].task]
        row = rng.choice(own or around.tests[kind])
        question = alter(row.question, rng)
        if question == row.question and form != "verbatim":
            return None
        leaked = row._replace(id=f"{row.id}#{passage.group.id}", question=question, split="train")
        rows = (*passage.rows[:place], leaked, *passage.rows[place + 1 :])
        group = replace(passage.group, rows=rows)
        told = enlightenment(rows, group.shared, passage.group.id)
        written = paragraph(row, f"{passage.group.id}/{place}")
        return replace(passage, group=group).changed(place, f"test item: {form}", question, written, told)

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
    if rng.random() < 0.5:
        return re.sub(r"(?<=\d),(?=\d{3}\b)", "", question).replace("*", "×").replace("-", "–")
    return re.sub(r"(?<![\d.,])\d{4,}(?![\d.,]*\d)", lambda number: f"{int(number.group()):,}", question)


def _with_a_sentence(question: str, rng: Random) -> str:
    added = rng.choice(
        (
            "Explain your reasoning.",
            "Take your time with this one.",
            "A friend asks you for help.",
            "Show each step.",
        )
    )
    sentences = re.split(r"(?<=[a-z]{2}[.?!])\s+(?=[A-Z])", question)
    sentences.insert(rng.randint(0, len(sentences)), added)
    return " ".join(sentences)


_WRONG, _SWAPPED, _DULL = ("gold answer",), ("gold answer", "own problem"), ("enlightenment", "boilerplate")
FAULTS: dict[str, tuple[tuple[str, ...], Plant]] = {  # error -> (checks meant for it, how it is planted)
    "answer: near miss": (_WRONG, answer_near),
    "answer: another of the problem": (_WRONG, answer_other),
    "answer: not in lowest terms": (_WRONG, answer_unsimplified),
    "slip: result": (("arithmetic",), partial(slip, result=True)),
    "slip: operand": (("arithmetic",), partial(slip, result=False)),
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
    """Clean passages of groups that the kit makes, a quarter of them just as they are joined."""
    for group in make_groups(problems, grouping, n_groups=n, problems_per_group=3, max_uses=2, seed=seed):
        yield _clean(group, "")


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
                names = [one.id for one in chosen]
                group = Group(f"p-{digest([grouping, shared, names])[:16]}", tuple(chosen), grouping, shared)
                made.append(_clean(group, "equal"))
    rng.shuffle(made)
    yield from made[:n]


def _clean(group: Group, kind: str) -> Passage:
    (draft,) = JOINING.write([group])
    assert not draft.fault
    draft = replace(draft, enlightenment=enlightenment(group.rows, group.shared, group.id))
    if Random(group.id).random() < 0.75:
        written = tuple(paragraph(row, f"{group.id}/{place}") for place, row in enumerate(group.rows))
        draft = replace(draft, paragraphs=written)
    return Passage(group, draft, kind)


def plant_all(sources: Sequence[Passage], around: Around, per_cell: int, seed: int) -> list[Passage]:
    """Up to `per_cell` errors for each kind of task and of error, each in another passage."""
    rng = Random(f"plant/{seed}")
    planted: list[Passage] = []
    for fault, (_, plant) in FAULTS.items():
        counts: Counter[str] = Counter()
        for passage in rng.sample(sources, len(sources)):
            places = rng.sample(range(len(passage.rows)), len(passage.rows))
            place = min(places, key=lambda place: counts[KINDS[passage.rows[place].task]])
            if counts[KINDS[passage.rows[place].task]] >= per_cell:
                continue
            made = plant(passage, place, around, rng)
            if made and made.fault == fault:
                counts[KINDS[passage.rows[place].task]] += 1
                planted.append(made)
    return planted


class Written:
    """A teacher that hands back what was written before."""

    name, can_mend, refusals = "written before", frozenset(), {}

    def __init__(self, drafts: dict[str, Draft]) -> None:
        self.drafts = drafts

    def write(self, groups: Sequence[Group]) -> list[Draft]:
        return [self.drafts[group.id] for group in groups]


def judge(some: Sequence[Passage], test_questions: Sequence[str], before: Sequence[Passage] = ()) -> list[str]:
    """For each passage '' or the reason of its rejection, when it comes after those in `before` and all earlier ones."""
    stream = [
        replace(passage, group=replace(passage.group, id=f"{n:06}")) for n, passage in enumerate([*before, *some])
    ]
    required = {"in_domain": "d", "web": "w", "tasks": ["a"], "base_model": "m", "grouping": "topic"}
    sizes = {"problems_per_task": 1, "test_items_per_task": 1, "n_groups": 1, "max_passage_tokens": 8_000}
    with tempfile.TemporaryDirectory() as folder:
        write_groups(
            [passage.group for passage in stream],
            Written({passage.group.id: passage.draft for passage in stream}),  # type: ignore[arg-type]
            PassageParams(**required, **sizes),
            Path(folder),
            test_questions,
            lambda texts: np.array([len(text) // 4 for text in texts]),
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
        """Clean passages that were rejected, but for phrases: those that these were made of do recur."""
        return [
            (some, reason) for some, reason in self.clean if reason and not reason.startswith("recurring clause")
        ]

    @property
    def missed(self) -> list[tuple[Passage, str]]:
        return [
            (some, reason)
            for some, reason in self.planted
            if reason.partition(":")[0] not in FAULTS[some.fault][0]
        ]

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
    for _, test, _ in sets:
        for row in problem_rows(test).values():
            tests[KINDS[row.task]].append(row)
    questions = [row.question for rows in tests.values() for row in rows]
    for train, _, grouping in sets:
        train, _ = screen_problems(train, questions)
        kinds = len({KINDS[task] for task in train["task"]})
        clean += passages(train, grouping, per_cell * len(FAULTS) * kinds, seed)
        clean += with_equal_answers(train, grouping, 2 * per_cell * kinds, seed)
    clean = list({frozenset(passage.group.problem_ids): passage for passage in clean}.values())
    before = clean[::4]
    sources = [passage for place, passage in enumerate(clean) if place % 4]
    planted = plant_all(sources, Around(before, tests), per_cell, seed)
    reasons = judge(planted, questions, before)
    return Outcome(
        list(zip(clean, judge(clean, questions), strict=True)), list(zip(planted, reasons, strict=True))
    )


def demo_sets(per_task: int) -> Iterator[tuple[pd.DataFrame, pd.DataFrame, str]]:
    for tasks, grouping in ((MATH, "knowledge"), (ADS, "entity")):
        train, test = (_solved(load_problems(tasks, split, per_task)) for split in ("train", "test"))
        yield train, test, grouping


def _solved(problems: pd.DataFrame) -> pd.DataFrame:
    """The problems; those without a worked solution with a sentence that could be one."""
    told = (
        "What counts is "
        + problems["question"].str[-90:]
        + ". The answer is "
        + problems["answer"].str.rstrip(".")
        + "."
    )
    return problems.assign(solution=problems["solution"].fillna(told))


def benchmark_set(per_task: int, test_items: int = 9_999) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    with tempfile.TemporaryDirectory() as folder:
        files = [local_task(Path(folder), name) for name in ("gsm8k", "math")]
        test = load_problems(files, "test", test_items)
        train = load_problems(files, "train", per_task)
    return tag_concepts(train), test, "knowledge"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000, help="errors to plant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every miss and every false alarm")
    options = parser.parse_args()
    sets = list(demo_sets(options.n))
    if LOCAL.is_dir():
        sets.append(benchmark_set(2 * options.n))
    outcome = run(sets, options.n, options.seed)
    print(outcome.table().to_string(index=False))
    found, planted = len(outcome.planted) - len(outcome.missed), len(outcome.planted)
    print(f"\nfound {found} of {planted} ({found / planted:.1%})")
    alarms = Counter(
        (KINDS[passage.rows[0].task], reason.partition(":")[0]) for passage, reason in outcome.false_alarms
    )
    n_clean = len(outcome.clean)
    print(f"false alarms: {len(outcome.false_alarms)} of {n_clean} ({len(outcome.false_alarms) / n_clean:.2%})")
    for (kind, check), count in sorted(alarms.items()):
        print(f"  {kind}, {check}: {count}")
    if options.show:
        for passage, reason in outcome.missed:
            print(f"\nMISSED {passage.kind}, {passage.fault} ({reason or 'kept'})\n  {passage.change}")
        for passage, reason in outcome.false_alarms:
            print(
                f"\nFALSE ALARM {reason}\n  "
                + "\n  ".join([*passage.draft.paragraphs, passage.draft.enlightenment])
            )


if __name__ == "__main__":
    main()
