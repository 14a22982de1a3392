"""Greedy generation for a batch of prompts that begin alike, as the prompts of a few-shot task do.

Why not transformers' own `generate`: it keeps the worked examples' keys and values once a row, and reads and copies them
at every step. Here they are computed once and stand once in memory; every row's queries meet them in one matrix product,
and each row has a cache of its own for the rest (Juravsky et al. 2024, arXiv 2402.05099). Rows that have ended leave the
batch. Texts are those of `generate` with greedy decoding, to rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import psutil
import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

_NAME = "trait_kit_shared_prefix"  # of the attention function, in transformers' registry
_SCORES = 2**26  # attention scores of one head group that are in memory at once while prompts are read
_SHARE_OF_MEMORY = 0.3  # of what is free, for a batch's keys and values


def generate(
    model: torch.nn.Module,
    prompts: list[list[int]],
    max_new_tokens: int,
    has_ended: Callable[[list[int]], bool],
    dtype: torch.dtype,
) -> list[list[int]]:
    """The greedy continuation of each prompt (token ids), up to and with the token at which `has_ended` says so.

    `dtype` is the type of the model's matrix products. Batches are as large as memory allows, the longest prompts first.
    """
    n_shared = n_shared_tokens(prompts)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    found: list[list[int]] = [[] for _ in prompts]
    with torch.no_grad(), SharedPrefix(model, prompts[0][:n_shared], dtype).attended() as shared:
        while order:
            rows = shared.rows_in_memory(len(prompts[order[0]]) - n_shared + max_new_tokens)
            batch, order = order[:rows], order[rows:]
            logits = shared.read([prompts[index][n_shared:] for index in batch], max_new_tokens)
            while batch:
                tokens = logits.argmax(-1).tolist()
                for index, token in zip(batch, tokens, strict=True):
                    found[index].append(token)
                going = [
                    place
                    for place, index in enumerate(batch)
                    if len(found[index]) < max_new_tokens and not has_ended(found[index])
                ]
                if len(going) < len(batch):
                    batch = [batch[place] for place in going]
                    shared.keep(going)
                if batch:
                    logits = shared.step([tokens[place] for place in going])
    return found


def n_shared_tokens(prompts: list[list[int]]) -> int:
    """How many tokens all prompts begin with; one less than the shortest has, since each needs a token of its own."""
    first, last = min(prompts), max(prompts)  # in the order of their tokens: what these two share, all do
    differ = (n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return min(next(differ, len(first)), min(map(len, prompts)) - 1)


class SharedPrefix:
    """A model's keys and values: of one prefix, and of a batch of rows that go on from it."""

    def __init__(self, model: torch.nn.Module, prefix: list[int], dtype: torch.dtype) -> None:
        self.model, self.n_prefix, self.dtype, self.device = model, len(prefix), dtype, model.device
        tokens = torch.tensor([prefix or [0]], device=self.device)
        with torch.no_grad():
            layers = model(tokens, use_cache=True, logits_to_keep=1).past_key_values.layers
        self.prefix = [
            (layer.keys[0, :, : len(prefix)].to(dtype), layer.values[0, :, : len(prefix)].to(dtype)) for layer in layers
        ]
        self.cache = Cache(layers=[])
        self.mask = self.positions = torch.empty(0)

    @contextlib.contextmanager
    def attended(self) -> Iterator[SharedPrefix]:
        """In this block the model's attention sees the prefix before each row's own tokens."""
        before = self.model.config._attn_implementation
        AttentionInterface.register(_NAME, self._attend)
        self.model.set_attn_implementation(_NAME)
        try:
            yield self
        finally:
            self.model.set_attn_implementation(before)

    def rows_in_memory(self, tokens: int) -> int:
        """How many rows of so many own tokens fit into the free memory."""
        numbers = sum(part.shape[0] * part.shape[2] for pair in self.prefix for part in pair)
        vocabulary = self.model.config.get_text_config().vocab_size
        row = tokens * numbers * self.dtype.itemsize + 8 * vocabulary
        cuda = self.device.type == "cuda"
        free = torch.cuda.mem_get_info(self.device)[0] if cuda else psutil.virtual_memory().available
        return max(1, int(_SHARE_OF_MEMORY * free) // row)

    def read(self, rows: list[list[int]], room: int) -> torch.Tensor:
        """Logits [rows, vocabulary] after each row's own tokens (padded on the left); `room` steps may follow."""
        width = max(map(len, rows))
        pads = torch.tensor([[width - len(row)] for row in rows], device=self.device)
        columns = torch.arange(width + room, device=self.device)
        self.mask = self._additive(columns >= pads)[:, None, None, :]
        self.positions = self.n_prefix + width - pads
        tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=self.device)
        positions = (self.n_prefix + columns[:width] - pads).clamp(min=0)
        causal = self._additive(columns[:width] <= columns[:width, None])
        heads = self.model.config.get_text_config().num_attention_heads
        at_once = max(1, _SCORES // (heads * width * (self.n_prefix + width)))
        parts, logits = [], []
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            cache = Cache(layers=[_OwnLayer(self.dtype) for _ in self.prefix])
            mask = torch.minimum(self.mask[part, :, :, :width], causal)
            logits.append(self._forward(tokens[part], mask, positions[part], cache))
            parts.append(cache)
        self.cache = parts[0]
        for number, layer in enumerate(self.cache.layers if len(parts) > 1 else []):
            layer.keys = torch.cat([part.layers[number].keys for part in parts])
            layer.values = torch.cat([part.layers[number].values for part in parts])
        return torch.cat(logits)

    def step(self, tokens: list[int]) -> torch.Tensor:
        """Logits [rows, vocabulary] after one more token of each row."""
        length = self.cache.get_seq_length() + 1
        logits = self._forward(
            torch.tensor(tokens, device=self.device)[:, None], self.mask[..., :length], self.positions, self.cache
        )
        self.positions = self.positions + 1
        return logits

    def keep(self, places: list[int]) -> None:
        """Drop all rows but these."""
        chosen = torch.tensor(places, dtype=torch.long, device=self.device)
        self.cache.batch_select_indices(chosen)
        self.mask, self.positions = self.mask[chosen], self.positions[chosen]

    def _forward(self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
        return self.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~seen, torch.finfo(self.dtype).min)

    def _attend(
        self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        attention_mask: torch.Tensor, scaling: float | None = None, **_more: object,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        """Attention over the prefix [kv heads, prefix, d] and the rows' own keys [rows, kv heads, own, d].

        The query heads of one key head stand as rows of one product, so no key is repeated.
        """
        prefix_keys, prefix_values = self.prefix[module.layer_idx]
        rows, heads, length, size = query.shape
        groups = heads // key.shape[1]
        query = query.to(key.dtype).reshape(rows, -1, groups * length, size)
        own = query @ key.mT + attention_mask.repeat(1, 1, groups, 1)
        shared = _of_all_rows(query, prefix_keys.mT)
        scores = torch.cat([shared, own], -1).float() * (size**-0.5 if scaling is None else scaling)
        weights = scores.softmax(-1).to(value.dtype)
        n = self.n_prefix
        found = _of_all_rows(weights[..., :n], prefix_values) + weights[..., n:] @ value
        return found.reshape(rows, heads, length, -1).transpose(1, 2).contiguous(), None


class _OwnLayer(DynamicLayer):
    """Keys and values in the type of the products: under autocast they come in float32 and would be cast at every step."""

    def __init__(self, wanted: torch.dtype) -> None:
        super().__init__()
        self.wanted = wanted

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object):
        return super().update(key_states.to(self.wanted), value_states.to(self.wanted))


def _of_all_rows(rows: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """rows [n, kv heads, m, a] @ shared [kv heads, a, b] as one product a head: [n, kv heads, m, b]."""
    n, heads, m, _ = rows.shape
    return (rows.transpose(0, 1).reshape(heads, n * m, -1) @ shared).view(heads, n, m, -1).transpose(0, 1)
