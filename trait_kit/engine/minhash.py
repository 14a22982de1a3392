"""Near-duplicates among millions of documents, and against the in-domain seed: MinHash signatures, banded look-up.

A signature is the smallest value of each of `n_hashes` random functions (a h + b modulo 2^32) over a document's 5-grams;
two documents agree in a share of them that estimates the Jaccard similarity of their 5-grams, J, with standard deviation
sqrt(J (1 - J) / n_hashes) (Broder, "On the resemblance and containment of documents", 1997). Only signatures are kept, 512
bytes a document. Words are the tokens of `ngrams` without punctuation; a document of fewer than five is one shingle of all
of them, one without words is nobody's duplicate.
"""

import string
from collections.abc import Iterator

import numpy as np

from trait_kit.engine.files import TraitError
from trait_kit.engine.ngrams import (
    EOS_STATE,
    FNV_PRIME,
    HASH_START,
    Texts,
    buffers,
    inlined,
    kernel,
    text_array,
    token_blocks,
)

SHINGLE_WORDS = 5
HASHES = 128  # a signature
MAX_MISSED = 0.01  # of pairs exactly at the threshold, by the bands; the estimate's own spread comes on top
WINDOW = 64  # look-ups in one bucket a document: text made to collide, or a site's boilerplate, costs linear time
EMPTY = np.uint32(0xFFFFFFFF)
_MARKS = [EOS_STATE, *((HASH_START ^ np.uint64(ord(mark))) * FNV_PRIME for mark in string.punctuation)]  # no words
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


def signatures(texts: Texts, n_hashes: int = HASHES, shingle_words: int = SHINGLE_WORDS) -> np.ndarray:
    """uint32 [n_texts, n_hashes], comparable whatever process or batch made them; all-ones for a text without words."""
    array = text_array(texts)
    out = np.full((len(array), n_hashes), EMPTY)
    leaves = np.uint64(pow(int(_FACTOR), shingle_words, 1 << 64))  # takes a word out of the rolling hash
    for part, states, starts in token_blocks(*buffers(array), "words-1"):
        words = ~np.isin(states, _MARKS)
        begins = np.concatenate([[0], np.cumsum(words)])[starts]
        _signatures(states[words], begins, shingle_words, leaves, out[part])
    return out


def clusters(signatures: np.ndarray, threshold: float = 0.8) -> np.ndarray:
    """For each row the smallest row of its cluster, int64 [n]; a row that repeats nothing is its own cluster.

    Clusters are the connected components of pairs that share a band of the signature (see `banding`) and whose estimated
    similarity is at least `threshold`. Equal signatures are joined first and go on as one row. Of a bucket with more than
    WINDOW different rows, each is compared with the first WINDOW.
    """
    leader, rows = np.arange(len(signatures)), _with_words(signatures)
    _, first, same = np.unique(_keys(signatures[rows]), return_index=True, return_inverse=True)
    leader[rows] = rows[first][same]
    different = rows[np.sort(first)]
    for one, other in _meetings(signatures, different, signatures, different, threshold):
        _unite(leader, one, other, signatures, threshold * signatures.shape[1])
    while not np.array_equal(leader, leader[leader]):
        leader = leader[leader]
    return leader


def repeats(signatures: np.ndarray, seed_signatures: np.ndarray, threshold: float = 0.8) -> np.ndarray:
    """bool [n]: whether a row has an estimated similarity of `threshold` or more to a seed row; buckets as in `clusters`."""
    assert signatures.shape[1] == seed_signatures.shape[1]
    found = np.zeros(len(signatures), bool)
    seeds = np.unique(seed_signatures[_with_words(seed_signatures)], axis=0)  # each once
    for rows, others in _meetings(signatures, _with_words(signatures), seeds, np.arange(len(seeds)), threshold):
        _mark(found, rows, others, signatures, seeds, threshold * signatures.shape[1])
    return found


def banding(threshold: float, n_hashes: int) -> tuple[int, int]:
    """(bands, hashes a band): the widest bands that miss a pair at the threshold at most MAX_MISSED of the time.

    Two documents of similarity s share one of b bands of r hashes with probability 1 - (1 - s^r)^b (Leskovec, Rajaraman,
    Ullman, "Mining of Massive Datasets", section 3.4). With 128 hashes and 0.8 there are 21 bands of 6: of pairs at 0.9,
    0.85, 0.8, 0.75 and 0.7, 99.9%, 93%, 49%, 10% and 1% are found.
    """
    fits = [r for r in range(1, n_hashes + 1) if (1 - threshold**r) ** (n_hashes // r) <= MAX_MISSED]
    if not (fits and 0 < threshold <= 1):
        raise TraitError(f"The threshold of near-duplicates must be at most 1, and not so low as {threshold}.")
    return n_hashes // fits[-1], fits[-1]


def _with_words(signatures: np.ndarray) -> np.ndarray:
    return np.flatnonzero(signatures.min(axis=1, initial=EMPTY) < EMPTY)


def _meetings(
    some: np.ndarray, rows: np.ndarray, others: np.ndarray, other_rows: np.ndarray, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of a row of `some` and one of `others` that share a band or all hashes, array by array."""
    bands, width = banding(threshold, some.shape[1])
    for hashes in (slice(None), *(slice(band * width, (band + 1) * width) for band in range(bands))):
        asked, keys = _keys(some[rows, hashes]), _keys(others[other_rows, hashes])
        order = np.argsort(keys, kind="stable")
        keys, ordered = keys[order], other_rows[order]
        first, row = np.searchsorted(keys, asked), rows
        for step in range(WINDOW):
            meets = first + step < len(keys)
            meets[meets] = keys[first[meets] + step] == asked[meets]
            first, asked, row = first[meets], asked[meets], row[meets]
            if not len(row):
                break
            yield row, ordered[first + step]


def _keys(hashes: np.ndarray) -> np.ndarray:
    """uint64 a row: one number by which rows meet."""
    keys = np.zeros(len(hashes), np.uint64)
    for column in hashes.T:
        keys = keys * _FACTOR + column
    return keys


@inlined
def _mixed(value):
    value = (value ^ (value >> np.uint64(32))) * _MIX
    value = (value ^ (value >> np.uint64(29))) * _FACTOR
    return value ^ (value >> np.uint64(32))


@kernel
def _signatures(words, starts, shingle_words, leaves, out):
    factors, addends = np.empty(out.shape[1], np.uint32), np.empty(out.shape[1], np.uint32)
    for k in range(len(factors)):
        both = _mixed(np.uint64(k + 1) * _FACTOR)
        factors[k], addends[k] = np.uint32(both) | np.uint32(1), np.uint32(both >> np.uint64(32))
    for d in range(len(starts) - 1):
        state = np.uint64(0)
        for t in range(starts[d], starts[d + 1]):
            state = state * _FACTOR + words[t]
            if t - starts[d] >= shingle_words:
                state -= words[t - shingle_words] * leaves
            if t - starts[d] >= shingle_words - 1 or t == starts[d + 1] - 1:
                shingle = np.uint32(_mixed(state) >> np.uint64(32))
                for k in range(len(factors)):
                    out[d, k] = min(out[d, k], np.uint32(np.uint32(shingle * factors[k]) + addends[k]))


@inlined
def _agreeing(one, other):
    same = 0
    for k in range(len(one)):
        same += one[k] == other[k]
    return same


@inlined
def _root(leader, row):
    while leader[row] != row:
        leader[row] = leader[leader[row]]
        row = leader[row]
    return row


@kernel
def _unite(leader, rows, others, signatures, needed):
    """Give rows that are alike one leader, the smaller of theirs."""
    for i in range(len(rows)):
        one, other = _root(leader, rows[i]), _root(leader, others[i])
        if one != other and _agreeing(signatures[rows[i]], signatures[others[i]]) >= needed:
            leader[max(one, other)] = min(one, other)


@kernel
def _mark(found, rows, others, signatures, seeds, needed):
    """Mark in `found` the rows that are like a seed."""
    for i in range(len(rows)):
        found[rows[i]] |= _agreeing(signatures[rows[i]], seeds[others[i]]) >= needed
