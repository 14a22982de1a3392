"""What a teacher is given, problems, and hands back, drafts; and the words and numbers by which they are compared."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from trait_kit.engine.files import read_yaml
from trait_kit.engine.ngrams import UNSPACED
from trait_kit.judging.numbers import numbers
from trait_kit.tasks import prompt

_UNSPACED = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED)


class Problem(NamedTuple):
    id: str
    task: str
    question: str
    answer: str
    solution: str | None
    choices: tuple[str, ...]  # () where the task is not a choice
    entity: str | None
    topic: str | None
    split: str


def problem_rows(problems: pd.DataFrame) -> dict[str, Problem]:
    rows = problems[list(Problem._fields)].astype(object).where(problems.notna(), None)  # pandas has NaN for null
    rows["choices"] = [() if some is None else tuple(some) for some in rows["choices"]]
    return {row[0]: Problem(*row) for row in rows.itertuples(index=False)}


@dataclass(frozen=True)
class Group:
    """Problems of one passage, in its order."""

    id: str
    rows: Sequence[Problem]
    grouping: str  # knowledge | entity
    shared: str  # the topic or entity
    # parts so far, why not taken
    refused: tuple[tuple[tuple[str, ...], str], ...] = ()

    @property
    def problem_ids(self) -> list[str]:
        return [row.id for row in self.rows]


@dataclass(frozen=True)
class Draft:
    """Paragraphs (one a problem, in their order) and enlightenment, not yet checked; with what they cost."""

    paragraphs: tuple[str, ...]
    enlightenment: str
    teacher: str = ""
    prompt_version: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    fault: str = ""  # why it is not whole ('kind: details')
    answer: str = ""  # what came instead
    parts: tuple[str, ...] = ()  # of the enlightenment, as they were asked for


def compose_text(rows: Sequence[Problem], draft: Draft) -> str:
    """The passage as a base model reads it: each problem as in the evaluation's prompt, then the enlightenment."""
    parts = [f"{prompt(row.question)} {told}" for row, told in zip(rows, draft.paragraphs, strict=False)]
    return "\n\n".join([*parts, draft.enlightenment] if draft.enlightenment else parts)


@functools.cache
def content(name: str) -> Any:
    return read_yaml(Path(__file__).parent / name)


def content_words(text: str) -> set[str]:
    """Lower-case words of four letters or more that carry content, without a plural 's'; of unspaced scripts each pair."""
    words, stop = re.findall(rf"[^\W\d_{_UNSPACED}]{{4,}}", text.lower()), content("words.yaml")["stop"]
    pairs = {run[at : at + 2] for run in re.findall(f"[{_UNSPACED}]+", text) for at in range(len(run) - 1)}
    return pairs | {word.removesuffix("s") if len(word) > 4 else word for word in words if word not in stop}


def count_words(text: str, word: str = r"\S+") -> int:
    """Words, and of a script without blanks two characters each."""
    return len(re.findall(word, text)) + len(re.findall(f"[{_UNSPACED}]", text)) // 2


def marks(text: str) -> set[str]:
    return content_words(text) | numbers(text)


def marks_of(texts: list[str]) -> list[set[str]]:
    """For each text the words and numbers that none of the others has."""
    return own_of([marks(text) for text in texts])


def own_of(bags: list[set[str]]) -> list[set[str]]:
    """What each of some sets has and none of the others."""
    return [bag - set().union(*bags[:place], *bags[place + 1 :]) for place, bag in enumerate(bags)]
