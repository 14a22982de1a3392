"""What a draft must pass before anything is trained on it; the first check that fails gives the reason.

The checks are for the text of a teacher that nobody has read: is each paragraph about its own
problem and does it reach the gold answer, is the printed arithmetic right, does the enlightenment
speak of every problem, and is the passage readable and of the right length. A model's answer is
read by the same checks one part at a time (`read_paragraph`, ...), so that a part that fails is
asked for again alone. What compares a passage with others is in quality.py.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from trait_kit.engine.llm import clean
from trait_kit.judging.answers import conclusion, is_mathematical, plain_words, reaches
from trait_kit.judging.numbers import arithmetic_slips, numbers
from trait_kit.passages.material import Draft, Group, Problem, content, content_words, marks_of, own_of, unspaced_words

_MIN_ENLIGHTENMENT_WORDS, _SENTENCE_WORDS = 15, (5, 60)
_ENDING = 8  # words, up to the last number of a sentence
_SAID = content("words.yaml")
_ORDINALS = _SAID["ordinals"]
_TIMES, _DIVISION, _SECOND_THOUGHTS = (re.compile(_SAID[name]) for name in ("times", "division", "second_thoughts"))
# By how much another order of the paragraphs must fit better (cosine of what only one question and only one paragraph says)
# to be believed. Paragraphs that reach different gold answers can hardly have been swapped, and tasks may share facts.
_SWAP_MARGIN = {"same answers": 0.1, "different answers": 0.4}


def own_fault(
    group: Group, draft: Draft, names: Sequence[str] = (), beside: Iterable[tuple[str, str | None]] = ()
) -> tuple[list[str], str]:
    """The names of the checks passed, and '' or the reason ('check: details') of the first that failed; no other is made.

    `names`: of OWN_CHECKS these alone; else all, but for that of an enlightenment where nobody wrote one. After them comes
    what was found `beside`: a check's name, and what is wrong or None.
    """
    names, passed = names or [name for name in OWN_CHECKS if draft.enlightenment or name != "enlightenment"], []
    for name, fault in itertools.chain(((name, OWN_CHECKS[name](group, draft)) for name in names), beside):
        if fault:
            return passed, f"{name}: {fault}"
        passed.append(name)
    return passed, ""


def read_paragraph(group: Group, answer: str) -> str:
    """The paragraph of a group of one problem in a model's answer; ValueError says what is wrong with it."""
    text = first_paragraph(answer)
    _require(group, Draft((text,), ""), "form", "language", "reasoning", "gold answer", "arithmetic")
    return text


def read_enlightenment(group: Group, paragraphs: Sequence[str], answer: str) -> str:
    """The enlightenment in a model's answer; ValueError says what is wrong with it."""
    text = first_paragraph(answer)
    _require(group, Draft(tuple(paragraphs), text), "form", "language", "arithmetic", "enlightenment")
    return text


def read_sentence(group: Group, paragraphs: Sequence[str], place: int | None, answer: str) -> str:
    """What an answer says for an enlightenment: on what is shared (`place` None), or in a first sentence on one problem."""
    said = " ".join(first_paragraph(answer).split())
    _refuse_contradiction(said)
    text = said if place is None else re.split(r"(?<=[.!?])\s+(?=[A-Z])|(?<=[。！？])", said)[0]
    _require(replace(group, rows=group.rows[:1]), Draft((text,), ""), "form", "arithmetic")
    if not _SENTENCE_WORDS[0] <= (count := _words(text)) <= _SENTENCE_WORDS[1]:
        raise ValueError(f"enlightenment: {count} words, not within 15 to 40")
    about = range(len(group.rows)) if place is None else [place]
    source = " ".join(f"{group.rows[at].question} {paragraphs[at]} {group.rows[at].answer}" for at in about)
    counts = {found for found in _TIMES.findall(text.lower()) if found not in source.lower()}
    if foreign := (numbers(text) - numbers(source)) | counts:
        raise ValueError(f"enlightenment: '{min(foreign)}' stands in no problem or solution that it is about")
    _refuse_division(text, numbers(source))
    said = content_words(text) | numbers(text)
    if place is None:
        _refuse_vague(group, said)
    else:
        row, ending = group.rows[place], numbers(" ".join(re.sub(r"\D+$", "", text).split()[-_ENDING:]))
        _refuse_general(row, _marks(group.rows, paragraphs)[place], said)
        if is_mathematical(row.answer) and numbers(row.answer) - ending:
            raise ValueError(f"enlightenment: it does not end with the answer, {row.answer}")
    return text


def _refuse_vague(group: Group, said: set[str]) -> None:
    """An opening says something of each problem beside what they share, and little that none of them has."""
    shared = content_words(group.shared)
    questions = [content_words(row.question) | numbers(row.question) for row in group.rows]
    for place, words in enumerate(questions, start=1):
        if not (words - shared) & said:
            raise ValueError(f"enlightenment: it leaves out problem {place}")
    foreign = said - shared.union(*questions)
    if 2 * len(foreign) > len(said):
        raise ValueError(f"enlightenment: {', '.join(sorted(foreign)[:5])} stand in none of the problems")


def _refuse_general(row: Problem, marks: set[str], said: set[str]) -> None:
    """A sentence on one problem names a step of its solution that the others' have not."""
    steps = marks - content_words(row.question) - numbers(row.question) or marks
    if not said & steps:
        some = sorted(steps, key=lambda mark: (not mark[0].isdigit(), mark))[:3]
        raise ValueError(f"enlightenment: it does not name this problem's own steps, for instance {', '.join(some)}")


def _refuse_division(text: str, known: set[str]) -> None:
    """A division that is told in words has the quotient or the remainder that it says, of a number that is `known`."""
    whole = {int(number) for number in known if number.isdecimal()}
    for found in _DIVISION.finditer(text):
        divisor, result = int(found[3]), int(found[4])
        divided = {int(found[1] or found[2])} if found[1] or found[2] else whole
        if not divisor or not any(result in (number % divisor, number / divisor) for number in divided):
            raise ValueError(f"arithmetic: '{found[0]}' is wrong")


def _refuse_contradiction(text: str) -> None:
    if found := _SECOND_THOUGHTS.search(text):
        raise ValueError(f"contradiction: it says '{found[0]}', so it may not believe its own calculation")
    if len(answers := set(re.findall(r"answer is ([^.]+)", text))) > 1:
        raise ValueError(f"contradiction: it has {len(answers)} final answers")


def first_paragraph(answer: str) -> str:
    """Up to the first blank line: what a small model writes after it was not asked for."""
    return clean(re.split(r"\n[ \t]*\n", answer.strip().replace("\r\n", "\n"), maxsplit=1)[0])


def _require(group: Group, draft: Draft, *names: str) -> None:
    _, fault = own_fault(group, draft, names)
    if fault:
        raise ValueError(fault)
    _refuse_contradiction(draft.enlightenment or draft.paragraphs[-1])


def _marks(rows: Sequence[Problem], paragraphs: Sequence[str]) -> list[set[str]]:
    pairs = zip(rows, paragraphs, strict=True)
    return marks_of([f"{row.question} {paragraph}" for row, paragraph in pairs])


def _form(group: Group, draft: Draft) -> str | None:
    count = len(group.rows)
    if len(draft.paragraphs) != count:
        return f"{len(draft.paragraphs)} paragraphs for {count} problems"
    parts = [*draft.paragraphs, draft.enlightenment] if draft.enlightenment else draft.paragraphs
    for place, part in enumerate(parts, start=1):
        name = f"paragraph {place}" if place <= count else "the enlightenment"
        if not part.strip():
            return f"{name} is empty"
        if re.search(r"[\x00-\x09\x0b-\x1f\x7f\ufffd]", part):
            return f"{name} holds control characters or broken text"
        if "\n\n" in part or re.search(r"^(?:Question|Answer):", part, re.MULTILINE):
            return f"{name} would break the layout of the passage (an empty line, or a line that starts like a problem)"
    return None


def _language(group: Group, draft: Draft) -> str | None:
    """Written in the script of the problems: the share of Latin letters may not be far from theirs."""
    share = _latin_share("".join((*draft.paragraphs, draft.enlightenment)))
    expected = _latin_share("".join(row.question for row in group.rows))
    if abs(share - expected) > 0.25:
        return f"{share:.0%} of its letters are Latin, {expected:.0%} in the problems"
    return None


def _latin_share(text: str) -> float:
    letters = [mark for mark in text if mark.isalpha()]
    return sum(mark < "\u0250" for mark in letters) / len(letters) if letters else 1.0


def _reasoning(group: Group, draft: Draft) -> str | None:
    for row, paragraph in zip(group.rows, draft.paragraphs, strict=True):
        ending, marked = conclusion(paragraph)
        said, stated = (len(re.findall(r"\w+", text)) + unspaced_words(text) for text in (paragraph, ending))
        if said < stated + 3 * marked + 3:  # 'the answer is'
            return f"the paragraph of problem {row.id} only states an answer"
    return None


def _gold(group: Group, draft: Draft) -> str | None:
    for row, paragraph in zip(group.rows, draft.paragraphs, strict=True):
        right, found = reaches(row.answer, paragraph, row.choices or (), row.question)
        if not right:
            return f"problem {row.id}: the answer is {row.answer[:80]!r}, the paragraph concludes {found[:80]!r}"
    return None


def _arithmetic(group: Group, draft: Draft) -> str | None:
    for part in (*draft.paragraphs, draft.enlightenment):
        slips = arithmetic_slips(part)
        if slips:
            return f"{slips[0][:100]} is wrong"
    return None


def _own_problem(group: Group, draft: Draft) -> str | None:
    """Whether each paragraph takes up what only its own question says, or the paragraphs fit better in another order."""
    rows = group.rows
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


def _enlightenment(group: Group, draft: Draft) -> str | None:
    """Specific means: for every problem, what no other of the group has (a number, two words, four words in a row); or,
    where problems share their facts, four words in a row that others have too, and the problem by
    its task or its place ('the landing page', 'the second'). A task's name alone says nothing of
    the problem.
    """
    text, rows, shared = draft.enlightenment, group.rows, group.shared
    if (count := _words(text)) < _MIN_ENLIGHTENMENT_WORDS:
        return f"only {count} words"
    said = content_words(text) | numbers(text)
    if group.grouping == "entity" and shared.casefold() not in text.casefold() and not content_words(shared) & said:
        return f"does not name {shared}"
    tasks = [row.task.replace("_", " ") for row in rows]
    names, marks = marks_of(tasks), _marks(rows, draft.paragraphs)
    runs = [_runs(row) for row in rows]
    own_runs = own_of(runs)
    for place, (row, task) in enumerate(zip(rows, tasks, strict=True)):
        quoted = {run for run in runs[place] if f" {run} " in f" {_plain(text)} "}
        by_task = tasks.count(task) == 1 and plain_words(task) in plain_words(text)
        named = by_task or names[place] & said or re.search(rf"\b{_ORDINALS[place]}\b", text.lower())
        hits = (marks[place] - content_words(task)) & said
        number = any(mark[0].isdigit() and len(mark) > 1 for mark in hits)
        words = len(hits) >= min(2, len(marks[place]))
        if not (number or words or quoted & own_runs[place] or (named and quoted)):
            return f"says nothing that is particular to problem {row.id}"
    return None


def _words(text: str) -> int:
    return len(text.split()) + unspaced_words(text)


def _runs(row: Problem) -> set[str]:
    """What of a problem can be quoted: four words in a row, a formula or the whole answer of two words or more."""
    answer, words = _plain(row.answer), _plain(f"{row.question}\n{row.answer}").split()
    whole = [answer, *(_plain(formula) for formula in re.findall(r"\$[^$]+\$", row.question))]
    return {" ".join(words[start : start + 4]) for start in range(len(words) - 3)} | {text for text in whole if " " in text}


def _plain(text: str) -> str:
    return plain_words(text.replace("$", " "))


OWN_CHECKS: dict[str, Callable[[Group, Draft], str | None]] = {
    "form": _form,
    "language": _language,
    "reasoning": _reasoning,
    "gold answer": _gold,
    "arithmetic": _arithmetic,
    "own problem": _own_problem,
    "enlightenment": _enlightenment,
}
