"""Write passages: have every group written, check what comes back, and account for all of it.

Asking is concurrent, checking is in the order of the groups, so the result does not depend on which answer came first.
Every draft keeps its row, in passages.parquet or with its reason in rejected.parquet, and the bill counts both.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from trait_kit import tables
from trait_kit.engine.files import TraitError, atomic_path, read_json, write_json
from trait_kit.engine.ledger import Ledger, agree
from trait_kit.engine.llm import served
from trait_kit.models import TokenCounter, token_counter
from trait_kit.passages.checks import own_fault
from trait_kit.passages.grouping import coverage, plan_groups
from trait_kit.passages.material import Draft, Group, compose_text, content, problem_rows
from trait_kit.passages.quality import Beside, screen_problems
from trait_kit.passages.teachers import Teacher, local_teacher, recorded
from trait_kit.tasks import every_test_question, load_problems, prompt

MIN_TOKENS = 60  # of a passage: fewer are hardly a sentence for each problem
_FEW = 60  # problems of a task


@dataclass(frozen=True)
class Written:
    """What notebook 03 made: tables, and what they cost."""

    problems: pd.DataFrame
    passages: pd.DataFrame
    rejected: pd.DataFrame
    screened: pd.DataFrame  # problems by task and reason why they may not be used
    coverage: pd.DataFrame  # problems by task: used, unused
    bill: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "Written":
        found = [
            tables.read(folder / f"{name}.parquet", name).to_pandas()
            for name in ("problems", "passages", "rejected")
        ]
        counted = [pd.read_parquet(folder / f"{name}.parquet") for name in ("screened", "coverage")]
        return cls(*found, *counted, read_json(folder / "bill.json"))


def write_passages(step) -> Written:
    """The whole of notebook 03; killed at any moment, it goes on from the answers that it has paid for."""
    if step.done:
        return Written.load(step.folder)
    folder, p = step.folder, local_teacher(step.params)
    problems, screened, test_questions = load_material(p)
    with contextlib.ExitStack() as stack:
        endpoint = stack.enter_context(served(p, folder)) if p.teacher != "none" else None
        ledger = endpoint.ledger if endpoint else Ledger()
        day, answers = recorded(p)
        ledger.keep(answers)
        problems, groups = plan_groups(problems, p)
        teacher = Teacher(p, endpoint)
        if endpoint:
            print(agree(teacher.estimate(groups), p.max_cost_usd), flush=True)
            if p.paragraphs == "both":
                _keep_paragraphs(teacher, groups, folder)
        bill = (
            write_groups(groups, teacher, p, folder, test_questions, token_counter(p.base_model)) | ledger.bill()
        )
        kept = len(ledger.used.keys() & {key for key, *_ in answers})
        bill["written"] = f"{len(ledger.new):,} answers now" + f", {kept:,} on {day}" * (kept > 0)
    rejected = tables.read(folder / "rejected.parquet", "rejected").to_pylist()
    if told := shortfall(bill["groups"], bill["passages"], rejected):
        raise TraitError(f"{told}\nAll of them, with their texts: {folder / 'rejected.parquet'}")
    tables.write(folder / "problems.parquet", problems, "problems")
    screened.to_parquet(folder / "screened.parquet")
    coverage(groups, problems).to_parquet(folder / "coverage.parquet")
    write_json(folder / "bill.json", bill)

    return Written.load(folder)


def shortfall(groups: int, passages: int, rejected: Sequence[dict[str, Any]]) -> str:
    """Why fewer than half of the groups became passages, and what helps; '' where more did."""
    if 2 * passages >= groups:
        return ""
    counts = Counter(row["reason"].partition(":")[0] for row in rejected).most_common()
    told = [
        f"Only {passages} of {groups} groups became passages. Why not: {', '.join(f'{n} {why}' for why, n in counts)}."
    ]
    for row in [row for row in rejected if row["reason"].startswith(counts[0][0])][:2]:
        told.append(f"For instance {row['id']}, {' '.join(row['reason'].split())[:300]}")
        told.append(f"    {' '.join(row['text'].split())[-200:]}")
    return "\n".join(
        [*told, *(f"{why}: {help}" for why, _ in counts[:2] if (help := content("remedies.yaml").get(why)))]
    )


def _keep_paragraphs(teacher: Teacher, groups: Sequence[Group], folder: Path) -> None:
    """The teacher's own paragraph of every problem in a passage, for the control `rephrased`."""
    rows = teacher.to_ask(groups, "both")
    told = zip(rows, teacher.tell(rows), strict=True)
    kept = [(row.id, f"{prompt(row.question)} {reply.value}") for row, reply in told if reply.value]
    with atomic_path(folder / "rephrased.parquet") as temporary:
        pd.DataFrame(kept, columns=["id", "text"]).to_parquet(temporary)


def load_material(params) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """(problems that passages may hold, what was dropped by task and reason, the test questions)."""
    loaded = load_problems(params.tasks, "train", params.problems_per_task, params.seed)
    test_questions = every_test_question(params.tasks, params.test_items_per_task, params.seed)
    return *screen_problems(loaded, test_questions), test_questions


def first_group(step) -> Group:
    """One passage to write, for a reader; asks nobody and writes nothing."""
    if step.done:
        written = Written.load(step.folder)
        return group_of(pd.concat([written.passages, written.rejected]).iloc[0], written.problems)
    few = quick(step.params)
    return plan_groups(load_material(few)[0], few)[1][0]


def quick(params):
    """For groups to look at: few problems, where all would be embedded."""
    return (
        params.model_copy(update={"problems_per_task": min(params.problems_per_task, _FEW)})
        if params.grouping == "embedding"
        else params
    )


def group_of(row: pd.Series, problems: pd.DataFrame) -> Group:
    rows = problem_rows(problems)
    return Group(
        row["id"], [rows[problem_id] for problem_id in row["problem_ids"]], row["grouping"], row["shared"]
    )


def write_groups(
    groups: Sequence[Group],
    teacher: Teacher,
    params,
    folder: Path,
    tested: Sequence[str],
    count_tokens: TokenCounter,
) -> dict[str, Any]:
    """Write both tables into `folder`, attempt by attempt; what came of it, and its cost."""
    beside, asked, rows = Beside(tested), groups, []
    for attempt in range(1, params.max_attempts + 1):
        if not asked:
            break
        drafts = teacher.write(asked)
        found = list(judged(asked, drafts, beside, count_tokens, params.max_passage_tokens))
        rows += [{**row, "attempt": attempt} for row in found]
        asked = [
            replace(group, refused=(*group.refused, (draft.parts, row["reason"])))
            for group, draft, row in zip(asked, drafts, found, strict=True)
            if not draft.fault and row["reason"].partition(":")[0] in teacher.can_mend
        ]
    kept, rejected = ([row for row in rows if bool(row["reason"]) == bad] for bad in (False, True))
    tables.write(folder / "passages.parquet", kept, "passages")
    tables.write(folder / "rejected.parquet", rejected, "rejected")
    shares = [(task, row["cost_usd"] / len(row["tasks"])) for row in rows for task in row["tasks"]]

    return {
        "teacher": teacher.name,
        "groups": len(groups),
        "passages": len(kept),
        "rejected": dict(Counter(row["reason"].partition(":")[0] for row in rejected).most_common()),
        "refused_answers": dict(teacher.refusals),
        "cost_usd_rejected": sum(row["cost_usd"] for row in rejected),
        "cost_usd_per_passage": sum(row["cost_usd"] for row in rows) / max(1, len(kept)),
        "cost_usd_by_task": pd.DataFrame(shares, columns=["task", "usd"]).groupby("task")["usd"].sum().to_dict(),
    }


def judged(
    groups: Sequence[Group], drafts: Sequence[Draft], beside: Beside, count_tokens: TokenCounter, max_tokens: int
) -> Iterator[dict[str, Any]]:
    """The row of each draft, judged in their order; `reason` is empty where it passed every check."""
    texts = [compose_text(group.rows, draft) for group, draft in zip(groups, drafts, strict=True)]
    beside.begin(texts, [draft.enlightenment for draft in drafts])

    for place, n_tokens in enumerate(count_tokens(texts).tolist()):
        group, draft = groups[place], drafts[place]
        fits = MIN_TOKENS <= n_tokens <= max_tokens
        length = None if fits else f"{n_tokens} tokens, not within {MIN_TOKENS} to {max_tokens}"
        faults = itertools.chain([("length", length)], beside.faults(place))
        passed, reason = ([], draft.fault) if draft.fault else own_fault(group, draft, beside=faults)
        if not reason:
            beside.accept(place, group.id)
        yield {
            **vars(group),
            **vars(draft),
            "problem_ids": group.problem_ids,
            "tasks": [row.task for row in group.rows],
            "text": draft.answer if draft.fault else texts[place],
            "n_tokens": n_tokens,
            "checks": passed,
            "reason": reason,
        }
