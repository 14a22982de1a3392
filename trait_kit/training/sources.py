"""What a run trains on and what watches it: files of texts by source name, held-out pairs by kind."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trait_kit.engine.files import TraitError, atomic_path
from trait_kit.engine.questions import QuestionIndex
from trait_kit.params import TrainingParams
from trait_kit.passages import controls
from trait_kit.selection.disjoint import in_domain_documents
from trait_kit.selection.documents import load_held_out
from trait_kit.tasks import every_test_question, load_problems, prompt
from trait_kit.training.plan import PROBLEMS

FINE_TUNING_PROBLEMS = 10_000  # of each task, at most

Pairs = Sequence[Sequence[str]]
Inputs = tuple[Mapping[str, Path], Mapping[str, Pairs]]


def inputs(params: TrainingParams, run_dir: Path) -> Inputs:
    """Parquet files with a column `text`, by source; held-out (prompt, target) pairs, by set."""
    return training_sources(params, run_dir), held_out_sets(params)


def training_sources(params: TrainingParams, run_dir: Path) -> dict[str, Path]:
    """The Parquet file of every source: what 02 and 03 wrote, controls, in-domain documents, problems to fine-tune on."""
    named = sorted(params.sources)
    sources = {name: run_dir / "02_filter_web" / "selections" / f"{name}.parquet" for name in named}
    if "passages" in named:
        sources["passages"] = run_dir / "03_write_passages" / "passages.parquet"
    made = {name: pa.table({"text": controls.texts(name, run_dir)}) for name in controls.CONTROLS.keys() & set(named)}
    if "in_domain" in named:
        screened = in_domain_documents(params.model_copy(update={"seed": params.items_seed}))
        print(screened.said)
        made["in_domain"] = screened.documents.select(["text"])
    if pairs := fine_tuning_pairs(params):
        made[PROBLEMS] = pa.table({"prompt": [given for given, _ in pairs], "text": ["".join(pair) for pair in pairs]})
    for name, table in made.items():
        sources[name] = run_dir / "04_train_two_stages" / f"{name}.parquet"
        with atomic_path(sources[name]) as temporary:
            pq.write_table(table, temporary)
    return sources


def held_out_sets(params: TrainingParams) -> dict[str, Pairs]:
    """(prompt, target) pairs scored during training, `held_out_items` of each kind.

    `solutions` are the gold solutions of *validation* problems, spread over the tasks; `in_domain`
    and `general` are documents (their prompt is empty), taken from the end of the held-out sets
    whose beginning notebook 05 scores. With `task_scores`, also `task/<name>` for each task with
    choices: (prompt, right target, wrong targets ...).
    """
    count = params.held_out_items
    problems = load_problems(params.tasks, "validation", -(-count // len(params.tasks)), params.items_seed)
    problems = problems.sort_values("id", kind="stable")
    problems["order"] = problems.groupby("task").cumcount()
    pairs = {"held_out/solutions": _pairs(problems.sort_values("order", kind="stable").head(count))}
    for kind, spec in (("in_domain", params.in_domain), ("general", params.web)):
        texts = load_held_out(spec, params.items_seed)["text"].to_pylist()[-count:]
        pairs[f"held_out/{kind}"] = [("", text) for text in texts]
    if params.task_scores:
        asked = load_problems(params.tasks, "validation", count, params.items_seed)
        for task, rows in asked[asked["choices"].notna()].groupby("task", sort=False):
            pairs[f"task/{task}"] = [
                (prompt(row.question), f" {row.answer}", *(f" {choice}" for choice in row.choices if choice != row.answer))
                for row in rows.itertuples()
            ]
    return pairs


def fine_tuning_pairs(params: TrainingParams) -> Pairs:
    """(prompt, target) of the tasks' train problems; none without fine-tuning.

    A problem is left out where it holds a test question of any of the tasks, by the rule that holds
    for the selections and the passages.
    """
    if not params.fine_tune_epochs:
        return []
    pairs = _pairs(load_problems(params.tasks, "train", FINE_TUNING_PROBLEMS, params.items_seed))
    tested = every_test_question(params.tasks, params.test_items_per_task, params.items_seed)
    held = set(QuestionIndex(tested).find([given + target for given, target in pairs])["text_index"])
    print(f"Fine-tuning: {len(pairs) - len(held):,} train problems, {len(held):,} left out for a test question in them.")
    if len(held) == len(pairs):
        raise TraitError(f"All {len(pairs):,} train problems hold a test question. Look at the splits of the task files.")
    return [pair for place, pair in enumerate(pairs) if place not in held]


def _pairs(problems: pd.DataFrame) -> Pairs:
    """The prompt that evaluation asks with, and the target that it scores: the solution, or else the answer."""
    targets = problems["solution"].where(problems["solution"].notna(), problems["answer"])
    return [(prompt(question), f" {target}") for question, target in zip(problems["question"], targets, strict=True)]
