"""Who a document is: ids made where there are none, repeated ids found, and which ids are held out.

All three work on a 64-bit hash of the id, computed column by column, so that a corpus of any size streams: a document's
fate depends on its own id and never on the others'.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 2_000
_HALVINGS = 3


def held_out_share(documents: int) -> float:
    """The share of a corpus of about so many documents that is held out.

    5% up to 40,000 documents; then half as much whenever the corpus doubles, so that between 2,000 and 4,000 documents are
    held out; 0.625% from 320,000 documents on, because 2,000 must be found without reading a large corpus to its end. The
    share falls in steps: a corpus that grows a little keeps its held-out documents, and all the work done on the others.
    """
    halvings = 0
    while halvings < _HALVINGS and documents * HELD_OUT_SHARE / 2 ** (halvings + 1) >= HELD_OUT_MOST:
        halvings += 1
    return HELD_OUT_SHARE / 2**halvings


def id_hashes(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """uint64 [n]: SipHash with a fixed key, the same in every process and on every machine."""
    return pd.util.hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)


def below(hashes: np.ndarray, share: float) -> np.ndarray:
    """bool [n]: the documents to hold out."""
    return hashes < np.uint64(share * 2**64)


def share_of(hashes: list[np.ndarray]) -> float:
    """The share that holds out exactly 5% (rounded down) of the documents of a small corpus: none of fewer than 20."""
    ordered = np.sort(np.concatenate([*hashes, np.empty(0, np.uint64)]))
    count = int(len(ordered) * HELD_OUT_SHARE)
    return float(ordered[count - 1] / 2 + ordered[count] / 2) / 2**64 if count else 0.0


class Identities:
    """The ids seen so far: 8 bytes a document, in sorted runs that are merged as they grow."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def check(self, documents: pa.Table) -> tuple[pa.Table, np.ndarray, np.ndarray]:
        """(the documents, each with an id; hashes of the ids; bool: the first with its id, counted as seen from now on).

        A missing id is made from the text, and the row where a text repeats, so that it stays when a file moves. Its hash
        is that of the text alone: a text that repeats is held out wherever it stands, or nowhere.
        """
        missing = documents["id"].is_null().to_numpy()
        if missing.any():
            texts = documents["text"].filter(pa.array(missing)).to_pylist()
            made = [hashlib.sha256(text.encode()).hexdigest()[:20] for text in texts]
            documents = _with_ids(documents, missing, made)
        hashes = id_hashes(documents["id"])
        new = self._fresh(hashes)
        again = missing & ~new
        if again.any():
            old = documents.filter(pa.array(again))
            names = pc.binary_join_element_wise(old["id"], old["row"].cast(pa.string()), "-")
            documents = _with_ids(documents, again, names.to_pylist())
            new[again] = self._fresh(id_hashes(names))
        return documents, hashes, new

    def _fresh(self, hashes: np.ndarray) -> np.ndarray:
        added = np.sort(hashes)
        repeated = added[1:] == added[:-1]
        known = np.zeros(len(added), bool)
        for run in self._runs:
            known |= run[np.minimum(np.searchsorted(run, added), len(run) - 1)] == added
        new = np.ones(len(hashes), bool)
        if repeated.any() or known.any():
            new[:] = False
            new[np.unique(hashes, return_index=True)[1]] = True
            new &= ~np.isin(hashes, added[known])
            added = np.unique(added[~known])
        while self._runs and len(self._runs[-1]) <= 2 * len(added):
            added = np.sort(np.concatenate([self._runs.pop(), added]))
        if len(added):
            self._runs.append(added)
        return new


def _with_ids(documents: pa.Table, where: np.ndarray, names: list[str]) -> pa.Table:
    ids = pc.replace_with_mask(documents["id"], pa.array(where), pa.array(names, pa.string()))
    return documents.set_column(documents.column_names.index("id"), "id", ids)
