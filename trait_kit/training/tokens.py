"""Texts tokenised once, and rows of them: token ids on disk, memory-mapped, whatever the size of the corpus.

A store is a folder known by its tokenizer and its texts: `00000.tokens` (ids of whole documents, one after the other,
uint16 where the vocabulary allows it), `00000.lengths.npy` (tokens of each text) and so on, and `store.json`, written last.
A shard is the unit of resume: a killed run tokenises at most one again. The rows of a stage are a plan over stores:
`pieces.npy` (one record a piece) and `row_ends.npy`. A stage of ten million documents opens in a moment and takes no
memory but the pages that are read.

Every document ends with the tokenizer's end token, and begins with its begin token only where the tokenizer puts one there
by itself (Mistral and Llama do, SmolLM2 and GPT-2 do not). `rule` says which, in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trait_kit.engine.files import TraitError, atomic_path, read_json, write_json
from trait_kit.engine.packing import IGNORED

SHARD_TOKENS = 2**26  # 128 MB as uint16
BATCH_CHARACTERS = 2**21  # texts tokenised at once: the tokenizer's own objects take some 100 bytes a token
PIECE = np.dtype([("store", "u1"), ("start", "i8"), ("length", "i4"), ("unlearnt", "i4")])


@dataclass(frozen=True)
class TokenStore:
    """A finished store. `lengths`: tokens of each document that has any, int64 [n_documents]."""

    folder: Path
    lengths: np.ndarray
    empty: int  # texts without a single token, left out
    rule: str
    _shards: tuple[np.ndarray, ...]
    _first: np.ndarray  # first token of each shard, within the store

    @property
    def tokens(self) -> int:
        return int(self._first[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) of the store; a document lies in one shard, so a piece of one does as well."""
        shard = int(np.searchsorted(self._first, start, side="right")) - 1
        begin = start - int(self._first[shard])
        return self._shards[shard][begin : begin + length]


def open_store(folder: Path) -> TokenStore:
    """A finished store; memory only for 8 bytes a document. TraitError where it is damaged."""
    record = read_json(folder / "store.json")
    lengths = np.concatenate([[], *(np.load(path) for path in _lengths(folder))]).astype(np.int64)
    files = [path.with_name(f"{path.name[:5]}.tokens") for path in _lengths(folder)]
    shards = tuple(np.memmap(file, record["dtype"], "r") for file in files if file.stat().st_size)
    first = np.cumsum([0, *(len(shard) for shard in shards)])
    if int(lengths.sum()) != int(first[-1]):
        raise TraitError(f"The tokens in {folder} are damaged (lengths and tokens disagree). Delete it and run again.")
    kept = lengths[lengths > 0]
    return TokenStore(folder, kept, len(lengths) - len(kept), record["rule"], shards, first)


def tokenise(texts: Path, tokenizer: Any, folder: Path, *, shard_tokens: int = SHARD_TOKENS) -> TokenStore:
    """Tokenise the column `text` of a Parquet file into `folder`, or go on where a killed run stopped.

    Raises TraitError for a tokenizer without an end token, a column that is not text, or a row without one.
    """
    if (folder / "store.json").exists():
        return open_store(folder)
    begin = prefix_tokens(tokenizer)
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.int32)
    folder.mkdir(parents=True, exist_ok=True)
    done = _lengths(folder)
    rows = sum(len(np.load(path, mmap_mode="r")) for path in done)
    documents = _encoded(texts, rows, tokenizer, begin, dtype)
    for number, shard in enumerate(_shards(documents, shard_tokens), start=len(done)):
        _write_shard(folder, number, shard)
    before = f"{tokenizer.decode(begin)!r} before and " if begin else ""
    rule = f"{before}{tokenizer.eos_token!r} after each document"
    write_json(folder / "store.json", {"dtype": dtype.str, "rule": rule})
    return open_store(folder)


def write_store(documents: Sequence[np.ndarray], folder: Path) -> TokenStore:
    """A store of token ids that are already there, one int32 array a document."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_shard(folder, 0, [document.astype(np.int32) for document in documents])
    write_json(folder / "store.json", {"dtype": np.dtype(np.int32).str, "rule": ""})
    return open_store(folder)


def prefix_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text by itself: its begin token for some families, nothing for others."""
    if tokenizer.eos_token_id is None:
        raise TraitError("The base model's tokenizer has no end-of-text token: set eos_token in its tokenizer_config.json.")
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][0] == bos else []


def pair_tokens(prompt: str, target: str, tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """Tokens of the prompt, tokens of the target, and the bytes of the target up to the end of each of its tokens.

    Both are tokenised together and parted where the prompt alone would end; a space that ends the prompt belongs to the
    target: as lm-eval does when it scores them.
    """
    stripped = prompt.rstrip()
    whole = tokenizer(prompt + target, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    given = tokenizer(stripped, add_special_tokens=False, verbose=False)["input_ids"] if stripped else []
    scored = (prompt + target)[len(stripped) :]
    ends = [end - len(stripped) for _, end in whole["offset_mapping"][len(given) :]]
    return given, whole["input_ids"][len(given) :], [len(scored[:end].encode()) for end in ends]


class Rows:
    """input_ids, position_ids, labels of each row: int64 [context_length]. Position 0 begins a piece of a document.

    The first `unlearnt` tokens of a piece have no loss: 1 where a document is learnt, its prompt where it is a problem.
    Empty slots hold the end token at position 0, without a loss.
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


def save_rows(folder: Path, pieces: np.ndarray, row_ends: np.ndarray, stores: Sequence[str]) -> None:
    """Rows as files; `stores` are the stores' folders, relative to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pieces.npy", pieces)
    np.save(folder / "row_ends.npy", row_ends.astype(np.int64))
    write_json(folder / "stores.json", list(stores))


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


def _lengths(folder: Path) -> list[Path]:
    return sorted(folder.glob("?????.lengths.npy"))


def _write_shard(folder: Path, number: int, documents: list[np.ndarray]) -> None:
    """The tokens first: the lengths say that the shard is whole."""
    with atomic_path(folder / f"{number:05d}.tokens") as path, path.open("wb") as stream:
        stream.writelines(documents)
    with atomic_path(folder / f"{number:05d}.lengths.npy") as path, path.open("wb") as stream:
        np.save(stream, np.array([len(document) for document in documents], np.uint32))


def _shards(documents: Iterator[np.ndarray], shard_tokens: int) -> Iterator[list[np.ndarray]]:
    shard, tokens = [], 0
    for document in documents:
        shard.append(document)
        tokens += len(document)
        if tokens >= shard_tokens:
            yield shard
            shard, tokens = [], 0
    if shard:
        yield shard


def _encoded(texts: Path, first_row: int, tokenizer: Any, begin: list[int], dtype: np.dtype) -> Iterator[np.ndarray]:
    """The ids of each text from row `first_row` on, its end token included; nothing for a text without tokens."""
    fast = tokenizer.backend_tokenizer
    fast.no_truncation()  # some tokenizer files come with one of their own
    fast.no_padding()
    before, after = np.array(begin, dtype), np.array([tokenizer.eos_token_id], dtype)
    for batch in _batches(texts, first_row):
        for encoding in fast.encode_batch_fast(batch, add_special_tokens=False):
            ids = np.array(encoding.ids, dtype)
            yield np.concatenate([before, ids, after]) if len(ids) else ids


def _batches(texts: Path, first_row: int) -> Iterator[list[str]]:
    """Lists of texts of about BATCH_CHARACTERS; a Parquet file is read page by page, never a row group at once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    batch, characters, row = [], 0, 0
    with pq.ParquetFile(texts, pre_buffer=False, buffer_size=2**20) as file:
        names = file.schema_arrow.names
        if "text" not in names or "string" not in str(file.schema_arrow.field("text").type):
            raise TraitError(f"training: {texts} has no column 'text' of type string.")
        for record in file.iter_batches(batch_size=64, columns=["text"]):
            for text in pa.compute.cast(record.column(0), pa.large_string()).to_pylist():
                row += 1
                if row <= first_row:
                    continue
                if text is None:
                    raise TraitError(f"training: row {row - 1} of {texts} has no text.")
                batch.append(text)
                characters += len(text)
                if characters >= BATCH_CHARACTERS:
                    yield batch
                    batch, characters = [], 0
    if batch:
        yield batch
