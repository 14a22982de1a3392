"""The offline teacher's enlightenment paragraph: what the problems of a group share, and what is particular to each.

It is composed, not written by a language model: the sentences are kept in offline.yaml, everything particular (numbers,
facts, the step where the technique bites, the answer) is read from the problem and its worked solution. Wording is drawn by
seed, so that a thousand paragraphs are not one sentence with blanks.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from trait_kit.answers import is_mathematical
from trait_kit.engine.arithmetic import arithmetic_slips
from trait_kit.engine.numbers import numbers
from trait_kit.passages.material import Problem, content, content_words, marks_of

_NUMBER = r"\$?\d+(?:[.,]\d+)*%?"
_EQUATION = re.compile(rf"{_NUMBER}(?: ?[-+*/×] ?{_NUMBER})+ ?= ?{_NUMBER}|{_NUMBER} = {_NUMBER}(?: ?[-+*/×] ?{_NUMBER})+")
# the texts of 'Query: cheap hotels. Ad title: Visit Rome'
_FIELD = re.compile(r"(?:^|(?<=\s))[\w ]{2,40}: +(.+?)(?=[.?!] +[A-Z][a-z ]{2,24}: |\n|$)")
_COUNT = {2: "Both", 3: "All three", 4: "All four", 5: "All five", 6: "All six", 7: "All seven", 8: "All eight"}
_ORDINAL = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def compose(rows: Sequence[Problem], grouping: str, shared: str, seed: int | str) -> str:
    """The paragraph for `rows` (in the passage's order, with worked solutions) that share `shared`."""
    rng = random.Random(f"{seed}/" + "/".join(row.id for row in rows))
    names, roles = _names(rows), _task_roles(rows, shared if grouping == "knowledge" else "", rng)
    opening = _opening(rows, grouping, shared, rng)
    forms = rng.sample(range(4), 4)
    marks = marks_of([row.question for row in rows])
    parts = [_particular(row, names[n], roles[n], marks[n], forms[n % 4], rng) for n, row in enumerate(rows)]
    return " ".join([opening, *parts, _closing(rows, names, grouping, shared, rng)])


def _opening(rows: Sequence[Problem], grouping: str, shared: str, rng: random.Random) -> str:
    everyone = _COUNT.get(len(rows), "All of them")
    topics = {row.topic for row in rows}
    fields = {"everyone": everyone, "every": everyone.lower(), "shared": shared, "idea": _the(shared)}
    fields |= {"why": _why(shared, rng), "intent": next(iter(topics)) or ""}
    kind = "topic" if grouping == "knowledge" else "intent" if len(topics) == 1 and fields["intent"].strip() else "entity"
    return rng.choice(content("offline.yaml")["openings"][kind]).format(**fields)


def _closing(rows: Sequence[Problem], names: list[str], grouping: str, shared: str, rng: random.Random) -> str:
    fields = {"shared": shared, "first": names[0], "last": names[-1]}
    fields["idea"] = _the(shared)
    fields["different"] = f"{rows[0].answer} in the {names[0]} and {rows[-1].answer} in the {names[-1]}"
    return rng.choice(content("offline.yaml")["closings"][grouping]).format(**fields)


def _why(shared: str, rng: random.Random) -> str:
    if shared in content("concepts.yaml"):
        return rng.choice(content("concepts.yaml")[shared]["why"])
    for technique in content("offline.yaml")["techniques"]:
        if all(word in shared.lower() for word in technique["words"]):
            return rng.choice(technique["why"])
    return f"each solution is an application of {shared}"


def _task_roles(rows: Sequence[Problem], topic: str, rng: random.Random) -> list[str]:
    """What the technique does in each problem's task; a task that occurs twice gets two wordings. '' where unknown."""
    known: dict[str, list[str]] = {}
    for role in content("offline.yaml")["roles"]:
        if role["topic"] in topic.lower() and role["task"] not in known:
            known[role["task"]] = rng.sample(role["does"], len(role["does"]))
    return [known[row.task].pop() if known.get(row.task) else "its own facts decide" for row in rows]


def _particular(row: Problem, name: str, role: str, marks: set[str], form: int, rng: random.Random) -> str:
    """What only this problem has: numbers or a text of its question, a step of its solution, its answer."""
    fields = {"name": name, "role": role, "facts": f'on "{_told(row, marks)}"', "result": f'"{_short(row.answer, 60)}"'}
    step = ""
    if is_mathematical(row.answer):
        fields["result"] = row.answer
        found = [number for number in re.findall(r"\d+(?:[.,]\d+)*(?:/\d+)?", row.question)][:3]
        if any(len(number) > 1 for number in found):
            fields["facts"] = f"with {_listed(list(dict.fromkeys(found)))}"
        whole = [match.group().rstrip(".,") for match in _EQUATION.finditer(row.solution)]
        step = rng.choice([text for text in whole if len(text) <= 60 and not arithmetic_slips(text)] or [""])
    wording = content("offline.yaml")["particulars"]["step" if step else "role"]
    return wording[form].format(**fields, step=step)


def _names(rows: Sequence[Problem]) -> list[str]:
    """'word problem', or 'first word problem' and 'second word problem' where a task occurs twice."""
    counts, seen, names = Counter(row.task for row in rows), Counter(), []
    for row in rows:
        words = re.sub(r"[_\-\s]+", " ", row.task.rsplit("/", 1)[-1].rsplit(".", 1)[0]).strip().removesuffix("s")
        name = words if words.endswith("problem") else f"{words} {'problem' if is_mathematical(row.answer) else 'task'}"
        names.append(f"{_ORDINAL[seen[row.task]]} {name}" if counts[row.task] > 1 else name)
        seen[row.task] += 1
    return names


def _told(row: Problem, marks: set[str]) -> str:
    """A text that the question quotes, or its sentence, the one that says most of what only this problem has."""
    texts = _FIELD.findall(row.question) or re.split(r"(?<=[.?!])\s+(?=[A-Z$])", " ".join(row.question.split()))
    return _short(max(texts, key=lambda text: len((content_words(text[:90]) | numbers(text[:90])) & marks)), 90).rstrip(".?")


def _short(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " ..."


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" and {items[-1]}" if items else ""


def _the(topic: str) -> str:
    return f"the {topic}" if re.search(r"(?i)\b(algorithm|method|theorem|rule|formula|law)$", topic) else topic
