"""DSIR against the package of its authors, data-selection: speed, and how well the importance weights agree."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable

import numpy as np
import speed
from corpora import DEMO, SEED_SPEC, Setup, one_core, ratio
from scipy.stats import spearmanr

from trait_kit.engine import ngrams
from trait_kit.engine.ngrams import Texts, normalise
from trait_kit.selection.documents import load_documents
from trait_kit.selection.dsir import DsirModel

os.environ["TQDM_DISABLE"] = "1"
SMOOTHING = 1e-8  # the package's, added to probabilities
FEW, MANY = 10_000, 1_000_000


def dsir(setup: Setup) -> dict:
    """Importance weights, both on one core; the package gets 5 MB, because more would take it minutes."""
    few = speed.take(setup.spec, min(5, setup.megabytes))["text"]
    seed = load_documents(SEED_SPEC)["text"].to_pylist()
    works = {
        "data-selection": _package(setup, few.to_pylist(), seed, FEW),
        "ours": functools.partial(DsirModel.fit(seed, few).log_weights, setup.texts),
    }
    sizes = {"data-selection": speed.text_megabytes(few), "ours": speed.text_megabytes(setup.texts)}
    with one_core():
        return ratio(speed.race(works, sizes, setup.turns), "ours", "data-selection")


def agreement(setup: Setup) -> dict:
    """Spearman correlation of log importance weights over the demo's web, from the same tokens and the same formula.

    What keeps it below one is which n-grams share a bucket, as the hashes differ. So beside it stand the package against
    itself with another hash (what buckets alone cost), and ours against the package with our hash (what is left then).
    """
    from data_selection import hashed_ngram_dsir

    texts, seed = (normalise(load_documents(spec)["text"]) for spec in (DEMO, SEED_SPEC))
    usual, lists = hashed_ngram_dsir.hash_buckets, (texts.to_pylist(), seed.to_pylist())
    hashes = {
        "its hash": usual,
        "another": lambda text, num_buckets: usual("#" + text, num_buckets),
        "our hash": _bucket,
    }
    found = {}
    for buckets in (FEW, MANY):
        ours, theirs = _ours(texts, seed, buckets), {}
        for name, function in hashes.items():
            hashed_ngram_dsir.hash_buckets = function
            try:
                theirs[name] = _package(setup, *lists, buckets, tokenizer=str.split)()
            finally:
                hashed_ngram_dsir.hash_buckets = usual
        smooth = DsirModel.fit(seed, texts, buckets).log_weights(texts)
        found[f"{buckets:,} buckets"] = {
            "ours and the package": _rank(ours, theirs["its hash"]),
            "the package and itself with another hash": _rank(theirs["another"], theirs["its hash"]),
            "ours and the package with our hash": _rank(ours, theirs["our hash"]),
            "largest difference of log weights, with our hash": float(np.abs(ours - theirs["our hash"]).max()),
            "ours with its default smoothing and the package": _rank(smooth, theirs["its hash"]),
        }
    return found


def _package(
    setup: Setup, texts: list[str], seed: list[str], buckets: int, tokenizer: Callable | None = None
) -> Callable:
    """Computes the log importance weights of `texts` at each call, by the package, fitted to `seed` against `texts`."""
    from data_selection import HashedNgramDSIR

    files = [setup.folder / "raw.jsonl", setup.folder / "target.jsonl"]
    for file, lines in zip(files, (texts, seed), strict=True):
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines), encoding="utf-8")
    cache = setup.folder / "data-selection"
    package = HashedNgramDSIR([str(files[0])], [str(files[1])], str(cache), num_proc=1, num_buckets=buckets)
    package.tokenizer = tokenizer or package.tokenizer
    package.fit_importance_estimator("all")

    def weights() -> np.ndarray:
        package.compute_importance_weights()
        return np.load(cache / "log_importance_weights" / "0.npy")

    return weights


def _ours(texts: Texts, seed: Texts, buckets: int) -> np.ndarray:
    """The kit's weights by the package's formula: the same small number added to every bucket's probability."""
    counts = [ngrams.count(side, buckets, 2, "none") for side in (seed, texts)]
    logs = [np.log(count / count.sum() + SMOOTHING) for count in counts]
    return DsirModel((logs[0] - logs[1]).astype(np.float32)).log_weights(texts)


def _rank(one: np.ndarray, other: np.ndarray) -> float:
    return round(float(spearmanr(one, other).statistic), 6)


def _bucket(ngram: str, num_buckets: int) -> int:
    """The kit's bucket of an n-gram, written anew from fastText's description."""
    value = 0
    for word in ngram.split(" "):
        value = (value * 116049371 + word_hash(word)) % 2**64
    return value % num_buckets


@functools.lru_cache(1_000_000)
def word_hash(word: str) -> int:
    """fastText's hash of a word, as its n-grams take it."""
    state = 2166136261
    for byte in word.encode():
        state = (state ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619 % 2**32
    return state if state < 2**31 else state - 2**32
