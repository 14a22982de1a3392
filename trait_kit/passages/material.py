"""What a teacher is given, problems, and what it hands back, drafts; and the words and numbers that both are compared by."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from trait_kit.engine.ngrams import UNSPACED
from trait_kit.judging.numbers import numbers

_UNSPACED = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED)


class Problem(NamedTuple):
    """One row of the problems table."""

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
    """id -> problem, in the order of the table."""
    columns = {name: problems[name].tolist() for name in Problem._fields}
    for name in ("solution", "entity", "topic"):  # pandas has NaN for null
        columns[name] = [value if isinstance(value, str) else None for value in columns[name]]
    columns["choices"] = [tuple(some) if isinstance(some, list | tuple | np.ndarray) else () for some in columns["choices"]]
    return {row[0]: Problem(*row) for row in zip(*columns.values(), strict=True)}


@dataclass(frozen=True)
class Group:
    """Problems of one passage, in the order in which it will treat them.

    `refused` holds the parts of each enlightenment written so far, and why that was not taken.
    """

    id: str
    rows: Sequence[Problem]
    grouping: str  # knowledge | entity
    shared: str  # the topic or entity
    refused: tuple[tuple[tuple[str, ...], str], ...] = ()

    @property
    def problem_ids(self) -> list[str]:
        return [row.id for row in self.rows]


@dataclass(frozen=True)
class Draft:
    """Paragraphs (one a problem, in their order) and enlightenment, not yet checked; with what they cost.

    Where there is no whole draft, `fault` says why ('kind: details'; kinds are counted) and
    `answer` what came instead.
    """

    paragraphs: tuple[str, ...]
    enlightenment: str
    teacher: str = ""
    prompt_version: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    fault: str = ""
    answer: str = ""
    parts: tuple[str, ...] = ()  # of the enlightenment, as they were asked for


def compose_text(rows: Sequence[Problem], draft: Draft) -> str:
    """The passage as a base model reads it: each problem as in the evaluation's prompt, then the enlightenment."""
    pairs = zip(rows, draft.paragraphs, strict=False)
    parts = [f"Question: {row.question}\nAnswer: {paragraph}" for row, paragraph in pairs]
    return "\n\n".join([*parts, draft.enlightenment] if draft.enlightenment else parts)


@functools.cache
def content(name: str) -> Any:
    """What a YAML file of this folder says: words, concepts, sentences, prompts."""
    return yaml.safe_load((Path(__file__).parent / name).read_text(encoding="utf-8"))


def content_words(text: str) -> set[str]:
    """Lower-case words of at least four letters that carry content; a plural 's' is dropped.

    In scripts without blanks every two characters that stand together.
    """
    words, stop = re.findall(rf"[^\W\d_{_UNSPACED}]{{4,}}", text.lower()), content("words.yaml")["stop"]
    pairs = {run[at : at + 2] for run in re.findall(f"[{_UNSPACED}]+", text) for at in range(len(run) - 1)}
    return pairs | {word.removesuffix("s") if len(word) > 4 else word for word in words if word not in stop}


def unspaced_words(text: str) -> int:
    """About how many words stand in it without blanks: two characters each."""
    return len(re.findall(f"[{_UNSPACED}]", text)) // 2


def marks_of(texts: list[str]) -> list[set[str]]:
    """For each text the words and numbers that none of the others has: what can only speak of this one."""
    return own_of([content_words(text) | numbers(text) for text in texts])


def own_of(bags: list[set[str]]) -> list[set[str]]:
    """What each of some sets has and none of the others."""
    return [bag - set().union(*bags[:place], *bags[place + 1 :]) for place, bag in enumerate(bags)]
