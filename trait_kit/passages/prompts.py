"""What a language model is asked, one thing a request, as turns of a chat: a system line, two examples, the question.

The wording is data: prompts/math.yaml, ads.yaml and generic.yaml hold a system line, a Jinja template for each part of a
passage (paragraph, enlightenment, opening, sentence) and example passages, whose parts become the example turns; which two
are shown follows from what a group shares, so that answers do not all fall into one phrase. A version is a name and a
digest of the wording.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Sequence
from typing import Any

import jinja2

from trait_kit.answers import is_mathematical
from trait_kit.engine.files import digest
from trait_kit.engine.ledger import Estimate
from trait_kit.engine.llm import Endpoint, Message, Request, again, clean
from trait_kit.passages.material import Order, Problem, content

_MAX_FIELD = 8_000  # characters of a question or solution that are sent
_CHARACTERS_A_TOKEN = 4  # for estimates
# Plain text, so nothing is escaped for HTML: data enters through `as_data`.
_JINJA = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True)


def choose(order: Order) -> str:
    """Which prompts fit: 'math' where all answers are numbers or formulas, 'ads' for the ads tasks, else 'generic'."""
    if {row.task for row in order.rows} <= set(_wording("ads")["tasks"]):
        return "ads"
    knowledge = order.group.grouping == "knowledge" and all(is_mathematical(row.answer) for row in order.rows)
    return "math" if knowledge else "generic"


def conversation(part: str, order: Order, paragraphs: Sequence[str] = (), place: int = 0) -> list[Message]:
    """The turns that ask for one `part` of a passage: of the problem at `place`, or of all.

    What was written before and refused stands in them, with the reason.
    """
    name, group = choose(order), order.group

    def asked(problems: list[dict[str, str]], place: int, shared: str) -> Message:
        given = {"grouping": group.grouping, "shared": shared, "count": len(problems)}
        told = _template(name, part).render(given, problems=problems, problem=problems[place])
        return {"role": "user", "content": clean(told)}

    examples = list(_wording(name)["examples"])
    random.Random(f"{group.shared}/{part}").shuffle(examples)
    turns = [{"role": "system", "content": _wording(name)["system"]}]
    for example in examples[:2]:
        shown = random.Random(f"{group.shared}/{place}").randrange(len(example["problems"]))
        turns.append(asked(example["problems"], shown, example["shared"]))
        turns.append({"role": "assistant", "content": _part_of(example, part, shown)})
    pairs = itertools.zip_longest(order.rows, paragraphs, fillvalue="")
    turns.append(asked([_problem(row, paragraph) for row, paragraph in pairs], place, as_data(group.shared)[:200]))
    for answer, reason in order.refused:
        turns = again(turns, answer, reason)
    return turns


def topic(question: str) -> list[Message]:
    """The turns that ask what knowledge a problem needs."""
    wording = _wording("topic")
    turns = [{"role": "system", "content": wording["system"]}]
    for example in wording["examples"]:
        turns.append({"role": "user", "content": example["question"]})
        turns.append({"role": "assistant", "content": example["topic"]})
    return [*turns, {"role": "user", "content": as_data(question)}]


def estimate(endpoint: Endpoint, requests: Sequence[Request], answer_tokens: int) -> Estimate:
    """The bill of asking each thing once."""
    characters = sum(len(message["content"]) for request in requests for message in request.messages())
    return endpoint.estimate(len(requests), characters // _CHARACTERS_A_TOKEN, answer_tokens * len(requests))


def version(order: Order) -> str:
    name = choose(order)
    return f"{name}@{digest([_wording(name), again([], '', '')])[:12]}"


def as_data(text: str) -> str:
    """One line in which no model's control tokens can occur, whatever the text says."""
    return re.sub(r"<(?=[|/])|(?<=\|)>", lambda mark: f" {mark[0]} ", " ".join(clean(text).split()))[:_MAX_FIELD]


def _problem(row: Problem, paragraph: str) -> dict[str, str]:
    fields = {"question": row.question, "answer": row.answer, "solution": row.solution or "", "paragraph": paragraph}
    return {"task": row.task.replace("_", " "), **{name: as_data(text) for name, text in fields.items()}}


def _part_of(example: dict[str, Any], part: str, place: int) -> str:
    if part == "opening":
        return example["opening"]
    if part in ("paragraph", "sentence"):
        return example["problems"][place][part]
    return " ".join([example["opening"], *(problem["sentence"] for problem in example["problems"])])


def _wording(name: str) -> dict[str, Any]:
    return content(f"prompts/{name}.yaml")


@functools.cache
def _template(name: str, part: str) -> jinja2.Template:
    return _JINJA.from_string(_wording(name)[part])
