"""What is to be trained: the tree of stages that the arms share, each stage known by everything that shapes its result.

Arms are chains (paper, section 3.3: in-domain and selected text first, then the task-oriented passages), and chains with
the same beginning form a tree. A stage's key covers its parent's key, its texts, its parameters and the held-out items, so
equal keys mean equal results. Fine-tuning, where asked for, is one more stage after each chain and after the base model, in
arms of its own: 'trait_fine_tuned'. For ablations, all stages of an arm can also be one: with one schedule across them, or
with their texts mixed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trait_kit.engine.files import TraitError, digest, read_json, sha256, write_json
from trait_kit.params import TrainingParams
from trait_kit.training import fine_tuning
from trait_kit.training.sampling import sources_of

Source = Sequence[str] | Path  # texts, or a Parquet file with a column `text`

CODE_VERSION = 2  # part of every key: raise it when a change of this package changes what training produces
SHAPING = (
    "context_length", "tokens_per_batch", "rows_per_device", "learning_rate", "warmup_fraction", "decay_fraction",
    "weight_decay", "max_gradient_norm", "precision", "evaluations_per_stage", "task_scores_per_stage", "attention",
    "compile_layers", "fused_loss", "lora_rank", "seed",
)  # fmt: skip


def plan_stages(
    params: TrainingParams,
    sources: Mapping[str, Source],
    base_digest: str,
    held_out_digest: str,
    problems: Sequence[tuple[str, str]] = (),
    digests: Path | None = None,
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The tree of stages, parents first, and each arm's chain of stage names.

    `digests` remembers the digests of files, so that a large corpus is not read again to find that it has not changed.
    """
    if not params.arms:
        raise TraitError("training.arms is empty: name at least one arm, for instance raw: [in_domain].")
    texts = {name: _texts_digest(name, sources, digests) for name in sorted(named_sources(params))}
    shaping = {field: getattr(params, field) for field in SHAPING}
    if params.accelerate_config:
        if not Path(params.accelerate_config).is_file():
            raise TraitError(
                f"training: accelerate_config {params.accelerate_config} does not exist. Write one with `accelerate config "
                f"--config_file {params.accelerate_config}`, or leave it empty to train in one process."
            )
        shaping["accelerate_config"] = sha256(params.accelerate_config)
    plan: dict[str, dict[str, Any]] = {}
    chains: dict[str, list[str]] = {}
    for arm, mixtures in params.arms.items():
        parent, chains[arm] = None, []
        for parts in _grouped(_parts(params, mixtures), params.schedule):
            stage = _stage(params, parts, texts, plan.get(parent), base_digest, [shaping, held_out_digest])
            parent = stage["name"]
            plan.setdefault(parent, stage)["arms"].append(arm)
            chains[arm].append(parent)
    if params.fine_tune_epochs:
        shaping |= {"learning_rate": params.fine_tune_learning_rate, "decay_fraction": None}
        shaping |= {"tokens_per_batch": params.fine_tune_tokens_per_batch or params.tokens_per_batch}
        shaped_by = [CODE_VERSION, _pairs_digest(problems), params.fine_tune_epochs, shaping, held_out_digest]
        for arm, chain in [("base", []), *chains.items()]:
            stage = _fine_tuning_stage(params, plan[chain[-1]] if chain else None, base_digest, shaped_by)
            plan.setdefault(stage["name"], stage)["arms"].append(f"{arm}{fine_tuning.SUFFIX}")
            chains[f"{arm}{fine_tuning.SUFFIX}"] = [*chain, stage["name"]]
    return sorted(plan.values(), key=lambda stage: stage["place"]), chains


def named_sources(params: TrainingParams) -> set[str]:
    """Every source that an arm reads, replayed text included."""
    return {
        source
        for mixtures in params.arms.values()
        for mixture, replay in zip(mixtures, _replay(params), strict=True)
        for source in sources_of(mixture, replay)
    }


def _replay(params: TrainingParams) -> list[float]:
    return params.replay or [0.0] * len(params.stage_tokens)


def _parts(params: TrainingParams, mixtures: Sequence[str]) -> list[dict[str, Any]]:
    """What an arm reads, a record each of the paper's stages; `tokens` in whole batches."""
    parts = []
    for mixture, replay, budget in zip(mixtures, _replay(params), params.stage_tokens, strict=True):
        steps = budget // params.tokens_per_batch
        parts.append({"mixture": mixture, "replay": replay, "steps": steps, "tokens": steps * params.tokens_per_batch})
    return parts


def _grouped(parts: list[dict[str, Any]], schedule: str) -> list[list[dict[str, Any]]]:
    return [[part] for part in parts] if schedule == "per_stage" else [parts]


def _stage(
    params: TrainingParams,
    parts: list[dict[str, Any]],
    digests: Mapping[str, str],
    parent: dict[str, Any] | None,
    base_digest: str,
    shaped_by: list[Any],
) -> dict[str, Any]:
    """One Trainer run: its parts are packed one after the other, or all together, under one schedule."""
    named = [sources_of(part["mixture"], part["replay"]) for part in parts]
    texts = {source: digests[source] for sources in named for source in sources}
    place, before = (parent["place"] + 1, parent["tokens_before"] + parent["tokens"]) if parent else (1, 0)
    together = params.schedule == "one_stage"
    read = [["+".join(sorted(part["mixture"].split("+"))), part["replay"], part["tokens"]] for part in parts]
    parent_key = parent["key"] if parent else base_digest
    key = digest([CODE_VERSION, parent_key, read, together, params.max_epochs, texts, before, *shaped_by])
    label = "+".join(sorted(texts)) if together else " → ".join("+".join(sources) for sources in named)
    return {
        "name": f"{place}-{'+'.join(sorted(texts))}-{key[:12]}", "key": key, "parent": parent and parent["name"],
        "place": place, "places": len(params.stage_tokens) if len(parts) == 1 else 1, "mixture": label, "texts": texts,
        "parts": parts, "together": together, "tokens_per_batch": params.tokens_per_batch,
        "steps": sum(part["steps"] for part in parts), "tokens": sum(part["tokens"] for part in parts),
        "tokens_before": before, "arms": [],
    }  # fmt: skip


def _fine_tuning_stage(
    params: TrainingParams, parent: dict[str, Any] | None, base_digest: str, shaped_by: list[Any]
) -> dict[str, Any]:
    """A stage that reads problems; its steps and tokens are known when they have been tokenised and packed."""
    key = digest([parent["key"] if parent else base_digest, *shaped_by])
    parts = len(parent["parts"]) if parent and not parent["together"] else 1
    place, before = (parent["place"] + parts, parent["tokens_before"] + parent["tokens"]) if parent else (1, 0)
    return {
        "name": f"{place}{fine_tuning.SUFFIX}-{key[:12]}", "key": key, "parent": parent and parent["name"],
        "place": place, "places": place, "mixture": fine_tuning.SOURCE, "texts": {}, "parts": [], "together": False,
        "tokens_per_batch": params.fine_tune_tokens_per_batch or params.tokens_per_batch,
        "epochs": params.fine_tune_epochs, "learning_rate": params.fine_tune_learning_rate,
        "steps": 0, "tokens": 0, "tokens_before": before, "arms": [],
    }  # fmt: skip


def _texts_digest(name: str, sources: Mapping[str, Source], digests: Path | None) -> str:
    """Digest of a source's texts in their order; TraitError where there is nothing to train on."""
    if name not in sources:
        given = ", ".join(sorted(sources)) or "none"
        raise TraitError(f"training.arms names the source '{name}', but only {given} were given.")
    source = sources[name]
    if isinstance(source, Path):
        return _file_digest(source, digests)
    state = hashlib.sha256()
    empty = True
    for row, text in enumerate(source):
        if not isinstance(text, str):
            raise TraitError(f"training: row {row} of the source '{name}' is {type(text).__name__}, not text.")
        encoded = text.encode("utf-8", "surrogatepass")
        state.update(len(encoded).to_bytes(8, "little") + encoded)
        empty = empty and not text.strip()
    if empty:
        raise TraitError(f"training: the source '{name}' has no text. Look at the step that writes it, or leave it out.")
    return state.hexdigest()


def _file_digest(path: Path, digests: Path | None) -> str:
    if not path.is_file():
        raise TraitError(f"training: {path} does not exist. Run the step that writes it first.")
    known = read_json(digests) if digests and digests.exists() else {}
    stamp = [path.stat().st_size, path.stat().st_mtime_ns]
    entry = known.get(str(path.absolute()))
    if entry and entry[:2] == stamp:
        return entry[2]
    value = sha256(path)
    if digests:
        write_json(digests, {**known, str(path.absolute()): [*stamp, value]})
    return value


def _pairs_digest(problems: Sequence[tuple[str, str]]) -> str:
    """Digest of the (prompt, target) pairs to fine-tune on; TraitError where there are none."""
    if not problems:
        raise TraitError("training: fine_tune_epochs is set, but there are no train problems. Set it to 0, or add a task.")
    for prompt, target in problems:
        if not (prompt.strip() and target.strip()):
            raise TraitError(f"training: a train problem has an empty prompt or target (prompt {prompt[:80]!r}).")
    return digest(list(problems))
