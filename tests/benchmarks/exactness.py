"""Probabilities and decisions against fastText's own, on random models and texts that try to break the scorer."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from pathlib import Path

import fasttext
import numpy as np
from corpora import Setup
from importance import word_hash

from trait_kit.engine.scorer import NgramScorer

sys.path.insert(0, str(Path(__file__).parents[1]))  # random models and hostile texts are those of the tests
MARGIN = 1e-4


def exactness(setup: Setup) -> dict:
    """Probabilities and decisions of random models on hostile texts against fastText's own."""
    from test_ngram_scorer import HOSTILE, predicted, random_text, train

    rng = random.Random(1)
    piece = "".join(random_text(rng, 100) for _ in range(500)).encode()
    size = int(min(50, setup.megabytes) * 1e6)
    long_line = (piece * (size // len(piece) + 1))[:size].decode("utf-8", "replace")
    texts = [
        *HOSTILE,
        "".join(map(chr, range(32))),
        *(rng.randbytes(300).decode("utf-8", "replace") for _ in range(20)),
    ]
    texts += [*(random_text(rng, 60) for _ in range(300)), long_line]
    found = Counter()
    for k in range(32):
        options = dict(wordNgrams=1 + k % 4, bucket=rng.choice([1_000, 100_000]))
        model, path = train(setup.folder, 1_000 + k, labels=rng.randint(2, 5), **options)
        theirs, ours = predicted(model, texts), NgramScorer.from_fasttext(path).probabilities(texts)
        differences = np.abs(ours - theirs)
        exact = _exact(model, long_line)
        _keep_most(
            found,
            {
                "long line, fastText from exact": theirs[-1] - exact,
                "long line, ours from exact": ours[-1] - exact,
            },
        )
        wrong = ((ours >= 0.5) != (theirs >= 0.5)) & (np.abs(theirs - 0.5) > MARGIN)
        found.update({"models": 1, "probabilities": differences.size, "wrong decisions": int(wrong.sum())})
        found.update(
            {"beyond 1e-4": int((differences[:-1] > MARGIN).sum()), "unanswered": int(np.isnan(theirs).sum())}
        )
        _keep_most(found, {"largest difference": differences[:-1], "largest on the long line": differences[-1]})
    return {"texts": len(texts), "long line, MB": size / 1e6, "softmax": found}


def _keep_most(seen: Counter, values: dict[str, np.ndarray]) -> None:
    for name, value in values.items():
        seen[name] = max(seen[name], float(np.nanmax(np.abs(value))))


def _exact(model: fasttext.FastText._FastText, text: str) -> np.ndarray:
    """Probabilities in float64: fastText adds millions of rows in float32, and drifts."""
    tokens = [token for token in re.split("[ \n\r\t\v\f\0]+", text) if token]
    tokens.append("</s>")
    inputs, words = model.get_input_matrix().astype(float), len(model.get_words())
    ids = {token: model.get_word_id(token) for token in set(tokens)}
    rows = [np.array([ids[token] for token in tokens if ids[token] >= 0])]
    hashes = np.array([word_hash(token) for token in tokens]).view(np.uint64)
    ngrams = hashes
    for order in range(2, model.f.getArgs().wordNgrams + 1):
        ngrams = ngrams[:-1] * np.uint64(116049371) + hashes[order - 1 :]
        rows.append(words + (ngrams % np.uint64(len(inputs) - words)).astype(np.int64))
    counts = np.bincount(np.concatenate(rows), minlength=len(inputs))
    logits = model.get_output_matrix().astype(float) @ (counts @ inputs / counts.sum())
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
