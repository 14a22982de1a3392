"""Before any training: tokenise each source once, and pack the rows of every stage, so that bad input stops a run early."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from trait_kit.engine.files import TraitError, digest
from trait_kit.engine.packing import plan_rows
from trait_kit.training import fine_tuning
from trait_kit.training.launch import say
from trait_kit.training.plan import Job, Stage
from trait_kit.training.sampling import draw, shares
from trait_kit.training.tokens import TokenStore, piece_records, save_rows, tokenise


def prepare(job: Job, tokenizer: Any) -> None:
    """Write the rows of every stage of `job` under <work>/<stage>/. TraitError for what cannot be trained."""
    from transformers import AutoConfig

    longest = getattr(AutoConfig.from_pretrained(job.base).get_text_config(), "max_position_embeddings", None)
    if longest and job.params.context_length > longest:
        raise TraitError(
            f"training: context_length ({job.params.context_length:,}) is longer than {job.params.base_model} can read "
            f"({longest:,} tokens). Lower context_length, or choose another base_model."
        )
    for stage in job.stages:
        folder = job.work / stage.name
        if (folder / "stage.json").exists():
            continue
        if stage.epochs:
            fine_tuning.prepare(job.problems, tokenizer, stage, job.params, folder)
        else:
            _pack(job, stage, tokenizer, folder)
        say(
            f"Packed {stage.mixture}: {stage.documents:,} documents, {stage.cut:,} of them cut, into rows of "
            f"{job.params.context_length:,} tokens, {stage.efficiency:.2%} full."
        )


def _pack(job: Job, stage: Stage, tokenizer: Any, folder: Path) -> None:
    params = job.params
    stores = {source: _store(job, source, stage.texts[source], tokenizer) for source in stage.texts}
    consumed = dict.fromkeys(stores, 0) | _consumed_before(job, stage)
    room = {source: stage.tokens for source in stores}
    if params.max_epochs:
        room = {name: max(0, int(params.max_epochs * one.tokens) - consumed[name]) for name, one in stores.items()}
    drawn = []
    for number, (source, tokens) in enumerate(shares(stage.mixture, stage.tokens, room).items()):
        store = stores[source]
        if store.tokens < stage.tokens_per_batch * tokens // stage.tokens:
            raise TraitError(
                f"training: the source '{source}' has {store.tokens:,} tokens in {len(store.lengths):,} documents, less "
                "than its part of one batch. Give it more text, or lower tokens_per_batch."
            )
        if tokens:
            columns = draw(store.lengths, consumed[source], tokens, params.seed)
            drawn.append([np.full(len(columns[0]), number, np.uint8), *columns])
            taken = {"tokens": tokens, "epochs": tokens / store.tokens, "available": store.tokens}
            stage.accounting.append({"stage": stage.place, "source": source, **taken})
        consumed[source] += tokens
    of_store, document, start, length = (np.concatenate(columns) for columns in zip(*drawn, strict=True))
    plan = plan_rows(length, params.context_length, seed=params.seed)
    chosen = plan.document
    starts = start[chosen] + plan.start
    pieces = piece_records(list(stores.values()), of_store[chosen], document[chosen], starts, plan.length)
    save_rows(folder, pieces, plan.row_ends, [os.path.relpath(store.folder, folder) for store in stores.values()])
    stage.consumed, stage.documents, stage.cut, stage.efficiency = consumed, len(document), plan.n_cut, plan.efficiency
    stage.save(folder)


def _store(job: Job, source: str, texts: str, tokenizer: Any) -> TokenStore:
    """The tokens of a source, made on first use; known by the tokenizer and the texts."""
    key = digest([tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id, tokenizer.bos_token_id, texts])
    folder = job.folder / "tokens" / f"{source}-{key[:12]}"
    new = not folder.exists()
    store = tokenise(job.texts[source], tokenizer, folder)
    if new:
        empty = f", {store.empty:,} empty texts left out" if store.empty else ""
        say(f"Tokenised {source}: {store.tokens:,} tokens in {len(store.lengths):,} documents{empty}.")
    return store


def _consumed_before(job: Job, stage: Stage) -> dict[str, int]:
    """How much of each stream the stages before have used up."""
    if not stage.parent:
        return {}
    done = job.stages_dir / stage.parent
    return Stage.load(done if done.exists() else job.work / stage.parent).consumed
