"""What a language model is asked, one thing a request, as turns of a chat: a system line, two examples, the question.

The wording is data: prompts/math.yaml, ads.yaml and generic.yaml hold a system line, a Jinja template for each part of a
passage (paragraph, enlightenment, opening, sentence) and example passages, whose parts become the example turns; which two
are shown follows from what a group shares, so that answers do not all fall into one phrase. A Jinja template of your own
(the parameter `prompt`) takes the place of all turns. A version is a name and a digest of the wording.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from trait_kit.answers import is_mathematical
from trait_kit.engine.files import TraitError
from trait_kit.engine.llm import Message, again, clean
from trait_kit.passages.material import Group, Problem

FOLDER = Path(__file__).parent / "prompts"
_MAX_FIELD = 8_000  # characters of a question or solution that are sent


def choose(rows: Sequence[Problem], grouping: str) -> str:
    """Which prompts fit: 'math' where all answers are numbers or formulas, 'ads' for the ads tasks, else 'generic'."""
    if {row.task for row in rows} <= set(_wording("ads")["tasks"]):
        return "ads"
    return "math" if grouping == "knowledge" and all(is_mathematical(row.answer) for row in rows) else "generic"


def conversation(
    part: str, name: str, group: Group, rows: Sequence[Problem], paragraphs: Sequence[str] = (), place: int = 0
) -> list[Message]:
    """The turns that ask for one `part` of the passage of `group`: of the problem at `place`, or of all.

    `name` is that of shipped prompts, or the path of a template that ends in .jinja.
    """
    told = [*paragraphs, *[""] * (len(rows) - len(paragraphs))]
    problems = [_problem(row, paragraph) for row, paragraph in zip(rows, told, strict=True)]
    shared = {"grouping": group.grouping, "shared": as_data(group.shared)[:200]}
    if name.endswith(".jinja"):
        return [_user(_own(name), part, problems, place, shared)]
    wording = _wording(name)
    examples = list(wording["examples"])
    random.Random(f"{group.shared}/{part}").shuffle(examples)
    turns = [{"role": "system", "content": wording["system"]}]
    template = _environment().from_string(wording[part])
    for example in examples[:2]:
        shown = random.Random(f"{group.shared}/{place}").randrange(len(example["problems"]))
        turns.append(_user(template, part, example["problems"], shown, {**shared, "shared": example["shared"]}))
        turns.append({"role": "assistant", "content": _part_of(example, part, shown)})
    return [*turns, _user(template, part, problems, place, shared)]


def topic(question: str) -> list[Message]:
    """The turns that ask what knowledge a problem needs."""
    wording = _wording("topic")
    turns = [{"role": "system", "content": wording["system"]}]
    for example in wording["examples"]:
        turns.append({"role": "user", "content": example["question"]})
        turns.append({"role": "assistant", "content": example["topic"]})
    return [*turns, {"role": "user", "content": as_data(question)}]


@functools.cache
def version(name: str) -> str:
    path = Path(name) if name.endswith(".jinja") else FOLDER / f"{name}.yaml"
    text = path.read_text(encoding="utf-8") + again([], "", "")[-1]["content"]
    return f"{path.stem}@{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def as_data(text: str) -> str:
    """One line in which no model's control tokens can occur, whatever the text says."""
    return re.sub(r"<(?=[|/])|(?<=\|)>", lambda mark: f" {mark[0]} ", " ".join(clean(text).split()))[:_MAX_FIELD]


def _problem(row: Problem, paragraph: str) -> dict[str, str]:
    fields = {"question": row.question, "answer": row.answer, "solution": row.solution or "", "paragraph": paragraph}
    return {"task": row.task.replace("_", " "), **{name: as_data(text) for name, text in fields.items()}}


def _user(template: jinja2.Template, part: str, problems: list[dict], place: int, shared: dict[str, str]) -> Message:
    fields = {"part": part, "count": len(problems), "problems": problems, "problem": problems[place], "place": place + 1}
    return {"role": "user", "content": clean(template.render(**fields, **shared))}


def _part_of(example: dict[str, Any], part: str, place: int) -> str:
    if part == "paragraph":
        return example["problems"][place]["paragraph"]
    if part == "opening":
        return example["opening"]
    sentences = [problem["sentence"] for problem in example["problems"]]
    return sentences[place] if part == "sentence" else " ".join([example["opening"], *sentences])


@functools.cache
def _environment() -> jinja2.Environment:
    """Plain text, so nothing is escaped for HTML: data enters through `as_data`."""
    return jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True)


@functools.cache
def _wording(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


@functools.cache
def _own(path: str) -> jinja2.Template:
    try:
        return _environment().from_string(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TraitError(f"The prompt {path} cannot be read: {error}.") from None
    except jinja2.TemplateSyntaxError as error:
        raise TraitError(f"The prompt {path} is not a Jinja template: {error}.") from None
