"""Texts tokenised once, and rows of them: token ids on disk, memory-mapped, whatever the size of the corpus.

A store is a folder that appears whole or not at all: `tokens` (ids, one document after the other), `lengths.npy` (tokens a
document) and `store.json`. The rows of a stage are a plan over stores: `pieces.npy` (a record a piece), `row_ends.npy`.

Every document ends with the tokenizer's end token, and has a begin token where the tokenizer puts one by itself (Mistral and
Llama do, SmolLM2 and GPT-2 do not).
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trait_kit.engine import child
from trait_kit.engine.files import TraitError, atomic_path, maker_of, read_json, write_json
from trait_kit.engine.packing import IGNORED

TEXTS_AT_ONCE = 64  # the tokenizer's own objects take some 100 bytes a token
PIECE = np.dtype([("store", "u1"), ("start", "i8"), ("length", "i4"), ("unlearnt", "i4")])


@dataclass(frozen=True)
class TokenStore:
    folder: Path
    ids: np.ndarray  # memory-mapped, [tokens]
    lengths: np.ndarray  # tokens of each document, int64 [n_documents]


def write_store(batches: Iterable[Sequence[np.ndarray]], folder: Path) -> None:
    """Write the ids of documents, an array each, a batch at a time; TraitError where there are none."""
    with atomic_path(folder) as new:
        new.mkdir()
        lengths = [np.zeros(0, np.int64)]
        with (new / "tokens").open("wb") as stream:
            for documents in batches:
                lengths.append(np.array([len(document) for document in documents], np.int64))
                stream.writelines(documents)
        every = np.concatenate(lengths)
        if not every.any():
            raise TraitError(
                f"training: the source '{folder.name}' has no text. Look at the step that writes it."
            )
        np.save(new / "lengths.npy", every[every > 0])
        write_json(new / "store.json", {"dtype": documents[0].dtype.str})
    counts = f"{(every > 0).sum():,} documents, {(every == 0).sum():,} empty"
    child.tell(f"{folder.name}: {every.sum():,} tokens, {counts}.")


def open_store(folder: Path) -> TokenStore:
    ids = np.memmap(folder / "tokens", read_json(folder / "store.json")["dtype"], "r")
    return TokenStore(folder, ids, np.load(folder / "lengths.npy"))


def tokenise(texts: Path, tokenizer: Any, folder: Path) -> TokenStore:
    """The column `text` of a Parquet file, tokenised into `folder` where that is not done yet."""
    with maker_of(folder):
        if not folder.exists():
            write_store(_encoded(texts, tokenizer), folder)
    return open_store(folder)


def prefix_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text by itself: its begin token, or nothing."""
    if tokenizer.eos_token_id is None:
        raise TraitError(
            "The base model's tokenizer has no end-of-text token: set eos_token in its tokenizer_config.json."
        )
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][0] == bos else []


class Rows:
    """input_ids, position_ids, labels of each row: int64 [context_length]. Position 0 begins a piece of a document.

    The first `unlearnt` tokens of a piece have no loss: 1 of a document, the prompt of a problem. Empty slots hold the end
    token at position 0, without a loss.
    """

    def __init__(self, folder: Path, context_length: int, eos: int) -> None:
        self._context_length, self._eos = context_length, eos
        self._pieces = np.load(folder / "pieces.npy", mmap_mode="r")
        self._row_ends = np.load(folder / "row_ends.npy", mmap_mode="r")
        self._stores = [open_store(folder / path) for path in read_json(folder / "stores.json")]

    def __len__(self) -> int:
        return len(self._row_ends)

    def __getitem__(self, row: int) -> dict[str, Any]:
        import torch

        rows = np.repeat([[self._eos], [0], [IGNORED]], self._context_length, axis=1)
        input_ids, position_ids, labels = rows
        offset = 0
        for store, start, length, unlearnt in self._pieces[
            self._row_ends[row - 1] if row else 0 : self._row_ends[row]
        ]:
            slots = slice(offset, offset + length)
            input_ids[slots] = self._stores[store].ids[start : start + length]
            position_ids[slots] = np.arange(length)
            labels[offset + unlearnt : offset + length] = input_ids[offset + unlearnt : offset + length]
            offset += length
        return dict(zip(("input_ids", "position_ids", "labels"), torch.from_numpy(rows), strict=True))


def save_rows(folder: Path, pieces: np.ndarray, row_ends: np.ndarray, stores: Sequence[TokenStore]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pieces.npy", pieces)
    np.save(folder / "row_ends.npy", row_ends.astype(np.int64))
    write_json(folder / "stores.json", [os.path.relpath(store.folder, folder) for store in stores])


def piece_records(
    stores: Sequence[TokenStore], store: np.ndarray, document: np.ndarray, start: np.ndarray, length: np.ndarray
) -> np.ndarray:
    """PIECE records, all but the first token learnt. `document` is within its store, `start` within the document."""
    records = np.zeros(len(document), PIECE)
    records["store"], records["length"], records["unlearnt"] = store, length, 1
    for index, one in enumerate(stores):
        chosen = store == index
        records["start"][chosen] = (np.cumsum(one.lengths) - one.lengths)[document[chosen]] + start[chosen]
    return records


def _encoded(texts: Path, tokenizer: Any) -> Iterator[list[np.ndarray]]:
    """The ids of each text and its end, a batch at a time; nothing for a text without tokens. Read page by page."""
    import pyarrow.parquet as pq

    fast = tokenizer.backend_tokenizer
    fast.no_truncation()  # some tokenizer files come with one of their own
    fast.no_padding()
    begin, end = prefix_tokens(tokenizer), [tokenizer.eos_token_id]
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
    with pq.ParquetFile(texts, pre_buffer=False, buffer_size=2**20) as file:
        for record in file.iter_batches(TEXTS_AT_ONCE, columns=["text"]):
            found = fast.encode_batch_fast(record.column(0).to_pylist(), add_special_tokens=False)
            yield [np.array([*begin, *one.ids, *end] if one.ids else [], dtype) for one in found]
