"""Ranks, and where a token budget becomes a threshold: every method gets the same budget, so methods can be compared.

- random: a seeded shuffle, the paper's weakest baseline;
- dsir: log importance weight plus Gumbel noise, which is sampling without replacement by importance (arXiv 2302.03169);
- fasttext: probability of the in-domain label;
- fasttext_educational: the same among documents whose educational value reaches a minimum (paper, section 3.1).

A document's rank is one 64-bit number made of its scores and its id. Randomness (the shuffle, the noise, the order of equal
scores) is a hash of seed, method and id: it neither depends on how a corpus is cut into shards nor needs it at once.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from trait_kit.engine.files import TraitError
from trait_kit.params import Method
from trait_kit.selection.documents import id_hashes

METHODS: tuple[str, ...] = get_args(Method)
_NEEDS = {"dsir": ("dsir",), "fasttext": ("domain",), "fasttext_educational": ("domain", "educational")}


@dataclass(frozen=True)
class Limits:
    """How much a method takes, said in one way, and what a document must be like to be ranked at all."""

    tokens: int = 0
    share: float = 0.0  # of the documents
    threshold: float | None = None  # all that score at least so much
    min_tokens: int = 1
    max_tokens: int = 2**31 - 1
    min_educational: float = 1.0  # of fasttext_educational

    def __post_init__(self) -> None:
        if sum([self.tokens != 0, self.share != 0, self.threshold is not None]) != 1:
            raise TraitError("Say in one way how much to select: tokens, a share of the documents, or a threshold.")
        if self.tokens < 0 or not 0 <= self.share <= 1:
            raise TraitError(f"Tokens must be positive and a share at most 1 (got {self.tokens} and {self.share}).")

    def refused(self, scores: pa.Table, method: Method, slack: float = 1.0) -> dict[str, np.ndarray]:
        """reason -> bool [n]; token limits are `slack` times wider, for counts that are estimates."""
        lengths = scores["n_tokens"].to_numpy()
        reasons = {
            "fewer than min_tokens": lengths * slack < self.min_tokens,
            "more than max_tokens": lengths > self.max_tokens * slack,
        }
        if method == "fasttext_educational":
            reasons["below min_educational"] = scores["educational"].to_numpy() < self.min_educational
        return reasons


def check_method(method: str, scores: pa.Table) -> None:
    if method not in METHODS:
        raise TraitError(f"Unknown selection method '{method}'; known: {', '.join(METHODS)}.")
    for name in _NEEDS.get(method, ()):
        if scores[name].null_count:
            raise TraitError(f"The method '{method}' needs the score '{name}', but it is null: scored without that model.")


# Ranks


def rank_values(scores: pa.Table, method: Method, seed: int) -> np.ndarray:
    """What the method ranks by, high first (float32 [n]; for random all are 0: only the ties decide)."""
    if method == "random":
        return np.zeros(scores.num_rows, np.float32)
    if method == "dsir":
        uniform = ((_noise(scores, "dsir noise", seed) >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
        return (scores["dsir"].to_numpy() - np.log(-np.log(uniform))).astype(np.float32)
    return scores["domain"].to_numpy()


def rank_keys(scores: pa.Table, method: Method, seed: int) -> np.ndarray:
    """uint64 [n]: larger is better. The method's value in the upper half, so that a value is a range of keys; then noise."""
    return value_keys(rank_values(scores, method, seed)) | (_noise(scores, method, seed) >> np.uint64(32))


def value_keys(values: np.ndarray | float) -> np.ndarray:
    """The smallest key of these float32 values: their bits, made to sort as the numbers do."""
    bits = (np.atleast_1d(np.asarray(values, np.float32)) + np.float32(0)).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return ordered.astype(np.uint64) << np.uint64(32)


def _noise(scores: pa.Table, purpose: str, seed: int) -> np.ndarray:
    """uint64 [n], uniform: a hash of the id, the seed and the purpose."""
    salt = np.uint64((zlib.crc32(purpose.encode()) << 32 | seed & 0xFFFFFFFF) * 0x9E3779B97F4A7C15 % 2**64)
    value = id_hashes(scores["id"]) ^ salt
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # SplitMix64's finish
        value = (value ^ (value >> np.uint64(shift))) * np.uint64(factor)
    return value ^ (value >> np.uint64(31))


def cut_key(batches: Iterable[tuple[np.ndarray, np.ndarray]], budget: int) -> int:
    """The largest key such that the documents at or above it weigh at least `budget`; 0 if all of them weigh less.

    `batches` gives (keys, weights) of all documents; memory holds those of the best ones, about twice the budget at most.
    """
    kept, weight, cut = [], 0, 0
    for keys, weights in batches:
        better = keys >= np.uint64(cut)
        kept.append((keys[better], weights[better]))
        weight += weights[better].sum()
        if weight >= 2 * budget:
            kept, cut = _best(kept, budget)
            weight = kept[0][1].sum()
    return _best(kept, budget)[1] if weight >= budget else 0


def _best(kept: list[tuple[np.ndarray, np.ndarray]], budget: int) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """(those with the largest keys that weigh at least `budget`; the smallest of their keys)."""
    keys, weights = (np.concatenate(column) for column in zip(*kept, strict=True))
    order = np.argsort(~keys)
    order = order[: np.searchsorted(np.cumsum(weights[order]), budget) + 1]
    return [(keys[order], weights[order])], int(keys[order[-1]])


# Choices


def drop(reasons: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, int]]:
    """(bool [n]: what no reason drops; how many documents each reason drops, a document counted under its first)."""
    kept, dropped = np.ones(len(next(iter(reasons.values()))), bool), {}
    for reason, fails in reasons.items():
        dropped[reason] = int((kept & fails).sum())
        kept &= ~fails
    return kept, dropped


def rank(
    scores: pa.Table, method: Method, limits: Limits, seed: int = 0, unusable: dict[str, np.ndarray] | None = None
) -> tuple[np.ndarray, dict[str, int]]:
    """(rows that may be chosen, best first; how many were dropped, by reason). `unusable`: reason -> bool [n]."""
    check_method(method, scores)
    kept, dropped = drop({**(unusable or {}), **limits.refused(scores, method)})
    rows = np.flatnonzero(kept)
    if not len(rows):
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise TraitError(f"{method}: none of {len(kept)} documents can be selected ({why}). Loosen these limits.")
    keys = rank_keys(scores, method, seed)[rows]
    return rows[np.argsort(~keys, kind="stable")], dropped


def take(
    scores: pa.Table, ranking: np.ndarray, method: Method, limits: Limits, seed: int = 0, documents: int = 0
) -> dict[str, Any]:
    """n_out: how many of the best documents are within the limits; less than the next document is left unspent.

    Their tokens; threshold, the score of the last one (null for random); enough: false where all that there are do not fill
    the budget. `documents`: how many a share is of, where the scores are those of candidates only.
    """
    ranked = scores.take(pa.array(ranking))
    tokens = np.cumsum(ranked["n_tokens"].to_numpy().astype(np.int64))
    values = rank_values(ranked, method, seed)
    if limits.threshold is not None:
        n_out = int((values >= np.float32(limits.threshold)).sum())
    elif limits.share:
        n_out = round(limits.share * (documents or scores.num_rows))
    else:
        n_out = int(np.searchsorted(tokens, limits.tokens, side="right"))
    if n_out == 0:
        raise TraitError(
            f"{method}: nothing fits the limit ({limits}); the first document has {tokens[0]} tokens and the score "
            f"{values[0]:.4g}. Raise token_budget, lower max_tokens, or the threshold."
        )
    enough = n_out < len(ranking) or (int(tokens[-1]) == limits.tokens if limits.tokens else n_out == len(ranking))
    n_out = min(n_out, len(ranking))
    threshold = None if method == "random" else float(values[n_out - 1])
    return {"n_out": n_out, "tokens": int(tokens[n_out - 1]), "threshold": threshold, "enough": enough}
