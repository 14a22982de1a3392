"""Documents packed into full rows, each document blind to its neighbours.

Rows of one fixed length keep the hardware busy; best-fit placement keeps documents whole (a cut document loses the
context of its second part). Attention across documents is prevented by `position_ids` that start again at 0 in each
document and by giving the model *no* attention mask and no cache (`use_cache=False`): an all-ones mask, or the cache that
models make by default, would silently let documents see each other.

What is packed is a plan, some 20 bytes a piece; tokens stay where they are on disk until a row is read.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
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
    context_length: int
    n_cut: int  # documents that were cut, long ones included

    @property
    def efficiency(self) -> float:
        """Share of the slots that are not padding."""
        slots = len(self.row_ends) * self.context_length
        return float(self.length.sum()) / slots if slots else 1.0


@dataclass(frozen=True)
class Packed:
    """Rows of `context_length` tokens: three int32 arrays [n_rows, context_length], and what it took to fill them."""

    input_ids: np.ndarray
    position_ids: np.ndarray  # restart at 0 with each document or part of one; 0 in every padded slot
    document: np.ndarray  # index of the document each slot came from; -1 is padding
    n_tokens: int  # slots that are not padding
    n_cut: int

    @property
    def efficiency(self) -> float:
        return self.n_tokens / self.input_ids.size

    @property
    def labels(self) -> np.ndarray:
        return labels_of(self.input_ids, self.position_ids)


def labels_of(input_ids: np.ndarray, position_ids: np.ndarray) -> np.ndarray:
    """What each slot should have been predicted to hold: itself, or IGNORED where no earlier token of its document is seen.

    Not shifted: the model's loss compares the prediction at slot t - 1 with the label at slot t.
    """
    return np.where(position_ids == 0, IGNORED, input_ids)


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
    return Plan(document[order], start[order], length[order], row_ends, context_length, n_cut)


def pack(documents: Sequence[np.ndarray], context_length: int, eos: int, *, seed: int = 0, whole: bool = False) -> Packed:
    """`plan_rows` carried out in memory; `eos` fills what is left of the last rows. Documents bring their own end token."""
    lengths = np.array([len(document) for document in documents], np.int64)
    plan = plan_rows(lengths, context_length, seed=seed, whole=whole)
    shape = (len(plan.row_ends), context_length)
    input_ids, position_ids = np.full(shape, eos, np.int32), np.zeros(shape, np.int32)
    owner = np.full(shape, -1, np.int32)
    for row, end in enumerate(plan.row_ends):
        offset = 0
        for piece in range(plan.row_ends[row - 1] if row else 0, end):
            index, start, length = plan.document[piece], plan.start[piece], plan.length[piece]
            slots = (row, slice(offset, offset + length))
            input_ids[slots] = documents[index][start : start + length]
            position_ids[slots] = np.arange(length)
            owner[slots] = index
            offset += length
    return Packed(input_ids, position_ids, owner, int(lengths.sum()), plan.n_cut)


@kernel
def _place(by_length, lengths, n_rows, context_length):
    """(document, start, length, row) of every piece, in the order of placement.

    Rows with the same number of free slots form a linked stack; bit k of `open_` says that the stack of k is not empty, so
    the best row is the first set bit from the piece's length on. A cut fills its row, so there are at most n_rows of them.
    """
    room = len(by_length) + n_rows
    document, start = np.empty(room, np.int64), np.empty(room, np.int64)
    length, row_of = np.empty(room, np.int64), np.empty(room, np.int64)
    head = np.full(context_length + 1, -1, np.int64)
    below = np.arange(1, n_rows + 1)
    open_ = np.zeros(context_length + 1, np.bool_)
    if n_rows:
        below[n_rows - 1] = -1
        head[context_length] = 0
        open_[context_length] = True
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
        while free <= context_length and not open_[free]:
            free += 1
        if free > context_length:
            free = np.int64(context_length)
            while not open_[free]:
                free -= 1
        row = head[free]
        head[free] = below[row]
        open_[free] = head[free] >= 0
        taken = min(wanted, free)
        left = free - taken
        if left:
            below[row] = head[left]
            head[left] = row
            open_[left] = True
        document[n_pieces], start[n_pieces], length[n_pieces], row_of[n_pieces] = index, begin, taken, row
        n_pieces += 1
        if taken < wanted:
            heapq.heappush(rests, (taken - wanted, index, begin + taken))
    return document[:n_pieces], start[:n_pieces], length[:n_pieces], row_of[:n_pieces]
