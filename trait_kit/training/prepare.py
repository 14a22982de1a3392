"""Before any training: tokenise each source once, and pack the rows of every stage, so that bad input stops a run early.

A source is an endless stream: its documents in a random order, then again in another one. A stage takes a stretch of each
stream; a later stage goes on where that ended, so data repeat only when they have run out. Web and in-domain text may be cut
at the ends of a stretch or of a row. What notebook 03 wrote is whole or not read: a stage takes, in the stream's order, what
still fits in one of its rows, and a later one begins with the first document that did not. Every arm has the same steps and
slots; those that stay empty are padding.

Fine-tuning (paper, appendix: 5 epochs, cosine, 5e-6) reads the tasks' train problems whole: evaluation's prompt, its target,
which alone has a loss, and the end token, so that a generated answer ends.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from trait_kit.engine import child
from trait_kit.engine.files import TraitError, digest, read_json, write_json
from trait_kit.engine.packing import plan_rows
from trait_kit.params import WRITTEN, TrainingParams, weights
from trait_kit.training.plan import PROBLEMS, Job, Stage
from trait_kit.training.tokens import TokenStore, piece_records, prefix_tokens, save_rows, tokenise

PACKED = "packed.json"  # written last: what a stage in its folder then holds
_WHOLE = (*WRITTEN, PROBLEMS)  # sources of which no document is cut


def prepare(job: Job, tokenizer: Any) -> None:
    """Write the rows of every stage under <work>/<stage>/. TraitError for what cannot be trained."""
    from transformers import AutoConfig

    longest = getattr(AutoConfig.from_pretrained(job.base).get_text_config(), "max_position_embeddings", None)
    if longest and job.params.context_length > longest:
        raise TraitError(
            f"training: context_length ({job.params.context_length:,}) is longer than {job.params.base_model} can read "
            f"({longest:,} tokens). Lower it, or choose another base_model."
        )
    for stage in job.stages:
        folder = job.work / stage.name
        if (folder / PACKED).exists():
            continue
        (_pack_problems if stage.epochs else _pack)(job, stage, tokenizer, folder)
        told = "{documents:,} of {source} ({cut:,} cut, {too_long:,} left out: longer than a row)"
        read = ", ".join(told.format(**row) for row in stage.accounting)
        child.tell(f"Packed {stage.mixture}: {read}; {stage.padding:.1%} of the slots are empty.")


def _pack(job: Job, stage: Stage, tokenizer: Any, folder: Path) -> None:
    params = job.params
    stores = {source: _store(job, source, stage.texts[source], tokenizer) for source in stage.texts}
    stage.consumed = dict.fromkeys(stores, 0)
    if stage.parent:
        done = job.stages_dir / stage.parent / "stage.json"
        stage.consumed |= read_json(done if done.exists() else job.work / stage.parent / PACKED)["consumed"]
    streams = [
        _stream(source, stores[source], share, share == stage.tokens, stage.consumed[source], params)
        for source, share in shares(stage.mixture, stage.tokens).items()
    ]
    table = pd.concat([stream.assign(store=number) for number, stream in enumerate(streams)], ignore_index=True)
    table = table.sort_values("turn", kind="stable", ignore_index=True)
    n_rows = stage.tokens // params.context_length
    plan = plan_rows(table["length"], params.context_length, n_rows=n_rows, whole=table["whole"])
    rows, starts = table.iloc[plan.document], plan.start + table["start"].to_numpy()[plan.document]
    pieces = piece_records(
        [*stores.values()], rows["store"].to_numpy(), rows["document"].to_numpy(), starts, plan.length
    )
    save_rows(folder, pieces, plan.row_ends, [*stores.values()])
    table["placed"] = np.bincount(plan.document, plan.length, len(table)).astype(int)
    table["pieces"] = np.bincount(plan.document, minlength=len(table))
    for (source, store), (_, part) in zip(stores.items(), table.groupby("store"), strict=True):
        stage.accounting.append(_account(stage, source, store, part, params))
        waiting = part[part["placed"] < part["length"]]
        stage.consumed[source] = int(
            waiting["offset"].min() if len(waiting) else (part["offset"] + part["length"]).max()
        )

    _note(stage, folder)


def _pack_problems(job: Job, stage: Stage, tokenizer: Any, folder: Path) -> None:
    """Each epoch has every problem once, its rows in an order of its own; empty ones fill the end."""
    context_length, epochs, seed = job.params.context_length, stage.epochs, job.params.seed
    store = _store(job, PROBLEMS, stage.texts[PROBLEMS], tokenizer)
    prompts = [text.rstrip() for text in pq.read_table(job.texts[PROBLEMS])["prompt"].to_pylist()]
    given = tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
    unlearnt = np.maximum(len(prefix_tokens(tokenizer)) + np.array(list(map(len, given))), 1)
    usable = np.flatnonzero(store.lengths <= context_length)
    mixed = np.random.default_rng(seed).permutation(usable)  # they come task by task
    plan = plan_rows(store.lengths[mixed], context_length, whole=True)
    document = mixed[plan.document]
    n_rows, rows_a_batch = len(plan.row_ends), stage.tokens_per_batch // context_length
    if n_rows < rows_a_batch:
        raise TraitError(
            f"training: the {len(usable):,} train problems have {plan.length.sum():,} tokens and fill {n_rows:,} row(s), "
            f"less than one batch ({rows_a_batch:,} rows). Lower fine_tune_tokens_per_batch, or set fine_tune_epochs to 0."
        )
    one_epoch = piece_records([store], np.zeros(len(document)), document, plan.start, plan.length)
    one_epoch["unlearnt"] = unlearnt[document]
    rows = np.split(one_epoch, plan.row_ends[:-1])
    orders = [np.random.default_rng([seed, epoch]).permutation(n_rows) for epoch in range(epochs)]
    ordered = [rows[index] for index in np.concatenate(orders)]
    ordered += [one_epoch[:0]] * (-len(ordered) % rows_a_batch)
    stage.steps, stage.tokens = (
        len(ordered) // rows_a_batch,
        len(ordered) * context_length,
    )  # as every stage counts them
    save_rows(folder, np.concatenate(ordered), np.cumsum([len(row) for row in ordered]), [store])
    read = pd.concat([pd.DataFrame({"document": document, "placed": plan.length, "pieces": 1})] * epochs)
    stage.accounting.append(_account(stage, PROBLEMS, store, read, job.params))

    _note(stage, folder)


def shares(mixture: str, tokens: int) -> dict[str, int]:
    """Tokens of each source in proportion to the weights; the first sources take what is left over."""
    found = weights(mixture)
    edges = np.ceil(np.round(np.cumsum([0, *found.values()]) / sum(found.values()) * tokens, 6)).astype(int)
    return dict(zip(found, np.diff(edges).tolist(), strict=True))


def _note(stage: Stage, folder: Path) -> None:
    stage.padding = 1 - sum(row["tokens"] for row in stage.accounting) / stage.tokens
    write_json(
        folder / PACKED, stage.model_dump(include={"steps", "tokens", "accounting", "consumed", "padding"})
    )


def _stream(
    source: str, store: TokenStore, share: int, alone: bool, start: int, params: TrainingParams
) -> pd.DataFrame:
    """What a stage may read of a source, in the stream's order, a row a piece.

    start: its first token within the document. offset: within the stream, in tokens. whole: it may not be cut. turn: the
    part of the source's share that is read with it, as sources are read side by side. Written documents that have a stage
    `alone` are so many that a gap finds one that fits.
    """
    lengths, whole = store.lengths, source in WRITTEN
    usable = np.flatnonzero(lengths <= min(params.context_length, share)) if whole else np.arange(len(lengths))
    if not (share and len(usable)):
        raise TraitError(
            f"training: no document of '{source}' fits whole into a row and its share of a stage. Raise context_length "
            f"({params.context_length:,}), stage_tokens or its weight ({share:,} tokens)."
        )
    tokens = share + int(lengths[usable].sum()) * (whole and alone)
    document, first, length = draw(lengths[usable], start, tokens, params.seed)
    ends = np.cumsum(length)
    columns = {"document": usable[document], "start": first, "length": length, "offset": start + ends - length}
    small = {"document": "int32", "start": "int32", "length": "int32", "turn": "float32"}  # of ten million pieces
    table = pd.DataFrame({**columns, "whole": whole, "turn": ends / share}).astype(small)

    return table[table["length"] == lengths[table["document"]]] if whole else table


def _account(
    stage: Stage, source: str, store: TokenStore, part: pd.DataFrame, params: TrainingParams
) -> dict[str, Any]:
    read, lengths = part[part["placed"] > 0], store.lengths
    usable = lengths[lengths <= params.context_length] if source in _WHOLE else lengths
    tokens, available = int(part["placed"].sum()), int(usable.sum())
    return {
        "stage": stage.place,
        "source": source,
        "tokens": tokens,
        "epochs": tokens / available,
        "available": available,
        "documents": len(read),
        "share": read["document"].nunique() / len(lengths),
        "cut": int(((read["pieces"] > 1) | (read["placed"] < lengths[read["document"]])).sum()),
        "too_long": len(lengths) - len(usable),
    }


def _store(job: Job, source: str, texts: str, tokenizer: Any) -> TokenStore:
    key = digest([tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id, tokenizer.bos_token_id, texts])
    return tokenise(job.texts[source], tokenizer, job.folder / "tokens" / f"{source}-{key[:12]}")


def draw(lengths: np.ndarray, start: int, tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [start, start + tokens) of a stream of documents: their number, first token and length, int64 arrays [pieces].

    The documents at its two ends may be cut.
    """
    epoch, skip = divmod(start, int(lengths.sum()))
    pieces = []
    while tokens:
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
        ends = np.cumsum(lengths[order])  # within the epoch
        first = np.maximum(skip - (ends - lengths[order]), 0)
        taken = np.minimum(ends, skip + tokens) - (ends - lengths[order]) - first
        pieces.append([values[taken > 0] for values in (order, first, taken)])
        tokens -= int(pieces[-1][2].sum())
        skip, epoch = 0, epoch + 1
    return tuple(map(np.concatenate, zip(*pieces, strict=True)))
