"""What a stage reads: exact token shares of its sources, drawn in a seeded order.

A source is an endless stream: its documents in a random order, then again in another one. A stage takes a stretch of
each stream; a later stage that mixes the same source goes on where the earlier one ended, so data repeat only when they
have run out. Shares are equal unless a mixture names a source more than once; a fraction of the stage may be general text,
replayed against forgetting; and a cap on the passes over a source hands what is above it to the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

REPLAYED = "random"  # the source of general text: documents drawn at random from the web corpus


@dataclass(frozen=True)
class Share:
    """`tokens` of the stream of `source`, from token `start` of that stream on."""

    source: str
    start: int
    tokens: int


def sources_of(mixture: str, replay: float = 0.0) -> list[str]:
    """The sources of a mixture, each once, in alphabetical order: a+b and b+a are one stage."""
    return sorted({*mixture.split("+"), *([REPLAYED] if replay else [])})


def shares(
    mixture: str,
    tokens: int,
    consumed: Counter[str],
    *,
    replay: float = 0.0,
    available: Mapping[str, int] | None = None,
    max_epochs: float = 0.0,
) -> list[Share]:
    """Split a stage's tokens over the '+'-joined sources; `consumed` says how much of each stream is used up.

    `replay`: the fraction that is general text. `max_epochs` (0: none) caps the passes over a source, earlier stages
    included; `available` are the tokens of one pass. What is above a cap goes to the mixture's other sources by their
    weights; where none has room, all go over it alike, for every arm sees the same number of tokens.
    """
    weights = {source: float(weight) for source, weight in Counter(mixture.split("+")).items()}
    total = sum(weights.values())
    weights = {source: weight / total * (1 - replay) for source, weight in weights.items()}
    if replay:
        weights[REPLAYED] = weights.get(REPLAYED, 0.0) + replay
    weights = dict(sorted(weights.items()))
    wanted = _split(tokens, weights)
    if max_epochs and available is not None:
        room = {source: max(0, int(max_epochs * available[source]) - consumed[source]) for source in weights}
        wanted = _capped(tokens, weights, room)
    return [Share(source, consumed[source], count) for source, count in wanted.items() if count]


def _split(tokens: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Whole tokens in proportion; the first sources take what is left over."""
    edges = np.ceil(np.round(np.cumsum([0.0, *weights.values()]) / sum(weights.values()) * tokens, 6)).astype(int)
    return dict(zip(weights, np.diff(edges).tolist(), strict=True))


def _capped(tokens: int, weights: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    if sum(room.values()) < tokens:
        over = tokens - sum(room.values())
        return {source: room[source] + more for source, more in _split(over, weights).items()}
    fixed: dict[str, int] = {}
    while True:
        free = {source: weight for source, weight in weights.items() if source not in fixed}
        split = _split(tokens - sum(fixed.values()), free)
        full = {source: room[source] for source, count in split.items() if count > room[source]}
        if not full:
            return {source: {**split, **fixed}[source] for source in weights}
        fixed |= full


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
    if not pieces:
        return (np.zeros(0, np.int64),) * 3
    return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))
