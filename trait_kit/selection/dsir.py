"""DSIR: importance weights from hashed n-grams, the paper's strongest selection baseline (arXiv 2302.03169).

A document's log importance weight is the sum over its n-grams of log p_in_domain(bucket) - log p_general(bucket), by which
documents are resampled without replacement (Gumbel top-k, in `budget`). As in that paper: word uni- and bigrams of
lower-cased text with punctuation apart, 10,000 buckets, a sum and not a mean: where most text is unlike the domain, short
texts win. Our own: fastText's hashes, so that one pass serves every table, and `smoothing` pseudo-counts a bucket, because
those that a small seed misses would outweigh many that it holds.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trait_kit.engine import ngrams
from trait_kit.engine.files import TraitError
from trait_kit.engine.ngrams import LinearTable, Texts

NORMALISATION = "words-2"  # of all models that the kit trains
WORD_NGRAMS = 2
_KIND = "dsir 5"  # in the file's header


@dataclass(frozen=True)
class DsirModel:
    """log p_in_domain - log p_general of each bucket (float32 [buckets])."""

    log_ratios: np.ndarray
    normalisation = NORMALISATION

    @classmethod
    def fit(cls, in_domain: Texts, general: Texts, buckets: int = 10_000, smoothing: float = 1.0) -> "DsirModel":
        """`general`: a plain sample of the corpus to select from."""
        sides = {"in-domain": in_domain, "general": general}
        counts = {side: ngrams.count(texts, buckets, WORD_NGRAMS, NORMALISATION) for side, texts in sides.items()}
        if empty := [side for side in sides if not counts[side].any()]:
            raise TraitError(f"DSIR has no {empty[0]} text to learn from: its documents are without a word.")
        logs = [
            np.log(found + smoothing) - np.log(found.sum() + smoothing * buckets) for found in counts.values()
        ]
        return cls((logs[0] - logs[1]).astype(np.float32))

    @property
    def table(self) -> LinearTable:
        return LinearTable(np.empty((0, 4), np.float32), self.log_ratios.reshape(-1, 1), WORD_NGRAMS)

    def log_weights(self, texts: Texts) -> np.ndarray:
        """float32 [n]; 0 for a text without words."""
        ((sums, rows),) = ngrams.total(texts, [self.table], NORMALISATION)
        return self.finish(sums, rows)

    def finish(self, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Log weights from what `ngrams.total` found."""
        return sums[:, 0].astype(np.float32)

    def save(self, path: Path | str) -> Path:
        return ngrams.write(path, {"kind": _KIND}, {"log_ratios": self.log_ratios})

    @classmethod
    def load(cls, path: Path | str) -> "DsirModel":
        return cls(ngrams.read(path, _KIND, "DsirModel.fit(...).save(...)")[1]["log_ratios"])
