"""The prompts that ask a language model for a passage: one for mathematics, one for ads, one for any other domain.

The templates are the files in prompts/. A version is the template's name and a digest of its text and of what it
includes, so that a passage always tells which wording made it and a changed template never meets an old cached answer.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import pandas as pd

from trait_kit.passages.answers import is_mathematical
from trait_kit.teaching.exchange import as_data, templates

FOLDER = Path(__file__).parent / "prompts"
ADS_TASKS = frozenset(
    (
        "query_rewriting",
        "query_ad_relevance",
        "query_landing_page_relevance",
        "title_generation",
        "title_rewriting",
        "description_generation",
        "ad_generation",
    )
)
_MAX_FIELD = 8_000  # characters of a question or solution that are sent
_environment = templates(FOLDER)


def choose(problems: pd.DataFrame, grouping: str) -> str:
    """Which template fits: 'math' where all answers are numbers or formulas, 'ads' for the ads tasks, else 'generic'."""
    if set(problems["task"]) <= ADS_TASKS:
        return "ads"
    return "math" if grouping == "knowledge" and all(is_mathematical(answer) for answer in problems["answer"]) else "generic"


def render(name: str, problems: pd.DataFrame, grouping: str, shared: str) -> str:
    rows = list(problems.itertuples(index=False))
    return _environment.get_template(f"{name}.jinja").render(
        count=len(rows),
        grouping=grouping,
        shared=" ".join(shared.split())[:200],
        solved=any(isinstance(row.solution, str) for row in rows),
        problems=[_as_data(row) for row in rows],
    )


def repair(fault: str, count: int) -> str:
    """The one follow-up message after an answer that could not be used."""
    return (
        f"That reply cannot be used: {fault}. Send the whole reply again as one JSON object and nothing else: "
        f'{{"paragraphs": [{count} strings, in the order of the problems], "enlightenment": "one string"}}.'
    )


@cache
def version(name: str) -> str:
    text = "".join((FOLDER / f"{part}.jinja").read_text(encoding="utf-8") for part in (name, "answer_format"))
    return f"{name}@{hashlib.sha256((text + repair('', 0)).encode()).hexdigest()[:12]}"


def _as_data(row) -> str:
    fields = {"task": row.task, "question": row.question, "answer": row.answer}
    if isinstance(row.solution, str):
        fields["worked_solution"] = row.solution
    return as_data({key: value[:_MAX_FIELD] for key, value in fields.items()})
