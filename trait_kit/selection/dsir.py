"""DSIR: importance weights from hashed n-grams, the paper's strongest selection baseline (arXiv 2302.03169).

Each side, in-domain and general, is a bag-of-n-grams distribution over hashed buckets; a document's log importance weight is
the sum over its n-grams of log p_in_domain(bucket) - log p_general(bucket), and documents are then resampled without
replacement by these weights (Gumbel top-k, in `budget`). As in that paper: word uni- and bigrams of lower-cased text with
punctuation apart, 10,000 buckets, a sum and not a mean over n-grams. A sum grows with length, so where most text is unlike
the domain, short documents win: that is DSIR, and it is kept so that the baseline is the baseline.
Our own: the tokens and hashes are fastText's (one pass serves every table), and `smoothing` pseudo-counts a bucket.
A seed of a few thousand words needs them: without, each bucket that it happens to miss outweighs many that it holds (with a
seed of 72 encyclopedia articles, 0.001 pseudo-counts find less than 1 does). A baseline should not lose by its estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trait_kit.engine import ngram_tables as linear
from trait_kit.engine.files import TraitError
from trait_kit.engine.ngram_tables import LinearTable
from trait_kit.engine.ngrams import Normalisation, Texts

_KIND = "dsir 3"  # in the file's header


@dataclass(frozen=True)
class DsirModel:
    """log p_in_domain - log p_general of each bucket (float32 [buckets]) for word n-grams of 1 to `ngrams` words."""

    log_ratios: np.ndarray
    ngrams: int = 2
    normalisation: Normalisation = "words-1"

    @classmethod
    def fit(
        cls,
        in_domain_texts: Texts,
        general_texts: Texts,
        buckets: int = 10_000,
        ngrams: int = 2,
        smoothing: float = 1.0,
        normalisation: Normalisation = "words-1",
    ) -> DsirModel:
        """Count both sides. `general_texts` should be a plain sample of the corpus to be selected from."""
        if smoothing <= 0:
            raise TraitError(f"DSIR's smoothing must be positive (got {smoothing}): an empty bucket has no logarithm.")
        logs = []
        for side, texts in (("in-domain", in_domain_texts), ("general", general_texts)):
            counts = linear.count(texts, buckets, ngrams, normalisation).astype(np.float64)
            if not counts.any():
                raise TraitError(f"DSIR has no {side} text to learn from: {len(texts)} documents without a word.")
            logs.append(np.log(counts + smoothing) - np.log(counts.sum() + smoothing * buckets))
        return cls((logs[0] - logs[1]).astype(np.float32), ngrams, normalisation)

    @property
    def table(self) -> LinearTable:
        return linear.linear_table(linear.empty_cells(0, 1), self.log_ratios.reshape(-1, 1), [1, self.ngrams, 0, 0, 0])

    def log_weights(self, texts: Texts) -> np.ndarray:
        """float32 [n]: the log importance weight of each text; 0 for a text without words."""
        ((sums, rows),) = linear.total(texts, [self.table], self.normalisation)
        return self.finish(sums, rows)

    def finish(self, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Log weights from what `ngram_tables.total` found."""
        return sums[:, 0].astype(np.float32)

    def save(self, path: Path | str) -> Path:
        header = {"kind": _KIND, "normalisation": self.normalisation, "ngrams": self.ngrams}
        return linear.write(path, header, {"log_ratios": self.log_ratios})

    @classmethod
    def load(cls, path: Path | str) -> DsirModel:
        header, arrays = linear.read(path, _KIND, "DsirModel.fit(...).save(...)")
        return cls(arrays["log_ratios"], header["ngrams"], header["normalisation"])
