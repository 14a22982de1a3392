"""Documents packed into full rows, each document blind to its neighbours.

Best fit keeps documents whole: a cut one loses the context of its second part. `position_ids` that start again at 0 in
each, *no* attention mask and no cache (`use_cache=False`) keep them apart: an all-ones mask, or the cache that models make
by default, would silently let them see each other. Documents are placed as they come, never sorted by length: rows and
batches stay as random as the order. A plan takes some 20 bytes a piece; tokens stay on disk until a row is read.
"""

from typing import NamedTuple

import numpy as np

from trait_kit.engine.ngrams import kernel

IGNORED = -100  # a label that has no loss


class Plan(NamedTuple):
    """Which piece of which document lies where: int64 [n_pieces], by row and place in the row."""

    document: np.ndarray
    start: np.ndarray  # first token of the piece within its document
    length: np.ndarray
    row_ends: np.ndarray  # int64 [n_rows]: pieces in this row and all before it


def plan_rows(
    lengths: np.ndarray, context_length: int, *, n_rows: int | None = None, whole: bool | np.ndarray = False
) -> Plan:
    """Place documents of these lengths, in their order, each into the row that it fills best.

    `whole`: which may not be cut (bool, or one a document). What fits in no row waits for the others; then what may be cut
    fills the emptiest rows, the rest is in none. `n_rows`: None for as many as it takes, the fewest possible with cuts.
    """
    lengths = np.asarray(lengths, np.int64)
    whole = np.ascontiguousarray(np.broadcast_to(np.asarray(whole, bool), lengths.shape))
    enough = len(lengths) if whole.any() else -(-int(lengths.sum()) // context_length)
    document, start, length, row = _place(lengths, whole, enough if n_rows is None else n_rows, context_length)
    order = np.argsort(row, kind="stable")  # the pieces of a row stay in the order in which they were placed
    return Plan(document[order], start[order], length[order], np.cumsum(np.bincount(row, minlength=n_rows or 0)))


@kernel
def _place(lengths, whole, n_rows, context_length):
    """(document, start, length, row) of every piece, in the order of placement.

    Rows with equally many free slots are a linked stack: the best row is on top of the first that is not empty, from the
    piece's length on. A cut fills its row, so there are at most n_rows of them.
    """
    pieces = np.empty((4, len(lengths) + n_rows), np.int64)
    head = np.full(context_length + 1, -1, np.int64)
    head[context_length] = 0 if n_rows else -1
    below = np.arange(1, n_rows + 1)
    below[n_rows - 1 :] = -1
    waiting, begins = np.empty(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    n_pieces, n_waiting = 0, 0
    for turn in range(2):
        for place in range(n_waiting if turn else len(lengths)):
            index = waiting[place] if turn else place
            while begins[index] < lengths[index]:
                wanted = lengths[index] - begins[index]
                free = wanted
                while free <= context_length and head[free] < 0:
                    free += 1
                if free > context_length and not whole[index]:
                    free = np.int64(context_length)
                    if turn:
                        while free and head[free] < 0:
                            free -= 1
                    elif wanted < free or head[free] < 0:  # it is not longer than a row, or no row is empty
                        waiting[n_waiting] = index
                        n_waiting += 1
                        break
                if free == 0 or free > context_length:
                    break
                row = head[free]
                head[free] = below[row]
                taken = min(wanted, free)
                if free > taken:
                    below[row] = head[free - taken]
                    head[free - taken] = row
                pieces[0, n_pieces], pieces[1, n_pieces] = index, begins[index]
                pieces[2, n_pieces], pieces[3, n_pieces] = taken, row
                n_pieces += 1
                begins[index] += taken

    return pieces[:, :n_pieces]
