"""The stage of notebook 05: every arm is asked the same, every outcome is kept, arms are tested item by item."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from trait_kit import tables
from trait_kit.engine.files import TraitError, atomic_path
from trait_kit.evaluation import comparison, metrics, suites
from trait_kit.evaluation.backends import KeptLM
from trait_kit.evaluation.suites import Unit
from trait_kit.models import model_folder
from trait_kit.params import EvaluationParams
from trait_kit.selection.documents import load_held_out
from trait_kit.tasks import load_problems, load_tasks

MAX_PREDICTION_CHARACTERS = 2_000  # of a prediction kept in the outcomes
TRAIN_PROBLEMS = 1_000  # of each task that test texts are compared with
_TABLES = ("arm_table", "paired_tests", "form_overlap")
_MAIN_METRICS = ("acc_norm", "acc", "exact_match", "bits_per_byte")  # of an lm-eval task, the first that it has


@dataclass(frozen=True)
class Evaluation:
    """What came out: a row an item and metric, the arms' averages, and the tests against the reference arm."""

    outcomes: pd.DataFrame
    arm_table: pd.DataFrame
    tests: pd.DataFrame
    form: pd.DataFrame  # suites.form_overlap of each task
    problems: pd.DataFrame
    params: EvaluationParams
    models: dict[str, Path | str]  # arm -> its model

    @property
    def metric(self) -> str:
        return comparison.main_metric(self.outcomes, self.params.main_metric)

    def summary(self) -> dict[str, Any]:
        """What the step's record says of how it was asked: runs that differ in it do not pair."""
        p = self.params
        how = {"few_shot": p.few_shot, "max_new_tokens": p.max_new_tokens, "precision": p.precision}
        how |= {f"the version of {name}": task.version for name, task in load_tasks(p.tasks).items()}
        return {"reference_arm": p.reference_arm, "how_asked": how}


def evaluate_arms(step: Any) -> Evaluation:
    """Every arm that 04 trained, and the base model, on the tasks' test problems and on held-out documents.

    Writes outcomes.parquet and a CSV for each of _TABLES. Killed, it goes on with the next question; of a finished step
    it reads what is there.
    """
    p, tasks = step.params, load_tasks(step.params.tasks)
    problems = load_problems(p.tasks, "test", p.test_items_per_task, p.seed)
    trained = step.summary("04_train_two_stages")
    models = {"base": p.base_model} | {arm: step.path("04_train_two_stages", at) for arm, at in trained["models"].items()}
    if not step.done:
        asked = (problems, _documents(p, set(tasks)), p, step.path("lm_eval"), suites.worked_examples(p), tasks)
        units, seed = suites.build(*asked), trained.get("seed", p.seed)
        found = [evaluate_model(model, arm, seed, units, p, step.path("answers")) for arm, model in models.items()]
        print(f"{len(units)} units of {len(models)} arms, {len(problems)} problems of {len(tasks)} tasks")
        outcomes = pd.concat(found, ignore_index=True)
        made = (
            comparison.arm_table(outcomes),
            comparison.compare_all(outcomes, p.reference_arm, p.main_metric),
            suites.form_overlap(problems, load_problems(p.tasks, "train", TRAIN_PROBLEMS, p.seed)),
        )
        for name, table in zip(_TABLES, made, strict=True):
            with atomic_path(step.path(f"{name}.csv")) as temporary:
                table.to_csv(temporary, index=False)
        tables.write(step.path("outcomes.parquet"), outcomes, "outcomes")
    outcomes = tables.read(step.path("outcomes.parquet"), "outcomes").to_pandas()
    return Evaluation(outcomes, *(pd.read_csv(step.path(f"{name}.csv")) for name in _TABLES), problems, p, models)


def _documents(p: EvaluationParams, trained_on: set[str]) -> dict[str, list[str]]:
    """Held-out texts by kind; problems of tasks that no arm trains on are text of a foreign kind."""
    specs = {"general": (p.web, p.general_documents), "in_domain": (p.in_domain, p.in_domain_documents)}
    documents = {kind: load_held_out(spec, p.seed)["text"][:n].to_pylist() for kind, (spec, n) in specs.items()}
    if both := set(load_tasks(p.foreign_tasks)) & trained_on:
        raise TraitError(f"foreign_tasks names {min(both)}, which arms train on. Name tasks that are not among `tasks`.")
    if p.foreign_tasks:
        rows = load_problems(p.foreign_tasks, "test", p.general_documents, p.seed).to_dict("records")
        documents["foreign"] = [f"{row['question']} {row['solution'] or row['answer']}" for row in rows]
    return documents


def evaluate_model(
    model: Path | str,
    arm: str,
    seed: int,
    units: list[Unit],
    params: EvaluationParams,
    answers: Path | str,
    report: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Outcomes (tables.SCHEMAS) of one model on `suites.build`'s units; its answers are kept in `answers`.

    A model id that is not a folder is taken from the Hugging Face hub. `report` gets one line a finished unit.
    """
    found: list[dict[str, Any]] = []
    kept = KeptLM(params, model_folder(model), arm, Path(answers))
    with contextlib.closing(kept.dbdict):
        for unit in units:
            started, before = time.monotonic(), len(kept.dbdict)
            limit = suites.GENERAL_ITEMS if "general" in unit.lm_eval else None
            samples = kept.samples({task.config.task: task for task in unit.lm_eval.values()}, limit)
            rows = list(_rows(unit, samples, kept.whose))
            found += rows
            asked = len(kept.dbdict) - before
            how = f"{asked:,} asked in {time.monotonic() - started:.1f} s" if asked else "kept from before"
            n_items = len({row["item_id"] for row in rows})
            report(f"{arm}: {unit.task} version {unit.version} ({' + '.join(unit.lm_eval)}), {n_items:,} items, {how}")
    return tables.conform(pd.DataFrame(found).assign(arm=arm, seed=int(seed)), "outcomes").to_pandas()


def _rows(unit: Unit, samples: dict[str, list[dict[str, Any]]], whose: str) -> Iterator[dict[str, Any]]:
    """Outcome rows of a unit, read off lm-eval's samples; an answer that is no number stops the evaluation."""
    for template, task in unit.lm_eval.items():
        first_filter = {sample["doc_id"]: sample for sample in reversed(samples[task.config.task])}
        for place, sample in sorted(first_filter.items()):
            item_id = f"{place:05d}-{sample['doc_hash'][:8]}" if template == "general" else sample["doc"]["id"]
            row = {"task": unit.task, "item_id": item_id, "cluster": sample["doc"].get("cluster", item_id)}
            gold = "" if template == "documents" else str(sample["target"]).strip()
            said = sample["filtered_resps"][0]  # written; of choices the preferred one is kept, of scores nothing
            if template == "choices":
                scores = metrics.per_byte(sample["doc"]["choices"], sample["filtered_resps"])
                said = max(scores, key=scores.get)
            row |= {"prediction": _stored(said if isinstance(said, str) else ""), "gold": _stored(gold)}
            names = sample["metrics"]
            main = [name for name in (*_MAIN_METRICS, *names) if name in names]
            for name in main[:1] if template == "general" else names:
                value = sample[name]
                value = metrics.bits_per_byte(*value) if isinstance(value, tuple) else value
                if not isinstance(value, int | float) or not math.isfinite(value):
                    raise TraitError(
                        f"{whose} gives no finite {name} for {item_id} of {unit.task}: its training diverged, or the "
                        "task gives no number an item."
                    )
                yield {**row, "metric": name, "value": float(value)}


def _stored(text: str) -> str:
    """Short, and without the half characters that JSON of a server may hold and Parquet may not."""
    return text[:MAX_PREDICTION_CHARACTERS].encode("utf-8", "replace").decode()
