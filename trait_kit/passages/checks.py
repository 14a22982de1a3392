"""What a draft must pass before anything is trained on it; the first check that fails gives the reason.

The checks are for the text of a teacher that nobody has read: is each paragraph about its own problem and does it reach
the gold answer, is the printed arithmetic right, does the enlightenment speak of every problem, and is the passage readable
and of the right length. A model's answer is read by the same checks one part at a time (`read_paragraph`, ...), so that a
part that fails is asked for again alone. What compares a passage with others is in novelty.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from trait_kit.answers import conclusion, plain_words, reaches
from trait_kit.engine.arithmetic import arithmetic_slips
from trait_kit.engine.llm import clean
from trait_kit.passages.material import Draft, Group, Problem, content_words, marks_of, numbers

_MIN_ENLIGHTENMENT_WORDS = 15
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_OF_PARAGRAPH = ("form", "language", "reasoning", "gold answer", "arithmetic")
_OF_ENLIGHTENMENT = ("form", "language", "arithmetic", "enlightenment")
# By how much another order of the paragraphs must fit better (cosine of what only one question and only one paragraph says)
# to be believed. Paragraphs that reach different gold answers can hardly have been swapped, and tasks may share facts.
_SWAP_MARGIN = {"same answers": 0.1, "different answers": 0.4}


@dataclass(frozen=True)
class Candidate:
    """A draft and what it has to answer to."""

    draft: Draft
    rows: Sequence[Problem]  # of its group, in its order
    grouping: str
    shared: str
    n_tokens: int = 0  # of the whole passage
    limits: tuple[int, int] = (0, 0)  # fewest and most tokens


def own_fault(candidate: Candidate, skip: Container[str] = ()) -> tuple[list[str], str | None]:
    """The names of OWN_CHECKS passed, and None or the reason ('check: details') of the first that failed.

    Checks in `skip` are neither made nor passed.
    """
    passed: list[str] = []
    for name, check in OWN_CHECKS.items():
        if name in skip:
            continue
        fault = check(candidate)
        if fault:
            return passed, f"{name}: {fault}"
        passed.append(name)
    return passed, None


def read_paragraph(row: Problem, content: str, skip: Container[str] = ()) -> str:
    """The paragraph of one problem in a model's answer; ValueError says what is wrong with it."""
    draft = Draft((first_paragraph(content),), "", "", "")
    _refuse(Candidate(draft, [row], "", ""), [name for name in _OF_PARAGRAPH if name not in skip])
    return draft.paragraphs[0]


def read_enlightenment(group: Group, rows: Sequence[Problem], paragraphs: Sequence[str], content: str) -> str:
    """The enlightenment in a model's answer; ValueError says what is wrong with it."""
    draft = Draft(tuple(paragraphs), first_paragraph(content), "", "")
    _refuse(Candidate(draft, rows, group.grouping, group.shared), _OF_ENLIGHTENMENT)
    return draft.enlightenment


def read_sentence(rows: Sequence[Problem], paragraphs: Sequence[str], place: int | None, content: str) -> str:
    """One sentence of an enlightenment: on what is shared (`place` None), or on what only one problem has."""
    text = " ".join(first_paragraph(content).split())
    _refuse(Candidate(Draft((text,), "", "", ""), rows[:1], "", ""), ("form", "arithmetic"))
    if len(text.split()) < 5:
        raise ValueError("enlightenment: fewer than five words")
    if place is not None:
        material = [f"{row.question} {paragraph}" for row, paragraph in zip(rows, paragraphs, strict=True)]
        if not marks_of(material)[place] & (content_words(text) | numbers(text)):
            raise ValueError(f"enlightenment: it says nothing that is particular to problem {rows[place].id}")
    return text


def first_paragraph(content: str) -> str:
    """Up to the first blank line: what a small model writes after it was not asked for."""
    return clean(re.split(r"\n[ \t]*\n", content.strip().replace("\r\n", "\n"), maxsplit=1)[0])


def _refuse(candidate: Candidate, names: Sequence[str]) -> None:
    fault = own_fault(candidate, [name for name in OWN_CHECKS if name not in names])[1]
    if fault:
        raise ValueError(fault)


def _form(candidate: Candidate) -> str | None:
    draft, count = candidate.draft, len(candidate.rows)
    if len(draft.paragraphs) != count:
        return f"{len(draft.paragraphs)} paragraphs for {count} problems"
    parts = [*draft.paragraphs, draft.enlightenment] if draft.enlightenment else draft.paragraphs
    for place, part in enumerate(parts, start=1):
        name = f"paragraph {place}" if place <= count else "the enlightenment"
        if not part.strip():
            return f"{name} is empty"
        if re.search(r"[\x00-\x09\x0b-\x1f\x7f\ufffd]", part):  # '\times' in JSON arrives as a tab and 'imes'
            return f"{name} holds control characters or broken text"
        if "\n\n" in part or re.search(r"^(?:Question|Answer):", part, re.MULTILINE):
            return f"{name} would break the layout of the passage (an empty line, or a line that starts like a problem)"
    return None


def _length(candidate: Candidate) -> str | None:
    low, high = candidate.limits
    return None if low <= candidate.n_tokens <= high else f"{candidate.n_tokens} tokens, not within {low} to {high}"


def _language(candidate: Candidate) -> str | None:
    """Written in the script of the problems: the share of Latin letters may not be far from theirs."""
    draft = candidate.draft
    written = "".join((*draft.paragraphs, draft.enlightenment))
    given = "".join(row.question for row in candidate.rows)
    share, expected = _latin_share(written), _latin_share(given)
    if abs(share - expected) > 0.25:
        return f"{share:.0%} of its letters are Latin, {expected:.0%} in the problems"
    return None


def _latin_share(text: str) -> float:
    letters = [mark for mark in text if mark.isalpha()]
    return sum(mark < "\u0250" for mark in letters) / len(letters) if letters else 1.0


def _reasoning(candidate: Candidate) -> str | None:
    for row, paragraph in zip(candidate.rows, candidate.draft.paragraphs, strict=True):
        ending, marked = conclusion(paragraph)
        stated = len(re.findall(r"\w+", ending)) + 3 * marked  # 'the answer is'
        if len(re.findall(r"\w+", paragraph)) < stated + 3:
            return f"the paragraph of problem {row.id} only states an answer"
    return None


def _gold(candidate: Candidate) -> str | None:
    for row, paragraph in zip(candidate.rows, candidate.draft.paragraphs, strict=True):
        right, found = reaches(row.answer, paragraph, row.choices or (), row.question)
        if not right:
            return f"problem {row.id}: the answer is {row.answer[:80]!r}, the paragraph concludes {found[:80]!r}"
    return None


def _arithmetic(candidate: Candidate) -> str | None:
    for part in (*candidate.draft.paragraphs, candidate.draft.enlightenment):
        slips = arithmetic_slips(part)
        if slips:
            return f"{slips[0][:100]} is wrong"
    return None


def _own_problem(candidate: Candidate) -> str | None:
    """Whether each paragraph takes up what only its own question says, or the paragraphs fit better in another order."""
    draft, rows = candidate.draft, candidate.rows
    marks = marks_of([f"{row.question} {row.answer}" for row in rows])
    used = marks_of(list(draft.paragraphs))
    fit = np.array([[len(words & own) / np.sqrt((len(words) + 2) * (len(own) + 2)) for own in marks] for words in used])
    answers = np.array([plain_words(row.answer) for row in rows])
    alike = answers[:, None] == answers[None, :]
    for may_change_places, margin in ((alike, _SWAP_MARGIN["same answers"]), (True, _SWAP_MARGIN["different answers"])):
        best = linear_sum_assignment(np.where(may_change_places, fit, -1.0), maximize=True)
        if fit[best].sum() > np.trace(fit) + margin:
            moved, other = next((place, other) for place, other in zip(*best, strict=True) if place != other)
            return f"the paragraph of problem {rows[moved].id} fits problem {rows[other].id} better"
    return None


def _enlightenment(candidate: Candidate) -> str | None:
    """Specific means: for every problem, what no other of the group has (a number, two words, four words in a row); or,
    where problems share their facts, four words in a row that others have too, and the problem by its task or its place
    ('the landing page', 'the second'). A task's name alone says nothing of the problem.
    """
    draft, rows, shared = candidate.draft, candidate.rows, candidate.shared
    text = draft.enlightenment
    if len(text.split()) < _MIN_ENLIGHTENMENT_WORDS:
        return f"only {len(text.split())} words"
    said = content_words(text) | numbers(text)
    if candidate.grouping == "entity" and shared.casefold() not in text.casefold() and not content_words(shared) & said:
        return f"does not name {shared}"
    material = [f"{row.question} {paragraph}" for row, paragraph in zip(rows, draft.paragraphs, strict=True)]
    tasks = [row.task.replace("_", " ") for row in rows]
    names, quoted = marks_of(tasks), _quotations(text, rows)
    for place, (row, marks, quotes) in enumerate(zip(rows, marks_of(material), quoted, strict=True)):
        task = tasks.count(tasks[place]) == 1 and plain_words(tasks[place]) in plain_words(text)
        named = task or names[place] & said or re.search(rf"\b{_ORDINALS[place]}\b", text.lower())
        hits = (marks - content_words(tasks[place])) & said
        number = any(mark[0].isdigit() and len(mark) > 1 for mark in hits)
        if not (number or quotes["own"] or (named and quotes["any"]) or len(hits) >= min(2, len(marks))):
            return f"says nothing that is particular to problem {row.id}"
    return None


def _quotations(text: str, rows: Sequence[Problem]) -> list[dict[str, bool]]:
    """For each problem, whether `text` has its whole answer or a formula (two words or more), or four words in a row of it.

    'own': what no other problem of the group has; 'any': whatever it has.
    """
    said = f" {_plain(text)} "
    runs = [_runs(row) for row in rows]
    found = []
    for place, own in enumerate(runs):
        others = set().union(*(other for index, other in enumerate(runs) if index != place))
        present = {run for run in own if f" {run} " in said}
        found.append({"own": bool(present - others), "any": bool(present)})
    return found


def _runs(row: Problem) -> set[str]:
    answer, words = _plain(row.answer).split(), _plain(f"{row.question}\n{row.answer}").split()
    formulas = {_plain(formula) for formula in re.findall(r"\$[^$]+\$", row.question)}
    runs = {" ".join(words[start : start + 4]) for start in range(len(words) - 3)}
    return runs | {formula for formula in formulas if " " in formula} | ({" ".join(answer)} if len(answer) > 1 else set())


def _plain(text: str) -> str:
    return plain_words(text.replace("$", " "))


OWN_CHECKS: dict[str, Callable[[Candidate], str | None]] = {
    "form": _form,
    "length": _length,
    "language": _language,
    "reasoning": _reasoning,
    "gold answer": _gold,
    "arithmetic": _arithmetic,
    "own problem": _own_problem,
    "enlightenment": _enlightenment,
}
CHECKS = (*OWN_CHECKS, "contamination", "boilerplate", "near-duplicate", "paraphrase")  # these compare with other texts
