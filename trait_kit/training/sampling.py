"""What a stage reads: exact token shares of its sources, drawn in a seeded order.

A source is an endless stream: its documents in a random order, then again in another one. A stage takes a stretch of
each stream; a later stage that mixes the same source goes on where the earlier one ended, so data repeat only when they
have run out. Shares are equal unless a mixture names a source more than once; and a cap on the passes over a source hands
what is above it to the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np


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
