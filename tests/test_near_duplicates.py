"""Near-duplicates: the estimate against exact Jaccard on real text, what is found and what not, hostile input."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
import unspaced

from trait_kit.engine.files import TraitError
from trait_kit.engine.minhash import banding, clusters, repeats, signatures
from trait_kit.engine.ngrams import normalise
from trait_kit.selection.documents import load_documents

PAIRS = 2_500


def exact_jaccard(one: list[str], other: list[str]) -> np.ndarray:
    def shingles(text: str) -> set[tuple[str, ...]]:
        words = [word for word in text.split() if len(word.encode()) > 1 or word.isalnum()]
        return {tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))}

    both = zip(
        map(shingles, normalise(one).to_pylist()), map(shingles, normalise(other).to_pylist()), strict=True
    )
    return np.array([len(a & b) / len(a | b) for a, b in both])


@pytest.fixture(scope="module")
def pairs() -> tuple[list[str], list[str], np.ndarray]:
    """Encyclopedia articles, the same with some words replaced, and the exact similarity of each two."""
    generator = random.Random(0)
    articles = load_documents("demo:math/web")["text"].to_pylist()[:PAIRS]
    vocabulary = " ".join(articles[:500]).split()
    altered = []
    for article in articles:
        words = article.split()
        for _ in range(generator.randint(1, max(1, len(words) // 30))):
            words[generator.randrange(len(words))] = generator.choice(vocabulary)
        altered.append(" ".join(words))
    return articles, altered, exact_jaccard(articles, altered)


@pytest.mark.parametrize("n_hashes", [64, 128])
def test_estimates_have_no_bias_and_the_spread_of_the_theory(pairs, n_hashes: int) -> None:
    one, other, exact = pairs
    error = (signatures(one, n_hashes) == signatures(other, n_hashes)).mean(axis=1) - exact
    spread = np.sqrt((exact * (1 - exact) / n_hashes).mean())
    assert abs(error.mean()) < 4 * spread / np.sqrt(PAIRS)
    assert np.sqrt((error**2).mean()) == pytest.approx(spread, rel=0.05)


def test_share_of_pairs_found_at_each_similarity_and_precision(pairs) -> None:
    one, other, exact = pairs
    first, second = signatures(one), signatures(other)
    together = clusters(np.concatenate([first, second]))
    for found in (together[PAIRS:] == together[:PAIRS], repeats(second, first)):
        share = {at: found[np.abs(exact - at) < 0.02].mean() for at in (0.7, 0.8, 0.9)}
        assert share[0.9] > 0.99
        assert 0.35 < share[0.8] < 0.65
        assert share[0.7] < 0.05
        assert (exact[found] >= 0.7).mean() > 0.995
    again = np.flatnonzero(together[:PAIRS] != np.arange(PAIRS)).tolist()  # real articles are not near-duplicates
    assert all(exact_jaccard([one[row]], [one[together[row]]])[0] >= 0.7 for row in again)


def test_exact_duplicates_are_always_found_whatever_else_their_buckets_hold() -> None:
    generator = np.random.default_rng(1)
    values = generator.integers(
        0, 4, size=(1000, 22), dtype=np.uint32
    )  # one a band: any two bands are those of 60 rows
    rows = np.repeat(values, 6, axis=1)[:, :128]
    copies = np.concatenate([rows, rows[::-1]])
    assert np.array_equal(clusters(copies), [*range(1000), *range(999, -1, -1)])
    assert repeats(copies, rows).all()


def test_a_cluster_is_named_by_its_smallest_row_and_chains_are_one_cluster() -> None:
    generator = np.random.default_rng(2)
    rows = generator.integers(0, 1 << 32, size=(5, 128), dtype=np.uint32)
    rows[3], rows[1], rows[4] = rows[0], rows[0], rows[2]
    rows[3, :20] += 1
    rows[1, 20:40] += 1  # rows 1 and 3 agree in 88 of 128 hashes, and in 108 with row 0
    assert clusters(rows).tolist() == [0, 0, 2, 0, 2]
    assert clusters(rows[[1, 3]]).tolist() == [0, 1]
    order = generator.permutation(5)
    partition = clusters(rows[order])
    assert {tuple(sorted(order[partition == name])) for name in set(partition.tolist())} == {(0, 1, 3), (2, 4)}


def test_a_row_repeats_a_seed_that_is_like_enough() -> None:
    row = np.random.default_rng(3).integers(0, 1 << 32, size=(1, 128), dtype=np.uint32)
    near, far = row.copy(), row.copy()
    near[0, :15] += 1
    far[0, ::3] += 1
    assert repeats(row, np.concatenate([far, near])).tolist() == [True]
    assert repeats(row, np.concatenate([far, row + 1])).tolist() == [False]


def test_case_line_breaks_and_punctuation_do_not_count_and_batches_agree() -> None:
    texts = [
        "The cat sat on the mat, and slept.",
        "the CAT sat\non the mat and slept",
        "The dog sat on the mat, and slept.",
    ]
    rows = signatures(texts)
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    chunked = pa.chunked_array([[text] for text in texts])
    assert np.array_equal(signatures(chunked), rows)
    assert np.array_equal(np.concatenate([signatures([text]) for text in texts]), rows)
    assert np.array_equal(signatures(pa.array(["", *texts]).slice(1)), rows)


def test_texts_of_few_words_are_one_shingle_and_order_counts() -> None:
    rows = signatures(["one two", "two one", "One, two!", "one", "one two three four five", "one two three four"])
    assert clusters(rows).tolist() == [0, 1, 0, 3, 4, 5]


def test_texts_without_words_repeat_nothing() -> None:
    rows = signatures(["", " \n", "?!", "", "word"])
    assert clusters(rows).tolist() == [0, 1, 2, 3, 4]
    assert repeats(rows, rows).tolist() == [False] * 4 + [True]


def test_nothing_is_nothing() -> None:
    none, one = signatures([]), signatures(["a text of more than five words"])
    assert none.shape == (0, 128)
    assert clusters(none).shape == (0,)
    assert repeats(none, one).shape == (0,)
    assert repeats(one, none).tolist() == [False]


def test_hostile_texts() -> None:
    sentence = "数学家认为这个问题很难但是他们最终找到了一个漂亮的证明并且发表在一本著名的期刊上"
    line = " ".join(f"word{number % 99_991}" for number in range(1_100_000))
    assert len(line) > 10_000_000
    texts = [
        "again " * 300_000,
        "again again again again again",
        sentence,
        sentence.replace("漂亮", "好看"),
        sentence[::-1],
        line,
    ]
    rows = signatures(texts)
    likeness = (rows[2] == rows[3]).mean()
    assert likeness == pytest.approx(exact_jaccard([texts[2]], [texts[3]])[0], abs=0.15)
    assert clusters(rows, 0.5).tolist() == [0, 0, 2, 2, 4, 5]


@pytest.mark.parametrize("script", unspaced.TEXTS)
def test_scripts_without_blanks_are_compared_by_letters(script: str) -> None:
    question, other = unspaced.TEXTS[script]
    copied = f"{question} {other} {question}"
    rows = signatures([copied, copied.replace(other[9:10], "", 1), f"{other} {other[::-1]}", question[::-1]])
    assert clusters(rows).tolist() == [0, 0, 2, 3]


def test_many_copies_and_many_equal_bands_cost_linear_time() -> None:
    rows = np.random.default_rng(4).integers(0, 1 << 32, size=(40_000, 128), dtype=np.uint32)
    alike, boilerplate = rows.copy(), rows.copy()
    alike[:, :120] = 7
    boilerplate[:, :60] = 7
    assert not clusters(np.repeat(rows[:1], 40_000, axis=0)).any()
    assert not clusters(alike).any()  # squared, each of these would take minutes
    assert np.array_equal(clusters(boilerplate), np.arange(40_000))


def test_bands_follow_from_the_threshold() -> None:
    assert banding(0.8, 128) == (21, 6)
    assert banding(1.0, 128) == (1, 128)
    for threshold in (0.5, 0.7, 0.9, 0.95):
        bands, width = banding(threshold, 128)
        assert (1 - threshold**width) ** bands <= 0.01 < (1 - threshold ** (width + 1)) ** (128 // (width + 1))


def test_senseless_settings_are_refused() -> None:
    rows = signatures(["some text", "another"], 16)
    with pytest.raises(TraitError, match="at most 1"):
        clusters(rows, 0.0)
    with pytest.raises(TraitError, match=r"not so low as 0\.1"):
        clusters(rows, 0.1)
    with pytest.raises(TraitError, match="null"):
        signatures(pa.array(["some text", None]))
