"""Arms of continual pre-training: what they read, a shared stage trained once, every result kept and reused.

A stage's folder appears whole or not at all. So a second call trains nothing, a changed parameter trains what depends on it,
and a killed run goes on from the last stage or checkpoint.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trait_kit import tables
from trait_kit.engine.files import TraitError, atomic_path, digest, read_json, write_text
from trait_kit.engine.questions import QuestionIndex
from trait_kit.models import model_digest, model_folder
from trait_kit.params import TrainingParams
from trait_kit.passages import controls
from trait_kit.runs import Step
from trait_kit.selection.disjoint import in_domain_documents
from trait_kit.selection.documents import load_held_out
from trait_kit.tasks import every_test_question, load_problems, prompt
from trait_kit.training import worker
from trait_kit.training.plan import PROBLEMS, Job, Stage, plan_stages, processes

FINE_TUNING_PROBLEMS = 10_000  # of each task, at most
Pairs = Sequence[Sequence[str]]
Inputs = tuple[Mapping[str, Path], Mapping[str, Pairs]]  # Parquet files with a column `text`, held-out sets


@dataclass(frozen=True)
class TrainingResult:
    """What training leaves behind.

    log: the 'log' table; a shared stage's rows are in each of its arms. models: arm -> folder of its model (transformers
    format), of fine-tuned ones too, not of the untrained 'base'. accounting: arm, stage, source, tokens, epochs (over the
    source, within the stage), available (tokens that may be read), documents (read, with repeats), share (of the source's
    documents, read at all), cut (of those read), too_long (never read: fits in no row, may not be cut). stages: a table
    of tables.yaml.
    """

    log: pd.DataFrame
    models: dict[str, Path]
    accounting: pd.DataFrame
    stages: pd.DataFrame

    def summary(self, folder: Path) -> dict[str, Any]:
        """What the step's record holds; model folders are relative to `folder`."""
        return {
            "models": {arm: str(path.relative_to(folder)) for arm, path in self.models.items()},
            "accounting": self.accounting.to_dict("records"),
            "stages": self.stages.to_dict("records"),
            "seed": int(self.log["seed"].iloc[0]),
        }

    def gains(self) -> dict[str, float]:
        """Arm -> by how many bits per byte its last score on held-out solutions is below the untrained model's."""
        scores = self.log[self.log["metric"] == "held_out/solutions"].groupby("arm", sort=False)["value"]
        return (scores.first() - scores.last()).to_dict()

    @staticmethod
    def load(folder: Path) -> "TrainingResult":
        known = read_json(folder / "report.json")["summary"]
        return TrainingResult(
            log=tables.read(folder / "log.parquet", "log").to_pandas(),
            models={arm: folder / path for arm, path in known["models"].items()},
            accounting=pd.DataFrame(known["accounting"]),
            stages=pd.DataFrame(known["stages"]),
        )


def train_arms(step: Step, watch: Callable[[pd.DataFrame], None] | None = None) -> TrainingResult:
    """Step 04: train what is not trained; `watch` is called with the log so far. TraitError where a step is missing."""
    if step.done:
        return TrainingResult.load(step.folder)
    result = train(step.params, inputs_of(step.params, step.run_dir), step.folder / "models", watch)
    tables.write(step.folder / "log.parquet", result.log, "log")
    return result


def train_run(params: TrainingParams, run_dir: Path) -> None:
    """`trait-kit train`: what notebook 04 trains, without it; the notebook then finds everything trained.

    Under a launcher every process runs this: the first one prepares, then all train. All nodes must see the run's folder.
    """
    models = run_dir / "04_train_two_stages" / "models"
    if not worker.is_first():
        return worker.take_part(models / "work" / "job.json")
    result = train(params, inputs_of(params, run_dir), models)
    columns = ["arm", "stage", "mixture", "tokens", "tokens_per_second", "seconds", "sharding", "new"]
    print(result.stages[columns].to_string(index=False))
    print(f"Models: {models / 'stages'}. `trait-kit run ... --from 04` shows what they learnt.")


def train(
    params: TrainingParams,
    inputs: Inputs,
    out_dir: Path | str,
    watch: Callable[[pd.DataFrame], None] | None = None,
) -> TrainingResult:
    """Train what is missing under `out_dir` and return everything; TraitError for bad input, before any training."""
    job = prepare_job(params, inputs, Path(out_dir))

    def on_line(line: str) -> None:
        print(line, flush=True)
        if watch:
            watch(_log(job))

    if job.stages or processes() > 1:  # the other processes of a launch wait
        worker.run(job, on_line)
    return finish(job)


def prepare_job(params: TrainingParams, inputs: Inputs, out_dir: Path) -> Job:
    """Plan all stages and write the job of the missing ones."""
    texts, held_out = inputs
    for name, rows in held_out.items():
        if not all(target.strip() for _, target, *_ in rows):
            raise TraitError(f"training: the held-out set '{name}' has an item without a target.")
    base = str(model_folder(params.base_model))
    plan, chains = plan_stages(params, texts, model_digest(base), digest(held_out))
    job = Job(
        params=params,
        base=base,
        folder=out_dir.absolute(),
        stages=_missing(plan, out_dir / "stages"),
        texts={name: path.absolute() for name, path in texts.items()},
        held_out=held_out,
        chains=chains,
    )
    job.stages_dir.mkdir(parents=True, exist_ok=True)
    write_text(job.work / "job.json", job.model_dump_json())
    if job.stages:
        tokens, done = sum(stage.tokens for stage in job.stages), len(plan) - len(job.stages)
        print(f"Training {len(job.stages)} stage(s), {tokens:,} tokens; {done} stage(s) are done.", flush=True)
    return job


def finish(job: Job) -> TrainingResult:
    """What the stages' folders hold, as tables; the work folder goes."""
    shutil.rmtree(job.work, ignore_errors=True)
    steps = [(arm, job.stages_dir / name / "stage.json") for arm, chain in job.chains.items() for name in chain]
    reports = [{"arm": arm, **read_json(path)} for arm, path in steps]
    stages = pd.DataFrame(reports).rename(columns={"place": "stage"})
    stages["shared"] = stages["name"].duplicated(keep=False)
    stages["new"] = stages["name"].isin([stage.name for stage in job.stages])
    return TrainingResult(
        log=tables.conform(_log(job), "log").to_pandas(),
        models={arm: job.stages_dir / chain[-1] / "model" for arm, chain in job.chains.items()},
        accounting=pd.DataFrame(
            [{"arm": report["arm"], **row} for report in reports for row in report["accounting"]]
        ),
        stages=stages[tables.SCHEMAS["stages"].names],
    )


def _missing(plan: list[Stage], stages_dir: Path) -> list[Stage]:
    """Stages without a result, and those whose weights are gone but are needed to begin another."""
    missing, needed = [], set()
    for stage in reversed(plan):
        parts = ["stage.json", *["model"] * stage.ends_arm, *["start"] * (stage.name in needed)]
        if not all((stages_dir / stage.name / part).exists() for part in parts):
            missing.insert(0, stage)
            needed.add(stage.parent)
    return missing


def _log(job: Job) -> pd.DataFrame:
    """Rows of every finished stage, and of the one being trained as far as it has come."""
    rows = []
    for arm, name in ((arm, name) for arm, chain in job.chains.items() for name in chain):
        paths = job.stages_dir / name / "log.json", job.work / name / "live.json"
        for row in next((read_json(path) for path in paths if path.exists()), []):
            rows.append({"arm": arm, "seed": job.params.seed, **row})
    return pd.DataFrame(rows, columns=["arm", "seed", "stage", "step", "tokens", "metric", "value"])


def inputs_of(params: TrainingParams, run_dir: Path) -> Inputs:
    return training_sources(params, run_dir), held_out_sets(params)


def training_sources(params: TrainingParams, run_dir: Path) -> dict[str, Path]:
    """The Parquet file of every source; of controls, in-domain documents and problems to fine-tune on it is made."""
    named = sorted(params.sources)
    sources = {name: run_dir / "02_filter_web" / "selections" / f"{name}.parquet" for name in named}
    sources["passages"] = run_dir / "03_write_passages" / "passages.parquet"
    made = {
        name: pa.table({"text": controls.texts(name, run_dir)}) for name in controls.CONTROLS.keys() & set(named)
    }
    if "in_domain" in named:
        screened = in_domain_documents(params.model_copy(update={"seed": params.items_seed}))
        print(screened.said)
        made["in_domain"] = screened.documents.select(["text"])
    if pairs := fine_tuning_pairs(params):
        made[PROBLEMS] = pa.table(
            {"prompt": [given for given, _ in pairs], "text": ["".join(pair) for pair in pairs]}
        )
    for name, table in made.items():
        sources[name] = run_dir / "04_train_two_stages" / f"{name}.parquet"
        with atomic_path(sources[name]) as temporary:
            pq.write_table(table, temporary)
    return sources


def held_out_sets(params: TrainingParams) -> dict[str, Pairs]:
    """(prompt, target) pairs scored during training, `held_out_items` a kind.

    `solutions`: of *validation* problems, spread over the tasks. `in_domain`, `general`: documents (their prompt is empty)
    from the end of the held-out sets whose beginning notebook 05 scores. With `task_scores`, `task/<name>` for each task
    with choices: (prompt, right target, wrong targets ...).
    """
    count = params.held_out_items
    problems = load_problems(params.tasks, "validation", -(-count // len(params.tasks)), params.items_seed)
    problems = problems.sort_values("id", kind="stable")
    spread = problems.groupby("task").cumcount().argsort(kind="stable")
    pairs = {"held_out/solutions": controls.pairs(problems.iloc[spread].head(count))}
    for kind, spec in (("in_domain", params.in_domain), ("general", params.web)):
        texts = load_held_out(spec, params.items_seed)["text"].to_pylist()[-count:]
        pairs[f"held_out/{kind}"] = [("", text) for text in texts]
    if params.task_scores:
        asked = load_problems(params.tasks, "validation", count, params.items_seed)
        for task, rows in asked[asked["choices"].notna()].groupby("task", sort=False):
            pairs[f"task/{task}"] = [
                (
                    prompt(row.question),
                    f" {row.answer}",
                    *(f" {choice}" for choice in row.choices if choice != row.answer),
                )
                for row in rows.itertuples()
            ]
    return pairs


def fine_tuning_pairs(params: TrainingParams) -> Pairs:
    """(prompt, target) of the train problems that hold no test question; none without fine-tuning."""
    if not params.fine_tune_epochs:
        return []
    pairs = controls.pairs(load_problems(params.tasks, "train", FINE_TUNING_PROBLEMS, params.items_seed))
    tested = every_test_question(params.tasks, params.test_items_per_task, params.items_seed)
    held = set(QuestionIndex(tested).find([given + target for given, target in pairs])["text_index"])
    print(
        f"Fine-tuning: {len(pairs) - len(held):,} train problems, {len(held):,} left out for a test question in them."
    )
    if len(held) == len(pairs):
        raise TraitError(f"All {len(pairs):,} train problems hold a test question. Look at the tasks' splits.")
    return [pair for place, pair in enumerate(pairs) if place not in held]
