"""Near-duplicates among millions of documents, and against the in-domain seed: MinHash signatures, banded look-up.

A signature (512 bytes) is the smallest value of each of `n_hashes` random functions (a h + b modulo 2^32) over a document's
5-grams; the share in which two agree estimates the Jaccard similarity J of the 5-grams, with standard deviation
sqrt(J (1 - J) / n_hashes) (Broder, 1997). Words are the tokens of
`ngrams` without punctuation; fewer than five are one shingle, a document without words is nobody's duplicate.
"""

import string

import numpy as np

from trait_kit.engine import ngrams
from trait_kit.engine.files import TraitError
from trait_kit.engine.ngrams import Texts, inlined, kernel

SHINGLE_WORDS = 5
HASHES = 128  # a signature
MAX_MISSED = 0.01  # of pairs exactly at the threshold, by the bands; estimates spread too
WINDOW = 64  # look-ups in one bucket a document: boilerplate of a site costs linear time
EMPTY = np.uint32(0xFFFFFFFF)
_MARKS = [*ngrams.word_states(ngrams.text_array(string.punctuation)), ngrams.EOS_STATE]  # no words
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


def signatures(texts: Texts, n_hashes: int = HASHES, shingle_words: int = SHINGLE_WORDS) -> np.ndarray:
    """uint32 [n_texts, n_hashes]; all-ones for a text without words."""
    array = ngrams.text_array(texts)
    out = np.full((len(array), n_hashes), EMPTY)
    for part, states, starts in ngrams.token_blocks(array, "words-2"):
        words = ~np.isin(states, _MARKS)
        _signatures(states[words], np.concatenate([[0], np.cumsum(words)])[starts], shingle_words, out[part])
    return out


def clusters(signatures: np.ndarray, threshold: float = 0.8) -> np.ndarray:
    """For each row the smallest row of its cluster, int64 [n].

    Clusters are the connected components of pairs that share a band and whose estimated similarity is at least
    `threshold`. Equal signatures are one row. In a bucket each is compared with the first WINDOW.
    """
    leader, rows = np.arange(len(signatures)), np.flatnonzero(signatures.min(axis=1, initial=EMPTY) < EMPTY)
    _, first, same = np.unique(_keys(signatures[rows]), return_index=True, return_inverse=True)
    leader[rows] = rows[first][same]
    rows, (bands, width) = rows[np.sort(first)], banding(threshold, signatures.shape[1])
    for start in range(0, bands * width, width):
        keys = _keys(signatures[rows, start : start + width])
        order = np.argsort(keys, kind="stable")
        _join(keys[order], rows[order], signatures, threshold * signatures.shape[1], leader)
    while not np.array_equal(leader, leader[leader]):
        leader = leader[leader]
    return leader


def repeats(signatures: np.ndarray, seed_signatures: np.ndarray, threshold: float = 0.8) -> np.ndarray:
    """bool [n]: whether a row is in the cluster of a seed row."""
    seeds = np.unique(seed_signatures, axis=0)  # in a bucket they come first
    return clusters(np.concatenate([seeds, signatures]), threshold)[len(seeds) :] < len(seeds)


def banding(threshold: float, n_hashes: int) -> tuple[int, int]:
    """(bands, hashes a band): the widest bands that miss a pair at the threshold at most MAX_MISSED of the time.

    Documents of similarity s share one of b bands of r hashes with probability 1 - (1 - s^r)^b (Leskovec, Rajaraman,
    Ullman, "Mining of Massive Datasets", section 3.4). With 128 hashes and 0.8, 21 bands of 6 find 99.9%, 93%, 49%, 10% and
    1% of pairs at 0.9, 0.85, 0.8, 0.75 and 0.7.
    """
    fits = [r for r in range(1, n_hashes + 1) if (1 - threshold**r) ** (n_hashes // r) <= MAX_MISSED]
    if not (fits and 0 < threshold <= 1):
        raise TraitError(f"The threshold of near-duplicates must be at most 1, and not so low as {threshold}.")
    return n_hashes // fits[-1], fits[-1]


def _keys(hashes: np.ndarray) -> np.ndarray:
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
def _signatures(words, starts, shingle_words, out):
    factors, addends = np.empty(out.shape[1], np.uint32), np.empty(out.shape[1], np.uint32)
    for k in range(len(factors)):
        both = _mixed(np.uint64(k + 1) * _FACTOR)
        factors[k], addends[k] = np.uint32(both) | np.uint32(1), np.uint32(both >> np.uint64(32))
    for d in range(len(starts) - 1):
        for t in range(starts[d], starts[d + 1]):
            begin = t - shingle_words + 1
            if begin >= starts[d] or t == starts[d + 1] - 1:
                state = np.uint64(0)
                for word in words[max(begin, starts[d]) : t + 1]:
                    state = state * _FACTOR + word
                shingle = np.uint32(_mixed(state) >> np.uint64(32))
                for k in range(len(factors)):
                    out[d, k] = min(out[d, k], np.uint32(np.uint32(shingle * factors[k]) + addends[k]))


@inlined
def _root(leader, row):
    while leader[row] != row:
        leader[row] = leader[leader[row]]
        row = leader[row]
    return row


@kernel
def _join(keys, rows, signatures, needed, leader):
    begin = 0
    for i in range(1, len(rows)):
        begin = begin if keys[i] == keys[begin] else i
        for j in range(begin, min(i, begin + WINDOW)):
            one, other = _root(leader, rows[i]), _root(leader, rows[j])
            if one != other and (signatures[rows[i]] == signatures[rows[j]]).sum() >= needed:
                leader[max(one, other)] = min(one, other)
