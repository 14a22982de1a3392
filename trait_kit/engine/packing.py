"""Documents packed into full rows, each document blind to its neighbours.

Rows of one fixed length keep the hardware busy; best-fit placement keeps documents whole (a cut document loses the
context of its second part). Attention across documents is prevented by `position_ids` that start again at 0 in each
document and by giving the model *no* attention mask and no cache (`use_cache=False`): an all-ones mask, or the cache that
models make by default, would silently let documents see each other.

What is packed is a plan, some 20 bytes a piece; tokens stay where they are on disk until a row is read.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from trait_kit.engine.ngrams import kernel

IGNORED = -100  # a label that has no loss


@dataclass(frozen=True)
class Plan:
    """Which piece of which document lies where: int64 arrays [n_pieces], sorted by row and by place in the row."""

    document: np.ndarray
    start: np.ndarray  # first token of the piece within its document
    length: np.ndarray
    row_ends: np.ndarray  # int64 [n_rows]: pieces in this row and all before it
    n_cut: int  # documents that were cut, long ones included


def plan_rows(lengths: np.ndarray, context_length: int, *, seed: int = 0, whole: bool = False) -> Plan:
    """Place documents of the given lengths in the fewest rows.

    Longest piece first, into the row it fills best. A piece that fits in no row (too long, or only small gaps are left)
    fills the emptiest row and its rest is placed in turn, so fewer than `context_length` slots are padding in all. Rows
    come back in a seeded random order, for placement sorts them by length.
    `whole`: as many rows as it takes to cut nothing; no document may be longer than a row.
    """
    lengths = np.asarray(lengths, np.int64)
    by_length = np.argsort(-lengths, kind="stable")
    by_length = by_length[lengths[by_length] > 0]
    n_rows = -(-int(lengths.sum()) // context_length)
    if whole:  # rows that best fit opens where it may always open one more; given just those, it places every document alike
        n_rows = int(_place(by_length, lengths, len(by_length), context_length)[3].max(initial=-1)) + 1
    document, start, length, row = _place(by_length, lengths, n_rows, context_length)
    row = np.random.default_rng(seed).permutation(n_rows)[row]
    order = np.argsort(row, kind="stable")  # the pieces of a row stay in the order in which they were placed
    row_ends = np.cumsum(np.bincount(row, minlength=n_rows))
    n_cut = len(np.unique(document[length < lengths[document]]))
    return Plan(document[order], start[order], length[order], row_ends, n_cut)


@kernel
def _place(by_length, lengths, n_rows, context_length):
    """(document, start, length, row) of every piece, in the order of placement.

    Rows with the same number of free slots form a linked stack, so the best row is on top of the first stack, from the
    piece's length on, that is not empty. A cut fills its row, so there are at most n_rows of them.
    """
    pieces = np.empty((4, len(by_length) + n_rows), np.int64)
    head = np.full(context_length + 1, -1, np.int64)
    head[context_length] = 0 if n_rows else -1
    below = np.arange(1, n_rows + 1)
    below[n_rows - 1 :] = -1
    rests = [(np.int64(0), np.int64(0), np.int64(0))]  # (-length, document, start) of what was cut off, longest first
    rests.pop()
    n_pieces, next_whole = 0, 0
    while next_whole < len(by_length) or len(rests):
        if len(rests) and (
            next_whole == len(by_length) or rests[0] < (-lengths[by_length[next_whole]], by_length[next_whole], np.int64(0))
        ):
            negative, index, begin = heapq.heappop(rests)
            wanted = -negative
        else:
            index, begin = by_length[next_whole], np.int64(0)
            wanted = lengths[index]
            next_whole += 1
        free = wanted
        while free <= context_length and head[free] < 0:
            free += 1
        if free > context_length:
            free = np.int64(context_length)
            while head[free] < 0:
                free -= 1
        row = head[free]
        head[free] = below[row]
        taken = min(wanted, free)
        left = free - taken
        if left:
            below[row] = head[left]
            head[left] = row
        pieces[0, n_pieces], pieces[1, n_pieces], pieces[2, n_pieces], pieces[3, n_pieces] = index, begin, taken, row
        n_pieces += 1
        if taken < wanted:
            heapq.heappush(rests, (taken - wanted, index, begin + taken))
    return pieces[:, :n_pieces]
