"""Held-out scores while training: bits per byte of targets given prompts, cheap enough to ask often.

They do not depend on the tokenizer, and at small scale they move long before accuracy does. Padding on the right needs no
mask because no token looks there.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from trait_kit.engine.packing import IGNORED
from trait_kit.training.tokens import prefix_tokens

MAX_TOKENS = 192  # of a prompt's end and a target's beginning: the rest is not scored, nor its bytes counted
TOKENS_PER_BATCH = 2_048


class Item(NamedTuple):
    """Token ids [n] of one text, the labels of its target, and the UTF-8 bytes of the scored target."""

    ids: torch.Tensor
    labels: torch.Tensor
    n_bytes: int


def encode(rows: Sequence[Sequence[str]], tokenizer: Any, max_tokens: int) -> list[list[Item]]:
    """Of each row (prompt, target, other targets ...) an item a target, at most `max_tokens` long.

    Both are tokenised together and parted where the prompt alone would end, without a space at its end: as lm-eval does.
    Prompt '' makes the target a document, which is given a begin or end token.
    """
    begin = prefix_tokens(tokenizer)
    nothing = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id

    def item(prompt: str, target: str) -> Item:
        stripped, text = prompt.rstrip(), prompt + target
        whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        given = tokenizer(stripped, add_special_tokens=False, verbose=False)["input_ids"] if stripped else []
        end = len(given) + min(MAX_TOKENS, max_tokens // 2)
        ids, offsets = whole["input_ids"][len(given) : end], whole["offset_mapping"][len(given) : end]
        given = [*begin, *given[-min(MAX_TOKENS, max_tokens - len(ids) - len(begin)) :]] or [nothing]
        labels = torch.tensor([IGNORED] * len(given) + ids)
        return Item(torch.tensor(given + ids), labels, len(text[len(stripped) : offsets[-1][1]].encode()))

    return [[item(prompt, target) for target in targets] for prompt, *targets in rows]


@torch.no_grad()
def score(model: Any, rows: Sequence[Sequence[Item]]) -> float:
    """Mean of -log2 p(target | prompt) / bytes; where rows have several targets, the share whose first has the fewest."""
    device = next(model.parameters()).device
    items = [item for row in rows for item in row]
    order = sorted(range(len(items)), key=lambda index: len(items[index].ids))
    scores = np.empty(len(items))
    while order:
        size = sum(size * len(items[index].ids) <= TOKENS_PER_BATCH for size, index in enumerate(order, 1))
        batch, order = order[: size or 1], order[size or 1 :]
        ids, labels, n_bytes = zip(*(items[index] for index in batch), strict=True)
        ids = pad_sequence(ids, batch_first=True).to(device)
        labels = pad_sequence(labels, batch_first=True, padding_value=IGNORED).to(device)
        losses = token_losses(model, ids, None, labels).double()
        of_row = torch.nonzero(labels[:, 1:] != IGNORED)[:, 0]
        nats = torch.zeros(len(batch), dtype=torch.double, device=device).index_add_(0, of_row, losses)
        scores[batch] = nats.cpu().numpy() / math.log(2) / n_bytes
    if len(items) == len(rows):
        return float(scores.mean())
    parts = np.split(scores, np.cumsum([len(row) for row in rows])[:-1])
    return float(np.mean([part.argmin() == 0 for part in parts]))


def token_losses(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None, labels: torch.Tensor
) -> torch.Tensor:
    """Natural-log losses of the labelled slots, row by row, as one float32 vector.

    Logits, the largest tensor of a small model, are made only at the places where some row has a label, without the copies
    that the library's loss makes.
    """
    places = (labels[:, 1:] != IGNORED).any(0).nonzero()[:, 0]
    asked = {"input_ids": input_ids, "position_ids": position_ids, "logits_to_keep": places, "use_cache": False}
    logits = model(**asked).logits.float().flatten(0, 1)
    targets = labels[:, 1:][:, places].flatten()
    losses = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    return losses[targets != IGNORED]
