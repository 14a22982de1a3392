"""Before any training: tokenise each source once, and pack the rows of every stage, so that bad input stops a run early.

A source is an endless stream: its documents in a random order, then again in another one. A stage takes a stretch of
each stream; a later stage that mixes the same source goes on where the earlier one ended, so data repeat only when they
have run out. Shares are equal unless a mixture names a source more than once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trait_kit.engine.files import TraitError, digest
from trait_kit.engine.packing import plan_rows
from trait_kit.training import fine_tuning
from trait_kit.training.launch import say
from trait_kit.training.plan import Job, Stage
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
        if tokens:
            store = stores[source]
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
    stage.consumed, stage.documents, stage.cut = consumed, len(document), plan.n_cut
    stage.efficiency = float(plan.length.sum()) / (len(plan.row_ends) * params.context_length)
    stage.save(folder)


def _store(job: Job, source: str, texts: str, tokenizer: Any) -> TokenStore:
    """The tokens of a source, made on first use; known by the tokenizer and the texts."""
    key = digest([tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id, tokenizer.bos_token_id, texts])
    return tokenise(job.texts[source], tokenizer, job.folder / "tokens" / f"{source}-{key[:12]}")


def _consumed_before(job: Job, stage: Stage) -> dict[str, int]:
    """How much of each stream the stages before have used up."""
    if not stage.parent:
        return {}
    done = job.stages_dir / stage.parent
    return Stage.load(done if done.exists() else job.work / stage.parent).consumed


def shares(mixture: str, tokens: int, room: Mapping[str, int]) -> dict[str, int]:
    """Split a stage's tokens over the '+'-joined sources, in alphabetical order.

    `room`: how many tokens a source may still give. What is above it goes to the mixture's other sources by their weights;
    where none has room, all go over it alike, for every arm sees the same number of tokens.
    """
    weights = dict(sorted(Counter(mixture.split("+")).items()))
    full: dict[str, int] = {}
    while len(full) < len(weights):
        left = tokens - sum(full.values())
        split = _split(left, {source: weight for source, weight in weights.items() if source not in full})
        above = {source: room[source] for source, count in split.items() if count > room[source]}
        if not above:
            return {source: {**split, **full}[source] for source in weights}
        full |= above
    return {source: full[source] + more for source, more in _split(tokens - sum(full.values()), weights).items()}


def _split(tokens: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Whole tokens in proportion; the first sources take what is left over."""
    edges = np.ceil(np.round(np.cumsum([0, *weights.values()]) / sum(weights.values()) * tokens, 6)).astype(int)
    return dict(zip(weights, np.diff(edges).tolist(), strict=True))


def draw(lengths: np.ndarray, start: int, tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [start, start + tokens) of the stream of documents with these lengths: (document, first token, tokens).

    Three int64 arrays, one entry a piece, in the stream's order; the documents at its two ends may be cut.
    """
    epoch, skip = divmod(start, int(lengths.sum()))
    pieces = []
    while tokens:
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
        ends = np.cumsum(lengths[order])
        begins = np.maximum(ends - lengths[order], skip)  # within the epoch
        stops = np.minimum(ends, skip + tokens)
        taken = begins < stops
        first = begins - (ends - lengths[order])
        pieces.append((order[taken], first[taken], (stops - begins)[taken]))
        tokens -= int(pieces[-1][2].sum())
        skip, epoch = 0, epoch + 1
    return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))
