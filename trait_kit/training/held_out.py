"""Held-out bits per byte while training: targets given prompts, cheap enough to ask often.

Bits per byte, not perplexity or accuracy: it does not depend on the tokenizer, and at small scale it moves long before
accuracy does. Only target positions reach the output layer, items are batched by length, and right padding needs no
mask because no token looks to its right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from trait_kit.engine.files import TraitError
from trait_kit.training.tokens import prefix_tokens

MAX_TARGET_TOKENS = 192  # the rest of a longer target is not scored, nor are its bytes counted
MAX_PROMPT_TOKENS = 192  # the end of a longer prompt is kept
TOKENS_PER_BATCH = 2_048

# Families whose logits are exactly output_layer(last hidden state): no scaling, no capping.
PLAIN_HEADS = {"gpt_neox", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"}


@dataclass(frozen=True)
class Item:
    """One scored text: token ids, how many of them are prompt, and the UTF-8 bytes of the scored target."""

    ids: list[int]
    n_prompt: int
    n_bytes: int


def encode(pairs: Sequence[Sequence[str]], tokenizer: Any, max_tokens: int) -> list[Item]:
    """Tokens of (prompt, target) pairs, at most `max_tokens` each; prompt '' is a document, given a begin or end token.

    Prompt and target are tokenised separately, and a space that ends the prompt belongs to the target, as in lm-eval.
    """
    begin = prefix_tokens(tokenizer)
    nothing = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    longest = min(MAX_TARGET_TOKENS, max_tokens // 2)
    items = []
    for prompt, target in pairs:
        stripped = prompt.rstrip()
        target = prompt[len(stripped) :] + target
        encoded = tokenizer(target, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = encoded["input_ids"][:longest], encoded["offset_mapping"][:longest]
        if not ids:
            raise TraitError("A held-out item has an empty target, so it has no bits per byte: leave it out of held_out.")
        room = min(MAX_PROMPT_TOKENS, max_tokens - len(ids) - len(begin))
        given = tokenizer(stripped, add_special_tokens=False, verbose=False)["input_ids"][-room:] if stripped else []
        given = [*begin, *given] or [nothing]
        items.append(Item([*given, *ids], len(given), len(target[: offsets[-1][1]].encode())))
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
        for index, bits in zip(batch, _bits(model, forward, [items[index] for index in batch]), strict=True):
            scores[index] = bits / items[index].n_bytes
    return scores


def _bits(model: Any, forward: Any, items: list[Item]) -> list[float]:
    width = max(len(item.ids) for item in items)
    device = model.device
    ids = torch.tensor([item.ids + [0] * (width - len(item.ids)) for item in items], device=device)
    labels = torch.full_like(ids, -100)
    for row, item in enumerate(items):
        labels[row, item.n_prompt : len(item.ids)] = ids[row, item.n_prompt : len(item.ids)]
    rows = torch.nonzero(labels[:, 1:] != -100)[:, 0]
    losses = token_losses(model, ids, None, labels, forward=forward).double()
    return torch.zeros(len(items), dtype=torch.double, device=device).index_add_(0, rows, losses).div(math.log(2)).tolist()


def token_losses(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None, labels: torch.Tensor, *, forward: Any = None
) -> torch.Tensor:
    """Natural-log losses of the labelled slots, row by row, as one float32 vector.

    The output layer is the largest matrix of a small model, and logits its largest tensor; so logits are made only where
    there is a label. Measured on a 135M model with 49k tokens of vocabulary: a quarter more tokens a second than the
    library's loss. Models with another kind of head, and models wrapped for several processes, take the ordinary way.
    """
    wanted = labels[:, 1:] != -100
    targets = labels[:, 1:][wanted]
    if forward is None and model.config.model_type in PLAIN_HEADS:
        hidden = model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[:, :-1][wanted])
    else:
        logits = (forward or model)(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits[:, :-1][wanted]
    return functional.cross_entropy(logits.float(), targets, reduction="none")
