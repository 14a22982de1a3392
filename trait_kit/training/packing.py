"""Documents packed into full rows, each document blind to its neighbours.

Rows of one fixed length keep the hardware busy; best-fit placement keeps documents whole (a cut document loses the
context of its second part). Attention across documents is prevented by `position_ids` that start again at 0 in each
document and by giving the model *no* attention mask and no cache (`use_cache=False`): an all-ones mask, or the cache that
models make by default, would silently let documents see each other.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IGNORED = -100  # a label that has no loss


@dataclass(frozen=True)
class Packed:
    """Rows of `context_length` tokens: three int32 arrays [n_rows, context_length], and what it took to fill them."""

    input_ids: np.ndarray
    position_ids: np.ndarray  # restart at 0 with each document or part of one; 0 in every padded slot
    document: np.ndarray  # index of the document each slot came from; -1 is padding
    n_tokens: int  # slots that are not padding
    n_cut: int  # documents that were cut, long ones included

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


def pack(documents: Sequence[np.ndarray], context_length: int, eos: int, *, seed: int = 0, whole: bool = False) -> Packed:
    """Pack every token of `documents` into the fewest rows; `eos` fills what is left of the last rows.

    Longest piece first, into the row it fills best. A piece that fits in no row (too long, or only small gaps are left)
    fills the emptiest row and its rest is placed in turn, so fewer than `context_length` slots are padding in all. Rows
    come back in a seeded random order, for placement sorts them by length. Documents bring their own end token.
    `whole`: as many rows as it takes to cut nothing; no document may be longer than a row.
    """
    total = sum(len(document) for document in documents)
    n_rows = _rows_for_whole(documents, context_length) if whole else -(-total // context_length)
    shape = (n_rows, context_length)
    input_ids, position_ids = np.full(shape, eos, np.int32), np.zeros(shape, np.int32)
    owner = np.full(shape, -1, np.int32)
    order = np.random.default_rng(seed).permutation(n_rows)
    rows = _Rows(n_rows, context_length)
    pieces = [(-len(document), index, 0) for index, document in enumerate(documents) if len(document)]
    heapq.heapify(pieces)
    cut = set()
    while pieces:
        negative, index, start = heapq.heappop(pieces)
        row, offset, length = rows.place(-negative)
        if length < -negative:
            cut.add(index)
            heapq.heappush(pieces, (negative + length, index, start + length))
        slots = (order[row], slice(offset, offset + length))
        input_ids[slots] = documents[index][start : start + length]
        position_ids[slots] = np.arange(length)
        owner[slots] = index
    return Packed(input_ids, position_ids, owner, total, len(cut))


def _rows_for_whole(documents: Sequence[np.ndarray], context_length: int) -> int:
    """Rows that best fit opens where it may always open one more; given just those, it places every document alike."""
    rows = _Rows(len(documents), context_length)
    lengths = sorted((len(document) for document in documents if len(document)), reverse=True)
    return 1 + max((rows.place(length)[0] for length in lengths), default=-1)


class _Rows:
    """Rows by free slots; a set bit k of `_open` says that some row has k free slots, so a search is one shift."""

    def __init__(self, n_rows: int, context_length: int) -> None:
        self._context_length = context_length
        self._by_free: list[list[int]] = [[] for _ in range(context_length + 1)]
        self._by_free[context_length] = list(range(n_rows))[::-1]
        self._open = 1 << context_length if n_rows else 0

    def place(self, length: int) -> tuple[int, int, int]:
        """Take up to `length` slots of the best row: (row, first slot, slots taken)."""
        fitting = self._open >> length
        free = length + (fitting & -fitting).bit_length() - 1 if fitting else self._open.bit_length() - 1
        row = self._by_free[free].pop()
        if not self._by_free[free]:
            self._open &= ~(1 << free)
        taken = min(length, free)
        if left := free - taken:
            self._by_free[left].append(row)
            self._open |= 1 << left
        return row, self._context_length - free, taken
