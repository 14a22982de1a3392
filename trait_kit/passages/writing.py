"""Write passages: have every group written, check what comes back, and account for all of it.

Asking is concurrent, checking is in the order of the groups, so the result does not depend on which answer came first.
Every group ends as a row of passages.parquet or as one of rejected.parquet with its reason, and the bill counts both. An
enlightenment that is refused beside other passages is asked for again (`max_attempts`), and each draft keeps its row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trait_kit import tables
from trait_kit.engine.files import TraitError, read_json, write_json
from trait_kit.engine.ledger import Ledger, agree
from trait_kit.engine.llm import served
from trait_kit.models import token_counter
from trait_kit.passages.checks import Candidate, own_fault
from trait_kit.passages.grouping import coverage
from trait_kit.passages.material import Draft, Group, compose_text, problem_rows
from trait_kit.passages.novelty import Beside, screen_problems
from trait_kit.passages.relating import plan_groups
from trait_kit.passages.teachers import EndpointTeacher, JoiningTeacher, Order, Teacher, make_teacher
from trait_kit.tasks import every_test_question, load_problems

_BATCH = 2_000  # passages checked and written at a time: bounds memory
_SHOWN_EVERY = 60  # reports of progress that are not printed between two that are
# The ablations' checks that are not made. Contamination always is.
_SKIPPED = {
    "full": (),
    "single_task": (),
    "no_enlightenment": ("enlightenment", "boilerplate"),
    "no_gold_checks": ("reasoning", "gold answer", "arithmetic", "own problem"),
    "pairs": ("form", "length", "reasoning", "own problem", "enlightenment", "boilerplate"),
}


@dataclass(frozen=True)
class Written:
    """What notebook 03 made: tables, and what they cost."""

    problems: pd.DataFrame
    passages: pd.DataFrame
    rejected: pd.DataFrame
    screened: pd.DataFrame  # problems by task and reason why they may not be used
    coverage: pd.DataFrame  # problems by task: used, unused, joined with
    bill: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Written:
        found = [tables.read(folder / f"{name}.parquet", name).to_pandas() for name in ("problems", "passages", "rejected")]
        counted = [pd.read_parquet(folder / f"{name}.parquet") for name in ("screened", "coverage")]
        return cls(*found, *counted, read_json(folder / "bill.json"))


def write_passages(step) -> Written:
    """The whole of notebook 03. Killed at any moment, it goes on from the answers that it has paid for."""
    folder, p = step.folder, step.params
    if step.done:
        return Written.load(folder)
    problems, screened, test_questions = load_material(p)
    counter = token_counter(p.base_model)
    with contextlib.ExitStack() as stack:
        asks = (p.teacher == "openai" and p.variant != "pairs") or p.shared_from == "teacher"
        endpoint = stack.enter_context(served(p, folder)) if asks else None
        ledger = endpoint.ledger(folder / "teacher_answers.sqlite") if endpoint else Ledger(None)
        problems, groups = plan_groups(problems, p, endpoint, ledger)
        teacher = make_teacher(p, endpoint, ledger, _say)
        if isinstance(teacher, EndpointTeacher):
            print(agree(teacher.estimate(orders_of(groups, problems), counter), p.max_cost_usd), flush=True)
        made = {"folder": folder, "test_questions": test_questions, "count_tokens": counter, "params": p}
        bill = write_groups(groups, problems, teacher, **made, ledger=ledger)
    tables.write(folder / "problems.parquet", problems, "problems")
    screened.to_parquet(folder / "screened.parquet")
    coverage(groups, problems).to_parquet(folder / "coverage.parquet")
    write_json(folder / "bill.json", bill)
    return Written.load(folder)


def load_material(params) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """(problems that passages may hold, what was dropped by task and reason, the test questions they were compared with)."""
    loaded = load_problems(params.tasks, "train", params.problems_per_task, params.seed)
    test_questions = every_test_question(params.tasks, params.test_items_per_task, params.seed)
    return *screen_problems(loaded, test_questions), test_questions


def first_order(step) -> Order:
    """One passage to write, for a reader who wants to see how it is done; asks nobody and writes nothing."""
    p = step.params
    if step.done:
        written = Written.load(step.folder)
        row = pd.concat([written.passages, written.rejected]).iloc[0]
        group = Group(row["id"], tuple(row["problem_ids"]), row["grouping"], row["shared"])
        return orders_of([group], written.problems)[0]
    problems, _, _ = load_material(p)
    cheap = p if p.shared_from not in ("teacher", "embedding") else p.model_copy(update={"shared_from": "concepts"})
    problems, groups = plan_groups(problems, cheap)
    return orders_of(groups[:1], problems)[0]


def orders_of(groups: Sequence[Group], problems: pd.DataFrame) -> list[Order]:
    """What a teacher is given; TraitError for a group of problems that are not there."""
    by_id = problem_rows(problems)
    for problem_id in dict.fromkeys(problem_id for group in groups for problem_id in group.problem_ids):
        if problem_id not in by_id:
            raise TraitError(
                f"A group names the problem {problem_id}, which is not in the problems table. Make groups again."
            )
    return [Order(group, [by_id[problem_id] for problem_id in group.problem_ids]) for group in groups]


def write_groups(
    groups: Sequence[Group],
    problems: pd.DataFrame,
    teacher: Teacher,
    *,
    folder: Path,
    test_questions: Sequence[str],
    count_tokens: Callable[[list[str]], np.ndarray],
    params,
    ledger: Ledger | None = None,
) -> dict[str, Any]:
    """The bill; passages.parquet and rejected.parquet in `folder`, whole or not at all, rows in the order of the groups.

    A passage that holds one of the `test_questions` is rejected.
    """
    judge = _Judge(params, teacher, test_questions, count_tokens)
    orders = orders_of(groups, problems)
    with (
        tables.writer(folder / "passages.parquet", "passages") as keep,
        tables.writer(folder / "rejected.parquet", "rejected") as reject,
    ):
        for attempt in range(1, params.max_attempts + 1):
            drafts, refused = teacher.write(orders) if orders else [], []
            for first in range(0, len(orders), _BATCH):
                some, written = orders[first : first + _BATCH], drafts[first : first + _BATCH]
                for order, draft, (row, reason) in zip(some, written, judge(some, written, attempt), strict=True):
                    if not reason:
                        keep(row)
                        continue
                    reject({**row, "reason": reason})
                    if not draft.fault and reason.partition(":")[0] in teacher.can_mend:
                        refused.append(replace(order, refused=(*order.refused, (draft.enlightenment, reason))))
            orders = refused
    return _bill(folder, teacher, len(groups), ledger or Ledger(None))


class _Judge:
    """The checks, made in the order of the drafts: the row of each, and the reason of its rejection, or None."""

    def __init__(self, params, teacher: Teacher, test_questions: Sequence[str], count_tokens: Callable) -> None:
        self.count_tokens, self.variant = count_tokens, params.variant
        self.limits = params.min_passage_tokens, params.max_passage_tokens
        self.beside = Beside(test_questions, params.paraphrase_similarity, params.embedding_model)
        joined = isinstance(teacher, JoiningTeacher) and params.variant == "full"
        self.skip = _SKIPPED["no_enlightenment" if joined else params.variant]

    def __call__(
        self, orders: Sequence[Order], drafts: Sequence[Draft], attempt: int
    ) -> Iterator[tuple[dict[str, Any], str | None]]:
        if self.variant == "no_enlightenment":
            drafts = [replace(draft, enlightenment="") for draft in drafts]
        rows = [_row(order, draft, attempt) for order, draft in zip(orders, drafts, strict=True)]
        texts = [row["text"] for row in rows]
        self.beside.begin(texts, [row["enlightenment"] for row in rows])
        counts = self.count_tokens(texts)
        for place, (order, draft, row) in enumerate(zip(orders, drafts, rows, strict=True)):
            row["n_tokens"] = int(counts[place])
            group = order.group
            candidate = Candidate(draft, order.rows, group.grouping, group.shared, row["n_tokens"], self.limits)
            reason = draft.fault
            if not reason:
                row["checks"], reason = own_fault(candidate, self.skip)
            for name, fault in () if reason else self.beside.faults(place):
                if fault and name not in self.skip:
                    reason = f"{name}: {fault}"
                    break
                row["checks"] += [name] if name not in self.skip else []
            if not reason:
                self.beside.accept(place, row["id"])
            yield row, reason


def _row(order: Order, draft: Draft, attempt: int) -> dict[str, Any]:
    names = ("enlightenment", "teacher", "prompt_version", "tokens_in", "tokens_out", "cost_usd")
    return {
        "id": order.group.id,
        "problem_ids": list(order.group.problem_ids),
        "tasks": [row.task for row in order.rows],
        "grouping": order.group.grouping,
        "shared": order.group.shared,
        "paragraphs": list(draft.paragraphs),
        "text": draft.answer if draft.fault else compose_text(order.rows, draft),
        "attempt": attempt,
        "checks": [],
        **{name: getattr(draft, name) for name in names},
    }


def _bill(folder: Path, teacher: Teacher, groups: int, ledger: Ledger) -> dict[str, Any]:
    """What was written, rejected and paid for; a passage's cost is shared evenly by its problems."""
    columns = ["tasks", "cost_usd", "prompt_version"]
    kept, rejected = (
        pd.read_parquet(folder / f"{name}.parquet", columns=[*columns, *more])
        for name, more in (("passages", []), ("rejected", ["reason"]))
    )
    every = pd.concat([kept, rejected], ignore_index=True)
    shares = every.assign(share=every["cost_usd"] / every["tasks"].map(len)).explode("tasks")
    return {
        "teacher": teacher.name,
        "prompt_versions": sorted(set(every["prompt_version"]) - {""}),
        "groups": groups,
        "passages": len(kept),
        "rejected": rejected["reason"].str.split(":").str[0].value_counts().to_dict(),
        "refused_answers": dict(getattr(teacher, "refusals", {})),
        "cost_usd_rejected": float(rejected["cost_usd"].sum()),
        "cost_usd_per_passage": float(every["cost_usd"].sum()) / max(1, len(kept)),
        "cost_usd_by_task": shares.groupby("tasks")["share"].sum().to_dict(),
        **ledger.bill(),
    }


def _say(done: int, count: int) -> None:
    if done == count or int(done) % _SHOWN_EVERY == 0:
        print(f"Asked the teacher: {done:,} of {count:,}", flush=True)
