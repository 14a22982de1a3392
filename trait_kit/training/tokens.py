"""Texts tokenised once: shards of token ids on disk, memory-mapped, whatever the size of the corpus.

A store is a folder known by its tokenizer and its texts: `00000.tokens` (ids of whole documents, one after the other,
uint16 where the vocabulary allows it), `00000.lengths.npy` (tokens of each document) and so on, and `store.json`, written
last. A shard is the unit of resume: a killed run tokenises at most one again. Memory is that of one batch of texts; the
tokenizer's own threads use all cores.

End of text: every document ends with the tokenizer's end token, and begins with its begin token only where the tokenizer
puts one there by itself (Mistral and Llama do, SmolLM2 and GPT-2 do not). `rule` says which, in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trait_kit.engine.files import TraitError, atomic_path, read_json, write_json

SHARD_TOKENS = 2**26  # 128 MB as uint16
BATCH_CHARACTERS = 2**21  # texts tokenised at once: the tokenizer's own objects take some 100 bytes a token
LONGEST_PIECE = 2**20  # characters; a longer text is tokenised in pieces


@dataclass(frozen=True)
class TokenStore:
    """A finished store. `lengths`: tokens of each document, int64 [n_documents]."""

    folder: Path
    lengths: np.ndarray
    empty: int  # texts without a single token, left out
    rule: str
    _shards: tuple[np.ndarray, ...]
    _first: np.ndarray  # first token of each shard, within the store

    def __getstate__(self) -> None:
        raise TypeError("open the store again instead of pickling its memory maps")

    @property
    def tokens(self) -> int:
        return int(self._first[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) of the store; a document lies in one shard, so a piece of one does as well."""
        shard = int(np.searchsorted(self._first, start, side="right")) - 1
        begin = start - int(self._first[shard])
        return self._shards[shard][begin : begin + length]


def open_store(folder: Path) -> TokenStore:
    """A finished store; memory only for 8 bytes a document."""
    record = read_json(folder / "store.json")
    parts = [np.load(folder / f"{name}.lengths.npy") for name in record["shards"]]
    lengths = np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)
    shards = tuple(np.memmap(folder / f"{name}.tokens", record["dtype"], "r") for name in record["shards"])
    first = np.cumsum([0, *(len(shard) for shard in shards)])
    if int(lengths.sum()) != int(first[-1]):
        raise TraitError(
            f"The tokens in {folder} are damaged (lengths and tokens disagree). Delete that folder and run again."
        )
    return TokenStore(folder, lengths, record["empty"], record["rule"], shards, first)


def tokenise(texts: Path, tokenizer: Any, folder: Path, *, shard_tokens: int = SHARD_TOKENS) -> TokenStore:
    """Tokenise the column `text` of a Parquet file into `folder`, or go on where a killed run stopped.

    Raises TraitError for a tokenizer without an end token, a column that is not text, or a row without one.
    """
    if (folder / "store.json").exists():
        return open_store(folder)
    begin = prefix_tokens(tokenizer)
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.int32)
    folder.mkdir(parents=True, exist_ok=True)
    done = sorted(folder.glob("?????.json"))  # a shard's own record, written after its two files
    names, rows, empty = [path.stem for path in done], 0, 0
    if done:
        last = read_json(done[-1])
        rows, empty = last["rows"], last["empty"]
    for shard in _shards(_encoded(texts, rows, tokenizer, begin, dtype), shard_tokens):
        name = f"{len(names):05d}"
        rows, empty = rows + shard.rows, empty + shard.rows - len(shard.lengths)
        with atomic_path(folder / f"{name}.tokens") as path, path.open("wb") as stream:
            stream.writelines(shard.arrays)
        with atomic_path(folder / f"{name}.lengths.npy") as path, path.open("wb") as stream:
            np.save(stream, np.array(shard.lengths, np.uint32))
        write_json(folder / f"{name}.json", {"rows": rows, "empty": empty})
        names.append(name)
    names = [name for name in names if (folder / f"{name}.tokens").stat().st_size]  # a shard of empty texts has no tokens
    rule = f"{tokenizer.decode(begin)!r} before and " if begin else ""
    rule = f"{rule}{tokenizer.eos_token!r} after each document"
    write_json(folder / "store.json", {"shards": names, "dtype": dtype.str, "empty": empty, "rule": rule})
    return open_store(folder)


def write_store(documents: Sequence[np.ndarray], folder: Path) -> TokenStore:
    """A store of token ids that are already there, one int32 array a document."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "00000.tokens").write_bytes(np.concatenate(documents).astype(np.int32).tobytes())
    np.save(folder / "00000.lengths.npy", np.array([len(document) for document in documents], np.uint32))
    record = {"shards": ["00000"], "dtype": np.dtype(np.int32).str, "empty": 0, "rule": ""}
    write_json(folder / "store.json", record)
    return open_store(folder)


def prefix_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text by itself: its begin token for some families, nothing for others."""
    if tokenizer.eos_token_id is None:
        raise TraitError("The base model's tokenizer has no end-of-text token: set eos_token in its tokenizer_config.json.")
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][0] == bos else []


@dataclass
class _Shard:
    arrays: list[np.ndarray]
    lengths: list[int]
    rows: int = 0


def _shards(documents: Iterator[np.ndarray], shard_tokens: int) -> Iterator[_Shard]:
    shard, tokens = _Shard([], []), 0
    for document in documents:
        shard.rows += 1
        if len(document):
            shard.arrays.append(document)
            shard.lengths.append(len(document))
            tokens += len(document)
        if tokens >= shard_tokens:
            yield shard
            shard, tokens = _Shard([], []), 0
    if shard.rows:
        yield shard


def _encoded(texts: Path, first_row: int, tokenizer: Any, begin: list[int], dtype: np.dtype) -> Iterator[np.ndarray]:
    """The ids of each text from row `first_row` on, its end token included; nothing for a text without tokens."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:  # some tokenizer files come with a truncation of their own
        fast.no_truncation()
        fast.no_padding()
    before, after = np.array(begin, dtype), np.array([tokenizer.eos_token_id], dtype)
    for batch in _batches(texts, first_row):
        pieces = [_pieces(text) for text in batch]
        flat = [piece for parts in pieces for piece in parts]
        if fast is not None:
            ids = iter([np.array(item.ids, dtype) for item in fast.encode_batch_fast(flat, add_special_tokens=False)])
        else:
            encoded = tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"]
            ids = iter([np.array(item, dtype) for item in encoded])
        for parts in pieces:
            document = [next(ids) for _ in parts]
            yield np.concatenate([before, *document, after]) if any(map(len, document)) else np.zeros(0, dtype)


def _pieces(text: str) -> list[str]:
    """`text`, or what it is cut into before a line break or a space, where it is too long to tokenise at once."""
    pieces = []
    while len(text) > LONGEST_PIECE:
        cut = max(text.rfind("\n", 1, LONGEST_PIECE), text.rfind(" ", 1, LONGEST_PIECE))
        cut = cut if cut > 0 else LONGEST_PIECE
        pieces.append(text[:cut])
        text = text[cut:]
    return [*pieces, text]


def _batches(texts: Path, first_row: int) -> Iterator[list[str]]:
    """Lists of texts of about BATCH_CHARACTERS; a Parquet file is read page by page, never a row group at once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    batch, characters, row = [], 0, 0
    with pq.ParquetFile(texts, pre_buffer=False, buffer_size=2**20) as file:
        if "text" not in file.schema_arrow.names or not _is_text(file.schema_arrow.field("text").type):
            raise TraitError(f"training: {texts} has no column 'text' of type string.")
        sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        groups = list(range(len(sizes)))
        while groups and row + sizes[groups[0]] <= first_row:
            row += sizes[groups.pop(0)]
        for group in groups:
            for record in file.iter_batches(batch_size=64, row_groups=[group], columns=["text"]):
                column = record.column(0)
                skipped = min(max(first_row - row, 0), len(column))
                row += skipped
                for text in pa.compute.cast(column.slice(skipped), pa.large_string()).to_pylist():
                    if text is None:
                        raise TraitError(f"training: row {row} of {texts} has no text.")
                    row += 1
                    batch.append(text)
                    characters += len(text)
                    if characters >= BATCH_CHARACTERS:
                        yield batch
                        batch, characters = [], 0
    if batch:
        yield batch


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
