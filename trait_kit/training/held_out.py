"""Held-out bits per byte while training: targets given prompts, cheap enough to ask often.

Bits per byte, not perplexity or accuracy: it does not depend on the tokenizer, and at small scale it moves long before
accuracy does. Only target positions reach the output layer, items are batched by length, and right padding needs no
mask because no token looks to its right.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from trait_kit.engine.files import TraitError
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


def encode(pairs: Sequence[Sequence[str]], tokenizer: Any, max_tokens: int) -> list[Item]:
    """Tokens of (prompt, target) pairs, at most `max_tokens` each; prompt '' is a document, given a begin or end token."""
    begin = prefix_tokens(tokenizer)
    nothing = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    longest = min(MAX_TARGET_TOKENS, max_tokens // 2)
    items = []
    for prompt, target in pairs:
        given, ids, n_bytes = pair_tokens(prompt, target, tokenizer)
        ids, n_bytes = ids[:longest], n_bytes[:longest]
        if not ids:
            raise TraitError("A held-out item has an empty target, so it has no bits per byte: leave it out of held_out.")
        room = min(MAX_PROMPT_TOKENS, max_tokens - len(ids) - len(begin))
        given = [*begin, *given[-room:]] or [nothing]
        items.append(Item([*given, *ids], len(given), n_bytes[-1]))
    return items


def encode_choices(problems: Sequence[Sequence[str]], tokenizer: Any, max_tokens: int) -> list[list[Item]]:
    """One list a problem (prompt, right target, wrong targets ...): each of its targets as an item, the right one first."""
    return [encode([(prompt, target) for target in targets], tokenizer, max_tokens) for prompt, *targets in problems]


def bits_per_byte(model: Any, items: Sequence[Item], *, forward: Any = None) -> float:
    """Mean over items of -log2 p(target | prompt) / bytes; `forward` is the wrapped model where several processes train."""
    return float(item_bits_per_byte(model, items, forward=forward).mean())


def choice_accuracy(model: Any, problems: Sequence[Sequence[Item]], *, forward: Any = None) -> float:
    """Share of the problems whose right target has the fewest bits per byte of its choices."""
    scores = item_bits_per_byte(model, [item for choices in problems for item in choices], forward=forward)
    parts = np.split(scores, np.cumsum([len(choices) for choices in problems])[:-1])
    return float(np.mean([part.argmin() == 0 for part in parts]))


@torch.no_grad()
def item_bits_per_byte(model: Any, items: Sequence[Item], *, forward: Any = None) -> np.ndarray:
    """Bits per byte of each item, float64 [n_items]."""
    order = sorted(range(len(items)), key=lambda index: len(items[index].ids))
    scores = np.empty(len(items))
    while order:
        size = max(1, min(len(order), TOKENS_PER_BATCH // len(items[order[0]].ids)))
        while size > 1 and size * len(items[order[size - 1]].ids) > TOKENS_PER_BATCH:
            size -= 1
        batch, order = order[:size], order[size:]
        width = len(items[batch[-1]].ids)
        ids = torch.tensor([items[index].ids + [0] * (width - len(items[index].ids)) for index in batch])
        labels = torch.full_like(ids, IGNORED)
        for row, index in enumerate(batch):
            scored = slice(items[index].n_prompt, len(items[index].ids))
            labels[row, scored] = ids[row, scored]
        ids, labels = ids.to(model.device), labels.to(model.device)
        rows = torch.nonzero(labels[:, 1:] != IGNORED)[:, 0]
        losses = token_losses(model, ids, None, labels, forward=forward).double()
        nats = torch.zeros(len(batch), dtype=torch.double, device=model.device).index_add_(0, rows, losses)
        scores[batch] = nats.cpu().numpy() / math.log(2) / [items[index].n_bytes for index in batch]
    return scores


def token_losses(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None, labels: torch.Tensor, *, forward: Any = None
) -> torch.Tensor:
    """Natural-log losses of the labelled slots, row by row, as one float32 vector.

    The output layer is the largest matrix of a small model, and logits its largest tensor; so logits are made only at the
    places where some row has a label, and the loss is taken without the copies that the library's loss makes.
    """
    wanted = labels[:, 1:] != IGNORED
    places = wanted.any(0).nonzero()[:, 0]
    asked = {"logits_to_keep": places} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    output = (forward or model)(input_ids=input_ids, position_ids=position_ids, use_cache=False, **asked)
    logits = output.logits if asked else output.logits[:, places]
    targets = labels[:, 1:][:, places].flatten()
    losses = functional.cross_entropy(logits.float().flatten(0, 1), targets, ignore_index=IGNORED, reduction="none")
    return losses[targets != IGNORED]
