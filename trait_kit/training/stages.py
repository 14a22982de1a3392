"""Arms of continual pre-training: a shared stage trained once, every result kept and reused.

A stage's folder appears whole or not at all. So a second call trains nothing, a changed parameter trains what depends on
it, and a killed run goes on from the last stage, or from the last checkpoint inside one. Texts are tokenised once, into
`tokens/`, and serve every stage, arm and repeated call.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trait_kit import tables
from trait_kit.engine.files import TraitError, atomic_path, digest, read_json, write_json
from trait_kit.models import model_digest
from trait_kit.params import TrainingParams
from trait_kit.training import launch
from trait_kit.training.plan import Source, plan_stages

KEPT = (
    "name", "mixture", "tokens", "steps", "efficiency", "documents", "cut", "seconds", "evaluation_seconds",
    "tokens_per_second", "mfu", "device_hours", "cost", "micro_batch", "peak_memory_gb", "precision", "device", "processes",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingResult:
    """What training leaves behind.

    log: the 'log' table; an arm's rows run through all its stages, so those of a shared stage appear in each arm.
    models: arm -> folder of its last stage (transformers format, float32). The untrained 'base' is not among them;
    with fine-tuning, 'base_fine_tuned' is, and '<arm>_fine_tuned' for every arm.
    accounting: arm, stage, source, tokens, epochs (passes over the source within the stage), available (its tokens).
    stages: arm, stage, the columns KEPT, shared (trained once for several arms), new (trained by this call), folder; one
    row for all stages where they have one schedule. mfu: share of the matrix rate measured on this device.
    """

    log: pd.DataFrame
    models: dict[str, Path]
    accounting: pd.DataFrame
    stages: pd.DataFrame


def train_arms(
    params: TrainingParams,
    sources: Mapping[str, Source],
    held_out: Mapping[str, Sequence[Any]],
    out_dir: Path | str,
    problems: Sequence[tuple[str, str]] = (),
    watch: Callable[[pd.DataFrame], None] | None = None,
) -> TrainingResult:
    """Train what is missing under `out_dir` and return everything.

    `sources`: of every source that params.arms names, its texts, or a Parquet file with a column `text`, which is never in
    memory as a whole. `held_out`: name -> (prompt, target) pairs; a document is ('', text); at most params.held_out_items
    of each set are scored, evenly spaced. `problems`: (prompt, target) pairs for fine-tuning, unused without it. `watch`
    is called while training with the log so far. Raises TraitError before any training where a source is missing, empty
    or smaller than its part of a batch, the context too long for the model, or memory or disk too small.
    """
    work, chains = prepare_job(params, sources, held_out, Path(out_dir), problems)
    if work.job["stages"]:
        seen = (lambda: watch(_log(chains, work.stages_dir, work.folder, params.seed))) if watch else None
        launch.train(work.job, params, seen)
    return finish(params, work, chains)


@dataclass(frozen=True)
class Work:
    """The job of the stages that are missing, and where it happens."""

    job: dict[str, Any]
    folder: Path  # removed at the end
    stages_dir: Path


def prepare_job(
    params: TrainingParams,
    sources: Mapping[str, Source],
    held_out: Mapping[str, Sequence[Any]],
    out_dir: Path,
    problems: Sequence[tuple[str, str]] = (),
) -> tuple[Work, dict[str, list[str]]]:
    """Plan all stages and write what the missing ones need; nothing is tokenised or trained yet."""
    from trait_kit.models import resolve_model

    out_dir = out_dir.absolute()
    stages_dir, work, tokens = out_dir / "stages", out_dir / "work", out_dir / "tokens"
    stages_dir.mkdir(parents=True, exist_ok=True)
    base = resolve_model(params.base_model)
    scored = _held_out(held_out, params.held_out_items)
    job = {
        "params": params.model_dump(),
        "base": str(base),
        "base_digest": model_digest(str(base)),
        "held_out_digest": digest(scored),
        "stages_dir": str(stages_dir),
        "tokens_dir": str(tokens),
        "work": str(work),
        "held_out": str(work / "held_out.json"),
        "problems": str(work / "problems.json"),
        "launched": bool(params.accelerate_config),
    }
    digests = tokens / "digests.json"
    plan, chains = plan_stages(params, sources, job["base_digest"], job["held_out_digest"], problems, digests)
    job["stages"] = [stage for stage in plan if not (stages_dir / stage["name"] / "stage.json").exists()]
    if job["stages"]:
        kept = {stage["name"] for stage in job["stages"]} | {"texts"}
        for leftover in [*work.glob("*"), *stages_dir.glob(".*.tmp-*")]:
            if leftover.name not in kept:  # a killed run's half-written results, or work on stages nobody wants any more
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        write_json(work / "held_out.json", scored)
        write_json(work / "problems.json", list(problems))
        job["texts"] = dict(_text_files(job["stages"], sources, work / "texts"))
        total, done = sum(stage["tokens"] for stage in job["stages"]), len(plan) - len(job["stages"])
        fine_tuned = " and fine-tuning" if params.fine_tune_epochs else ""
        print(f"Training {len(job['stages'])} stage(s), {total:,} tokens{fine_tuned}; {done} stage(s) are done.", flush=True)
    return Work(job, work, stages_dir), chains


def finish(params: TrainingParams, work: Work, chains: dict[str, list[str]]) -> TrainingResult:
    """Everything that the stages' folders hold, as tables; the work folder goes."""
    shutil.rmtree(work.folder, ignore_errors=True)
    new = {stage["name"] for stage in work.job["stages"]}
    users = Counter(name for chain in chains.values() for name in chain)
    accounting, stages = [], []
    for arm, chain in chains.items():
        for name in chain:
            folder = work.stages_dir / name
            report = read_json(folder / "stage.json")
            accounting += [{"arm": arm, **row} for row in report["accounting"]]
            flags = {"shared": users[name] > 1, "new": name in new, "folder": str(folder)}
            stages.append({"arm": arm, "stage": report["place"], **{field: report[field] for field in KEPT}, **flags})
    columns = ["arm", "stage", "source", "tokens", "epochs", "available"]
    return TrainingResult(
        log=tables.conform(_log(chains, work.stages_dir, work.folder, params.seed), "log").to_pandas(),
        models={arm: work.stages_dir / chain[-1] / "model" for arm, chain in chains.items()},
        accounting=pd.DataFrame(accounting)[columns],
        stages=pd.DataFrame(stages),
    )


def _log(chains: dict[str, list[str]], stages_dir: Path, work: Path, seed: int) -> pd.DataFrame:
    """Rows of every stage that is finished, and of the one being trained as far as it has come."""
    rows = []
    for arm, chain in chains.items():
        for name in chain:
            for path in (stages_dir / name / "log.json", work / name / "live.json"):
                if path.exists():
                    rows += [{"arm": arm, "seed": seed, **row} for row in read_json(path)]
                    break
    return pd.DataFrame(rows, columns=["arm", "seed", "stage", "step", "tokens", "metric", "value"])


def _text_files(stages: list[dict[str, Any]], sources: Mapping[str, Source], folder: Path) -> Iterator[tuple[str, str]]:
    """(digest, Parquet file) of every source that the stages read; texts in memory are written to one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, key in sorted({item for stage in stages for item in stage["texts"].items()}):
        source, path = sources[name], folder / f"{name}-{key[:12]}.parquet"
        if isinstance(source, Path):
            path = source.absolute()
        elif not path.exists():
            with atomic_path(path) as temporary:
                pq.write_table(pa.table({"text": pa.array(list(source), pa.large_string())}), temporary)
        yield key, str(path)


def _held_out(held_out: Mapping[str, Sequence[Any]], items: int) -> dict[str, list[list[Any]]]:
    """At most `items` of each set, evenly spaced: problems come sorted by task, and every task should be heard."""
    chosen = {}
    for name, pairs in sorted(held_out.items()):
        if not pairs:
            raise TraitError(f"training: the held-out set '{name}' is empty: leave it out of held_out, or give it items.")
        for prompt, target, *_ in pairs:
            if not (isinstance(prompt, str) and isinstance(target, str) and target.strip()):
                raise TraitError(f"training: the held-out set '{name}' has an item without a target (prompt {prompt!r}).")
        indices = np.linspace(0, len(pairs) - 1, min(items, len(pairs))).round().astype(int)
        chosen[name] = [list(pairs[index]) for index in indices]
    return chosen
