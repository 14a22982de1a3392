"""What a teacher is given, problems, and what it hands back: a draft of a passage, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from trait_kit.engine.exchange import clean, read_object


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
class Draft:
    """Paragraphs (one a problem, in their order) and enlightenment, not yet checked; with what they cost."""

    paragraphs: tuple[str, ...]
    enlightenment: str
    teacher: str
    prompt_version: str
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True)
class Rejection:
    """No draft: `reason` is 'kind: details' (kinds are counted), `answer` what came instead, if anything."""

    reason: str
    teacher: str
    prompt_version: str
    answer: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0


def parse_answer(content: str, count: int) -> tuple[tuple[str, ...], str]:
    """The paragraphs and the enlightenment of a model's reply: `count` non-empty strings, and one.

    ValueError says what is wrong with the reply, in words that the model can be told.
    """
    value = read_object(content, ("paragraphs", "enlightenment"))
    paragraphs, enlightenment = value["paragraphs"], value["enlightenment"]
    if not isinstance(paragraphs, list) or not all(isinstance(item, str) for item in paragraphs):
        raise ValueError("paragraphs must be a list of strings")
    if len(paragraphs) != count:
        raise ValueError(f"paragraphs has {len(paragraphs)} items, there are {count} problems")
    if not isinstance(enlightenment, str):
        raise ValueError("enlightenment must be a string")
    cleaned, enlightenment = tuple(clean(item) for item in paragraphs), clean(enlightenment)
    if not enlightenment or not all(cleaned):
        raise ValueError("a paragraph or the enlightenment is empty")
    return cleaned, enlightenment
