"""What a language model is asked, one thing a request, as turns of a chat: a system line, two examples, the question.

The wording is data: prompts/*.yaml hold a system line, a Jinja template for each part of a passage (paragraph,
enlightenment, opening, sentence) and example passages, whose parts become the example turns. Which two follows from what a
group shares.
"""

import functools
import itertools
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from trait_kit.engine.files import TraitError, digest
from trait_kit.engine.llm import Message, again, clean
from trait_kit.judging.answers import is_mathematical, language_of, statement
from trait_kit.passages.material import Group, Problem, content, marks, marks_of

_WORD = re.compile(r"[一-鿿]+|(?:(?![一-鿿])[\w./%])*(?![一-鿿])\w%?")  # Chinese has no blanks around numbers
# 7 * $13 = $91, 22 pens + 44 books = 66
_AMOUNT = r"[$€£]?\d[\d.,/]*%?(?: [a-z]+)?"
_EQUATION = re.compile(rf"{_AMOUNT}(?: ?[-+*/×÷] ?{_AMOUNT})+ ?= ?[$€£]?\d(?:[\d.,/]*\d)?%?")
_MAX_FIELD = 8_000  # characters of a question or solution that are sent
# Plain text, so nothing is escaped for HTML: data enters through `as_data`.
_JINJA = jinja2.Environment(
    undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
)


def choose(group: Group) -> str:
    """The prompts that fit: 'ads' for the ads tasks, 'zh' and 'de' by language, 'math' for numbers, else 'generic'."""
    if {row.task for row in group.rows} <= set(_wording("ads")["tasks"]):
        return "ads"
    if (language := language_of(" ".join(row.question for row in group.rows))) != "en":
        return language
    return (
        "math"
        if group.grouping == "knowledge" and all(is_mathematical(row.answer) for row in group.rows)
        else "generic"
    )


def conversation(name: str, *about: Any) -> list[Message]:
    """The turns that ask, in the wording `name`, for one part of a passage; `refused`: why, and whether again."""
    try:
        return _turns(name, *about)
    except Exception as error:  # of a file of one's own
        raise TraitError(
            f"{name} cannot be used as passages.prompts ({error!r}). Write one like passages/prompts/generic.yaml."
        ) from error


def _turns(
    name: str, part: str, group: Group, paragraphs: Sequence[str] = (), place: int = 0, refused=("", False)
) -> list[Message]:
    task = group.rows[place].task.replace("_", " ")

    def asked(problems: list[dict[str, str]], place: int, shared: str, refused=("", False)) -> Message:
        problems = [one | {"ending": statement(one["answer"], language_of(one["question"]))} for one in problems]
        told = _template(name, part).render(
            grouping=group.grouping,
            shared=shared,
            count=len(problems),
            fault=as_data(refused[0])[:200],
            again=refused[1],
            problems=problems,
            problem=problems[place],
        )
        return {"role": "user", "content": clean(told)}

    draw, examples = random.Random(f"{group.shared}/{part}"), list(_wording(name)["examples"])
    draw.shuffle(examples)
    turns = [{"role": "system", "content": _wording(name)["system"]}]
    for example in examples[:2]:
        shown = draw.randrange(len(example["problems"]))
        tasks = [one["task"] for one in example["problems"]]
        shown = tasks.index(task) if task in tasks else shown  # one that is done in the same way
        whole = [example["opening"], *(problem["sentence"] for problem in example["problems"])]
        told = {"enlightenment": " ".join(whole), **example, **example["problems"][shown]}
        turns += [
            asked(example["problems"], shown, example["shared"]),
            {"role": "assistant", "content": told[part]},
        ]
    # an ad's limit of 30 characters says nothing of it
    counted = all(is_mathematical(row.answer) for row in group.rows)
    begin = own_words([row.question for row in group.rows], 2, counted)
    words = own_words([*map(_steps, group.rows, paragraphs)], -3, counted)
    # a calculation says more than its result
    equations = map(_equations, group.rows, paragraphs)
    steps = [(counted and found) or own for found, own in zip(equations, words, strict=True)]
    told = itertools.zip_longest(group.rows, paragraphs, begin, steps, fillvalue="")
    return [*turns, asked([_problem(*one) for one in told], place, as_data(group.shared)[:200], refused)]


def own_words(texts: Sequence[str], count: int, counted: bool) -> list[list[str]]:
    """What each text has and the others do not: what a sentence must say to be about it.

    Where numbers count, the first `count` (negative: the last); else the last words, as a task's own wording is before them.
    """
    told = []
    for text, own in zip(texts, marks_of(list(texts)), strict=True):
        words = list(dict.fromkeys(as_data(word) for word in _WORD.findall(text) if marks(word) & own))
        printed = [word for word in words if counted and word[0].isdigit()]
        told.append((printed[:count] if count > 0 else printed[count:]) or words[-abs(count) :])
    return told


def version(name: str) -> str:
    return f"{Path(name).stem}@{digest([_wording(name), again([], '', '')])[:12]}"


def as_data(text: str) -> str:
    """A text without blank lines and without any model's control tokens."""
    text = clean(text) if "\n" in text.strip() else " ".join(clean(text).split())  # code keeps its lines
    return re.sub(r"<(?=[|/])|(?<=\|)>", lambda mark: f" {mark[0]} ", text)[:_MAX_FIELD]


def _problem(row: Problem, paragraph: str, begin: Sequence[str], steps: Sequence[str]) -> dict[str, str]:
    told = {name: as_data(getattr(row, name) or "") for name in ("question", "answer", "solution")}
    told |= {"paragraph": as_data(paragraph), "begin": " and ".join(begin), "steps": ", ".join(steps)}
    return {"task": row.task.replace("_", " "), **told}


def _steps(row: Problem, paragraph: str) -> str:
    """A paragraph's words that its question has not."""
    known = marks(row.question)
    return " ".join(word for word in paragraph.split() if not marks(word) & known)


def _equations(row: Problem, paragraph: str) -> list[str]:
    """A paragraph's last four calculations up to the one that gives the answer."""
    found = _EQUATION.findall(paragraph)
    results = [equation.rpartition("=")[2].strip(" $€£%") for equation in found]
    end = results.index(row.answer) + 1 if row.answer in results else len(found)
    return found[:end][-4:]


def _wording(name: str) -> dict[str, Any]:
    return content(str(Path(name).absolute()) if Path(name).suffix else str(Path("prompts", f"{name}.yaml")))


@functools.cache
def _template(name: str, part: str) -> jinja2.Template:
    return _JINJA.from_string(_wording(name)[part])
