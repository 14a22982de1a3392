"""The last stage, where asked for: fine-tuning on the train problems of the downstream tasks.

The paper's fine-tuned setting (5 epochs, cosine, 5e-6: appendix) answers what a practitioner asks:
is continual pre-training still worth it where one fine-tunes anyway? An example is the prompt that
evaluation asks with and the target that it scores, with the end token, so that a generated answer
ends. Only the target has a loss. Examples are packed whole: half of one would be a target without
its question.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trait_kit.engine.files import TraitError
from trait_kit.engine.packing import plan_rows
from trait_kit.params import TrainingParams
from trait_kit.training.plan import PROBLEMS, Stage
from trait_kit.training.tokens import open_store, pair_tokens, piece_records, prefix_tokens, save_rows, write_store


def encode(pairs: Sequence[Sequence[str]], tokenizer: Any, context_length: int) -> tuple[list[np.ndarray], np.ndarray, int]:
    """Tokens of (prompt, target) pairs with the end token; how many of each are prompt; how many pairs had to be cut.

    Of a pair longer than `context_length`, the target keeps at least half of it and the prompt its
    end.
    """
    begin = prefix_tokens(tokenizer)
    room = context_length - len(begin)
    examples, n_prompt, n_cut = [], [], 0
    for prompt, target in pairs:
        given, learnt, _ = pair_tokens(prompt, target, tokenizer)
        learnt = [*learnt, tokenizer.eos_token_id]
        n_cut += len(given) + len(learnt) > room
        learnt = learnt[: max(room // 2, room - len(given))]
        given = [*begin, *given[-(room - len(learnt)) :]]
        examples.append(np.array([*given, *learnt], np.int32))
        n_prompt.append(len(given))
    return examples, np.array(n_prompt), n_cut


def prepare(pairs: Sequence[Sequence[str]], tokenizer: Any, stage: Stage, params: TrainingParams, folder: Path) -> None:
    """Write the rows of all epochs into `folder`, and note in `stage` what they hold.

    Each epoch has every problem once, its rows in an order of its own; empty rows fill up the last
    batch. Raises TraitError where an epoch does not fill a batch.
    """
    context_length, epochs = params.context_length, stage.epochs
    examples, n_prompt, n_cut = encode(pairs, tokenizer, context_length)
    write_store([examples], folder / "tokens")
    store = open_store(folder / "tokens")
    mixed = np.random.default_rng(params.seed).permutation(len(examples))  # they come task by task
    plan = plan_rows(store.lengths[mixed], context_length, whole=True)
    document = mixed[plan.document]
    n_rows, rows_a_batch = len(plan.row_ends), stage.tokens_per_batch // context_length
    if n_rows < rows_a_batch:
        raise TraitError(
            f"training: the {len(pairs):,} train problems have {store.tokens:,} tokens and fill {n_rows:,} row(s), less "
            f"than one batch ({rows_a_batch:,} rows, {stage.tokens_per_batch:,} tokens). Lower "
            "fine_tune_tokens_per_batch, or set fine_tune_epochs to 0."
        )
    one_epoch = piece_records([store], np.zeros(len(document)), document, plan.start, plan.length)
    one_epoch["unlearnt"] = np.maximum(n_prompt[document], 1)
    rows = np.split(one_epoch, plan.row_ends[:-1])
    orders = [np.random.default_rng([params.seed, epoch]).permutation(n_rows) for epoch in range(epochs)]
    ordered = [rows[index] for index in np.concatenate(orders)]
    ordered += [one_epoch[:0]] * (-len(ordered) % rows_a_batch)
    save_rows(folder, np.concatenate(ordered), np.cumsum([len(row) for row in ordered]), ["tokens"])
    read = {"tokens": store.tokens * epochs, "epochs": float(epochs), "available": store.tokens}
    read |= {"documents": len(pairs) * epochs, "share": 1.0, "cut": n_cut * epochs, "too_long": 0}
    stage.accounting = [{"stage": stage.place, "source": PROBLEMS, **read}]
    stage.steps, stage.tokens = len(ordered) // rows_a_batch, len(ordered) * context_length  # as every stage counts them
    stage.padding = 1 - store.tokens * epochs / stage.tokens
    stage.save(folder)
