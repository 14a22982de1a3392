"""Arms of continual pre-training: chains of stages, a shared stage trained once, every result kept and reused.

Arms are chains (paper, section 3.3: in-domain and selected text first, then the task-oriented passages), and chains with
the same beginning form a tree. A stage is known by the digest of everything that shapes its result, its parent's digest
included; its folder appears whole or not at all. So a second call trains nothing, a changed parameter trains what
depends on it, and a killed run goes on from the last stage, or from the last checkpoint inside one. Fine-tuning, where
asked for, is one more stage after each chain and after the base model, in arms of its own: 'trait_fine_tuned'.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trait_kit import tables
from trait_kit.errors import TraitError
from trait_kit.files import atomic_path, digest, read_json, sha256, write_json
from trait_kit.params import TrainingParams
from trait_kit.training import fine_tuning
from trait_kit.training.sampling import shares
from trait_kit.training.worker import USER_ERROR

CODE_VERSION = 1  # part of every key: raise it when a change of this package changes what training produces
SHAPING = (
    "context_length", "tokens_per_batch", "rows_per_device", "learning_rate", "warmup_fraction", "decay_fraction",
    "weight_decay", "max_gradient_norm", "precision", "evaluations_per_stage", "seed",
)  # fmt: skip
# Environment of a worker, where the user has not set it. Measured with a 135M model on two cores: threads that wait by
# spinning (the default) make a step 4 times slower as soon as anything else runs on the machine; and glibc gives large
# tensors back to the system and page-faults them in again each step, which costs a fifth.
WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**26),
}


@dataclass(frozen=True)
class TrainingResult:
    """What training leaves behind.

    log: the 'log' table; an arm's rows run through all its stages, so those of a shared stage appear in each arm.
    models: arm -> folder of its last stage (transformers format, float32). The untrained 'base' is not among them;
    with fine-tuning, 'base_fine_tuned' is, and '<arm>_fine_tuned' for every arm.
    accounting: arm, stage, source, tokens, epochs (passes over the source within the stage), available (its tokens).
    stages: arm, stage, name, mixture, tokens, steps, efficiency, documents, cut, seconds, evaluation_seconds,
    tokens_per_second, precision, device, shared (trained once for several arms), new (trained by this call), folder.
    """

    log: pd.DataFrame
    models: dict[str, Path]
    accounting: pd.DataFrame
    stages: pd.DataFrame


def train_arms(
    params: TrainingParams,
    sources: Mapping[str, Sequence[str]],
    held_out: Mapping[str, Sequence[tuple[str, str]]],
    out_dir: Path | str,
    problems: Sequence[tuple[str, str]] = (),
) -> TrainingResult:
    """Train what is missing under `out_dir` and return everything.

    `sources`: texts of every source that params.arms names. `held_out`: name -> (prompt, target) pairs; a document is
    ('', text); at most params.held_out_items of each set are scored, evenly spaced. `problems`: (prompt, target) pairs
    for fine-tuning, unused without it. Raises TraitError before any training where a source is missing, empty or
    smaller than its part of a batch, or the context too long for the model.
    """
    from trait_kit.data.demo import resolve_model

    out_dir = Path(out_dir).absolute()
    stages_dir, work = out_dir / "stages", out_dir / "work"
    stages_dir.mkdir(parents=True, exist_ok=True)
    base = resolve_model(params.base_model)
    scored = _held_out(held_out, params.held_out_items)
    job = {
        "params": params.model_dump(),
        "base": str(base),
        "base_digest": _model_digest(str(base)),
        "held_out_digest": digest(scored),
        "stages_dir": str(stages_dir),
        "work": str(work),
        "held_out": str(work / "held_out.json"),
        "problems": str(work / "problems.json"),
        "launched": bool(params.accelerate_config),
    }
    plan, chains = plan_stages(params, sources, job["base_digest"], job["held_out_digest"], problems)
    missing = [stage for stage in plan if not (stages_dir / stage["name"] / "stage.json").exists()]
    if missing:
        names = {stage["name"] for stage in missing}
        for leftover in [*work.glob("*"), *stages_dir.glob(".*.tmp-*")]:
            if leftover.name not in names:  # a killed run's half-written results, or work on stages nobody wants any more
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        write_json(work / "held_out.json", scored)
        write_json(work / "problems.json", list(problems))
        job["texts"] = _write_texts(missing, sources, work / "texts")
        job["stages"] = missing
        total, done = sum(stage["tokens"] for stage in missing), len(plan) - len(missing)
        fine_tuned = " and fine-tuning" if params.fine_tune_epochs else ""
        print(f"Training {len(missing)} stage(s), {total:,} tokens{fine_tuned}; {done} stage(s) are done.", flush=True)
        _train(job, params)
    shutil.rmtree(work, ignore_errors=True)
    return _collect(params, chains, stages_dir, {stage["name"] for stage in missing})


def plan_stages(
    params: TrainingParams,
    sources: Mapping[str, Sequence[str]],
    base_digest: str,
    held_out_digest: str,
    problems: Sequence[tuple[str, str]] = (),
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The tree of stages, parents first, and each arm's chain of stage names."""
    if not params.arms:
        raise TraitError("training.arms is empty: name at least one arm, for instance raw: [in_domain].")
    digests = {name: _texts_digest(name, sources) for name in sorted(_named(params))}
    shaping = {field: getattr(params, field) for field in SHAPING}
    if params.accelerate_config:
        if not Path(params.accelerate_config).is_file():
            raise TraitError(
                f"training: accelerate_config {params.accelerate_config} does not exist. Write one with `accelerate config "
                f"--config_file {params.accelerate_config}`, or leave it empty to train in one process."
            )
        shaping["accelerate_config"] = sha256(params.accelerate_config)
    plan: dict[str, dict[str, Any]] = {}
    chains = {}
    for arm, mixtures in params.arms.items():
        parent, parent_key, before, consumed = None, base_digest, 0, Counter()
        chains[arm] = []
        for place, (mixture, budget) in enumerate(zip(mixtures, params.stage_tokens, strict=True), start=1):
            steps = budget // params.tokens_per_batch
            tokens = steps * params.tokens_per_batch
            parts = shares(mixture, tokens, consumed)
            texts = {part.source: digests[part.source] for part in parts}
            parts_json = [asdict(part) for part in parts]
            key = digest([CODE_VERSION, parent_key, parts_json, texts, steps, before, shaping, held_out_digest])
            name = f"{place}-{'+'.join(texts)}-{key[:12]}"
            stage = {
                "name": name, "key": key, "parent": parent, "place": place, "places": len(mixtures),
                "mixture": "+".join(texts), "shares": parts_json, "texts": texts,
                "steps": steps, "tokens": tokens, "tokens_before": before, "arms": [],
            }  # fmt: skip
            plan.setdefault(name, stage)["arms"].append(arm)
            chains[arm].append(name)
            consumed.update({part.source: part.tokens for part in parts})
            parent, parent_key, before = name, key, before + tokens
    if params.fine_tune_epochs:
        shaping |= {"learning_rate": params.fine_tune_learning_rate, "decay_fraction": None}
        shaped_by = [CODE_VERSION, _pairs_digest(problems), params.fine_tune_epochs, shaping, held_out_digest]
        for arm, chain in [("base", []), *chains.items()]:
            stage = _fine_tuning_stage(params, plan[chain[-1]] if chain else None, base_digest, shaped_by)
            plan.setdefault(stage["name"], stage)["arms"].append(f"{arm}{fine_tuning.SUFFIX}")
            chains[f"{arm}{fine_tuning.SUFFIX}"] = [*chain, stage["name"]]
    return sorted(plan.values(), key=lambda stage: stage["place"]), chains


def _fine_tuning_stage(
    params: TrainingParams, parent: dict[str, Any] | None, base_digest: str, shaped_by: list[Any]
) -> dict[str, Any]:
    """A stage that reads problems; its steps and tokens are known when they have been tokenised and packed."""
    key = digest([parent["key"] if parent else base_digest, *shaped_by])
    place, before = (parent["place"] + 1, parent["tokens_before"] + parent["tokens"]) if parent else (1, 0)
    return {
        "name": f"{place}{fine_tuning.SUFFIX}-{key[:12]}", "key": key, "parent": parent and parent["name"],
        "place": place, "places": place, "mixture": fine_tuning.SOURCE, "shares": [], "texts": {},
        "epochs": params.fine_tune_epochs, "learning_rate": params.fine_tune_learning_rate,
        "steps": 0, "tokens": 0, "tokens_before": before, "arms": [],
    }  # fmt: skip


def _train(job: dict[str, Any], params: TrainingParams) -> None:
    """All stages in one child process; with accelerate one to prepare, then one launch a stage."""
    names = [stage["name"] for stage in job["stages"]]
    if not params.accelerate_config:
        _child([sys.executable, "-m", "trait_kit.training.worker"], {**job, "prepare": True, "train": names})
        return
    _child([sys.executable, "-m", "trait_kit.training.worker"], {**job, "prepare": True, "train": []})
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", params.accelerate_config]
    for name in names:
        _child([*launch, "-m", "trait_kit.training.worker"], {**job, "prepare": False, "train": [name]})


def _child(command: list[str], job: dict[str, Any]) -> None:
    """Run a worker, pass its progress lines on, and turn its end into a TraitError where it failed.

    The worker watches its standard input, whose other end this process holds: it dies with us however we go.
    """
    work = Path(job["work"])
    path = write_json(work / "job.json", job)
    (work / "error.json").unlink(missing_ok=True)
    root = str(Path(__file__).resolve().parents[2])
    environment = {**WORKER_ENVIRONMENT, **os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    last: collections.deque[str] = collections.deque(maxlen=40)
    process = subprocess.Popen(
        [*command, str(path), "--watch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", env=environment,
    )  # fmt: skip
    try:
        with (work / "worker.log").open("a", encoding="utf-8") as log:
            for line in process.stdout:
                log.write(line)
                last.append(line)
                if " tokens/s" in line:
                    print(line, end="", flush=True)
        code = process.wait()
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if (work / "error.json").exists():
        raise TraitError(read_json(work / "error.json")["message"])
    if code and code != USER_ERROR:
        reason = f"was ended by signal {-code}" if code < 0 else f"failed with exit status {code}"
        hint = " Most likely memory ran out: lower rows_per_device or context_length." if code == -9 else ""
        raise TraitError(
            f"training: the training process {reason}.{hint} Finished stages are kept: run again to go on. "
            f"Its last lines (all in {work / 'worker.log'}):\n{''.join(last)}"
        )


def _collect(params: TrainingParams, chains: dict[str, list[str]], stages_dir: Path, new: set[str]) -> TrainingResult:
    log, accounting, stages = [], [], []
    users = Counter(name for chain in chains.values() for name in chain)
    for arm, chain in chains.items():
        for place, name in enumerate(chain, start=1):
            folder = stages_dir / name
            report = read_json(folder / "stage.json")
            place_columns = {"arm": arm, "stage": place}
            log += [{**place_columns, "seed": params.seed, **row} for row in read_json(folder / "log.json")]
            accounting += [{**place_columns, **row} for row in report["accounting"]]
            kept = (
                "name", "mixture", "tokens", "steps", "efficiency", "documents", "cut", "seconds", "evaluation_seconds",
                "tokens_per_second", "precision", "device",
            )  # fmt: skip
            stages.append(
                {
                    **place_columns,
                    **{field: report[field] for field in kept},
                    "shared": users[name] > 1,
                    "new": name in new,
                    "folder": str(folder),
                }
            )
    columns = ["arm", "stage", "source", "tokens", "epochs", "available"]
    return TrainingResult(
        log=tables.conform(pd.DataFrame(log), "log").to_pandas(),
        models={arm: stages_dir / chain[-1] / "model" for arm, chain in chains.items()},
        accounting=pd.DataFrame(accounting)[columns],
        stages=pd.DataFrame(stages),
    )


def _named(params: TrainingParams) -> set[str]:
    return {source for mixtures in params.arms.values() for mixture in mixtures for source in mixture.split("+")}


def _texts_digest(name: str, sources: Mapping[str, Sequence[str]]) -> str:
    """Digest of a source's texts in their order; TraitError where there is nothing to train on."""
    if name not in sources:
        given = ", ".join(sorted(sources)) or "none"
        raise TraitError(f"training.arms names the source '{name}', but only {given} were given.")
    state = hashlib.sha256()
    empty = True
    for row, text in enumerate(sources[name]):
        if not isinstance(text, str):
            raise TraitError(f"training: row {row} of the source '{name}' is {type(text).__name__}, not text.")
        encoded = text.encode("utf-8", "surrogatepass")
        state.update(len(encoded).to_bytes(8, "little") + encoded)
        empty = empty and not text.strip()
    if empty:
        raise TraitError(f"training: the source '{name}' has no text. Look at the step that writes it, or leave it out.")
    return state.hexdigest()


def _pairs_digest(problems: Sequence[tuple[str, str]]) -> str:
    """Digest of the (prompt, target) pairs to fine-tune on; TraitError where there are none."""
    if not problems:
        raise TraitError("training: fine_tune_epochs is set, but there are no train problems. Set it to 0, or add a task.")
    for prompt, target in problems:
        if not (prompt.strip() and target.strip()):
            raise TraitError(f"training: a train problem has an empty prompt or target (prompt {prompt[:80]!r}).")
    return digest(list(problems))


def _write_texts(stages: list[dict[str, Any]], sources: Mapping[str, Sequence[str]], folder: Path) -> dict[str, str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = {}
    for source, key in sorted({item for stage in stages for item in stage["texts"].items()}):
        path = folder / f"{source}-{key[:12]}.parquet"
        with atomic_path(path) as temporary:
            pq.write_table(pa.table({"text": pa.array(list(sources[source]), pa.large_string())}), temporary)
        paths[key] = str(path)
    return paths


def _held_out(held_out: Mapping[str, Sequence[tuple[str, str]]], items: int) -> dict[str, list[list[str]]]:
    """At most `items` of each set, evenly spaced: problems come sorted by task, and every task should be heard."""
    chosen = {}
    for name, pairs in sorted(held_out.items()):
        if not pairs:
            raise TraitError(f"training: the held-out set '{name}' is empty: leave it out of held_out, or give it items.")
        for prompt, target in pairs:
            if not (isinstance(prompt, str) and isinstance(target, str) and target.strip()):
                raise TraitError(f"training: the held-out set '{name}' has an item without a target (prompt {prompt!r}).")
        indices = np.linspace(0, len(pairs) - 1, min(items, len(pairs))).round().astype(int)
        chosen[name] = [list(pairs[index]) for index in indices]
    return chosen


def _model_digest(base: str) -> str:
    """Digest of every file of a model folder, or of the name and revision of a hub model."""
    folder = Path(base)
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        if not files:
            raise TraitError(f"training: the base model's folder {base} is empty.")
        facts = [(str(path.relative_to(folder)), path.stat()) for path in files]
        stamps = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in facts)
        return _folder_digest(base, json.dumps(stamps))
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return digest([base, model_info(base).sha])
    except (HfHubHTTPError, OSError, ValueError):
        return digest([base])  # no hub within reach: the local copy of the hub is what will be loaded


@functools.lru_cache(maxsize=8)
def _folder_digest(folder: str, stamps: str) -> str:
    return digest([[name, sha256(Path(folder) / name)] for name, _, _ in json.loads(stamps)])
