"""Held-out scores while training: bits per byte of targets given prompts, cheap enough to ask often.

They do not depend on the tokenizer, and at small scale they move long before accuracy does. Items
are batched by length; right padding needs no mask because no token looks to its right.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from trait_kit.engine.packing import IGNORED
from trait_kit.training.tokens import pair_tokens, prefix_tokens

MAX_TARGET_TOKENS = 192  # the rest of a longer target is not scored, nor are its bytes counted
MAX_PROMPT_TOKENS = 192  # the end of a longer prompt is kept
TOKENS_PER_BATCH = 2_048


@dataclass(frozen=True)
class Item:
    """One scored text: token ids, how many of them are prompt, and the UTF-8 bytes of the scored target."""

    ids: list[int]
    n_prompt: int
    n_bytes: int


def encode(rows: Sequence[Sequence[str]], tokenizer: Any, max_tokens: int) -> list[list[Item]]:
    """Of each row (prompt, target, other targets ...) an item a target, at most `max_tokens` long.

    Prompt '' makes the target a document, which is given a begin or end token.
    """
    begin = prefix_tokens(tokenizer)
    nothing = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id

    def item(prompt: str, target: str) -> Item:
        given, ids, n_bytes = pair_tokens(prompt, target, tokenizer)
        ids = ids[: min(MAX_TARGET_TOKENS, max_tokens // 2)]
        given = [*begin, *given[-min(MAX_PROMPT_TOKENS, max_tokens - len(ids) - len(begin)) :]] or [nothing]
        return Item([*given, *ids], len(given), n_bytes[len(ids) - 1])

    return [[item(prompt, target) for target in targets] for prompt, *targets in rows]


def score(model: Any, rows: Sequence[Sequence[Item]], *, forward: Any = None) -> float:
    """Mean bits per byte of the rows' targets; where rows have several, the share whose first target has the fewest.

    `forward` is the wrapped model where several processes train.
    """
    scores = bits_per_byte(model, [item for row in rows for item in row], forward=forward)
    if len(scores) == len(rows):
        return float(scores.mean())
    parts = np.split(scores, np.cumsum([len(row) for row in rows])[:-1])
    return float(np.mean([part.argmin() == 0 for part in parts]))


@torch.no_grad()
def bits_per_byte(model: Any, items: Sequence[Item], *, forward: Any = None) -> np.ndarray:
    """-log2 p(target | prompt) / bytes of each item, float64 [n_items]."""
    order = sorted(range(len(items)), key=lambda index: len(items[index].ids))
    scores = np.empty(len(items))
    while order:
        size = sum(size * len(items[index].ids) <= TOKENS_PER_BATCH for size, index in enumerate(order, 1))
        batch, order = order[: size or 1], order[size or 1 :]
        rows = [torch.tensor(items[index].ids) for index in batch]
        labels = pad_sequence(rows, batch_first=True, padding_value=IGNORED)
        for row, index in enumerate(batch):
            labels[row, : items[index].n_prompt] = IGNORED
        ids, labels = pad_sequence(rows, batch_first=True).to(model.device), labels.to(model.device)
        losses = token_losses(model, ids, None, labels, forward=forward).double()
        of_row = torch.nonzero(labels[:, 1:] != IGNORED)[:, 0]
        nats = torch.zeros(len(batch), dtype=torch.double, device=model.device).index_add_(0, of_row, losses)
        scores[batch] = nats.cpu().numpy() / math.log(2) / [items[index].n_bytes for index in batch]
    return scores


def token_losses(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None, labels: torch.Tensor, *, forward: Any = None
) -> torch.Tensor:
    """Natural-log losses of the labelled slots, row by row, as one float32 vector.

    The output layer is the largest matrix of a small model, and logits its largest tensor; so
    logits are made only at the places where some row has a label, and the loss is taken without the
    copies that the library's loss makes.
    """
    wanted = labels[:, 1:] != IGNORED
    places = wanted.any(0).nonzero()[:, 0]
    asked = {"logits_to_keep": places} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    output = (forward or model)(input_ids=input_ids, position_ids=position_ids, use_cache=False, **asked)
    logits = output.logits if asked else output.logits[:, places]
    targets = labels[:, 1:][:, places].flatten()
    losses = functional.cross_entropy(logits.float().flatten(0, 1), targets, ignore_index=IGNORED, reduction="none")
    return losses[targets != IGNORED]
