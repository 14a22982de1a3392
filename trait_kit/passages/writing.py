"""Write passages: ask the teacher for every group, check what comes back, and account for all of it.

Asking is concurrent, checking is in the order of the groups, so the result does not depend on which answer came first.
Every group ends as a row of `passages` or as a row of `rejected` with its reason, and the bill counts both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trait_kit import tables
from trait_kit.data.contamination import find_contaminated
from trait_kit.errors import TraitError
from trait_kit.params import PassageParams
from trait_kit.passages import prompts
from trait_kit.passages.checks import Accepted, run_checks
from trait_kit.passages.drafts import Draft, Rejection
from trait_kit.passages.grouping import Group
from trait_kit.passages.teachers import OfflineTeacher, OpenAITeacher
from trait_kit.teaching.endpoint import ask_all
from trait_kit.teaching.ledger import Ledger

Teacher = OfflineTeacher | OpenAITeacher


def write_passages(
    groups: Sequence[Group],
    problems: pd.DataFrame,
    teacher: Teacher,
    *,
    test_questions: list[str],
    count_tokens: Callable[[list[str]], np.ndarray],
    cache_path: Path | str | None,
    params: PassageParams,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """(passages, rejected, bill) for `groups`; rows in the order of the groups.

    `cache_path` is the JSONL file of the teacher's paid answers: a run that was killed goes on from it. `test_questions`
    are those of the final table; a passage that holds one is rejected. `progress` is called with (done, all).
    """
    rows_of = _rows_of(groups, problems)
    ledger = Ledger(
        cache_path,
        cap_usd=teacher.max_cost_usd,
        price_in=teacher.usd_per_million_in,
        price_out=teacher.usd_per_million_out,
    )
    answers = ask_all(
        len(groups),
        lambda place: teacher.write(groups[place], rows_of[place], ledger),
        fault_of=lambda answer: answer.reason if isinstance(answer, Rejection) else "",
        give_up=lambda reason: Rejection(reason, teacher.name, ""),
        concurrency=teacher.concurrency,
        progress=progress,
    )
    texts = [
        compose_text(rows, answer) if isinstance(answer, Draft) else answer.answer
        for rows, answer in zip(rows_of, answers, strict=True)
    ]
    tokens = count_tokens(texts) if texts else []
    contaminated = _contamination(texts, test_questions)
    accepted = Accepted()
    passages, rejected = [], []
    for place, (group, rows, answer) in enumerate(zip(groups, rows_of, answers, strict=True)):
        row = _row(group, rows, answer, texts[place])
        if isinstance(answer, Rejection):
            rejected.append({**row, "reason": answer.reason})
            continue
        row["checks"], reason = run_checks(
            answer,
            rows,
            grouping=group.grouping,
            shared=group.shared,
            text=texts[place],
            n_tokens=int(tokens[place]),
            min_tokens=params.min_passage_tokens,
            max_tokens=params.max_passage_tokens,
            accepted=accepted,
            contaminated=contaminated.get(place),
        )
        if reason:
            rejected.append({**row, "reason": reason})
        else:
            accepted.add(group.id, texts[place], answer.enlightenment)
            passages.append(row)
    return _frame(passages, "passages"), _frame(rejected, "rejected"), _bill(teacher, ledger, answers, passages, rejected)


def compose_text(problems: pd.DataFrame, draft: Draft) -> str:
    """The passage as a base model reads it: each problem as in the evaluation's prompt, then the enlightenment."""
    parts = [
        f"Question: {row.question}\nAnswer: {paragraph}"
        for row, paragraph in zip(problems.itertuples(index=False), draft.paragraphs, strict=False)
    ]
    return "\n\n".join([*parts, draft.enlightenment])


def estimate_bill(
    groups: Sequence[Group], problems: pd.DataFrame, teacher: Teacher, count_tokens: Callable[[list[str]], np.ndarray]
) -> dict[str, Any]:
    """What asking for all groups would cost, before anything is asked: prompts counted, answers guessed.

    An answer is taken to be 1.3 times the worked solutions (80 tokens where there is none) and 120 tokens of enlightenment;
    repair rounds are not counted. The offline teacher costs nothing.
    """
    if isinstance(teacher, OfflineTeacher):
        return {"requests": 0, "tokens_in": 0, "tokens_out": 0, "cost_usd": 0.0}
    rows_of = _rows_of(groups, problems)
    asked = [
        prompts.render(prompts.choose(rows, group.grouping), rows, group.grouping, group.shared)
        for group, rows in zip(groups, rows_of, strict=True)
    ]
    solutions = [text for rows in rows_of for text in rows["solution"] if isinstance(text, str)]
    unsolved = sum(len(rows) for rows in rows_of) - len(solutions)
    tokens_in = int(np.sum(count_tokens(asked))) if asked else 0
    tokens_out = int(1.3 * np.sum(count_tokens(solutions)) if solutions else 0) + 80 * unsolved + 120 * len(asked)
    return teacher.estimate(len(asked), tokens_in, tokens_out)


def _rows_of(groups: Sequence[Group], problems: pd.DataFrame) -> list[pd.DataFrame]:
    by_id = problems.set_index("id", drop=False)
    wanted = {problem_id for group in groups for problem_id in group.problem_ids}
    unknown = sorted(wanted - set(by_id.index))
    if unknown:
        raise TraitError(f"A group names the problem {unknown[0]}, which is not in the problems table. Make groups again.")
    foreign = by_id.loc[sorted(wanted)].query("split != 'train'")
    if len(foreign):
        row = foreign.iloc[0]
        raise TraitError(f"Problem {row['id']} is from the split '{row['split']}'; passages may only hold train problems.")
    return [by_id.loc[list(group.problem_ids)] for group in groups]


def _contamination(texts: list[str], test_questions: list[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    if not texts or not test_questions:
        return found
    for row in find_contaminated(texts, test_questions).itertuples(index=False):
        detail = f"{row.kind} overlap ({row.overlap:.0%}) with test question {row.test_index}: {row.excerpt[:100]!r}"
        found.setdefault(int(row.text_index), detail)
    return found


def _row(group: Group, rows: pd.DataFrame, answer: Draft | Rejection, text: str) -> dict[str, Any]:
    drafted = isinstance(answer, Draft)
    return {
        "id": group.id,
        "problem_ids": list(group.problem_ids),
        "tasks": rows["task"].tolist(),
        "grouping": group.grouping,
        "shared": group.shared,
        "paragraphs": list(answer.paragraphs) if drafted else [],
        "enlightenment": answer.enlightenment if drafted else "",
        "text": text,
        "teacher": answer.teacher,
        "prompt_version": answer.prompt_version,
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
        "cost_usd": answer.cost_usd,
        "checks": [],
    }


def _frame(rows: list[dict[str, Any]], kind: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=tables.SCHEMAS[kind].names) if rows else tables.empty(kind).to_pandas()


def _bill(teacher: Teacher, ledger: Ledger, answers: list, passages: list[dict], rejected: list[dict]) -> dict[str, Any]:
    reasons = Counter(row["reason"].partition(":")[0] for row in rejected)
    return {
        "teacher": teacher.name,
        "prompt_versions": sorted({answer.prompt_version for answer in answers} - {""}),
        "groups": len(answers),
        "passages": len(passages),
        "rejected": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "tokens_in": sum(answer.tokens_in for answer in answers),
        "tokens_out": sum(answer.tokens_out for answer in answers),
        "cost_usd": sum(answer.cost_usd for answer in answers),
        **ledger.bill(),
    }
