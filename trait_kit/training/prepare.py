"""Before any training: tokenise each source once, and pack the rows of every stage, so that bad input stops a run early."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trait_kit.engine.files import TraitError, digest, read_json
from trait_kit.engine.packing import plan_rows
from trait_kit.training import fine_tuning
from trait_kit.training.held_out import encode
from trait_kit.training.plan import Job, Part, Stage
from trait_kit.training.sampling import Share, draw, shares
from trait_kit.training.tokens import PIECE, TokenStore, mean_attended, piece_records, save_rows, tokenise

Drawn = list[np.ndarray]  # of each piece: store, document, first token, tokens


def prepare(job: Job, tokenizer: Any, say: Callable[[str], None]) -> None:
    """Write the rows of every stage of `job` under <work>/<stage>/. TraitError for what cannot be trained."""
    from transformers import AutoConfig

    _check_model(job, AutoConfig.from_pretrained(job.base).get_text_config(), tokenizer)
    for pairs in read_json(job.work / "held_out.json").values():
        encode([pair[:2] for pair in pairs], tokenizer, job.params.context_length)
    for stage in job.stages:
        folder = job.work / stage.name
        if (folder / "stage.json").exists():
            continue
        if stage.epochs:
            fine_tuning.prepare(read_json(job.work / "problems.json"), tokenizer, stage, job.params, folder)
            continue
        _pack(job, stage, tokenizer, folder, say)
        say(
            f"Packed {stage.mixture}: {stage.documents:,} documents, {stage.cut:,} of them cut, into rows of "
            f"{job.params.context_length:,} tokens, {stage.efficiency:.2%} full."
        )


def _check_model(job: Job, config: Any, tokenizer: Any) -> None:
    longest, name = getattr(config, "max_position_embeddings", None), job.params.base_model
    if longest and job.params.context_length > longest:
        raise TraitError(
            f"training: context_length ({job.params.context_length:,}) is longer than {name} can read ({longest:,} tokens). "
            "Lower context_length, or choose another base_model."
        )
    if len(tokenizer) > config.vocab_size:
        raise TraitError(
            f"training: the tokenizer of {name} knows {len(tokenizer):,} tokens and its model only {config.vocab_size:,}: "
            "they are not of one model. Put the tokenizer's files beside the weights they belong to."
        )


def _pack(job: Job, stage: Stage, tokenizer: Any, folder: Path, say: Callable[[str], None]) -> None:
    names, context_length = list(stage.texts), job.params.context_length
    stores = [_store(job, name, stage.texts[name], tokenizer, say) for name in names]
    consumed = Counter(_after_parent(job, stage))
    accounting: list[dict[str, Any]] = []
    parts: list[Drawn] = []
    for number, part in enumerate(stage.parts):
        place = stage.place + (0 if stage.together else number)
        parts.append(_draw(job, stage, part, dict(zip(names, stores, strict=True)), consumed, place, accounting))
    if stage.together:
        parts = [[np.concatenate(columns) for columns in zip(*parts, strict=True)]]
        accounting = _summed(accounting)
    pieces, row_ends, cut = np.zeros(0, PIECE), np.zeros(0, np.int64), 0
    for store, document, start, length in parts:
        plan = plan_rows(length, context_length, seed=job.params.seed)
        chosen = plan.document
        packed = piece_records(stores, store[chosen], document[chosen], start[chosen] + plan.start)
        packed["length"] = plan.length
        row_ends = np.concatenate([row_ends, len(pieces) + plan.row_ends])
        pieces, cut = np.concatenate([pieces, packed]), cut + plan.n_cut
    save_rows(folder, pieces, row_ends, [os.path.relpath(store.folder, folder) for store in stores])
    stage.accounting, stage.consumed = accounting, dict(consumed)
    stage.documents, stage.cut = sum(len(part[0]) for part in parts), cut
    stage.efficiency = float(pieces["length"].sum()) / (len(row_ends) * context_length)
    stage.mean_attended = mean_attended(pieces)
    stage.save(folder)


def _draw(
    job: Job,
    stage: Stage,
    part: Part,
    stores: dict[str, TokenStore],
    consumed: Counter[str],
    place: int,
    accounting: list[dict[str, Any]],
) -> Drawn:
    """The pieces that a part reads of each source; `consumed` and `accounting` are brought up to date."""
    available = {name: store.tokens for name, store in stores.items()}
    capped = {"available": available, "max_epochs": job.params.max_epochs}
    drawn = []
    for share in shares(part.mixture, part.tokens, consumed, replay=part.replay, **capped):
        store = stores[share.source]
        _check_size(share, store, part.tokens, stage.tokens_per_batch)
        columns = draw(store.lengths, share.start, share.tokens, job.params.seed)
        drawn.append([np.full(len(columns[0]), list(stores).index(share.source), np.uint8), *columns])
        consumed[share.source] += share.tokens
        taken = {"tokens": share.tokens, "epochs": share.tokens / store.tokens, "available": store.tokens}
        accounting.append({"stage": place, "source": share.source, **taken})
    return [np.concatenate(columns) for columns in zip(*drawn, strict=True)]


def _store(job: Job, source: str, texts: str, tokenizer: Any, say: Callable[[str], None]) -> TokenStore:
    """The tokens of a source, made on first use; known by the tokenizer and the texts."""
    rules = tokenizer.backend_tokenizer.to_str()
    key = digest([rules, tokenizer.eos_token_id, tokenizer.bos_token_id, texts])
    folder = job.folder / "tokens" / f"{source}-{key[:12]}"
    new, began = not (folder / "store.json").exists(), time.monotonic()
    store = tokenise(job.texts[source], tokenizer, folder)
    if not store.tokens:
        raise TraitError(f"training: the source '{source}' has no text. Look at the step that writes it, or leave it out.")
    if new:
        empty = f", {store.empty:,} empty texts left out" if store.empty else ""
        say(
            f"Tokenised {source}: {store.tokens:,} tokens in {len(store.lengths):,} documents{empty}, "
            f"{store.tokens / (time.monotonic() - began):,.0f} tokens/s; {store.rule}."
        )
    return store


def _after_parent(job: Job, stage: Stage) -> dict[str, int]:
    """How much of each stream the stages before have used up."""
    if not stage.parent:
        return {}
    done = job.stages_dir / stage.parent
    return Stage.load(done if done.exists() else job.work / stage.parent).consumed


def _check_size(share: Share, store: TokenStore, stage_tokens: int, tokens_per_batch: int) -> None:
    needed = tokens_per_batch * share.tokens // stage_tokens
    if store.tokens < needed:
        raise TraitError(
            f"training: the source '{share.source}' has {store.tokens:,} tokens in {len(store.lengths):,} documents, less "
            f"than its part of one batch ({needed:,} tokens). Give it more text, or lower tokens_per_batch."
        )


def _summed(accounting: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a source, where several parts are read as one stage."""
    rows: dict[str, dict[str, Any]] = {}
    for row in accounting:
        known = rows.setdefault(row["source"], {**row, "tokens": 0, "epochs": 0.0})
        known["tokens"] += row["tokens"]
        known["epochs"] += row["epochs"]
    return list(rows.values())
