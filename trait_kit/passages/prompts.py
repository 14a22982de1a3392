"""The prompts that ask a language model for a passage: one for mathematics, one for ads, one for any other domain, or yours.

The templates are the files in prompts/. A version is the template's name and a digest of its text and of what it
includes, so that a passage always tells which wording made it. A template of your own is given by its path (the parameter
`prompt`); it may include answer_format.jinja, which asks for the JSON that is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2

from trait_kit.answers import is_mathematical
from trait_kit.engine.exchange import as_data, templates
from trait_kit.engine.files import TraitError
from trait_kit.passages.drafts import Problem

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


def choose(rows: Sequence[Problem], grouping: str) -> str:
    """Which template fits: 'math' where all answers are numbers or formulas, 'ads' for the ads tasks, else 'generic'."""
    if {row.task for row in rows} <= ADS_TASKS:
        return "ads"
    return "math" if grouping == "knowledge" and all(is_mathematical(row.answer) for row in rows) else "generic"


def render(name: str, rows: Sequence[Problem], grouping: str, shared: str) -> str:
    """The question to the model; `name` is a shipped template's, or the path of one that ends in .jinja."""
    return _template(name).render(
        count=len(rows),
        grouping=grouping,
        shared=" ".join(shared.split())[:200],
        solved=any(row.solution for row in rows),
        problems=[_as_data(row) for row in rows],
    )


def repair(fault: str, count: int) -> str:
    """The one follow-up message after an answer that could not be used."""
    return (
        f"That reply cannot be used: {fault}. Send the whole reply again as one JSON object and nothing else: "
        f'{{"paragraphs": [{count} strings, in the order of the problems], "enlightenment": "one string"}}.'
    )


def again(reason: str, count: int) -> str:
    """What a teacher is told whose passage did not pass a check."""
    return (
        f"That passage was not accepted: {reason[:500]}. Write the whole passage again without this fault, as one JSON "
        f'object and nothing else: {{"paragraphs": [{count} strings, in the order of the problems], "enlightenment": "one '
        'string"}.'
    )


@cache
def version(name: str) -> str:
    path = _path(name)
    parts = (path, FOLDER / "answer_format.jinja")
    text = "".join(part.read_text(encoding="utf-8") for part in parts) + repair("", 0) + again("", 0)
    return f"{path.stem}@{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _path(name: str) -> Path:
    return Path(name) if name.endswith(".jinja") else FOLDER / f"{name}.jinja"


@cache
def _template(name: str) -> jinja2.Template:
    path = _path(name)
    try:
        return templates(path.parent, FOLDER).get_template(path.name)
    except jinja2.TemplateNotFound as error:
        raise TraitError(f"The prompt {path} needs {error.name}, which is not there (prompt ends in .jinja).") from None
    except (jinja2.TemplateSyntaxError, UnicodeDecodeError) as error:
        raise TraitError(f"The prompt {path} is not a Jinja template: {error}.") from None


def _as_data(row: Problem) -> str:
    fields = {"task": row.task, "question": row.question, "answer": row.answer}
    if row.solution:
        fields["worked_solution"] = row.solution
    return as_data({key: value[:_MAX_FIELD] for key, value in fields.items()})
