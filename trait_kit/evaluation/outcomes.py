"""The stage of notebook 05: every arm is asked the same, every outcome is kept, arms are tested item by item."""

import contextlib
import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from lm_eval.api.model import CachingLM
from lm_eval.evaluator import evaluate
from sqlitedict import SqliteDict

from trait_kit import tables
from trait_kit.engine.files import TraitError, digest, write_text
from trait_kit.engine.machine import code_digest
from trait_kit.evaluation import comparison, metrics, suites
from trait_kit.evaluation.scoring_model import load_model, quiet
from trait_kit.evaluation.suites import Unit
from trait_kit.models import fast_precision, model_digest, model_folder
from trait_kit.params import EvaluationParams
from trait_kit.selection.documents import load_held_out
from trait_kit.tasks import load_problems, load_tasks

MAX_PREDICTION_CHARACTERS = 2_000  # of a prediction kept in the outcomes
TRAIN_PROBLEMS = 1_000  # of each task that test texts are compared with
_TABLES = ("arm_table", "paired_tests", "form_overlap")
_MAIN_METRICS = ("acc_norm", "acc", "exact_match", "bits_per_byte")  # of an lm-eval task, the first that it has


@dataclass(frozen=True)
class Evaluation:
    """What came out: a row an item and metric, the arms' averages, the tests against the reference arm."""

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
        """How it was asked, for the record: runs that differ in it do not pair."""
        p = self.params
        how = {"few_shot": p.few_shot, "max_new_tokens": p.max_new_tokens, "precision": p.precision}
        how |= {f"the version of {name}": task.version for name, task in load_tasks(p.tasks).items()}
        return {"reference_arm": p.reference_arm, "how_asked": how}


def evaluate_arms(step: Any) -> Evaluation:
    """Every arm that 04 trained, and the base model, on the tasks' test problems and on held-out documents.

    Writes outcomes.parquet and a CSV for each of _TABLES, and reads those of a finished step.
    """
    p, tasks = step.params, load_tasks(step.params.tasks)
    problems = load_problems(p.tasks, "test", p.test_items_per_task, p.seed)
    trained = step.summary("04_train_two_stages")
    models = {"base": p.base_model} | {
        arm: step.path("04_train_two_stages", at) for arm, at in trained["models"].items()
    }
    if not step.done:
        asked = (problems, _documents(p), p, step.path("lm_eval"), suites.worked_examples(p), tasks)
        units, seed = suites.build(*asked), trained.get("seed", p.seed)
        found = [
            evaluate_model(model, arm, seed, units, p, step.path("answers")) for arm, model in models.items()
        ]
        print(f"{len(units)} units of {len(models)} arms, {len(problems)} problems of {len(tasks)} tasks")
        outcomes = pd.concat(found, ignore_index=True)
        made = (
            comparison.arm_table(outcomes),
            comparison.compare_all(outcomes, p.reference_arm, p.main_metric),
            suites.form_overlap(problems, load_problems(p.tasks, "train", TRAIN_PROBLEMS, p.seed)),
        )
        for name, table in zip(_TABLES, made, strict=True):
            write_text(step.path(f"{name}.csv"), table.to_csv(index=False))
        tables.write(step.path("outcomes.parquet"), outcomes, "outcomes")
    outcomes = tables.read(step.path("outcomes.parquet"), "outcomes").to_pandas()

    return Evaluation(outcomes, *(pd.read_csv(step.path(f"{name}.csv")) for name in _TABLES), problems, p, models)


def _documents(p: EvaluationParams) -> dict[str, list[str]]:
    """Held-out texts by kind; problems of tasks that no arm trains on are text of a foreign kind."""
    specs = {"general": (p.web, p.general_documents), "in_domain": (p.in_domain, p.in_domain_documents)}
    documents = {kind: load_held_out(spec, p.seed)["text"][:n].to_pylist() for kind, (spec, n) in specs.items()}
    if p.foreign_tasks:
        rows = load_problems(p.foreign_tasks, "test", p.general_documents, p.seed).itertuples()
        documents["foreign"] = [f"{row.question} {row.solution or row.answer}" for row in rows]
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
    """Outcomes (tables.SCHEMAS) of one model, a folder or an id of the hub, on `suites.build`'s units.

    Its answers are kept in the folder `answers`; `report` gets a line a finished unit.
    """
    found: list[dict[str, Any]] = []
    folder = model_folder(model)
    kept = KeptLM(params, folder, Path(answers))
    with contextlib.closing(kept.dbdict):
        for unit in units:
            started, before = time.monotonic(), len(kept.dbdict)
            limit = suites.GENERAL_ITEMS if "general" in unit.lm_eval else None
            samples = kept.samples({task.config.task: task for task in unit.lm_eval.values()}, limit)
            rows = list(_rows(unit, samples, f"The model of arm '{arm}' ({folder})"))
            found += rows
            asked = len(kept.dbdict) - before
            how = f"{asked:,} asked in {time.monotonic() - started:.1f} s" if asked else "kept from before"
            what = f"{unit.task} version {unit.version} ({' + '.join(unit.lm_eval)})"
            report(f"{arm}: {what}, {len({row['item_id'] for row in rows}):,} items, {how}")
    return tables.conform(pd.DataFrame(found).assign(arm=arm, seed=int(seed)), "outcomes").to_pandas()


def _rows(unit: Unit, samples: dict[str, list[dict[str, Any]]], whose: str) -> Iterator[dict[str, Any]]:
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
            kept = {"prediction": said if isinstance(said, str) else "", "gold": gold}
            row |= {name: text[:MAX_PREDICTION_CHARACTERS] for name, text in kept.items()}
            names = sample["metrics"]
            main = [name for name in (*_MAIN_METRICS, *names) if name in names]
            for name in main[:1] if template == "general" else names:
                value = sample[name]
                value = metrics.bits_per_byte(*value) if isinstance(value, tuple) else value
                if not isinstance(value, int | float) or not math.isfinite(value):
                    raise TraitError(
                        f"{whose} gives no finite {name} for {item_id} of {unit.task}: its training diverged, or the "
                        "task gives no number."
                    )
                yield {**row, "metric": name, "value": float(value)}


class KeptLM(CachingLM):
    """A folder's model behind lm-eval's cache, one file a model: a killed evaluation goes on with the next request.

    A model is known by what its answers depend on, so arms that share one share its answers. They are kept as JSON:
    pickles of a run from elsewhere could run code.
    """

    def __init__(self, params: EvaluationParams, folder: Path, cache: Path) -> None:
        precision = fast_precision() if params.precision == "auto" else params.precision
        code = code_digest("trait_kit.evaluation.scoring_model", without=["trait_kit.models"])
        identity = ["transformers", model_digest(folder), precision, version("lm-eval"), code]
        self.lm = load_model(folder, batch_size=params.batch_size, precision=precision)
        cache.mkdir(parents=True, exist_ok=True)
        self.cache_db = str(cache / f"{digest(identity)[:20]}.sqlite")
        try:
            with contextlib.closing(sqlite3.connect(self.cache_db)) as opened:
                said = opened.execute("PRAGMA quick_check").fetchone()[0]
        except sqlite3.DatabaseError as error:
            said = str(error)
        if said != "ok":
            raise TraitError(
                f"{self.cache_db} holds no answers that can be read ({said[:200]}). Remove it, to ask again."
            )
        self.dbdict = SqliteDict(self.cache_db, autocommit=True, encode=json.dumps, decode=json.loads)
        self.lm.set_cache_hook(self.get_cache_hook())

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Of lm-eval's own tasks its pairs, of the kit's whole `Answer`s."""
        answers = self.__getattr__("loglikelihood")(requests)
        ours = ["metric" in request.doc for request in requests]
        return [answer if own else answer[:2] for own, answer in zip(ours, answers, strict=True)]

    def samples(self, tasks: dict[str, Any], limit: int | None = None) -> dict[str, list[dict[str, Any]]]:
        """lm-eval's samples by task; its `simple_evaluate` would take five seconds to describe the machine."""
        for task in tasks.values():
            task.set_fewshot_seed(0)  # else each arm is shown examples of its own
        with quiet(), self.lm.autocast():
            return evaluate(self, {"tasks": tasks}, limit=limit, bootstrap_iters=0, log_samples=True)["samples"]
