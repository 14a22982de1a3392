"""Reads a supervised fastText model file (.bin) without the library, its big matrix mapped instead of loaded.

The library hands words over as text (a word that is not valid UTF-8 is lost) and copies the whole input matrix (2 GB for a
usual web classifier); folding needs the exact bytes of the words and one look at each row. The layout is fastText's own
format 12 (and 11): header, arguments, dictionary, input matrix, output matrix, little endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trait_kit.engine.files import TraitError

_MAGIC = 793712314
_LOSSES = {1: "hierarchical softmax (hs)", 2: "negative sampling (ns)", 3: "softmax", 4: "one-vs-all (ova)"}


@dataclass
class FastTextFile:
    """What is needed to score with the model; `inputs` is [words + buckets, dimension], a read-only map of the file."""

    words: list[bytes]
    labels: list[bytes]
    loss: str  # softmax | ova
    word_ngrams: int
    minn: int  # shortest and longest character n-gram; maxn 0 is none
    maxn: int
    buckets: int
    inputs: np.ndarray
    outputs: np.ndarray  # float32 [labels, dimension]


def read(path: Path | str) -> FastTextFile:
    """Read the model; TraitError where it is not complete, or not a plain supervised softmax or one-vs-all model."""
    path = Path(path)
    if not path.is_file():
        raise TraitError(f"{path} does not exist. Train a model (notebook 01), or give the path of a fastText .bin file.")
    with path.open("rb") as stream:
        try:
            return _read(path, stream)
        except (struct.error, ValueError, IndexError, UnicodeDecodeError) as error:
            raise TraitError(f"{path} is not a complete fastText model ({error}). Copy or train it again.") from None


def _read(path: Path, stream) -> FastTextFile:
    def take(layout: str) -> tuple:
        return struct.unpack("<" + layout, stream.read(struct.calcsize("<" + layout)))

    magic, version = take("ii")
    if magic != _MAGIC or version not in (11, 12):
        raise TraitError(f"{path} is not a fastText model (.bin, format 11 or 12).")
    dimension, _, _, _, _, word_ngrams, loss, model, _, minn, maxn, _, _ = take("12id")
    if model != 3:
        raise TraitError(f"{path} holds word vectors, not a classifier. Train it with fasttext.train_supervised.")
    if loss not in (3, 4):
        raise TraitError(f"{path} was trained with the loss {_LOSSES.get(loss, loss)}. Train it again with loss='softmax'.")
    size, n_words, n_labels, _, pruned = take("iiiqq")
    if version == 11:
        maxn = 0  # as fastText itself reads supervised models of that format
    names = _names(stream, size)
    if pruned >= 0:
        raise TraitError(f"{path} is a quantised model (.ftz). Use the .bin model that it was made from.")
    if n_words < 0 or n_labels < 2 or n_words + n_labels != size:
        raise ValueError(f"{n_words} words and {n_labels} labels in a dictionary of {size}")
    matrices = []
    for _ in range(2):
        (quantised,) = take("?")
        if quantised:
            raise TraitError(f"{path} is a quantised model (.ftz). Use the .bin model that it was made from.")
        rows, columns = take("qq")
        if columns != dimension:
            raise ValueError(f"a matrix of {columns} columns in a model of {dimension} dimensions")
        matrices.append(np.memmap(path, np.dtype("<f4"), "r", stream.tell(), (rows, columns)))
        stream.seek(rows * columns * 4, 1)
    inputs, outputs = matrices
    if len(outputs) != n_labels or len(inputs) < n_words:
        raise ValueError(f"matrices of {len(inputs)} and {len(outputs)} rows")
    return FastTextFile(
        words=names[:n_words],
        labels=names[n_words:],
        loss="softmax" if loss == 3 else "ova",
        word_ngrams=word_ngrams,
        minn=minn,
        maxn=maxn,
        buckets=len(inputs) - n_words,
        inputs=inputs,
        outputs=np.array(outputs),
    )


def _names(stream, size: int) -> list[bytes]:
    """Names of the dictionary's entries: bytes up to a zero, then a count (8 bytes) and a type (1 byte) to skip."""
    start, names, block, position = stream.tell(), [], b"", 0
    while len(names) < size:
        zero = block.find(b"\0", position)
        if zero < 0 or zero + 10 > len(block):
            more = stream.read(1 << 20)
            if not more:
                raise ValueError("it ends within its dictionary")
            start, block, position = start + position, block[position:] + more, 0
            continue
        names.append(block[position:zero])
        position = zero + 10
    stream.seek(start + position)
    return names
