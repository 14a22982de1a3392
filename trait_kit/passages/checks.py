"""What a draft must pass before anything is trained on it; the first that fails gives the reason.

A model's answer is read by the same checks part by part: what fails is asked for again alone. quality.py
compares passages.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from trait_kit.engine.llm import clean
from trait_kit.judging.answers import conclusion, is_mathematical, plain_words, reaches
from trait_kit.judging.numbers import arithmetic_slips, in_figures, numbers
from trait_kit.passages.material import (
    Draft,
    Group,
    Problem,
    content,
    content_words,
    count_words,
    marks,
    marks_of,
    own_of,
)

_MIN_WORDS, _SENTENCE_WORDS = 15, range(5, 61)
_LAST = 8  # words up to the last number
_ORDINALS = content("words.yaml")["ordinals"]
_CLAIM, _TURNS, _OPERATION, _DOUBT, _END = (
    re.compile(content("words.yaml")[name]) for name in ("claims", "turns", "operations", "doubts", "ends")
)
# By how much another order of the paragraphs must fit better (cosine of what one question and paragraph alone say):
# of those with one gold answer, and of all.
_SWAP_MARGINS = 0.1, 0.4


def own_fault(
    group: Group, draft: Draft, names: Sequence[str] = (), beside: Iterable[tuple[str, str | None]] = ()
) -> tuple[list[str], str]:
    """The names of the checks passed, and '' or the reason ('check: details') of the first that failed; no other is made.

    `names`: of OWN_CHECKS these alone. `beside`: names of more checks, and their fault or None.
    """
    names, passed = names or [name for name in OWN_CHECKS if draft.enlightenment or name != "enlightenment"], []
    found = ((name, next(OWN_CHECKS[name](group, draft), None)) for name in names)
    for name, fault in itertools.chain(found, beside):
        if fault:
            return passed, f"{name}: {fault}"
        passed.append(name)
    return passed, ""


def read_paragraph(group: Group, answer: str) -> str:
    """The paragraph of a group of one problem in an answer; ValueError says what is wrong."""
    text = first_paragraph(answer)
    return _require(text, group, Draft((text,), ""), "form", "language", "reasoning", "gold answer", "arithmetic")


def read_enlightenment(group: Group, paragraphs: Sequence[str], answer: str) -> str:
    """The enlightenment in an answer; ValueError likewise."""
    text = first_paragraph(answer)
    return _require(
        text, group, Draft(tuple(paragraphs), text), "form", "language", "arithmetic", "enlightenment"
    )


def read_sentence(group: Group, paragraphs: Sequence[str], answer: str, place: int | None = None) -> str:
    """What an answer says on all, or first on the problem at `place`."""
    said = " ".join(first_paragraph(answer).split())
    counted = is_mathematical(group.rows[0].answer)
    text = _END.split(said)[0] if counted or place is not None else said
    rows, told = (group.rows, "") if place is None else ([group.rows[place]], paragraphs[place])
    _require(said, replace(group, rows=rows), Draft((text,) * len(rows), ""), "form", "arithmetic")
    if (count := count_words(text)) not in _SENTENCE_WORDS:
        raise ValueError(f"enlightenment: {count} words, not within 15 to 40")
    source = " ".join([group.shared, *(row.question for row in rows), told])

    known = {*_CLAIM.findall(_TURNS.sub("times", source.lower()))}
    claims = {found for found in _CLAIM.findall(text.lower()) if not {found, in_figures(found)} & known}
    if foreign := (numbers(text) - numbers(source) - numbers(in_figures(re.sub(r"\d", " ", source)))) | claims:
        raise ValueError(f"enlightenment: '{min(foreign)}' stands in no problem or solution that it is about")
    if place is None:
        if counted and (done := _OPERATION.search(text)):
            raise ValueError(f"enlightenment: '{done[0]}' tells of a solution")
        shared = content_words(group.shared)
        for number, row in enumerate(group.rows, start=1):
            if not (marks(row.question) - shared) & marks(text):
                raise ValueError(f"enlightenment: it leaves out problem {number}")
    else:
        _refuse_general(group.rows[place], _marks(group.rows, paragraphs)[place], text)
    return text


def _refuse_general(row: Problem, own: set[str], text: str) -> None:
    """A sentence on one problem names a step of its solution that the others' have not, and ends with its number."""
    if not marks(text) & (steps := own - marks(row.question) or own):
        some = ", ".join(sorted(steps, key=lambda mark: (not mark[0].isdigit(), mark))[:3])
        raise ValueError(f"enlightenment: it does not name this problem's own steps, for instance {some}")
    ending = " ".join(re.sub(r"\D+$", "", text).split()[-_LAST:])
    if is_mathematical(row.answer) and numbers(row.answer) - numbers(ending):
        raise ValueError(f"enlightenment: it does not end with the answer, {row.answer}")


def _contradiction(text: str, asked: str) -> Iterator[str]:
    for found in _DOUBT.findall(text):
        if not re.search(rf"\b{found}\b", asked, re.IGNORECASE):
            yield f"it says '{found}', so it may not believe its own calculation"
    if len(answers := set(re.findall(r"answer is ((?:[^.]|\.\d)+)", text))) > 1:
        yield f"it has {len(answers)} final answers"


def first_paragraph(answer: str) -> str:
    """Up to the first blank line."""
    return clean(re.split(r"\n[ \t]*\n", answer.strip().replace("\r\n", "\n"), maxsplit=1)[0])


def _require(said: str, group: Group, draft: Draft, *names: str) -> str:
    asked = " ".join(row.question for row in group.rows)
    if fault := own_fault(group, draft, names, [("contradiction", next(_contradiction(said, asked), None))])[1]:
        raise ValueError(fault)
    return said


def _marks(rows: Sequence[Problem], paragraphs: Sequence[str]) -> list[set[str]]:
    return marks_of([f"{row.question} {paragraph}" for row, paragraph in zip(rows, paragraphs, strict=True)])


def _form(group: Group, draft: Draft) -> Iterator[str]:
    count = len(group.rows)
    if len(draft.paragraphs) != count:
        yield f"{len(draft.paragraphs)} paragraphs for {count} problems"
    parts = [*draft.paragraphs, draft.enlightenment] if draft.enlightenment else draft.paragraphs
    for place, part in enumerate(parts, start=1):
        name = f"paragraph {place}" if place <= count else "the enlightenment"
        if not part.strip():
            yield f"{name} is empty"
        if re.search(r"[\x00-\x09\x0b-\x1f\x7f\ufffd]", part):
            yield f"{name} holds control characters or broken text"
        if "\n\n" in part or re.search(r"^(?:Question|Answer):", part, re.MULTILINE):
            yield f"{name} would break the layout of the passage (an empty line, or a line that starts like a problem)"


def _language(group: Group, draft: Draft) -> Iterator[str]:
    share = _latin_share("".join((*draft.paragraphs, draft.enlightenment)))
    expected = _latin_share("".join(row.question for row in group.rows))
    if abs(share - expected) > 0.25:
        yield f"{share:.0%} of its letters are Latin, {expected:.0%} in the problems"


def _latin_share(text: str) -> float:
    letters = [mark for mark in text if mark.isalpha()]
    return sum(mark < "\u0250" for mark in letters) / len(letters) if letters else 1.0


def _reasoning(group: Group, draft: Draft) -> Iterator[str]:
    for row, paragraph in zip(group.rows, draft.paragraphs, strict=True):
        ending, marked = conclusion(paragraph)
        if count_words(paragraph, r"\w+") < count_words(ending, r"\w+") + 3 * marked + 3:  # 'the answer is'
            yield f"the paragraph of problem {row.id} only states an answer"


def _gold_answer(group: Group, draft: Draft) -> Iterator[str]:
    for row, paragraph in zip(group.rows, draft.paragraphs, strict=True):
        right, found = reaches(row.answer, paragraph, row.choices or (), row.question)
        if not right:
            yield f"problem {row.id}: the answer is {row.answer[:80]!r}, the paragraph concludes {found[:80]!r}"


def _arithmetic(group: Group, draft: Draft) -> Iterator[str]:
    for part in (*draft.paragraphs, draft.enlightenment):
        yield from (f"{slip[:100]} is wrong" for slip in arithmetic_slips(part))


def _own_problem(group: Group, draft: Draft) -> Iterator[str]:
    """Whether each paragraph takes up what its own question says."""
    rows = group.rows
    asked, used = _marks(rows, [row.answer for row in rows]), marks_of(list(draft.paragraphs))
    fit = np.array(
        [[len(words & own) / np.sqrt((len(words) + 2) * (len(own) + 2)) for own in asked] for words in used]
    )
    answers = np.array([plain_words(row.answer) for row in rows])
    for may_change_places, margin in zip((answers[:, None] == answers, True), _SWAP_MARGINS, strict=True):
        best = linear_sum_assignment(np.where(may_change_places, fit, -1.0), maximize=True)
        if fit[best].sum() > np.trace(fit) + margin:
            moved, other = next((place, other) for place, other in zip(*best, strict=True) if place != other)
            yield f"the paragraph of problem {rows[moved].id} fits problem {rows[other].id} better"


def _enlightenment(group: Group, draft: Draft) -> Iterator[str]:
    """It says for every problem what no other of the group has: a number, two words, four words in a row.

    Where problems share their facts: four words in a row that others have too, and the problem by its task or place ('the
    landing page', 'the second').
    """
    text, rows, shared = draft.enlightenment, group.rows, group.shared
    if (count := count_words(text)) < _MIN_WORDS:
        yield f"only {count} words"
    said = marks(text)
    if (
        group.grouping == "entity"
        and shared.casefold() not in text.casefold()
        and not content_words(shared) & said
    ):
        yield f"does not name {shared}"
    tasks = [row.task.replace("_", " ") for row in rows]
    names, marked, runs = marks_of(tasks), _marks(rows, draft.paragraphs), [_runs(row) for row in rows]

    for place, (row, task, own_runs) in enumerate(zip(rows, tasks, own_of(runs), strict=True)):
        quoted = {run for run in runs[place] if f" {run} " in f" {_plain(text)} "}
        by_task = tasks.count(task) == 1 and plain_words(task) in plain_words(text)
        named = by_task or names[place] & said or re.search(rf"\b{_ORDINALS[place]}\b", text.lower())
        hits = (marked[place] - content_words(task)) & said
        enough = len(hits) >= min(2, len(marked[place])) or any(
            mark[0].isdigit() and len(mark) > 1 for mark in hits
        )
        if not (enough or quoted & own_runs or (named and quoted)):
            yield f"says nothing that is particular to problem {row.id}"


def _runs(row: Problem) -> set[str]:
    """What of a problem can be quoted: four words in a row, a formula or the whole answer of two words or more."""
    answer, words = _plain(row.answer), _plain(f"{row.question}\n{row.answer}").split()
    whole = [answer, *(_plain(formula) for formula in re.findall(r"\$[^$]+\$", row.question))]
    return {" ".join(words[start : start + 4]) for start in range(len(words) - 3)} | {
        text for text in whole if " " in text
    }


def _plain(text: str) -> str:
    return plain_words(text.replace("$", " "))


OWN_CHECKS: dict[str, Callable[[Group, Draft], Iterator[str]]] = {
    check.__name__[1:].replace("_", " "): check
    for check in (_form, _language, _reasoning, _gold_answer, _arithmetic, _own_problem, _enlightenment)
}
