"""Write passages: ask the teacher for every group, check what comes back, and account for all of it.

Asking is concurrent, checking is in the order of the groups, so the result does not depend on which answer came first.
Every group ends as a row of passages.parquet or as one of rejected.parquet with its reason, and the bill counts both. A
rejected group may be asked for again (`max_attempts`): the teacher is told why, and each attempt that failed keeps its row.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trait_kit import tables
from trait_kit.engine.endpoint import ask_all
from trait_kit.engine.files import TraitError
from trait_kit.engine.ledger import Ledger
from trait_kit.engine.money import Estimate
from trait_kit.engine.questions import QuestionIndex
from trait_kit.params import PassageParams
from trait_kit.passages.checks import Candidate, own_fault
from trait_kit.passages.drafts import Draft, Problem, Rejection, problem_rows
from trait_kit.passages.grouping import Group
from trait_kit.passages.novelty import Novelty
from trait_kit.passages.teachers import OpenAITeacher, Refused, Teacher

_BATCH = 2_000  # passages checked and written at a time: bounds memory
_ESTIMATED = 1_000  # groups whose prompts are rendered for an estimate
# The ablations' checks that are not made. Contamination always is.
_SKIPPED = {
    "full": (),
    "single_task": (),
    "no_enlightenment": ("enlightenment", "boilerplate"),
    "no_gold_checks": ("reasoning", "gold answer", "arithmetic", "own problem"),
    "pairs": ("form", "length", "reasoning", "own problem", "enlightenment", "boilerplate"),
}


def write_passages(
    groups: Sequence[Group],
    problems: pd.DataFrame,
    teacher: Teacher,
    ledger: Ledger,
    *,
    folder: Path,
    test_questions: Sequence[str],
    count_tokens: Callable[[list[str]], np.ndarray],
    params: PassageParams,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The bill; passages.parquet and rejected.parquet in `folder`, whole or not at all, rows in the order of the groups.

    `ledger` keeps the teacher's answers as they come: a run that was killed goes on from them. A passage that holds one of
    the `test_questions` is rejected. `progress` is called with (done, all) while the teacher is asked.
    """
    rows_of = _rows_of(groups, problem_rows(problems))
    tested, novelty = QuestionIndex(test_questions), Novelty(params)
    bill = _Bill(teacher)
    refused: dict[int, Refused] = {}
    places = list(range(len(groups)))
    with (
        tables.writer(folder / "passages.parquet", "passages") as keep,
        tables.writer(folder / "rejected.parquet", "rejected") as reject,
    ):
        for attempt in range(1, params.max_attempts + 1):
            answers = _ask(teacher, groups, rows_of, places, refused, ledger, progress)
            again: dict[int, Refused] = {}
            for first in range(0, len(places), _BATCH):
                some = places[first : first + _BATCH]
                drafts = [(groups[place], rows_of(place), next(answers)) for place in some]
                judged = _judge(drafts, attempt, novelty, tested, count_tokens, params)
                for place, (_, _, answer), (row, reason) in zip(some, drafts, judged, strict=True):
                    bill.add(row, reason)
                    if not reason:
                        keep(row)
                        continue
                    reject({**row, "reason": reason})
                    if reason.partition(":")[0] in teacher.can_mend:
                        before = refused[place].history if place in refused else ()
                        again[place] = Refused((*before, (_answer_text(answer), reason)))
            refused, places = again, list(again)
    return bill.total(len(groups), ledger)


def compose_text(rows: Sequence[Problem], draft: Draft, enlightened: bool = True) -> str:
    """The passage as a base model reads it: each problem as in the evaluation's prompt, then the enlightenment."""
    parts = [
        f"Question: {row.question}\nAnswer: {paragraph}" for row, paragraph in zip(rows, draft.paragraphs, strict=False)
    ]
    return "\n\n".join([*parts, draft.enlightenment] if enlightened and draft.enlightenment else parts)


def estimate_bill(
    groups: Sequence[Group], problems: pd.DataFrame, teacher: Teacher, count_tokens: Callable[[list[str]], np.ndarray]
) -> Estimate:
    """What asking for all groups once would cost, before anything is asked: a sample's prompts counted, answers guessed.

    An answer is taken to be 1.3 times the worked solutions (80 tokens where there is none) and 120 tokens of enlightenment;
    repairs and further attempts are not counted. A teacher that is no endpoint costs nothing.
    """
    if not isinstance(teacher, OpenAITeacher) or not groups:
        return Estimate(0, 0, 0, 0.0, 0.0)
    rows_of = _rows_of(groups, problem_rows(problems))
    sample = range(0, len(groups), len(groups) // _ESTIMATED + 1)
    asked = [teacher.question(groups[place], rows_of(place)) for place in sample]
    solutions = [row.solution for place in sample for row in rows_of(place) if row.solution]
    unsolved = sum(len(groups[place].problem_ids) for place in sample) - len(solutions)
    tokens_in = int(np.sum(count_tokens(asked)))
    tokens_out = int(1.3 * np.sum(count_tokens(solutions)) if solutions else 0) + 80 * unsolved + 120 * len(asked)
    scale = len(groups) / len(sample)
    return teacher.estimate(len(groups), round(tokens_in * scale), round(tokens_out * scale))


def _rows_of(groups: Sequence[Group], by_id: dict[str, Problem]) -> Callable[[int], list[Problem]]:
    for problem_id in dict.fromkeys(problem_id for group in groups for problem_id in group.problem_ids):
        if problem_id not in by_id:
            raise TraitError(
                f"A group names the problem {problem_id}, which is not in the problems table. Make groups again."
            )
        if by_id[problem_id].split != "train":
            split = by_id[problem_id].split
            raise TraitError(f"Problem {problem_id} is from the split '{split}'; passages may only hold train problems.")
    return lambda place: [by_id[problem_id] for problem_id in groups[place].problem_ids]


def _ask(
    teacher: Teacher,
    groups: Sequence[Group],
    rows_of: Callable[[int], list[Problem]],
    places: Sequence[int],
    refused: dict[int, Refused],
    ledger: Ledger,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Draft | Rejection]:
    return ask_all(
        len(places),
        lambda turn: teacher.write(groups[places[turn]], rows_of(places[turn]), ledger, refused.get(places[turn])),
        fault_of=lambda answer: answer.reason if isinstance(answer, Rejection) else "",
        give_up=lambda reason: Rejection(reason, teacher.name, ""),
        concurrency=teacher.concurrency,
        progress=progress,
    )


def _judge(
    drafts: Sequence[tuple[Group, list[Problem], Draft | Rejection]],
    attempt: int,
    novelty: Novelty,
    tested: QuestionIndex,
    count_tokens: Callable[[list[str]], np.ndarray],
    params: PassageParams,
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The row of each draft, and the reason of its rejection, or None."""
    skip, limits = _SKIPPED[params.variant], (params.min_passage_tokens, params.max_passage_tokens)
    rows = [_row(group, problems, answer, attempt, params.variant) for group, problems, answer in drafts]
    texts = [row["text"] for row in rows]
    contaminated = _contamination(texts, tested)
    novelty.begin(texts, [row["enlightenment"] for row in rows])
    for place, ((_, problems, answer), row, n_tokens) in enumerate(zip(drafts, rows, count_tokens(texts), strict=True)):
        row["n_tokens"] = int(n_tokens)
        if isinstance(answer, Rejection):
            yield row, answer.reason
            continue
        candidate = Candidate(answer, problems, row["grouping"], row["shared"], row["n_tokens"], limits)
        row["checks"], reason = own_fault(candidate, skip)
        for name, fault in () if reason else _compared(place, novelty, contaminated, skip):
            if fault:
                reason = f"{name}: {fault}"
                break
            row["checks"].append(name)
        if not reason:
            novelty.accept(place, row["id"])
        yield row, reason


def _compared(
    place: int, novelty: Novelty, contaminated: dict[int, str], skip: Sequence[str]
) -> Iterator[tuple[str, str | None]]:
    yield "contamination", contaminated.get(place)
    for name, find in novelty.checks.items():
        if name not in skip:
            yield name, find(place)


def _contamination(texts: list[str], tested: QuestionIndex) -> dict[int, str]:
    found: dict[int, str] = {}
    for row in tested.find(texts).itertuples(index=False):
        detail = f"{row.kind} overlap ({row.overlap:.0%}) with test question {row.test_index}: {row.excerpt[:100]!r}"
        found.setdefault(int(row.text_index), detail)
    return found


def _row(group: Group, rows: list[Problem], answer: Draft | Rejection, attempt: int, variant: str) -> dict[str, Any]:
    drafted = isinstance(answer, Draft)
    return {
        "id": group.id,
        "problem_ids": list(group.problem_ids),
        "tasks": [row.task for row in rows],
        "grouping": group.grouping,
        "shared": group.shared,
        "paragraphs": list(answer.paragraphs) if drafted else [],
        "enlightenment": answer.enlightenment if drafted else "",
        "text": compose_text(rows, answer, variant != "no_enlightenment") if drafted else answer.answer,
        "attempt": attempt,
        "teacher": answer.teacher,
        "prompt_version": answer.prompt_version,
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
        "cost_usd": answer.cost_usd,
        "checks": [],
    }


def _answer_text(answer: Draft | Rejection) -> str:
    if isinstance(answer, Rejection):
        return answer.answer
    return json.dumps({"paragraphs": answer.paragraphs, "enlightenment": answer.enlightenment}, ensure_ascii=False)


class _Bill:
    """What was written, rejected and paid for, row by row."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.versions: set[str] = set()
        self.reasons: Counter[str] = Counter()
        self.passages = self.tokens_in = self.tokens_out = 0
        self.rejected_usd = self.cost_usd = 0.0
        self.usd_by_task: dict[str, float] = defaultdict(float)

    def add(self, row: dict[str, Any], reason: str | None) -> None:
        self.versions.add(row["prompt_version"])
        self.tokens_in += row["tokens_in"]
        self.tokens_out += row["tokens_out"]
        self.cost_usd += row["cost_usd"]
        for task in row["tasks"]:  # a passage's cost is shared evenly by its problems
            self.usd_by_task[task] += row["cost_usd"] / len(row["tasks"])
        if reason:
            self.reasons[reason.partition(":")[0]] += 1
            self.rejected_usd += row["cost_usd"]
        else:
            self.passages += 1

    def total(self, groups: int, ledger: Ledger) -> dict[str, Any]:
        return {
            "teacher": self.teacher.name,
            "prompt_versions": sorted(self.versions - {""}),
            "groups": groups,
            "passages": self.passages,
            "rejected": dict(sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))),
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "cost_usd": self.cost_usd,
            "cost_usd_rejected": self.rejected_usd,
            "cost_usd_per_passage": self.cost_usd / max(1, self.passages),
            "cost_usd_by_task": dict(sorted(self.usd_by_task.items())),
            **ledger.bill(),
        }
