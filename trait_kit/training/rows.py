"""The rows of a stage: a plan on disk over tokens on disk. Reading one copies some pieces, wherever in the corpus they lie.

In the stage's folder: `pieces.npy` (one record a piece), `row_ends.npy` and `prepared.json`. A stage of ten million
documents opens in a moment and takes no memory but the pages that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from trait_kit.engine.files import read_json
from trait_kit.engine.packing import IGNORED
from trait_kit.training.tokens import TokenStore, open_store

PIECE = np.dtype([("store", "u1"), ("start", "i8"), ("length", "i4"), ("unlearnt", "i4")])


class Rows(Dataset):
    """input_ids, position_ids, labels of each row: int64 [context_length]. Position 0 begins a piece of a document.

    The first `unlearnt` tokens of a piece have no loss: 1 where a document is learnt, its prompt where it is a problem.
    Empty slots hold the end token at position 0, without a loss.
    """

    def __init__(self, folder: Path, context_length: int, eos: int) -> None:
        self._context_length, self._eos = context_length, eos
        self._pieces = np.load(folder / "pieces.npy", mmap_mode="r")
        self._row_ends = np.load(folder / "row_ends.npy", mmap_mode="r")
        self._stores = [open_store(folder / path) for path in read_json(folder / "prepared.json")["stores"]]

    def __len__(self) -> int:
        return len(self._row_ends)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        input_ids = np.full(self._context_length, self._eos, np.int64)
        position_ids = np.zeros(self._context_length, np.int64)
        labels = np.full(self._context_length, IGNORED, np.int64)
        offset = 0
        for store, start, length, unlearnt in self._pieces[self._row_ends[row - 1] if row else 0 : self._row_ends[row]]:
            slots = slice(offset, offset + length)
            input_ids[slots] = self._stores[store].read(start, length)
            position_ids[slots] = np.arange(length)
            labels[offset + unlearnt : offset + length] = input_ids[offset + unlearnt : offset + length]
            offset += length
        values = {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}
        return {name: torch.from_numpy(value) for name, value in values.items()}


def save_rows(folder: Path, pieces: np.ndarray, row_ends: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pieces.npy", pieces)
    np.save(folder / "row_ends.npy", row_ends.astype(np.int64))


def mean_attended(pieces: np.ndarray) -> float:
    """Tokens that a token attends to, itself included, on average over the pieces: what attention really computes."""
    lengths = pieces["length"].astype(np.float64)
    return float((lengths * (lengths + 1) / 2).sum() / max(1.0, lengths.sum()))


def piece_records(stores: Sequence[TokenStore], store: np.ndarray, document: np.ndarray, start: np.ndarray) -> np.ndarray:
    """PIECE records without their lengths: `document` is within its store, `start` within the document."""
    records = np.zeros(len(document), PIECE)
    records["store"], records["unlearnt"] = store, 1
    for index, one in enumerate(stores):
        chosen = store == index
        begins = np.concatenate([[0], np.cumsum(one.lengths)])[:-1]
        records["start"][chosen] = begins[document[chosen]] + start[chosen]
    return records
