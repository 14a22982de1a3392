"""Ranks, and where a token budget becomes a threshold: the same for every method, so that they can be compared.

- random: a seeded shuffle, the paper's weakest baseline;
- dsir: log importance weight plus Gumbel noise: sampling without replacement by importance (arXiv 2302.03169);
- fasttext: probability of the in-domain label;
- fasttext_educational: the same among documents of enough educational value (paper, section 3.1).

Documents rank by a value, high first, then by noise: a hash of seed, purpose and id, whatever the shards.
"""

import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from trait_kit.engine.files import TraitError
from trait_kit.params import Method
from trait_kit.selection.documents import id_hashes

METHODS: tuple[str, ...] = get_args(Method)
_FILTERED: Method = "fasttext_educational"
_NEEDS = {"dsir": ("dsir",), "fasttext": ("domain",), _FILTERED: ("domain", "educational")}
EVERYTHING = float(np.finfo(np.float32).min)  # a value that none is below
_STEPS = 10_000  # values that a cut tells apart between 0 and 1


@dataclass(frozen=True)
class Limits:
    """How much a method takes, and what a document must be like to be ranked."""

    tokens: int = 0
    documents: int = 0
    threshold: float | None = None  # lowest score taken
    min_tokens: int = 1
    max_tokens: int = 2**31 - 1
    min_educational: float = 1.0  # for fasttext_educational

    def __post_init__(self) -> None:
        if sum([self.tokens != 0, self.documents != 0, self.threshold is not None]) != 1 or self.budget < 0:
            raise TraitError("Say in one way how much to select: tokens, documents or a threshold; above 0.")

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {value}" for name, value in asdict(self).items() if value != getattr(Limits, name)
        )

    @property
    def budget(self) -> int:
        """What is filled: tokens or documents; 0 with a threshold."""
        return self.tokens or self.documents

    def spent(self, scores: pa.Table) -> np.ndarray:
        """int64 [n]: what each document takes of the budget."""
        return scores["n_tokens"].to_numpy().astype(np.int64) if self.tokens else np.ones(len(scores), np.int64)

    def refused(self, scores: pa.Table, method: Method, slack: float = 1.0) -> dict[str, np.ndarray]:
        """reason -> bool [n]; `slack` widens the token limits, for estimated counts."""
        lengths = scores["n_tokens"].to_numpy()
        return {
            "fewer than min_tokens": lengths * slack < self.min_tokens,
            "more than max_tokens": lengths > self.max_tokens * slack,
            "below min_educational": (scores["educational"].to_numpy() < self.min_educational)
            & (method == _FILTERED),
        }


def rank_values(scores: pa.Table, method: Method, seed: int) -> np.ndarray:
    """float32 [n]: what the method ranks by, high first; TraitError for an unknown one, or without its scores."""
    if method not in METHODS:
        raise TraitError(f"Unknown method '{method}'; known: {', '.join(METHODS)}.")
    if missing := [name for name in _NEEDS.get(method, ()) if scores[name].null_count]:
        raise TraitError(f"'{method}' needs the score '{missing[0]}', which is null. Score with that model.")
    if method in ("fasttext", _FILTERED):
        return scores["domain"].to_numpy()
    noise = _noise(scores, "dsir noise" if method == "dsir" else method, seed)
    uniform = ((noise >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    return (uniform if method == "random" else scores["dsir"].to_numpy() - np.log(-np.log(uniform))).astype(
        np.float32
    )


def best_first(scores: pa.Table, method: Method, seed: int) -> np.ndarray:
    return np.lexsort((~_noise(scores, method, seed), -rank_values(scores, method, seed)))


def _noise(scores: pa.Table, purpose: str, seed: int) -> np.ndarray:
    """uint64 [n], uniform."""
    salt = np.uint64((zlib.crc32(purpose.encode()) << 32 | seed & 0xFFFFFFFF) * 0x9E3779B97F4A7C15 % 2**64)
    value = id_hashes(scores["id"]) ^ salt
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # SplitMix64's finish
        value = (value ^ (value >> np.uint64(shift))) * np.uint64(factor)
    return value ^ (value >> np.uint64(31))


def cut_value(batches: Iterable[tuple[np.ndarray, np.ndarray]], budget: float) -> float:
    """A value such that the documents from it on take at least `budget`; EVERYTHING if all take less.

    `batches`: (values, what each takes). They are added up by rounded value, so that memory stays bounded.
    """
    found = pd.Series(dtype=float)
    for values, taken in batches:
        found = found.add(pd.Series(taken).groupby(np.floor(values.astype(float) * _STEPS)).sum(), fill_value=0)
    above = found.sort_index(ascending=False).cumsum()
    enough = above.index[above >= budget]
    return float(enough[0] / _STEPS) if len(enough) else EVERYTHING


def drop(reasons: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, int]]:
    """(bool [n]: kept; how many each reason drops, a document under its first)."""
    kept, dropped = np.ones(len(next(iter(reasons.values()))), bool), {}
    for reason, fails in reasons.items():
        dropped[reason] = int((kept & fails).sum())
        kept &= ~fails
    return kept, dropped


def rank(
    scores: pa.Table, method: Method, limits: Limits, seed: int = 0, unusable: dict[str, np.ndarray] | None = None
) -> tuple[np.ndarray, dict[str, int]]:
    """(rows that may be chosen, best first; reason -> how many are dropped). `unusable`: reason -> bool [n]."""
    kept, dropped = drop({**(unusable or {}), **limits.refused(scores, method)})
    rows = np.flatnonzero(kept)
    if not len(rows):
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise TraitError(f"{method}: none of {len(kept)} documents can be selected ({why}). Loosen these limits.")
    return rows[best_first(scores.take(pa.array(rows)), method, seed)], dropped


def take(scores: pa.Table, ranking: np.ndarray, method: Method, limits: Limits, seed: int = 0) -> dict[str, Any]:
    """n_out, how many of the best are within the limits; their tokens; threshold, the last one's score (null for random);
    enough: false where all do not fill the budget.
    """
    ranked, by_score = scores.take(pa.array(ranking)), limits.threshold is not None
    spent, values = np.cumsum(limits.spent(ranked)), rank_values(ranked, method, seed)
    n_out = int((values >= np.float32(limits.threshold) if by_score else spent <= limits.budget).sum())
    if n_out == 0:
        raise TraitError(
            f"{method}: nothing fits ({limits}); the first document has {ranked['n_tokens'][0]} tokens and the "
            f"score {values[0]:.4g}. Raise the budget, or lower max_tokens or the threshold."
        )
    return {
        "n_out": n_out,
        "tokens": int(ranked["n_tokens"].to_numpy()[:n_out].sum()),
        "threshold": None if method == "random" else float(values[n_out - 1]),
        "enough": n_out < len(ranking) or by_score or int(spent[-1]) == limits.budget,
    }
